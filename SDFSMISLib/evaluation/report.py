"""The report of a results folder: ``report.html`` with its pictures inside, the pictures, and the tables as Markdown.

All runs that the folder keeps are reported, so the report is right after a run was stopped and taken up again. Pictures
are box plots (how a measure spreads over the cases, for each target and method) and contact sheets.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
import platform
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from SDFSMISLib import __version__
from SDFSMISLib.cohort.cases import Manifest, load_case
from SDFSMISLib.evaluation.contact_sheet import contact_sheet
from SDFSMISLib.evaluation.diagnostics import diagnose
from SDFSMISLib.evaluation.interactive import ENOUGH, LOSS, PAINTINGS, PROTOCOL, curve_plot, curves, curves_table
from SDFSMISLib.evaluation.protocols import Setting
from SDFSMISLib.evaluation.results import (
    MEASURES,
    Row,
    prediction_path,
    predictions_in,
    read_mask,
    read_results,
    summarise,
)
from SDFSMISLib.evaluation.tables import TITLES, Table, diagnostics_table, measures_table
from SDFSMISLib.images.files import atomic_output, write_text
from SDFSMISLib.images.volume import Volume

if TYPE_CHECKING:
    from matplotlib.axes import Axes


COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f")
HEIGHT, BOX, GAP, NARROWEST = 4.0, 0.2, 0.25, 6.0  # inches: the figure, a box and what is between targets, the figure
DOTS_PER_INCH = 110
SHARES = ("dice", "nsd")  # measures from 0 to 1


def box_plot(rows: Sequence[Row], measure: str, path: Path, title: str) -> Path:
    """Draws a box (quartiles, whiskers to 1.5 times their range) and the cases as dots for each target and method.

    Targets and methods come in the order of ``rows``; what is not defined is left out. A PNG, whole or not at all;
    returns its path.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    targets = list(dict.fromkeys(row.target for row in rows))
    methods = list(dict.fromkeys(row.method for row in rows))
    colours = [COLOURS[number % len(COLOURS)] for number in range(len(methods))]
    step = len(methods) * BOX + GAP  # inches from target to target
    width = max(len(targets) * step + 1, NARROWEST)
    figure = Figure(figsize=(width, HEIGHT), dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.add_subplot()
    for number, (method, colour) in enumerate(zip(methods, colours, strict=True)):
        for place, target in enumerate(targets):
            values = [row.measure(measure) for row in rows if (row.method, row.target) == (method, target)]
            centre = place * step + (number - (len(methods) - 1) / 2) * BOX
            _box(axes, [value for value in values if not math.isnan(value)], centre, colour)
    axes.set_xticks([place * step for place in range(len(targets))], [_literal(target) for target in targets])
    axes.tick_params(axis="x", rotation=30 if len(targets) > 4 else 0)
    axes.set_xlim(-step / 2, (len(targets) - 0.5) * step)
    if measure in SHARES:
        axes.set_ylim(-0.02, 1.02)
    axes.grid(axis="y", alpha=0.3)
    axes.set_title(title, fontsize=10, parse_math=False)
    handles = [Patch(color=colour, label=_literal(name)) for name, colour in zip(methods, colours, strict=True)]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(methods), 4), frameon=False, fontsize=8)
    with atomic_output(path, path.suffix) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))
    return path


def _box(axes: Axes, values: Sequence[float], centre: float, colour: str) -> None:
    line = {"color": colour, "linewidth": 1.2}
    parts = axes.boxplot(
        [values],
        positions=[centre],
        widths=0.7 * BOX,
        patch_artist=True,
        showfliers=False,
        manage_ticks=False,
        medianprops={"color": "black"},
        boxprops={"edgecolor": colour, "linewidth": 1.2},
        whiskerprops=line,
        capprops=line,
    )
    parts["boxes"][0].set_facecolor(f"{colour}55")
    axes.plot([centre] * len(values), values, ".", color=colour, markersize=3)


