"""Where a result is likely wrong, and where one more painted slice would help most. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np

from SDFSMISLib.images.fusion import CORRECTION_MM
from SDFSMISLib.images.labelmap import bounding_box
from SDFSMISLib.images.planes import Plane

__all__ = ["chance_of_error", "slice_certainty", "suggest_plane"]

BORDER_MM = 0.7  # how far off the border of a structure is, on a painted plane: the standard deviation,
BORDER_GROWTH = 0.1  # and how much it grows with each mm of distance from the nearest one
REACH = 4.0  # of an error from the border, in standard deviations


def chance_of_error(
    probability: np.ndarray, planes: Sequence[Plane], spacing: tuple[float, float, float], threshold: float = 0.5
) -> np.ndarray:
    """How likely it is that a voxel is on the wrong side of the threshold.

    The border of what was found is the less sure the farther away the next painted plane is; its distance from the true
    one counts as normally distributed. Voxels whose probability is near the threshold are doubtful by themselves.

    Args:
        probability: uint8 (slices, height, width), 255 meaning 1.
        planes: painted planes of any axis; nothing is wrong on them.
        spacing: distance of neighbouring voxels along the array axes (slices, height, width), in mm.
        threshold: 0 to 1.

    Returns:
        float32 of the same shape, 0 to 0.5.

    >>> probability = np.zeros((9, 1, 9), dtype=np.uint8)
    >>> probability[:, :, 3:6] = 255
    >>> chance = chance_of_error(probability, [Plane(0, 0)], (5.0, 1.0, 1.0))
    >>> [f"{one:.2f}" for one in chance[:4, 0, 3]]
    ['0.00', '0.34', '0.38', '0.41']
    """
    from scipy.ndimage import distance_transform_edt
    from scipy.special import erfc

    chance = np.zeros(probability.shape, dtype=np.float32)
    found = bounding_box(probability)
    if found is None:
        return chance
    farthest = BORDER_MM + BORDER_GROWTH * math.dist((0, 0, 0), np.multiply(probability.shape, spacing))
    margin = [math.ceil(REACH * farthest / size) for size in spacing]
    box = tuple(
        slice(max(side.start - more, 0), min(side.stop + more, full))
        for side, more, full in zip(found, margin, probability.shape, strict=True)
    )
    inside = probability[box] > 255 * threshold
    if inside.any() and not inside.all():
        border = np.where(inside, distance_transform_edt(inside, spacing), distance_transform_edt(~inside, spacing))
        deviation = BORDER_MM + BORDER_GROWTH * _distance(probability.shape, planes, spacing)[box]
        border = np.maximum(border - min(spacing) / 2, 0)
        chance[box] = erfc(border / (math.sqrt(2) * deviation)) / 2
    share = probability[box].astype(np.float32) / 255
    share = np.where(inside, (1 - share) / (2 - 2 * threshold), share / (2 * threshold))
    np.maximum(chance[box], share, out=chance[box])
    for axis, index in planes:
        np.moveaxis(chance, axis, 0)[index] = 0
    return chance


def slice_certainty(probability: np.ndarray, chance: np.ndarray, axis: int, threshold: float = 0.5) -> np.ndarray:
    """The Dice coefficient that each slice of an axis is expected to have, 0 to 1; 1 where nothing is found or likely.

    Args:
        probability: uint8 (slices, height, width), 255 meaning 1.
        chance: of each voxel to be wrong, see `chance_of_error`.
        axis: array axis.
        threshold: 0 to 1.

    Returns:
        float64 (slices along the axis,).
    """
    others = tuple(other for other in range(3) if other != axis)
    inside = probability > 255 * threshold
    wrong_inside, area = np.sum(chance, axis=others, where=inside, dtype=np.float64), inside.sum(axis=others)
    wrong = chance.sum(axis=others, dtype=np.float64)
    both = 2 * (area - wrong_inside)
    return np.divide(both, both + wrong, out=np.ones(len(area)), where=both + wrong > 0)


def suggest_plane(
    chances: Sequence[np.ndarray],
    planes: Sequence[Plane],
    spacing: tuple[float, float, float],
    skip: Collection[Plane] = (),
) -> Plane | None:
    """The plane, of any axis, where one more painted slice would help most.

    That is where most is likely to be wrong, in mm³, on the plane and around it, as far as a correction reaches.

    Args:
        chances: for each label the chance of each voxel to be wrong, see `chance_of_error`.
        planes: those that are painted already.
        spacing: distance of neighbouring voxels along the array axes (slices, height, width), in mm.
        skip: further planes that are not to be named.

    Returns:
        None if nothing is likely to be wrong.
    """
    best: tuple[float, Plane] | None = None
    shape = chances[0].shape
    for axis, size in enumerate(spacing):
        others = tuple(other for other in range(3) if other != axis)
        wrong = np.sum([chance.sum(axis=others, dtype=np.float64) for chance in chances], axis=0)
        apart = np.abs(np.arange(shape[axis])[:, None] - np.arange(shape[axis])) * size
        gain = (np.exp(-apart / CORRECTION_MM) @ wrong) * math.prod(spacing)
        gain[[index for along, index in (*planes, *skip) if along == axis]] = 0
        index = int(gain.argmax())
        if gain[index] > 0 and (best is None or gain[index] > best[0]):
            best = float(gain[index]), Plane(axis, index)
    return None if best is None else best[1]


def _distance(shape: tuple[int, ...], planes: Sequence[Plane], spacing: tuple[float, float, float]) -> np.ndarray:
    """float32 of this shape: the distance to the nearest plane, in mm; that to the farthest corner if there is none."""
    distance = np.full(shape, math.dist((0, 0, 0), np.multiply(shape, spacing)), dtype=np.float32)
    for axis, index in planes:
        apart = (np.abs(np.arange(shape[axis]) - index) * spacing[axis]).astype(np.float32)
        np.minimum(distance, apart.reshape([-1 if other == axis else 1 for other in range(3)]), out=distance)
    return distance
