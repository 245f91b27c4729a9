"""What a segmentation run hands out: a record for each finished slice, and the whole in the end."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from SDFSMISLib.images.volume import Volume


@dataclass(frozen=True, eq=False)
class SliceResult:
    """One finished slice of one label.

    Attributes:
        label: label value. axis, index: which slice of the query volume (array order, from 0).
        probability: uint8 (rows, columns) on the query's own grid, 255 meaning 1.
        certainty: 0 to 1, see `certainty_of`.
        finished, total: slices done so far, this one included, and slices in all (labels counted one by one).
    """

    label: int
    axis: int
    index: int
    probability: np.ndarray
    certainty: float
    finished: int
    total: int


@dataclass(eq=False)
class Segmentation:
    """The result of a run.

    Attributes:
        labelmap: on the query's grid, with the support's label values and names.
        probabilities: by label value, uint8 (slices, height, width), 255 meaning 1; before post-processing.
        axis: the array axis along which slices were taken.
        painted: slices that were painted by hand; they come out as painted.
        certainty: by label value, one number per slice, 0 to 1; NaN where no slice was computed.
        seconds: wall-clock time of the run.
        warnings: what a user should know about the fit of support and query, one sentence each.
    """

    labelmap: Volume
    probabilities: dict[int, np.ndarray]
    axis: int
    painted: tuple[int, ...]
    certainty: dict[int, np.ndarray]
    seconds: float
    warnings: list[str] = field(default_factory=list)

    def voxel_counts(self) -> dict[int, int]:
        """Number of voxels of each label; counted slice by slice, since counting all at once takes 8 bytes a voxel."""
        counts = np.zeros(max(self.probabilities) + 1, dtype=np.int64)
        for plane in self.labelmap.voxels:
            counts += np.bincount(plane.ravel(), minlength=len(counts))
        return {label: int(counts[label]) for label in self.probabilities}

    def volumes_ml(self) -> dict[int, float]:
        """Volume of each label in millilitres."""
        voxel = math.prod(self.labelmap.geometry.spacing) / 1000
        return {label: count * voxel for label, count in self.voxel_counts().items()}


def certainty_of(probability: np.ndarray) -> float:
    """How sure a slice is: the mean of |2p - 1| over pixels with p above 2 %; 1 where there are none.

    Args:
        probability: uint8, 255 meaning 1.
    """
    doubtful = probability[probability > 5].astype(np.float32)
    return float(np.abs(2 * doubtful / 255 - 1).mean()) if doubtful.size else 1.0


def presence_of(probability: np.ndarray, threshold: float) -> float:
    """How much of a structure a slice shows, for finding the best one: the sum of p - `threshold` over pixels above it,
    times `certainty_of`; 0 where none is.

    Args:
        probability: uint8, 255 meaning 1.
        threshold: 0 to 1.
    """
    inside = probability[probability > 255 * threshold].astype(np.float32) / 255
    return float((inside - threshold).sum()) * certainty_of(probability)
