"""Protocols: which slices of which scan are painted, and on which slices the result is judged.

One task is one target in one case. Slices are taken along the axis whose two in-plane spacings are most alike (axis 0
in a tie); ``same-volume`` can paint one along each other axis too. A target of fewer than 50 voxels or on fewer than 3
slices makes no task. Slices without the target are judged too: false positives there cost. Only ``field``, the
literature's protocol, leaves them out and so tells a method where the structure begins and ends; it serves comparison
with papers.

Each protocol can also make a *mispaired* task: its support shows another structure of the same scan, the next one in
the case's order of targets that the scan holds. A method that finds the target all the same ignores what was painted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from SDFSMISLib.cohort.cases import Case, LabelledScan
from SDFSMISLib.errors import InputError
from SDFSMISLib.images.planes import Plane
from SDFSMISLib.images.volume import Volume
from SDFSMISLib.support import SupportSet

if TYPE_CHECKING:
    from SDFSMISLib.evaluation.finished import SharedPrior

__all__ = [
    "PROTOCOLS",
    "Setting",
    "Task",
    "check_protocol",
    "chunked_task",
    "cross_volume",
    "field",
    "large_enough",
    "painted_slices",
    "painted_task",
    "same_volume",
    "slices_with",
    "spread_slices",
]

MIN_VOXELS, MIN_SLICES = 50, 3
CHUNKS = 3  # of the query's slices in `field`
AXES = 3


class Setting(NamedTuple):
    """How the tasks of one table are made.

    ``protocol`` is a name in :data:`PROTOCOLS`, or ``interactive``; ``shots`` the number of painted slices on each of
    the ``directions`` axes, in ``interactive`` on all of them together; ``painting`` says who chose the slices there
    (a name in :data:`.interactive.PAINTINGS`), and is empty in other protocols. ``finished`` other scans of the group
    are examples as a whole, with ``cross-volume`` in place of painted slices; they are of the split
    ``examples_from``, ``""`` for any.

    >>> Setting("same-volume", 3).title, Setting("same-volume", 1, 2).title
    ('same-volume, 3 painted slices', 'same-volume, 2 directions')
    >>> Setting("cross-volume", 0, finished=10).title
    'cross-volume, 10 finished scans'
    >>> Setting("same-volume", 1, finished=3, examples_from="train").title
    'same-volume, 1 painted slice, 3 finished scans (train)'
    """

    protocol: str
    shots: int
    directions: int = 1
    painting: str = ""
    finished: int = 0
    examples_from: str = ""

    @property
    def title(self) -> str:
        parts = [self.protocol]
        if self.directions > 1:
            parts.append(f"{self.directions} directions")
        elif self.protocol != "field" and self.shots:
            parts.append(f"{self.shots} painted {'slice' if self.shots == 1 else 'slices'}")
        if self.painting:
            parts.append(self.painting)
        if self.finished:
            origin = f" ({self.examples_from})" if self.examples_from else ""
            parts.append(f"{self.finished} finished {'scan' if self.finished == 1 else 'scans'}{origin}")
        return ", ".join(parts)


@dataclass(frozen=True, eq=False)
class Task:
    """What a method gets, and what its mask is judged by.

    Attributes:
        case, target: the structure to find. query, axis: the scan to segment, and its slice axis (array order).
        support: the painted slices; ``label`` is their label value, which a segmenter gives back in its labelmap.
        shown: the structure that the support shows: the target, unless the task is mispaired.
        reference: the target's mask, bool ``(slices, height, width)`` on the query's grid.
        planes: the painted slices of the query itself, of any axis; empty if the support is of another scan.
        judged: the slices along ``axis`` that count, and that a method is asked for; painted slices of other axes do
            not count on them.
        support_case: the case that the support was painted on.
        parts: tasks to do one by one, each with a support for its own judged slices; empty: the task is done as a
            whole.
        examples, prior: the cases that are examples as a whole, and where they show the targets of the case, by label
            value; empty and None without.

    >>> from pathlib import Path
    >>> from SDFSMISLib.images.geometry import Geometry
    >>> voxels = np.zeros((6, 16, 16), dtype=np.uint8)
    >>> voxels[1:5, 4:8, 4:8] = 1
    >>> volume = Volume(voxels, Geometry(voxels.shape, (1, 1, 5), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1)))
    >>> case = Case("ct/1", "ct", Path("scan.nii.gz"), Path("labels.nii.gz"), {"box": 1}, split="test")
    >>> task = same_volume(case, "box", (), lambda case: LabelledScan(case, volume, volume), shots=1)
    >>> task.painted, task.judged
    ((1,), (0, 2, 3, 4, 5))
    """

    case: Case
    target: str
    query: Volume
    axis: int
    support: SupportSet
    label: int
    shown: str
    reference: np.ndarray
    planes: tuple[Plane, ...]
    judged: tuple[int, ...]
    support_case: Case
    parts: tuple[Task, ...] = ()
    examples: tuple[Case, ...] = ()
    prior: SharedPrior | None = None

    @property
    def painted(self) -> tuple[int, ...]:
        """The painted slices of the query along ``axis``."""
        return tuple(plane.index for plane in self.planes if plane.axis == self.axis)

    @property
    def has_one_direction(self) -> bool:
        """Whether all painted slices of the query lie along ``axis``."""
        return len(self.painted) == len(self.planes)

    def counted(self) -> list[np.ndarray]:
        """The indices, on each array axis, of the voxels that count: ``mask[np.ix_(*task.counted())]``."""
        indices = [np.arange(side) for side in self.reference.shape]
        indices[self.axis] = np.array(self.judged, dtype=np.intp)
        for axis, index in self.planes:
            indices[axis] = indices[axis][indices[axis] != index]
        return indices

    def as_painted(self, mask: np.ndarray) -> np.ndarray:
        """A copy of a mask on the query's grid in which the painted slices are as painted: what a user ends with."""
        result = mask.copy()
        for one in self.support.for_label(self.label) if self.planes else ():
            np.moveaxis(result, one.plane.axis, 0)[one.index] = one.mask(self.label)
        return result


