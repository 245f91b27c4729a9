"""The labelmap of a segment: which image holds it, how its index lies on a volume's grid, and what is in it.

Segments: what one holds on a volume's grid.

Changes of a segment's content, in place where that can be done, so that they cost what is changed.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.images.geometry import Geometry
from SDFSMISLib.images.labelmap import resample_labels
from SDFSMISLib.images.volume import SAME_VOXELS, Volume, match_labelmap
from SDFSMISLib.scene.frame import (
    Frame,
    Index,
    VoxelBox,
    array_from_vtk_matrix,
    enclosing_extent,
    ijk_to_ras,
    part_geometry,
    vtk_matrix_from_array,
)

LABELMAP, SURFACE = "Binary labelmap", "Closed surface"  # Slicer's names of the representations


class SegmentNotFound(InputError):
    """A segment is not there any more."""


def get_segment(segmentation_node: Any, segment_id: str) -> Any:
    """The vtkSegment of an ID; raises :class:`SegmentNotFound`."""
    segment = segmentation_node.GetSegmentation().GetSegment(segment_id)
    if segment is None:
        raise SegmentNotFound(
            f"The segmentation {segmentation_node.GetName()} has no segment {segment_id} any more; choose another."
        )
    return segment


def get_labelmap(segmentation_node: Any, segment_id: str) -> Any:
    """The vtkOrientedImageData that holds a segment, maybe with others.

    Raises:
        SegmentNotFound: where there is no such segment.
        InputError: where the segmentation is made of surfaces, not of labelmaps.
    """
    segment = get_segment(segmentation_node, segment_id)
    image = segment.GetRepresentation(LABELMAP)
    if image is None or segmentation_node.GetSegmentation().GetSourceRepresentationName() != LABELMAP:
        raise InputError(
            f"The segmentation {segmentation_node.GetName()} is made of surfaces or fractions; make the binary "
            "labelmap its source representation (module Segmentations), or paint in another segmentation."
        )
    return image


def lattice_offset(index_to_ras: np.ndarray, start: Index, stop: Index, geometry: Geometry) -> Index | None:
    """By how many voxels ``(k, j, i)`` a labelmap's index differs from a grid's; None where the lattices differ.

    Args:
        index_to_ras: 4 × 4 of the labelmap, from ``(i, j, k, 1)`` to RAS mm in the grid's frame.
        start, stop: ``(k, j, i)`` of the part of the labelmap that counts.
    """
    to_grid = np.linalg.inv(ijk_to_ras(geometry)) @ index_to_ras
    sides = [(first, last - 1) for first, last in zip(start[::-1], stop[::-1], strict=True)]
    corners = np.array(list(itertools.product(*sides))).T
    moved = to_grid[:3, :3] @ corners + to_grid[:3, 3:] - corners
    shift = np.rint(moved[:, :1])
    if np.abs(moved - shift).max() > SAME_VOXELS:
        return None
    i, j, k = shift[:, 0].astype(int).tolist()
    return k, j, i


def image_to_ras(image: Any) -> np.ndarray:
    """4 × 4 of a vtkOrientedImageData, from ``(i, j, k, 1)`` to RAS mm in the segmentation's frame."""
    from vtkmodules.vtkCommonMath import vtkMatrix4x4

    matrix = vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    return array_from_vtk_matrix(matrix)


