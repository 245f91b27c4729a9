"""Changes of a segment's content, in place where that can be done, so that they cost what is changed."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from SDFSMISLib.images.geometry import Geometry
from SDFSMISLib.scene.frame import Frame, vtk_matrix
from SDFSMISLib.scene.piece import Index, Piece, box_around
from SDFSMISLib.scene.segment import read_within
from SDFSMISLib.scene.segment_labelmap import LABELMAP, SURFACE, SegmentLabelmap, labelmap_of, segment_of, view_of

__all__ = ["clear_in_segment", "replace_segment", "write_slices"]

LEAST_ROOM = 16  # voxels by which a labelmap becomes larger than it has to, at least


def write_slices(
    segmentation_node: Any, segment_id: str, frame: Frame, axis: int, indices: Collection[int], wanted: Piece
) -> None:
    """Makes some slices of a segment what they are in a piece of the volume's grid; all others stay.

    Other segments stay as they are, and so do their surfaces. Voxels are changed in place: the time goes by what is
    written, not by what the segment holds, but for where its labelmap has to become larger, which it does with room to
    spare.

    Args:
        axis: array axis along which slices are counted.
        wanted: bool; nothing outside the slices.
    """
    _make_own(segmentation_node, segment_id, frame, wanted)
    labelmap = SegmentLabelmap.of(segmentation_node, segment_id, frame)
    here = labelmap.on_volume()
    start, stop = list(here.start), list(here.stop)
    start[axis], stop[axis] = max(start[axis], min(indices)), min(stop[axis], max(indices) + 1)
    if start[axis] < stop[axis]:
        mask = wanted.cut((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
        values = np.multiply(mask, labelmap.value, dtype=here.voxels.dtype)
        along = np.moveaxis(here.voxels, axis, 0)[start[axis] - here.start[axis] :]
        for number, plane in enumerate(np.moveaxis(values, axis, 0)):
            if start[axis] + number in indices:
                along[number] = plane
    _tell(segmentation_node, segment_id)


def clear_in_segment(segmentation_node: Any, segment_id: str, frame: Frame, piece: Piece) -> bool:
    """Takes a piece of the volume's grid, bool, away from a segment; whether it held any of it.

    Others stay as they are. The segment's surface is not remade; it is removed where the segment changes.
    """
    labelmap = SegmentLabelmap.of(segmentation_node, segment_id, frame)
    if labelmap.shift() is None:
        held = read_within(segmentation_node, segment_id, frame)
        both = Piece(piece.start, piece.voxels & held.cut(piece.start, piece.stop)).trimmed()
        if both.voxels.size:
            segment_of(segmentation_node, segment_id).RemoveRepresentation(SURFACE)
            _resample_and_clear(segmentation_node, segment_id, both, frame)
        return bool(both.voxels.size)
    here = labelmap.on_volume()
    low, high = np.maximum(here.start, piece.start), np.minimum(here.stop, piece.stop)
    if (low >= high).any():
        return False
    into = here.voxels[tuple(slice(a - s, b - s) for a, b, s in zip(low, high, here.start, strict=True))]
    taken = piece.voxels[tuple(slice(a - s, b - s) for a, b, s in zip(low, high, piece.start, strict=True))]
    taken = taken & (into == labelmap.value)
    if not taken.any():
        return False
    np.copyto(into, 0, where=taken)
    segment_of(segmentation_node, segment_id).RemoveRepresentation(SURFACE)
    _tell(segmentation_node, segment_id)
    return True


def replace_segment(segmentation_node: Any, segment_id: str, piece: Piece, frame: Frame) -> None:
    """Makes a piece of the volume's grid, bool, all that a segment holds.

    Other segments stay as they are. The segment's surface is not remade if it was removed beforehand.
    """
    import slicer

    logic = slicer.vtkSlicerSegmentationsModuleLogic
    held = piece if piece.voxels.size else Piece((0, 0, 0), np.zeros((1, 1, 1), dtype=bool))
    image = _oriented_image(held, frame.image_to_segmentation)
    logic.SetBinaryLabelmapToSegment(image, segmentation_node, segment_id, logic.MODE_REPLACE)


def _make_own(segmentation_node: Any, segment_id: str, frame: Frame, wanted: Piece) -> None:
    """Gives a segment a labelmap that is its own, on the volume's lattice, and large enough for a piece."""
    segmentation, image = segmentation_node.GetSegmentation(), labelmap_of(segmentation_node, segment_id)
    sharing = [
        one for one in segmentation.GetSegmentIDs() if segmentation.GetSegment(one).GetRepresentation(LABELMAP) is image
    ]
    if len(sharing) > 1:
        segmentation.SeparateSegmentLabelmap(segment_id)
    labelmap = SegmentLabelmap.of(segmentation_node, segment_id, frame)
    if labelmap.shift() is None:
        replace_segment(segmentation_node, segment_id, read_within(segmentation_node, segment_id, frame), frame)
        labelmap = SegmentLabelmap.of(segmentation_node, segment_id, frame)
    here = labelmap.on_volume()
    start, stop = box_around(here, wanted)
    if (start, stop) != box_around(here):
        low, high = _with_room(here, start, stop, frame.geometry)
        _enlarge(segment_of(segmentation_node, segment_id), labelmap, low, high)


