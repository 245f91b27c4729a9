"""The segments that results are in: the segmentation for them, the results of earlier runs, and one result of a run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.images.planes import Plane
from SDFSMISLib.scene.corrections import (
    KNOWN_TAG,
    Known,
    ResultSnapshot,
    join,
    known_within,
    plane_extent,
    read_known,
    store_known,
)
from SDFSMISLib.scene.frame import Frame, Index, VoxelBox, as_index, enclosing_extent
from SDFSMISLib.scene.scan import Scan, SequenceFrame, scan_key
from SDFSMISLib.scene.segment_tags import (
    MASKS_TAG,
    PAINTED_TAG,
    SCAN_TAG,
    SLICES_TAG,
    SOURCE_TAG,
    SegmentTemplate,
    WrittenSlices,
    decode_mask,
    encode_mask,
    get_tag,
    slice_digests,
)
from SDFSMISLib.scene.segment_voxels import (
    LABELMAP,
    SURFACE,
    get_labelmap,
    get_segment,
    image_to_ras,
    is_on_lattice,
    lattice_offset,
    new_labelmap,
    read_clipped,
    replace_segment,
    write_slices,
)

# -- the segmentation --------------------------------------------------------------------------------------------------


def matches_lattice(volume_node: Any, segmentation_node: Any) -> bool:
    """Whether what is painted in a segmentation lies on the voxels of a volume.

    If not, results belong in a segmentation of their own (:func:`make_segmentation`): with the first stroke in one of
    them, the segment editor would resample it.
    """
    import slicer

    try:
        frame = Frame.of(volume_node, segmentation_node)
        segmentation = segmentation_node.GetSegmentation()
        if not all(is_on_lattice(segmentation_node, one, frame) for one in segmentation.GetSegmentIDs()):
            return False
    except InputError:
        return False
    converter = slicer.vtkSegmentationConverter
    text = segmentation.GetConversionParameter(converter.GetReferenceImageGeometryParameterName())
    image = slicer.vtkOrientedImageData()
    if not text or not converter.DeserializeImageGeometry(text, image, False):
        return True  # the editor will take the volume's
    to_volume = frame.segmentation_to_volume @ image_to_ras(image)
    return lattice_offset(to_volume, (0, 0, 0), frame.geometry.shape, frame.geometry) is not None


def make_segmentation(volume_node: Any, name: str) -> Any:
    """A new vtkMRMLSegmentationNode in the volume's scene, on its lattice and under its transform."""
    node = volume_node.GetScene().AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    node.CreateDefaultDisplayNodes()
    node.SetAndObserveTransformNodeID(volume_node.GetTransformNodeID())
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume_node)
    return node


class ResultUnavailable(InputError):
    """Results cannot be written: their segmentation or scan was deleted, closed or moved, or the results were."""


class OutputSegmentation:
    """The segmentation that a run writes into, and how the scan lay in it when the run began.

    Attributes:
        frame: the volume's grid in the segmentation.

    Raises:
        InputError: if a transform between volume and segmentation is not linear.
    """

    def __init__(self, volume_node: Any, segmentation_node: Any, scan: Scan) -> None:
        self.frame = Frame.of(volume_node, segmentation_node)
        self._volume_node, self._segmentation_node, self._scan = volume_node, segmentation_node, scan
        self._sequence_frame = SequenceFrame.of(segmentation_node)

    @property
    def exists(self) -> bool:
        """Whether the segmentation is in a scene."""
        return _is_in_scene(self._segmentation_node)

    @property
    def scan_changed(self) -> bool:
        """Whether the volume no longer shows what the scan was copied from."""
        return not (_is_in_scene(self._volume_node) and self._scan.is_shown_by(self._volume_node))

    def check(self) -> None:
        """Checks that results can still be written as when the run began.

        The volume may show another frame of the scan's sequence, even with another grid; results are then written on
        the grid of the scan's own frame.

        Raises:
            ResultUnavailable: if they cannot.
        """
        for node, what in ((self._segmentation_node, "segmentation"), (self._volume_node, "scan")):
            if not _is_in_scene(node):
                raise ResultUnavailable(
                    f"The {what} was deleted, or the scene closed; results cannot be written any more."
                )
        began, current = self._sequence_frame, SequenceFrame.of(self._segmentation_node)
        if current != began:
            raise ResultUnavailable(
                f"The segmentation shows {current.text if current else 'no frame of a sequence'}, and the run began in "
                f"{began.text if began else 'none'}; go back to that, or begin the run again."
            )
        if SequenceFrame.of(self._volume_node) == self._scan.sequence_frame and self._has_moved():
            raise ResultUnavailable(
                "The scan was changed, or moved against the segmentation, since the run began; begin the run again."
            )

    def _has_moved(self) -> bool:
        try:
            return not self.frame.matches(Frame.of(self._volume_node, self._segmentation_node))
        except InputError:
            return True


