"""Reads what is painted in the scene: the structures, the painted slices of any view, corrections in results."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.images.planes import Plane
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

SMALL = 1 << 19  # voxels of a painting that is read at once, in a few milliseconds; a larger one is read in a thread


@dataclass(frozen=True)
class PaintedSlice:
    """What is painted on a slice.

    Attributes:
        digest: a checksum of the paint and its place, and of what is known of a corrected slice.
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
        templates: name and colour of each painted segment, by label.
        painting: the painted voxels; None = nothing is painted.
        slices: the painted and corrected slices, of any view.
        unpainted: names of chosen segments that are not painted.
        problem: why the painting cannot be used; "" if it can.
    """

    templates: Mapping[int, SegmentTemplate] = field(default_factory=dict)
    painting: Painting | None = None
    slices: Mapping[Plane, PaintedSlice] = field(default_factory=dict)
    unpainted: tuple[str, ...] = ()
    problem: str = ""

    def painted(self, label: int) -> set[Plane]:
        """The slices on which a label is painted."""
        return {plane for plane, one in self.slices.items() if label in one.labels}


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
        reads_corrections: bool,
    ) -> None:
        """Read the scene, in some milliseconds. A reading in progress is dropped.

        Args:
            segments: IDs of the chosen segments.
            loaded: support sets from files; corrections in results for their structures are read, too.
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
        results: Mapping[int, ResultSnapshot] = {}
        if reads_corrections:
            destination = ResultDestination.of(scan, segmentation, templates)
            results = read_results(scan, destination.segmentation, destination.results) if destination.results else {}
        if painting.labels.voxels.size <= SMALL and not results:
            self.reading = _look_through(painting, templates, results)
        else:
            self._background = Background(
                "SDFSMIS painting", lambda post, cancel: post(_look_through(painting, templates, results))
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


def _look_through(
    painting: Painting, templates: Mapping[int, SegmentTemplate], results: Mapping[int, ResultSnapshot]
) -> PaintedStructures:
    """Look through a painting; in any thread."""
    found = {label for labels in painting.painted.values() for label in labels}
    missing = tuple(name for label, name in painting.names.items() if label not in found)
    names = {label: template.name for label, template in templates.items()}
    painting = with_corrections(replace(painting, names=names, detected=painting.painted), results)
    slices = {plane: painted_slice(painting, plane) for plane in sorted({*painting.painted, *painting.corrections})}
    there = {label for one in slices.values() for label in one.labels}
    kept = {label: template for label, template in templates.items() if label in there}
    return PaintedStructures(kept, painting if slices else None, slices, missing)


def painted_slice(painting: Painting, plane: Plane) -> PaintedSlice:
    """What is painted on a slice, recognised as painted or not."""
    labels, correction = painting.labels_on(plane), painting.corrections.get(plane)
    digest = zlib.crc32(np.ascontiguousarray(labels).data)
    if correction is not None:
        known = np.ones(labels.shape, dtype=bool) if correction.known is None else correction.known
        digest = zlib.crc32(np.packbits(known).data, digest)
    counts = np.bincount(labels.ravel())
    present = np.flatnonzero(counts[1:]) + 1
    return PaintedSlice(digest, tuple(present.tolist()), int(counts[1:].sum()))
