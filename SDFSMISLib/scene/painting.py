"""Listed segments: what a list of a segmentation's segments says of each.

Painting: what is painted in chosen segments of the scene, and the support set that it makes.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.images.geometry import Geometry
from SDFSMISLib.images.volume import Volume
from SDFSMISLib.scene.frame import Frame, VoxelBox, enclosing_extent
from SDFSMISLib.scene.result_segment import SOURCE_TAG
from SDFSMISLib.scene.scan import Scan, volume_stamp
from SDFSMISLib.scene.segment_tags import PAINTED_TAG, RECORD_TAG, SliceDigests, added_slices, decode_mask, get_tag
from SDFSMISLib.scene.segment_voxels import LABELMAP, get_segment, read_clipped, read_segment
from SDFSMISLib.support import SupportSet, painted_axis


class SegmentItem(NamedTuple):
    """A segment; ``color`` is red, green, blue from 0 to 1, ``is_result`` whether a run wrote it."""

    segment_id: str
    name: str
    color: tuple[float, float, float]
    is_result: bool


def list_segments(segmentation_node: Any) -> list[SegmentItem]:
    """The segments of a segmentation in its order; results of runs are among them, and told from what was painted."""
    segmentation, listed = segmentation_node.GetSegmentation(), []
    for segment_id in segmentation.GetSegmentIDs():
        segment = segmentation.GetSegment(segment_id)
        is_result = bool(get_tag(segment, RECORD_TAG)) or segment.HasTag(SOURCE_TAG)
        listed.append(SegmentItem(segment_id, segment.GetName(), tuple(segment.GetColor()), is_result))
    return listed


@dataclass(frozen=True, eq=False)
class Painting:
    """What is painted in some segments, on a volume's grid. It holds copies: any thread may use it.

    Attributes:
        geometry: the volume's grid.
        labels: label values from 1, uint8 or uint16, in the order in which the segments were named.
        names: of the segments, by label value.
        notes: what a user should know, one sentence each.
        corrected: slices along ``axis`` that were corrected by hand after a run; a label that is absent there is truly
            absent.
        corrected_axis: along which they are counted; None where there are none.
    """

    geometry: Geometry
    labels: VoxelBox
    names: dict[int, str]
    notes: tuple[str, ...] = ()
    corrected: tuple[int, ...] = ()
    corrected_axis: int | None = None

    @property
    def axis(self) -> int:
        """The array axis on which single slices are painted, as :meth:`.support.SupportSet.from_labelmap` finds it."""
        if self.corrected_axis is not None:
            return self.corrected_axis
        return self._axis_of(self.labels)

    def slices(self, axis: int, label: int | None = None) -> tuple[int, ...]:
        """The painted slices along an array axis, sorted; of one label, or of any."""
        return tuple(np.flatnonzero(self._planes(axis, label)).tolist())

    def mask(self, label: int) -> VoxelBox:
        """Where a label is painted, bool."""
        return VoxelBox(self.labels.start, self.labels.voxels == label)

    def labelmap(self) -> Volume:
        """All of it as a labelmap of the volume's whole grid."""
        voxels = self.labels.crop_or_pad((0, 0, 0), self.geometry.shape)
        return Volume(voxels, self.geometry, segment_names=dict(self.names))

    def support(
        self, scan: Scan, slices: Sequence[int] | None = None, axis: int | Literal["auto"] = "auto"
    ) -> SupportSet:
        """The support set of the painted slices; it takes half a second on 512 × 512 × 300, in any thread.

        It is what :meth:`.support.SupportSet.from_labelmap` makes of the same data: ``slices``, along ``axis``, are
        those to take, None for all; slices that were corrected by hand belong to them in any case, and ``axis`` is
        theirs.

        Raises:
            InputError: where nothing is painted in one of the segments, on the named slices if some are.
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
        return SupportSet(
            tuple(
                replace(piece, complete=named is not None or piece.index in self.corrected) for piece in support.slices
            ),
            support.names,
        )

    def _planes(self, axis: int, label: int | None = None) -> np.ndarray:
        """Bool for each slice of the volume: whether something is painted on it."""
        return self._filled(self.labels if label is None else self.mask(label), axis)

    def _axis_of(self, piece: VoxelBox) -> int:
        grid = Volume(np.broadcast_to(np.uint8(0), self.geometry.shape), self.geometry)
        return painted_axis(grid, tuple(self._filled(piece, axis) for axis in range(3)))

    def _filled(self, piece: VoxelBox, axis: int) -> np.ndarray:
        """Bool for each slice of the volume: whether a piece has something on it."""
        planes = np.zeros(self.geometry.shape[axis], dtype=bool)
        others = tuple(other for other in range(3) if other != axis)
        planes[piece.start[axis] : piece.stop[axis]] = piece.voxels.any(axis=others)
        return planes


def read_painting(volume_node: Any, segmentation_node: Any, segment_ids: Sequence[str]) -> Painting:
    """What is painted in segments of one segmentation, on a volume's grid; label values are 1, 2, ... in their order.

    Transforms are followed: a segment counts where views show it on the volume. It takes milliseconds where the
    segmentation has the volume's lattice. Where segments overlap, the one on the later layer of the segmentation
    wins, with a note.

    Raises:
        SegmentNotFound: where a segment is not there.
        InputError: where no segment is named, one is no labelmap or lies outside the volume, or a transform that is not
            linear lies between.
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
    """A value that stays equal for as long as :func:`read_painting` would read the same.

    It changes with strokes in the segments (or in others that share their labelmap), their names, transforms, and the
    volume's voxels, grid or frame. It takes microseconds, and raises nothing.
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
    """What a run's result holds, bool on the volume's grid, and what was recorded of it; copies, for any thread.

    Attributes:
        written: slices as the run wrote them.
        painted: what the painted segment held when the run began, bool; None where that is not known, as for one in
            another segmentation.
    """

    content: VoxelBox
    written: SliceDigests
    painted: VoxelBox | None


def read_results(volume_node: Any, segmentation_node: Any, results: Mapping[int, str]) -> dict[int, ResultSnapshot]:
    """What results of runs hold now, by label; in milliseconds.

    Args:
        segmentation_node: which holds the results.
        results: segment IDs of the results, by label. Those that are gone, or were not written by a run, are left out.

    Raises:
        InputError: where a transform that is not linear lies between volume and segmentation.
    """
    frame, found = Frame.of(volume_node, segmentation_node), dict[int, ResultSnapshot]()
    for label, segment_id in results.items():
        segment = segmentation_node.GetSegmentation().GetSegment(segment_id)
        record = SliceDigests.read_tag(segment) if segment is not None else None
        if record is not None:
            content = read_clipped(segmentation_node, segment_id, frame)
            painted = decode_mask(get_tag(segment, PAINTED_TAG), frame.geometry.shape)
            found[label] = ResultSnapshot(content, record, painted)
    return found


def with_corrections(painting: Painting, results: Mapping[int, ResultSnapshot]) -> Painting:
    """A painting, with the slices of a run's results that a user has corrected by hand in place of what it has there.

    A slice that was corrected in one result is taken as it stands in all of them: who corrects it has looked at it.
    A slice on which something was added in the painted segment itself since the run began is taken from there; a stroke
    in a result that took from the painted segment, as overwriting does, is a correction. Of large structures it takes
    some tens of milliseconds, in any thread.

    Args:
        results: by label of the painting, see :func:`read_results`; other labels count for nothing.
    """
    found = {label: held for label, held in results.items() if label in painting.names}
    axes, corrected, painted = {held.written.axis for held in found.values()}, set[int](), set[int]()
    for label, held in found.items():
        corrected |= held.written.changed_slices(held.content)
        if held.painted is not None:
            painted |= added_slices(painting.mask(label), held.painted, held.written.axis)
    corrected -= painted
    if len(axes) != 1 or not corrected:
        return painting
    (axis,) = axes
    contents = {label: held.content for label, held in found.items()}
    labels = _replaced(painting.labels, contents, axis, corrected)
    return replace(painting, labels=labels, corrected=tuple(sorted(corrected)), corrected_axis=axis)


def _replaced(labels: VoxelBox, found: Mapping[int, VoxelBox], axis: int, slices: set[int]) -> VoxelBox:
    """Labels that hold other pieces, by label, on some slices along an array axis."""
    start, stop = enclosing_extent(labels, *found.values())
    merged = VoxelBox(start, labels.crop_or_pad(start, stop))
    inside = [index - start[axis] for index in slices if start[axis] <= index < stop[axis]]
    along = np.moveaxis(merged.voxels, axis, 0)
    along[inside] = np.where(np.isin(along[inside], list(found)), 0, along[inside])
    for label, piece in found.items():
        mask = np.moveaxis(piece.crop_or_pad(start, stop), axis, 0)[inside]
        along[inside] = np.where(mask, label, along[inside])
    return merged
