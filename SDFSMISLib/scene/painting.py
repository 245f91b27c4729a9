"""What is painted in the segments of a segmentation, with a user's corrections of results, as a support set."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.images.geometry import Geometry
from SDFSMISLib.images.labelmap import label_values
from SDFSMISLib.images.planes import Plane
from SDFSMISLib.images.volume import Volume
from SDFSMISLib.scene.corrections import (
    KNOWN_TAG,
    ResultSnapshot,
    added_voxels,
    join,
    known_pixels,
    plane_extent,
)
from SDFSMISLib.scene.frame import Frame, VoxelBox, as_index, enclosing_extent
from SDFSMISLib.scene.scan import Scan, volume_stamp
from SDFSMISLib.scene.segment_tags import SLICES_TAG, SOURCE_TAG, get_tag
from SDFSMISLib.scene.segment_voxels import LABELMAP, get_segment, read_segment
from SDFSMISLib.slices import SlicePlane
from SDFSMISLib.support import SupportSet, SupportSlice, axes_in_order, labels_by_plane


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


@dataclass(frozen=True, eq=False)
class Correction:
    """What is known of a slice that a user has corrected in results.

    Attributes:
        labels: label values of the painting (rows, columns); 0 where nothing is known.
        known: bool of the same shape; None = all of the slice is right.
        complete: whether each painted structure had a result then, so that one that is absent here is truly absent.
    """

    labels: np.ndarray
    known: np.ndarray | None
    complete: bool


@dataclass(frozen=True, eq=False)
class Painting:
    """What is painted in some segments, on a volume's grid. It holds copies, so any thread may use it.

    Attributes:
        geometry: the volume's grid.
        labels: label values from 1, uint8 or uint16, in the order of the segments that were read.
        names: of the segments, by label value.
        notes: for the user, one sentence each.
        corrections: slices that were corrected after a run; on what is known of them, absent labels are truly absent.
        detected: the slices that are painted, and the labels painted on each, if they are known already.

    >>> grid = Geometry((9, 8, 8), (1.0, 1.0, 3.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
    >>> mask = np.zeros((9, 8, 8), np.uint8)
    >>> mask[4, 2:5, 2:5] = mask[2:7, 2:5, 3] = 1  # an axial and a sagittal slice
    >>> painting = Painting(grid, VoxelBox((0, 0, 0), mask), {1: "liver"})
    >>> painting.painted, painting.axis
    ({Plane(axis=0, index=4): (1,), Plane(axis=2, index=3): (1,)}, 0)
    >>> support = painting.support(Scan(np.zeros(grid.shape, np.int16), grid))
    >>> support.labels, [(one.plane.name, one.index) for one in support.slices]
    ((1,), [('axial', 4), ('sagittal', 3)])
    """

    geometry: Geometry
    labels: VoxelBox
    names: dict[int, str]
    notes: tuple[str, ...] = ()
    corrections: Mapping[Plane, Correction] = field(default_factory=dict)
    detected: Mapping[Plane, tuple[int, ...]] | None = None

    @cached_property
    def painted(self) -> Mapping[Plane, tuple[int, ...]]:
        """The slices that are painted in the segments, of any view, and the labels that are painted on each."""
        if self.detected is not None:
            return self.detected
        start = as_index(np.maximum(np.subtract(self.labels.start, 1), 0))  # the box may end where the scan does not
        voxels = self.labels.crop_or_pad(start, as_index(np.minimum(np.add(self.labels.stop, 1), self.geometry.shape)))
        present = [label for label in label_values(voxels) if label in self.names]
        found = labels_by_plane(voxels, present, self.geometry.default_axis())
        return {Plane(axis, index + start[axis]): tuple(labels) for (axis, index), labels in sorted(found.items())}

    @property
    def axis(self) -> int:
        """The array axis along which a run gives its results; see :func:`.support.axes_in_order`."""
        whole = [plane for plane, one in self.corrections.items() if one.known is None and one.labels.any()]
        axes = axes_in_order({*self.painted, *whole}, self.geometry)
        return axes[0] if axes else self.geometry.default_axis()

    def mask(self, label: int) -> VoxelBox:
        """The voxels of a label, bool."""
        return VoxelBox(self.labels.start, self.labels.voxels == label)

    def labels_on(self, plane: Plane) -> np.ndarray:
        """Label values (rows, columns) on a slice, without labels that only slices of other views show there.

        On a slice that was not recognised as painted, all labels count.
        """
        if plane in self.corrections:
            return self.corrections[plane].labels
        start, stop = plane_extent(plane, as_index(self.geometry.shape))
        labels = np.moveaxis(self.labels.crop_or_pad(start, stop), plane.axis, 0)[0]
        counted = [label for label in self.painted.get(plane, self.names) if label in self.names]
        return np.where(np.isin(labels, counted), labels, 0)

    def is_only_crossed(self, plane: Plane) -> bool:
        """Whether nothing is on a slice but lines, where slices that were painted in other views cross it."""
        if plane in self.painted or plane in self.corrections:
            return False
        rest, others = self.labels_on(plane).copy(), [axis for axis in range(3) if axis != plane.axis]
        was_empty = not rest.any()
        for axis, index in self.painted:
            if axis != plane.axis and not {Plane(axis, index - 1), Plane(axis, index + 1)} & self.painted.keys():
                np.moveaxis(rest, others.index(axis), 0)[index] = 0
        return not was_empty and not rest.any()

    def labelmap(self) -> Volume:
        """The labelmap on the volume's whole grid."""
        voxels = self.labels.crop_or_pad((0, 0, 0), self.geometry.shape)
        return Volume(voxels, self.geometry, segment_names=dict(self.names))

    def support(
        self, scan: Scan, planes: Collection[Plane] | None = None, complete: Collection[Plane] = ()
    ) -> SupportSet:
        """The support set of the painted slices, as :meth:`.support.SupportSet.from_labelmap` makes it.

        It takes half a second on 512 × 512 × 300 voxels, in any thread.

        Args:
            planes: the slices to take, None = all that are painted; corrected ones are always taken, as the last.
            complete: slices on which a label that is absent is truly absent.

        Raises:
            InputError: if nothing is painted in one of the segments, on the given slices if some are given.
        """
        taken = self.painted if planes is None else planes
        taken = [*sorted(set(taken) - self.corrections.keys()), *sorted(self.corrections)]
        shown = {plane: self.labels_on(plane) for plane in taken}
        present = {value for labels in shown.values() for value in label_values(labels)}
        for label, name in self.names.items():
            if label not in present:
                where = f" on {', '.join(map(self.describe, taken))}" if self.mask(label).voxels.any() else ""
                raise InputError(f"Nothing is painted in the segment {name}{where}; paint it on at least one slice.")
        window, content = scan.window(), scan.content_hash()
        along = {axis: SlicePlane.of(scan, axis, window, content) for axis in {plane.axis for plane in taken}}
        slices = tuple(
            SupportSlice(
                image=np.array(scan.slice(*plane), dtype=np.float32),
                labels=labels.astype(np.uint16),
                index=plane.index,
                plane=along[plane.axis],
                complete=self.corrections[plane].complete if plane in self.corrections else plane in complete,
                known=self.corrections[plane].known if plane in self.corrections else None,
            )
            for plane, labels in shown.items()
        )
        return SupportSet(slices, dict(self.names))

    def describe(self, plane: Plane) -> str:
        """A slice in words, such as "sagittal 27"."""
        return f"{self.geometry.plane(plane.axis)} {plane.index}"


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
        known = "" if segment is None else get_tag(segment, KNOWN_TAG)
        held = None if image is None else (image.GetMTime(), segment.GetLabelValue(), segment.GetName(), known)
        segments.append((segment_id, held))
    nodes = volume_node.GetID(), segmentation_node.GetID(), segmentation.GetSourceRepresentationName()
    return nodes, volume_stamp(volume_node), transforms, tuple(segments)


def with_corrections(painting: Painting, results: Mapping[int, ResultSnapshot]) -> Painting:
    """A painting with what a user has corrected in a run's results.

    What was corrected in one result is taken as it is in all of them: whoever corrected it has looked at it. On a slice
    that is painted in the segments the correction counts; but where something was added to the painted segments since
    the run began, that slice is taken from there. A stroke in a result that took voxels from the painted segment, as
    overwriting does, is a correction. Large structures take some tens of milliseconds, in any thread.

    Args:
        results: by label of the painting, see :func:`.corrections.read_results`; other labels are ignored.
    """
    found = {label: result for label, result in results.items() if label in painting.names}
    added = added_voxels((painting.mask(label), result.painted) for label, result in found.items())
    known = join(*(result.corrections(added) for result in found.values()))
    if not known:
        return painting
    masks = {label: result.mask for label, result in found.items()}
    corrections = {plane: _correction(painting, plane, box, masks) for plane, box in known.items()}
    return replace(painting, corrections=corrections, detected=painting.painted)


def _correction(painting: Painting, plane: Plane, box: VoxelBox | None, masks: Mapping[int, VoxelBox]) -> Correction:
    shape = as_index(painting.geometry.shape)
    start, stop = plane_extent(plane, shape)
    painted = painting.labels_on(plane) if plane in painting.painted else None
    labels = np.zeros(painting.geometry.slice_shape(plane.axis), painting.labels.voxels.dtype)
    labels = labels if painted is None else np.where(np.isin(painted, list(masks)), 0, painted)
    for label, mask in masks.items():
        labels[np.moveaxis(mask.crop_or_pad(start, stop), plane.axis, 0)[0]] = label
    known = None if box is None else known_pixels(box, plane, shape)
    if known is not None:
        labels = np.where(known, labels, 0 if painted is None else painted)
    return Correction(labels, known if painted is None else None, masks.keys() >= painting.names.keys())
