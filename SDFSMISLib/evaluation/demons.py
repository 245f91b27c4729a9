"""Deformable registration: the baseline that looks at the images, but has learned nothing.

Symmetric-forces demons (Vercauteren et al., "Symmetric log-domain diffeomorphic registration", MICCAI 2008), as
SimpleITK has it, of one slice onto another, from coarse to fine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from SDFSMISLib.evaluation.protocols import Task
from SDFSMISLib.images.geometry import SliceOrientation
from SDFSMISLib.support import SupportSlice

if TYPE_CHECKING:
    from SimpleITK import Image

__all__ = ["register_outwards"]

LEVELS = ((8, 40), (4, 40), (2, 30), (1, 15))  # (pixels that become one, iterations)
SMOOTHING = 1.0  # pixels of a level: standard deviation by which the displacements are smoothed
FEWEST_PIXELS = 8  # of a level's shorter side
OUTSIDE = -1.0  # normalized intensity beside an image


def register_outwards(task: Task) -> np.ndarray:
    """The support mask carried onto the query's slices by registration: bool on the query's grid.

    On the painted scan itself the mask goes outwards from slice to slice: the last slice is registered onto the next,
    its mask moved along, until nothing is left of it; each slice follows the painted one nearest to it, the first of
    two equally near. On another scan each painted slice, in the anatomical orientation, centre on centre and true to
    size in mm, is registered onto each judged slice by itself, and of several each pixel goes with the majority (half
    is enough). Intensities are those of each scan's robust window.
    """
    result = np.zeros(task.query.voxels.shape, dtype=bool)
    along = np.moveaxis(result, task.axis, 0)
    for index, mask in _carried(task) if task.painted else _sent(task):
        along[index] = mask
    return result


def _carried(task: Task) -> Iterator[tuple[int, np.ndarray]]:
    """(slice, native mask) outwards from each painted slice, as far as it is the nearest."""
    slices = _slices(task, SliceOrientation(False, False, False))
    nearest = [min(task.painted, key=lambda painted: abs(index - painted)) for index in range(len(slices))]
    for piece in task.support.for_label(task.label):
        for path in (range(piece.index + 1, len(slices)), range(piece.index - 1, -1, -1)):
            last, mask = slices[piece.index], piece.mask(task.label)
            for index in path:
                if nearest[index] != piece.index or not mask.any():
                    break
                mask = _moved(mask, last, slices[index])
                last = slices[index]
                yield index, mask


def _sent(task: Task) -> Iterator[tuple[int, np.ndarray]]:
    """(slice, native mask) of each judged slice, from painted slices of another scan."""
    orientation = task.query.geometry.slice_orientation(task.axis)
    slices = _slices(task, orientation)
    pieces = task.support.for_label(task.label)
    for index in task.judged:
        masks = [_moved(piece.canonical_mask(task.label), _painted(piece), slices[index]) for piece in pieces]
        yield index, orientation.undo(2 * np.sum(masks, axis=0) >= len(masks))


def _moved(mask: np.ndarray, moving: Image, fixed: Image) -> np.ndarray:
    """A mask (rows, columns) on the slice ``moving``, on the slice ``fixed``."""
    import SimpleITK

    placed = SimpleITK.Resample(moving, fixed, SimpleITK.Transform(), SimpleITK.sitkLinear, OUTSIDE)
    transform = SimpleITK.DisplacementFieldTransform(_displacements(fixed, placed))
    soft = SimpleITK.GetImageFromArray(mask.astype(np.float32))
    soft.CopyInformation(moving)
    return SimpleITK.GetArrayFromImage(SimpleITK.Resample(soft, fixed, transform, SimpleITK.sitkLinear, 0.0)) > 0.5


def _displacements(fixed: Image, moving: Image) -> Image:
    """Where in ``moving`` each pixel of ``fixed`` is found, mm; both lie on one grid."""
    import SimpleITK

    field = None
    for factor, iterations in LEVELS:
        if factor > 1 and min(fixed.GetSize()) < FEWEST_PIXELS * factor:
            continue
        demons = SimpleITK.FastSymmetricForcesDemonsRegistrationFilter()
        demons.SetNumberOfIterations(iterations)
        demons.SetSmoothDisplacementField(True)
        demons.SetStandardDeviations(SMOOTHING)
        coarse = [_coarse(image, factor) for image in (fixed, moving)]
        if field is None:
            field = demons.Execute(*coarse)
        else:
            start = SimpleITK.Resample(
                field, coarse[0], SimpleITK.Transform(), SimpleITK.sitkLinear, 0.0, field.GetPixelID()
            )
            field = demons.Execute(*coarse, start)
    return SimpleITK.Cast(field, SimpleITK.sitkVectorFloat64)


def _coarse(image: Image, factor: int) -> Image:
    import SimpleITK

    if factor == 1:
        return image
    smooth = SimpleITK.SmoothingRecursiveGaussian(image, [factor / 2 * step for step in image.GetSpacing()])
    return SimpleITK.Shrink(smooth, [factor, factor])


def _slices(task: Task, orientation: SliceOrientation) -> list[Image]:
    """All slices of the query in this orientation, as :func:`_image` makes them."""
    window, count = task.query.window(), task.query.slice_count(task.axis)
    spacing = orientation.apply_spacing(task.query.geometry.in_plane_spacing(task.axis))
    native = (task.query.slice(task.axis, index) for index in range(count))
    return [_image(window.normalize(orientation.apply(plane)), spacing) for plane in native]


def _painted(piece: SupportSlice) -> Image:
    return _image(piece.canonical_image(), piece.orientation.apply_spacing(piece.spacing))


def _image(pixels: np.ndarray, spacing: tuple[float, float]) -> Image:
    """A SimpleITK image of normalized intensities (rows, columns), its centre at the origin; spacing in mm likewise."""
    import SimpleITK

    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(pixels, dtype=np.float32))
    image.SetSpacing(spacing[::-1])
    image.SetOrigin([-(side - 1) / 2 * step for side, step in zip(pixels.shape[::-1], spacing[::-1], strict=True)])
    return image
