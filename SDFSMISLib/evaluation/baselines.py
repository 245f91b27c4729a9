"""Methods, functions from a :class:`Task` to a bool mask on its query's grid: a segmenter, and five baselines.

- ``copy``: the support mask on every slice.
- ``growcut``: 3D Slicer's *Grow from seeds* (Zhu et al., "An effective interactive medical image segmentation method
  using fast growcut", MICCAI IMIC 2014), the class ``vtkImageGrowCutSegment`` of the package slicer-core.
- ``registration``: symmetric-forces demons (Vercauteren et al., "Symmetric log-domain diffeomorphic registration",
  MICCAI 2008) by SimpleITK, slice to slice, from coarse to fine.
- ``fill-between``: 3D Slicer's *Fill between slices* (Zukić et al., "ND morphological contour interpolation", Insight
  Journal 2016), the class ``vtkITKMorphologicalContourInterpolator`` of the package slicer-core.
- ``atlas``: finished scans brought over in 3D, their labels fused (:mod:`SDFSMISLib.inference.atlas`).

A method that does not apply to a task returns None; the task then has no row of that method.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.evaluation.protocols import Task
from SDFSMISLib.images.geometry import SliceOrientation
from SDFSMISLib.support import SupportSet, SupportSlice

if TYPE_CHECKING:
    from SimpleITK import Image
    from vtkmodules.vtkCommonDataModel import vtkImageData

    from SDFSMISLib.inference import Segmentation, Segmenter


LEVELS = ((8, 40), (4, 40), (2, 30), (1, 15))  # (pixels that become one, iterations)
SMOOTHING = 1.0  # pixels of a level: standard deviation by which the displacements are smoothed
FEWEST_PIXELS = 8  # of a level's shorter side
OUTSIDE = -1.0  # normalized intensity beside an image


def register_outwards(task: Task) -> np.ndarray:
    """The support mask warped onto the query's slices by registration: bool on the query's grid.

    On the painted scan itself the mask goes outwards from slice to slice: the last slice is registered onto the next,
    its mask warped along, until it is empty; each slice follows the painted one nearest to it, the first of
    two equally near. On another scan each painted slice, in the anatomical orientation, centre on centre and true to
    size in mm, is registered onto each judged slice by itself, and of several each pixel goes with the majority (half
    is enough). Intensities are those of each scan's robust window.
    """
    result = np.zeros(task.query.voxels.shape, dtype=bool)
    along = np.moveaxis(result, task.axis, 0)
    for index, mask in _propagated_masks(task) if task.painted else _cross_scan_masks(task):
        along[index] = mask
    return result


def _propagated_masks(task: Task) -> Iterator[tuple[int, np.ndarray]]:
    """(slice, native mask) outwards from each painted slice, as far as it is the nearest."""
    slices = _slices(task, SliceOrientation(False, False, False))
    nearest = [min(task.painted, key=lambda painted: abs(index - painted)) for index in range(len(slices))]
    for support_slice in task.support.for_label(task.label):
        for path in (range(support_slice.index + 1, len(slices)), range(support_slice.index - 1, -1, -1)):
            last, mask = slices[support_slice.index], support_slice.mask(task.label)
            for index in path:
                if nearest[index] != support_slice.index or not mask.any():
                    break
                mask = _warped_mask(mask, last, slices[index])
                last = slices[index]
                yield index, mask


def _cross_scan_masks(task: Task) -> Iterator[tuple[int, np.ndarray]]:
    """(slice, native mask) of each judged slice, from painted slices of another scan."""
    orientation = task.query.geometry.slice_orientation(task.axis)
    slices = _slices(task, orientation)
    support_slices = task.support.for_label(task.label)
    for index in task.judged:
        masks = [
            _warped_mask(support_slice.canonical_mask(task.label), _support_image(support_slice), slices[index])
            for support_slice in support_slices
        ]
        yield index, orientation.undo(2 * np.sum(masks, axis=0) >= len(masks))


def _warped_mask(mask: np.ndarray, moving: Image, fixed: Image) -> np.ndarray:
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
        coarse = [_downsampled(image, factor) for image in (fixed, moving)]
        if field is None:
            field = demons.Execute(*coarse)
        else:
            start = SimpleITK.Resample(
                field, coarse[0], SimpleITK.Transform(), SimpleITK.sitkLinear, 0.0, field.GetPixelID()
            )
            field = demons.Execute(*coarse, start)
    return SimpleITK.Cast(field, SimpleITK.sitkVectorFloat64)


def _downsampled(image: Image, factor: int) -> Image:
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


def _support_image(support_slice: SupportSlice) -> Image:
    return _image(support_slice.canonical_image(), support_slice.plane.canonical_spacing)


def _image(pixels: np.ndarray, spacing: tuple[float, float]) -> Image:
    """A SimpleITK image of normalized intensities (rows, columns), its centre at the origin; spacing in mm likewise."""
    import SimpleITK

    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(pixels, dtype=np.float32))
    image.SetSpacing(spacing[::-1])
    image.SetOrigin([-(side - 1) / 2 * step for side, step in zip(pixels.shape[::-1], spacing[::-1], strict=True)])
    return image


FOREGROUND, BACKGROUND = 1, 2
MARGIN = 2  # pixels around the painted ones that are no seeds: the image decides where the border is
FEWEST_VOXELS = 3  # along each axis, below which the algorithm refuses an image


def grow_from_seeds(task: Task) -> np.ndarray | None:
    """Grow from seeds on the painted slices: bool on the query's grid; None if no slice of the query is painted.

    Foreground seeds are the painted pixels, background seeds all others of the same slices but for a margin of 2
    pixels around the painted ones. Nothing else is given; the whole scan is filled, where Slicer's panel stops a few
    slices beyond the seeds. Raises :class:`InputError` if slicer-core is missing.
    """
    if not task.painted or min(task.query.voxels.shape) < FEWEST_VOXELS:
        return None
    spacing = task.query.geometry.spacing
    grow, to_numpy = _slicer_filter("vtkImageGrowCutSegment", "growcut")
    grow.SetIntensityVolume(_vtk_image(task.query.voxels.astype(np.float32), spacing))
    grow.SetSeedLabelVolume(_vtk_image(_seeds(task), spacing))
    grow.Update()
    return to_numpy(grow.GetOutput().GetPointData().GetScalars()).reshape(task.query.voxels.shape) == FOREGROUND


def _seeds(task: Task) -> np.ndarray:
    """uint8 on the query's grid: 1 foreground, 2 background, 0 open."""
    from scipy.ndimage import binary_dilation

    seeds = np.zeros(task.query.voxels.shape, dtype=np.uint8)
    for support_slice in task.support.for_label(task.label):
        mask = support_slice.mask(task.label)
        plane = np.moveaxis(seeds, support_slice.plane.axis, 0)[support_slice.index]
        plane[mask] = FOREGROUND
        plane[~binary_dilation(mask, iterations=MARGIN)] = BACKGROUND
    return seeds


