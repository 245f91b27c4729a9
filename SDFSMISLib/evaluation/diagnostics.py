"""Diagnostics: figures that show a method that scores well without having looked at what was painted.

Means are over tasks unless noted otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from SDFSMISLib.evaluation.protocols import Setting
from SDFSMISLib.evaluation.results import Prediction, Row, mean, summarise

__all__ = ["Bin", "Diagnostics", "diagnose"]

SIZES = (0, 1, 3, 10, 30, 100, 300, 1000, math.inf)  # ml
DISTANCES = (0, 5, 10, 20, 40, 80, math.inf)  # mm

Run = tuple[Setting, str]
"""(setting, method)."""


@dataclass(frozen=True)
class Bin:
    """Mean Dice of ``count`` tasks or slices whose size or distance is in [low, high)."""

    low: float
    high: float
    count: int
    dice: float


@dataclass(frozen=True)
class Diagnostics:
    """Figures of one method in one setting beside its means; NaN if not measured.

    ``pairing_gap`` is Dice minus the Dice, against the same target, if the support shows another structure of the
    same scan: 0 for a method that does not look at what was painted. ``margin`` is Dice minus that of `copy`. Both are
    differences of overall means, over the ``pairing_tasks`` and ``margin_tasks`` that both did.

    ``false_slices`` is the share of judged slices without the target on which something was found, ``false_voxels``
    the voxels found there, per task. ``by_size`` bins tasks by the target's volume in ml, ``by_distance`` the slices
    that hold the target by their distance from the nearest painted slice in mm.
    """

    pairing_gap: float
    pairing_tasks: int
    margin: float
    margin_tasks: int
    false_slices: float
    false_voxels: float
    by_size: tuple[Bin, ...]
    by_distance: tuple[Bin, ...]

    def plain(self) -> dict[str, Any]:
        """For JSON: what was not measured, and an open end, is null."""

        def known(value: float) -> float | None:
            return round(value, 6) if math.isfinite(value) else None

        figures = {name: known(value) for name, value in vars(self).items() if isinstance(value, (int, float))}
        bins = {
            name: [{key: known(value) for key, value in vars(held).items()} for held in getattr(self, name)]
            for name in ("by_size", "by_distance")
        }
        return figures | bins


def diagnose(rows: Sequence[Row], prediction: Callable[[Row], Prediction]) -> dict[Run, Diagnostics]:
    """The diagnostics of each setting and method; ``prediction`` gives a row's prediction."""
    runs: dict[Run, list[Row]] = {}
    shown_another: dict[Run, list[Row]] = {}
    for row in rows:
        (shown_another if row.mispaired else runs).setdefault((row.setting, row.method), []).append(row)
    return {
        run: _diagnostics(
            members, shown_another.get(run, []), runs.get((run[0], "copy"), []), [prediction(row) for row in members]
        )
        for run, members in runs.items()
    }


def _diagnostics(
    rows: Sequence[Row], mispaired: Sequence[Row], copied: Sequence[Row], predictions: Sequence[Prediction]
) -> Diagnostics:
    gap, gap_tasks = _difference(rows, mispaired)
    margin, margin_tasks = _difference(rows, copied)
    without = [prediction.held == 0 for prediction in predictions]
    found = [prediction.found[empty] for prediction, empty in zip(predictions, without, strict=True)]
    holding = [(prediction.distances[prediction.held > 0], prediction) for prediction in predictions]
    return Diagnostics(
        pairing_gap=gap,
        pairing_tasks=gap_tasks,
        margin=margin,
        margin_tasks=margin_tasks,
        false_slices=mean(float(np.mean(pixels > 0)) if len(pixels) else math.nan for pixels in found),
        false_voxels=mean(float(pixels.sum()) if len(pixels) else math.nan for pixels in found),
        by_size=_bins(SIZES, [row.ml for row in rows], [row.scores["dice"] for row in rows]),
        by_distance=_bins(
            DISTANCES,
            [distance for distances, _ in holding for distance in distances.tolist()],
            [value for _, prediction in holding for value in prediction.dice[prediction.held > 0].tolist()],
        ),
    )


def _difference(rows: Sequence[Row], others: Sequence[Row]) -> tuple[float, int]:
    """(overall mean Dice of ``rows`` minus that of ``others``, tasks), over the tasks that are in both."""
    tasks = {(row.case, row.target) for row in rows} & {(row.case, row.target) for row in others}
    if not tasks:
        return math.nan, 0
    return _overall(rows, tasks) - _overall(others, tasks), len(tasks)


def _overall(rows: Iterable[Row], tasks: set[tuple[str, str]]) -> float:
    counted = [replace(row, shown=row.target) for row in rows if (row.case, row.target) in tasks]  # mispaired ones too
    return summarise(counted)[0].overall.values["dice"]


def _bins(edges: Sequence[float], places: Sequence[float], values: Sequence[float]) -> tuple[Bin, ...]:
    """The bins between ``edges`` that hold something."""
    pairs = list(zip(places, values, strict=True))
    inside = [[value for place, value in pairs if low <= place < high] for low, high in pairwise(edges)]
    return tuple(
        Bin(low, high, len(held), mean(held)) for (low, high), held in zip(pairwise(edges), inside, strict=True) if held
    )
