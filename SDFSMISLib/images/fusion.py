"""Fusion in 3D: probabilities found along several axes become one volume, corrected by what painted planes know.

Along each axis the slices near a painted plane are the surest, and those with fine pixels are surer than those with
coarse ones. The planes of the other axes tell what is wrong with an axis: that is corrected in their surroundings too.
Then each voxel's probability is the mean over the axes, weighted by the distance to the painted planes of each axis, by
the area that these show, by the size of its pixels, by how wrong the axis is on the planes of the others, and by how
sure it is itself. What is still wrong on the painted planes is corrected in the same way. Needs numpy only, so that a
front end can show the effect of a stroke without a network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from SDFSMISLib.images.labelmap import bounding_box
from SDFSMISLib.images.planes import Plane

__all__ = ["Error", "PlaneMask", "correct", "fuse", "fuse_blocks", "spread_errors", "temporary_bytes"]

UNCHECKED = 0.3  # error of an axis that no plane of another one has checked, if it is compared with a prior
FUSION_MM = 20.0  # distance from a painted plane at which the weight of its axis falls by e
DOUBT = 0.2  # weight of a probability of 0.5, in those of 0 and 1, which are 1 more
MISTRUST = 1.0  # power of its error on the planes of other axes with which the weight of an axis falls;
LEAST_WRONG = 0.05  # a smaller error counts as this
COARSENESS = 1.5  # power of its pixels' longer side with which the weight of an axis falls
CORRECTION_MM = 10.0  # the same for what is corrected in the surroundings of a painted plane
CORRECTION_REACH = 4.0  # in shares of `CORRECTION_MM`; farther away nothing is corrected
SMALLEST_WEIGHT = 1e-12  # of a voxel; sums of weights below it count as this
BLOCK_VOXELS = 1 << 21  # fused at once, in about a fifth of a second
BYTES_PER_BLOCK_VOXEL = 64  # of the arrays of float32 that are in memory at the same time

Box = tuple[slice, ...]


@dataclass(frozen=True, eq=False)
class PlaneMask:
    """What is known of one label on a plane.

    Attributes:
        plane: axis and index.
        mask: bool (rows, columns) in array order: where the label is.
        known: bool of the same shape: where `mask` counts; None = everywhere.
    """

    plane: Plane
    mask: np.ndarray
    known: np.ndarray | None = None


def fuse(
    probabilities: Mapping[int, np.ndarray],
    planes: Sequence[PlaneMask],
    spacing: tuple[float, float, float],
    prior: np.ndarray | None = None,
) -> np.ndarray:
    """The mean of the probabilities found along each axis, corrected by the painted planes (see `correct`).

    Beyond input and output the memory is `temporary_bytes`.

    Args:
        probabilities: by axis, uint8 (slices, height, width), 255 meaning 1; on each axis a plane shows the label, or
            on none.
        planes: the painted planes, of any axis.
        spacing: distance of neighbouring voxels along the array axes (slices, height, width), in mm.
        prior: uint8 of the same shape, what finished scans let expect: it counts as much as all axes together do on
            their planes, and less the more it is wrong on them.

    Returns:
        uint8 of the same shape; on the planes it is 0 or 255 where they are known.

    >>> axial, sagittal = np.full((3, 3, 3), 255, dtype=np.uint8), np.zeros((3, 3, 3), dtype=np.uint8)
    >>> whole = np.ones((3, 3), dtype=bool)
    >>> planes = [PlaneMask(Plane(0, 0), whole), PlaneMask(Plane(2, 2), whole, known=np.zeros((3, 3), dtype=bool))]
    >>> fuse({0: axial, 2: sagittal}, planes, (20.0, 1.0, 1.0))[:, 1, 0].tolist()
    [255, 254, 251]
    """
    result = np.zeros(next(iter(probabilities.values())).shape, dtype=np.uint8)
    for _ in fuse_blocks(result, probabilities, planes, spacing, prior):
        pass
    return result


def fuse_blocks(
    result: np.ndarray,
    probabilities: Mapping[int, np.ndarray],
    planes: Sequence[PlaneMask],
    spacing: tuple[float, float, float],
    prior: np.ndarray | None = None,
) -> Iterator[None]:
    """`fuse` into an array of zeros, step by step: whoever iterates can stop, or do other things, after each block."""
    shape = result.shape
    weights = {axis: _axis_weights(axis, planes, shape[axis], spacing) for axis in probabilities}
    sources = [_Source(one, weights[axis], axis, axis) for axis, one in probabilities.items()]
    if prior is not None:
        largest = np.logaddexp.reduce([float(one.max()) for one in weights.values()])
        sources.append(_Source(prior, np.full(shape[0], largest), 0, None))
    boxes = []
    for source in sources:
        boxes.append(bounding_box(source.found))
        yield
    box = _common_box(shape, boxes, planes, spacing)
    if box is None:
        return
    errors = []
    for source in sources:
        crossing = [plane for plane in planes if plane.plane.axis != source.held]
        errors.append([_error(plane, _found_in(source.found), box) for plane in crossing])
        unchecked = prior is not None and planes and not crossing
        wrong = UNCHECKED if unchecked else max(_wrong(errors[-1], crossing, box), LEAST_WRONG)
        source.weights -= MISTRUST * math.log(wrong)
        yield

    def mean(block: Box) -> np.ndarray:
        weighted, total = np.zeros((), dtype=np.float32), np.zeros((), dtype=np.float32)
        largest = max(float(one.weights[block[one.along]].max()) for one in sources)  # keeps weights above 0
        for source, wrong in zip(sources, errors, strict=True):
            values = _found_in(source.found)(block)
            spread_errors(values, [_within(error, box, block) for error in wrong], spacing)
            np.clip(values, 0, 1, out=values)
            weight = _along(np.exp(source.weights[block[source.along]] - largest), source.along)
            weight = weight * (DOUBT + np.abs(2 * values - 1))
            total = total + weight
            values *= weight
            weighted = weighted + values
        return weighted / np.maximum(total, SMALLEST_WEIGHT)

    yield from _correct_blocks(result, mean, planes, spacing, box)


def temporary_bytes(shape: tuple[int, int, int]) -> int:
    """The most memory that the fusion of a volume takes beyond input and output."""
    return BYTES_PER_BLOCK_VOXEL * min(math.prod(shape), max(BLOCK_VOXELS, shape[1] * shape[2]))


def correct(probability: np.ndarray, planes: Sequence[PlaneMask], spacing: tuple[float, float, float]) -> np.ndarray:
    """Probabilities that agree with the planes on them, and come nearer to them around.

    What is wrong on a plane (mask minus probability, where it is known) is added to the slices beside it, with a weight
    that falls by e over `CORRECTION_MM`.

    Args:
        probability: uint8 (slices, height, width), 255 meaning 1; not changed.
        planes: where two disagree the later one counts.
        spacing: as in `fuse`.

    Returns:
        uint8 of the same shape.

    >>> nothing, pixel = np.zeros((3, 1, 1), dtype=np.uint8), np.ones((1, 1), dtype=bool)
    >>> correct(nothing, [PlaneMask(Plane(0, 0), pixel)], (6.0, 1.0, 1.0)).ravel().tolist()
    [255, 140, 77]
    """
    result = np.zeros_like(probability)
    box = _common_box(result.shape, [bounding_box(probability)], planes, spacing)
    if box is not None:
        for _ in _correct_blocks(result, _found_in(probability), planes, spacing, box):
            pass
    return result


def _correct_blocks(
    result: np.ndarray,
    probability: Callable[[Box], np.ndarray],
    planes: Sequence[PlaneMask],
    spacing: tuple[float, float, float],
    box: Box,
) -> Iterator[None]:
    """Write the corrected probabilities into an array of zeros, block by block.

    Args:
        probability: gives the uncorrected ones of a box, float32, 0 to 1.
        box: around all that is not 0, before or after.
    """
    errors = [_error(one, probability, box) for one in planes]
    plane_voxels = (box[1].stop - box[1].start) * (box[2].stop - box[2].start)
    thickness = max(BLOCK_VOXELS // plane_voxels, 1)
    for start in range(box[0].start, box[0].stop, thickness):
        block = (slice(start, min(start + thickness, box[0].stop)), *box[1:])
        values = probability(block)
        spread_errors(values, [_within(one, box, block) for one in errors], spacing)
        result[block] = np.rint(255 * np.clip(values, 0, 1))
        yield
    for one in planes:
        held = np.moveaxis(result, one.plane.axis, 0)[one.plane.index]
        known = np.ones_like(one.mask) if one.known is None else one.known
        held[known] = 255 * one.mask[known].astype(np.uint8)


@dataclass(eq=False)
class _Source:
    """Probabilities that are fused with others.

    Attributes:
        found: uint8 (slices, height, width), 255 meaning 1.
        weights: logarithms of their weights, by index along the axis `along`.
        held: the axis whose painted planes they agree with already; None = no axis.
    """

    found: np.ndarray
    weights: np.ndarray
    along: int
    held: int | None


@dataclass(frozen=True, eq=False)
class Error:
    """What probabilities lack where they are known: on a plane of a volume, or on a line of a slice.

    Attributes:
        axis: along which `index` counts; an index outside the array is a plane outside it.
        error: truth minus probability, float32, of one dimension less; 0 where it is unknown.
        known: bool of the same shape; None = everywhere.
    """

    axis: int
    index: int
    error: np.ndarray
    known: np.ndarray | None = None


def spread_errors(values: np.ndarray, errors: Sequence[Error], spacing: Sequence[float]) -> None:
    """Correct probabilities around where they are known to be wrong, in place.

    Along each axis the error of a voxel is taken for the mean of those that are known on that axis, weighted by
    exp(-distance / `CORRECTION_MM`), and counts as much as the nearest one's weight. So a second plane beside the first
    does not correct the same error twice.

    Args:
        values: float32, of any number of dimensions.
        spacing: distance of neighbouring elements along each axis, in mm.

    >>> slice_, line = np.full((1, 3), 0.5, np.float32), np.array([0.5], np.float32)
    >>> spread_errors(slice_, [Error(1, 0, line), Error(1, 1, line)], (1.0, 6.0))
    >>> slice_.round(2)
    array([[1.  , 1.  , 0.77]], dtype=float32)
    """
    corrections = []
    for axis in sorted({one.axis for one in errors}):
        places = np.arange(values.shape[axis])
        sides = (-1,) + (1,) * (values.ndim - 1)
        weighted, total, largest = (np.zeros((1,) * values.ndim, dtype=np.float32) for _ in range(3))
        for one in errors:
            if one.axis != axis:
                continue
            apart = np.abs(places - one.index) * spacing[axis]
            weight = np.where(apart <= CORRECTION_REACH * CORRECTION_MM, np.exp(-apart / CORRECTION_MM), 0)
            weight = weight.astype(np.float32).reshape(sides)
            counts = weight if one.known is None else weight * one.known
            weighted = weighted + weight * one.error
            total = total + counts
            largest = np.maximum(largest, counts)
        corrections.append((axis, weighted / np.maximum(total, SMALLEST_WEIGHT) * largest))
    for axis, correction in corrections:
        along = np.moveaxis(values, axis, 0)
        along += correction


def _found_in(probability: np.ndarray) -> Callable[[Box], np.ndarray]:
    """Gives the probabilities of a box, float32, 0 to 1, of uint8 ones with 255 meaning 1."""
    return lambda box: probability[box].astype(np.float32) / 255


def _error(one: PlaneMask, probability: Callable[[Box], np.ndarray], box: Box) -> Error:
    """How much probability a plane lacks, within the box; outside of it there is none. Its index is the volume's."""
    axis, index = one.plane
    mask = one.mask[_beside(axis, box)]
    error = mask.astype(np.float32)
    if box[axis].start <= index < box[axis].stop:
        error -= probability((*box[:axis], slice(index, index + 1), *box[axis + 1 :])).reshape(mask.shape)
    known = None if one.known is None else one.known[_beside(axis, box)]
    return Error(axis, index, error if known is None else np.where(known, error, np.float32(0)), known)