def _vtk_image(voxels: np.ndarray, spacing: tuple[float, float, float]) -> vtkImageData:
    """A VTK image of ``(slices, height, width)``; ``spacing`` is ``(x, y, z)`` in mm."""
    from vtkmodules.util.numpy_support import numpy_to_vtk
    from vtkmodules.vtkCommonDataModel import vtkImageData

    image = vtkImageData()
    image.SetDimensions(*voxels.shape[::-1])
    image.SetSpacing(spacing)
    image.GetPointData().SetScalars(numpy_to_vtk(voxels.ravel(), deep=True))
    return image


def _slicer_filter(name: str, baseline: str) -> tuple[Any, Any]:
    """(a filter of the package slicer-core, VTK array -> numpy array)."""
    try:
        import slicer_core
        from vtkmodules.util.numpy_support import vtk_to_numpy
    except ImportError as error:
        raise InputError(
            f'The baseline {baseline} needs slicer-core; install it with: pip install "sdfsmis[evaluate]"'
        ) from error
    return getattr(slicer_core, name)(), vtk_to_numpy


def fill_between_slices(task: Task) -> np.ndarray | None:
    """Fill between slices: bool on the query's grid; None if fewer than two slices of the query are painted.

    The painted masks are interpolated along their axis. Nothing is found before the first and behind the last of them:
    this is what it costs a user to paint all by hand, and the image is not looked at. Raises :class:`InputError` if
    slicer-core is missing.
    """
    if len(task.painted) < 2:
        return None
    # The default, threads of TBB, crashes the process at its end. ITK reads this once, before it does anything.
    os.environ.setdefault("ITK_GLOBAL_DEFAULT_THREADER", "Pool")
    painted = task.as_painted(np.zeros(task.reference.shape, dtype=bool))
    fill, to_numpy = _slicer_filter("vtkITKMorphologicalContourInterpolator", "fill-between")
    fill.SetInputData(_vtk_image(painted.astype(np.uint8), task.query.geometry.spacing))
    fill.SetAxis(2 - task.axis)  # 0 is x
    fill.Update()
    return to_numpy(fill.GetOutput().GetPointData().GetScalars()).reshape(painted.shape) > 0


Method = Callable[[Task], "np.ndarray | None"]


def run_method(method: Method, task: Task) -> np.ndarray | None:
    """The method's mask, part by part if the task has parts; None if the method does not apply.

    Raises ValueError for a mask that is not bool on the query's grid.
    """
    if not task.parts:
        mask = method(task)
        if mask is not None and (mask.shape != task.reference.shape or mask.dtype != np.bool_):
            raise ValueError(
                f"A bool mask of {task.reference.shape} is needed; the method gave {mask.dtype} {mask.shape}."
            )
        return mask
    result = np.zeros(task.reference.shape, dtype=bool)
    for part in task.parts:
        mask = run_method(method, part)
        if mask is None:
            return None
        here = (slice(None),) * task.axis + (list(part.judged),)
        result[here] = mask[here]
    return result


