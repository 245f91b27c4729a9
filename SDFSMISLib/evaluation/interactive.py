"""The protocol ``interactive``: a simulated user paints slice after slice, and looks at the result after each.

The first slice is the one of largest area along the slice axis. Which one is painted next is a way of *painting*:

- ``suggested``: the slice, of any axis, that the product suggests.
- ``worst``: the slice, of any axis, with most wrong voxels. No user knows it; it shows what suggestions could reach.
- ``even``: evenly spaced slices of the slice axis, all of them anew for each number of slices.

A painted slice is the reference's, as a whole. Results are rows of protocol ``interactive``, one for each number of
painted slices. A user who has nothing left to paint stops, and the last result counts on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from os import PathLike
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

from SDFSMISLib.cohort.cases import Case, LabelledScan, Manifest, load_case
from SDFSMISLib.errors import InputError
from SDFSMISLib.evaluation.baselines import Method, SegmenterMethod, check_directions, run_method
from SDFSMISLib.evaluation.evaluate import CASES_IN_MEMORY, Progress, keep, scored, write_means
from SDFSMISLib.evaluation.protocols import Setting, Task, painted_slices, painted_task, same_volume
from SDFSMISLib.evaluation.results import Prediction, ResultsFile, Row, row_key, summarise
from SDFSMISLib.evaluation.tables import Table, formatted
from SDFSMISLib.images.files import atomic_output
from SDFSMISLib.images.planes import Plane
from SDFSMISLib.images.suggestion import ExpectedErrors, suggest_plane

__all__ = ["PAINTINGS", "PROTOCOL", "Curve", "curve_plot", "curves", "curves_table", "evaluate_interactive"]

PROTOCOL = "interactive"
ROUNDS = 6
PAINTINGS: Mapping[str, str] = {
    "suggested": "the slice and view that the product suggests",
    "worst": "the slice of any view with most wrong voxels, which no user knows",
    "even": "evenly spaced slices of one view",
}
"""Who chooses the slices -> how."""
ENOUGH = 0.9  # Dice that a user is content with
LOSS = 0.005  # of Dice, above which a slice made the result worse


class _Result(NamedTuple):
    """What a method found with some painted slices."""

    task: Task
    mask: np.ndarray
    probability: np.ndarray | None  # uint8 (slices, height, width), 255 meaning 1; None if the method has none
    certainty: np.ndarray | None  # of the slices along the task's axis
    seconds: float


def evaluate_interactive(
    manifest: Manifest,
    methods: Mapping[str, Method],
    cases: Sequence[Case] | None = None,
    rounds: int = ROUNDS,
    paintings: Sequence[str] = tuple(PAINTINGS),
    output: str | PathLike[str] | None = None,
    progress: Progress | None = None,
) -> list[Row]:
    """Has a simulated user paint up to ``rounds`` slices of each target, with each method and way of painting.

    ``suggested`` needs probabilities, and so is done with a :class:`.baselines.SegmenterMethod` only. All other
    arguments, and what is kept, as in :func:`.evaluate.evaluate`. Raises :class:`InputError` for an unknown way of
    painting, fewer rounds than 1, methods that know one direction only (but for ``even``), and bad files.
    """
    unknown = [name for name in paintings if name not in PAINTINGS]
    if unknown:
        raise InputError(f"There is no way of painting {unknown[0]!r}; there are {', '.join(PAINTINGS)}.")
    if rounds < 1:
        raise InputError(f"{rounds} rounds were asked for; at least 1 is needed.")
    if set(paintings) != {"even"}:
        check_directions(methods)
    load = lru_cache(maxsize=CASES_IN_MEMORY)(load_case)
    kept = ResultsFile(Path(output) / "results.csv") if output is not None else None
    chosen = manifest.cases if cases is None else tuple(cases)
    structures = [
        (one, target, name, method) for one in chosen for target in one.targets for name, method in methods.items()
    ]
    rows: list[Row] = []
    count = len(structures) * len(paintings)
    for place, structure in enumerate(structures):
        session = _Session(*structure, load)  # it holds a result, so one lives at a time
        for number, painting in enumerate(paintings):
            if progress:
                done = place * len(paintings) + number
                progress(done, count, f"{session.case.id}, {session.target}, {session.name}, {painting}")
            if painting != "suggested" or isinstance(session.method, SegmenterMethod):
                rows += session.rows(painting, rounds, kept)
    if progress:
        progress(count, count, "")
    if kept:
        write_means(kept)
    return rows


class _Session:
    """A simulated user with one structure of one scan and one method."""

    def __init__(
        self, case: Case, target: str, name: str, method: Method, load: Callable[[Case], LabelledScan]
    ) -> None:
        self.case, self.target, self.name, self.method = case, target, name, method
        self._load = load

    def rows(self, painting: str, rounds: int, kept: ResultsFile | None) -> list[Row]:
        """A row for each round; empty if the method does not apply. Rows of an earlier run are taken as they are."""
        known = {row.key: row for row in kept.rows} if kept else {}
        rows: list[Row] = []
        result: _Result | None = None
        for shots in range(1, rounds + 1):
            setting = Setting(PROTOCOL, shots, painting=painting)
            row = known.get(row_key(setting, self.case.id, self.target, self.name))
            if row is None:
                if rows:
                    result = result or self._result(rows[-1].planes)
                    following = self._after(result, painting, shots) if result else None
                else:
                    following = self._first
                result = following or result
                if result is None:
                    return []
                row = scored(result.task, result.mask, setting, self.name, result.seconds, ("dice",))
                if following is None:  # nothing was left to paint
                    row = replace(row, seconds=0.0)
                if kept:
                    keep(kept, row, Prediction.of(result.task, result.mask, result.certainty), result.mask)
            rows.append(row)
        return rows

    @cached_property
    def _first(self) -> _Result | None:
        """The result with one painted slice, the same for all ways of painting."""
        task = same_volume(self.case, self.target, (), self._load, 1)
        return None if task is None else self._result(task.planes)

    def _after(self, result: _Result, painting: str, shots: int) -> _Result | None:
        """The result of the next round, with so many painted slices; None if nothing is left to paint."""
        task, labelled = result.task, self._load(self.case)
        if painting == "even":
            slices = painted_slices(task.reference, labelled.axis, shots)
            return self._result([Plane(labelled.axis, index) for index in slices]) if len(slices) == shots else None
        plane = _worst_plane(task, result.mask) if painting == "worst" else _suggested_plane(result)
        return None if plane is None else self._result((*task.planes, plane))

    def _result(self, planes: Sequence[Plane]) -> _Result | None:
        """What the method finds with these painted slices; None if it does not apply, or they leave nothing to judge.

        Slices are judged along the axis along which the product shows results.
        """
        labelled = self._load(self.case)
        task = painted_task(labelled, self.target, self.target, planes)
        if task is not None:
            axis = task.support.axes_on(task.query, task.support.slices[0].plane.scan)[0]
            task = painted_task(labelled, self.target, self.target, planes, axis)
        if task is None:
            return None
        began = time.perf_counter()
        if isinstance(self.method, SegmenterMethod):
            found = self.method.segmentation(task)
            seconds = time.perf_counter() - began
            mask = found.labelmap.voxels == task.label
            return _Result(task, mask, found.probabilities[task.label], found.certainty[task.label], seconds)
        plain = run_method(self.method, task)
        return None if plain is None else _Result(task, plain, None, None, time.perf_counter() - began)


def _suggested_plane(result: _Result) -> Plane | None:
    """The slice that the product suggests; None if it finds nothing doubtful."""
    assert result.probability is not None
    x, y, z = result.task.query.geometry.spacing
    errors = ExpectedErrors.of(result.probability, result.task.planes, (z, y, x))
    return suggest_plane([errors], result.task.planes, (z, y, x))


def _worst_plane(task: Task, mask: np.ndarray) -> Plane | None:
    """The slice of any axis with most wrong voxels, of the lowest axis and index in a tie; None if none is wrong."""
    wrong = task.as_painted(mask) != task.reference
    worst = 0, Plane(0, 0)
    for axis in range(wrong.ndim):
        counts = np.count_nonzero(wrong, axis=tuple(other for other in range(wrong.ndim) if other != axis))
        index = int(counts.argmax())
        if counts[index] > worst[0]:
            worst = int(counts[index]), Plane(axis, index)
    return worst[1] if worst[0] else None


@dataclass(frozen=True)
class Curve:
    """What a user of one method reaches by one way of painting, in one group.

    Attributes:
        method, painting: see :func:`evaluate_interactive`.
        group: "" for all groups together, if there are several.
        tasks: their number; those that lack a round are left out.
        dice: Dice over the whole volume after 1, 2, ... painted slices; means as in :func:`.results.summarise`.
        needed: slices that half of the tasks need for a Dice of `ENOUGH`; infinite if they need more than were painted.
        reached: share of the tasks that reach it.
        costly: share of all slices, but for each task's first, after which Dice was lower by more than `LOSS`.
        certainty: rank correlation (Spearman's) of the certainty of slices and their Dice, over all slices that are not
            painted and hold or were given something, of all rounds; NaN if the method tells no certainty.
    """

    method: str
    painting: str
    group: str
    tasks: int
    dice: tuple[float, ...]
    needed: float
    reached: float
    costly: float
    certainty: float


def curves(rows: Iterable[Row], prediction: Callable[[Row], Prediction] | None = None) -> list[Curve]:
    """The curves of all rows of the protocol, of each method, way of painting and group, at last all groups together if
    there are several.

    ``prediction`` gives a row's prediction; None leaves the certainty out.

    >>> def row(shots, dice):
    ...     scores, planes = {"dice": dice, "dice_whole": dice}, (Plane(0, 3),)
    ...     about = {"support_case": "ct/1", "shown": "liver", "ml": 20.0, "painting": "worst"}
    ...     return Row("interactive", shots, "ct", "ct/1", "liver", "m", scores, 0.1, 0, planes, **about)
    >>> (curve,) = curves([row(1, 0.8), row(2, 0.91), row(3, 0.9)])
    >>> curve.dice, curve.needed, curve.costly
    ((0.8, 0.91, 0.9), 2, 0.5)
    """
    runs: dict[tuple[str, str], dict[tuple[str, str], dict[int, Row]]] = {}
    for row in rows:
        if row.protocol == PROTOCOL:
            tasks = runs.setdefault((row.method, row.painting), {})
            tasks.setdefault((row.case, row.target), {})[row.shots] = row
    result = []
    for (method, painting), tasks in runs.items():
        rounds = max(max(its) for its in tasks.values())
        complete = [[its[shots] for shots in sorted(its)] for its in tasks.values() if len(its) == rounds]
        groups = list(dict.fromkeys(its[0].group for its in complete))
        for group in (*groups, "") if len(groups) > 1 else groups:
            members = [its for its in complete if group in ("", its[0].group)]
            result.append(_curve(method, painting, group, members, prediction))
    return result


def _curve(
    method: str,
    painting: str,
    group: str,
    tasks: Sequence[Sequence[Row]],
    prediction: Callable[[Row], Prediction] | None,
) -> Curve:
    values = [[row.scores["dice_whole"] for row in rows] for rows in tasks]
    needed = [next((place + 1 for place, value in enumerate(its) if value >= ENOUGH), math.inf) for its in values]
    strokes = [after - before < -LOSS for its in values for before, after in pairwise(its)]
    return Curve(
        method=method,
        painting=painting,
        group=group,
        tasks=len(tasks),
        dice=tuple(summarise(rows)[0].overall.values["dice_whole"] for rows in zip(*tasks, strict=True)),
        needed=median(needed),
        reached=sum(map(math.isfinite, needed)) / len(needed),
        costly=sum(strokes) / len(strokes) if strokes else math.nan,
        certainty=_rank_correlation([prediction(row) for rows in tasks for row in rows] if prediction else []),
    )


def _rank_correlation(predictions: Sequence[Prediction]) -> float:
    """Spearman's correlation of certainty and Dice over all slices of some predictions; NaN for fewer than 3."""
    from scipy.stats import spearmanr

    pairs = [
        (its.certainty[defined], its.dice[defined])
        for its in predictions
        if its.certainty.size and (defined := ~np.isnan(its.certainty) & ~np.isnan(its.dice)).any()
    ]
    if sum(len(certainty) for certainty, _ in pairs) < 3:
        return math.nan
    return float(spearmanr(*map(np.concatenate, zip(*pairs, strict=True))).statistic)


def curves_table(found: Sequence[Curve]) -> Table:
    """A row for each curve: Dice after each number of slices, and what it took."""
    rounds = max((len(curve.dice) for curve in found), default=0)
    methods = list(dict.fromkeys(curve.method for curve in found))
    ends = {(curve.method, curve.group, curve.painting): curve for curve in found}
    header = [
        *(["method"] if len(methods) > 1 else []),
        *("group", "painted slices", "tasks", *map(str, range(1, rounds + 1))),
        *("of the gain of worst", f"slices for {ENOUGH:.2f}", "tasks that reach it"),
        *(f"slices that cost over {LOSS}", "certainty against Dice"),
    ]
    rows: list[list[str]] = []
    strong: set[int] = set()
    for method in methods:
        for group in _groups(curve for curve in found if curve.method == method):
            for painting in (name for name in PAINTINGS if (method, group, name) in ends):
                curve = ends[method, group, painting]
                if not group:
                    strong.add(len(rows))
                values = [formatted(value) for value in curve.dice]
                rows.append(
                    [
                        *([method] if len(methods) > 1 else []),
                        *(group or "mean of groups", painting, str(curve.tasks)),
                        *values + ["–"] * (rounds - len(values)),
                        _share(_gain(curve, ends.get((method, group, "worst")))),
                        f"{curve.needed:g}" if math.isfinite(curve.needed) else f"> {len(curve.dice)}",
                        *(_share(curve.reached), _share(curve.costly), formatted(curve.certainty, 2)),
                    ]
                )
    return Table(header, rows, 3 if len(methods) > 1 else 2, frozenset(strong))


def _groups(found: Iterable[Curve]) -> list[str]:
    """The groups in their order, all of them together at last."""
    return sorted(dict.fromkeys(curve.group for curve in found), key=lambda name: name == "")


def _gain(curve: Curve, worst: Curve | None) -> float:
    """What a curve gains from its first slice to its last, as a share of what painting the worst slices gains."""
    if worst is None or (worst.tasks, len(worst.dice)) != (curve.tasks, len(curve.dice)):
        return math.nan  # of a run that is not complete
    if worst.dice[-1] <= worst.dice[0]:
        return math.nan
    return (curve.dice[-1] - worst.dice[0]) / (worst.dice[-1] - worst.dice[0])


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.0f} %"


