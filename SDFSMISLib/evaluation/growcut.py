"""Grow from seeds, as 3D Slicer has it: the baseline that a Slicer user has at hand without any model.

The algorithm is Slicer's own, `vtkImageGrowCutSegment` (Zhu et al., "An effective interactive medical image
segmentation method using fast growcut", MICCAI IMIC 2014), out of the package `slicer-core`; no display is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.evaluation.protocols import Task

if TYPE_CHECKING:
    from vtkmodules.vtkCommonDataModel import vtkImageData

__all__ = ["grow_from_seeds"]

FOREGROUND, BACKGROUND = 1, 2
MARGIN = 2  # pixels around what is painted that are seeds of neither: where the border is, the image says
FEWEST_VOXELS = 3  # along each axis, below which the algorithm refuses an image


def grow_from_seeds(task: Task) -> np.ndarray | None:
    """What grows from the painted slices: bool on the query's grid; None where no slice of the query is painted.

    Foreground seeds are the painted pixels, background seeds all others of the same slices but for a margin of 2
    pixels around the painted ones. Nothing else is given; the whole scan is filled, where Slicer's panel stops a few
    slices beyond the seeds. Raises :class:`InputError` where slicer-core is missing.
    """
    if not task.painted or min(task.query.voxels.shape) < FEWEST_VOXELS:
        return None
    spacing = task.query.geometry.spacing
    grow, to_numpy = _grow_cut_filter()
    grow.SetIntensityVolume(_image(task.query.voxels.astype(np.float32), spacing))
    grow.SetSeedLabelVolume(_image(_seeds(task), spacing))
    grow.Update()
    return to_numpy(grow.GetOutput().GetPointData().GetScalars()).reshape(task.query.voxels.shape) == FOREGROUND


def _seeds(task: Task) -> np.ndarray:
    """uint8 on the query's grid: 1 foreground, 2 background, 0 open."""
    from scipy.ndimage import binary_dilation

    seeds = np.zeros(task.query.voxels.shape, dtype=np.uint8)
    along = np.moveaxis(seeds, task.axis, 0)
    for piece in task.support.for_label(task.label):
        mask = piece.mask(task.label)
        near = binary_dilation(mask, iterations=MARGIN)
        along[piece.index] = np.where(mask, FOREGROUND, np.where(near, 0, BACKGROUND))
    return seeds


def _image(voxels: np.ndarray, spacing: tuple[float, float, float]) -> vtkImageData:
    """A VTK image of ``(slices, height, width)``; ``spacing`` is ``(x, y, z)`` in mm."""
    from vtkmodules.util.numpy_support import numpy_to_vtk
    from vtkmodules.vtkCommonDataModel import vtkImageData

    image = vtkImageData()
    image.SetDimensions(*voxels.shape[::-1])
    image.SetSpacing(spacing)
    image.GetPointData().SetScalars(numpy_to_vtk(voxels.ravel(), deep=True))
    return image


def _grow_cut_filter() -> tuple[Any, Any]:
    """(the filter, VTK array -> numpy array)."""
    try:
        from slicer_core import vtkImageGrowCutSegment
        from vtkmodules.util.numpy_support import vtk_to_numpy
    except ImportError as error:
        raise InputError(
            'The baseline growcut needs slicer-core; install it with: pip install "sdfsmis[evaluate]"'
        ) from error
    return vtkImageGrowCutSegment(), vtk_to_numpy
