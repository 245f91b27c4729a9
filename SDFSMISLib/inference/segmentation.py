"""The result of a run: single slices, local or from a backend, become a segmentation on the scan's grid. No torch."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from SDFSMISLib.images.postprocess import Postprocessing, restore_painted
from SDFSMISLib.images.volume import Volume
from SDFSMISLib.slices import SliceStack
from SDFSMISLib.support import SupportSlice


@dataclass(eq=False)
class Segmentation:
    """The result of a run.

    Attributes:
        labelmap: on the query's grid, with the label values and names of the support.
        probabilities: by label value, uint8 (slices, height, width), 255 meaning 1; before post-processing.
        axis: the array axis along which the scan was sliced.
        painted: indices of the painted slices of the query; they come out as painted.
        certainty: by label value (see `certainty_of`), float64 (slices along `axis`,), 0 to 1; NaN for slices that were
            not computed.
        seconds: wall-clock time of the run.
        warnings: see `mismatch_warnings`.

    Example:
        >>> from SDFSMISLib.images.geometry import Geometry
        >>> geometry = Geometry((1, 2, 2), (1.0, 1.0, 5.0), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
        >>> labelmap = Volume(np.array([[[0, 1], [1, 1]]], dtype=np.uint8), geometry)
        >>> probabilities = {1: 255 * labelmap.voxels}
        >>> segmentation = Segmentation(labelmap, probabilities, 0, (), {1: np.ones(1)}, seconds=0.5)
        >>> segmentation.voxel_counts(), segmentation.volumes_ml()
        ({1: 3}, {1: 0.015})
    """

    labelmap: Volume
    probabilities: dict[int, np.ndarray]
    axis: int
    painted: tuple[int, ...]
    certainty: dict[int, np.ndarray]
    seconds: float
    warnings: list[str] = field(default_factory=list)

    def voxel_counts(self) -> dict[int, int]:
        """Number of voxels of each label."""
        counts = np.zeros(max(self.probabilities) + 1, dtype=np.int64)  # slice by slice: bincount takes 8 bytes a voxel
        for plane in self.labelmap.voxels:
            counts += np.bincount(plane.ravel(), minlength=len(counts))
        return {label: int(counts[label]) for label in self.probabilities}

    def volumes_ml(self) -> dict[int, float]:
        """Volume of each label in millilitres."""
        voxel = math.prod(self.labelmap.geometry.spacing) / 1000
        return {label: count * voxel for label, count in self.voxel_counts().items()}


def certainty_of(probability: np.ndarray) -> float:
    """Certainty of a slice: the mean of |2p - 1| over pixels with p above 2 %; 1 if there is none.

    Args:
        probability: uint8, any shape, 255 meaning 1.

    >>> certainty_of(np.array([0, 255, 255], dtype=np.uint8))
    1.0
    """
    doubtful = probability[probability > 5].astype(np.float32)
    return float(np.abs(2 * doubtful / 255 - 1).mean()) if doubtful.size else 1.0


def presence_of(probability: np.ndarray, threshold: float) -> float:
    """How much of a structure a slice shows: the sum of p - `threshold` over pixels above it, times `certainty_of`.

    Args:
        probability: uint8, any shape, 255 meaning 1.
        threshold: 0 to 1.

    Returns:
        0 if no pixel is above the threshold.
    """
    inside = probability[probability > 255 * threshold].astype(np.float32) / 255
    return float((inside - threshold).sum()) * certainty_of(probability)


MAX_SPACING_RATIO = 3.0  # of the pixel sizes of query and support, without a warning
MIN_WINDOW_OVERLAP = 0.3  # of their intensity windows, as a share of the wider one, without a warning


class SegmentationBuilder:
    """Collects the finished slices of a run, and makes a `Segmentation` of them.

    Args:
        query: the scan.
        scan: its stack of slices.
        support: support slices of each label; those of this scan come out as painted.
        names: names of the labels.

    Attributes:
        probabilities, certainty: as in `Segmentation`, so far.
    """

    def __init__(
        self, query: Volume, scan: SliceStack, support: Mapping[int, Sequence[SupportSlice]], names: Mapping[int, str]
    ) -> None:
        self._began = time.monotonic()
        self._query = query
        self._axis = scan.plane.axis
        self._names = {label: names.get(label, "") for label in support}
        self._painted = {
            label: [one for one in support_slices if one.plane.has_slices_of(scan.plane)]
            for label, support_slices in support.items()
        }
        self.probabilities = {label: np.zeros(query.geometry.shape, dtype=np.uint8) for label in support}
        self.certainty = {label: np.full(scan.count, np.nan) for label in support}
        for label, support_slices in self._painted.items():
            for painted in support_slices:
                self._plane(self.probabilities[label], painted.index)[...] = 255 * painted.mask(label)

    def add(self, label: int, index: int, probability: np.ndarray, certainty: float) -> None:
        """Add a finished slice.

        Args:
            probability: uint8 (rows, columns), native, 255 meaning 1.
            certainty: 0 to 1.
        """
        self._plane(self.probabilities[label], index)[...] = probability
        self.certainty[label][index] = certainty

    def segmentation(
        self, threshold: float, postprocessing: Postprocessing | None = None, warnings: Sequence[str] = ()
    ) -> Segmentation:
        """The labelmap and everything that belongs to it.

        Args:
            threshold: probability, 0 to 1, above which a voxel belongs to the structure.
            postprocessing: None = none.
            warnings: of the run.
        """
        cleaning = postprocessing or Postprocessing()
        voxels = cleaning.labelmap(self.probabilities, threshold, self._query.geometry.spacing, self._axis)
        if voxels.max(initial=0) < 256:
            voxels = voxels.astype(np.uint8)
        for label, support_slices in self._painted.items():
            for painted in support_slices:
                restore_painted(self._plane(voxels, painted.index), label, painted.mask(label))
        return Segmentation(
            labelmap=Volume(voxels, self._query.geometry, None, self._names),
            probabilities=self.probabilities,
            axis=self._axis,
            painted=tuple(sorted({one.index for painted in self._painted.values() for one in painted})),
            certainty=self.certainty,
            seconds=time.monotonic() - self._began,
            warnings=list(warnings),
        )

    def _plane(self, voxels: np.ndarray, index: int) -> np.ndarray:
        return voxels[(slice(None),) * self._axis + (index,)]


def mismatch_warnings(scan: SliceStack, support_slices: Sequence[SupportSlice]) -> list[str]:
    """One sentence for each way in which a scan differs from its support so much that a user should check the result:
    pixel size, anatomical plane, intensity window."""
    messages = []
    for painted in support_slices:
        size, painted_size = max(scan.plane.spacing), max(painted.plane.spacing)
        if not 1 / MAX_SPACING_RATIO < size / painted_size < MAX_SPACING_RATIO:
            messages.append(
                f"Pixels are {size:.3g} mm in the query and {painted_size:.3g} mm in the support; results may be poor."
            )
        if scan.plane.name != painted.plane.name:
            messages.append(
                "The query is cut in another anatomical plane than the painted slices; results may be poor."
            )
        ours, theirs = scan.plane.window, painted.plane.window
        overlap = min(ours.high, theirs.high) - max(ours.low, theirs.low)
        if overlap < MIN_WINDOW_OVERLAP * max(ours.high - ours.low, theirs.high - theirs.low):
            messages.append(
                f"Intensities differ: {ours.low:.4g} to {ours.high:.4g} in the query, {theirs.low:.4g} to "
                f"{theirs.high:.4g} in the support; is it another modality?"
            )
    return list(dict.fromkeys(messages))
