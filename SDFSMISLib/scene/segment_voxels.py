"""The voxels of a segment on a volume's grid: read, written in place, and erased.

Several segments can share one labelmap image, each with a value of its own. A labelmap has its own extent, and often
the volume's lattice: its voxels are voxels of the volume, and an integer offset leads from one index to the other. Such
labelmaps are read as they are and changed in place, so that the time depends on the change and not on the segment;
others are resampled.
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
    as_index,
    enclosing_extent,
    ijk_to_ras,
    part_geometry,
    vtk_matrix_from_array,
)

LABELMAP, SURFACE = "Binary labelmap", "Closed surface"  # Slicer's names of the representations
SPARE_VOXELS = 16  # by which a labelmap that has to grow grows further, at least


class SegmentNotFound(InputError):
    """A segment is not in the segmentation any more."""


def get_segment(segmentation_node: Any, segment_id: str) -> Any:
    """The vtkSegment of an ID.

    Raises:
        SegmentNotFound: if there is no such segment.
    """
    segment = segmentation_node.GetSegmentation().GetSegment(segment_id)
    if segment is None:
        raise SegmentNotFound(
            f"The segmentation {segmentation_node.GetName()} has no segment {segment_id} any more; choose another."
        )
    return segment


def get_labelmap(segmentation_node: Any, segment_id: str) -> Any:
    """The vtkOrientedImageData that holds a segment, possibly together with others.

    Raises:
        SegmentNotFound: if there is no such segment.
        InputError: if the segmentation consists of surfaces, not of labelmaps.
    """
    segment = get_segment(segmentation_node, segment_id)
    image = segment.GetRepresentation(LABELMAP)
    if image is None or segmentation_node.GetSegmentation().GetSourceRepresentationName() != LABELMAP:
        raise InputError(
            f"The segmentation {segmentation_node.GetName()} is made of surfaces or fractions; make the binary "
            "labelmap its source representation (module Segmentations), or paint in another segmentation."
        )
    return image


# -- labelmap images ---------------------------------------------------------------------------------------------------


def new_labelmap(start: Index, stop: Index, index_to_ras: np.ndarray) -> Any:
    """A vtkOrientedImageData of unsigned char from ``start`` to before ``stop``; its voxels are not initialised.

    Args:
        index_to_ras: 4 × 4 from ``(i, j, k, 1)`` to the segmentation's RAS mm.
    """
    import slicer
    from vtkmodules.vtkCommonCore import VTK_UNSIGNED_CHAR

    image = slicer.vtkOrientedImageData()
    image.SetExtent([edge for a, b in zip(start[::-1], stop[::-1], strict=True) for edge in (a, b - 1)])
    image.AllocateScalars(VTK_UNSIGNED_CHAR, 1)
    image.SetGeometryFromImageToWorldMatrix(vtk_matrix_from_array(index_to_ras))
    return image


def labelmap_view(image: Any) -> VoxelBox:
    """All values of a labelmap image, in its own index; a view."""
    from vtkmodules.util.numpy_support import vtk_to_numpy

    extent, scalars = np.array(image.GetExtent()), image.GetPointData().GetScalars()
    if scalars is None or scalars.GetNumberOfTuples() == 0:
        return VoxelBox.empty()
    return VoxelBox(as_index(extent[4::-2]), vtk_to_numpy(scalars).reshape((extent[1::2] - extent[::2])[::-1] + 1))


def image_to_ras(image: Any) -> np.ndarray:
    """4 × 4 of a vtkOrientedImageData, from ``(i, j, k, 1)`` to the segmentation's RAS mm."""
    from vtkmodules.vtkCommonMath import vtkMatrix4x4

    matrix = vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    return array_from_vtk_matrix(matrix)


def lattice_offset(index_to_ras: np.ndarray, start: Index, stop: Index, geometry: Geometry) -> Index | None:
    """The voxels ``(k, j, i)`` to add to a labelmap's index for that of a grid; None if the lattices differ.

    Args:
        index_to_ras: 4 × 4 of the labelmap, from ``(i, j, k, 1)`` to RAS mm in the grid's coordinates.
        start, stop: extent of the part of the labelmap that counts.

    >>> grid = Geometry((5, 4, 4), (1.0, 1.0, 2.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
    >>> cropped = ijk_to_ras(Geometry((2, 2, 2), grid.spacing, (0.0, 1.0, 4.0), grid.direction))
    >>> lattice_offset(cropped, (0, 0, 0), (2, 2, 2), grid)
    (2, 1, 0)
    """
    to_grid = np.linalg.inv(ijk_to_ras(geometry)) @ index_to_ras
    sides = [(first, last - 1) for first, last in zip(start[::-1], stop[::-1], strict=True)]
    corners = np.array(list(itertools.product(*sides))).T
    offsets = to_grid[:3, :3] @ corners + to_grid[:3, 3:] - corners
    rounded = np.rint(offsets[:, :1])
    return None if np.abs(offsets - rounded).max() > SAME_VOXELS else as_index(rounded[::-1, 0])