@dataclass(frozen=True, eq=False)
class SegmentLabelmap:
    """The labelmap of a segment: a view of what all segments that share it hold, in the labelmap's own index; the
    segment's value; 4 × 4 from the index to the volume's frame, RAS mm."""

    shared: VoxelBox
    value: int
    to_volume: np.ndarray
    frame: Frame

    @classmethod
    def of(cls, segmentation_node: Any, segment_id: str, frame: Frame) -> SegmentLabelmap:
        image = get_labelmap(segmentation_node, segment_id)
        value = get_segment(segmentation_node, segment_id).GetLabelValue()
        return cls(labelmap_view(image), value, frame.segmentation_to_volume @ image_to_ras(image), frame)

    def mask(self) -> VoxelBox:
        """What the segment holds, bool, without the zeros around it, in the labelmap's own index."""
        return _where(self.shared, self.value)

    def offset(self) -> Index | None:
        """By how much the index differs from the volume's, where something is held; None where the lattice of what is
        held is another one."""
        if not self.shared.voxels.size:
            return 0, 0, 0
        shift = self._offset_of(self.shared)
        if shift is not None:
            return shift
        held = self.mask()  # far away from it a lattice that is all but the same may not be so any more
        return self._offset_of(held) if held.voxels.size else (0, 0, 0)

    def shared_on_volume(self) -> VoxelBox:
        """:attr:`shared` in the volume's index; nothing where the segment is empty on another lattice.

        It is a ValueError where something is held on another lattice.
        """
        if not self.shared.voxels.size:
            return VoxelBox.empty()
        shift = self._offset_of(self.shared)
        if shift is None:
            held = self.mask()
            if not held.voxels.size:
                return VoxelBox.empty()
            shift = self._offset_of(held)
        if shift is None:
            raise ValueError("The labelmap lies on another lattice than the volume.")
        return self.shared.shifted(shift)

    def geometry(self, piece: VoxelBox) -> Geometry:
        """The grid of a piece in the labelmap's own index."""
        return part_geometry(self.to_volume, piece.start, piece.voxels.shape)

    def _offset_of(self, piece: VoxelBox) -> Index | None:
        return lattice_offset(self.to_volume, piece.start, piece.stop, self.frame.geometry)


def labelmap_view(image: Any) -> VoxelBox:
    """All values of a labelmap, in its own index; a view."""
    from vtkmodules.util.numpy_support import vtk_to_numpy

    extent, scalars = image.GetExtent(), image.GetPointData().GetScalars()
    if scalars is None or scalars.GetNumberOfTuples() == 0:
        return VoxelBox.empty()
    k, j, i = extent[4], extent[2], extent[0]
    return VoxelBox((k, j, i), vtk_to_numpy(scalars).reshape(np.subtract(extent[1::2], extent[::2])[::-1] + 1))


def _where(labels: VoxelBox, value: int) -> VoxelBox:
    """Where labels have a value: bool, without the zeros around it."""
    voxels = labels.voxels
    slices, rows = np.zeros(voxels.shape[0], dtype=bool), np.zeros(voxels.shape[1], dtype=bool)
    columns = np.zeros(voxels.shape[2], dtype=bool)
    for k, plane in enumerate(voxels):  # plane by plane: no array of the whole labelmap's size is made
        mask = plane == value
        if np.count_nonzero(mask):
            slices[k], rows[:], columns[:] = True, rows | mask.any(axis=1), columns | mask.any(axis=0)
    if not slices.any():
        return VoxelBox.empty()
    first, last = ([int(np.flatnonzero(side)[end]) for side in (slices, rows, columns)] for end in (0, -1))
    part = voxels[first[0] : last[0] + 1, first[1] : last[1] + 1, first[2] : last[2] + 1]
    return VoxelBox((0, 0, 0), part == value).shifted((first[0], first[1], first[2])).shifted(labels.start)


def read_segment(segmentation_node: Any, segment_id: str, frame: Frame) -> tuple[VoxelBox, str | None]:
    """What a segment holds on the volume's grid, bool, and one line where it had to be resampled for it.

    A segment on the volume's lattice is read as it is, in milliseconds: cropped or not, alone in its labelmap or with
    others. Any other is brought onto the grid by nearest neighbour, as :func:`.volume.match_labelmap` does it.

    Raises:
        SegmentNotFound: where there is no such segment.
        InputError: where it is no labelmap, or lies outside the volume as a whole or by more than 1 %.
    """
    labelmap = SegmentLabelmap.of(segmentation_node, segment_id, frame)
    held, shift = labelmap.mask(), labelmap.offset()
    if shift is not None:
        piece = held.shifted(shift)
        if not piece.voxels.size or _lies_within(piece, frame.geometry):
            return piece, None
    name = get_segment(segmentation_node, segment_id).GetName()
    try:
        volume = Volume(held.voxels.view(np.uint8), labelmap.geometry(held))
        matched, message = match_labelmap(volume, frame.geometry)
    except InputError as error:
        raise InputError(f"The segment {name} does not fit the scan: {error}") from error
    return VoxelBox((0, 0, 0), matched.voxels.view(bool)).trimmed(), f"{name}: {message}"