COLOURS = {"suggested": "#1f77b4", "worst": "#d62728", "even": "#7f7f7f"}
LINES = ("-", "--", ":", "-.")  # of the first, second ... method
SIDE, COLUMNS, DOTS_PER_INCH = 3.0, 4, 110  # inches of a group's axes


def curve_plot(found: Sequence[Curve], path: Path) -> Path:
    """Draws Dice over painted slices, for each group and for all, in colours for ways of painting.

    A PNG, whole or not at all; returns its path.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = _groups(found)
    methods = list(dict.fromkeys(curve.method for curve in found))
    columns = min(len(groups), COLUMNS)
    rows = -(-len(groups) // columns)
    figure = Figure(figsize=(max(columns * SIDE, 2 * SIDE), rows * SIDE + 0.4), dpi=DOTS_PER_INCH, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    handles = {}
    for axes, group in zip(grid, groups, strict=False):
        for curve in (one for one in found if one.group == group):
            label = curve.painting if len(methods) == 1 else f"{curve.painting}, {curve.method}"
            (handles[label],) = axes.plot(
                range(1, len(curve.dice) + 1),
                curve.dice,
                LINES[methods.index(curve.method) % len(LINES)],
                color=COLOURS[curve.painting],
                marker=".",
            )
        axes.axhline(ENOUGH, color="black", linewidth=0.6, alpha=0.5)
        axes.set_title(group or "mean of groups", fontsize=10, parse_math=False)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("painted slices", fontsize=8)
        axes.grid(alpha=0.3)
    for axes in grid[len(groups) :]:
        axes.set_visible(False)
    figure.supylabel("Dice over the whole volume", fontsize=9)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    with atomic_output(path, path.suffix) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))
    return path