Loader = Callable[[Case], LabelledScan]
Protocol = Callable[[Case, str, tuple[Case, ...], Loader, int, bool], "Task | None"]
"""(case, target, the other cases of its group beginning behind it, how to read a case, shots, mispaired) -> the task;
None if the target is too small or no scan can show it, or another structure."""


def check_protocol(name: str, shots: int, directions: int = 1, finished: int = 0) -> None:
    """Raises :class:`InputError` for an unknown protocol, and numbers of shots, directions or finished scans that it
    does not take."""
    if name not in PROTOCOLS:
        raise InputError(f"There is no protocol {name!r}; there are {', '.join(PROTOCOLS)}.")
    if shots < 1:
        raise InputError(f"{shots} shots were asked for; at least 1 painted slice is needed.")
    if name == "field" and shots > 1:
        raise InputError(f"{shots} shots were asked for; the protocol field takes 1: a slice of one scan per chunk.")
    if finished < 0:
        raise InputError(f"{finished} finished scans were asked for; 0 or more are accepted.")
    if finished and name == "field":
        raise InputError(
            f"{finished} finished scans were asked for; the protocol field takes none, same-volume and cross-volume do."
        )
    if finished and name == "cross-volume" and shots > 1:
        raise InputError(
            f"{shots} shots and {finished} finished scans were asked for; cross-volume takes finished scans in place "
            "of painted slices: leave one of the two out, or choose same-volume, which takes both."
        )
    if not 1 <= directions <= AXES:
        raise InputError(f"{directions} directions were asked for; 1 to {AXES} are accepted.")
    if directions > 1 and name != "same-volume":
        raise InputError(
            f"{directions} directions were asked for; the protocol {name} takes 1, same-volume up to {AXES}."
        )
    if directions > 1 and shots > 1:
        raise InputError(
            f"{shots} shots and {directions} directions were asked for; with several directions one slice is painted "
            "in each: leave one of the two out."
        )


