"""Piece: some voxels of a grid, where all others are zero.

Frames: how a volume's grid lies in its own frame, in a segmentation's and in the world.

The scene counts in RAS, the library in LPS; nodes may stand under transforms. A volume's grid is always meant in the
volume's own frame, without the transforms above it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.images.geometry import Geometry

Index = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class VoxelBox:
    """Voxels ``(slices, height, width)`` of any dtype; ``start`` is the array index of the first one in the grid."""

    start: Index
    voxels: np.ndarray

    @classmethod
    def empty(cls) -> VoxelBox:
        """No voxel at all."""
        return cls((0, 0, 0), np.zeros((0, 0, 0), dtype=bool))

    @property
    def stop(self) -> Index:
        """The array index behind the last voxel."""
        k, j, i = (first + side for first, side in zip(self.start, self.voxels.shape, strict=True))
        return k, j, i

    def shifted(self, shift: Index) -> VoxelBox:
        """The same voxels at another place ``(slices, height, width)`` of the grid; a view."""
        k, j, i = (first + step for first, step in zip(self.start, shift, strict=True))
        return VoxelBox((k, j, i), self.voxels)

    def crop_or_pad(self, start: Index, stop: Index) -> np.ndarray:
        """The voxels from ``start`` to before ``stop``, zeros included; a copy."""
        shape = tuple(last - first for first, last in zip(start, stop, strict=True))
        region = np.zeros(shape, dtype=self.voxels.dtype)
        low, high = np.maximum(start, self.start), np.minimum(stop, self.stop)
        if (low < high).all():
            into = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))
            out_of = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, self.start, strict=True))
            region[into] = self.voxels[out_of]
        return region

    def trimmed(self) -> VoxelBox:
        """The same without the zeros around it."""
        sides = []
        for axis in range(3):
            filled = np.flatnonzero(self.voxels.any(axis=tuple(other for other in range(3) if other != axis)))
            if not filled.size:
                return VoxelBox((0, 0, 0), np.zeros((0, 0, 0), dtype=self.voxels.dtype))
            sides.append(slice(int(filled[0]), int(filled[-1]) + 1))
        k, j, i = (first + side.start for first, side in zip(self.start, sides, strict=True))
        return VoxelBox((k, j, i), self.voxels[tuple(sides)])

    def keep_slices(self, axis: int, indices: Collection[int]) -> VoxelBox:
        """The voxels of some slices along an array axis, without the zeros around them; a copy."""
        inside = [index - self.start[axis] for index in indices if self.start[axis] <= index < self.stop[axis]]
        if not inside:
            return VoxelBox((0, 0, 0), np.zeros((0, 0, 0), dtype=self.voxels.dtype))
        first, along = min(inside), np.moveaxis(self.voxels, axis, 0)
        kept = np.zeros((max(inside) + 1 - first, *along.shape[1:]), dtype=along.dtype)
        for number in inside:
            kept[number - first] = along[number]
        start = list(self.start)
        start[axis] += first
        return VoxelBox((start[0], start[1], start[2]), np.moveaxis(kept, 0, axis)).trimmed()

    def replace_slices(self, axis: int, indices: Collection[int], other: VoxelBox) -> VoxelBox:
        """The same, but for some slices along an array axis, which are those of another piece; a copy."""
        start, stop = enclosing_extent(self, other.keep_slices(axis, indices))
        merged, theirs = self.crop_or_pad(start, stop), other.crop_or_pad(start, stop)
        inside = [index - start[axis] for index in indices if start[axis] <= index < stop[axis]]
        np.moveaxis(merged, axis, 0)[inside] = np.moveaxis(theirs, axis, 0)[inside]
        return VoxelBox(start, merged).trimmed()

    def slices(self, axis: int) -> dict[int, np.ndarray]:
        """By index along an array axis: the part ``(rows, columns)`` of each slice that is not all zero; views."""
        along = np.moveaxis(self.voxels, axis, 0)
        return {self.start[axis] + number: part for number, part in enumerate(along) if part.any()}


def enclosing_extent(*pieces: VoxelBox) -> tuple[Index, Index]:
    """Start and stop of the smallest box that holds all voxels of the pieces; three zeros each where there are none."""
    held = [piece for piece in pieces if piece.voxels.size]
    if not held:
        return (0, 0, 0), (0, 0, 0)
    k, j, i = np.min([piece.start for piece in held], axis=0).tolist()
    ends = np.max([piece.stop for piece in held], axis=0).tolist()
    return (k, j, i), (ends[0], ends[1], ends[2])


LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # from RAS to LPS, and back


@dataclass(frozen=True, eq=False)
class Frame:
    """A volume's grid, and how it lies in a segmentation.

    Attributes:
        geometry: the volume's grid in the volume's own frame.
        from_segmentation: 4 × 4, from the segmentation's frame to the volume's, both RAS mm; the identity where they
            stand under the same transform.
    """

    geometry: Geometry
    segmentation_to_volume: np.ndarray

    @classmethod
    def of(cls, volume_node: Any, segmentation_node: Any) -> Frame:
        """Raises :class:`InputError` where a transform that is not linear lies between the two, or the volume's grid
        cannot be right."""
        between = _linear(segmentation_node.GetParentTransformNode(), volume_node.GetParentTransformNode())
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
        """Whether grids and transforms are the same."""
        return self.geometry == other.geometry and np.allclose(
            self.segmentation_to_volume, other.segmentation_to_volume
        )


def volume_geometry(volume_node: Any) -> Geometry:
    """The grid of a vtkMRMLVolumeNode in its own frame; a negative spacing turns its axis round.

    Raises :class:`InputError` for a volume without an image, and for a grid that :class:`.geometry.Geometry` refuses.
    """
    from vtkmodules.vtkCommonMath import vtkMatrix4x4

    image = volume_node.GetImageData()
    if image is None or min(image.GetDimensions()) < 1:
        raise InputError(f"The volume {volume_node.GetName()} holds no image; load it again, or choose another one.")
    turned = vtkMatrix4x4()
    volume_node.GetIJKToRASDirectionMatrix(turned)
    spacing = np.array(volume_node.GetSpacing())
    axes = (LPS @ array_from_vtk_matrix(turned))[:3, :3] * np.where(spacing < 0, -1.0, 1.0)
    origin = LPS[:3, :3] @ volume_node.GetOrigin()
    shape = image.GetDimensions()[::-1]
    return Geometry(shape, tuple(np.abs(spacing)), tuple(origin + 0.0), tuple(axes.ravel() + 0.0))


def part_geometry(index_to_ras: np.ndarray, start: tuple[int, int, int], shape: tuple[int, int, int]) -> Geometry:
    """The grid of a part of a labelmap.

    Args:
        index_to_ras: 4 × 4 of the whole, from ``(i, j, k, 1)`` to RAS mm.
        start: ``(k, j, i)`` of the part's first voxel.
        shape: ``(slices, height, width)`` of the part.
    """
    matrix = LPS @ index_to_ras
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    origin = (matrix @ [*start[::-1], 1])[:3]
    return Geometry(shape, tuple(spacing), tuple(origin), tuple((matrix[:3, :3] / spacing).ravel()))


def ijk_to_ras(geometry: Geometry) -> np.ndarray:
    """4 × 4 from ``(i, j, k, 1)`` to RAS mm."""
    return LPS @ geometry.index_to_physical()


def ijk_to_world(volume_node: Any) -> np.ndarray:
    """4 × 4 from a voxel ``(i, j, k, 1)`` of a volume to the world's RAS mm, in which views show it.

    Raises :class:`InputError` where the volume stands under a transform that is not linear.
    """
    to_world = _linear(volume_node.GetParentTransformNode(), None)
    if to_world is None:
        raise InputError(
            f"The scan {volume_node.GetName()} stands under a transform that is not linear, so no view shows one of "
            "its slices; harden the transform, or take the scan out of it."
        )
    return to_world @ ijk_to_ras(volume_geometry(volume_node))


def array_from_vtk_matrix(matrix: Any) -> np.ndarray:
    """4 × 4 of a vtkMatrix4x4."""
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def vtk_matrix_from_array(matrix: np.ndarray) -> Any:
    """A vtkMatrix4x4 of a 4 × 4."""
    from vtkmodules.vtkCommonMath import vtkMatrix4x4

    made = vtkMatrix4x4()
    made.DeepCopy(np.asarray(matrix, dtype=np.float64).ravel().tolist())
    return made


def _linear(source: Any, target: Any) -> np.ndarray | None:
    """4 × 4 from below one transform node to below another, None being the world; None where it is not linear."""
    import slicer
    from vtkmodules.vtkCommonTransforms import vtkGeneralTransform, vtkTransform

    transform, linear = vtkGeneralTransform(), vtkTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(source, target, transform)
    if not slicer.vtkMRMLTransformNode.IsGeneralTransformLinear(transform, linear):
        return None
    return array_from_vtk_matrix(linear.GetMatrix())
