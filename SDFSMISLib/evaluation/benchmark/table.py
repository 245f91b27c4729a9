"""The papers' tables: a row for each method, a column for each organ; ours and published ones, with their source."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from SDFSMISLib.errors import InputError
from SDFSMISLib.evaluation.benchmark.data_sets import DATA_SETS, FOLDS
from SDFSMISLib.evaluation.benchmark.published import Published, published_for
from SDFSMISLib.evaluation.benchmark.scores import KINDS, FoldResult, Kind, organ_means
from SDFSMISLib.evaluation.tables import Table

__all__ = ["NOTES", "Format", "ablation_table", "as_text", "benchmark_tables"]

NOTES = (
    "Ours are means over scans, then folds, then organs. Every scan once: all scans of the data set, a fold's support "
    "scan with the next one as its support. The papers' queries: a scan that two folds share counts twice, a support "
    "scan not at all. Pooled: all of a fold's scans as one set of voxels, as the official code counts. Only slices "
    "that hold the organ are tested. Published figures are their authors' own, for one shot."
)

Format = Literal["markdown", "latex", "csv"]
COUNTED: dict[Kind, str] = {
    "own": "every scan once",
    "queries": "the papers' queries",
    "pooled": "the papers' queries, pooled",
}
ROMAN = {1: "I", 2: "II"}
LATEX = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}", "–": "--", "−": "$-$"}
NAMES = 2  # columns of words at the left


@dataclass(frozen=True)
class _Experiment:
    """What can stand in one table: the same data set, setting and training data."""

    data: str
    setting: int
    trained_on: str

    @property
    def title(self) -> str:
        data = DATA_SETS[self.data]
        across = self.trained_on not in (self.data, "none")
        where = f"{DATA_SETS[self.trained_on].title} to {data.title}" if across else data.title
        return f"{where}, Setting {ROMAN[self.setting]}: Dice, %"


def benchmark_tables(runs: Sequence[Sequence[FoldResult]], published: bool = True) -> dict[str, Table]:
    """Tables by their titles, one for each data set, setting and cross-domain training.

    ``runs`` are those of one folder each (see `read_results`). A run has three rows, which count the same tests in
    three ways (see `scores`); its tests are mixed by no shots, weights or protocols.
    """
    grouped: dict[_Experiment, list[list[FoldResult]]] = {}
    for run in runs:
        for its in _by_shots(run):
            about = its[0].about
            trained_on = about["trained_on"] if about["trained_on"] != "none" else about["data"]
            grouped.setdefault(_Experiment(about["data"], about["setting"], trained_on), []).append(its)
    tables = {}
    for experiment, its_runs in grouped.items():
        organs = DATA_SETS[experiment.data].organs
        rows = [
            _line(_name(run[0]), _remark(run, kind), organ_means(run, kind), organs)
            for run in its_runs
            for kind in _kinds(run)
        ]
        strong = frozenset(range(len(rows)))
        if published:
            rows += [_published_line(row, organs) for row in published_for(*_key(experiment))]
        tables[experiment.title] = Table(["method", "tests and source", *organs, "mean"], rows, NAMES, strong)
    return tables


def ablation_table(runs: Sequence[Sequence[FoldResult]]) -> Table:
    """A row for each run: the first is the whole method, the others lack something; the last column is the difference
    of their means, in points. Every scan counts once, with the official protocol each of the papers' queries.

    Raises :class:`InputError` where runs were not made on the same folds.
    """
    lines = []
    folds = [sorted({result.about["fold"] for result in run}) for run in runs]
    if any(its != folds[0] for its in folds):
        raise InputError(f"The runs are of the folds {folds}; an ablation compares runs of the same folds.")
    organs = DATA_SETS[runs[0][0].about["data"]].organs
    kind = _kinds(runs[0])[0]
    whole = organ_means(runs[0], kind)["mean"]
    for run in runs:
        means = organ_means(run, kind)
        without = run[0].about.get("without") or []
        name = f"without {', '.join(without)}" if without else "all of it"
        difference = "" if not without else f"{100 * (means['mean'] - whole):+.2f}"
        lines.append([*_line(_name(run[0]), name, means, organs), difference])
    return Table(["method", "ablation", *organs, "mean", "difference"], lines, NAMES, frozenset({0}))


def as_text(tables: dict[str, Table], kind: Format) -> str:
    """Tables as Markdown, LaTeX (for booktabs) or CSV."""
    if kind == "csv":
        return _csv(tables)
    write = Table.markdown if kind == "markdown" else _latex
    head = "## {}\n\n{}" if kind == "markdown" else "% {}\n{}"
    return "\n".join(head.format(title, write(table)) for title, table in tables.items())


def _kinds(run: Sequence[FoldResult]) -> tuple[Kind, ...]:
    """The ways to count a run's tests: with the official protocol some scans are never tested."""
    return KINDS if run[0].about["protocol"] == "field" else ("queries", "pooled")


def _by_shots(run: Sequence[FoldResult]) -> list[list[FoldResult]]:
    by_shots: dict[int, list[FoldResult]] = {}
    for result in run:
        by_shots.setdefault(result.about["shots"], []).append(result)
    return list(by_shots.values())


def _key(experiment: _Experiment) -> tuple[str, int, str]:
    return experiment.data, experiment.setting, experiment.trained_on


def _name(result: FoldResult) -> str:
    about = result.about
    without = about.get("without") or []
    name = about["model"] + (f" without {', '.join(without)}" if without else "")
    return name if about["shots"] == 1 else f"{name}, {about['shots']} shots"


def _remark(run: Sequence[FoldResult], kind: Kind) -> str:
    """How the tests were counted, and what sets them apart."""
    about = run[0].about
    folds = sorted({result.about["fold"] for result in run})
    parts = [f"ours: {COUNTED[kind]}"]
    if len(folds) < FOLDS:
        parts.append(f"fold {', '.join(map(str, folds))} only")
    if about["trained_on"] == "none":
        parts.append("weights as they are")
    if about["protocol"] != "field":
        parts.append(f"{about['protocol']} protocol")
    if about["exclusion"] == "all":
        parts.append("only slices with all organs left out")
    return "; ".join(parts)


def _line(name: str, remark: str, means: dict[str, float], organs: Sequence[str]) -> list[str]:
    return [name, remark, *(_percent(100 * means.get(column, math.nan)) for column in (*organs, "mean"))]


def _published_line(row: Published, organs: Sequence[str]) -> list[str]:
    source = "; ".join(filter(None, [row.source, row.remark]))
    return [row.method, source, *(_percent(row.organs.get(organ, math.nan)) for organ in organs), _percent(row.mean)]


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


def _latex(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return " & ".join("".join(LATEX.get(letter, letter) for letter in cell) for cell in cells) + r" \\"

    columns = "l" * table.names + "r" * (len(table.header) - table.names)
    return "\n".join(
        [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", line(table.header), r"\midrule"]
        + [line(row) for row in table.rows]
        + [r"\bottomrule", r"\end{tabular}", ""]
    )


def _csv(tables: dict[str, Table]) -> str:
    """One file: the table's title is the first column; an organ that a table lacks is empty."""
    columns = list(dict.fromkeys(name for table in tables.values() for name in table.header))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["table", *columns])
    for title, table in tables.items():
        for row in table.rows:
            cells = dict(zip(table.header, row, strict=True))
            writer.writerow([title, *("" if cells.get(name, "–") == "–" else cells[name] for name in columns)])
    return text.getvalue()
