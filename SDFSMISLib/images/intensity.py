"""The intensity window: the raw intensities that the networks see as -1 and 1."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from SDFSMISLib.errors import InputError

__all__ = ["IntensityWindow", "minmax_window", "robust_window"]

SAMPLES = 2_000_000  # voxels that the percentiles are taken from; a scan with more is sampled evenly
PADDING_SHARE = 0.05  # a single value held by at least this share of the voxels is padding or an emptied background
AIR_PERCENTILE, AIR_BELOW, TISSUE_ABOVE = 0.1, -800.0, -500.0  # Hounsfield units
FLOAT32_EDGE = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class IntensityWindow:
    """Raw intensities ``low`` and ``high`` (finite, ``low <= high``) that become -1 and 1.

    >>> IntensityWindow(-100, 100).normalize(np.array([-1000, 0, 50])).tolist()
    [-1.0, 0.0, 0.5]
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "low", float(self.low))
        object.__setattr__(self, "high", float(self.high))
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise InputError(
                f"The intensity window ({self.low:g}, {self.high:g}) was given; it takes finite numbers, low <= high."
            )

    def normalize(self, image: np.ndarray) -> np.ndarray:
        """``image`` (any shape and real dtype) as float32 in [-1, 1].

        Values outside the window, infinities too, become -1 or 1; NaN becomes -1. A window of no width gives -1
        everywhere.
        """
        image = np.asarray(image)
        width = self.high - self.low
        if width == 0:
            return np.full(image.shape, -1, dtype=np.float32)
        # float32 halves the memory; it is not used if it would lose grey levels or overflow.
        size = max(abs(self.low), abs(self.high))
        exact = image.dtype.itemsize <= 2 or image.dtype == np.float32
        dtype = np.float32 if exact and width >= 1e-5 * size and 1e-30 < size < 1e30 else np.float64
        values = image.astype(dtype)
        np.nan_to_num(values, copy=False, nan=self.low, posinf=self.high, neginf=self.low)
        np.clip(values, self.low, self.high, out=values)
        values -= dtype(self.low)
        values /= dtype(width)
        values *= 2
        values -= 1
        return np.clip(values, -1, 1).astype(np.float32, copy=False)


def minmax_window(voxels: np.ndarray) -> IntensityWindow:
    """The window from the smallest to the largest finite voxel of ``(slices, height, width)``."""
    low, high = finite_range(voxels)
    return IntensityWindow(max(low, -FLOAT32_EDGE), min(high, FLOAT32_EDGE))


def robust_window(voxels: np.ndarray) -> IntensityWindow:
    """The window of the tissue in a scan ``(slices, height, width)`` of any modality and dtype.

    It is computed from at most two million finite voxels, evenly spaced and the same ones each time:

    1. The most frequent value is left out if at least 5 % of them have it: it is padding around the field of view, or
       a background set to one value.
    2. Values below -500 are left out if the 0.1 percentile of the rest is at most -800: only Hounsfield units reach
       so low, and there those are air, the table and most of the lung.
    3. Of the rest, with quartiles q25 and q75 and IQR = q75 - q25, the window is
       ``[max(p0.5, q25 - 3 IQR), min(p99.5, q75 + 3 IQR)]``: bright vessels or metal do not press tissue together.

    If that has no width, the window is from the smallest to the largest finite value; of a constant scan it is ``(v,
    v)``. Raises :class:`InputError` if no voxel is finite.
    """
    sample = _sample(voxels)
    kept = sample
    values, counts = np.unique(kept, return_counts=True)
    if counts.size and counts.max() >= PADDING_SHARE * kept.size:
        kept = kept[kept != values[counts.argmax()]]
    if kept.size and np.percentile(kept, AIR_PERCENTILE) <= AIR_BELOW:
        kept = kept[kept >= TISSUE_ABOVE]
    if kept.size:
        low, q25, q75, high = (float(value) for value in np.percentile(kept, (0.5, 25, 75, 99.5)))
        low, high = max(low, q25 - 3 * (q75 - q25)), min(high, q75 + 3 * (q75 - q25))
        if low < high:
            return IntensityWindow(low, high)
    return minmax_window(voxels)


def finite_range(voxels: np.ndarray) -> tuple[float, float]:
    """Smallest and largest finite value of ``(slices, height, width)``; :class:`InputError` if no voxel is finite."""
    low, high = voxels.min(), voxels.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        low, high = np.inf, -np.inf
        for plane in voxels:  # slice by slice, so that memory does not grow with the scan
            finite = plane[np.isfinite(plane)]
            if finite.size:
                low, high = min(low, finite.min()), max(high, finite.max())
        if low > high:
            raise InputError("The scan holds no finite intensity, only NaN and infinities; export it again.")
    return float(low), float(high)


def _sample(voxels: np.ndarray) -> np.ndarray:
    """At most ``SAMPLES`` finite voxels as float64, limited to the range of float32."""
    step = max(1, math.ceil(voxels.size / SAMPLES))
    while step > 1 and any(math.gcd(step, side) > 1 for side in voxels.shape[1:]):
        step += 1  # a step that divides a row would only ever meet the same columns
    flat = voxels.reshape(-1)[::step] if voxels.flags.c_contiguous else voxels.flat[::step]
    sample = flat.astype(np.float64)
    sample = sample[np.isfinite(sample)]
    return np.clip(sample, -FLOAT32_EDGE, FLOAT32_EDGE)
