"""Whole segmentations of finished scans, brought over to another scan in 3D: a prior of where its structures lie.

Each example (see `SDFSMISLib.examples`) is registered onto the scan: by an affine transform that maximises mutual
information (Mattes et al., "PET-CT image registration in the chest using free-form deformations", TMI 2003), then by
demons with symmetric forces (Thirion, Medical Image Analysis 1998; Vercauteren et al., NeuroImage 2009) around its
structures. These see grey values without their local mean and scale, so that scanners may differ. The labels are fused
by joint label fusion (Wang et al., "Multi-atlas segmentation with joint label fusion", TPAMI 2013): examples that look
like the scan at a place count more there, and those that are wrong together count once. Registration is SimpleITK's; no
network is needed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import SimpleITK
from scipy.ndimage import gaussian_filter

from SDFSMISLib.errors import Cancelled, InputError
from SDFSMISLib.examples import Example
from SDFSMISLib.images.coarse_grid import coarse_scan
from SDFSMISLib.images.geometry import Geometry
from SDFSMISLib.images.labelmap import bounding_box
from SDFSMISLib.images.volume import Volume
from SDFSMISLib.slices import SlicePlane
from SDFSMISLib.support import SupportSet, SupportSlice

__all__ = ["MOST_EXAMPLES", "Agreement", "AtlasStep", "Prior", "find_structures", "prior_of"]

MOST_EXAMPLES = 10  # that are registered in full
RANKED = 2  # examples that are registered affinely, for each that is registered in full
THUMBNAIL = 24  # voxels a side of what is compared to choose these
SIMILARITY_VOXELS, AFFINE_VOXELS, AFFINE_SAMPLES, AFFINE_STEPS = 10_000, 80_000, 20_000, 60
UNTURNED = (0, 0, 0, 1, 1, 1, 1)  # weights of a similarity's parameters: its versor stays
MOST_TURNED = 25.0  # degrees, by the affine transform
MOST_STRETCHED = 1.6  # by the affine transform, along any direction
DEMONS_LEVELS = ((20_000, 60), (100_000, 40), (400_000, 20))  # voxels and steps, coarse to fine
DEMONS_SMOOTH = 1.5  # standard deviation of the smoothing of displacements, in voxels
DEMONS_STEP = 2.0  # longest displacement of a step, in voxels
LEAST_SIDE = 4  # voxels of a part that demons can deform
MARGIN_MM = 40.0  # around the structures of an example, in which it is deformed
LOCAL_VOXELS = 4.0  # standard deviation of the surroundings whose mean and scale demons do not see
LOCAL_MM = 12.0  # the same for the fusion
LEAST_SCALE = 0.03  # of grey values in such surroundings, in shares of the window
PATCH_MM = 5.0  # standard deviation of the surroundings in which scan and example are compared
JOINT_POWER, JOINT_RIDGE = 2, 0.1  # beta and alpha of joint label fusion
FUSED_VOXELS = 1 << 15  # weights that are computed at once
PRESENT = 0.05  # share of an example's label in a voxel from which the voxel counts as its surroundings
SHOWN = 3  # examples whose largest slices are shown to the networks


@dataclass(frozen=True)
class AtlasStep:
    """Progress of `find_structures`.

    Attributes:
        done: examples that are registered.
        total: those that will be; None while they are being chosen.

    >>> AtlasStep(2, 10).message, AtlasStep(0).message
    ('Example 3 of 10', 'Choosing examples')
    """

    done: int
    total: int | None = None

    @property
    def message(self) -> str:
        return (
            "Choosing examples" if self.total is None else f"Example {min(self.done + 1, self.total)} of {self.total}"
        )


@dataclass(frozen=True)
class Agreement:
    """How well an example agrees with all of them.

    Attributes:
        name: of the example.
        digest: its content address.
        dice: Dice coefficient of its labels, brought over, and of what was found: the mean over the structures that
            other examples have too; NaN if there are none.
    """

    name: str
    digest: str
    dice: float


@dataclass(frozen=True, eq=False)
class Prior:
    """Where structures lie in a scan, by examples.

    Attributes:
        probabilities: by label, uint8 (slices, height, width) on the scan's grid, 255 meaning 1.
        support: slices of the most alike examples for the networks: of each label the largest one along each axis.
        agreement: of the examples that were used, the most alike first.
    """

    probabilities: dict[int, np.ndarray]
    support: SupportSet
    agreement: tuple[Agreement, ...] = ()


@dataclass(frozen=True, eq=False)
class _Registered:
    """An example on the coarse grid of a scan.

    Attributes:
        image: uint8 (slices, height, width).
        shares: by label, uint8 of the part `box`: how much of a voxel belongs to it, 255 meaning all.
        box: the part of the grid around the structures, along each axis.
    """

    example: Example
    image: np.ndarray
    shares: dict[int, np.ndarray]
    box: tuple[slice, ...]

    def share(self, label: int) -> np.ndarray:
        """The share of a label on the whole grid."""
        whole = np.zeros(self.image.shape, dtype=np.uint8)
        whole[self.box] = self.shares[label]
        return whole


def find_structures(
    query: Volume, examples: Iterable[Example], labels: Collection[int], most: int = MOST_EXAMPLES
) -> Generator[AtlasStep, None, Prior]:
    """Where structures of finished scans lie in another scan; yields while it chooses and registers examples.

    Args:
        query: the scan.
        examples: with common label values (`Library.unified`). The scan itself is left out.
        labels: which structures.
        most: how many examples are registered in full: those that look most like the scan; more only if a label would
            have none.

    Returns:
        the prior, with an entry for each label.

    Raises:
        InputError: if no example of another scan shows one of the labels.

    Example:
        >>> z, y, x = np.indices((12, 40, 40))
        >>> grid = Geometry((12, 40, 40), (2.0, 2.0, 4.0), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
        >>> def patient(column):
        ...     apart = (y - 20) ** 2 + (x - column) ** 2
        ...     organ = 4 * (z - 6) ** 2 + apart < 64
        ...     scan = Volume((100 * (apart < 180) + 100 * organ).astype(np.float32), grid)
        ...     return scan, Volume(organ.astype(np.uint8), grid)
        >>> query, truth = patient(18)
        >>> prior = prior_of(query, [Example.of(*patient(22), "first")], [1])
        >>> found, organ = prior.probabilities[1] > 127, truth.voxels > 0
        >>> bool(2 * (found & organ).sum() > 0.9 * (found.sum() + organ.sum())), prior.agreement[0].name
        (True, 'first')
    """
    own, wanted = query.content_hash(), set(labels)
    usable = [one for one in examples if one.scan != own and wanted & set(one.label_values)]
    missing = sorted(wanted - {label for one in usable for label in one.label_values})
    if missing:
        raise InputError(
            f"No finished scan but this one shows label {', '.join(map(str, missing))}; add one to the library, or "
            "paint a slice."
        )
    grey, grid = coarse_scan(query)
    fixed = _image(grey, grid)
    chosen = yield from _most_alike(fixed, usable, sorted(wanted), most)
    registered = []
    for number, (example, affine) in enumerate(chosen):
        yield AtlasStep(number, len(chosen))
        registered.append(_deformed(fixed, example, affine, sorted(wanted)))
    yield AtlasStep(len(chosen), len(chosen))
    shares = _fused(grey, grid, registered, sorted(wanted))
    probabilities = {label: _on_grid(share, grid, query.geometry) for label, share in shares.items()}
    counts = Counter(label for one in registered for label in one.shares)
    agreement = tuple(
        Agreement(one.example.name, one.example.digest(), _agreement(one, shares, counts)) for one in registered
    )
    return Prior(probabilities, _shown([one.example for one in registered], sorted(wanted)), agreement)


def prior_of(
    query: Volume,
    examples: Iterable[Example],
    labels: Collection[int],
    most: int = MOST_EXAMPLES,
    on_step: Callable[[AtlasStep], None] | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Prior:
    """`find_structures` to its end.

    Args:
        query, examples, labels, most: see there.
        on_step: called with the progress.
        cancel: called after each example; returns True to stop.

    Raises:
        InputError: see `find_structures`.
        Cancelled: if `cancel` returned True.
    """
    search = find_structures(query, examples, labels, most)
    while True:
        try:
            step = next(search)
        except StopIteration as end:
            return end.value
        if on_step is not None:
            on_step(step)
        if cancel is not None and cancel():
            raise Cancelled("The segmentation was cancelled.")


# -- which examples


def _most_alike(
    fixed: SimpleITK.Image, examples: Sequence[Example], labels: Collection[int], most: int
) -> Generator[AtlasStep, None, list[tuple[Example, SimpleITK.Transform]]]:
    """At most `most` examples that look like a scan, the most alike first, each with its affine transform; more only
    if a label would have none.

    Thumbnails of the bodies choose those that are registered affinely, the likeness after that the final ones.
    """
    yield AtlasStep(0)
    thumbnail = _thumbnail(fixed)
    ranked = []
    for example in examples:
        ranked.append((_correlation(thumbnail, _thumbnail(_image(example.image, example.geometry))), example))
        yield AtlasStep(0)
    ranked.sort(key=lambda one: -one[0])
    coarse = _coarsened(fixed, AFFINE_VOXELS)
    found = []
    for example in _covering([example for _, example in ranked], labels, RANKED * most):
        moving = _coarsened(_image(example.image, example.geometry), AFFINE_VOXELS)
        found.append((*_affine(coarse, moving), example))
        yield AtlasStep(0)
    found.sort(key=lambda one: -one[0])
    transforms = {id(example): affine for _, affine, example in found}
    chosen = _covering([example for _, _, example in found], labels, most)
    return [(example, transforms[id(example)]) for example in chosen]


def _covering(ranked: Sequence[Example], labels: Collection[int], most: int) -> list[Example]:
    """The first `most` examples, and for each label that none of them has the first one that has it."""
    chosen = list(ranked[:most])
    for label in labels:
        if not any(label in one.label_values for one in chosen):
            chosen += [one for one in ranked if label in one.label_values][:1]
    return chosen


def _thumbnail(image: SimpleITK.Image) -> np.ndarray:
    """float32 (side, side, side) of what a scan shows, stretched to fill it."""
    coarse = SimpleITK.GetArrayFromImage(_coarsened(image, AFFINE_VOXELS))
    box = bounding_box(coarse > coarse.max() / 10) or (slice(None),) * 3
    part = SimpleITK.GetImageFromArray(np.ascontiguousarray(coarse[box]))
    part.SetSpacing([THUMBNAIL / side for side in part.GetSize()])
    part.SetOrigin([step / 2 for step in part.GetSpacing()])
    still = SimpleITK.Transform(3, SimpleITK.sitkIdentity)
    corner, step = (0.5,) * 3, (1.0,) * 3
    small = SimpleITK.Resample(
        part, (THUMBNAIL,) * 3, still, SimpleITK.sitkLinear, corner, step, part.GetDirection(), 0.0
    )
    return SimpleITK.GetArrayFromImage(small)


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Of the grey values of two images; 0 if one of them shows nothing."""
    if not (one.std() > 0 and other.std() > 0):
        return 0.0
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


# -- registration


def _image(voxels: np.ndarray, grid: Geometry) -> SimpleITK.Image:
    """float32, of uint8 with 255 meaning 1."""
    image = SimpleITK.GetImageFromArray(voxels.astype(np.float32) / np.float32(255))
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction)
    return image


