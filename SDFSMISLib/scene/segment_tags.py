"""What is stored in the tags of segments, so that it is saved with the scene and follows undo.

A painted segment has a tag with its identity. A result has tags with the painted segment and the scan that it belongs
to, with its slices as they were written (and digests of them), and with what the painted segment held when the run
began. From these it is known later what a user corrected, and where something was added to the painted segment.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import re
import secrets
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from SDFSMISLib.images.labelmap import bounding_box
from SDFSMISLib.scene.frame import Index, VoxelBox, enclosing_extent
from SDFSMISLib.scene.segment_voxels import get_segment
from SDFSMISLib.wire import WireError, pack_array, unpack_array

IDENTITY_TAG = "SDFSMIS.Identity"  # of a painted segment
SOURCE_TAG, SCAN_TAG = "SDFSMIS.ResultOf", "SDFSMIS.Scan"  # of a result
SLICES_TAG, MASKS_TAG, PAINTED_TAG = "SDFSMIS.Slices", "SDFSMIS.Written", "SDFSMIS.Painted"  # of a result
SLICE_DIGEST = re.compile(r"(\d+)=([0-9a-f]{8})")
ENCODED_MASK = re.compile(r"(\d{1,9}) (\d{1,9}) (\d{1,9}) ([A-Za-z0-9+/=]+)")


def get_tag(segment: Any, name: str) -> str:
    """The value of a vtkSegment's tag; "" if it has no such tag."""
    from vtkmodules.vtkCommonCore import reference

    value = reference("")
    return str(value) if segment.GetTag(name, value) else ""


@dataclass(frozen=True)
class SegmentTemplate:
    """The properties that a result takes from the painted segment.

    Attributes:
        name: of the structure.
        color: red, green, blue from 0 to 1; None = Slicer chooses.
        terminology: the structure's code as Slicer writes it; "" = no code.
        source: ID of the painted segment; "" = no segment, as for a support set from a file.
        identity: distinguishes the painted segment from one of the same ID in another segmentation, or from a deleted
            one; "" = no segment.

    >>> liver, copy = SegmentTemplate("liver", source="Segment_1"), SegmentTemplate("right lobe", source="Segment_1")
    >>> liver.key == copy.key, len(liver.key)
    (True, 16)
    """

    name: str
    color: tuple[float, float, float] | None = None
    terminology: str = ""
    source: str = ""
    identity: str = ""

    @classmethod
    def of(cls, segmentation_node: Any, segment_id: str) -> SegmentTemplate:
        """The template of a segment, which gets an identity the first time.

        The identity is saved with the segment; renaming segment, segmentation or scan does not change it.

        Raises:
            SegmentNotFound: if there is no such segment.
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


@dataclass
class WrittenSlices:
    """What the slices of a segment held when they were written; tags of a segment.

    Attributes:
        axis: array axis along which slices are counted.
        digests: of each slice that was not empty, by index; see :func:`slice_digests`.
        masks: its voxels, as :func:`encode_mask` gives them; None = they were not stored, as in version 0.1.0.
    """

    axis: int
    digests: dict[int, str] = field(default_factory=dict)
    masks: dict[int, str] | None = field(default_factory=dict)

    @classmethod
    def read_tag(cls, segment: Any) -> WrittenSlices | None:
        """The record in a vtkSegment's tags; None if there is none, or it is damaged."""
        axis, *entries = get_tag(segment, SLICES_TAG).split() or [""]
        matches = [SLICE_DIGEST.fullmatch(entry) for entry in entries]
        if axis not in ("0", "1", "2") or None in matches:
            return None
        digests = {int(match[1]): match[2] for match in matches if match is not None}
        stored_axis, *masks = get_tag(segment, MASKS_TAG).split(", ")
        if stored_axis != axis or None in map(ENCODED_MASK.fullmatch, masks):
            return cls(int(axis), digests, None)
        return cls(int(axis), digests, {int(mask.split(" ", 3)[int(axis)]): mask for mask in masks})

    def write_tag(self, segment: Any) -> None:
        """Stores the record in a vtkSegment's tags."""
        entries = [f"{index}={self.digests[index]}" for index in sorted(self.digests)]
        segment.SetTag(SLICES_TAG, " ".join([str(self.axis), *entries]))
        masks = [] if self.masks is None else [str(self.axis), *self.masks.values()]
        segment.SetTag(MASKS_TAG, ", ".join(masks))

    def record(self, indices: Collection[int], mask: VoxelBox) -> None:
        """Takes some slices as they are in a bool box, which may hold others too."""
        kept = mask.keep_slices(self.axis, indices)
        for index in indices:
            self.digests.pop(index, None)
            if self.masks is not None:
                self.masks.pop(index, None)
        digests = slice_digests(kept, self.axis)
        self.digests |= digests
        if self.masks is not None:
            self.masks |= {index: encode_mask(kept.keep_slices(self.axis, [index])) for index in digests}

    def differing(self, current: Mapping[int, str]) -> set[int]:
        """The slices whose current digests, by index, are others; a slice without digest is empty."""
        every = current.keys() | self.digests.keys()
        return {index for index in every if current.get(index) != self.digests.get(index)}

    def changed(self, current: VoxelBox, indices: Collection[int], shape: Index) -> tuple[VoxelBox, set[int]]:
        """The voxels of some slices that are not as written, bool; and the slices of which that is not known.

        Args:
            current: bool, what the segment holds now.
            shape: of the volume.
        """
        decoded: dict[int, VoxelBox] = {}
        for index in indices:
            text = (self.masks or {}).get(index, "")
            mask = VoxelBox.empty() if index not in self.digests else decode_mask(text, shape)
            if self.masks is not None and mask is not None:
                decoded[index] = mask
        held = current.keep_slices(self.axis, decoded.keys())
        start, stop = enclosing_extent(held, *decoded.values())
        changed = VoxelBox(start, held.crop_or_pad(start, stop))
        for mask in decoded.values():
            if mask.voxels.size:
                region = changed.view(mask.start, mask.stop)
                region ^= mask.voxels
        return changed.trimmed(), set(indices) - decoded.keys()


