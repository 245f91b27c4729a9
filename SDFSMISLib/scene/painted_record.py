"""The record of what the painted segment held when a run began; it stays with the result, as one of its tags.

So it is known later where something was added to the painted segment, and where a stroke in the result only took from
it.
"""

from __future__ import annotations

import base64
import binascii
import math
import re

from SDFSMISLib.scene.piece import Index, Piece
from SDFSMISLib.wire import WireError, pack_array, unpack_array

__all__ = ["PAINTED_TAG", "added_slices", "painted_record", "painted_text"]

PAINTED_TAG = "SDFSMIS.Painted"
RECORD = re.compile(r"(\d{1,9}) (\d{1,9}) (\d{1,9}) ([A-Za-z0-9+/=]+)")


def painted_text(piece: Piece) -> str:
    """A bool piece as the text of a tag: some hundred characters a slice."""
    return " ".join([*map(str, piece.start), base64.b64encode(pack_array(piece.voxels)).decode()])


def painted_record(text: str, shape: Index) -> Piece | None:
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
    return Piece((int(found[1]), int(found[2]), int(found[3])), voxels)


def added_slices(now: Piece, before: Piece, axis: int) -> set[int]:
    """The slices along an array axis on which a bool piece has voxels that another one has not."""
    return set(Piece(now.start, now.voxels & ~before.cut(now.start, now.stop)).slices(axis))
