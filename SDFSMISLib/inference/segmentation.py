"""The result of a run: single slices, local or from a backend, become a segmentation on the scan's grid. No torch."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from SDFSMISLib.images.fusion import PlaneMask, fuse_blocks, temporary_bytes
from SDFSMISLib.images.planes import Plane
from SDFSMISLib.images.postprocess import Postprocessing, restore_painted
from SDFSMISLib.images.suggestion import ExpectedErrors
from SDFSMISLib.images.volume import Volume
from SDFSMISLib.slices import CroppedSlices, SliceResult, SliceStack
from SDFSMISLib.support import SupportSlice


@dataclass(eq=False)
class Segmentation:
    """The result of a run.

    Attributes:
        labelmap: on the query's grid, with the label values and names of the support.
        probabilities: by label value, uint8 (slices, height, width), 255 meaning 1; before post-processing.
        axis: the array axis along which the scan was sliced.
        painted: indices of the painted slices of the query along `axis`; they come out as painted.
        certainty: by label value, float64 (slices along `axis`,): how certain each slice is, 0 to 1; NaN for slices
            that were not computed. On a painted scan the Dice coefficient to expect (see `ExpectedErrors`), on another
            one `certainty_of` its probability.
        seconds: wall-clock time of the run.
        planes: all painted slices of the query, of any axis.
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
    planes: tuple[Plane, ...] = ()

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


COARSE_PIXELS = 2.5  # times the finest: slices with coarser pixels would count little beside those with fine ones


