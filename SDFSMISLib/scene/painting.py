"""What is painted in the segments of a segmentation, with a user's corrections of results, as a support set."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.images.geometry import Geometry
from SDFSMISLib.images.volume import Volume
from SDFSMISLib.scene.frame import Frame, VoxelBox, enclosing_extent
from SDFSMISLib.scene.scan import Scan, volume_stamp
from SDFSMISLib.scene.segment_tags import (
    PAINTED_TAG,
    SLICES_TAG,
    SOURCE_TAG,
    SliceDigests,
    added_slices,
    decode_mask,
    get_tag,
    slice_digests,
)
from SDFSMISLib.scene.segment_voxels import LABELMAP, get_segment, read_clipped, read_segment
from SDFSMISLib.support import SupportSet


class SegmentItem(NamedTuple):
    """A segment in a list.

    Attributes:
        color: red, green, blue from 0 to 1.
        is_result: whether a run wrote the segment.
    """

    segment_id: str
    name: str
    color: tuple[float, float, float]
    is_result: bool


def list_segments(segmentation_node: Any) -> list[SegmentItem]:
    """The segments of a segmentation in its order, results of runs among them."""
    segmentation, items = segmentation_node.GetSegmentation(), []
    for segment_id in segmentation.GetSegmentIDs():
        segment = segmentation.GetSegment(segment_id)
        is_result = bool(get_tag(segment, SLICES_TAG)) or segment.HasTag(SOURCE_TAG)
        items.append(SegmentItem(segment_id, segment.GetName(), tuple(segment.GetColor()), is_result))
    return items


THIN = 0.25  # the longest row of painted slices on one axis, as a share of that on the next, that means single slices


@dataclass(frozen=True, eq=False)
class Painting:
    """What is painted in some segments, on a volume's grid. It holds copies, so any thread may use it.

    Attributes:
        geometry: the volume's grid.
        labels: label values from 1, uint8 or uint16, in the order of the segments that were read.
        names: of the segments, by label value.
        notes: for the user, one sentence each.
        corrected: slices along ``corrected_axis`` that were corrected after a run; a label that is absent on them is
            truly absent.
        corrected_axis: None if no slices were corrected.

    >>> grid = Geometry((9, 8, 8), (1.0, 1.0, 3.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
    >>> painting = Painting(grid, VoxelBox((4, 2, 2), np.ones((1, 3, 3), np.uint8)), {1: "liver"})
    >>> painting.axis, painting.slices(0)
    (0, (4,))
    >>> scan = Scan(np.zeros(grid.shape, np.int16), grid)
    >>> support = painting.support(scan)
    >>> support.labels, [one.index for one in support.slices]
    ((1,), [4])
    """

    geometry: Geometry
    labels: VoxelBox
    names: dict[int, str]
    notes: tuple[str, ...] = ()
    corrected: tuple[int, ...] = ()
    corrected_axis: int | None = None

    @property
    def axis(self) -> int:
        """The array axis along which single slices are painted; see :meth:`.support.SupportSet.from_labelmap`."""
        if self.corrected_axis is not None:
            return self.corrected_axis
        return painted_axis(self.geometry, tuple(self._is_painted(self.labels, axis) for axis in range(3)))

    def slices(self, axis: int, label: int | None = None) -> tuple[int, ...]:
        """The painted slices along an array axis, sorted; of one label, or of any."""
        labels = self.labels if label is None else self.mask(label)
        return tuple(np.flatnonzero(self._is_painted(labels, axis)).tolist())

    def mask(self, label: int) -> VoxelBox:
        """The voxels of a label, bool."""
        return VoxelBox(self.labels.start, self.labels.voxels == label)

    def labelmap(self) -> Volume:
        """The labelmap on the volume's whole grid."""
        voxels = self.labels.crop_or_pad((0, 0, 0), self.geometry.shape)
        return Volume(voxels, self.geometry, segment_names=dict(self.names))

    def support(
        self, scan: Scan, slices: Sequence[int] | None = None, axis: int | Literal["auto"] = "auto"
    ) -> SupportSet:
        """The support set of the painted slices, as :meth:`.support.SupportSet.from_labelmap` makes it.

        It takes half a second on 512 × 512 × 300 voxels, in any thread.

        Args:
            slices: indices along ``axis`` to take, None = all that are painted; corrected slices are always taken.
            axis: array axis; if slices were corrected, theirs is used instead.

        Raises:
            InputError: if nothing is painted in one of the segments, on the given slices if some are given.
        """
        along = self.axis if axis == "auto" or self.corrected else axis
        named = None if slices is None else sorted({*slices, *self.corrected})
        for label, name in self.names.items():
            painted = self.slices(along, label)
            if not painted or (named is not None and not set(named) & set(painted)):
                where = "" if not painted else f" on slice {', '.join(map(str, named or ()))}"
                raise InputError(f"Nothing is painted in the segment {name}{where}; paint it on at least one slice.")
        taken = sorted({*self.slices(along), *self.corrected}) if named is None else named
        support = SupportSet.from_labelmap(scan, self.labelmap(), sorted(self.names), taken, along)
        complete = set(taken if named is not None else self.corrected)
        return SupportSet(tuple(replace(one, complete=one.index in complete) for one in support.slices), support.names)

    def _is_painted(self, labels: VoxelBox, axis: int) -> np.ndarray:
        """Bool for each slice of the volume: whether a box has nonzero voxels on it."""
        planes = np.zeros(self.geometry.shape[axis], dtype=bool)
        others = tuple(other for other in range(3) if other != axis)
        planes[labels.start[axis] : labels.stop[axis]] = labels.voxels.any(axis=others)
        return planes


def read_painting(volume_node: Any, segmentation_node: Any, segment_ids: Sequence[str]) -> Painting:
    """What is painted in segments of one segmentation, on a volume's grid; label values are 1, 2, ... in their order.

    Transforms are applied, so segments are read as views show them on the volume. It takes milliseconds if the
    segmentation has the volume's lattice. If segments overlap, the one on the later layer of the segmentation wins,
    with a note.

    Raises:
        SegmentNotFound: if a segment does not exist.
        InputError: if no segment is given, one is no labelmap or lies outside the volume, or a transform between
            volume and segmentation is not linear.
    """
    if not segment_ids:
        raise InputError("No segment was chosen; choose the one that is painted.")
    frame, segmentation = Frame.of(volume_node, segmentation_node), segmentation_node.GetSegmentation()
    names, masks, notes = {}, {}, []
    for label, segment_id in enumerate(segment_ids, 1):
        names[label] = get_segment(segmentation_node, segment_id).GetName()
        masks[label], note = read_segment(segmentation_node, segment_id, frame)
        notes += [note] if note else []
    start, stop = enclosing_extent(*masks.values())
    labels = VoxelBox(start, np.zeros(np.subtract(stop, start), dtype=np.uint8 if len(names) < 256 else np.uint16))
    overlap = 0
    for label in sorted(masks, key=lambda label: segmentation.GetLayerIndex(segment_ids[label - 1])):
        mask = masks[label].crop_or_pad(start, stop)
        overlap += int(np.count_nonzero(mask & (labels.voxels != 0)))
        np.copyto(labels.voxels, label, where=mask)
    if overlap:
        notes.append(f"Segments overlap in {overlap} voxels; there the one on the later layer counts.")
    return Painting(frame.geometry, labels, names, tuple(notes))


def painting_stamp(volume_node: Any, segmentation_node: Any, segment_ids: Sequence[str]) -> Hashable:
    """A value that stays equal as long as :func:`read_painting` would read the same.

    It changes with strokes in the segments (or in others that share their labelmap), their names, transforms, and the
    volume's voxels, grid or sequence frame. It takes microseconds, and raises nothing.
    """
    transforms = tuple(
        None if transform is None else (transform.GetID(), transform.GetTransformToWorldMTime())
        for transform in (volume_node.GetParentTransformNode(), segmentation_node.GetParentTransformNode())
    )
    segmentation = segmentation_node.GetSegmentation()
    segments = []
    for segment_id in segment_ids:
        segment = segmentation.GetSegment(segment_id)
        image = segment.GetRepresentation(LABELMAP) if segment is not None else None
        held = None if image is None else (image.GetMTime(), segment.GetLabelValue(), segment.GetName())
        segments.append((segment_id, held))
    nodes = volume_node.GetID(), segmentation_node.GetID(), segmentation.GetSourceRepresentationName()
    return nodes, volume_stamp(volume_node), transforms, tuple(segments)


@dataclass(frozen=True, eq=False)
class ResultSnapshot:
    """What a run's result holds on the volume's grid, and what its tags tell of the run; copies, for any thread.

    Attributes:
        mask: bool.
        written: digests of the slices as the run wrote them.
        painted: what the painted segment held when the run began, bool; None if it is in another segmentation.
    """

    mask: VoxelBox
    written: SliceDigests
    painted: VoxelBox | None

    def corrected_slices(self) -> set[int]:
        """The slices that a user has changed since the run wrote them."""
        return self.written.differing(slice_digests(self.mask, self.written.axis))


def read_results(volume_node: Any, segmentation_node: Any, results: Mapping[int, str]) -> dict[int, ResultSnapshot]:
    """What results of runs hold now, by label; takes milliseconds.

    Args:
        segmentation_node: holds the results.
        results: segment IDs of the results, by label. Deleted ones, and segments that no run wrote, are left out.

    Raises:
        InputError: if a transform between volume and segmentation is not linear.
    """
    frame, snapshots = Frame.of(volume_node, segmentation_node), dict[int, ResultSnapshot]()
    for label, segment_id in results.items():
        segment = segmentation_node.GetSegmentation().GetSegment(segment_id)
        written = SliceDigests.read_tag(segment) if segment is not None else None
        if written is not None:
            mask = read_clipped(segmentation_node, segment_id, frame)
            painted = decode_mask(get_tag(segment, PAINTED_TAG), frame.geometry.shape)
            snapshots[label] = ResultSnapshot(mask, written, painted)
    return snapshots


def with_corrections(painting: Painting, results: Mapping[int, ResultSnapshot]) -> Painting:
    """A painting in which slices that a user corrected in a run's results replace what was painted.

    A slice that was corrected in one result is taken as it is in all of them: whoever corrected it has looked at it.
    A slice on which something was added to the painted segment itself since the run began is taken from there; a stroke
    in a result that took voxels from the painted segment, as overwriting does, is a correction. Large structures take
    some tens of milliseconds, in any thread.

    Args:
        results: by label of the painting, see :func:`read_results`; other labels are ignored.
    """
    found = {label: result for label, result in results.items() if label in painting.names}
    axes, corrected, painted = {result.written.axis for result in found.values()}, set[int](), set[int]()
    for label, result in found.items():
        corrected |= result.corrected_slices()
        if result.painted is not None:
            painted |= added_slices(painting.mask(label), result.painted, result.written.axis)
    corrected -= painted
    if len(axes) != 1 or not corrected:
        return painting
    (axis,) = axes
    masks = {label: result.mask for label, result in found.items()}
    labels = _with_masks(painting.labels, masks, axis, corrected)
    return replace(painting, labels=labels, corrected=tuple(sorted(corrected)), corrected_axis=axis)


def _with_masks(labels: VoxelBox, masks: Mapping[int, VoxelBox], axis: int, slices: set[int]) -> VoxelBox:
    """Labels whose masks on some slices along an array axis are replaced, by label."""
    start, stop = enclosing_extent(labels, *masks.values())
    merged = VoxelBox(start, labels.crop_or_pad(start, stop))
    inside = [index - start[axis] for index in slices if start[axis] <= index < stop[axis]]
    along = np.moveaxis(merged.voxels, axis, 0)
    along[inside] = np.where(np.isin(along[inside], list(masks)), 0, along[inside])
    for label, mask in masks.items():
        along[inside] = np.where(np.moveaxis(mask.crop_or_pad(start, stop), axis, 0)[inside], label, along[inside])
    return merged


def painted_axis(geometry: Geometry, planes: Sequence[np.ndarray]) -> int:
    """The axis on which single slices are painted, else the geometry's default.

    Args:
        planes: for each axis, bool per slice: whether it is painted.
    """
    runs = [_longest_run(painted) for painted in planes]
    shortest, following = sorted(runs)[:2]
    if shortest < following and (shortest == 1 or shortest <= THIN * following):
        return runs.index(shortest)
    return geometry.default_axis()


def _longest_run(painted: np.ndarray) -> int:
    """Length of the longest row of neighbouring true values."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], painted, [False])).astype(np.int8)))
    return int((edges[1::2] - edges[::2]).max(initial=0))
