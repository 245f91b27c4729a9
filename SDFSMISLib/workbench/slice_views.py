"""Slice views of the layout: which slice of a scan they show, and making them show another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from SDFSMISLib.errors import InputError
from SDFSMISLib.scene import show_slice, shown_slice
from SDFSMISLib.scene.frame import ijk_to_world

__all__ = ["show_in_views", "show_scan", "show_segmentation", "slice_nodes", "visible_slice"]


def slice_nodes(scene: Any | None) -> Iterator[Any]:
    """The vtkMRMLSliceNodes of the views that the layout shows; none where there is no scene."""
    if scene is None:
        return
    nodes = scene.GetNodesByClass("vtkMRMLSliceNode")
    for number in range(nodes.GetNumberOfItems()):
        node = nodes.GetItemAsObject(number)
        if node.IsMappedInLayout():
            yield node


def visible_slice(volume: Any, axis: int) -> int | None:
    """The slice along an array axis that a view shows; None where none lies in these slices."""
    for node in slice_nodes(volume.GetScene()):
        try:
            shown = shown_slice(node, volume)
        except InputError:  # it lies across, or outside
            continue
        if shown.axis == axis:
            return shown.index
    return None


def show_in_views(volume: Any, axis: int, index: int) -> bool:
    """Makes all views that lie in the slices along an axis show one; whether there was any.

    Raises:
        InputError: where the volume stands under a transform that is not linear.
    """
    return any([show_slice(node, volume, axis, index) for node in slice_nodes(volume.GetScene())])


def show_scan(volume: Any) -> None:
    """Makes all views show a scan, each its middle.

    Raises:
        InputError: where the volume stands under a transform that is not linear.
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
    """Shows or hides a segmentation in all views."""
    display = segmentation.GetDisplayNode() if segmentation is not None else None
    if display is not None:
        display.SetVisibility(visible)