def _coarsened(image: SimpleITK.Image, voxels: float) -> SimpleITK.Image:
    """The same box in at most about so many voxels, that are as even as its own let them be."""
    spacing, extent = np.array(image.GetSpacing()), np.array(image.GetSize()) * np.array(image.GetSpacing())
    low, high = float(spacing.min()), float(max(extent.max(), spacing.max()))
    for _ in range(30):
        middle = (low + high) / 2
        if np.prod(extent / np.maximum(spacing, middle)) > voxels:
            low = middle
        else:
            high = middle
    sides = np.clip(np.rint(extent / np.maximum(spacing, high)), np.minimum(4, image.GetSize()), image.GetSize())
    steps = extent / sides
    for axis, (step, own) in enumerate(zip(steps, spacing, strict=True)):
        if step > 1.05 * own and image.GetSize()[axis] >= 4:
            sigma = 0.5 * math.sqrt((step / own) ** 2 - 1) * own
            image = SimpleITK.RecursiveGaussian(
                image, sigma, False, SimpleITK.RecursiveGaussianImageFilter.ZeroOrder, axis
            )
    origin = np.array(image.GetOrigin()) + np.reshape(image.GetDirection(), (3, 3)) @ ((steps - spacing) / 2)
    size, still = [int(side) for side in sides], SimpleITK.Transform(3, SimpleITK.sitkIdentity)
    return SimpleITK.Resample(
        image,
        size,
        still,
        SimpleITK.sitkLinear,
        origin.tolist(),
        steps.tolist(),
        image.GetDirection(),
        0.0,
        SimpleITK.sitkFloat32,
    )