def _literal(name: str) -> str:
    """A name in which matplotlib finds no formula."""
    return name.replace("$", r"\$")


PROTOCOL_TEXTS = {
    "same-volume": "Slices painted on the scan itself; all that is on none of them is judged.",
    "cross-volume": "Slices painted on the next case of the group; every slice of the case is judged.",
    "field": "The literature's protocol, for comparison with papers only: three painted slices of the next case of the "
    "group, each for a third of the slices that hold the target; slices without the target are not judged.",
}
FINISHED_TEXTS = {
    "same-volume": "Finished scans of the group are examples besides, as a whole: the next ones that show the target.",
    "cross-volume": "Finished scans of the group are examples, as a whole: the next ones that show the target. Nothing "
    "is painted on the scan; every slice is judged. Methods that take slices get the largest of each finished scan.",
}
NOTES = (
    "Means are over cases, then over a group's targets, then over groups. (n) behind a mean: n tasks were left out of "
    "it, where a mask is empty and so has no surface; their Dice is counted, 0 where one mask is empty, 1 where both."
)
DIAGNOSTICS_NOTES = (
    "Pairing gap: Dice minus the Dice, against the same target, where the support showed another structure of the same "
    "scan; about 0 for a method that does not look at what was painted. In brackets: tasks, or slices."
)
INTERACTIVE_NOTES = (
    "A simulated user paints one slice after the other and looks at the result after each; the first is that of "
    f"largest area. Painted are {'; '.join(f'{name}: {how}' for name, how in PAINTINGS.items())}. Dice is over the "
    "whole volume, painted slices as painted. Of the gain of worst: from the first slice to the last. Slices for "
    f"{ENOUGH:.2f}: so many half of the tasks need. Slices that cost: after which Dice was lower by more than {LOSS}. "
    "Certainty against Dice: rank correlation over slices that are not painted."
)
SLICES_SHOWN, SHEET_QUALITY = 12, 80
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b}
table{border-collapse:collapse;margin:.5rem 0 1.5rem;font-size:14px;display:block;overflow-x:auto}
th,td{padding:.2rem .7rem;border-bottom:1px solid #ddd;text-align:left}th{border-bottom:2px solid #888}
.figure{text-align:right;font-variant-numeric:tabular-nums}.strong td{font-weight:600;background:#f3f3f3}
img{max-width:100%;display:block;margin:.5rem 0}code{background:#f3f3f3;padding:.1rem .3rem;overflow-wrap:anywhere}
.note{color:#555;font-size:13px}summary{cursor:pointer;font-weight:600}figure{margin:1rem 0}"""

Progress = Callable[[int, int, str], None]
"""(contact sheets drawn, contact sheets in all, what is next)."""


def write_report(
    folder: str | PathLike[str], manifest: Manifest, command: str = "", progress: Progress | None = None
) -> Path:
    """Writes ``report.html``, ``tables.md`` and ``pictures`` into a folder of results of cases of ``manifest``.

    ``command`` is the command line to name. The page holds its pictures, smaller, in itself. Contact sheets show the
    best, the median and the worst task, by Dice, of each group and method; cases that the manifest no longer lists have
    none. Returns the page's path. Raises :class:`InputError` for files that are missing, damaged or cannot be written.
    """
    folder = Path(folder)
    rows = read_results(folder / "results.csv")
    sections = _sections(folder, rows)
    shown = [(section, sheet) for section in sections for sheet in section.sheets({case.id for case in manifest.cases})]
    pictures: dict[str, list[str]] = {}
    for number, (section, sheet) in enumerate(shown):
        if progress:
            progress(number, len(shown), f"{sheet.row.case}, {sheet.row.target}, {sheet.row.method}")
        path = sheet.draw(manifest)
        pictures.setdefault(section.title, []).append(_sheet_html(sheet, path))
    if progress:
        progress(len(shown), len(shown), "")
    bodies = [section.html(pictures.get(section.title, [])) for section in sections]
    page = _page(command, manifest, {row.group for row in rows}, bodies)
    for name, text in (("report.html", page), ("tables.md", "\n".join(section.markdown() for section in sections))):
        write_text(folder / name, text)
    return folder / "report.html"


@dataclass(frozen=True)
class _Section:
    """All rows of one setting."""

    folder: Path
    title: str
    rows: Sequence[Row]

    def paired(self) -> list[Row]:
        return [row for row in self.rows if not row.mispaired]

    def sheets(self, cases: set[str]) -> Iterator[_Sheet]:
        """Best, median and worst task of each group and method, each task once, among these cases."""
        members: dict[tuple[str, str, str], list[Row]] = {}
        for row in self.paired():
            if row.case in cases:
                members.setdefault((row.group, row.method, row.painting), []).append(row)
        for its in members.values():
            ranked = sorted(its, key=lambda row: -row.scores["dice"])
            ranks: dict[int, str] = {}
            for place, rank in ((0, "best"), (len(ranked) - 1, "worst"), (len(ranked) // 2, "median")):
                ranks.setdefault(place, rank)
            for place, rank in sorted(ranks.items()):
                yield _Sheet(self.folder, rank, ranked[place])

    def text(self) -> str:
        """What its setting means."""
        first = self.rows[0]
        if not first.finished:
            return PROTOCOL_TEXTS[first.protocol]
        painted = f"{PROTOCOL_TEXTS[first.protocol]} " if first.shots else ""
        return painted + FINISHED_TEXTS[first.protocol]

    def measures(self) -> list[str]:
        """Those that were computed in any task."""
        return [name for name in MEASURES if name == "seconds" or any(name in row.scores for row in self.rows)]

    def diagnostics(self) -> Table:
        its = diagnose(self.rows, predictions_in(self.folder))
        return diagnostics_table({method: figures for (_, method), figures in its.items()})

    def html(self, sheets: Sequence[str]) -> str:
        """The section; ``sheets`` are its contact sheets."""
        summaries = summarise(self.rows)
        parts = [f"<h2>{escape(self.title)}</h2><p>{escape(self.text())}</p>"]
        for measure in self.measures():
            parts.append(f"<h3>{escape(TITLES[measure])}</h3>{measures_table(summaries, measure).html()}")
        parts.append(f"<p class=note>{escape(NOTES)}</p><h3>Spread over the cases</h3>")
        for group in dict.fromkeys(row.group for row in self.paired()):
            title = f"{group}: {TITLES['dice']}"
            its = [row for row in self.paired() if row.group == group]
            path = self.folder / "pictures" / f"{_file_name(self.title, group)}.png"
            parts.append(_image_tag(box_plot(its, "dice", path, title).read_bytes(), "image/png", title))
        parts.append(f"<h3>Diagnostics</h3>{self.diagnostics().html()}<p class=note>{escape(DIAGNOSTICS_NOTES)}</p>")
        parts.append(f"<h3>Contact sheets</h3>{''.join(sheets)}")
        return "".join(parts)

    def markdown(self) -> str:
        """The section's tables."""
        summaries = summarise(self.rows)
        tables = {TITLES[measure]: measures_table(summaries, measure) for measure in self.measures()}
        tables["Diagnostics"] = self.diagnostics()
        return f"## {self.title}\n\n" + "\n".join(f"### {name}\n\n{its.markdown()}" for name, its in tables.items())


class _InteractiveSection(_Section):
    """All rows of the protocol `interactive`, of all numbers of painted slices."""

    def sheets(self, cases: set[str]) -> Iterator[_Sheet]:
        last = max(row.shots for row in self.rows)
        return _Section(self.folder, self.title, [row for row in self.rows if row.shots == last]).sheets(cases)

    def html(self, sheets: Sequence[str]) -> str:
        found = curves(self.rows, predictions_in(self.folder))
        path = curve_plot(found, self.folder / "pictures" / f"{_file_name(self.title)}.png")
        picture = _image_tag(path.read_bytes(), "image/png", "Dice against painted slices")
        return (
            f"<h2>{escape(self.title)}</h2><p>{escape(INTERACTIVE_NOTES)}</p>{picture}{curves_table(found).html()}"
            f"<h3>Contact sheets, after the last slice</h3>{''.join(sheets)}"
        )

    def markdown(self) -> str:
        return f"## {self.title}\n\n{curves_table(curves(self.rows, predictions_in(self.folder))).markdown()}"


@dataclass(frozen=True)
class _Sheet:
    """A task that is shown, and why."""

    folder: Path
    rank: str
    row: Row

    @property
    def title(self) -> str:
        row = self.row
        method = f"{row.method}, {row.painting}" if row.painting else row.method
        return f"{self.rank} of {row.group}, {method}: {row.case}, {row.target}, Dice {row.scores['dice']:.3f}"

    def draw(self, manifest: Manifest) -> Path:
        """The contact sheet, a PNG among the pictures."""
        row = self.row
        labelled = load_case(next(case for case in manifest.cases if case.id == row.case))
        found, reference = (
            Volume(mask.astype(np.uint8), labelled.scan.geometry, None, {1: row.target})
            for mask in (read_mask(prediction_path(self.folder, row.key)), labelled.mask(row.target))
        )
        name = _file_name(row.setting.title, row.group, row.method, self.rank)
        path = self.folder / "pictures" / f"{name}.png"
        return contact_sheet(
            labelled.scan, found, path, reference, row.axis, row.planes, self.title, count=SLICES_SHOWN
        )


def _sections(folder: Path, rows: Sequence[Row]) -> list[_Section]:
    settings: dict[Setting, list[Row]] = {}
    interactive = [row for row in rows if row.protocol == PROTOCOL]
    for row in rows:
        if row.protocol != PROTOCOL:
            settings.setdefault(row.setting, []).append(row)
    sections = [_Section(folder, setting.title, its) for setting, its in settings.items()]
    return [*sections, _InteractiveSection(folder, PROTOCOL, interactive)] if interactive else sections


def _page(command: str, manifest: Manifest, groups: set[str], sections: Sequence[str]) -> str:
    """The whole page."""
    made = f"{datetime.now():%Y-%m-%d %H:%M}, sdfsmis {__version__}, Python {platform.python_version()}, "
    sources = [group for group in manifest.groups.values() if group.name in groups]
    data = Table(
        ["group", "modality", "source", "licence"], [[g.name, g.modality, g.source, g.licence] for g in sources], 4
    )
    ran = f"<p>Made by <code>{escape(command)}</code></p>" if command else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Evaluation, SDFSMIS</title>'
        '<meta name="viewport" content="width=device-width">'
        f"<style>{STYLE}</style></head><body><h1>Evaluation</h1>{ran}"
        f"<p class=note>{escape(made + platform.platform())}. Not a medical device.</p>{''.join(sections)}"
        f"<h2>Data</h2>{data.html()}</body></html>\n"
    )


def _sheet_html(sheet: _Sheet, path: Path) -> str:
    """A contact sheet that opens at a click, as JPEG: a page holds many."""
    from PIL import Image

    with Image.open(path) as image, io.BytesIO() as jpeg:
        image.convert("RGB").save(jpeg, "JPEG", quality=SHEET_QUALITY)
        picture = _image_tag(jpeg.getvalue(), "image/jpeg", sheet.title)
    return f"<details><summary>{escape(sheet.title)}</summary>{picture}</details>"


def _image_tag(content: bytes, kind: str, title: str) -> str:
    data = base64.b64encode(content).decode("ascii")
    return f'<img alt="{escape(title)}" src="data:{kind};base64,{data}">'


def _file_name(*what: object) -> str:
    """A name for any system; the digits at its end keep apart what differs in other characters only."""
    text = " ".join(map(str, what))
    return f"{re.sub('[^A-Za-z0-9.]+', '-', text)}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