def _with_room(here: Piece, start: Index, stop: Index, geometry: Geometry) -> tuple[Index, Index]:
    """A box that is enlarged some more on each side on which it is larger than a piece, within the grid."""
    low, high = list(start), list(stop)
    for axis, side in enumerate(geometry.shape):
        room = max(LEAST_ROOM, (stop[axis] - start[axis]) // 4)
        if not here.voxels.size or start[axis] < here.start[axis]:
            low[axis] = min(start[axis], max(0, start[axis] - room))
        if not here.voxels.size or stop[axis] > here.stop[axis]:
            high[axis] = max(stop[axis], min(side, stop[axis] + room))
    return (low[0], low[1], low[2]), (high[0], high[1], high[2])


def _enlarge(segment: Any, labelmap: SegmentLabelmap, start: Index, stop: Index) -> None:
    """Makes the labelmap, which no other segment shares, reach over a box of the volume's grid that holds all of it.

    It becomes another image: changing the extent of the one that is there would have the segmentation throw away the
    surfaces of all segments.
    """
    import slicer
    from vtkmodules.vtkCommonCore import VTK_UNSIGNED_CHAR

    here, image = labelmap.on_volume(), slicer.vtkOrientedImageData()
    image.SetExtent([edge for a, b in zip(start[::-1], stop[::-1], strict=True) for edge in (a, b - 1)])
    image.AllocateScalars(VTK_UNSIGNED_CHAR, 1)
    image.SetGeometryFromImageToWorldMatrix(vtk_matrix(labelmap.frame.image_to_segmentation))
    voxels = view_of(image).voxels
    voxels[...] = 0
    into = tuple(slice(a - s, b - s) for a, b, s in zip(here.start, here.stop, start, strict=True))
    if here.voxels.size:
        np.equal(here.voxels, labelmap.value, out=voxels[into].view(bool))
    if labelmap.value != 1:
        segment.SetLabelValue(1)
    segment.AddRepresentation(LABELMAP, image)


def _resample_and_clear(segmentation_node: Any, segment_id: str, piece: Piece, frame: Frame) -> None:
    """Takes a piece of another lattice away from a segment; Slicer resamples it for that."""
    import slicer

    logic = slicer.vtkSlicerSegmentationsModuleLogic
    rest = _oriented_image(Piece(piece.start, ~piece.voxels), frame.image_to_segmentation)
    logic.SetBinaryLabelmapToSegment(rest, segmentation_node, segment_id, logic.MODE_MERGE_MIN)


def _tell(segmentation_node: Any, segment_id: str) -> None:
    """Tells all who observe a segment that its voxels were changed in place, as Slicer's logic does it.

    The image itself is not told: at that the segmentation would throw away the surfaces of all segments.
    """
    import slicer

    scalars = labelmap_of(segmentation_node, segment_id).GetPointData().GetScalars()
    if scalars is not None:
        scalars.Modified()
    segmentation = segmentation_node.GetSegmentation()
    segmentation.InvokeEvent(slicer.vtkSegmentation.SourceRepresentationModified, segment_id)
    segmentation.InvokeEvent(slicer.vtkSegmentation.RepresentationModified, segment_id)


def _oriented_image(piece: Piece, image_to_frame: np.ndarray) -> Any:
    """A vtkOrientedImageData of a bool piece; a copy."""
    import slicer
    from vtkmodules.util.numpy_support import numpy_to_vtk

    image = slicer.vtkOrientedImageData()
    image.SetExtent([edge for a, b in zip(piece.start[::-1], piece.stop[::-1], strict=True) for edge in (a, b - 1)])
    scalars = numpy_to_vtk(np.ascontiguousarray(piece.voxels).view(np.uint8).ravel(), deep=True)
    scalars.SetName("ImageScalars")
    image.GetPointData().SetScalars(scalars)
    image.SetGeometryFromImageToWorldMatrix(vtk_matrix(image_to_frame))
    return image
