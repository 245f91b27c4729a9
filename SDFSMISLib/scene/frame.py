"""Where voxels lie: a box of voxels in a volume's grid, and a volume's grid in a segmentation and in the world.

A voxel has the array index ``(k, j, i)`` in numpy and the index ``(i, j, k)`` in VTK. MRML nodes use RAS coordinates in
mm and may stand under transforms; the library uses LPS. A volume's grid always means the grid in the coordinates of the
volume node itself, without the transforms above it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from SDFSMISLib.errors import InputError
from SDFSMISLib.images.geometry import Geometry
from SDFSMISLib.images.labelmap import bounding_box

Index = tuple[int, int, int]  # (k, j, i), as arrays (slices, height, width) are indexed
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # its own inverse


def as_index(values: Iterable[Any]) -> Index:
    """Three numbers as plain integers."""
    k, j, i = (int(value) for value in values)
    return k, j, i


@dataclass(frozen=True, eq=False)
class VoxelBox:
    """A box of voxels in a larger grid that is zero outside the box.

    Attributes:
        start: array index ``(k, j, i)`` of the first voxel in the grid.
        voxels: ``(slices, height, width)`` of any dtype.

    >>> grid = np.zeros((4, 5, 6), np.uint8)
    >>> grid[1, 2:4, 3] = 7
    >>> box = VoxelBox((0, 0, 0), grid).trimmed()
    >>> box.start, box.stop
    ((1, 2, 3), (2, 4, 4))
    >>> np.array_equal(box.crop_or_pad((0, 0, 0), grid.shape), grid)
    True
    """

    start: Index
    voxels: np.ndarray

    @classmethod
    def empty(cls, dtype: npt.DTypeLike = bool) -> VoxelBox:
        """A box without voxels."""
        return cls((0, 0, 0), np.zeros((0, 0, 0), dtype=dtype))

    @property
    def stop(self) -> Index:
        """The array index after the last voxel."""
        return as_index(np.add(self.start, self.voxels.shape))

    def shifted(self, offset: Index) -> VoxelBox:
        """The same voxels, ``offset`` further along each array axis; a view."""
        return VoxelBox(as_index(np.add(self.start, offset)), self.voxels)

    def view(self, start: Iterable[int], stop: Iterable[int]) -> np.ndarray:
        """The voxels from ``start`` to before ``stop`` of the grid, which must lie inside the box; a view."""
        return self.voxels[tuple(slice(a - s, b - s) for a, b, s in zip(start, stop, self.start, strict=True))]

    def crop_or_pad(self, start: Index, stop: Index) -> np.ndarray:
        """The voxels from ``start`` to before ``stop`` of the grid, zero outside the box; a copy."""
        region = VoxelBox(start, np.zeros(np.subtract(stop, start), dtype=self.voxels.dtype))
        low, high = np.maximum(start, self.start), np.minimum(stop, self.stop)
        if (low < high).all():
            region.view(low, high)[...] = self.view(low, high)
        return region.voxels

    def trimmed(self) -> VoxelBox:
        """The box without the zeros around its content; a view."""
        sides = bounding_box(self.voxels)
        if sides is None:
            return VoxelBox.empty(self.voxels.dtype)
        return VoxelBox(as_index(np.add(self.start, [side.start for side in sides])), self.voxels[sides])

    def slices(self, axis: int) -> dict[int, np.ndarray]:
        """The slices ``(rows, columns)`` along an array axis that are not all zero, by index in the grid; views."""
        along = np.moveaxis(self.voxels, axis, 0)
        return {self.start[axis] + number: plane for number, plane in enumerate(along) if plane.any()}

    def keep_slices(self, axis: int, indices: Collection[int]) -> VoxelBox:
        """Only some slices along an array axis, trimmed; a copy."""
        inside = [index - self.start[axis] for index in indices if self.start[axis] <= index < self.stop[axis]]
        if not inside:
            return VoxelBox.empty(self.voxels.dtype)
        first, along = min(inside), np.moveaxis(self.voxels, axis, 0)
        kept = np.zeros((max(inside) + 1 - first, *along.shape[1:]), dtype=along.dtype)
        for number in inside:
            kept[number - first] = along[number]
        start = list(self.start)
        start[axis] += first
        return VoxelBox(as_index(start), np.moveaxis(kept, 0, axis)).trimmed()

    def replace_slices(self, axis: int, indices: Collection[int], other: VoxelBox) -> VoxelBox:
        """With some slices along an array axis taken from another box, trimmed; a copy."""
        start, stop = enclosing_extent(self, other.keep_slices(axis, indices))
        merged, theirs = self.crop_or_pad(start, stop), other.crop_or_pad(start, stop)
        inside = [index - start[axis] for index in indices if start[axis] <= index < stop[axis]]
        np.moveaxis(merged, axis, 0)[inside] = np.moveaxis(theirs, axis, 0)[inside]
        return VoxelBox(start, merged).trimmed()


def enclosing_extent(*boxes: VoxelBox) -> tuple[Index, Index]:
    """First index, and the one after the last, of the smallest box around all boxes; zeros if they have no voxels."""
    filled = [box for box in boxes if box.voxels.size]
    if not filled:
        return (0, 0, 0), (0, 0, 0)
    start, stop = np.min([box.start for box in filled], axis=0), np.max([box.stop for box in filled], axis=0)
    return as_index(start), as_index(stop)


@dataclass(frozen=True, eq=False)
class Frame:
    """A volume's grid and how it lies in a segmentation.

    Attributes:
        geometry: the volume's grid, in the volume's own coordinates.
        segmentation_to_volume: 4 × 4 from the segmentation's to the volume's RAS mm; the identity if both stand under
            the same transform.

    >>> grid = Geometry((5, 4, 4), (1.0, 1.0, 2.0), (10.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
    >>> frame = Frame(grid, np.eye(4))
    >>> (frame.ijk_to_segmentation @ [0, 0, 3, 1])[:3].tolist()
    [-10.0, 0.0, 6.0]
    """

    geometry: Geometry
    segmentation_to_volume: np.ndarray

    @classmethod
    def of(cls, volume_node: Any, segmentation_node: Any) -> Frame:
        """The frame of two MRML nodes.

        Raises:
            InputError: if a transform between the two is not linear, or the volume has no image or no valid grid.
        """
        between = _linear_transform(segmentation_node.GetParentTransformNode(), volume_node.GetParentTransformNode())
        if between is None:
            raise InputError(
                f"A transform that is not linear lies between the scan {volume_node.GetName()} and the segmentation "
                f"{segmentation_node.GetName()}; put both under the same transform, or harden it on the scan."
            )
        return cls(volume_geometry(volume_node), between)

    @property
    def ijk_to_segmentation(self) -> np.ndarray:
        """4 × 4 from a voxel ``(i, j, k, 1)`` of the volume to the segmentation's RAS mm."""
        return np.linalg.inv(self.segmentation_to_volume) @ ijk_to_ras(self.geometry)

    def matches(self, other: Frame) -> bool:
        """Whether grids and transforms are the same, but for rounding."""
        return self.geometry == other.geometry and np.allclose(
            self.segmentation_to_volume, other.segmentation_to_volume
        )


def volume_geometry(volume_node: Any) -> Geometry:
    """The grid of a vtkMRMLVolumeNode in its own coordinates; an axis of negative spacing is reversed.

    Raises:
        InputError: for a volume without an image, or a grid that :class:`.geometry.Geometry` refuses.
    """
    from vtkmodules.vtkCommonMath import vtkMatrix4x4

    image = volume_node.GetImageData()
    if image is None or min(image.GetDimensions()) < 1:
        raise InputError(f"The volume {volume_node.GetName()} holds no image; load it again, or choose another one.")
    directions = vtkMatrix4x4()
    volume_node.GetIJKToRASDirectionMatrix(directions)
    spacing = np.array(volume_node.GetSpacing())
    axes = (RAS_TO_LPS @ array_from_vtk_matrix(directions))[:3, :3] * np.where(spacing < 0, -1.0, 1.0)
    origin = RAS_TO_LPS[:3, :3] @ volume_node.GetOrigin()
    shape = image.GetDimensions()[::-1]
    return Geometry(shape, tuple(np.abs(spacing)), tuple(origin + 0.0), tuple(axes.ravel() + 0.0))


def part_geometry(index_to_ras: np.ndarray, start: Index, shape: tuple[int, ...]) -> Geometry:
    """The grid of a part of a labelmap.

    Args:
        index_to_ras: 4 × 4 of the whole labelmap, from ``(i, j, k, 1)`` to RAS mm.
        start: array index of the part's first voxel.
        shape: ``(slices, height, width)`` of the part.
    """
    matrix = RAS_TO_LPS @ index_to_ras
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    origin = (matrix @ [*start[::-1], 1])[:3]
    return Geometry(as_index(shape), tuple(spacing), tuple(origin), tuple((matrix[:3, :3] / spacing).ravel()))


def ijk_to_ras(geometry: Geometry) -> np.ndarray:
    """4 × 4 from ``(i, j, k, 1)`` to RAS mm."""
    return RAS_TO_LPS @ geometry.index_to_physical()


def ijk_to_world(volume_node: Any) -> np.ndarray:
    """4 × 4 from a voxel ``(i, j, k, 1)`` of a volume to world RAS mm, in which views show it.

    Raises:
        InputError: if the volume stands under a transform that is not linear.
    """
    to_world = _linear_transform(volume_node.GetParentTransformNode(), None)
    if to_world is None:
        raise InputError(
            f"The scan {volume_node.GetName()} stands under a transform that is not linear, so no view shows one of "
            "its slices; harden the transform, or take the scan out of it."
        )
    return to_world @ ijk_to_ras(volume_geometry(volume_node))


def array_from_vtk_matrix(matrix: Any) -> np.ndarray:
    """A vtkMatrix4x4 as a 4 × 4 array."""
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def vtk_matrix_from_array(matrix: np.ndarray) -> Any:
    """A 4 × 4 array as a vtkMatrix4x4."""
    from vtkmodules.vtkCommonMath import vtkMatrix4x4

    vtk_matrix = vtkMatrix4x4()
    vtk_matrix.DeepCopy(np.asarray(matrix, dtype=np.float64).ravel().tolist())
    return vtk_matrix


def _linear_transform(source: Any, target: Any) -> np.ndarray | None:
    """4 × 4 from below one transform node to below another, None meaning the world; None if it is not linear."""
    import slicer
    from vtkmodules.vtkCommonTransforms import vtkGeneralTransform, vtkTransform

    transform, linear = vtkGeneralTransform(), vtkTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(source, target, transform)
    if not slicer.vtkMRMLTransformNode.IsGeneralTransformLinear(transform, linear):
        return None
    return array_from_vtk_matrix(linear.GetMatrix())