def _wrong(errors: Sequence[Error], planes: Sequence[PlaneMask], box: Box) -> float:
    """How wrong probabilities are on planes: 1 - Dice coefficient, 0 to 1; 0 where nothing is known or found."""
    wrong = both = 0.0
    for error, one in zip(errors, planes, strict=True):
        mask = one.mask[_beside(error.axis, box)]
        shown = np.count_nonzero(mask if error.known is None else mask & error.known)
        wrong += float(np.abs(error.error).sum(dtype=np.float64))
        both += 2 * shown - float(error.error.sum(dtype=np.float64))  # an error is mask minus probability
    return wrong / both if both > 0 else 0.0


def _within(one: Error, box: Box, block: Box) -> Error:
    """An error on a plane of a box, whose index is the volume's, as one of a block of this box, counted from there."""
    inside = tuple(
        slice(part.start - whole.start, part.stop - whole.start)
        for part, whole in zip(_beside(one.axis, block), _beside(one.axis, box), strict=True)
    )
    known = None if one.known is None else one.known[inside]
    return replace(one, index=one.index - block[one.axis].start, error=one.error[inside], known=known)


def _beside(axis: int, box: Box) -> Box:
    """The sides of a box along the other axes."""
    return tuple(side for other, side in enumerate(box) if other != axis)