class SegmenterMethod:
    """The method that runs a segmenter.

    Args:
        segmenter: what is measured.
        with_prior: whether it also gets what finished scans tell, if a task has some.
        options: strategy, region, window, ... of its ``segment``.
    """

    def __init__(self, segmenter: Segmenter, with_prior: bool = True, **options: Any) -> None:
        self.segmenter = segmenter
        self.with_prior = with_prior
        self.options = options

    def without_prior(self) -> SegmenterMethod:
        """The same by painted slices alone."""
        return SegmenterMethod(self.segmenter, False, **self.options)

    def __call__(self, task: Task) -> np.ndarray:
        return self.segmentation(task).labelmap.voxels == task.label

    def segmentation(self, task: Task) -> Segmentation:
        """All that a user gets, along the axes of all painted slices; with finished scans along all axes."""
        if task.prior is not None and self.with_prior:
            painted = task.support if task.planes else SupportSet((), {})
            return self.segmenter.segment(
                task.query, painted, labels=[task.label], prior=task.prior.value, **self.options
            )
        chosen: dict[str, Any] = {"axis": task.axis, "slices": task.judged} if task.has_one_direction else {}
        return self.segmenter.segment(task.query, task.support, **chosen, **self.options)


def fused_prior(task: Task) -> np.ndarray | None:
    """Where finished scans show the target, without networks: bool on the query's grid; None without such scans.

    They are registered in 3D, and their labels fused by local likeness; a voxel whose probability is over one half is
    the target's.
    """
    return None if task.prior is None else task.prior.value.probabilities[task.label] > 127


def uses_prior(method: Method) -> bool:
    """Whether a method looks at finished scans as a whole."""
    return method is fused_prior or (isinstance(method, SegmenterMethod) and method.with_prior)


def copy_support(task: Task) -> np.ndarray:
    """The support mask on every query slice: what a method must beat to have looked at the query at all.

    Of several painted slices of the query itself the nearest is copied, the first of two equally near; of several from
    another scan each pixel goes with the majority (half is enough). A mask from another scan
    is placed in the anatomical orientation, centre on centre, true to size in mm.
    """
    geometry = task.query.geometry
    orientation = geometry.slice_orientation(task.axis)
    spacing = orientation.apply_spacing(geometry.in_plane_spacing(task.axis))
    result = np.zeros(task.query.voxels.shape, dtype=bool)
    along = np.moveaxis(result, task.axis, 0)
    shape = orientation.apply(along[0]).shape
    support_slices = task.support.for_label(task.label)
    copies = [orientation.undo(_on_grid(support_slice, task.label, shape, spacing)) for support_slice in support_slices]
    if not task.painted:
        along[:] = 2 * np.sum(copies, axis=0) >= len(copies)
        return result
    for index in range(len(along)):
        along[index] = copies[int(np.argmin([abs(index - painted) for painted in task.painted]))]
    return result


def _on_grid(
    support_slice: SupportSlice, label: int, shape: tuple[int, ...], spacing: tuple[float, float]
) -> np.ndarray:
    """A painted mask, canonical, on a slice of another shape and (row, column) spacing in mm, by nearest neighbour."""
    mask = support_slice.canonical_mask(label)
    own_spacing = support_slice.plane.canonical_spacing
    places = []
    for side, own_side, step, own_step in zip(shape, mask.shape, spacing, own_spacing, strict=True):
        millimetres = (np.arange(side) - (side - 1) / 2) * step
        places.append(np.floor(millimetres / own_step + (own_side - 1) / 2 + 0.5).astype(int))
    rows, columns = (np.clip(place, 0, own_side - 1) for place, own_side in zip(places, mask.shape, strict=True))
    inside = [place == clipped for place, clipped in zip(places, (rows, columns), strict=True)]
    return mask[np.ix_(rows, columns)] & np.outer(*inside)


BASELINES: Mapping[str, Method] = {
    "copy": copy_support,
    "growcut": grow_from_seeds,
    "registration": register_outwards,
    "fill-between": fill_between_slices,
    "atlas": fused_prior,
}
"""Methods that need no model, by the name that the command line and the tables have for them."""
ONE_DIRECTION = frozenset({copy_support, register_outwards, fill_between_slices})
"""Methods that take slices of one direction only."""


def check_directions(methods: Mapping[str, Method]) -> None:
    """Raises :class:`InputError` if one of these methods cannot take slices of several directions."""
    for name, method in methods.items():
        if method in ONE_DIRECTION:
            raise InputError(f"{name} takes painted slices of one direction only; leave it out, or name one direction.")
