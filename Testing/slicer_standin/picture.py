"""Pictures of slices: grey values of the background volume, coloured by the segments that are shown on it."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
import vtk
from scipy import ndimage
from vtkmodules.util.numpy_support import vtk_to_numpy

FILL, OUTLINE = 0.4, 1.0  # opacity inside a segment and on its border


def slice_picture(logic: Any, width: int, height: int) -> np.ndarray | None:
    """uint8 ``(height, width, 3)`` of what a vtkMRMLSliceLogic's view shows, or None where it has no volume."""
    volume = slicer.mrmlScene.GetNodeByID(logic.GetSliceCompositeNode().GetBackgroundVolumeID() or "")
    if volume is None or volume.GetImageData() is None:
        return None
    points = _world_points(logic.GetSliceNode(), width, height)
    grey = _interpolated(volume.GetImageData(), points @ np.linalg.inv(_volume_to_world(volume)).T)
    picture = np.repeat(_windowed(volume, grey)[..., None], 3, axis=2)
    for segmentation in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
        display = segmentation.GetDisplayNode()
        if display is None or display.GetVisibility():
            _draw_segments(picture, segmentation, points)
    return np.clip(picture, 0, 255).astype(np.uint8)


def _world_points(slice_node: Any, width: int, height: int) -> np.ndarray:
    """``(height, width, 4)`` world coordinates of the pixels; the picture's first row is the view's top."""
    columns, rows = slice_node.GetDimensions()[:2]
    x = (np.arange(width) + 0.5) / width * columns
    y = (height - np.arange(height) - 0.5) / height * rows
    grid = np.stack([*np.meshgrid(x, y), np.zeros((height, width)), np.ones((height, width))], axis=-1)
    return grid @ slicer.util.arrayFromVTKMatrix(slice_node.GetXYToRAS()).T


def _volume_to_world(volume: Any) -> np.ndarray:
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    return _parent_to_world(volume) @ slicer.util.arrayFromVTKMatrix(matrix)


def _parent_to_world(node: Any) -> np.ndarray:
    matrix = vtk.vtkMatrix4x4()
    parent = node.GetParentTransformNode()
    if parent is not None and parent.IsTransformToWorldLinear():
        parent.GetMatrixTransformToWorld(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def _interpolated(image: Any, indices: np.ndarray) -> np.ndarray:
    """Voxels as Slicer shows them, linearly interpolated; NaN outside the image."""
    places = np.moveaxis(indices[..., 2::-1] - image.GetExtent()[4::-2], -1, 0)
    return ndimage.map_coordinates(_voxels(image), places, output=float, order=1, cval=np.nan)


def _nearest(image: Any, indices: np.ndarray) -> np.ndarray:
    """A labelmap of one slice is as thick as a voxel."""
    places = np.rint(np.moveaxis(indices[..., 2::-1] - image.GetExtent()[4::-2], -1, 0))
    return ndimage.map_coordinates(_voxels(image), places, output=float, order=0, cval=np.nan)


def _voxels(image: Any) -> np.ndarray:
    """``(slices, height, width)``; of several values per voxel the first."""
    scalars = vtk_to_numpy(image.GetPointData().GetScalars())
    scalars = scalars if scalars.ndim == 1 else scalars[:, 0]
    return scalars.reshape(image.GetDimensions()[::-1])


def _windowed(volume: Any, grey: np.ndarray) -> np.ndarray:
    display = volume.GetDisplayNode()
    if display is not None and display.IsA("vtkMRMLScalarVolumeDisplayNode"):
        low, high = display.GetWindowLevelMin(), display.GetWindowLevelMax()
    else:
        low, high = volume.GetImageData().GetScalarRange()
    return np.nan_to_num((grey - low) / max(high - low, 1e-6) * 255).clip(0, 255)


def _draw_segments(picture: np.ndarray, segmentation: Any, points: np.ndarray) -> None:
    display = segmentation.GetDisplayNode()
    for segment_id in segmentation.GetSegmentation().GetSegmentIDs():
        segment = segmentation.GetSegmentation().GetSegment(segment_id)
        image = segment.GetRepresentation("Binary labelmap")
        if image is None or image.IsEmpty() or display is not None and not display.GetSegmentVisibility(segment_id):
            continue
        matrix = vtk.vtkMatrix4x4()
        image.GetImageToWorldMatrix(matrix)
        to_index = np.linalg.inv(_parent_to_world(segmentation) @ slicer.util.arrayFromVTKMatrix(matrix))
        mask = _nearest(image, points @ to_index.T) == segment.GetLabelValue()
        _blend(picture, mask, np.array(segment.GetColor()) * 255)


def _blend(picture: np.ndarray, mask: np.ndarray, color: np.ndarray) -> None:
    inner = mask.copy()
    for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
        inner &= np.roll(mask, step, axis)
    opacity = np.where(mask & ~inner, OUTLINE, FILL)[..., None] * mask[..., None]
    picture *= 1 - opacity
    picture += opacity * color
