"""The segments that results are in: the segmentation for them, the results of earlier runs, and one result of a run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.scene.frame import Frame, VoxelBox
from SDFSMISLib.scene.scan import Scan, SequenceFrame, scan_key
from SDFSMISLib.scene.segment_tags import (
    PAINTED_TAG,
    SCAN_TAG,
    SLICES_TAG,
    SOURCE_TAG,
    SegmentTemplate,
    SliceDigests,
    added_slices,
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


def find_results(
    volume_node: Any, segmentation_node: Any, templates: Mapping[int, SegmentTemplate], axis: int
) -> dict[int, str]:
    """IDs of the segments that earlier runs on this scan, along this axis, wrote for structures, by label.

    Takes some milliseconds. The scan is recognised by its voxels, whatever its name and node, and in a sequence by the
    frame that is shown; see :func:`.scan.scan_key`.

    Raises:
        InputError: if a transform between the two is not linear, or the volume has no image.
    """
    frame, segmentation = Frame.of(volume_node, segmentation_node), segmentation_node.GetSegmentation()
    labels, found, key = {template.key: label for label, template in templates.items()}, dict[int, str](), ""
    for segment_id in reversed(segmentation.GetSegmentIDs()):
        segment = segmentation.GetSegment(segment_id)
        label, written = labels.get(get_tag(segment, SOURCE_TAG)), SliceDigests.read_tag(segment)
        if label is None or label in found or written is None or written.axis != axis:
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
        corrected: slices that a user has changed since they were written, as of the last :meth:`refresh`.
        surface_due: whether the segment's surface was removed and is not recomputed yet.
    """

    segmentation_node: Any
    segment_id: str
    frame: Frame
    axis: int
    corrected: set[int] = field(default_factory=set, init=False)
    surface_due: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._refreshed_at = -1  # modification time of the labelmap
        self._written = SliceDigests(self.axis)
        self._counts: dict[int, int] = {}  # voxels of each slice
        self._corrected_digests: dict[int, str] = {}
        self._is_new = False
        self._before, self._slices_tag_before, self._painted_tag_before = VoxelBox.empty(), "", ""
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
    def resume(cls, segmentation_node: Any, segment_id: str, frame: Frame, axis: int) -> ResultSegment:
        """The result of an earlier run; slices that a user has changed since then count as corrected."""
        resumed = cls(segmentation_node, segment_id, frame, axis)
        resumed._before = resumed.read()
        resumed._slices_tag_before = get_tag(resumed.segment, SLICES_TAG)
        resumed._painted_tag_before = get_tag(resumed.segment, PAINTED_TAG)
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
        modified_at = get_labelmap(self.segmentation_node, self.segment_id).GetMTime()
        if modified_at == self._refreshed_at:
            return False
        mask, written = self.read(), SliceDigests.read_tag(self.segment)
        self._written = written if written is not None and written.axis == self.axis else SliceDigests(self.axis)
        digests = slice_digests(mask, self.axis)
        self.corrected = self._written.differing(digests)
        self._corrected_digests = {index: digests[index] for index in self.corrected & digests.keys()}
        self._counts = _count_by_slice(mask, self.axis)
        self._refreshed_at = modified_at
        return True

    # The following are as of the last refresh.

    @property
    def voxel_count(self) -> int:
        """How many voxels the segment holds."""
        return sum(self._counts.values())

    def has_written(self, index: int) -> bool:
        """Whether a slice was written, and not as an empty one."""
        return index in self._written.digests

    def has_digest(self, index: int, digest: str | None) -> bool:
        """Whether a corrected slice has a digest, None = empty."""
        return self._corrected_digests.get(index) == digest

    @property
    def changed_during_run(self) -> set[int]:
        """Corrected slices that a user has changed since the run began."""
        if self._is_new:
            return set(self.corrected)
        before = slice_digests(self._before.keep_slices(self.axis, self.corrected), self.axis)
        return {index for index in self.corrected if not self.has_digest(index, before.get(index))}

    # What the painted segment holds.

    def record_painted(self, template: SegmentTemplate) -> None:
        """Stores what the painted segment holds, if it is in this segmentation, to know later what was added to it."""
        if template.is_in(self.segmentation_node):
            self._painted = read_clipped(self.segmentation_node, template.source, self.frame)
            self.segment.SetTag(PAINTED_TAG, encode_mask(self._painted))

    @cached_property
    def newly_painted(self) -> set[int]:
        """The slices on which something was added to the painted segment between the run before and this one."""
        before = decode_mask(self._painted_tag_before, self.frame.geometry.shape)
        if before is None or self._painted is None:
            return set()
        return added_slices(self._painted, before, self.axis)

    def write(self, indices: Collection[int], mask: VoxelBox) -> None:
        """Makes some slices those of a bool box; all others stay.

        A corrected slice that already has these voxels stays a corrected one.
        """
        self.refresh()
        digests = slice_digests(mask, self.axis)
        changed = {index for index in indices if digests.get(index) != self._written.digests.get(index)}
        corrected = changed & self.corrected
        changed -= {index for index in corrected if self.has_digest(index, digests.get(index))}
        if not changed:
            return
        self._remove_surface()
        kept = mask.keep_slices(self.axis, changed)
        write_slices(self.segmentation_node, self.segment_id, self.frame, self.axis, changed, kept)
        for index in changed:
            self._written.digests.pop(index, None)
            self._counts.pop(index, None)
        self._written.digests |= {index: digests[index] for index in changed & digests.keys()}
        self._counts |= _count_by_slice(kept, self.axis)
        self.corrected -= changed
        self._written.write_tag(self.segment)
        self._refreshed_at = get_labelmap(self.segmentation_node, self.segment_id).GetMTime()

    def restore(self, kept: Collection[int]) -> None:
        """Makes the segment what it was before the run, except for some slices, which stay as they are now.

        A segment that was created for the run is removed if nothing of it stays.
        """
        staying = self.read().keep_slices(self.axis, kept)
        if self._is_new and not staying.voxels.size and not self.corrected.intersection(kept):
            self.segmentation_node.GetSegmentation().RemoveSegment(self.segment_id)
            return
        self._remove_surface()
        merged = self._before.replace_slices(self.axis, kept, staying)
        replace_segment(self.segmentation_node, self.segment_id, merged, self.frame)
        if self._is_new:
            written = {index: digest for index, digest in self._written.digests.items() if index in kept}
            SliceDigests(self.axis, written).write_tag(self.segment)
            return
        self.segment.SetTag(SLICES_TAG, self._slices_tag_before)
        before = decode_mask(self._painted_tag_before, self.frame.geometry.shape)
        painted_tag = self._painted_tag_before
        if kept and before is not None and self._painted is not None:
            painted_tag = encode_mask(before.replace_slices(self.axis, kept, self._painted))
        self.segment.SetTag(PAINTED_TAG, painted_tag)

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