def _centre(image: SimpleITK.Image) -> np.ndarray:
    """LPS mm: the centre of mass of the grey values, or of the grid if all are 0."""
    grey = SimpleITK.GetArrayViewFromImage(image)
    sums = [grey.sum(axis=tuple(other for other in range(3) if other != axis), dtype=np.float64) for axis in (2, 1, 0)]
    if not sums[0].sum() > 0:
        sums = [np.ones_like(one) for one in sums]
    middle = [float(one @ np.arange(len(one)) / one.sum()) for one in sums]
    return np.array(image.TransformContinuousIndexToPhysicalPoint(middle))


def _middle(image: SimpleITK.Image) -> np.ndarray:
    """LPS mm: the centre of the grid."""
    return np.array(image.TransformContinuousIndexToPhysicalPoint([(side - 1) / 2 for side in image.GetSize()]))


def _affine(fixed: SimpleITK.Image, moving: SimpleITK.Image) -> tuple[float, SimpleITK.Transform]:
    """From points of `fixed` to those of `moving`, both coarse.

    Shift and scale are sought from the centres of mass and from those of the grids, then an affine transform from the
    better one. Of all these, and of the grids as they lie, the one counts after which the images look most alike;
    one that turns or stretches a scan more than patients differ, as happens in thin stacks, does not.

    Returns:
        that likeness (the correlation of grey values without local mean and scale, -1 to 1), and the transform.
    """
    coarse = _coarsened(fixed, SIMILARITY_VOXELS), _coarsened(moving, SIMILARITY_VOXELS)
    target = _normalized(SimpleITK.GetArrayFromImage(fixed), (LOCAL_VOXELS,) * 3)
    candidates: list[tuple[float, SimpleITK.Transform]] = []

    def add(transform: SimpleITK.Transform) -> float:
        moved = _normalized(SimpleITK.GetArrayFromImage(_moved(moving, fixed, transform)), (LOCAL_VOXELS,) * 3)
        candidates.append((_correlation(target, moved), transform))
        return candidates[-1][0]

    centre = _centre(fixed)
    similar = []
    for of_fixed, of_moving in ((centre, _centre(moving)), (_middle(fixed), _middle(moving))):
        one = SimpleITK.Similarity3DTransform()
        one.SetCenter(centre.tolist())
        one.SetTranslation((of_moving - of_fixed).tolist())
        add(SimpleITK.Similarity3DTransform(one))
        _descend(*coarse, one, UNTURNED)
        similar.append((add(one), one))
    start = max(similar, key=lambda one: one[0])[1]
    affine = SimpleITK.AffineTransform(start.GetMatrix(), start.GetTranslation(), start.GetCenter())
    _descend(fixed, moving, affine)
    left, stretches, right = np.linalg.svd(np.reshape(affine.GetMatrix(), (3, 3)))
    turned = math.degrees(math.acos(min(max((np.trace(left @ right) - 1) / 2, -1), 1)))
    if turned <= MOST_TURNED and 1 / MOST_STRETCHED <= stretches[-1] and stretches[0] <= MOST_STRETCHED:
        add(affine)
    return max(candidates, key=lambda one: one[0])


