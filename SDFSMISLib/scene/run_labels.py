"""What a run computed for every voxel of a scan: probabilities, kept packed, and the labels that follow from them."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from SDFSMISLib.images.fusion import CORRECTION_MM
from SDFSMISLib.images.geometry import Geometry
from SDFSMISLib.images.planes import Plane
from SDFSMISLib.images.postprocess import Postprocessing, check_label_threshold, resolve_labels, restore_painted
from SDFSMISLib.images.suggestion import ExpectedErrors, suggest_plane
from SDFSMISLib.scene.corrections import Known, join, known_within
from SDFSMISLib.scene.frame import Index, VoxelBox, as_index, enclosing_extent
from SDFSMISLib.support import SupportSet, SupportSlice
from SDFSMISLib.wire import PackedProbabilities

SUGGESTIONS = 12  # slices that are named, at most


@dataclass(frozen=True, eq=False)
class CleanedLabels:
    """The labels of all slices of a run after cleaning.

    Attributes:
        labels: label values, uint16, on the scan's grid.
        state: token of the threshold, cleaning and slices that went in; the labels are valid only while it is current.
    """

    labels: VoxelBox
    state: object


class Suggestion(NamedTuple):
    """A slice of any view where one more painted slice would help, and the label of which most is doubtful there."""

    plane: Plane
    label: int


@dataclass(frozen=True, eq=False)
class ResultDoubts:
    """Where a result is likely wrong (see `ExpectedErrors`).

    Attributes:
        suggestions: slices of any view where one more painted slice would help most, best first.
        certainty: by label, of each slice along the result's axis, 0 to 1; NaN if it was not computed.
    """

    suggestions: list[Suggestion]
    certainty: dict[int, np.ndarray]


@dataclass(frozen=True, eq=False)
class _PaintedPlane:
    """What is painted of one label on a slice of any axis: bool (rows, columns); `known` None = all of it."""

    plane: Plane
    mask: np.ndarray
    known: np.ndarray | None

    @classmethod
    def of(cls, painted: SupportSlice, label: int) -> _PaintedPlane:
        return cls(Plane(painted.plane.axis, painted.index), painted.mask(label), painted.known)

    @property
    def known_box(self) -> VoxelBox | None:
        return None if self.known is None else self._box(self.known)

    def shown_within(self, first: int, stop: int, axis: int) -> VoxelBox | None:
        """What it shows on the slices from ``first`` to before ``stop``; None if nothing."""
        shown = self.shown.keep_slices(axis, range(first, stop))
        return shown if shown.voxels.size else None

    def restore(self, labels: np.ndarray, start: Index, stop: Index, label: int) -> None:
        """Give a label what was painted, in an extent of a labelmap; in place."""
        axis, index = self.plane
        if start[axis] <= index < stop[axis]:
            window = tuple(slice(start[other], stop[other]) for other in range(3) if other != axis)
            part = np.moveaxis(labels, axis, 0)[index - start[axis]]
            restore_painted(part, label, self.mask[window], None if self.known is None else self.known[window])

    @cached_property
    def shown(self) -> VoxelBox:
        """Where it shows the label."""
        return self._box(self.mask if self.known is None else self.mask & self.known)

    def _box(self, mask: np.ndarray) -> VoxelBox:
        start = [0, 0, 0]
        start[self.plane.axis] = self.plane.index
        return VoxelBox(as_index(start), np.expand_dims(mask, self.plane.axis)).trimmed()


class RunLabels:
    """The slices of a run that were computed so far, and the labels of their voxels.

    A voxel gets the most probable of the labels whose probability is above the threshold. What was painted, on
    slices of any axis, keeps the labels that were painted.

    Args:
        geometry: the scan's grid.
        content_hash: the scan's; support slices of this scan are the painted ones.
        axis: array axis along which slices are counted.
        labels: label values of the run.
        threshold: probability above which a voxel belongs to a structure, 0 to below 1.

    Attributes:
        certainty: by label, of each slice of the scan, 0 to 1; NaN if it was not computed.
        painted: by label and index, the slices along the axis that were painted as wholes, bool (rows, columns).
        known: by label, what was painted on slices of any axis.

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
        self._planes = {
            label: [
                _PaintedPlane.of(one, label)
                for one in (support.for_label(label) if label in support.labels else ())
                if one.plane.scan == content_hash
            ]
            for label in labels
        }
        self.known = {label: join(*({one.plane: one.known_box} for one in self._planes[label])) for label in labels}
        self.painted = {
            label: {one.plane.index: one.mask for one in planes if one.plane.axis == axis and one.known is None}
            for label, planes in self._planes.items()
        }
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

    def finished(self, label: int) -> set[int]:
        """The slices that were computed, or painted as wholes."""
        return {index for value, index in self._probabilities if value == label}

    def touched(self, label: int, by_absence: bool) -> set[int]:
        """The slices that were painted as wholes, and those on which painted slices of other axes tell of the label.

        Args:
            by_absence: whether they tell of it too if they know that it is not there.
        """
        boxes = [one.known_box if by_absence else one.shown for one in self._planes[label]]
        told = {index for box in boxes if box is not None for index in box.slices(self._axis)}
        if None in boxes and any(one.plane.axis != self._axis for one in self._planes[label] if one.known is None):
            told |= {*range(self._geometry.shape[self._axis])}
        return told | self.painted[label].keys()

    def computed(self, label: int) -> set[int]:
        """The slices that were computed, without painted ones."""
        return self.finished(label) - self.painted[label].keys()

    def labels(self, indices: Sequence[int]) -> VoxelBox:
        """Label values, uint16, of some slices; slices in between are empty.

        They come from the cleaning that was applied last, else from the threshold alone.
        """
        first, last = min(indices), max(indices)
        if self._cleaned is not None:
            low, high = list(self._cleaned.labels.start), list(self._cleaned.labels.stop)
            low[self._axis], high[self._axis] = first, last + 1
            start, stop = self._with_painted(as_index(low), as_index(high))
            labels = self._cleaned.labels.crop_or_pad(start, stop)
        else:
            bounds = self._probabilities.bounds((label, k) for label in self._label_values for k in indices)
            corner, end = bounds or ((0, 0), (0, 0))
            start, stop = self._with_painted(self._index(first, *corner), self._index(last + 1, *end))
            stacks = {label: self._stack(label, indices, start, stop) for label in self._label_values}
            labels = resolve_labels(stacks, self.threshold)
        for label, planes in self._planes.items():
            for one in planes:
                one.restore(labels, start, stop, label)
        along = np.moveaxis(labels, self._axis, 0)
        along[[number for number in range(len(along)) if first + number not in indices]] = 0
        return VoxelBox(start, labels)

    def _with_painted(self, start: Index, stop: Index) -> tuple[Index, Index]:
        """An extent of some slices, with the rows and columns that are painted on them."""
        low, high = list(start), list(stop)
        for one in itertools.chain.from_iterable(self._planes.values()):
            shown = one.shown_within(start[self._axis], stop[self._axis], self._axis)
            for axis in (self._rows, self._columns):
                if shown is not None:
                    is_empty = low[axis] >= high[axis]
                    low[axis] = shown.start[axis] if is_empty else min(low[axis], shown.start[axis])
                    high[axis] = shown.stop[axis] if is_empty else max(high[axis], shown.stop[axis])
        return as_index(low), as_index(high)

    def cleaning_task(self, corrected: Known, held: Mapping[int, VoxelBox]) -> Callable[[], CleanedLabels]:
        """A function that cleans all slices as they are now; call it once, from any thread.

        Args:
            corrected: what a user has corrected in the results; there, the results count as certain.
            held: what the results hold there, bool, by label.
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

    def doubts_task(self, whole: Collection[Plane], skip: Collection[Plane]) -> Callable[[], ResultDoubts]:
        """A function that names up to `SUGGESTIONS` slices; call it once, from any thread.

        Args:
            whole: slices on which all was said to be right, beside the painted ones.
            skip: further slices that are not to be named.
        """
        snapshot = copy.copy(self)
        snapshot._probabilities = self._probabilities.copy()
        return lambda: snapshot._doubts(whole, skip)

    def _doubts(self, whole: Collection[Plane], skip: Collection[Plane]) -> ResultDoubts:
        i, j, k = self._geometry.spacing
        spacing, shape, errors = (k, j, i), as_index(self._geometry.shape), dict[int, ExpectedErrors]()
        certainty = dict(self.certainty)
        for label in self._label_values:
            known = {*whole, *(one.plane for one in self._planes[label] if one.known is None)}
            probability = self._stack(label, self.finished(label), (0, 0, 0), shape)
            errors[label] = ExpectedErrors.of(probability, sorted(known), spacing, self.threshold)
            if known:  # on a scan that was not painted, the probabilities tell more
                computed = ~np.isnan(certainty[label])
                certainty[label] = np.where(computed, errors[label].certainty(self._axis), np.nan)
        finished = {index for _, index in self._probabilities}
        not_requested = (Plane(self._axis, k) for k in set(range(shape[self._axis])) - finished)
        skipped = {*skip, *not_requested, *(one.plane for planes in self._planes.values() for one in planes)}
        found: list[Suggestion] = []
        while len(found) < SUGGESTIONS:
            plane = suggest_plane([*errors.values()], [], spacing, skipped)
            if plane is None:
                break
            axis, index = plane
            found.append(Suggestion(plane, max(errors, key=lambda one: float(errors[one].wrong(axis)[index]))))
            near = int(CORRECTION_MM / spacing[axis])
            neighbours = range(max(index - near, 0), min(index + near + 1, shape[axis]))
            skipped |= {Plane(axis, neighbour) for neighbour in neighbours}
        return ResultDoubts(found, certainty)

    def _clean(self, corrected: Known, held: Mapping[int, VoxelBox]) -> CleanedLabels:
        computed = {index for _, index in self._probabilities}
        start, stop = self._cleaned_extent(sorted(computed), held)
        stacks = {label: self._stack(label, computed, start, stop) for label in self._label_values}
        if corrected:
            certain = known_within(corrected, start, stop)
            for label, voxels in stacks.items():
                mask = held.get(label, VoxelBox.empty()).crop_or_pad(start, stop)
                voxels[certain] = mask[certain] * np.uint8(255)
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
