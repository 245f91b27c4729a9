"""The record of what a run wrote, slice by slice; it stays with the segment, so corrections by hand can be told apart.

It is one of the segment's tags. Undo takes it back with the voxels, and it is saved and loaded with the scene.

The record of what the painted segment held when a run began; it stays with the result, as one of its tags.

So it is known later where something was added to the painted segment, and where a stroke in the result only took from
it.

Segment looks: what a result takes over from the segment that was painted, and how that is known again.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import re
import secrets
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from SDFSMISLib.images.labelmap import bounding_box
from SDFSMISLib.scene.frame import Index, VoxelBox
from SDFSMISLib.scene.segment_voxels import get_segment
from SDFSMISLib.wire import WireError, pack_array, unpack_array

RECORD_TAG = "SDFSMIS.Slices"
ENTRY = re.compile(r"(\d+)=([0-9a-f]{8})")


@dataclass
class SliceDigests:
    """What slices of a segment held at some time, such as after they were written.

    Attributes:
        axis: array axis along which the slices are counted.
        digests: of each slice that was not empty, by index.
    """

    axis: int
    digests: dict[int, str] = field(default_factory=dict)

    @classmethod
    def read_tag(cls, segment: Any) -> SliceDigests | None:
        """The record that a vtkSegment carries; None where it has none, or what it has is none."""
        axis, *entries = get_tag(segment, RECORD_TAG).split() or [""]
        found = [ENTRY.fullmatch(entry) for entry in entries]
        if axis not in ("0", "1", "2") or None in found:
            return None
        return cls(int(axis), {int(match[1]): match[2] for match in found if match is not None})

    def write_tag(self, segment: Any) -> None:
        """Makes it the record of a vtkSegment."""
        entries = [f"{index}={self.digests[index]}" for index in sorted(self.digests)]
        segment.SetTag(RECORD_TAG, " ".join([str(self.axis), *entries]))

    def changed_slices(self, content: VoxelBox) -> set[int]:
        """The slices of a segment's content that are not as they were."""
        return self.differing(slice_digests(content, self.axis))

    def differing(self, found: Mapping[int, str]) -> set[int]:
        """The slices whose digests are others than those that were found, by index; a slice without one is empty."""
        return {index for index in found.keys() | self.digests.keys() if found.get(index) != self.digests.get(index)}


def slice_digests(piece: VoxelBox, axis: int) -> dict[int, str]:
    """8 hexadecimal digits for each slice of a bool piece that is not empty, by index along an array axis.

    They stand for the voxels and their place, not for the size of the piece.
    """
    rows, columns = (piece.start[other] for other in range(3) if other != axis)
    digests = {}
    for index, mask in piece.slices(axis).items():
        box = bounding_box(mask)
        assert box is not None
        part = mask[box]
        place = f"{rows + box[0].start} {columns + box[1].start} {part.shape}".encode()
        digests[index] = f"{zlib.crc32(np.packbits(part).data, zlib.crc32(place)):08x}"
    return digests


def get_tag(segment: Any, name: str) -> str:
    """The value of a vtkSegment's tag; "" where it has none."""
    from vtkmodules.vtkCommonCore import reference

    value = reference("")
    return str(value) if segment.GetTag(name, value) else ""


PAINTED_TAG = "SDFSMIS.Painted"
RECORD = re.compile(r"(\d{1,9}) (\d{1,9}) (\d{1,9}) ([A-Za-z0-9+/=]+)")


def encode_mask(piece: VoxelBox) -> str:
    """A bool piece as the text of a tag: some hundred characters a slice."""
    return " ".join([*map(str, piece.start), base64.b64encode(pack_array(piece.voxels)).decode()])


def decode_mask(text: str, shape: Index) -> VoxelBox | None:
    """The piece of such a text; None where it is empty or damaged.

    Args:
        shape: ``(slices, height, width)`` of the volume; nothing larger is unpacked.
    """
    found = RECORD.fullmatch(text)
    if found is None:
        return None
    try:
        voxels = unpack_array(base64.b64decode(found[4]), math.prod(shape))
    except (WireError, binascii.Error):
        return None
    if voxels.dtype != bool or voxels.ndim != 3:
        return None
    return VoxelBox((int(found[1]), int(found[2]), int(found[3])), voxels)


def added_slices(now: VoxelBox, before: VoxelBox, axis: int) -> set[int]:
    """The slices along an array axis on which a bool piece has voxels that another one has not."""
    return set(VoxelBox(now.start, now.voxels & ~before.crop_or_pad(now.start, now.stop)).slices(axis))


IDENTITY_TAG = "SDFSMIS.Identity"


@dataclass(frozen=True)
class SegmentTemplate:
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
    def of(cls, segmentation_node: Any, segment_id: str) -> SegmentTemplate:
        """That of a segment; raises :class:`.segment.SegmentNotFound` where there is no such segment.

        The first time, the segment gets a tag with its identity. It is saved and loaded with the segment, and stays
        where segment, segmentation or scan are renamed.
        """
        import slicer

        segment = get_segment(segmentation_node, segment_id)
        if not get_tag(segment, IDENTITY_TAG):
            segment.SetTag(IDENTITY_TAG, secrets.token_hex(8))
        code = get_tag(segment, slicer.vtkSegment.GetTerminologyEntryTagName())
        return cls(segment.GetName(), segment.GetColor(), code, segment_id, get_tag(segment, IDENTITY_TAG))

    @property
    def key(self) -> str:
        """16 hexadecimal digits that stand for the painted segment, or for the structure of a file."""
        return hashlib.sha256(f"{self.identity}\n{self.source}".encode()).hexdigest()[:16]

    def is_in(self, segmentation_node: Any) -> bool:
        """Whether a segmentation holds the painted segment."""
        segment = segmentation_node.GetSegmentation().GetSegment(self.source)
        return segment is not None and get_tag(segment, IDENTITY_TAG) == self.identity
