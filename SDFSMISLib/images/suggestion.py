"""Where a result is likely wrong, and where one more painted slice would help most. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from SDFSMISLib.images.fusion import CORRECTION_MM
from SDFSMISLib.images.labelmap import bounding_box
from SDFSMISLib.images.planes import Plane

__all__ = ["ExpectedErrors", "suggest_plane"]

BORDER_MM = 1.0  # how far off the border of a structure is, on a painted plane: the standard deviation,
BORDER_GROWTH = 0.15  # and how much it grows with each mm of distance from the nearest one
SMALL = 0.02  # area, as a share of the largest, that hardly counts: a slice is doubtful only if as much may be missing
MARGIN_MM = 20.0  # around what was found; farther away nothing is expected to be missing
MOST_VOXELS = 1 << 20  # that are looked at; of more, every second one along the finest axis, and so on


@dataclass(frozen=True, eq=False)
class ExpectedErrors:
    """How many voxels of a label are likely wrong on each slice of each axis.

    The border of what was found is the less sure the farther away the next painted plane is; its distance from the true
    one counts as normally distributed. Voxels whose probability is near the threshold are doubtful by themselves.

    Attributes:
        area: by axis, float64 (slices along it,): voxels that were found.
        surplus: of the same form: voxels that were found and are likely wrong.
        missing: of the same form: voxels that were not found and likely should have been.

    >>> probability = np.zeros((9, 1, 9), dtype=np.uint8)
    >>> probability[:, :, 3:6] = 255
    >>> errors = ExpectedErrors.of(probability, [Plane(0, 0)], (5.0, 1.0, 1.0))
    >>> [f"{one:.2f}" for one in errors.certainty(axis=0)[:4]]
    ['1.00', '0.64', '0.58', '0.54']
    >>> suggest_plane([errors], [Plane(0, 0)], (5.0, 1.0, 1.0))
    Plane(axis=1, index=0)
    """

    area: tuple[np.ndarray, ...]
    surplus: tuple[np.ndarray, ...]
    missing: tuple[np.ndarray, ...]

    @classmethod
    def of(
        cls,
        probability: np.ndarray,
        planes: Sequence[Plane],
        spacing: tuple[float, float, float],
        threshold: float = 0.5,
    ) -> ExpectedErrors:
        """The errors to expect in a result. Takes some 40 bytes for each of at most `MOST_VOXELS` voxels.

        Args:
            probability: uint8 (slices, height, width), 255 meaning 1.
            planes: painted planes of any axis; nothing is wrong on them.
            spacing: distance of neighbouring voxels along the array axes (slices, height, width), in mm.
            threshold: 0 to 1, above which a voxel was found.
        """
        shape = probability.shape
        extent = bounding_box(probability)
        if extent is None:
            nothing = tuple(np.zeros(side) for side in shape)
            return cls(nothing, nothing, nothing)
        margin = [math.ceil(MARGIN_MM / size) for size in spacing]
        box = tuple(
            slice(max(side.start - more, 0), min(side.stop + more, full))
            for side, more, full in zip(extent, margin, shape, strict=True)
        )
        steps = _steps([side.stop - side.start for side in box], spacing)
        looked_at = tuple(slice(side.start, side.stop, step) for side, step in zip(box, steps, strict=True))
        values = probability[looked_at]
        inside = values > 255 * threshold
        coarse = tuple(step * size for step, size in zip(steps, spacing, strict=True))
        distance = _distance(shape, planes, spacing, looked_at)
        chance = _chance(values, inside, distance, coarse, threshold)

        def on_slices(weights: np.ndarray, axis: int) -> np.ndarray:
            others = tuple(other for other in range(3) if other != axis)
            sums = weights.sum(axis=others, dtype=np.float64) * math.prod(steps[other] for other in others)
            whole = np.zeros(shape[axis])
            whole[box[axis]] = np.repeat(sums, steps[axis])[: box[axis].stop - box[axis].start]
            return whole

        area = tuple(_areas(probability, axis, box, threshold) for axis in range(3))
        surplus, missing = (
            tuple(on_slices(weights, axis) for axis in range(3))
            for weights in (np.where(inside, chance, 0), np.where(inside, 0, chance))
        )
        surplus = tuple(np.minimum(one, found / 2) for one, found in zip(surplus, area, strict=True))
        for axis, index in planes:
            surplus[axis][index] = missing[axis][index] = 0
        return cls(area, surplus, missing)

    def wrong(self, axis: int) -> np.ndarray:
        """float64 (slices along the axis,): voxels that are likely wrong."""
        return self.surplus[axis] + self.missing[axis]

    def certainty(self, axis: int) -> np.ndarray:
        """float64 (slices along the axis,): the Dice coefficient to expect, 0 to 1; 1 where nothing is found or likely
        missing."""
        right = 2 * (self.area[axis] - self.surplus[axis]) + SMALL * self.area[axis].max(initial=0)
        total = right + self.wrong(axis)
        return np.divide(right, total, out=np.ones(len(total)), where=total > 0)


def suggest_plane(
    errors: Sequence[ExpectedErrors],
    planes: Sequence[Plane],
    spacing: tuple[float, float, float],
    skip: Collection[Plane] = (),
) -> Plane | None:
    """The plane, of any axis, where one more painted slice would help most.

    That is where most is likely to be wrong, in mm³, on the plane and around it, as far as a correction reaches.

    Args:
        errors: of each label.
        planes: those that are painted already.
        spacing: distance of neighbouring voxels along the array axes (slices, height, width), in mm.
        skip: further planes that are not to be named.

    Returns:
        None if nothing is likely to be wrong.
    """
    best: tuple[float, Plane] | None = None
    for axis, size in enumerate(spacing):
        wrong = np.sum([one.wrong(axis) for one in errors], axis=0)
        places = np.arange(len(wrong))
        gain = np.exp(-np.abs(places[:, None] - places) * size / CORRECTION_MM) @ wrong * math.prod(spacing)
        gain[[index for along, index in (*planes, *skip) if along == axis]] = 0
        index = int(gain.argmax())
        if gain[index] > 0 and (best is None or gain[index] > best[0]):
            best = float(gain[index]), Plane(axis, index)
    return None if best is None else best[1]


def _steps(shape: Sequence[int], spacing: Sequence[float]) -> list[int]:
    """How many voxels to go on along each axis, so that at most `MOST_VOXELS` are looked at."""
    steps = [1, 1, 1]
    while math.prod(math.ceil(side / step) for side, step in zip(shape, steps, strict=True)) > MOST_VOXELS:
        finest = min(range(3), key=lambda axis: steps[axis] * spacing[axis])
        steps[finest] *= 2
    return steps


def _areas(probability: np.ndarray, axis: int, box: tuple[slice, ...], threshold: float) -> np.ndarray:
    """float64 (slices along the axis,): voxels above the threshold; a slice at a time, to spare memory."""
    area = np.zeros(probability.shape[axis])
    for index, plane in enumerate(np.moveaxis(probability[box], axis, 0), start=box[axis].start):
        area[index] = np.count_nonzero(plane > 255 * threshold)
    return area


def _chance(
    values: np.ndarray, inside: np.ndarray, distance: np.ndarray, spacing: tuple[float, ...], threshold: float
) -> np.ndarray:
    """float32, 0 to 0.5: how likely it is that a voxel is on the wrong side of the threshold.

    Args:
        values: probability, uint8.
        inside: bool, whether it is above the threshold.
        distance: float32, to the nearest painted plane, in mm; nothing is wrong where it is 0.
    """
    from scipy.ndimage import distance_transform_edt
    from scipy.special import erfc

    share, threshold = values.astype(np.float32) / 255, min(max(threshold, 0.01), 0.99)
    chance = np.where(inside, (1 - share) / (2 - 2 * threshold), share / (2 * threshold)).astype(np.float32)
    if inside.any() and not inside.all():
        border = np.where(inside, distance_transform_edt(inside, spacing), distance_transform_edt(~inside, spacing))
        off = np.maximum(border.astype(np.float32) - min(spacing) / 2, 0)
        np.maximum(chance, erfc(off / (math.sqrt(2) * (BORDER_MM + BORDER_GROWTH * distance))) / 2, out=chance)
    return np.where(distance > 0, chance, np.float32(0))


def _distance(
    shape: tuple[int, ...], planes: Sequence[Plane], spacing: tuple[float, float, float], box: tuple[slice, ...]
) -> np.ndarray:
    """float32 of a box: the distance to the nearest plane, in mm; that to the farthest corner if there is none."""
    farthest = math.dist((0, 0, 0), [side * size for side, size in zip(shape, spacing, strict=True)])
    places = [np.arange(shape[axis])[box[axis]] for axis in range(3)]
    distance = np.full([len(one) for one in places], farthest, dtype=np.float32)
    for axis, index in planes:
        apart = (np.abs(places[axis] - index) * spacing[axis]).astype(np.float32)
        np.minimum(distance, apart.reshape([-1 if other == axis else 1 for other in range(3)]), out=distance)
    return distance
