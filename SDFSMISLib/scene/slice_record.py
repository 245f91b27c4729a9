"""The record of what a run wrote, slice by slice; it stays with the segment, so corrections by hand can be told apart.

It is one of the segment's tags. Undo takes it back with the voxels, and it is saved and loaded with the scene.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from SDFSMISLib.scene.piece import Piece

__all__ = ["RECORD_TAG", "SliceRecord", "slice_digests", "tag_of"]

RECORD_TAG = "SDFSMIS.Slices"
ENTRY = re.compile(r"(\d+)=([0-9a-f]{8})")


@dataclass
class SliceRecord:
    """What slices of a segment held at some time, such as after they were written.

    Attributes:
        axis: array axis along which the slices are counted.
        digests: of each slice that was not empty, by index.
    """

    axis: int
    digests: dict[int, str] = field(default_factory=dict)

    @classmethod
    def on(cls, segment: Any) -> SliceRecord | None:
        """The record that a vtkSegment carries; None where it has none, or what it has is none."""
        axis, *entries = tag_of(segment, RECORD_TAG).split() or [""]
        found = [ENTRY.fullmatch(entry) for entry in entries]
        if axis not in ("0", "1", "2") or None in found:
            return None
        return cls(int(axis), {int(match[1]): match[2] for match in found if match is not None})

    def put_on(self, segment: Any) -> None:
        """Makes it the record of a vtkSegment."""
        entries = [f"{index}={self.digests[index]}" for index in sorted(self.digests)]
        segment.SetTag(RECORD_TAG, " ".join([str(self.axis), *entries]))

    def changed(self, content: Piece) -> set[int]:
        """The slices of a segment's content that are not as they were."""
        return self.differing(slice_digests(content, self.axis))

    def differing(self, found: Mapping[int, str]) -> set[int]:
        """The slices whose digests are others than those that were found, by index; a slice without one is empty."""
        return {index for index in found.keys() | self.digests.keys() if found.get(index) != self.digests.get(index)}


def slice_digests(piece: Piece, axis: int) -> dict[int, str]:
    """8 hexadecimal digits for each slice of a bool piece that is not empty, by index along an array axis.

    They stand for the voxels and their place, not for the size of the piece.
    """
    rows, columns = (piece.start[other] for other in range(3) if other != axis)
    digests = {}
    for index, mask in piece.slices(axis).items():
        down, across = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        part = mask[down[0] : down[-1] + 1, across[0] : across[-1] + 1]
        place = f"{rows + down[0]} {columns + across[0]} {part.shape}".encode()
        digests[index] = f"{zlib.crc32(np.packbits(part).data, zlib.crc32(place)):08x}"
    return digests


def tag_of(segment: Any, name: str) -> str:
    """The value of a vtkSegment's tag; "" where it has none."""
    from vtkmodules.vtkCommonCore import reference

    value = reference("")
    return str(value) if segment.GetTag(name, value) else ""