def _descend(
    fixed: SimpleITK.Image, moving: SimpleITK.Image, transform: SimpleITK.Transform, weights: Sequence[float] = ()
) -> None:
    """Changes a transform, in place, to the one with the most mutual information nearby.

    It stays as it was if the images do not overlap, or one of them has one value.

    Args:
        weights: of its parameters: those with 0 stay; empty = all change.
    """
    registration = SimpleITK.ImageRegistrationMethod()
    registration.SetMetricAsMattesMutualInformation(24)
    registration.SetMetricSamplingStrategy(registration.RANDOM)
    registration.SetMetricSamplingPercentage(min(AFFINE_SAMPLES / math.prod(fixed.GetSize()), 1.0), 1)  # a seed
    registration.SetInterpolator(SimpleITK.sitkLinear)
    registration.SetOptimizerAsRegularStepGradientDescent(2.0, 0.05, AFFINE_STEPS, 0.7, 1e-8)
    registration.SetOptimizerScalesFromPhysicalShift()
    registration.SetOptimizerWeights(weights)
    registration.SetInitialTransform(transform, inPlace=True)
    with suppress(RuntimeError):
        registration.Execute(fixed, moving)


def _deformed(
    fixed: SimpleITK.Image, example: Example, affine: SimpleITK.Transform, labels: Sequence[int]
) -> _Registered:
    """An example on the grid of a scan, deformed in the box around those of its structures that are wanted."""
    moving = _image(example.image, example.geometry)
    wanted = _image(255 * np.isin(example.labels, labels).astype(np.uint8), example.geometry)
    inside = bounding_box(SimpleITK.GetArrayFromImage(_moved(wanted, fixed, affine)) > PRESENT)
    shape = fixed.GetSize()[::-1]
    box = _with_margin(inside, fixed) or tuple(slice(0, side) for side in shape)
    k, j, i = box
    part = fixed[i, j, k]
    transform = affine
    if inside is not None and min(part.GetSize()) >= LEAST_SIDE:
        field = _demons(part, moving, affine)
        # The transform that is added last is applied first.
        transform = SimpleITK.CompositeTransform([affine, SimpleITK.DisplacementFieldTransform(field)])
    shares = {}
    for label in labels:
        if label in example.label_values:
            share = _image(255 * (example.labels == label).astype(np.uint8), example.geometry)
            shares[label] = _uint8(_moved(share, part, transform))
    return _Registered(example, _uint8(_moved(moving, fixed, transform)), shares, box)