def slice_digests(mask: VoxelBox, axis: int) -> dict[int, str]:
    """8 hexadecimal digits for each slice of a bool box that is not empty, by index along an array axis.

    They depend on the voxels and their place in the grid, not on the size of the box.

    >>> mask = np.zeros((3, 4, 4), bool)
    >>> mask[1, 2, 3] = True
    >>> slice_digests(VoxelBox((0, 0, 0), mask), 0) == slice_digests(VoxelBox((0, 0, 0), mask).trimmed(), 0)
    True
    """
    first_row, first_column = (mask.start[other] for other in range(3) if other != axis)
    digests = {}
    for index, plane in mask.slices(axis).items():
        box = bounding_box(plane)
        assert box is not None
        part = plane[box]
        place = f"{first_row + box[0].start} {first_column + box[1].start} {part.shape}".encode()
        digests[index] = f"{zlib.crc32(np.packbits(part).data, zlib.crc32(place)):08x}"
    return digests


def encode_mask(mask: VoxelBox) -> str:
    """A bool box as the text of a tag, about a hundred characters a slice.

    >>> decoded = decode_mask(encode_mask(VoxelBox((1, 2, 3), np.ones((1, 2, 2), bool))), (9, 9, 9))
    >>> decoded.start, decoded.voxels.tolist()
    ((1, 2, 3), [[[True, True], [True, True]]])
    """
    return " ".join([*map(str, mask.start), base64.b64encode(pack_array(mask.voxels)).decode()])


def decode_mask(text: str, shape: Index) -> VoxelBox | None:
    """The box of :func:`encode_mask`'s text; None if the text is empty or damaged.

    Args:
        shape: ``(slices, height, width)`` of the volume; nothing larger is unpacked.
    """
    match = ENCODED_MASK.fullmatch(text)
    if match is None:
        return None
    try:
        voxels = unpack_array(base64.b64decode(match[4]), math.prod(shape))
    except (WireError, binascii.Error):
        return None
    if voxels.dtype != bool or voxels.ndim != 3:
        return None
    return VoxelBox((int(match[1]), int(match[2]), int(match[3])), voxels)
