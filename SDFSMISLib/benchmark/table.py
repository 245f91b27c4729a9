"""The papers' tables: a row for each method, a column for each organ; our results beside published ones.

Published figures are mean Dice in %, one way, one shot, as their authors give them: on different trainings, often
copied from paper to paper, and seldom with the list of tested scans. Each row names its source.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from SDFSMISLib.benchmark.data_sets import DATA_SETS, FOLDS
from SDFSMISLib.benchmark.scores import KINDS, FoldResult, Kind, organ_means
from SDFSMISLib.errors import InputError
from SDFSMISLib.evaluation.tables import Table, formatted

FOB = "README of FoB (CVPR 2026)"
THIRD_PARTY = "notes of third parties on SD-FSMIS (arXiv 2604.03134), not the paper itself"
RE_SAM2 = "README of RE-SAM2"
PSP = "README of PSP (arXiv 2606.28799)"
CROSS = "FAMNet (AAAI 2025), table 1, or the READMEs of PSP and FoB"
FAMNET = "FAMNet (AAAI 2025), table 1"


@dataclass(frozen=True)
class Published:
    """One method on one data set. ``trained_on`` is the same data set where nothing else is said; ``organs`` the Dice
    of each where it is known; ``remark`` what sets the row apart."""

    method: str
    data: str
    setting: int
    mean: float
    source: str
    trained_on: str = ""
    organs: Mapping[str, float] = field(default_factory=dict)
    remark: str = ""


def _both_settings(
    method: str, mri: tuple[float, ...], ct: tuple[float, ...], source: str = FOB, remark: str = ""
) -> tuple[Published, ...]:
    """Rows of Abd-MRI and Abd-CT: Settings I and, if given, II."""
    return tuple(
        Published(method, data, setting, value, source, remark=remark)
        for data, values in (("chaos_t2", mri), ("sabs", ct))
        for setting, value in enumerate(values, 1)
    )


def _abdomen(values: tuple[float, ...]) -> dict[str, float]:
    """Liver, right kidney, left kidney, spleen."""
    return dict(zip(("liver", "right kidney", "left kidney", "spleen"), values, strict=True))


def _fob(data: str, setting: int, mean: float, *organs: float) -> Published:
    return Published("FoB + SAM ViT-H (CVPR 2026)", data, setting, mean, FOB, organs=_abdomen(organs))


def _cross(
    method: str,
    to_mri: tuple[float, ...],
    to_ct: tuple[float, ...],
    source: str = CROSS,
) -> tuple[Published, ...]:
    """Mean, then liver, left kidney, right kidney, spleen where they are known: CT to MRI, MRI to CT."""
    rows = []
    for trained_on, data, (mean, *organs) in (("sabs", "chaos_t2", to_mri), ("chaos_t2", "sabs", to_ct)):
        in_order = tuple(organs[place] for place in (0, 2, 1, 3)) if organs else ()
        by_name = _abdomen(in_order) if organs else {}
        rows.append(Published(method, data, 1, mean, source, trained_on, by_name))
    return tuple(rows)


FINE_TUNED = "fine-tunes on the support scan's labels, fold by fold"

PUBLISHED: tuple[Published, ...] = (
    *_both_settings("SSL-ALPNet (ECCV 2020)", (78.84, 73.02), (73.35, 63.02)),
    *_both_settings("RPT (MICCAI 2023)", (82.44, 79.04), (77.83, 71.69)),
    *_both_settings("GMRD (TMI 2024)", (82.90, 79.70), (78.52, 77.32)),
    *_both_settings("PGRNet (TMI 2024)", (83.47,), (77.17,)),
    *_both_settings("DIFD (TMI 2025)", (84.12,), (80.19,), THIRD_PARTY),
    *_both_settings("ProtoSAM", (81.56, 77.83), (75.50, 73.45)),
    *_both_settings("AM-SAM", (81.40, 75.56), (86.19, 84.04), remark="fine-tunes SAM"),
    Published(
        "DiffewS (NeurIPS 2024)",
        "sabs",
        1,
        78.78,
        THIRD_PARTY,
        remark="derived: SD-FSMIS minus the gain that is told of it",
    ),
    *_both_settings("SD-FSMIS (CVPR 2026)", (83.16,), (83.66,), THIRD_PARTY),
    *_both_settings("FoB + S-2D (CVPR 2026)", (82.49, 78.29), (80.70, 77.48)),
    _fob("chaos_t2", 1, 84.46, 85.61, 88.18, 84.76, 79.31),
    _fob("chaos_t2", 2, 80.46, 82.43, 87.91, 78.21, 73.30),
    _fob("sabs", 1, 86.21, 86.51, 86.51, 87.29, 84.54),
    _fob("sabs", 2, 84.80, 82.29, 85.91, 88.55, 82.43),
    *_both_settings("RE-SAM2", (85.31,), (86.12,), RE_SAM2, FINE_TUNED),
    *_both_settings("SAM2 without fine-tuning", (68.57,), (68.60,), RE_SAM2),
    Published("SSL-ALPNet (TMI 2022)", "cmr", 1, 77.94, RE_SAM2),
    Published("RPT (MICCAI 2023)", "cmr", 1, 79.19, RE_SAM2),
    Published("GMRD (TMI 2024)", "cmr", 1, 79.11, RE_SAM2),
    Published("ADNet (MedIA 2022)", "cmr", 1, 75.76, RE_SAM2),
    Published("Q-Net", "cmr", 1, 78.15, RE_SAM2),
    Published("CRAPNet", "cmr", 1, 75.59, RE_SAM2),
    Published("RE-SAM2", "cmr", 1, 82.18, RE_SAM2, remark=FINE_TUNED),
    Published("SAM2 without fine-tuning", "cmr", 1, 66.62, RE_SAM2),
    *_cross("PANet", (32.46,), (31.94,), FAMNET),
    *_cross("ADNet (MedIA 2022)", (41.73,), (42.55,), FAMNET),
    *_cross("CAT-Net", (46.21,), (45.60,), FAMNET),
    *_cross("RPT (MICCAI 2023)", (46.91,), (48.28,), FAMNET),
    *_cross("IFA (CVPR 2024)", (49.37,), (40.57,), FAMNET),
    *_cross("Q-Net", (49.44,), (45.77,), FAMNET),
    *_cross("PATNet", (52.97,), (57.29,), FAMNET),
    *_cross("RobustEMD (AIIM 2025)", (62.61, 60.16, 66.34, 70.26, 53.71), (60.95, 69.82, 63.79, 50.34, 59.88)),
    *_cross("SSL-ALPNet (TMI 2022)", (63.01, 70.74, 55.49, 67.43, 58.39), (47.46, 71.38, 34.48, 32.32, 51.67)),
    *_cross("DSM (TIP 2025)", (65.76, 72.94, 61.59, 69.52, 59.00), (62.59, 77.69, 56.60, 56.45, 59.63)),
    *_cross("FAMNet (AAAI 2025)", (65.79, 73.01, 57.28, 74.68, 58.21), (64.75, 73.57, 57.79, 61.89, 65.78), FAMNET),
    *_cross("PSP (2026)", (69.36, 70.24, 69.96, 78.70, 58.56), (68.25, 73.44, 64.48, 69.17, 65.91), PSP),
    *_cross(
        "FoB + SAM ViT-H (CVPR 2026)", (73.30, 75.05, 70.38, 79.57, 68.21), (67.02, 81.36, 57.18, 58.81, 70.71), FOB
    ),
)


def published_for(data: str, setting: int, trained_on: str) -> list[Published]:
    """The rows of one table, by rising mean; across data sets those of Setting I, the only ones there are."""
    own = "" if trained_on in (data, "none") else trained_on
    chosen = [row for row in PUBLISHED if (row.data, row.trained_on, row.setting) == (data, own, setting)]
    return sorted(chosen, key=lambda row: row.mean)


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

    ``runs`` are those of one folder each (see `read_fold_results`). A run has three rows, which count the same tests in
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
    return [name, remark, *(formatted(100 * means.get(column, math.nan), 2) for column in (*organs, "mean"))]


def _published_line(row: Published, organs: Sequence[str]) -> list[str]:
    source = "; ".join(filter(None, [row.source, row.remark]))
    figures = [*(row.organs.get(organ, math.nan) for organ in organs), row.mean]
    return [row.method, source, *(formatted(figure, 2) for figure in figures)]


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