def _moved(image: SimpleITK.Image, fixed: SimpleITK.Image, transform: SimpleITK.Transform) -> SimpleITK.Image:
    return SimpleITK.Resample(image, fixed, transform, SimpleITK.sitkLinear, 0.0)


def _uint8(image: SimpleITK.Image) -> np.ndarray:
    """uint8, 255 meaning 1, of an image of 0 to 1."""
    return np.rint(255 * np.clip(SimpleITK.GetArrayViewFromImage(image), 0, 1)).astype(np.uint8)


def _with_margin(box: tuple[slice, ...] | None, image: SimpleITK.Image) -> tuple[slice, ...] | None:
    """A box of array axes with `MARGIN_MM` around it; None if there is none."""
    if box is None:
        return None
    sides = []
    for side, step, count in zip(box, reversed(image.GetSpacing()), reversed(image.GetSize()), strict=True):
        margin = math.ceil(MARGIN_MM / step)
        sides.append(slice(max(side.start - margin, 0), min(side.stop + margin, count)))
    return tuple(sides)


def _demons(fixed: SimpleITK.Image, moving: SimpleITK.Image, affine: SimpleITK.Transform) -> SimpleITK.Image:
    """Displacements, float64 mm, on a grid over `fixed`: to be followed before the affine transform."""
    field = None
    for voxels, steps in DEMONS_LEVELS:
        target = _coarsened(fixed, voxels)
        source = _moved(_coarsened(moving, voxels * _volume(moving) / _volume(fixed)), target, affine)
        filter_ = SimpleITK.FastSymmetricForcesDemonsRegistrationFilter()
        filter_.SetNumberOfIterations(steps)
        filter_.SetStandardDeviations(DEMONS_SMOOTH)
        filter_.SetMaximumUpdateStepLength(DEMONS_STEP)
        pair = _without_local_contrast(target), _without_local_contrast(source)
        if field is None:
            field = filter_.Execute(*pair)
        else:
            still = SimpleITK.Transform(3, SimpleITK.sitkIdentity)
            field = filter_.Execute(*pair, SimpleITK.Resample(field, target, still, SimpleITK.sitkLinear, 0.0))
    return SimpleITK.Cast(field, SimpleITK.sitkVectorFloat64)


def _volume(image: SimpleITK.Image) -> float:
    return math.prod(image.GetSize()) * math.prod(image.GetSpacing())


def _without_local_contrast(image: SimpleITK.Image) -> SimpleITK.Image:
    """See `_normalized`."""
    result = SimpleITK.GetImageFromArray(_normalized(SimpleITK.GetArrayFromImage(image), (LOCAL_VOXELS,) * 3))
    result.CopyInformation(image)
    return result


def _normalized(grey: np.ndarray, sigma: Sequence[float] | np.ndarray) -> np.ndarray:
    """Grey values less the mean of their surroundings, in shares of the standard deviation there; float32.

    Args:
        grey: float32 (slices, height, width), 0 to 1.
        sigma: of the surroundings, along each axis, in voxels.
    """
    apart = grey - gaussian_filter(grey, sigma, truncate=2.5)
    return apart / (np.sqrt(gaussian_filter(apart * apart, sigma, truncate=2.5)) + np.float32(LEAST_SCALE))


# -- fusion