def _is_in_scene(node: Any) -> bool:
    return node.GetScene() is not None and bool(node.GetScene().IsNodePresent(node))


# -- results of earlier runs -------------------------------------------------------------------------------------------


def find_results(volume_node: Any, segmentation_node: Any, templates: Mapping[int, SegmentTemplate]) -> dict[int, str]:
    """IDs of the segments that earlier runs on this scan wrote for structures, by label.

    Takes some milliseconds. The scan is recognised by its voxels, whatever its name and node, and in a sequence by the
    frame that is shown; see :func:`.scan.scan_key`.

    Raises:
        InputError: if a transform between the two is not linear, or the volume has no image.
    """
    frame, segmentation = Frame.of(volume_node, segmentation_node), segmentation_node.GetSegmentation()
    labels, found, key = {template.key: label for label, template in templates.items()}, dict[int, str](), ""
    for segment_id in reversed(segmentation.GetSegmentIDs()):
        segment = segmentation.GetSegment(segment_id)
        label, written = labels.get(get_tag(segment, SOURCE_TAG)), WrittenSlices.read_tag(segment)
        if label is None or label in found or written is None:
            continue
        key = key or scan_key(volume_node)
        if result_scan_key(segment) == key and is_on_lattice(segmentation_node, segment_id, frame):
            found[label] = segment_id
    return found


def result_scan_key(segment: Any) -> str:
    """The key of the scan that a vtkSegment is a result on; "" if it is no result."""
    return get_tag(segment, SCAN_TAG)


def results_on_other_scans(segmentation_node: Any, key: str) -> set[str]:
    """IDs of the results on other scans than that of a key, or on other frames of its sequence."""
    segmentation = segmentation_node.GetSegmentation()
    keys = {one: result_scan_key(segmentation.GetSegment(one)) for one in segmentation.GetSegmentIDs()}
    return {segment_id for segment_id, other in keys.items() if other not in ("", key)}


