"""Frames: how a volume's grid lies in its own frame, in a segmentation's and in the world.

The scene counts in RAS, the library in LPS; nodes may stand under transforms. A volume's grid is always meant in the
volume's own frame, without the transforms above it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.images.geometry import Geometry

__all__ = ["Frame", "ijk_to_ras", "labelmap_geometry", "matrix_of", "volume_geometry", "volume_to_world", "vtk_matrix"]

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
    from_segmentation: np.ndarray

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
    def image_to_segmentation(self) -> np.ndarray:
        """4 × 4 from a voxel ``(i, j, k, 1)`` of the volume to the segmentation's RAS mm."""
        return np.linalg.inv(self.from_segmentation) @ ijk_to_ras(self.geometry)

    def same(self, other: Frame) -> bool:
        """Whether grids and transforms are the same."""
        return self.geometry == other.geometry and np.allclose(self.from_segmentation, other.from_segmentation)


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
    axes = (LPS @ matrix_of(turned))[:3, :3] * np.where(spacing < 0, -1.0, 1.0)
    origin = LPS[:3, :3] @ volume_node.GetOrigin()
    shape = image.GetDimensions()[::-1]
    return Geometry(shape, tuple(np.abs(spacing)), tuple(origin + 0.0), tuple(axes.ravel() + 0.0))


def labelmap_geometry(index_to_ras: np.ndarray, start: tuple[int, int, int], shape: tuple[int, int, int]) -> Geometry:
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


def volume_to_world(volume_node: Any) -> np.ndarray:
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


def matrix_of(matrix: Any) -> np.ndarray:
    """4 × 4 of a vtkMatrix4x4."""
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def vtk_matrix(matrix: np.ndarray) -> Any:
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
    return matrix_of(linear.GetMatrix())
