"""Protocols: which slices of which scan are painted, and on which slices the result is judged.

One task is one target in one case. The slice axis is the array axis whose two in-plane spacings are most alike (ties go
to axis 0). A target of fewer than 50 voxels or on fewer than 3 slices makes no task. Slices without the target are
judged as well: a false positive there costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from SDFSMISLib.evaluation.cases import Case
from SDFSMISLib.support import SupportSet
from SDFSMISLib.volume import Volume, match_labelmap, read_labelmap

__all__ = ["PROTOCOLS", "LabelledScan", "Task", "cross_volume", "load_case", "painted_slices", "same_volume"]

FEWEST_VOXELS, FEWEST_SLICES = 50, 3


@dataclass(frozen=True, eq=False)
class LabelledScan:
    """A case that was read: its scan, and its labelmap on the scan's grid."""

    case: Case
    scan: Volume
    labelmap: Volume

    @property
    def axis(self) -> int:
        """The slice axis."""
        return self.scan.geometry.default_axis()

    def mask(self, target: str) -> np.ndarray:
        """Bool ``(slices, height, width)``: the target; empty where the case does not list it."""
        if target not in self.case.targets:
            return np.zeros(self.labelmap.voxels.shape, dtype=bool)
        return self.labelmap.voxels == self.case.targets[target]

    def support(self, target: str, slices: tuple[int, ...]) -> SupportSet:
        """These slices with the target painted on them."""
        label = self.case.targets[target]
        named = replace(self.labelmap, segment_names={label: target})
        return SupportSet.from_labelmap(self.scan, named, label=label, slices=slices, axis=self.axis)


@dataclass(frozen=True, eq=False)
class Task:
    """What a method is given, and what it is judged by.

    ``label`` is the target's label value in ``support`` and so in a segmenter's labelmap; ``reference`` is a bool mask
    on the grid of ``query``. ``painted`` are the slices of ``query`` along ``axis`` that the support was taken from,
    none where it comes from another scan, ``support_case``; ``judged`` are the slices that count.
    """

    case: Case
    target: str
    query: Volume
    axis: int
    support: SupportSet
    label: int
    reference: np.ndarray
    painted: tuple[int, ...]
    judged: tuple[int, ...]
    support_case: Case


Loader = Callable[[Case], LabelledScan]
Protocol = Callable[[Case, str, tuple[Case, ...], Loader, int], Task | None]
"""(case, target, the other cases of its group beginning behind it, how to read a case, shots) -> the task, or None."""


def load_case(case: Case) -> LabelledScan:
    """Reads a case; raises :class:`InputError` where a file is bad, or the labels lie elsewhere than the scan."""
    scan = Volume.read(case.image)
    labelmap, _ = match_labelmap(read_labelmap(case.labels), scan.geometry)
    return LabelledScan(case, scan, labelmap)


def painted_slices(mask: np.ndarray, axis: int, shots: int) -> tuple[int, ...]:
    """The slices of a target (bool ``(slices, height, width)``) that a user would paint, in rising order.

    One shot: the slice of largest area, the first of equal ones. More: of the C slices that hold the target those
    numbered floor((2 i + 1) C / (2 shots)), so for three at 1/6, 1/2 and 5/6; fewer than ``shots`` where C is smaller.
    """
    if shots < 1:
        raise ValueError(f"{shots} shots were asked for; at least 1 is needed.")
    areas = _areas(mask, axis)
    if shots == 1:
        return (int(np.argmax(areas)),)
    holding = np.flatnonzero(areas)
    chosen = {int(holding[(2 * shot + 1) * len(holding) // (2 * shots)]) for shot in range(shots)}
    return tuple(sorted(chosen))


def same_volume(case: Case, target: str, others: tuple[Case, ...], load: Loader, shots: int) -> Task | None:
    """Painted slices of the scan itself; all its other slices are judged. What a Slicer user does first."""
    labelled = load(case)
    reference = labelled.mask(target)
    if not _large_enough(reference, labelled.axis):
        return None
    painted = painted_slices(reference, labelled.axis, shots)
    judged = tuple(index for index in range(labelled.scan.slice_count(labelled.axis)) if index not in painted)
    support = labelled.support(target, painted)
    label = case.targets[target]
    return Task(case, target, labelled.scan, labelled.axis, support, label, reference, painted, judged, case)


def cross_volume(case: Case, target: str, others: tuple[Case, ...], load: Loader, shots: int) -> Task | None:
    """Painted slices of the next case of the group that has the target; every slice of the case is judged."""
    labelled = load(case)
    reference = labelled.mask(target)
    if not _large_enough(reference, labelled.axis):
        return None
    for other in others:
        if target not in other.targets:
            continue
        supporting = load(other)
        mask = supporting.mask(target)
        if mask.any():
            support = supporting.support(target, painted_slices(mask, supporting.axis, shots))
            judged = tuple(range(labelled.scan.slice_count(labelled.axis)))
            label = other.targets[target]
            return Task(case, target, labelled.scan, labelled.axis, support, label, reference, (), judged, other)
    return None


PROTOCOLS: Mapping[str, Protocol] = {"same-volume": same_volume, "cross-volume": cross_volume}


def _areas(mask: np.ndarray, axis: int) -> np.ndarray:
    """Voxels of the mask in each slice along ``axis``."""
    return np.count_nonzero(mask, axis=tuple(other for other in range(3) if other != axis))


def _large_enough(mask: np.ndarray, axis: int) -> bool:
    areas = _areas(mask, axis)
    return bool(areas.sum() >= FEWEST_VOXELS and np.count_nonzero(areas) >= FEWEST_SLICES)
