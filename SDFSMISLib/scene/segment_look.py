"""Segment looks: what a result takes over from the segment that was painted, and how that is known again."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import Any

from SDFSMISLib.scene.segment_labelmap import segment_of
from SDFSMISLib.scene.slice_record import tag_of

__all__ = ["SegmentLook"]

IDENTITY_TAG = "SDFSMIS.Identity"


@dataclass(frozen=True)
class SegmentLook:
    """What a result takes over from the segment that was painted.

    Attributes:
        name: of the structure.
        color: red, green, blue from 0 to 1; None = Slicer chooses.
        terminology: the code of the structure, as Slicer writes it; "" = none.
        source: ID of the painted segment; "" = none, as for a support set from a file.
        identity: what tells the painted segment from one of the same ID in another segmentation, or of an earlier one
            that was deleted; "" = it is no segment.
    """

    name: str
    color: tuple[float, float, float] | None = None
    terminology: str = ""
    source: str = ""
    identity: str = ""

    @classmethod
    def of(cls, segmentation_node: Any, segment_id: str) -> SegmentLook:
        """That of a segment; raises :class:`.segment.SegmentGone` where there is no such segment.

        The first time, the segment gets a tag with its identity. It is saved and loaded with the segment, and stays
        where segment, segmentation or scan are renamed.
        """
        import slicer

        segment = segment_of(segmentation_node, segment_id)
        if not tag_of(segment, IDENTITY_TAG):
            segment.SetTag(IDENTITY_TAG, secrets.token_hex(8))
        code = tag_of(segment, slicer.vtkSegment.GetTerminologyEntryTagName())
        return cls(segment.GetName(), segment.GetColor(), code, segment_id, tag_of(segment, IDENTITY_TAG))

    @property
    def key(self) -> str:
        """16 hexadecimal digits that stand for the painted segment, or for the structure of a file."""
        return hashlib.sha256(f"{self.identity}\n{self.source}".encode()).hexdigest()[:16]

    def is_in(self, segmentation_node: Any) -> bool:
        """Whether a segmentation holds the painted segment."""
        segment = segmentation_node.GetSegmentation().GetSegment(self.source)
        return segment is not None and tag_of(segment, IDENTITY_TAG) == self.identity
