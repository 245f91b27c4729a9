"""The slice views of the layout: which slice of a scan they show; show another one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from SDFSMISLib.errors import InputError
from SDFSMISLib.images.planes import Plane
from SDFSMISLib.scene import ijk_to_world, rotate_to_volume_plane, show_slice, shown_slice, volume_geometry

__all__ = [
    "show_in_views",
    "show_plane",
    "show_scan",
    "show_segmentation",
    "slice_nodes",
    "visible_planes",
    "visible_slice",
]


def slice_nodes(scene: Any | None) -> Iterator[Any]:
    """The vtkMRMLSliceNodes of the views in the layout; none without a scene."""
    if scene is None:
        return
    nodes = scene.GetNodesByClass("vtkMRMLSliceNode")
    for number in range(nodes.GetNumberOfItems()):
        node = nodes.GetItemAsObject(number)
        if node.IsMappedInLayout():
            yield node


def visible_planes(volume: Any) -> dict[str, Plane]:
    """The slices of a scan that views show, by the ID of the view's node."""
    planes = {}
    for node in slice_nodes(volume.GetScene()):
        with suppress(InputError):  # it lies across, or outside
            shown = shown_slice(node, volume)
            planes[node.GetID()] = Plane(shown.axis, shown.index)
    return planes


def visible_slice(volume: Any, axis: int) -> int | None:
    """The index of the slice along an array axis that a view shows; None if no view shows one."""
    return next((plane.index for plane in visible_planes(volume).values() if plane.axis == axis), None)


def show_in_views(volume: Any, axis: int, index: int) -> bool:
    """Show a slice in all views that show slices along its axis; True if there was such a view.

    Raises:
        InputError: if a nonlinear transform is applied to the volume.
    """
    return any([show_slice(node, volume, axis, index) for node in slice_nodes(volume.GetScene())])


def show_plane(volume: Any, plane: Plane) -> None:
    """Show a slice in all views that show slices along its axis; if there is none, one view is turned.

    Raises:
        InputError: if a nonlinear transform is applied to the volume.
    """
    node = next(slice_nodes(volume.GetScene()), None)
    if not show_in_views(volume, plane.axis, plane.index) and node is not None:
        node.SetOrientation(volume_geometry(volume).plane(plane.axis).capitalize())
        rotate_to_volume_plane(node, volume)
        show_in_views(volume, plane.axis, plane.index)


def show_scan(volume: Any) -> None:
    """Show a scan in all views, centred.

    Raises:
        InputError: if a nonlinear transform is applied to the volume.
    """
    scene = volume.GetScene()
    composites = scene.GetNodesByClass("vtkMRMLSliceCompositeNode")
    for number in range(composites.GetNumberOfItems()):
        composites.GetItemAsObject(number).SetBackgroundVolumeID(volume.GetID())
    middle = [(side - 1) / 2 for side in volume.GetImageData().GetDimensions()]
    x, y, z = (ijk_to_world(volume) @ [*middle, 1])[:3]
    for node in slice_nodes(scene):
        node.JumpSliceByCentering(x, y, z)


def show_segmentation(segmentation: Any | None, visible: bool) -> None:
    """Show or hide a segmentation in all views."""
    display = segmentation.GetDisplayNode() if segmentation is not None else None
    if display is not None:
        display.SetVisibility(visible)