@dataclass(frozen=True, eq=False)
class SegmentLabelmap:
    """The labelmap that holds a segment, and how it lies on a volume's grid.

    Attributes:
        shared: view of the whole labelmap in its own index, with all segments in it.
        value: the segment's value in it.
        index_to_volume: 4 × 4 from the labelmap's ``(i, j, k, 1)`` to the volume's RAS mm.
        frame: the volume's grid in the segmentation.

    >>> grid = Geometry((5, 4, 4), (1.0, 1.0, 2.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
    >>> values = np.zeros((5, 4, 4), np.uint8)
    >>> values[3, 2, 1:3] = 1, 2
    >>> labelmap = SegmentLabelmap(VoxelBox((0, 0, 0), values), 2, ijk_to_ras(grid), Frame(grid, np.eye(4)))
    >>> labelmap.mask().start, labelmap.offset()
    ((3, 2, 2), (0, 0, 0))
    """

    shared: VoxelBox
    value: int
    index_to_volume: np.ndarray
    frame: Frame

    @classmethod
    def of(cls, segmentation_node: Any, segment_id: str, frame: Frame) -> SegmentLabelmap:
        """The labelmap of a segment; raises as :func:`get_labelmap`."""
        image = get_labelmap(segmentation_node, segment_id)
        value = get_segment(segmentation_node, segment_id).GetLabelValue()
        return cls(labelmap_view(image), value, frame.segmentation_to_volume @ image_to_ras(image), frame)

    def mask(self) -> VoxelBox:
        """The segment's voxels, bool, trimmed, in the labelmap's own index."""
        voxels = self.shared.voxels
        filled = [np.zeros(side, dtype=bool) for side in voxels.shape]
        for k, plane in enumerate(voxels):  # plane by plane, so that no array of the labelmap's size is made
            mask = plane == self.value
            if np.count_nonzero(mask):
                filled[0][k] = True
                filled[1] |= mask.any(axis=1)
                filled[2] |= mask.any(axis=0)
        if not filled[0].any():
            return VoxelBox.empty()
        first, last = ([np.flatnonzero(side)[end] for side in filled] for end in (0, -1))
        part = VoxelBox((0, 0, 0), voxels).view(first, np.add(last, 1))
        return VoxelBox(as_index(np.add(self.shared.start, first)), part == self.value)

    def offset(self) -> Index | None:
        """The voxels to add to the labelmap's index for the volume's; None if the segment lies on another lattice."""
        offset = self._offset_of(self.shared)
        # Lattices that differ a little may agree near the segment's voxels, if not in all of the labelmap.
        return offset if offset is not None else self._offset_of(self.mask())

    def shared_on_volume(self) -> VoxelBox:
        """:attr:`shared` in the volume's index; empty if the segment is empty and on another lattice.

        Raises:
            ValueError: if the segment has voxels on another lattice.
        """
        offset = self._offset_of(self.shared)
        if offset is None:
            mask = self.mask()
            if not mask.voxels.size:
                return VoxelBox.empty()
            offset = self._offset_of(mask)
        if offset is None:
            raise ValueError("The labelmap lies on another lattice than the volume.")
        return self.shared.shifted(offset)

    def mask_on_volume(self) -> VoxelBox | None:
        """The segment's voxels, bool, trimmed, in the volume's index; None if they lie on another lattice."""
        mask, offset = self.mask(), self.offset()
        if not mask.voxels.size:
            return VoxelBox.empty()
        return None if offset is None else mask.shifted(offset)

    def mask_volume(self) -> Volume:
        """The segment's voxels, trimmed, as an image of 0 and 1 on the labelmap's own lattice."""
        mask = self.mask()
        return Volume(mask.voxels.view(np.uint8), part_geometry(self.index_to_volume, mask.start, mask.voxels.shape))

    def _offset_of(self, box: VoxelBox) -> Index | None:
        if not box.voxels.size:
            return 0, 0, 0
        return lattice_offset(self.index_to_volume, box.start, box.stop, self.frame.geometry)


# -- reading -----------------------------------------------------------------------------------------------------------


