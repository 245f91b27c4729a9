"""Segments: what one holds on a volume's grid."""

from __future__ import annotations

from typing import Any

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.images.geometry import Geometry
from SDFSMISLib.images.labelmap import resample_labels
from SDFSMISLib.images.volume import Volume, match_labelmap
from SDFSMISLib.scene.frame import Frame
from SDFSMISLib.scene.piece import Index, Piece
from SDFSMISLib.scene.segment_labelmap import SegmentLabelmap, segment_of

__all__ = ["on_lattice", "read_box", "read_segment", "read_within"]


def read_segment(segmentation_node: Any, segment_id: str, frame: Frame) -> tuple[Piece, str | None]:
    """What a segment holds on the volume's grid, bool, and one line where it had to be resampled for it.

    A segment on the volume's lattice is read as it is, in milliseconds: cropped or not, alone in its labelmap or with
    others. Any other is brought onto the grid by nearest neighbour, as :func:`.volume.match_labelmap` does it.

    Raises:
        SegmentGone: where there is no such segment.
        InputError: where it is no labelmap, or lies outside the volume as a whole or by more than 1 %.
    """
    labelmap = SegmentLabelmap.of(segmentation_node, segment_id, frame)
    held, shift = labelmap.content(), labelmap.shift()
    if shift is not None:
        piece = held.moved(shift)
        if not piece.voxels.size or _lies_within(piece, frame.geometry):
            return piece, None
    name = segment_of(segmentation_node, segment_id).GetName()
    try:
        volume = Volume(held.voxels.view(np.uint8), labelmap.geometry(held))
        matched, message = match_labelmap(volume, frame.geometry)
    except InputError as error:
        raise InputError(f"The segment {name} does not fit the scan: {error}") from error
    return Piece((0, 0, 0), matched.voxels.view(bool)).trimmed(), f"{name}: {message}"


def read_within(segmentation_node: Any, segment_id: str, frame: Frame) -> Piece:
    """As :func:`read_segment`, but what lies outside the volume is just left out, however much it is."""
    labelmap = SegmentLabelmap.of(segmentation_node, segment_id, frame)
    held, shift = labelmap.content(), labelmap.shift()
    if shift is None:
        voxels, _ = resample_labels(held.voxels.view(np.uint8), labelmap.geometry(held), frame.geometry)
        return Piece((0, 0, 0), voxels.view(bool)).trimmed()
    piece = held.moved(shift)
    if not piece.voxels.size or _lies_within(piece, frame.geometry):
        return piece
    return Piece((0, 0, 0), piece.cut((0, 0, 0), frame.geometry.shape)).trimmed()


def read_box(segmentation_node: Any, segment_id: str, frame: Frame, start: Index, stop: Index) -> np.ndarray:
    """What a segment holds from ``start`` to before ``stop`` of the volume's grid, bool of that shape.

    On the volume's lattice nothing else is looked at.
    """
    labelmap = SegmentLabelmap.of(segmentation_node, segment_id, frame)
    if labelmap.shift() is None:
        return read_within(segmentation_node, segment_id, frame).cut(start, stop)
    return labelmap.on_volume().cut(start, stop) == labelmap.value


def on_lattice(segmentation_node: Any, segment_id: str, frame: Frame) -> bool:
    """Whether a segment's voxels are voxels of the volume; an empty one's are.

    Raises as :func:`labelmap_of`.
    """
    return SegmentLabelmap.of(segmentation_node, segment_id, frame).shift() is not None


def _lies_within(piece: Piece, geometry: Geometry) -> bool:
    return min(piece.start) >= 0 and bool(np.less_equal(piece.stop, geometry.shape).all())
