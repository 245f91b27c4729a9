"""What a user has corrected in results of runs: strokes on slices of any view, and slices that were said to be right.

A labelmap tells which voxels a user has changed, not in which view. A brush changes one slice, so the changed voxels
are explained by as few slices of any axis as possible; what no brush explains, as a sphere or smoothing, counts as
slices along the axis of the run. Of such a slice the strokes are known and what lies close to them, since the user has
looked there: a small stroke must not freeze a slice that is wrong elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from SDFSMISLib.images.geometry import Geometry
from SDFSMISLib.images.planes import Plane, painted_planes
from SDFSMISLib.scene.frame import Frame, Index, VoxelBox, as_index
from SDFSMISLib.scene.segment_tags import (
    PAINTED_TAG,
    WrittenSlices,
    decode_mask,
    encode_mask,
    get_tag,
    slice_digests,
)
from SDFSMISLib.scene.segment_voxels import read_clipped

__all__ = ["Known", "ResultSnapshot", "join", "known_within", "read_results", "stroke_planes"]

REACH = 5.0  # mm around a stroke, along rows and columns, that the user has looked at
KNOWN_TAG = "SDFSMIS.Known"  # of a result
KNOWN_PLANE = re.compile(r"([012]) (\d{1,9})(?: (.+))?")

Known = Mapping[Plane, VoxelBox | None]
"""Planes of which something is known: a bool box within the plane, or None for all of it."""


def join(*several: Known) -> dict[Plane, VoxelBox | None]:
    """Everything that is known of each plane, sorted."""
    joined: dict[Plane, VoxelBox | None] = {}
    for known in several:
        for plane, box in known.items():
            other = joined.get(plane, VoxelBox.empty())
            joined[plane] = None if box is None or other is None else _union(box, other)
    return dict(sorted(joined.items()))


def known_within(known: Known, start: Index, stop: Index) -> np.ndarray:
    """Bool of the extent from ``start`` to before ``stop`` of a grid: the voxels that lie on known parts of planes.

    >>> line = VoxelBox((0, 1, 1), np.ones((1, 1, 2), bool))
    >>> known_within({Plane(0, 0): line, Plane(2, 0): None}, (0, 0, 0), (2, 2, 3)).astype(int).tolist()
    [[[1, 0, 0], [1, 1, 1]], [[1, 0, 0], [1, 0, 0]]]
    """
    within = np.zeros(np.subtract(stop, start), dtype=bool)
    for (axis, index), box in known.items():
        if start[axis] <= index < stop[axis]:
            layer = np.moveaxis(within, axis, 0)[index - start[axis]]
            layer |= True if box is None else _layer(box, axis, index, start, stop)
    return within


def plane_extent(plane: Plane, shape: Index) -> tuple[Index, Index]:
    """The first index of a plane in a grid, and the one after the last."""
    start, stop = [0, 0, 0], list(shape)
    start[plane.axis], stop[plane.axis] = plane.index, plane.index + 1
    return as_index(start), as_index(stop)


def known_pixels(box: VoxelBox, plane: Plane, shape: Index) -> np.ndarray:
    """Bool (rows, columns) of a whole slice: a box within it."""
    return _layer(box, plane.axis, plane.index, (0, 0, 0), shape)


def stroke_planes(changed: VoxelBox, geometry: Geometry, axis: int) -> dict[Plane, VoxelBox | None]:
    """The planes of strokes, and what is known of each: the strokes and what lies within `REACH` of them.

    Args:
        changed: bool, the voxels that a user has changed.
        axis: array axis of the slices as which changes count that no few strokes explain.

    >>> grid = Geometry((20, 20, 20), (1.0, 1.0, 1.0), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    >>> stroke = VoxelBox((4, 3, 7), np.ones((8, 2, 1), bool))  # of a brush in a sagittal view
    >>> known = stroke_planes(stroke, grid, axis=0)
    >>> [(plane, box.start, box.stop) for plane, box in known.items()]
    [(Plane(axis=2, index=7), (0, 0, 7), (17, 10, 8))]
    """
    return {
        plane: _surroundings(changed.keep_slices(plane.axis, [plane.index]), plane, geometry)
        for plane in _planes_of(changed.trimmed(), as_index(geometry.shape), axis)
    }


def _planes_of(changed: VoxelBox, shape: Index, axis: int) -> list[Plane]:
    start = as_index(np.maximum(np.subtract(changed.start, 1), 0))  # so that the border of the box is not the scan's
    padded = changed.crop_or_pad(start, as_index(np.minimum(np.add(changed.stop, 1), shape)))
    planes = [Plane(one, index + start[one]) for one, index in painted_planes(padded, axis)]
    slices = changed.slices(axis)
    return planes if len(planes) <= len(slices) else [Plane(axis, index) for index in slices]


def _surroundings(stroke: VoxelBox, plane: Plane, geometry: Geometry) -> VoxelBox:
    """A stroke on a plane and the pixels at most `REACH` before, behind, above and below it."""
    reach = [0 if axis == plane.axis else int(REACH / geometry.axis_spacing(axis)) for axis in range(3)]
    start = as_index(np.maximum(np.subtract(stroke.start, reach), 0))
    stop = as_index(np.minimum(np.add(stroke.stop, reach), geometry.shape))
    voxels = stroke.crop_or_pad(start, stop)
    for axis, steps in enumerate(reach):
        if steps:
            counts = np.cumsum(np.moveaxis(voxels, axis, 0), axis=0, dtype=np.int32)
            padded = np.concatenate([np.zeros_like(counts[:1]), counts])
            places = np.arange(len(counts))
            low, high = np.maximum(places - steps, 0), np.minimum(places + steps + 1, len(counts))
            voxels = np.moveaxis(padded[high] > padded[low], 0, axis)
    return VoxelBox(start, voxels)


def _union(one: VoxelBox, other: VoxelBox) -> VoxelBox:
    if not (one.voxels.size and other.voxels.size):
        return one if one.voxels.size else other
    start, stop = as_index(np.minimum(one.start, other.start)), as_index(np.maximum(one.stop, other.stop))
    return VoxelBox(start, one.crop_or_pad(start, stop) | other.crop_or_pad(start, stop))


def _layer(box: VoxelBox, axis: int, index: int, start: Index, stop: Index) -> np.ndarray:
    """The part of a box that lies on a slice, (rows, columns) of an extent."""
    low, high = list(start), list(stop)
    low[axis], high[axis] = index, index + 1
    return np.moveaxis(box.crop_or_pad(as_index(low), as_index(high)), axis, 0)[0]


# -- in the tags of results --------------------------------------------------------------------------------------------


def read_known(segment: Any, shape: Index) -> dict[Plane, VoxelBox | None]:
    """What is stored in a vtkSegment as known by hand; damaged entries are left out.

    Args:
        shape: of the volume.
    """
    known: dict[Plane, VoxelBox | None] = {}
    for match in map(KNOWN_PLANE.fullmatch, get_tag(segment, KNOWN_TAG).split(", ")):
        if match is not None and int(match[2]) < shape[int(match[1])]:
            box = decode_mask(match[3], shape) if match[3] else None
            if box is not None or not match[3]:
                known[Plane(int(match[1]), int(match[2]))] = box
    return known


def store_known(segment: Any, known: Known) -> None:
    """Store in a vtkSegment what is known by hand."""
    entries = [
        f"{plane.axis} {plane.index}" + ("" if box is None else f" {encode_mask(box)}") for plane, box in known.items()
    ]
    segment.SetTag(KNOWN_TAG, ", ".join(entries))


@dataclass(frozen=True, eq=False)
class ResultSnapshot:
    """What a run's result holds on the volume's grid, and what its tags tell of the run; copies, for any thread.

    Attributes:
        geometry: the volume's grid.
        mask: bool.
        written: the slices as the run wrote them.
        stored: what was known by hand when they were written.
        painted: what the painted segment held when the run began, bool; None if it is in another segmentation.
    """

    geometry: Geometry
    mask: VoxelBox
    written: WrittenSlices
    stored: Known
    painted: VoxelBox | None = None

    @classmethod
    def read(cls, segmentation_node: Any, segment_id: str, frame: Frame) -> ResultSnapshot | None:
        """The snapshot of a segment; None if no run wrote it, or there is no such segment."""
        segment = segmentation_node.GetSegmentation().GetSegment(segment_id)
        written = WrittenSlices.read_tag(segment) if segment is not None else None
        if written is None:
            return None
        shape = as_index(frame.geometry.shape)
        painted = decode_mask(get_tag(segment, PAINTED_TAG), shape)
        mask = read_clipped(segmentation_node, segment_id, frame)
        return cls(frame.geometry, mask, written, read_known(segment, shape), painted)

    @cached_property
    def differing(self) -> set[int]:
        """The slices along the axis of the run that are not as written."""
        return self.written.differing(slice_digests(self.mask, self.written.axis))

    def corrections(self, added: VoxelBox | None = None) -> dict[Plane, VoxelBox | None]:
        """What a user has corrected, and said to be right, in this result and those that it continues.

        Args:
            added: bool, what was added to painted segments since the run began. It is no correction, though the result
                may have lost it to them; slices that were painted so count as painted.
        """
        axis, shape = self.written.axis, as_index(self.geometry.shape)
        changed, unknown = self.written.changed(self.mask, self.differing, shape)
        painted: set[Plane] = set()
        if added is not None and added.voxels.size:
            changed = VoxelBox(changed.start, changed.voxels & ~added.crop_or_pad(changed.start, changed.stop))
            painted = set(_planes_of(added.trimmed(), shape, axis))
        strokes = stroke_planes(changed, self.geometry, axis)
        known = join(self.stored, strokes, {Plane(axis, index): None for index in unknown})
        return {plane: box for plane, box in known.items() if plane not in painted}


def read_results(volume_node: Any, segmentation_node: Any, results: Mapping[int, str]) -> dict[int, ResultSnapshot]:
    """What results of runs hold now, by label; takes milliseconds.

    Args:
        segmentation_node: holds the results.
        results: segment IDs of the results, by label. Deleted ones, and segments that no run wrote, are left out.

    Raises:
        InputError: if a transform between volume and segmentation is not linear.
    """
    frame = Frame.of(volume_node, segmentation_node)
    read = {label: ResultSnapshot.read(segmentation_node, one, frame) for label, one in results.items()}
    return {label: snapshot for label, snapshot in read.items() if snapshot is not None}


def added_voxels(pairs: Iterable[tuple[VoxelBox, VoxelBox | None]]) -> VoxelBox:
    """What was added to painted segments, bool: of (what each holds now, what it held before; None = not known)."""
    added = VoxelBox.empty()
    for now, before in pairs:
        if before is not None:
            since = VoxelBox(now.start, now.voxels & ~before.crop_or_pad(now.start, now.stop)).trimmed()
            added = _union(added, since)
    return added