def _fused(
    grey: np.ndarray, grid: Geometry, registered: Sequence[_Registered], labels: Sequence[int]
) -> dict[int, np.ndarray]:
    """By label the joint fusion of all examples that have it, uint8 (slices, height, width), 255 meaning 1."""
    fused = {label: np.zeros(grid.shape, dtype=np.uint8) for label in labels}
    shown = np.zeros(grid.shape, dtype=bool)
    for one in registered:
        for share in one.shares.values():
            shown[one.box] |= share > 255 * PRESENT
    inside = bounding_box(shown)
    if inside is None:
        return fused
    steps = np.array(grid.spacing[::-1])
    box = tuple(
        slice(max(side.start - reach, 0), min(side.stop + reach, count))
        for side, reach, count in zip(inside, np.ceil(2 * LOCAL_MM / steps).astype(int), grid.shape, strict=True)
    )
    scan = _normalized(grey[box].astype(np.float32) / 255, LOCAL_MM / steps)
    errors = [
        np.abs(scan - _normalized(one.image[box].astype(np.float32) / 255, LOCAL_MM / steps)) for one in registered
    ]
    places = np.flatnonzero(shown[box])
    count = len(registered)
    joint = np.empty((len(places), count, count), dtype=np.float32)  # how likely two examples are wrong together
    for row in range(count):
        for column in range(row + 1):
            together = gaussian_filter(errors[row] * errors[column], PATCH_MM / steps, truncate=3)
            joint[:, row, column] = joint[:, column, row] = together.ravel()[places] ** JOINT_POWER
    weights = np.concatenate(
        [_weights(joint[start : start + FUSED_VOXELS]) for start in range(0, len(places), FUSED_VOXELS)]
    )
    for label, result in fused.items():
        total = weighted = np.zeros(len(places), dtype=np.float32)
        for number, one in enumerate(registered):
            if label in one.shares:
                weighted = weighted + weights[:, number] * one.share(label)[box].ravel()[places]
                total = total + weights[:, number]
        part = np.zeros(shown[box].size, dtype=np.uint8)
        part[places] = np.rint(weighted / np.maximum(total, np.float32(1e-6)))
        result[box] = part.reshape(shown[box].shape)
    return fused


def _weights(joint: np.ndarray) -> np.ndarray:
    """The weights that make the expected error of the sum least, (voxels, examples); 0 or more, with the sum 1.

    Args:
        joint: (voxels, examples, examples), what is expected of the product of two examples' errors.
    """
    count = joint.shape[1]
    ridge = JOINT_RIDGE * np.trace(joint, axis1=1, axis2=2) / count + np.float32(1e-4)
    solved = np.linalg.solve(joint + ridge[:, None, None] * np.eye(count, dtype=np.float32), np.ones((count, 1)))
    weights = np.maximum(solved[..., 0], 0).astype(np.float32)
    return weights / np.maximum(weights.sum(axis=1, keepdims=True), np.float32(1e-12))


def _on_grid(share: np.ndarray, grid: Geometry, target: Geometry) -> np.ndarray:
    """A share on another grid, linearly, uint8; 0 outside of its own."""
    image, still = _image(share, grid), SimpleITK.Transform(3, SimpleITK.sitkIdentity)
    size = target.shape[::-1]
    moved = SimpleITK.Resample(
        image, size, still, SimpleITK.sitkLinear, target.origin, target.spacing, target.direction, 0.0
    )
    return _uint8(moved)


def _agreement(one: _Registered, fused: Mapping[int, np.ndarray], counts: Mapping[int, int]) -> float:
    """See `Agreement`; `counts` has the number of examples by label."""
    found = [(one.share(label) > 127, fused[label] > 127) for label in one.shares if counts[label] > 1]
    return float(np.mean([2 * (a & b).sum() / max(a.sum() + b.sum(), 1) for a, b in found])) if found else math.nan


def _shown(examples: Sequence[Example], labels: Sequence[int]) -> SupportSet:
    """See `Prior.support`."""
    slices, names = [], {}
    for label in labels:
        having = [one for one in examples if label in one.label_values]
        names[label] = next((one.names[label] for one in having if one.names[label]), "")
        for example in having[:SHOWN]:
            low, width = example.window.low, example.window.high - example.window.low
            volume = Volume((low + example.image * np.float32(width / 255)).astype(np.float32), example.geometry)
            mask = example.labels == label
            for axis in range(3):
                areas = np.count_nonzero(mask, axis=tuple(other for other in range(3) if other != axis))
                index = int(np.argmax(areas))
                slices.append(
                    SupportSlice(
                        image=np.array(volume.slice(axis, index)),
                        labels=np.where(np.moveaxis(mask, axis, 0)[index], np.uint16(label), np.uint16(0)),
                        index=index,
                        plane=SlicePlane.of(volume, axis, example.window, example.scan),
                    )
                )
    return SupportSet(tuple(slices), names)