# -- one result --------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class ResultSegment:
    """One result of a run, in the scene.

    The segment is looked up by its ID each time, as it may be deleted, or removed by undo.

    Attributes:
        axis: array axis along which slices are counted.
        corrections: what a user has corrected, and said to be right, as of the last :meth:`refresh`.
        surface_due: whether the segment's surface was removed and is not recomputed yet.
    """

    segmentation_node: Any
    segment_id: str
    frame: Frame
    axis: int
    corrections: Known = field(default_factory=dict, init=False)
    surface_due: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._refreshed_at: tuple[int, str] = -1, ""  # modification time of the labelmap, and what is stored as known
        self._written = WrittenSlices(self.axis)
        self._differing: set[int] = set()  # slices that are not as written
        self._counts: dict[int, int] = {}  # voxels of each slice
        self._is_new = False
        self._before, self._tags_before = VoxelBox.empty(), dict[str, str]()
        self._known_before: Known = {}
        self._painted: VoxelBox | None = None

    @classmethod
    def create(
        cls, segmentation_node: Any, template: SegmentTemplate, frame: Frame, axis: int, scan: Scan
    ) -> ResultSegment:
        """A new segment, alone in its labelmap, so that writing it never affects another segment.

        Its name tells the frame if the scan is one of a sequence, and the scan if there is a result of the same name.
        """
        import slicer

        segment = slicer.vtkSegment()
        segment.SetName(_new_name(segmentation_node, template, scan))
        if template.color is not None:
            segment.SetColor(template.color)
        if template.terminology:
            segment.SetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), template.terminology)
        segment.SetTag(SOURCE_TAG, template.key)
        segment.SetTag(SCAN_TAG, scan.key)
        segment.AddRepresentation(LABELMAP, new_labelmap((0, 0, 0), (0, 0, 0), np.eye(4)))
        logic = slicer.vtkSlicerSegmentationsModuleLogic
        logic.SetSegmentStatus(segment, logic.InProgress)
        segmentation_node.GetSegmentation().AddSegment(segment)
        segment_id = segmentation_node.GetSegmentation().GetSegmentIdBySegment(segment)
        created = cls(segmentation_node, segment_id, frame, axis)
        created._is_new = True
        return created

    @classmethod
    def resume(
        cls, segmentation_node: Any, segment_id: str, frame: Frame, axis: int, added: VoxelBox | None = None
    ) -> ResultSegment:
        """The result of an earlier run, along any axis; what a user has changed since then counts as corrected.

        Args:
            added: see :meth:`.corrections.ResultSnapshot.corrections`.
        """
        resumed = cls(segmentation_node, segment_id, frame, axis)
        segment = resumed.segment
        resumed._tags_before = {
            name: get_tag(segment, name) for name in (SLICES_TAG, MASKS_TAG, PAINTED_TAG, KNOWN_TAG)
        }
        snapshot = ResultSnapshot.read(segmentation_node, segment_id, frame)
        resumed._before = resumed.read()
        if snapshot is not None:
            resumed._known_before, resumed._written = snapshot.corrections(added), snapshot.written
        resumed._store(resumed._before, resumed._known_before)
        return resumed

    @property
    def exists(self) -> bool:
        """Whether the segment is in the segmentation."""
        return self.segmentation_node.GetSegmentation().GetSegment(self.segment_id) is not None

    @property
    def segment(self) -> Any:
        """The vtkSegment; raises :class:`.segment_voxels.SegmentNotFound`."""
        return get_segment(self.segmentation_node, self.segment_id)

    def read(self) -> VoxelBox:
        """All voxels that the segment holds now, bool."""
        return read_clipped(self.segmentation_node, self.segment_id, self.frame)

    def refresh(self) -> bool:
        """Reads what others have changed; whether there was anything."""
        stamp = self._stamp()
        if stamp == self._refreshed_at:
            return False
        snapshot = ResultSnapshot.read(self.segmentation_node, self.segment_id, self.frame)
        if snapshot is None or snapshot.written.axis != self.axis:  # its tags were lost
            snapshot = ResultSnapshot(self.frame.geometry, self.read(), WrittenSlices(self.axis), {})
        self._written = snapshot.written
        self._differing = snapshot.differing
        self.corrections = snapshot.corrections()
        self._counts = _count_by_slice(snapshot.mask, self.axis)
        self._refreshed_at = stamp
        return True

    def _stamp(self) -> tuple[int, str]:
        modified_at = get_labelmap(self.segmentation_node, self.segment_id).GetMTime()
        return modified_at, get_tag(self.segment, KNOWN_TAG)

    # The following are as of the last refresh.

    @property
    def voxel_count(self) -> int:
        """How many voxels the segment holds."""
        return sum(self._counts.values())

    def has_written(self, index: int) -> bool:
        """Whether a slice was written, and not as an empty one."""
        return index in self._written.digests

    @property
    def corrected_since(self) -> Known:
        """Planes that a user has corrected, or said to be right, since the run began."""
        if self._is_new:
            return self.corrections
        now, shape = self.read(), as_index(self.frame.geometry.shape)
        return {
            plane: known
            for plane, known in self.corrections.items()
            if self._is_newer(plane, known, now, shape) or plane not in self._known_before
        }

    def _is_newer(self, plane: Plane, known: VoxelBox | None, now: VoxelBox, shape: Index) -> bool:
        """Whether more is known of a plane than when the run began, or other voxels are held there."""
        start, stop = plane_extent(plane, shape)
        within = known_within({plane: known}, start, stop)
        earlier = known_within({plane: self._known_before.get(plane, VoxelBox.empty())}, start, stop)
        differ = now.crop_or_pad(start, stop) != self._before.crop_or_pad(start, stop)
        return bool((within & (~earlier | differ)).any())

    # What the painted segment holds.

    def record_painted(self, template: SegmentTemplate) -> None:
        """Stores what the painted segment holds, if it is in this segmentation, to know later what was added to it."""
        if template.is_in(self.segmentation_node):
            self._painted = read_clipped(self.segmentation_node, template.source, self.frame)
            self.segment.SetTag(PAINTED_TAG, encode_mask(self._painted))

    def write(self, indices: Collection[int], mask: VoxelBox) -> None:
        """Makes some slices those of a bool box; all others stay.

        What a user has corrected on them is stored first, to be known in later runs, too.
        """
        self.refresh()
        digests = slice_digests(mask, self.axis)
        changed = {index for index in indices if digests.get(index) != self._written.digests.get(index)}
        corrected = self._differing.intersection(indices)
        if not changed and not corrected:
            return
        if corrected:
            self._store(self.read(), self.corrections)
            changed = {index for index in indices if digests.get(index) != self._written.digests.get(index)}
        if changed:
            self._remove_surface()
            kept = mask.keep_slices(self.axis, changed)
            write_slices(self.segmentation_node, self.segment_id, self.frame, self.axis, changed, kept)
            for index in changed:
                self._counts.pop(index, None)
            self._counts |= _count_by_slice(kept, self.axis)
            self._written.record(changed, kept)
            self._written.write_tag(self.segment)
        self._refreshed_at = self._stamp()

    def know(self, plane: Plane, part: VoxelBox | None = None) -> None:
        """Stores that a plane, or a part of it (bool), is right as it is."""
        self.refresh()
        self._store(self.read(), join(self.corrections, {plane: part}))

    def _store(self, mask: VoxelBox, known: Known) -> None:
        """Makes what the segment holds the record of what was written, and corrections a record of their own."""
        if self._written.axis != self.axis or self._written.masks is None:
            self._written = WrittenSlices(self.axis)
        self._written.record(self._written.differing(slice_digests(mask, self.axis)), mask)
        self.corrections, self._differing = known, set()
        self._written.write_tag(self.segment)
        store_known(self.segment, known)

    def restore(self, kept: Known) -> None:
        """Makes the segment what it was before the run, except for some parts of planes, which stay as they are now.

        A segment that was created for the run is removed if nothing of it stays.
        """
        now = self.read()
        start, stop = enclosing_extent(now, self._before)
        staying = known_within(kept, start, stop)
        merged = np.where(staying, now.crop_or_pad(start, stop), self._before.crop_or_pad(start, stop))
        if self._is_new and not merged.any() and not self.corrections:
            self.segmentation_node.GetSegmentation().RemoveSegment(self.segment_id)
            return
        self._remove_surface()
        restored = VoxelBox(start, merged).trimmed()
        replace_segment(self.segmentation_node, self.segment_id, restored, self.frame)
        if self._is_new:
            self._store(restored, kept)
            return
        for name, text in self._tags_before.items():
            self.segment.SetTag(name, text)
        if kept:
            shape = as_index(self.frame.geometry.shape)
            store_known(self.segment, join(read_known(self.segment, shape), kept))
            before = decode_mask(self._tags_before[PAINTED_TAG], shape)
            if before is not None and self._painted is not None:
                for plane in kept:
                    before = before.replace_slices(plane.axis, [plane.index], self._painted)
                self.segment.SetTag(PAINTED_TAG, encode_mask(before))

    def _remove_surface(self) -> None:
        """Removes the surface, which Slicer would otherwise recompute with every write."""
        if self.segment.GetRepresentation(SURFACE) is not None:
            self.segment.RemoveRepresentation(SURFACE)
            self.surface_due = True


def _count_by_slice(mask: VoxelBox, axis: int) -> dict[int, int]:
    return {index: int(np.count_nonzero(plane)) for index, plane in mask.slices(axis).items()}


def _new_name(segmentation_node: Any, template: SegmentTemplate, scan: Scan) -> str:
    segmentation = segmentation_node.GetSegmentation()
    names = {segmentation.GetSegment(one).GetName() for one in segmentation.GetSegmentIDs()}
    frame = [scan.frame_text] if scan.frame_text else []
    name = f"{template.name} ({', '.join(['SDFSMIS', *frame])})"
    return f"{template.name} ({', '.join(['SDFSMIS', scan.name, *frame])})" if name in names else name