def read_clipped(segmentation_node: Any, segment_id: str, frame: Frame) -> VoxelBox:
    """As :func:`read_segment`, but what lies outside the volume is just left out, however much it is."""
    labelmap = SegmentLabelmap.of(segmentation_node, segment_id, frame)
    held, shift = labelmap.mask(), labelmap.offset()
    if shift is None:
        voxels, _ = resample_labels(held.voxels.view(np.uint8), labelmap.geometry(held), frame.geometry)
        return VoxelBox((0, 0, 0), voxels.view(bool)).trimmed()
    piece = held.shifted(shift)
    if not piece.voxels.size or _lies_within(piece, frame.geometry):
        return piece
    return VoxelBox((0, 0, 0), piece.crop_or_pad((0, 0, 0), frame.geometry.shape)).trimmed()


def read_extent(segmentation_node: Any, segment_id: str, frame: Frame, start: Index, stop: Index) -> np.ndarray:
    """What a segment holds from ``start`` to before ``stop`` of the volume's grid, bool of that shape.

    On the volume's lattice nothing else is looked at.
    """
    labelmap = SegmentLabelmap.of(segmentation_node, segment_id, frame)
    if labelmap.offset() is None:
        return read_clipped(segmentation_node, segment_id, frame).crop_or_pad(start, stop)
    return labelmap.shared_on_volume().crop_or_pad(start, stop) == labelmap.value


def is_on_lattice(segmentation_node: Any, segment_id: str, frame: Frame) -> bool:
    """Whether a segment's voxels are voxels of the volume; an empty one's are.

    Raises as :func:`get_labelmap`.
    """
    return SegmentLabelmap.of(segmentation_node, segment_id, frame).offset() is not None


def _lies_within(piece: VoxelBox, geometry: Geometry) -> bool:
    return min(piece.start) >= 0 and bool(np.less_equal(piece.stop, geometry.shape).all())


LEAST_ROOM = 16  # voxels by which a labelmap becomes larger than it has to, at least


