"""How well a mask agrees with its reference.

A metric takes two bool masks of one shape ``(slices, height, width)`` and the voxel spacing ``(z, y, x)`` in mm in the
masks' own axis order; NaN means "not defined here": such a task is left out of that metric's mean, and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

__all__ = ["METRICS", "Metric", "dice", "score"]

Metric = Callable[[np.ndarray, np.ndarray, tuple[float, float, float]], float]


def dice(prediction: np.ndarray, reference: np.ndarray) -> float:
    """2 |A ∩ B| / (|A| + |B|) of two bool masks of one shape, as one set of voxels; both empty is 1, one empty is 0."""
    if prediction.shape != reference.shape or prediction.dtype != np.bool_ or reference.dtype != np.bool_:
        raise ValueError(
            f"Two bool masks of one shape are needed; {prediction.dtype} {prediction.shape} and {reference.dtype} "
            f"{reference.shape} were given."
        )
    total = int(np.count_nonzero(prediction)) + int(np.count_nonzero(reference))
    return 2 * int(np.count_nonzero(prediction & reference)) / total if total else 1.0


METRICS: Mapping[str, Metric] = {"dice": lambda prediction, reference, spacing: dice(prediction, reference)}
"""Name, as it heads a column of the results -> metric. The first is the one that tables show."""


def score(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: tuple[float, float, float],
    axis: int,
    slices: Sequence[int],
) -> dict[str, float]:
    """Every metric over the slices ``slices`` along ``axis`` as one volume; ``spacing`` is ``(z, y, x)`` in mm."""
    ours, theirs = (np.take(mask, slices, axis=axis) for mask in (prediction, reference))
    return {name: metric(ours, theirs, spacing) for name, metric in METRICS.items()}
