"""What a run computed for every voxel of a scan: probabilities, kept packed, and the labels that follow from them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from SDFSMISLib.images.geometry import Geometry
from SDFSMISLib.images.postprocess import Postprocessing, check_label_threshold, resolve_labels, restore_painted
from SDFSMISLib.scene.frame import Index, VoxelBox, as_index, enclosing_extent
from SDFSMISLib.scene.segment_tags import slice_digests
from SDFSMISLib.support import SupportSet
from SDFSMISLib.wire import PackedProbabilities


@dataclass(frozen=True, eq=False)
class CleanedLabels:
    """The labels of all slices of a run after cleaning.

    Attributes:
        labels: label values, uint16, on the scan's grid.
        state: token of the threshold, cleaning and slices that went in; the labels are valid only while it is current.
    """

    labels: VoxelBox
    state: object


class RunLabels:
    """The slices of a run that were computed so far, and the labels of their voxels.

    A voxel gets the most probable of the labels whose probability is above the threshold. Painted slices keep the
    labels that were painted.

    Args:
        geometry: the scan's grid.
        content_hash: the scan's; support slices of this scan, along the axis, are the painted ones.
        axis: array axis along which slices are counted.
        labels: label values of the run.
        threshold: probability above which a voxel belongs to a structure, 0 to below 1.

    Attributes:
        certainty: by label, of each slice of the scan, 0 to 1; NaN if it was not computed.
        painted: by label and slice index, bool (rows, columns).

    >>> import numpy as np
    >>> from SDFSMISLib.images.geometry import Geometry
    >>> grid = Geometry((5, 4, 4), (1.0, 1.0, 2.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
    >>> run = RunLabels(grid, "", 0, SupportSet(()), [1], threshold=0.5)
    >>> probability = np.zeros((4, 4), np.uint8)
    >>> probability[1, 2:] = 100, 200
    >>> run.add_slice(1, 3, probability, certainty=0.9)
    [1]
    >>> run.labels([3]).start, run.labels([3]).voxels.tolist()
    ((3, 1, 2), [[[0, 1]]])
    """

    def __init__(
        self,
        geometry: Geometry,
        content_hash: str,
        axis: int,
        support: SupportSet,
        labels: Collection[int],
        threshold: float,
    ) -> None:
        self.threshold = threshold
        self._cleaning = Postprocessing()
        self._cleaned: CleanedLabels | None = None
        self._geometry, self._axis, self._label_values = geometry, axis, sorted(labels)
        self._rows, self._columns = (other for other in range(3) if other != axis)
        self.certainty = {label: np.full(geometry.shape[axis], np.nan) for label in labels}
        self.painted = {
            label: {
                support_slice.index: support_slice.mask(label)
                for support_slice in (support.for_label(label) if label in support.labels else ())
                if (support_slice.plane.scan, support_slice.plane.axis) == (content_hash, axis)
            }
            for label in labels
        }
        self._painted_digests: dict[tuple[int, int], str | None] = {}
        self._probabilities = PackedProbabilities[tuple[int, int]](geometry.slice_shape(axis))  # by label and index
        for label, masks in self.painted.items():
            for index, mask in masks.items():
                self._probabilities[label, index] = mask.view(np.uint8) * np.uint8(255)

    @property
    def threshold(self) -> float:
        """Probability above which a voxel belongs to a structure; setting raises InputError unless 0 <= value < 1."""
        return self._threshold

    @threshold.setter
    def threshold(self, threshold: float) -> None:
        self._threshold, self._state = check_label_threshold(threshold), object()

    @property
    def cleaning(self) -> Postprocessing:
        """Applied to all slices together; unless it is off, the labels are those of :meth:`apply_cleaned`."""
        return self._cleaning

    @cleaning.setter
    def cleaning(self, cleaning: Postprocessing) -> None:
        self._cleaning, self._state = cleaning, object()
        if cleaning.is_off:
            self._cleaned = None

    @property
    def cleaning_due(self) -> bool:
        """Whether cleaning is on and was not yet applied for the current slices, threshold and cleaning."""
        return not self._cleaning.is_off and (self._cleaned is None or self._cleaned.state is not self._state)

    def add_slice(self, label: int, index: int, probability: np.ndarray, certainty: float) -> list[int]:
        """Stores a computed slice, uint8 (rows, columns), 255 meaning 1; ignored if the slice is painted.

        Returns:
            The labels whose voxels on this slice may change.

        Raises:
            ValueError: for an array of another shape or type.
        """
        if index in self.painted[label]:
            return []
        self._state, self._cleaned = object(), None
        self._probabilities[label, index] = probability
        self.certainty[label][index] = certainty
        return [other for other in self._label_values if (other, index) in self._probabilities]

    def known(self, label: int) -> set[int]:
        """The slices that were computed or painted."""
        return {index for value, index in self._probabilities if value == label}

    def computed(self, label: int) -> set[int]:
        """The slices that were computed, without painted ones."""
        return self.known(label) - self.painted[label].keys()

    def painted_digest(self, label: int, index: int) -> str | None:
        """The digest of a painted slice; None if it is empty. See :func:`.segment_tags.slice_digests`."""
        key = label, index
        if key not in self._painted_digests:
            mask = VoxelBox(self._index(index, 0, 0), np.expand_dims(self.painted[label][index], self._axis))
            self._painted_digests[key] = slice_digests(mask, self._axis).get(index)
        return self._painted_digests[key]

    def labels(self, indices: Sequence[int]) -> VoxelBox:
        """Label values, uint16, of some slices; slices in between are empty.

        They come from the cleaning that was applied last, else from the threshold alone.
        """
        first, last = min(indices), max(indices)
        if self._cleaned is not None:
            low, high = list(self._cleaned.labels.start), list(self._cleaned.labels.stop)
            low[self._axis], high[self._axis] = first, last + 1
            start, stop = as_index(low), as_index(high)
            labels = self._cleaned.labels.crop_or_pad(start, stop)
        else:
            bounds = self._probabilities.bounds((label, k) for label in self._label_values for k in indices)
            if bounds is None:
                return VoxelBox.empty(np.uint16)
            start, stop = self._index(first, *bounds[0]), self._index(last + 1, *bounds[1])
            stacks = {label: self._stack(label, indices, start, stop) for label in self._label_values}
            labels = resolve_labels(stacks, self.threshold)
        along = np.moveaxis(labels, self._axis, 0)
        along[[number for number in range(len(along)) if first + number not in indices]] = 0
        window = self._window(start, stop)
        for label, masks in self.painted.items():
            for index in masks.keys() & set(indices):
                restore_painted(along[index - first], label, masks[index][window])
        return VoxelBox(start, labels)

    def cleaning_task(self, corrected: Collection[int], held: Mapping[int, VoxelBox]) -> Callable[[], CleanedLabels]:
        """A function that cleans all slices as they are now; call it once, from any thread.

        Args:
            corrected: slices that a user changed in the results; there, the results count as certain.
            held: what the results hold on these slices, bool, by label.
        """
        snapshot = copy.copy(self)
        snapshot._probabilities = self._probabilities.copy()
        return lambda: snapshot._clean(corrected, held)

    def apply_cleaned(self, cleaned: CleanedLabels) -> bool:
        """Makes the labels those of a cleaning; False if threshold, cleaning or slices have changed since it began."""
        if self._cleaning.is_off or cleaned.state is not self._state:
            return False
        self._cleaned = cleaned
        return True

    def _clean(self, corrected: Collection[int], held: Mapping[int, VoxelBox]) -> CleanedLabels:
        computed = {index for _, index in self._probabilities}
        start, stop = self._cleaned_extent(sorted({*computed, *corrected}), held)
        stacks = {label: self._stack(label, computed, start, stop) for label in self._label_values}
        if corrected:
            inside = [index - start[self._axis] for index in corrected]
            for label, voxels in stacks.items():
                mask = held.get(label, VoxelBox.empty()).crop_or_pad(start, stop)
                np.moveaxis(voxels, self._axis, 0)[inside] = np.moveaxis(mask, self._axis, 0)[inside] * np.uint8(255)
        labels = self._cleaning.labelmap(stacks, self.threshold, self._geometry.spacing)
        return CleanedLabels(VoxelBox(start, labels), self._state)

    def _cleaned_extent(self, indices: Sequence[int], held: Mapping[int, VoxelBox]) -> tuple[Index, Index]:
        """The extent of the given slices and of ``held``, plus the reach of the cleaning, inside the scan's grid."""
        low, high = self._probabilities.bounds(self._probabilities) or ((0, 0), (1, 1))
        first, last = (indices[0], indices[-1]) if indices else (0, 0)
        start, stop = self._index(first, *low), self._index(last + 1, *high)
        held_start, held_stop = enclosing_extent(*held.values())
        if held_stop != (0, 0, 0):
            start, stop = as_index(np.minimum(start, held_start)), as_index(np.maximum(stop, held_stop))
        margin = [math.ceil(self._cleaning.reach_mm / self._geometry.axis_spacing(axis)) + 1 for axis in range(3)]
        begin = np.maximum(np.subtract(start, margin), 0)
        return as_index(begin), as_index(np.minimum(np.add(stop, margin), self._geometry.shape))

    def _stack(self, label: int, indices: Collection[int], start: Index, stop: Index) -> np.ndarray:
        """Probabilities of some slices inside an extent, uint8 (slices, height, width); zero on all others."""
        voxels = np.zeros(np.subtract(stop, start), dtype=np.uint8)
        along, window = np.moveaxis(voxels, self._axis, 0), self._window(start, stop)
        for index in indices:
            if (label, index) in self._probabilities:
                along[index - start[self._axis]] = self._probabilities[label, index][window]
        return voxels

    def _window(self, start: Index, stop: Index) -> tuple[slice, slice]:
        """The rows and columns of an extent."""
        rows, columns = self._rows, self._columns
        return slice(start[rows], stop[rows]), slice(start[columns], stop[columns])

    def _index(self, along: int, row: int, column: int) -> Index:
        """The array index of a pixel of a slice."""
        index = [row, column]
        index.insert(self._axis, along)
        return as_index(index)