def write_slices(
    segmentation_node: Any, segment_id: str, frame: Frame, axis: int, indices: Collection[int], wanted: VoxelBox
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
    here = labelmap.shared_on_volume()
    start, stop = list(here.start), list(here.stop)
    start[axis], stop[axis] = max(start[axis], min(indices)), min(stop[axis], max(indices) + 1)
    if start[axis] < stop[axis]:
        mask = wanted.crop_or_pad((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
        values = np.multiply(mask, labelmap.value, dtype=here.voxels.dtype)
        along = np.moveaxis(here.voxels, axis, 0)[start[axis] - here.start[axis] :]
        for number, plane in enumerate(np.moveaxis(values, axis, 0)):
            if start[axis] + number in indices:
                along[number] = plane
    _tell(segmentation_node, segment_id)


def erase_from_segment(segmentation_node: Any, segment_id: str, frame: Frame, piece: VoxelBox) -> bool:
    """Takes a piece of the volume's grid, bool, away from a segment; whether it held any of it.

    Others stay as they are. The segment's surface is not remade; it is removed where the segment changes.
    """
    labelmap = SegmentLabelmap.of(segmentation_node, segment_id, frame)
    if labelmap.offset() is None:
        held = read_clipped(segmentation_node, segment_id, frame)
        both = VoxelBox(piece.start, piece.voxels & held.crop_or_pad(piece.start, piece.stop)).trimmed()
        if both.voxels.size:
            get_segment(segmentation_node, segment_id).RemoveRepresentation(SURFACE)
            _resample_and_clear(segmentation_node, segment_id, both, frame)
        return bool(both.voxels.size)
    here = labelmap.shared_on_volume()
    low, high = np.maximum(here.start, piece.start), np.minimum(here.stop, piece.stop)
    if (low >= high).any():
        return False
    into = here.voxels[tuple(slice(a - s, b - s) for a, b, s in zip(low, high, here.start, strict=True))]
    taken = piece.voxels[tuple(slice(a - s, b - s) for a, b, s in zip(low, high, piece.start, strict=True))]
    taken = taken & (into == labelmap.value)
    if not taken.any():
        return False
    np.copyto(into, 0, where=taken)
    get_segment(segmentation_node, segment_id).RemoveRepresentation(SURFACE)
    _tell(segmentation_node, segment_id)
    return True


def replace_segment(segmentation_node: Any, segment_id: str, piece: VoxelBox, frame: Frame) -> None:
    """Makes a piece of the volume's grid, bool, all that a segment holds.

    Other segments stay as they are. The segment's surface is not remade if it was removed beforehand.
    """
    import slicer

    logic = slicer.vtkSlicerSegmentationsModuleLogic
    held = piece if piece.voxels.size else VoxelBox((0, 0, 0), np.zeros((1, 1, 1), dtype=bool))
    image = _oriented_image(held, frame.ijk_to_segmentation)
    logic.SetBinaryLabelmapToSegment(image, segmentation_node, segment_id, logic.MODE_REPLACE)


def _make_own(segmentation_node: Any, segment_id: str, frame: Frame, wanted: VoxelBox) -> None:
    """Gives a segment a labelmap that is its own, on the volume's lattice, and large enough for a piece."""
    segmentation, image = segmentation_node.GetSegmentation(), get_labelmap(segmentation_node, segment_id)
    sharing = [
        one for one in segmentation.GetSegmentIDs() if segmentation.GetSegment(one).GetRepresentation(LABELMAP) is image
    ]
    if len(sharing) > 1:
        segmentation.SeparateSegmentLabelmap(segment_id)
    labelmap = SegmentLabelmap.of(segmentation_node, segment_id, frame)
    if labelmap.offset() is None:
        replace_segment(segmentation_node, segment_id, read_clipped(segmentation_node, segment_id, frame), frame)
        labelmap = SegmentLabelmap.of(segmentation_node, segment_id, frame)
    here = labelmap.shared_on_volume()
    start, stop = enclosing_extent(here, wanted)
    if (start, stop) != enclosing_extent(here):
        low, high = _with_room(here, start, stop, frame.geometry)
        _enlarge(get_segment(segmentation_node, segment_id), labelmap, low, high)


def _with_room(here: VoxelBox, start: Index, stop: Index, geometry: Geometry) -> tuple[Index, Index]:
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

    here, image = labelmap.shared_on_volume(), slicer.vtkOrientedImageData()
    image.SetExtent([edge for a, b in zip(start[::-1], stop[::-1], strict=True) for edge in (a, b - 1)])
    image.AllocateScalars(VTK_UNSIGNED_CHAR, 1)
    image.SetGeometryFromImageToWorldMatrix(vtk_matrix_from_array(labelmap.frame.ijk_to_segmentation))
    voxels = labelmap_view(image).voxels
    voxels[...] = 0
    into = tuple(slice(a - s, b - s) for a, b, s in zip(here.start, here.stop, start, strict=True))
    if here.voxels.size:
        np.equal(here.voxels, labelmap.value, out=voxels[into].view(bool))
    if labelmap.value != 1:
        segment.SetLabelValue(1)
    segment.AddRepresentation(LABELMAP, image)


def _resample_and_clear(segmentation_node: Any, segment_id: str, piece: VoxelBox, frame: Frame) -> None:
    """Takes a piece of another lattice away from a segment; Slicer resamples it for that."""
    import slicer

    logic = slicer.vtkSlicerSegmentationsModuleLogic
    rest = _oriented_image(VoxelBox(piece.start, ~piece.voxels), frame.ijk_to_segmentation)
    logic.SetBinaryLabelmapToSegment(rest, segmentation_node, segment_id, logic.MODE_MERGE_MIN)


def _tell(segmentation_node: Any, segment_id: str) -> None:
    """Tells all who observe a segment that its voxels were changed in place, as Slicer's logic does it.

    The image itself is not told: at that the segmentation would throw away the surfaces of all segments.
    """
    import slicer

    scalars = get_labelmap(segmentation_node, segment_id).GetPointData().GetScalars()
    if scalars is not None:
        scalars.Modified()
    segmentation = segmentation_node.GetSegmentation()
    segmentation.InvokeEvent(slicer.vtkSegmentation.SourceRepresentationModified, segment_id)
    segmentation.InvokeEvent(slicer.vtkSegmentation.RepresentationModified, segment_id)


def _oriented_image(piece: VoxelBox, image_to_ras: np.ndarray) -> Any:
    """A vtkOrientedImageData of a bool piece; a copy."""
    import slicer
    from vtkmodules.util.numpy_support import numpy_to_vtk

    image = slicer.vtkOrientedImageData()
    image.SetExtent([edge for a, b in zip(piece.start[::-1], piece.stop[::-1], strict=True) for edge in (a, b - 1)])
    scalars = numpy_to_vtk(np.ascontiguousarray(piece.voxels).view(np.uint8).ravel(), deep=True)
    scalars.SetName("ImageScalars")
    image.GetPointData().SetScalars(scalars)
    image.SetGeometryFromImageToWorldMatrix(vtk_matrix_from_array(image_to_ras))
    return image