def _common_box(
    shape: tuple[int, ...],
    boxes: Sequence[Box | None],
    planes: Sequence[PlaneMask],
    spacing: tuple[float, float, float],
) -> Box | None:
    """The box around other boxes, and around all that a painted plane can make other than 0; None if there is none."""
    around = [box for box in boxes if box is not None]
    for painted in planes:
        inside = bounding_box(painted.mask)
        if inside is not None:
            axis, index = painted.plane
            reach = int(CORRECTION_REACH * CORRECTION_MM / spacing[axis])
            side = slice(max(index - reach, 0), min(index + reach + 1, shape[axis]))
            around.append((*inside[:axis], side, *inside[axis:]))
    if not around:
        return None
    low, high = (np.array([[getattr(side, end) for side in box] for box in around]) for end in ("start", "stop"))
    return tuple(slice(int(a), int(b)) for a, b in zip(low.min(axis=0), high.max(axis=0), strict=True))


def _axis_weights(
    axis: int, planes: Sequence[PlaneMask], count: int, spacing: tuple[float, float, float]
) -> np.ndarray:
    """float64 (slices along the axis,): the logarithm of the weight of what is found along it.

    It falls with the distance to the painted planes of this axis, and grows with the square root of the area that they
    show: a plane through the edge of a structure tells less of it than one through its middle. It falls with the length
    of the pixels: sagittal slices through thick axial ones show a structure in few rows, and its border less well.
    """
    pixel = max(size for other, size in enumerate(spacing) if other != axis)
    weights = np.full(count, -np.inf)
    for one in planes:
        if one.plane.axis == axis and one.mask.any():
            area = np.count_nonzero(one.mask) / spacing[axis]  # in pixels times thickness: mm2, but for a factor
            apart = np.abs(np.arange(count) - one.plane.index) * spacing[axis]
            weights = np.maximum(weights, math.log(area) / 2 - COARSENESS * math.log(pixel) - apart / FUSION_MM)
    if np.isfinite(weights).all():
        return weights
    return np.full(count, -COARSENESS * math.log(pixel))  # it was found by examples of another scan


def _along(values: np.ndarray, axis: int) -> np.ndarray:
    """Values of the slices along an axis, float32, in a shape that broadcasts to a volume's."""
    shape = [1, 1, 1]
    shape[axis] = len(values)
    return values.astype(np.float32).reshape(shape)