def read_segment(segmentation_node: Any, segment_id: str, frame: Frame) -> tuple[VoxelBox, str | None]:
    """The voxels of a segment on the volume's grid, bool, and a note if they had to be resampled.

    On the volume's lattice this takes milliseconds. Other segments are resampled by nearest neighbour; see
    :func:`.volume.match_labelmap`.

    Raises:
        SegmentNotFound: if there is no such segment.
        InputError: if it is no labelmap, or more than 1 % of it lies outside the volume.
    """
    labelmap = SegmentLabelmap.of(segmentation_node, segment_id, frame)
    mask = labelmap.mask_on_volume()
    if mask is not None and _lies_within(mask, frame.geometry):
        return mask, None
    name = get_segment(segmentation_node, segment_id).GetName()
    try:
        matched, message = match_labelmap(labelmap.mask_volume(), frame.geometry)
    except InputError as error:
        raise InputError(f"The segment {name} does not fit the scan: {error}") from error
    return VoxelBox((0, 0, 0), matched.voxels.view(bool)).trimmed(), f"{name}: {message}"


def read_clipped(segmentation_node: Any, segment_id: str, frame: Frame) -> VoxelBox:
    """As :func:`read_segment`, but voxels outside the volume are left out, however many they are."""
    labelmap = SegmentLabelmap.of(segmentation_node, segment_id, frame)
    mask = labelmap.mask_on_volume()
    if mask is None:
        source = labelmap.mask_volume()
        voxels, _ = resample_labels(source.voxels, source.geometry, frame.geometry)
        return VoxelBox((0, 0, 0), voxels.view(bool)).trimmed()
    if _lies_within(mask, frame.geometry):
        return mask
    return VoxelBox((0, 0, 0), mask.crop_or_pad((0, 0, 0), frame.geometry.shape)).trimmed()


def read_extent(segmentation_node: Any, segment_id: str, frame: Frame, start: Index, stop: Index) -> np.ndarray:
    """The voxels of a segment from ``start`` to before ``stop`` of the volume's grid, bool of that shape.

    On the volume's lattice, nothing else is read.
    """
    labelmap = SegmentLabelmap.of(segmentation_node, segment_id, frame)
    if labelmap.offset() is None:
        return read_clipped(segmentation_node, segment_id, frame).crop_or_pad(start, stop)
    return labelmap.shared_on_volume().crop_or_pad(start, stop) == labelmap.value


def is_on_lattice(segmentation_node: Any, segment_id: str, frame: Frame) -> bool:
    """Whether a segment's voxels are voxels of the volume; true for an empty segment.

    Raises:
        InputError: as :func:`get_labelmap`.
    """
    return SegmentLabelmap.of(segmentation_node, segment_id, frame).offset() is not None


def _lies_within(box: VoxelBox, geometry: Geometry) -> bool:
    return min(box.start) >= 0 and bool(np.less_equal(box.stop, geometry.shape).all())


# -- changing ----------------------------------------------------------------------------------------------------------


def write_slices(
    segmentation_node: Any, segment_id: str, frame: Frame, axis: int, indices: Collection[int], mask: VoxelBox
) -> None:
    """Makes some slices of a segment those of a box on the volume's grid; all other slices stay.

    Other segments and their surfaces stay as they are. Voxels are changed in place, so the time depends on what is
    written; only if the labelmap has to grow is it copied, and it grows by more than needed.

    Args:
        axis: array axis along which slices are counted.
        mask: bool; nothing outside the slices.
    """
    _make_own(segmentation_node, segment_id, frame, mask)
    labelmap = SegmentLabelmap.of(segmentation_node, segment_id, frame)
    shared = labelmap.shared_on_volume()
    start, stop = list(shared.start), list(shared.stop)
    start[axis], stop[axis] = max(start[axis], min(indices)), min(stop[axis], max(indices) + 1)
    if start[axis] < stop[axis]:
        values = mask.crop_or_pad(as_index(start), as_index(stop)) * shared.voxels.dtype.type(labelmap.value)
        target = np.moveaxis(shared.view(start, stop), axis, 0)
        for number, plane in enumerate(np.moveaxis(values, axis, 0)):
            if start[axis] + number in indices:
                target[number] = plane
    _notify_modified(segmentation_node, segment_id)


