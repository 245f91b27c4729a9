"""What a segmentation run hands out: a record for each finished slice, and the whole in the end.

From slices that come out one by one, here or on a server, to a segmentation on the scan's grid. Needs no torch.
"""

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


MAX_SPACING_RATIO = 3.0  # a ratio of pixel sizes from which on a user is told
MIN_WINDOW_OVERLAP = 0.3  # of two windows of intensities, likewise


class SegmentationBuilder:
    """What has come out of a run so far.

    Args:
        support: painted slices of each label; those on this very scan come out as they were painted.
        names: of the labels.
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
        """A finished slice: uint8 (rows, columns), native, 255 meaning 1; and how sure it is, 0 to 1."""
        self._plane(self.probabilities[label], index)[...] = probability
        self.certainty[label][index] = certainty

    def segmentation(
        self, threshold: float, postprocessing: Postprocessing | None = None, warnings: Sequence[str] = ()
    ) -> Segmentation:
        """The labelmap and all that belongs to it.

        Args:
            threshold: probability above which a voxel belongs to the structure, 0 to 1.
            postprocessing: None = nothing.
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
    """One sentence for each way in which a scan differs from painted slices so much that a user should look."""
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