def painted_slices(mask: np.ndarray, axis: int, shots: int) -> tuple[int, ...]:
    """The slices of a target (bool ``(slices, height, width)``) that a user would paint, in rising order.

    One shot: the slice of largest area, the first of equal ones. More: of the C slices that hold the target those
    numbered floor((2 i + 1) C / (2 shots)), so for three at 1/6, 1/2 and 5/6; fewer than ``shots`` where C is smaller.
    """
    if shots < 1:
        raise ValueError(f"{shots} shots were asked for; at least 1 is needed.")
    areas = _areas(mask, axis)
    return (int(np.argmax(areas)),) if shots == 1 else tuple(sorted(set(spread_slices(slices_with(mask, axis), shots))))


def same_volume(
    case: Case,
    target: str,
    others: tuple[Case, ...],
    load: Loader,
    shots: int,
    mispaired: bool = False,
    directions: int = 1,
) -> Task | None:
    """Painted slices of the scan itself; all that is on none of them is judged. What a Slicer user does first.

    With several ``directions`` the slice of largest area is painted on each of so many axes: the slice axis, then those
    of lowest index.
    """
    labelled = load(case)
    reference = labelled.mask(target)
    if not large_enough(reference, labelled.axis):
        return None
    shown = labelled.next_target(target) if mispaired else target
    if shown is None:
        return None
    axes = [labelled.axis, *(axis for axis in range(AXES) if axis != labelled.axis)][:directions]
    mask = labelled.mask(shown)
    planes = [Plane(axis, index) for axis in axes for index in painted_slices(mask, axis, shots)]
    return painted_task(labelled, target, shown, planes)


def painted_task(
    labelled: LabelledScan, target: str, shown: str, planes: Sequence[Plane], axis: int | None = None
) -> Task | None:
    """The task of a scan with these slices painted on it as ``shown`` is in the reference, judged on the others.

    ``axis`` is that of the judged slices, None the scan's slice axis. None if nothing is left to judge, as in a scan
    that was cropped to its structure and painted throughout.
    """
    axis = labelled.axis if axis is None else axis
    painted = {index for along, index in planes if along == axis}
    judged = tuple(index for index in range(labelled.scan.slice_count(axis)) if index not in painted)
    support = labelled.support(shown, planes)
    task = replace(
        _task(labelled, target, labelled.mask(target), labelled, shown, support, judged),
        axis=axis,
        planes=tuple(Plane(one.plane.axis, one.index) for one in support.slices),
    )
    return task if all(map(len, task.counted())) else None


def cross_volume(
    case: Case, target: str, others: tuple[Case, ...], load: Loader, shots: int, mispaired: bool = False
) -> Task | None:
    """Painted slices of the next case of the group that has the target; every slice of the case is judged."""
    labelled = load(case)
    reference = labelled.mask(target)
    supporting, shown = _supporting(target, others, load, mispaired)
    if supporting is None or shown is None or not large_enough(reference, labelled.axis):
        return None
    slices = painted_slices(supporting.mask(shown), supporting.axis, shots)
    judged = tuple(range(labelled.scan.slice_count(labelled.axis)))
    return _task(labelled, target, reference, supporting, shown, supporting.support(shown, slices), judged)