def erase_from_segment(segmentation_node: Any, segment_id: str, frame: Frame, mask: VoxelBox) -> bool:
    """Erases a bool box of the volume's grid from a segment; whether the segment held any of it.

    Other segments stay as they are. If the segment changes, its surface is removed and not recomputed.
    """
    labelmap = SegmentLabelmap.of(segmentation_node, segment_id, frame)
    if labelmap.offset() is None:
        held = read_clipped(segmentation_node, segment_id, frame)
        both = VoxelBox(mask.start, mask.voxels & held.crop_or_pad(mask.start, mask.stop)).trimmed()
        if both.voxels.size:
            get_segment(segmentation_node, segment_id).RemoveRepresentation(SURFACE)
            _merge(segmentation_node, segment_id, VoxelBox(both.start, ~both.voxels), frame, "MODE_MERGE_MIN")
        return bool(both.voxels.size)
    shared = labelmap.shared_on_volume()
    low, high = np.maximum(shared.start, mask.start), np.minimum(shared.stop, mask.stop)
    if (low >= high).any():
        return False
    values = shared.view(low, high)
    erased = mask.view(low, high) & (values == labelmap.value)
    if not erased.any():
        return False
    np.copyto(values, 0, where=erased)
    get_segment(segmentation_node, segment_id).RemoveRepresentation(SURFACE)
    _notify_modified(segmentation_node, segment_id)
    return True


def replace_segment(segmentation_node: Any, segment_id: str, mask: VoxelBox, frame: Frame) -> None:
    """Makes a bool box of the volume's grid all that a segment holds.

    Other segments stay as they are. The segment's surface is not recomputed if it was removed before.
    """
    box = mask if mask.voxels.size else VoxelBox((0, 0, 0), np.zeros((1, 1, 1), dtype=bool))
    _merge(segmentation_node, segment_id, box, frame, "MODE_REPLACE")


def _merge(segmentation_node: Any, segment_id: str, mask: VoxelBox, frame: Frame, mode: str) -> None:
    """Lets Slicer merge a bool box of the volume's grid into a segment, resampled if the lattices differ."""
    import slicer

    logic = slicer.vtkSlicerSegmentationsModuleLogic
    image = new_labelmap(mask.start, mask.stop, frame.ijk_to_segmentation)
    labelmap_view(image).voxels[...] = mask.voxels
    logic.SetBinaryLabelmapToSegment(image, segmentation_node, segment_id, getattr(logic, mode))


def _make_own(segmentation_node: Any, segment_id: str, frame: Frame, mask: VoxelBox) -> None:
    """Gives a segment a labelmap of its own, on the volume's lattice, and large enough for a box."""
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
    shared = labelmap.shared_on_volume()
    start, stop = enclosing_extent(shared, mask)
    if (start, stop) != enclosing_extent(shared):
        low, high = _with_spare(shared, start, stop, frame.geometry)
        _enlarge(get_segment(segmentation_node, segment_id), labelmap, low, high)


def _with_spare(shared: VoxelBox, start: Index, stop: Index, geometry: Geometry) -> tuple[Index, Index]:
    """An extent, enlarged further within the grid on each side on which it is larger than a box."""
    low, high = list(start), list(stop)
    for axis, side in enumerate(geometry.shape):
        spare = max(SPARE_VOXELS, (stop[axis] - start[axis]) // 4)
        if not shared.voxels.size or start[axis] < shared.start[axis]:
            low[axis] = min(start[axis], max(0, start[axis] - spare))
        if not shared.voxels.size or stop[axis] > shared.stop[axis]:
            high[axis] = max(stop[axis], min(side, stop[axis] + spare))
    return as_index(low), as_index(high)


def _enlarge(segment: Any, labelmap: SegmentLabelmap, start: Index, stop: Index) -> None:
    """Makes a labelmap that no other segment shares cover a larger extent of the volume's grid.

    The segment gets another image: if the extent of its image changed, the segmentation would remove the surfaces of
    all segments.
    """
    shared, image = labelmap.shared_on_volume(), new_labelmap(start, stop, labelmap.frame.ijk_to_segmentation)
    enlarged = VoxelBox(start, labelmap_view(image).voxels)
    enlarged.voxels[...] = 0
    if shared.voxels.size:
        np.equal(shared.voxels, labelmap.value, out=enlarged.view(shared.start, shared.stop).view(bool))
    if labelmap.value != 1:
        segment.SetLabelValue(1)
    segment.AddRepresentation(LABELMAP, image)


def _notify_modified(segmentation_node: Any, segment_id: str) -> None:
    """Notifies all observers of a segment that its voxels were changed in place, as Slicer's logic does.

    The image itself does not report a change: the segmentation would remove the surfaces of all segments.
    """
    import slicer

    scalars = get_labelmap(segmentation_node, segment_id).GetPointData().GetScalars()
    if scalars is not None:
        scalars.Modified()
    segmentation = segmentation_node.GetSegmentation()
    segmentation.InvokeEvent(slicer.vtkSegmentation.SourceRepresentationModified, segment_id)
    segmentation.InvokeEvent(slicer.vtkSegmentation.RepresentationModified, segment_id)