class AxisFusion:
    """Collects what is found along each axis of a scan, and fuses it on the slices of the main axis.

    A label is followed along every axis on which a plane of the scan shows it; on a scan on which it was not painted,
    along the main one, or, if finished scans tell where it is, along all whose pixels are not much coarser. If that is
    the main axis alone, and nothing else tells of the label, what is found there is final already.

    Args:
        scan: the slices along the main axis.
        axes: all axes that may be followed, the main one first.
        support: painted slices of each label, of this scan or of others.
        priors: by label, uint8 on the scan's grid, 255 meaning 1, where finished scans let expect it.

    Attributes:
        axes: the axes of each label, by label.
        support: the painted slices of each label that are in use.
        fused: labels whose results on the main axis are not final by themselves.

    >>> from SDFSMISLib import SupportSet
    >>> from SDFSMISLib.images.geometry import Geometry
    >>> geometry = Geometry((8, 16, 16), (1.0, 1.0, 1.0), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    >>> mask = np.zeros((8, 16, 16), dtype=np.uint8)
    >>> mask[4, 4:12, 4:12] = mask[2:6, 4:12, 8] = 1  # an axial and a sagittal slice
    >>> scan = Volume(100 * mask.astype(np.float32), geometry)
    >>> support = SupportSet.from_labelmap(scan, Volume(mask, geometry))
    >>> fusion = AxisFusion(SliceStack.of(scan, 0), (0, 2), {1: support.for_label(1)})
    >>> fusion.axes, fusion.fused
    ({1: (0, 2)}, [1])
    >>> finished = fusion.add(SliceResult(1, 0, 3, 255 * mask[4], certainty=1.0, finished=1, total=22))
    >>> finished.stage
    'preview'
    >>> batches = fusion.final(1, requested=[3, 4, 5], batch_size=8)
    >>> [[index for index, _ in batch] for batch in batches if batch]
    [[3, 5]]
    """

    def __init__(
        self,
        scan: SliceStack,
        axes: Sequence[int],
        support: Mapping[int, Sequence[SupportSlice]],
        priors: Mapping[int, np.ndarray] | None = None,
    ) -> None:
        self._scan, main = scan, scan.plane.axis
        self._priors = priors or {}
        self.support = {label: self._usable(label, painted, axes) for label, painted in support.items()}
        self.axes = {label: self._axes_of(label, axes) for label in support}
        self.fused = [
            label
            for label, along in self.axes.items()
            if along != (main,)
            or label in self._priors
            or any(one.plane.axis != main or one.known is not None for one in self._planes(label))
        ]
        self._found = {
            (label, axis): CroppedSlices(self._slice_shape(axis)) for label in self.fused for axis in self.axes[label]
        }

    @property
    def bytes(self) -> int:
        """The most memory that it takes: each fused label along each of its axes, one volume while a label is fused,
        another one of the result, and what the fusion needs for a while."""
        shape = self._scan.scan_shape
        volumes = sum(len(self.axes[label]) for label in self.fused) + 2
        return math.prod(shape) * volumes + temporary_bytes(shape) if self.fused else 0

    def labels(self, axis: int) -> dict[int, list[SupportSlice]]:
        """The labels that are followed along an axis, with their painted slices."""
        return {label: painted for label, painted in self.support.items() if axis in self.axes[label]}

    def add(self, result: SliceResult) -> SliceResult:
        """Take a slice of any axis; the same slice, marked as a preview if it will come once more, fused."""
        if (result.label, result.axis) not in self._found:
            return result
        self._found[result.label, result.axis][result.index] = result.probability
        return replace(result, stage="preview")

    def final(self, label: int, requested: Sequence[int], batch_size: int) -> Iterator[list[tuple[int, np.ndarray]]]:
        """The fused slices of a label, which can be asked for once; an empty list after each part of the fusion.

        Args:
            requested: indices of slices along the main axis; those that were painted as a whole are left out.
            batch_size: slices that are given at once.

        Returns:
            lists of (index, probability as uint8 (rows, columns), native).
        """
        main = self._scan.plane.axis
        planes = [
            PlaneMask(Plane(one.plane.axis, one.index), one.mask(label), one.known) for one in self._planes(label)
        ]
        volumes = {}
        for axis in self.axes[label]:
            found = self._found.pop((label, axis))
            for one in planes:  # no run gives a plane that was painted as a whole
                if one.plane.axis == axis and one.known is None:
                    found[one.plane.index] = 255 * one.mask.astype(np.uint8)
            volumes[axis] = found.volume(axis, self._scan.scan_shape[axis])
            del found
            yield []
        fused = np.zeros(self._scan.scan_shape, dtype=np.uint8)
        for _ in fuse_blocks(fused, volumes, planes, self._scan.scan_spacing, self._priors.get(label)):
            yield []
        along = np.moveaxis(fused, main, 0)
        whole = {one.plane.index for one in planes if one.plane.axis == main and one.known is None}
        kept = [index for index in requested if index not in whole]
        for start in range(0, len(kept), batch_size):
            yield [(index, np.ascontiguousarray(along[index])) for index in kept[start : start + batch_size]]

    def _usable(self, label: int, painted: Sequence[SupportSlice], axes: Sequence[int]) -> list[SupportSlice]:
        """The support of a label without planes of this scan along axes that are left out, if it has others."""
        along = [one for one in painted if one.plane.scan != self._scan.plane.scan or one.plane.axis in axes]
        shown = (one for one in along if one.plane.scan == self._scan.plane.scan and one.known is None)
        return along if any(one.mask(label).any() for one in shown) else list(painted)

    def _planes(self, label: int) -> list[SupportSlice]:
        """The planes of this scan that tell of a label."""
        return [one for one in self.support[label] if one.plane.scan == self._scan.plane.scan]

    def _axes_of(self, label: int, axes: Sequence[int]) -> tuple[int, ...]:
        own = [one for one in self._planes(label) if one.known is None and one.mask(label).any()]
        painted = tuple(axis for axis in axes if any(one.plane.axis == axis for one in own))
        return painted or (self._fine(axes) if label in self._priors else (self._scan.plane.axis,))

    def _fine(self, axes: Sequence[int]) -> tuple[int, ...]:
        """Those of the axes along which slices show enough to be worth their time; the main one first."""
        spacing, main = self._scan.scan_spacing, self._scan.plane.axis
        pixel = {axis: max(size for other, size in enumerate(spacing) if other != axis) for axis in axes}
        return tuple(axis for axis in axes if axis == main or pixel[axis] <= COARSE_PIXELS * min(pixel.values()))

    def _slice_shape(self, axis: int) -> tuple[int, int]:
        rows, columns = (side for other, side in enumerate(self._scan.scan_shape) if other != axis)
        return rows, columns


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
            label: [one for one in support_slices if one.plane.scan == scan.plane.scan]
            for label, support_slices in support.items()
        }
        self.probabilities = {label: np.zeros(query.geometry.shape, dtype=np.uint8) for label in support}
        self.certainty = {label: np.full(scan.count, np.nan) for label in support}
        for label, support_slices in self._painted.items():
            for painted in support_slices:
                restore_painted(
                    self._plane(self.probabilities[label], painted), 255, painted.mask(label), painted.known
                )

    def add(self, label: int, index: int, probability: np.ndarray, certainty: float) -> None:
        """Add a finished slice.

        Args:
            probability: uint8 (rows, columns), native, 255 meaning 1.
            certainty: 0 to 1.
        """
        np.moveaxis(self.probabilities[label], self._axis, 0)[index] = probability
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
                restore_painted(self._plane(voxels, painted), label, painted.mask(label), painted.known)
        planes = {Plane(one.plane.axis, one.index) for painted in self._painted.values() for one in painted}
        return Segmentation(
            labelmap=Volume(voxels, self._query.geometry, None, self._names),
            probabilities=self.probabilities,
            axis=self._axis,
            painted=tuple(sorted(plane.index for plane in planes if plane.axis == self._axis)),
            certainty={label: self._certainty_with_planes(label, threshold) for label in self.certainty},
            seconds=time.monotonic() - self._began,
            warnings=list(warnings),
            planes=tuple(sorted(planes)),
        )

    def _certainty_with_planes(self, label: int, threshold: float) -> np.ndarray:
        """The certainty of each computed slice: what the painted planes of the whole scan let expect, if it has any."""
        planes = [Plane(one.plane.axis, one.index) for one in self._painted[label] if one.known is None]
        if not planes:
            return self.certainty[label]
        x, y, z = self._query.geometry.spacing
        errors = ExpectedErrors.of(self.probabilities[label], planes, (z, y, x), threshold)
        return np.where(np.isnan(self.certainty[label]), np.nan, errors.certainty(self._axis))

    @staticmethod
    def _plane(voxels: np.ndarray, painted: SupportSlice) -> np.ndarray:
        return np.moveaxis(voxels, painted.plane.axis, 0)[painted.index]


