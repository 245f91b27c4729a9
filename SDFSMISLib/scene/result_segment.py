"""The segmentation that results go into: whether one has the volume's lattice, and a new one that has.

A result segment: the segment that a run writes its slices into, and what a user changes in it meanwhile.

The place of a run's results: a segmentation in which a scan lies as it lay when the run began, until it is lost.
"""

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
    RECORD_TAG,
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
    read_clipped,
    replace_segment,
    write_slices,
)


def matches_lattice(volume_node: Any, segmentation_node: Any) -> bool:
    """Whether what is painted in a segmentation lies on the voxels of a volume.

    Where it does not, results belong into a segmentation of their own (:func:`make_segmentation`): with the first
    stroke in one of them, the segment editor would resample it.
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


SOURCE_TAG, SCAN_TAG = "SDFSMIS.ResultOf", "SDFSMIS.Scan"


def find_results(
    volume_node: Any, segmentation_node: Any, templates: Mapping[int, SegmentTemplate], axis: int
) -> dict[int, str]:
    """IDs of the segments that earlier runs on this scan, along this axis, wrote for structures, by label.

    It takes some milliseconds. The scan is known by its voxels, whatever its name and node, and of a sequence by the
    frame that is shown; see :func:`.scan.scan_key`.

    Raises:
        InputError: where a transform that is not linear lies between the two, or the volume has no image.
    """
    frame, segmentation = Frame.of(volume_node, segmentation_node), segmentation_node.GetSegmentation()
    labels, found, shown = {template.key: label for label, template in templates.items()}, dict[int, str](), ""
    for segment_id in reversed(segmentation.GetSegmentIDs()):
        segment = segmentation.GetSegment(segment_id)
        label, record = labels.get(get_tag(segment, SOURCE_TAG)), SliceDigests.read_tag(segment)
        if label is None or label in found or record is None or record.axis != axis:
            continue
        shown = shown or scan_key(volume_node)
        if result_scan_key(segment) == shown and is_on_lattice(segmentation_node, segment_id, frame):
            found[label] = segment_id
    return found


def result_scan_key(segment: Any) -> str:
    """The key of the scan that a vtkSegment is a result on; "" where it is none."""
    return get_tag(segment, SCAN_TAG)


def results_on_other_scans(segmentation_node: Any, key: str) -> set[str]:
    """IDs of the segments that are results on other scans than that of a key, or on other frames of its sequence."""
    segmentation = segmentation_node.GetSegmentation()
    every = {one: result_scan_key(segmentation.GetSegment(one)) for one in segmentation.GetSegmentIDs()}
    return {segment_id for segment_id, scan in every.items() if scan not in ("", key)}


@dataclass(eq=False)
class ResultSegment:
    """One result of a run, in the scene.

    It is looked up by its ID each time, so a segment that was deleted, or taken away by undo, is just not there.

    Attributes:
        by_hand: slices that a user has changed since they were written, as of the last :meth:`refresh`.
    """

    segmentation_node: Any
    segment_id: str
    frame: Frame
    axis: int
    corrected: set[int] = field(default_factory=set, init=False)
    surface_due: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._seen = -1
        self._record = SliceDigests(self.axis)
        self._counts: dict[int, int] = {}
        self._digests: dict[int, str] = {}  # of the slices by hand, as of the last refresh
        self._made = False
        self._before, self._record_before, self._painted_before = VoxelBox.empty(), "", ""
        self._painted: VoxelBox | None = None

    @classmethod
    def create(
        cls, segmentation_node: Any, template: SegmentTemplate, frame: Frame, axis: int, scan: Scan
    ) -> ResultSegment:
        """A new segment, alone in its labelmap, so that what is written never meets another segment.

        Its name says so where it is that of a frame of a sequence; that of the scan belongs to it where there is a
        result of the same name.
        """
        import slicer
        from vtkmodules.vtkCommonCore import VTK_UNSIGNED_CHAR

        image = slicer.vtkOrientedImageData()
        image.SetExtent(0, -1, 0, -1, 0, -1)
        image.AllocateScalars(VTK_UNSIGNED_CHAR, 1)
        segment = slicer.vtkSegment()
        segment.SetName(_name(segmentation_node, template, scan))
        if template.color is not None:
            segment.SetColor(template.color)
        if template.terminology:
            segment.SetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), template.terminology)
        segment.SetTag(SOURCE_TAG, template.key)
        segment.SetTag(SCAN_TAG, scan.key)
        segment.AddRepresentation(LABELMAP, image)
        logic = slicer.vtkSlicerSegmentationsModuleLogic
        logic.SetSegmentStatus(segment, logic.InProgress)
        segmentation_node.GetSegmentation().AddSegment(segment)
        segment_id = segmentation_node.GetSegmentation().GetSegmentIdBySegment(segment)
        made = cls(segmentation_node, segment_id, frame, axis)
        made._made = True
        return made

    @classmethod
    def resume(cls, segmentation_node: Any, segment_id: str, frame: Frame, axis: int) -> ResultSegment:
        """A segment that is there, of an earlier run; what a user has changed in it since counts as by hand."""
        taken = cls(segmentation_node, segment_id, frame, axis)
        taken._before = taken.read()
        taken._record_before, taken._painted_before = (get_tag(taken.segment, tag) for tag in (RECORD_TAG, PAINTED_TAG))
        return taken

    def record_painted(self, template: SegmentTemplate) -> None:
        """Records what the painted segment holds, if it is in this segmentation: what is added to it later is new."""
        if template.is_in(self.segmentation_node):
            self._painted = read_clipped(self.segmentation_node, template.source, self.frame)
            self.segment.SetTag(PAINTED_TAG, encode_mask(self._painted))

    @cached_property
    def newly_painted(self) -> set[int]:
        """The slices on which something was added to the painted segment between the run before and this one."""
        before = decode_mask(self._painted_before, self.frame.geometry.shape)
        if before is None or self._painted is None:
            return set()
        return added_slices(self._painted, before, self.axis)

    @property
    def changed_during_run(self) -> set[int]:
        """Slices by hand that a user has changed since the run began, as of the last :meth:`refresh`."""
        if self._made:
            return set(self.corrected)
        before = slice_digests(self._before.keep_slices(self.axis, self.corrected), self.axis)
        return {index for index in self.corrected if self._digests.get(index) != before.get(index)}

    def has_digest(self, index: int, digest: str | None) -> bool:
        """Whether a slice by hand is that of a digest, None = empty; as of the last :meth:`refresh`."""
        return self._digests.get(index) == digest

    @property
    def exists(self) -> bool:
        """Whether the segment is in the segmentation."""
        return self.segmentation_node.GetSegmentation().GetSegment(self.segment_id) is not None

    @property
    def segment(self) -> Any:
        """The vtkSegment; raises :class:`.segment.SegmentNotFound`."""
        return get_segment(self.segmentation_node, self.segment_id)

    def read(self) -> VoxelBox:
        """All that it holds now, bool."""
        return read_clipped(self.segmentation_node, self.segment_id, self.frame)

    def refresh(self) -> bool:
        """Looks at what others have changed; whether there was anything."""
        stamp = get_labelmap(self.segmentation_node, self.segment_id).GetMTime()
        if stamp == self._seen:
            return False
        content = self.read()
        record = SliceDigests.read_tag(self.segment)
        self._record = record if record is not None and record.axis == self.axis else SliceDigests(self.axis)
        digests = slice_digests(content, self.axis)
        self.corrected = self._record.differing(digests)
        self._digests = {index: digests[index] for index in self.corrected & digests.keys()}
        self._counts = _count_by_slice(content, self.axis)
        self._seen = stamp
        return True

    @property
    def voxel_count(self) -> int:
        """How many it holds, as of the last :meth:`refresh`; counted slice by slice, and only where it changes."""
        return sum(self._counts.values())

    def has_written(self, index: int) -> bool:
        """Whether a slice, not left empty, was written and is still known to be."""
        return index in self._record.digests

    def write(self, indices: Collection[int], wanted: VoxelBox) -> None:
        """Makes some slices what they are in a piece, bool; all others stay.

        A slice changed by hand that already is what is wanted stays one changed by hand.
        """
        self.refresh()
        digests = slice_digests(wanted, self.axis)
        changed = {index for index in indices if digests.get(index) != self._record.digests.get(index)}
        changed -= self._same_by_hand(changed & self.corrected, digests)
        if not changed:
            return
        self._remove_surface()
        kept = wanted.keep_slices(self.axis, changed)
        write_slices(self.segmentation_node, self.segment_id, self.frame, self.axis, changed, kept)
        self._remember(changed, digests, kept)

    def restore(self, kept: Collection[int]) -> None:
        """Makes it what it was before the run, but for some slices, which stay as they are now.

        A segment that was made for the run is removed where nothing of it stays.
        """
        content = self.read()
        staying = content.keep_slices(self.axis, kept)
        if self._made and not staying.voxels.size and not self.corrected.intersection(kept):
            self.segmentation_node.GetSegmentation().RemoveSegment(self.segment_id)
            return
        self._remove_surface()
        merged = self._before.replace_slices(self.axis, kept, staying)
        replace_segment(self.segmentation_node, self.segment_id, merged, self.frame)
        if self._made:
            written = {index: digest for index, digest in self._record.digests.items() if index in kept}
            SliceDigests(self.axis, written).write_tag(self.segment)
            return
        self.segment.SetTag(RECORD_TAG, self._record_before)
        self.segment.SetTag(PAINTED_TAG, self._painted_without_run(kept))

    def _painted_without_run(self, kept: Collection[int]) -> str:
        """The record of the painted segment: of slices that stay as of this run, of all others as of the one before."""
        before = decode_mask(self._painted_before, self.frame.geometry.shape)
        if not kept or before is None or self._painted is None:
            return self._painted_before
        return encode_mask(before.replace_slices(self.axis, kept, self._painted))

    def _same_by_hand(self, indices: set[int], digests: dict[int, str]) -> set[int]:
        if not indices:
            return set()
        found = slice_digests(self.read(), self.axis)
        return {index for index in indices if found.get(index) == digests.get(index)}

    def _remember(self, indices: set[int], digests: dict[int, str], written: VoxelBox) -> None:
        for index in indices:
            self._record.digests.pop(index, None)
            self._counts.pop(index, None)
        self._record.digests |= {index: digests[index] for index in indices & digests.keys()}
        self._counts |= _count_by_slice(written, self.axis)
        self.corrected -= indices
        self._record.write_tag(self.segment)
        self._seen = get_labelmap(self.segmentation_node, self.segment_id).GetMTime()

    def _remove_surface(self) -> None:
        """Without it, Slicer would make the surface anew with every write."""
        if self.segment.GetRepresentation(SURFACE) is not None:
            self.segment.RemoveRepresentation(SURFACE)
            self.surface_due = True


def _count_by_slice(piece: VoxelBox, axis: int) -> dict[int, int]:
    return {index: int(np.count_nonzero(mask)) for index, mask in piece.slices(axis).items()}


def _name(segmentation_node: Any, template: SegmentTemplate, scan: Scan) -> str:
    segmentation = segmentation_node.GetSegmentation()
    taken = {segmentation.GetSegment(one).GetName() for one in segmentation.GetSegmentIDs()}
    frame = [scan.frame_text] if scan.frame_text else []
    name = f"{template.name} ({', '.join(['SDFSMIS', *frame])})"
    return f"{template.name} ({', '.join(['SDFSMIS', scan.name, *frame])})" if name in taken else name


class ResultUnavailable(InputError):
    """What the results are written into is gone: deleted, undone, closed, or moved."""


class OutputSegmentation:
    """A segmentation, and how a volume's grid lies in it, as it was in the beginning.

    Attributes:
        frame: the volume's grid in the segmentation.

    Raises:
        InputError: where a transform that is not linear lies between volume and segmentation.
    """

    def __init__(self, volume_node: Any, segmentation_node: Any, scan: Scan) -> None:
        self.frame = Frame.of(volume_node, segmentation_node)
        self._volume_node, self._segmentation_node, self._scan = volume_node, segmentation_node, scan
        self._segmentation_frame = SequenceFrame.of(segmentation_node)

    @property
    def exists(self) -> bool:
        """Whether the segmentation is in a scene."""
        return _is_present(self._segmentation_node)

    @property
    def scan_changed(self) -> bool:
        """Whether the volume does not show what the scan is."""
        return not (_is_present(self._volume_node) and self._scan.is_shown_by(self._volume_node))

    def check(self) -> None:
        """Raises :class:`ResultUnavailable` where nothing can be written as it could in the beginning.

        Another frame of the scan's sequence may be shown: it may have another grid, and what is written lies where it
        lay.
        """
        for node, what in ((self._segmentation_node, "segmentation"), (self._volume_node, "scan")):
            if not _is_present(node):
                raise ResultUnavailable(
                    f"The {what} was deleted, or the scene closed; results cannot be written any more."
                )
        began, now = self._segmentation_frame, SequenceFrame.of(self._segmentation_node)
        if now != began:
            raise ResultUnavailable(
                f"The segmentation shows {now.text if now else 'no frame of a sequence'}, and the run began in "
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


def _is_present(node: Any) -> bool:
    """Whether a node is in a scene."""
    return node.GetScene() is not None and bool(node.GetScene().IsNodePresent(node))
