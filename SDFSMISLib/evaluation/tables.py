"""Tables of a summary, a row for each target and the methods beside each other; and of diagnostics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from SDFSMISLib.errors import InputError
from SDFSMISLib.evaluation.diagnostics import Bin, Diagnostics
from SDFSMISLib.evaluation.metrics import METRICS
from SDFSMISLib.evaluation.results import MEASURES, Mean, Summary

if TYPE_CHECKING:
    from rich.table import Table as RichTable

__all__ = ["TITLES", "Table", "diagnostics_table", "formatted", "markdown_table", "measures_table", "rich_table"]

FIRST = next(iter(METRICS))
TITLES: Mapping[str, str] = {
    "dice": "Dice",
    "dice_whole": "Dice over the whole volume, painted slices as painted",
    "nsd": "Normalized surface Dice at 2 mm",
    "hd95": "95 % Hausdorff distance, mm",
    "seconds": "Seconds per volume",
}
DIGITS = {"hd95": 1, "seconds": 2}  # behind the point; 3 of all others


@dataclass(frozen=True)
class Table:
    """Texts in rows and columns. The first ``names`` columns are words, the others figures; ``strong`` rows are means
    of means."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int
    strong: frozenset[int] = frozenset()

    def markdown(self) -> str:
        """As Markdown, ending in a line break."""
        lines = [self.header, ["---" if place < self.names else "---:" for place in range(len(self.header))]]
        for place, row in enumerate(self.rows):
            lines.append([f"**{cell}**" if place in self.strong and cell else cell for cell in row])
        return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)

    def rich(self, title: str | None = None) -> RichTable:
        """For a terminal."""
        from rich.markup import escape as escape_markup
        from rich.table import Table as RichTable

        rich = RichTable(title=title)
        for place, name in enumerate(self.header):
            rich.add_column(escape_markup(name), justify="left" if place < self.names else "right")
        for place, row in enumerate(self.rows):
            strong = place in self.strong
            rich.add_row(*map(escape_markup, row), style="bold" if strong else None, end_section=strong)
        return rich

    def html(self) -> str:
        """As a `table` element."""

        def line(cells: Sequence[str], tag: str) -> str:
            kinds = ["" if place < self.names else ' class="figure"' for place in range(len(cells))]
            return "".join(f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))

        rows = [
            f"<tr{' class=strong' if place in self.strong else ''}>{line(row, 'td')}</tr>"
            for place, row in enumerate(self.rows)
        ]
        return f"<table><thead><tr>{line(self.header, 'th')}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def measures_table(summaries: Sequence[Summary], measure: str = FIRST) -> Table:
    """One measure: each group's targets and their mean, at last the overall mean; ``(n)`` behind a mean says that n
    tasks were left out of it, where the measure is not defined.

    Raises :class:`InputError` for an unknown measure.
    """
    if measure not in MEASURES:
        raise InputError(f"There is no measure {measure!r}; there are {', '.join(MEASURES)}.")
    settings = {summary.setting for summary in summaries}
    header = ["group", "target", "tasks"]
    for summary in summaries:
        header.append(summary.method + (f" ({summary.setting.title})" if len(settings) > 1 else ""))
    rows: list[list[str]] = []
    strong: set[int] = set()
    groups = list(dict.fromkeys(group for summary in summaries for group in summary.groups))
    for group in groups:
        names = dict.fromkeys(target for summary in summaries for target in summary.targets if target[0] == group)
        for name in names:
            rows.append(_line(group, name[1], [summary.targets.get(name) for summary in summaries], measure))
        strong.add(len(rows))
        rows.append(_line(group, "mean", [summary.groups.get(group) for summary in summaries], measure))
    if len(groups) > 1:
        strong.add(len(rows))
        rows.append(_line("all", "mean of groups", [summary.overall for summary in summaries], measure))
    return Table(header, rows, 2, frozenset(strong))


def markdown_table(summaries: Sequence[Summary], measure: str = FIRST) -> str:
    """One measure as Markdown (see :func:`measures_table`)."""
    return measures_table(summaries, measure).markdown()


def rich_table(summaries: Sequence[Summary], measure: str = FIRST, title: str | None = None) -> RichTable:
    """One measure for a terminal (see :func:`measures_table`)."""
    return measures_table(summaries, measure).rich(title)


def diagnostics_table(diagnostics: Mapping[str, Diagnostics]) -> Table:
    """The diagnostics of methods, by their names, beside each other; in brackets, over how many tasks or slices."""
    methods = list(diagnostics.values())
    rows = [
        ["pairing gap (Dice)", *(_with_count(its.pairing_gap, its.pairing_tasks) for its in methods)],
        ["margin over copy (Dice)", *(_with_count(its.margin, its.margin_tasks) for its in methods)],
        [
            "share of slices without the target on which something was found",
            *(formatted(its.false_slices) for its in methods),
        ],
        ["voxels found on them, per task", *(formatted(its.false_voxels, 0) for its in methods)],
    ]
    for name, unit, what in (
        ("by_size", "ml", "Dice, targets of"),
        ("by_distance", "mm", "Dice, slices of the target at a distance of"),
    ):
        held: list[dict[tuple[float, float], Bin]] = [
            {(its.low, its.high): its for its in getattr(method, name)} for method in methods
        ]
        for place in sorted({place for bins in held for place in bins}):
            cells = [_with_count(bins[place].dice, bins[place].count) if place in bins else "–" for bins in held]
            rows.append([f"{what} {_interval(*place)} {unit}", *cells])
    return Table(["", *diagnostics], rows, 1)


def _line(group: str, target: str, means: Sequence[Mean | None], measure: str) -> list[str]:
    counts = dict.fromkeys(str(mean.tasks) for mean in means if mean)  # more than one where a run is not complete
    cells = []
    for mean in means:
        left_out = mean.undefined.get(measure, 0) if mean else 0
        cell = formatted(mean.values[measure] if mean else math.nan, DIGITS.get(measure, 3))
        cells.append(f"{cell} ({left_out})" if left_out else cell)
    return [group, target, "/".join(counts), *cells]


def formatted(value: float, digits: int = 3) -> str:
    """A figure with so many digits behind the point; a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _with_count(value: float, count: int) -> str:
    return f"{formatted(value)} ({count})" if count else "–"


def _interval(low: float, high: float) -> str:
    return f"{low:g} or more" if math.isinf(high) else f"{low:g} to {high:g}"