def mismatch_warnings(scan: SliceStack, support_slices: Sequence[SupportSlice]) -> list[str]:
    """One sentence for each way in which a scan differs from its support so much that a user should check the result:
    pixel size, anatomical plane, intensity window."""
    messages = []
    if support_slices and all(scan.plane.name != painted.plane.name for painted in support_slices):
        messages.append("The query is cut in another anatomical plane than the painted slices; results may be poor.")
    for painted in support_slices:
        size, painted_size = max(scan.plane.spacing), max(painted.plane.spacing)
        if not 1 / MAX_SPACING_RATIO < size / painted_size < MAX_SPACING_RATIO:
            messages.append(
                f"Pixels are {size:.3g} mm in the query and {painted_size:.3g} mm in the support; results may be poor."
            )
        ours, theirs = scan.plane.window, painted.plane.window
        overlap = min(ours.high, theirs.high) - max(ours.low, theirs.low)
        if overlap < MIN_WINDOW_OVERLAP * max(ours.high - ours.low, theirs.high - theirs.low):
            messages.append(
                f"Intensities differ: {ours.low:.4g} to {ours.high:.4g} in the query, {theirs.low:.4g} to "
                f"{theirs.high:.4g} in the support; is it another modality?"
            )
    return list(dict.fromkeys(messages))
