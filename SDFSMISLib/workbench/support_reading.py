"""Painting direction: along which axis single slices are painted, and whether some lie across others.

Support reading: what is painted in the scene at some time, with what was corrected by hand in results of runs.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.scene import Painting, ResultSnapshot, SegmentTemplate, read_painting, read_results, with_corrections
from SDFSMISLib.scene.frame import VoxelBox, volume_geometry
from SDFSMISLib.workbench.background import Background, Ended
from SDFSMISLib.workbench.run_job import LoadedSet, join_structures
from SDFSMISLib.workbench.targets import ResultHome
from SDFSMISLib.workbench.text import tr as _

FEW = 0.25  # planes painted along an axis, as a share of those along the next, that make a painting of few slices
ALMOST_ALL = 0.98  # of the painted voxels, that lie in two planes which cross


def two_directions(painting: Painting) -> str:
    """What is wrong where slices of more than one direction are painted, and what to do; "" where nothing is."""
    by_axis: dict[int, list[str]] = {}
    for label, name in painting.names.items():
        for axis in painted_axes(painting.labels.voxels == label):
            by_axis.setdefault(axis, []).append(name)
    if len(by_axis) < 2:
        return ""
    return _(
        "Slices of two directions are painted ({places}). Paint all in one direction, or untick a structure."
    ).format(places=_listed(painting, by_axis))


def painted_axes(mask: np.ndarray) -> tuple[int, ...]:
    """The axes along which a bool mask ``(slices, height, width)`` is painted: one where a few slices are, two where a
    slice lies across another, none where a whole structure is painted, or nothing."""
    counts = [mask.sum(axis=tuple(other for other in range(3) if other != axis)) for axis in range(3)]
    total = int(counts[0].sum())
    if total == 0:
        return ()
    planes = [int(np.count_nonzero(count)) for count in counts]
    order = np.argsort(planes, kind="stable").tolist()
    if planes[order[0]] <= max(1, FEW * planes[order[1]]):
        return (order[0],)
    for one in range(3):
        for other in range(one + 1, 3):
            first, second = int(counts[one].argmax()), int(counts[other].argmax())
            both = np.take(np.take(mask, [first], axis=one), [second], axis=other).sum()
            covered = int(counts[one][first]) + int(counts[other][second]) - int(both)
            if covered >= ALMOST_ALL * total:
                return one, other
    return ()


def _listed(painting: Painting, by_axis: Mapping[int, list[str]]) -> str:
    return "; ".join(f"{painting.geometry.plane(axis)}: {', '.join(names)}" for axis, names in sorted(by_axis.items()))


SMALL = 1 << 19  # voxels of a painting that is looked through at once, in a few milliseconds


@dataclass(frozen=True)
class PaintedSlice:
    """What is painted on a slice.

    Attributes:
        digest: another number stands for another content.
        labels: that are painted, sorted.
        pixels: how many are.
    """

    digest: int
    labels: tuple[int, ...]
    pixels: int


@dataclass(frozen=True, eq=False)
class SupportReading:
    """Attributes:
    looks: of the painted segments, by label. painting: None = nothing is painted.
    axis: along which the scan is sliced. slices: what is painted on each that is, by index.
    unpainted: names of segments that take part and have nothing painted.
    problem: why it cannot be read; "" where it can.
    """

    looks: Mapping[int, SegmentTemplate] = field(default_factory=dict)
    painting: Painting | None = None
    axis: int = 0
    slices: Mapping[int, PaintedSlice] = field(default_factory=dict)
    unpainted: tuple[str, ...] = ()
    problem: str = ""

    def painted(self, label: int) -> set[int]:
        """The slices on which a label is painted."""
        return {index for index, one in self.slices.items() if label in one.labels}


class SupportReader:
    """Reads the scene on the main thread, and looks through a large painting, and results, in a thread of its own.

    Attributes:
        reading: the last one that is whole.
    """

    def __init__(self) -> None:
        self.reading = SupportReading()
        self._background: Background | None = None

    def begin(
        self,
        scan: Any | None,
        segmentation: Any | None,
        segments: Sequence[str],
        loaded: Sequence[LoadedSet],
        axis: int | None,
        results_count: bool,
    ) -> None:
        """Reads the scene; some milliseconds. What went on before is let go of.

        Args:
            segments: IDs of those that take part.
            loaded: sets that show structures, too; what was corrected in their results counts.
            axis: along which the scan is sliced; None = as it is painted, or as the loaded slices lie.
            results_count: whether corrections in results are looked for.
        """
        self._background = None
        if scan is None or segmentation is None or not (segments or loaded):
            self.reading = SupportReading()
            return
        try:
            painting = read_painting(scan, segmentation, segments) if segments else _nothing_painted(scan)
        except InputError as error:
            self.reading = SupportReading(problem=str(error))
            return
        painted = {label: SegmentTemplate.of(segmentation, segments[label - 1]) for label in painting.names}
        looks, _pieces = join_structures(painted, loaded)
        along = axis if axis is not None else _axis(painting, loaded)
        results: Mapping[int, ResultSnapshot] = {}
        if results_count:
            home = ResultHome.of(scan, segmentation, looks, along)
            results = read_results(scan, home.segmentation, home.results) if home.results else {}
        if painting.labels.voxels.size <= SMALL and not results:
            self.reading = _looked_through(painting, looks, along, results)
        else:
            self._background = Background(
                "SDFSMIS painting", lambda post, cancel: post(_looked_through(painting, looks, along, results))
            )

    def take(self, wait: float = 0.0) -> bool:
        """Takes what was looked through, if that is done; whether the reading has changed.

        Args:
            wait: seconds to wait for it at most.
        """
        if self._background is None:
            return False
        if wait:
            self._background.join(wait)
        for message in self._background.messages():
            self._background = None
            self.reading = SupportReading(problem=str(message.error)) if isinstance(message, Ended) else message
            return True
        return False


def _nothing_painted(scan: Any) -> Painting:
    return Painting(volume_geometry(scan), VoxelBox((0, 0, 0), np.zeros((0, 0, 0), dtype=np.uint8)), {})


def _axis(painting: Painting, loaded: Sequence[LoadedSet]) -> int:
    """Along which a scan is sliced: as it is painted, else as the first loaded slice lies."""
    planes = [piece.plane.name for one in loaded for piece in one.pieces.values()]
    if painting.labels.voxels.size or not planes:
        return painting.axis
    return next(axis for axis in range(3) if painting.geometry.plane(axis) == planes[0])


def _looked_through(
    painting: Painting, looks: Mapping[int, SegmentTemplate], axis: int, results: Mapping[int, ResultSnapshot]
) -> SupportReading:
    """The reading of a painting; any thread may make it."""
    problem = two_directions(painting)
    if problem:
        return SupportReading(problem=problem)
    slices = _slices(painting, axis)
    there = {label for one in slices.values() for label in one.labels}
    missing = tuple(name for label, name in painting.names.items() if label not in there)
    painted = replace(painting, names={label: look.name for label, look in looks.items()})
    if results:
        painted = with_corrections(painted, results)
        slices = _slices(painted, axis)
        there = {label for one in slices.values() for label in one.labels}
    names = {label: name for label, name in painted.names.items() if label in there}
    painted = replace(painted, names=names)
    kept = {label: look for label, look in looks.items() if label in there}
    return SupportReading(kept, painted if there else None, axis, slices, missing)


def _slices(painting: Painting, axis: int) -> dict[int, PaintedSlice]:
    found = {}
    rows, columns = (painting.labels.start[other] for other in range(3) if other != axis)
    for index, labels in painting.labels.slices(axis).items():
        counts = np.bincount(labels.ravel())
        present = np.flatnonzero(counts[1:]) + 1
        place = f"{rows} {columns} {labels.shape}".encode()
        digest = zlib.crc32(np.ascontiguousarray(labels).data, zlib.crc32(place))
        found[index] = PaintedSlice(digest, tuple(present.tolist()), int(counts[1:].sum()))
    return found
