"""A result segment: the segment that a run writes its slices into, and what a user changes in it meanwhile."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from SDFSMISLib.scene.frame import Frame
from SDFSMISLib.scene.piece import Piece
from SDFSMISLib.scene.segment import on_lattice, read_within
from SDFSMISLib.scene.segment_change import replace_segment, write_slices
from SDFSMISLib.scene.segment_labelmap import LABELMAP, SURFACE, labelmap_of, segment_of
from SDFSMISLib.scene.sequence_frame import SequenceFrame
from SDFSMISLib.scene.slice_record import PAINTED_TAG, RECORD_TAG, SliceRecord, slice_digests, tag_of

__all__ = ["SOURCE_TAG", "ResultSegment", "SegmentLook", "find_result", "is_result_of_frame"]

SOURCE_TAG, FRAME_TAG = "SDFSMIS.ResultOf", "SDFSMIS.Frame"


@dataclass(frozen=True)
class SegmentLook:
    """What a result takes over from the segment that was painted.

    Attributes:
        name: of the structure.
        color: red, green, blue from 0 to 1; None = Slicer chooses.
        terminology: the code of the structure, as Slicer writes it; "" = none.
        source: ID of the painted segment; "" = none, as for a support set from a file.
    """

    name: str
    color: tuple[float, float, float] | None = None
    terminology: str = ""
    source: str = ""

    @classmethod
    def of(cls, segmentation_node: Any, segment_id: str) -> SegmentLook:
        """That of a segment; raises :class:`.segment.SegmentGone` where there is no such segment."""
        import slicer

        segment = segment_of(segmentation_node, segment_id)
        code = tag_of(segment, slicer.vtkSegment.GetTerminologyEntryTagName())
        return cls(segment.GetName(), segment.GetColor(), code, segment_id)


def find_result(volume_node: Any, segmentation_node: Any, source: str, axis: int) -> str | None:
    """ID of the segment that earlier runs on this volume, along this axis, wrote for a painted segment; None where
    there is none. Of a sequence it is that of the frame which the volume shows."""
    frame, segmentation = Frame.of(volume_node, segmentation_node), segmentation_node.GetSegmentation()
    shown = SequenceFrame.of(volume_node)
    for segment_id in reversed(segmentation.GetSegmentIDs()):
        segment = segmentation.GetSegment(segment_id)
        record = SliceRecord.on(segment)
        if record is not None and record.axis == axis and tag_of(segment, SOURCE_TAG) == source:
            if is_result_of_frame(segment, shown) and on_lattice(segmentation_node, segment_id, frame):
                return segment_id
    return None


def is_result_of_frame(segment: Any, frame: SequenceFrame | None) -> bool:
    """Whether a result is that of a frame of a sequence; None = of a volume that is of no sequence."""
    return tag_of(segment, FRAME_TAG) == ("" if frame is None else frame.key)


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
    by_hand: set[int] = field(default_factory=set, init=False)
    surface_due: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._seen = -1
        self._record = SliceRecord(self.axis)
        self._voxels: dict[int, int] = {}
        self._made = False
        self._before = Piece.nothing(), {RECORD_TAG: "", PAINTED_TAG: ""}

    @classmethod
    def make(
        cls, segmentation_node: Any, look: SegmentLook, frame: Frame, axis: int, of_sequence: SequenceFrame | None
    ) -> ResultSegment:
        """A new segment, alone in its labelmap, so that what is written never meets another segment.

        Its name says so where it is that of a frame of a sequence.
        """
        import slicer
        from vtkmodules.vtkCommonCore import VTK_UNSIGNED_CHAR

        image = slicer.vtkOrientedImageData()
        image.SetExtent(0, -1, 0, -1, 0, -1)
        image.AllocateScalars(VTK_UNSIGNED_CHAR, 1)
        segment = slicer.vtkSegment()
        segment.SetName(f"{look.name} (SDFSMIS{', ' + of_sequence.text if of_sequence is not None else ''})")
        if look.color is not None:
            segment.SetColor(look.color)
        if look.terminology:
            segment.SetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), look.terminology)
        segment.SetTag(SOURCE_TAG, look.source)
        if of_sequence is not None:
            segment.SetTag(FRAME_TAG, of_sequence.key)
        segment.AddRepresentation(LABELMAP, image)
        logic = slicer.vtkSlicerSegmentationsModuleLogic
        logic.SetSegmentStatus(segment, logic.InProgress)
        segmentation_node.GetSegmentation().AddSegment(segment)
        segment_id = segmentation_node.GetSegmentation().GetSegmentIdBySegment(segment)
        made = cls(segmentation_node, segment_id, frame, axis)
        made._made = True
        return made

    @classmethod
    def take(cls, segmentation_node: Any, segment_id: str, frame: Frame, axis: int) -> ResultSegment:
        """A segment that is there, of an earlier run; what a user has changed in it since counts as by hand."""
        taken = cls(segmentation_node, segment_id, frame, axis)
        taken._before = taken.content(), {tag: tag_of(taken.segment, tag) for tag in (RECORD_TAG, PAINTED_TAG)}
        return taken

    def note_painted(self, source: str) -> None:
        """Records what the painted segment holds, if there is one of this ID: what changes in it later is new."""
        if self.segmentation_node.GetSegmentation().GetSegment(source) is not None:
            painted = read_within(self.segmentation_node, source, self.frame)
            SliceRecord(self.axis, slice_digests(painted, self.axis)).put_on(self.segment, PAINTED_TAG)

    @property
    def is_there(self) -> bool:
        """Whether the segment is in the segmentation."""
        return self.segmentation_node.GetSegmentation().GetSegment(self.segment_id) is not None

    @property
    def segment(self) -> Any:
        """The vtkSegment; raises :class:`.segment.SegmentGone`."""
        return segment_of(self.segmentation_node, self.segment_id)

    def content(self) -> Piece:
        """All that it holds now, bool."""
        return read_within(self.segmentation_node, self.segment_id, self.frame)

    def refresh(self) -> bool:
        """Looks at what others have changed; whether there was anything."""
        stamp = labelmap_of(self.segmentation_node, self.segment_id).GetMTime()
        if stamp == self._seen:
            return False
        content = self.content()
        record = SliceRecord.on(self.segment)
        self._record = record if record is not None and record.axis == self.axis else SliceRecord(self.axis)
        self.by_hand = self._record.changed(content)
        self._voxels = _voxels_by_slice(content, self.axis)
        self._seen = stamp
        return True

    @property
    def voxels(self) -> int:
        """How many it holds, as of the last :meth:`refresh`; counted slice by slice, and only where it changes."""
        return sum(self._voxels.values())

    def has_written(self, index: int) -> bool:
        """Whether a slice, not left empty, was written and is still known to be."""
        return index in self._record.digests

    def write(self, indices: Collection[int], wanted: Piece) -> None:
        """Makes some slices what they are in a piece, bool; all others stay.

        A slice changed by hand that already is what is wanted stays one changed by hand.
        """
        self.refresh()
        digests = slice_digests(wanted, self.axis)
        changed = {index for index in indices if digests.get(index) != self._record.digests.get(index)}
        changed -= self._same_by_hand(changed & self.by_hand, digests)
        if not changed:
            return
        self._remove_surface()
        kept = wanted.only(self.axis, changed)
        write_slices(self.segmentation_node, self.segment_id, self.frame, self.axis, changed, kept)
        self._remember(changed, digests, kept)

    def restore(self) -> None:
        """Makes it what it was before the run: removes a segment that was made for it."""
        if self._made:
            self.segmentation_node.GetSegmentation().RemoveSegment(self.segment_id)
            return
        self._remove_surface()
        content, tags = self._before
        replace_segment(self.segmentation_node, self.segment_id, content, self.frame)
        for tag, value in tags.items():
            self.segment.SetTag(tag, value)

    def _same_by_hand(self, indices: set[int], digests: dict[int, str]) -> set[int]:
        if not indices:
            return set()
        found = slice_digests(self.content(), self.axis)
        return {index for index in indices if found.get(index) == digests.get(index)}

    def _remember(self, indices: set[int], digests: dict[int, str], written: Piece) -> None:
        for index in indices:
            self._record.digests.pop(index, None)
            self._voxels.pop(index, None)
        self._record.digests |= {index: digests[index] for index in indices & digests.keys()}
        self._voxels |= _voxels_by_slice(written, self.axis)
        self.by_hand -= indices
        self._record.put_on(self.segment)
        self._seen = labelmap_of(self.segmentation_node, self.segment_id).GetMTime()

    def _remove_surface(self) -> None:
        """Without it, Slicer would make the surface anew with every write."""
        if self.segment.GetRepresentation(SURFACE) is not None:
            self.segment.RemoveRepresentation(SURFACE)
            self.surface_due = True


def _voxels_by_slice(piece: Piece, axis: int) -> dict[int, int]:
    return {index: int(np.count_nonzero(mask)) for index, mask in piece.slices(axis).items()}
