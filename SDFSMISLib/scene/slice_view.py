"""Slice views: which slice of a volume a view shows, and moving it to another slice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.scene.frame import array_from_vtk_matrix, ijk_to_world, volume_geometry

__all__ = ["ObliqueView", "ShownSlice", "rotate_to_volume_plane", "show_slice", "shown_slice"]

PARALLEL = 0.99  # least cosine between the normals of view and slices; 8 degrees


class ObliqueView(InputError):
    """A view lies across the slices of a volume; :func:`rotate_to_volume_plane` turns it parallel to them."""


@dataclass(frozen=True)
class ShownSlice:
    """A slice of a volume: array axis, index from 0, and the nearest anatomical plane, such as "axial"."""

    axis: int
    index: int
    plane: str


def shown_slice(slice_node: Any, volume_node: Any) -> ShownSlice:
    """The slice of a volume that a view (vtkMRMLSliceNode) shows in its centre.

    Raises:
        ObliqueView: if the view is turned against the volume's slices by more than 8 degrees.
        InputError: if the view lies outside the volume, or the volume stands under a transform that is not linear.
    """
    name, to_ijk = volume_node.GetName(), np.linalg.inv(ijk_to_world(volume_node))
    slice_to_ras = array_from_vtk_matrix(slice_node.GetSliceToRAS())
    ijk_axis, cosine = _nearest_axis(slice_to_ras, to_ijk)
    if cosine < PARALLEL:
        raise ObliqueView(
            f"The view {slice_node.GetName()} lies across the slices of the scan {name}, turned by "
            f"{np.degrees(np.arccos(cosine)):.0f} degrees; turn it parallel to them."
        )
    place = float((to_ijk @ slice_to_ras[:, 3])[ijk_axis])
    geometry, axis = volume_geometry(volume_node), 2 - ijk_axis
    index = int(np.floor(place + 0.5 + 1e-6))  # an offset rounded by Slicer must not fall to the slice before
    if not 0 <= index < geometry.shape[axis]:
        raise InputError(f"The view {slice_node.GetName()} shows no slice of the scan {name}; move it into the scan.")
    return ShownSlice(axis, index, geometry.plane(axis))


def rotate_to_volume_plane(slice_node: Any, volume_node: Any) -> None:
    """Turns a view parallel to the nearest slices of a volume, and moves it to the centre of one.

    Raises:
        InputError: if the volume stands under a transform that is not linear.
    """
    to_world = ijk_to_world(volume_node)
    slice_node.RotateToVolumePlane(volume_node)
    place = np.linalg.inv(to_world) @ array_from_vtk_matrix(slice_node.GetSliceToRAS())[:, 3]
    ijk_axis, _ = _nearest_axis(array_from_vtk_matrix(slice_node.GetSliceToRAS()), np.linalg.inv(to_world))
    last = volume_node.GetImageData().GetDimensions()[ijk_axis] - 1
    place[ijk_axis] = np.clip(np.floor(place[ijk_axis] + 0.5), 0, last)
    slice_node.JumpSliceByOffsetting(*(to_world @ place)[:3])


def show_slice(slice_node: Any, volume_node: Any, axis: int, index: int) -> bool:
    """Moves a view to a slice along an array axis; False if the view is not parallel to the slices of this axis.

    Raises:
        InputError: if the volume stands under a transform that is not linear.
    """
    to_world = ijk_to_world(volume_node)
    slice_to_ras = array_from_vtk_matrix(slice_node.GetSliceToRAS())
    ijk_axis, cosine = _nearest_axis(slice_to_ras, np.linalg.inv(to_world))
    if cosine < PARALLEL or ijk_axis != 2 - axis:
        return False
    place = np.linalg.inv(to_world) @ slice_to_ras[:, 3]
    place[ijk_axis] = index
    slice_node.JumpSliceByOffsetting(*(to_world @ place)[:3])
    return True


def _nearest_axis(slice_to_ras: np.ndarray, to_ijk: np.ndarray) -> tuple[int, float]:
    """The volume's axis, counted i, j, k, with the slices nearest to a view, and the cosine between the normals."""
    normals = to_ijk[:3, :3] / np.linalg.norm(to_ijk[:3, :3], axis=1, keepdims=True)
    normal = slice_to_ras[:3, 2] / np.linalg.norm(slice_to_ras[:3, 2])
    cosines = np.abs(normals @ normal)
    return int(cosines.argmax()), min(1.0, float(cosines.max()))