def field(
    case: Case, target: str, others: tuple[Case, ...], load: Loader, shots: int, mispaired: bool = False
) -> Task | None:
    """The literature's protocol, for comparison with papers only (Ouyang et al., ECCV 2020; Hansen et al.'s EP1, 2022).

    The slices of the case that hold the target, C of them, are cut into three chunks at linspace(0, C, 4); chunk i is
    done with slice i of the next case of the group, its slices at 1/6, 1/2 and 5/6 of those that hold the target. Only
    slices that hold it are judged. One shot is one such scan: more are refused with :class:`InputError`.
    """
    check_protocol("field", shots)
    labelled = load(case)
    reference = labelled.mask(target)
    supporting, shown = _supporting(target, others, load, mispaired)
    if supporting is None or shown is None or not large_enough(reference, labelled.axis):
        return None
    holding = slices_with(supporting.mask(shown), supporting.axis)
    return chunked_task(labelled, target, supporting, shown, [(index,) for index in spread_slices(holding, CHUNKS)])


def chunked_task(
    labelled: LabelledScan, target: str, supporting: LabelledScan, shown: str, painted: Sequence[tuple[int, ...]]
) -> Task:
    """The task of a target's slices cut into as many chunks as ``painted`` has entries, each a part with its support.

    The C slices that hold the target are cut at linspace(0, C, chunks + 1); ``painted`` are the slices of
    ``supporting`` that are painted for each chunk. A chunk without slices makes no part.
    """
    reference = labelled.mask(target)
    holding = slices_with(reference, labelled.axis)
    bounds = np.linspace(0, len(holding), len(painted) + 1).astype(int)

    def task(slices: Iterable[int], judged: Sequence[int]) -> Task:
        support = supporting.support(shown, tuple(slices))
        return _task(labelled, target, reference, supporting, shown, support, tuple(judged))

    chunks = [holding[start:stop] for start, stop in pairwise(bounds)]
    parts = tuple(task(slices, chunk) for slices, chunk in zip(painted, chunks, strict=True) if chunk)
    return replace(task(sorted({index for slices in painted for index in slices}), holding), parts=parts)


PROTOCOLS: Mapping[str, Protocol] = {"same-volume": same_volume, "cross-volume": cross_volume, "field": field}


def _supporting(
    target: str, others: tuple[Case, ...], load: Loader, mispaired: bool
) -> tuple[LabelledScan | None, str | None]:
    """(the first other case that has the target, the structure that it is to show); None if there is none."""
    for other in others:
        if target in other.targets:
            labelled = load(other)
            if labelled.mask(target).any():
                return labelled, labelled.next_target(target) if mispaired else target
    return None, None


def _task(
    labelled: LabelledScan,
    target: str,
    reference: np.ndarray,
    supporting: LabelledScan,
    shown: str,
    support: SupportSet,
    judged: tuple[int, ...],
) -> Task:
    return Task(
        case=labelled.case,
        target=target,
        query=labelled.scan,
        axis=labelled.axis,
        support=support,
        label=supporting.case.targets[shown],
        shown=shown,
        reference=reference,
        planes=(),
        judged=judged,
        support_case=supporting.case,
    )


def slices_with(mask: np.ndarray, axis: int) -> list[int]:
    """The slices along ``axis`` on which a mask ``(slices, height, width)`` holds something, in rising order."""
    return np.flatnonzero(_areas(mask, axis)).tolist()


def spread_slices(holding: Sequence[int], count: int) -> list[int]:
    """The middles of ``count`` equal parts of the slices in ``holding``; some repeat if it has fewer.

    >>> spread_slices(range(10, 22), 3)
    [12, 16, 20]
    """
    return [holding[(2 * place + 1) * len(holding) // (2 * count)] for place in range(count)]


def _areas(mask: np.ndarray, axis: int) -> np.ndarray:
    """Voxels of the mask in each slice along ``axis``."""
    return np.count_nonzero(mask, axis=tuple(other for other in range(3) if other != axis))


def large_enough(mask: np.ndarray, axis: int) -> bool:
    """Whether a target makes a task."""
    areas = _areas(mask, axis)
    return bool(areas.sum() >= MIN_VOXELS and np.count_nonzero(areas) >= MIN_SLICES)
