"""Reads what is painted in the scene: the structures, the direction of the painted slices, corrections in results."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.scene import (
    Painting,
    ResultSnapshot,
    SegmentTemplate,
    VoxelBox,
    read_painting,
    read_results,
    volume_geometry,
    with_corrections,
)
from SDFSMISLib.workbench.background import Background, JobEnded
from SDFSMISLib.workbench.run_job import LoadedSupport, join_structures
from SDFSMISLib.workbench.targets import ResultDestination
from SDFSMISLib.workbench.text import tr as _

FEW = 0.25  # at most this share of the planes of the next axis are painted: the painting is one of few slices
ALMOST_ALL = 0.98  # at least this share of the painted voxels lies in two planes which cross
SMALL = 1 << 19  # voxels of a painting that is read at once, in a few milliseconds; a larger one is read in a thread


def two_directions(painting: Painting) -> str:
    """The error if slices of more than one direction are painted, and what to do; "" if there is none."""
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
    """The array axes along which slices of a mask are painted.

    Args:
        mask: bool ``(slices, height, width)``.

    Returns:
        one axis if a few parallel slices are painted, two if one slice crosses another, none if a whole structure is
        painted, or nothing.

    >>> mask = np.zeros((8, 8, 8), dtype=bool)
    >>> mask[3, 2:6, 2:6] = True
    >>> painted_axes(mask)
    (0,)
    >>> mask[2:6, 4, 2:6] = True
    >>> painted_axes(mask)
    (0, 1)
    """
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


@dataclass(frozen=True)
class PaintedSlice:
    """What is painted on a slice.

    Attributes:
        digest: a checksum of the paint and its place.
        labels: of the painted structures, sorted.
        pixels: number of painted pixels.
    """

    digest: int
    labels: tuple[int, ...]
    pixels: int


@dataclass(frozen=True, eq=False)
class PaintedStructures:
    """What is painted on a scan, corrections in results included.

    Attributes:
        looks: name and colour of each painted segment, by label.
        painting: the painted voxels; None = nothing is painted.
        axis: array axis of the painted slices.
        slices: the painted slices, by index.
        unpainted: names of chosen segments that are not painted.
        problem: why the painting cannot be used; "" if it can.
    """

    templates: Mapping[int, SegmentTemplate] = field(default_factory=dict)
    painting: Painting | None = None
    axis: int = 0
    slices: Mapping[int, PaintedSlice] = field(default_factory=dict)
    unpainted: tuple[str, ...] = ()
    problem: str = ""

    def painted(self, label: int) -> set[int]:
        """Indices of the slices on which a label is painted."""
        return {index for index, one in self.slices.items() if label in one.labels}


class PaintingReader:
    """Reads the scene on the main thread; a large painting, and results, are looked through in a thread.

    Attributes:
        reading: the last complete one.
    """

    def __init__(self) -> None:
        self.reading = PaintedStructures()
        self._background: Background | None = None

    def begin(
        self,
        scan: Any | None,
        segmentation: Any | None,
        segments: Sequence[str],
        loaded: Sequence[LoadedSupport],
        axis: int | None,
        reads_corrections: bool,
    ) -> None:
        """Read the scene, in some milliseconds. A reading in progress is dropped.

        Args:
            segments: IDs of the chosen segments.
            loaded: support sets from files; corrections in results for their structures are read, too.
            axis: array axis of the slices; None = that of the painted slices, or of the slices from files.
            reads_corrections: whether corrections in results are read.
        """
        self._background = None
        if scan is None or segmentation is None or not (segments or loaded):
            self.reading = PaintedStructures()
            return
        try:
            painting = read_painting(scan, segmentation, segments) if segments else _nothing_painted(scan)
        except InputError as error:
            self.reading = PaintedStructures(problem=str(error))
            return
        painted = {label: SegmentTemplate.of(segmentation, segments[label - 1]) for label in painting.names}
        templates, _pieces = join_structures(painted, loaded)
        along = axis if axis is not None else _axis(painting, loaded)
        results: Mapping[int, ResultSnapshot] = {}
        if reads_corrections:
            destination = ResultDestination.of(scan, segmentation, templates, along)
            results = read_results(scan, destination.segmentation, destination.results) if destination.results else {}
        if painting.labels.voxels.size <= SMALL and not results:
            self.reading = _look_through(painting, templates, along, results)
        else:
            self._background = Background(
                "SDFSMIS painting", lambda post, cancel: post(_look_through(painting, templates, along, results))
            )

    def take(self, wait: float = 0.0) -> bool:
        """Take the reading of the thread, if it is done; True if :attr:`reading` has changed.

        Args:
            wait: seconds to wait at most.
        """
        if self._background is None:
            return False
        if wait:
            self._background.join(wait)
        for message in self._background.messages():
            self._background = None
            self.reading = PaintedStructures(problem=str(message.error)) if isinstance(message, JobEnded) else message
            return True
        return False


def _nothing_painted(scan: Any) -> Painting:
    return Painting(volume_geometry(scan), VoxelBox.empty(np.uint8), {})


def _axis(painting: Painting, loaded: Sequence[LoadedSupport]) -> int:
    """The array axis of the painted slices, else that of the first slice from a file."""
    planes = [piece.plane.name for one in loaded for piece in one.slices.values()]
    if painting.labels.voxels.size or not planes:
        return painting.axis
    return next(axis for axis in range(3) if painting.geometry.plane(axis) == planes[0])


def _look_through(
    painting: Painting, templates: Mapping[int, SegmentTemplate], axis: int, results: Mapping[int, ResultSnapshot]
) -> PaintedStructures:
    """Look through a painting; in any thread."""
    problem = two_directions(painting)
    if problem:
        return PaintedStructures(problem=problem)
    slices = _slices(painting, axis)
    there = {label for one in slices.values() for label in one.labels}
    missing = tuple(name for label, name in painting.names.items() if label not in there)
    painted = replace(painting, names={label: template.name for label, template in templates.items()})
    if results:
        painted = with_corrections(painted, results)
        slices = _slices(painted, axis)
        there = {label for one in slices.values() for label in one.labels}
    names = {label: name for label, name in painted.names.items() if label in there}
    painted = replace(painted, names=names)
    kept = {label: template for label, template in templates.items() if label in there}
    return PaintedStructures(kept, painted if there else None, axis, slices, missing)


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
