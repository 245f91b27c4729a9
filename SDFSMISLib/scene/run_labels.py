"""Probabilities of one structure, slice by slice, packed: a few kilobytes a slice.

What a run says of each voxel: its probabilities, kept packed, and the labels that follow from them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from SDFSMISLib.images.geometry import Geometry
from SDFSMISLib.images.postprocess import Postprocessing, check_label_threshold, resolve_labels, restore_painted
from SDFSMISLib.scene.frame import Index, VoxelBox, enclosing_extent
from SDFSMISLib.scene.segment_tags import slice_digests
from SDFSMISLib.support import SupportSet
from SDFSMISLib.wire import pack_array, unpack_array

Box = tuple[int, int, int, int]  # rows from, to before; columns from, to before


class Probabilities:
    """uint8 slices ``(rows, columns)``, 255 meaning 1, by index; only the box around what is not zero is kept.

    Args:
        shape: (rows, columns) of a slice.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape
        self._packed: dict[int, tuple[Box, bytes]] = {}

    def __contains__(self, index: int) -> bool:
        return index in self._packed

    def __iter__(self) -> Iterator[int]:
        return iter(self._packed)

    def copy(self) -> Probabilities:
        """The same slices; what is put into one later is not in the other."""
        made = Probabilities(self.shape)
        made._packed = dict(self._packed)
        return made

    def put(self, index: int, probability: np.ndarray) -> None:
        """Keeps a slice; raises ValueError for one of another shape or type."""
        if probability.shape != self.shape or probability.dtype != np.uint8:
            raise ValueError(f"{probability.dtype} {probability.shape} was given; uint8 {self.shape} is a slice.")
        rows, columns = np.flatnonzero(probability.any(axis=1)), np.flatnonzero(probability.any(axis=0))
        if not rows.size:
            self._packed[index] = (0, 0, 0, 0), b""
            return
        box = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
        self._packed[index] = box, pack_array(probability[box[0] : box[1], box[2] : box[3]])

    def box(self, indices: Iterable[int]) -> Box | None:
        """The box around all that is not zero in some slices; None where there is nothing."""
        boxes = [box for index in indices if index in self._packed and any(box := self._packed[index][0])]
        if not boxes:
            return None
        return min(b[0] for b in boxes), max(b[1] for b in boxes), min(b[2] for b in boxes), max(b[3] for b in boxes)

    def region(self, index: int, box: Box) -> np.ndarray:
        """A slice inside a box that holds all of it that is not zero; zeros where there is no such slice."""
        region = np.zeros((box[1] - box[0], box[3] - box[2]), dtype=np.uint8)
        (top, bottom, left, right), packed = self._packed.get(index, ((0, 0, 0, 0), b""))
        if packed:
            part = unpack_array(packed, (bottom - top) * (right - left))
            region[top - box[0] : bottom - box[0], left - box[2] : right - box[2]] = part
        return region


@dataclass(frozen=True, eq=False)
class CleanedLabels:
    """What a cleaning made of all slices of a run.

    Attributes:
        labels: label values, uint16, on the volume's grid.
        state: of the run that it was made in; it counts for no other one.
    """

    labels: VoxelBox
    state: object


class RunLabels:
    """The slices of a run that have come in, and the labels of their voxels.

    A voxel gets the most probable of the labels that are above the threshold; painted slices are as they were painted.

    Attributes:
        certainty: by label, of each slice of the volume, 0 to 1; NaN where none was computed.
        painted: by label and index, bool (rows, columns).
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
        """
        Args:
            geometry, content_hash: of the scan; slices of the support that lie on it, along the axis, are the painted
                ones.
        """
        self.threshold = threshold
        self._cleaning = Postprocessing()
        self._cleaned: CleanedLabels | None = None
        self._geometry, self._axis = geometry, axis
        self._rows, self._columns = (other for other in range(3) if other != axis)
        self.certainty = {label: np.full(geometry.shape[axis], np.nan) for label in labels}
        self.painted = {
            label: {
                piece.index: piece.mask(label)
                for piece in (support.for_label(label) if label in support.labels else ())
                if (piece.plane.scan, piece.plane.axis) == (content_hash, axis)
            }
            for label in labels
        }
        self._painted_digests: dict[tuple[int, int], str | None] = {}
        self._probabilities = {label: Probabilities(geometry.slice_shape(axis)) for label in sorted(labels)}
        for label, masks in self.painted.items():
            for index, mask in masks.items():
                self._probabilities[label].put(index, mask.view(np.uint8) * np.uint8(255))

    @property
    def threshold(self) -> float:
        """Probability above which a voxel belongs to a structure, 0 to below 1; others raise :class:`InputError`."""
        return self._threshold

    @threshold.setter
    def threshold(self, threshold: float) -> None:
        self._threshold, self._state = check_label_threshold(threshold), object()

    @property
    def cleaning(self) -> Postprocessing:
        """What is done to all slices together; where it is on, a :class:`CleanedLabels` says what the labels are."""
        return self._cleaning

    @cleaning.setter
    def cleaning(self, cleaning: Postprocessing) -> None:
        self._cleaning, self._state = cleaning, object()
        if cleaning.is_off:
            self._cleaned = None

    @property
    def cleaning_due(self) -> bool:
        """Whether a cleaning is on that was not taken for the slices, threshold and cleaning of now."""
        return not self._cleaning.is_off and (self._cleaned is None or self._cleaned.state is not self._state)

    def painted_digest(self, label: int, index: int) -> str | None:
        """The digest of a painted slice; None where it is empty. See :func:`.slice_record.slice_digests`."""
        place = label, index
        if place not in self._painted_digests:
            mask = VoxelBox(self._corner(index, 0, 0), np.expand_dims(self.painted[label][index], self._axis))
            self._painted_digests[place] = slice_digests(mask, self._axis).get(index)
        return self._painted_digests[place]

    def put(self, label: int, index: int, probability: np.ndarray, certainty: float) -> list[int]:
        """Keeps a slice; the labels that may change on it by that.

        Raises ValueError for an array of another shape or type.
        """
        if index in self.painted[label]:
            return []
        self._state, self._cleaned = object(), None
        self._probabilities[label].put(index, probability)
        self.certainty[label][index] = certainty
        return [other for other, kept in self._probabilities.items() if index in kept]

    def known(self, label: int) -> set[int]:
        """The slices that have come in, and painted ones."""
        return set(self._probabilities[label])

    def computed(self, label: int) -> set[int]:
        """The slices that have come in, without painted ones."""
        return self.known(label) - self.painted[label].keys()

    def labels(self, indices: Sequence[int]) -> VoxelBox:
        """Label values, uint16, of some slices; slices in between are empty.

        They are those of the cleaning that was taken last, else those above the threshold.
        """
        if self._cleaned is not None:
            return self._cleaned_labels(self._cleaned.labels, indices)
        box = self._box(indices)
        if box is None:
            return VoxelBox((0, 0, 0), np.zeros((0, 0, 0), dtype=np.uint16))
        first = min(indices)
        labels = np.zeros((max(indices) - first + 1, box[1] - box[0], box[3] - box[2]), dtype=np.uint16)
        for index in indices:
            planes = {label: kept.region(index, box)[None] for label, kept in self._probabilities.items()}
            labels[index - first] = resolve_labels(planes, self.threshold)[0]
        self._restore_painted(labels, indices, first, box)
        start = self._corner(first, box[0], box[2])
        return VoxelBox(start, np.moveaxis(labels, 0, self._axis))

    def cleaner(self, corrected: Collection[int], held: Mapping[int, VoxelBox]) -> Callable[[], CleanedLabels]:
        """What cleans all slices as they are now; it may be called once in any thread.

        Args:
            by_hand: slices that were changed by hand; there what the results hold is taken as certain.
            held: what the results hold there, bool, by label.
        """
        kept = copy.copy(self)
        kept._probabilities = {label: one.copy() for label, one in self._probabilities.items()}
        return lambda: kept._clean(corrected, held)

    def apply_cleaned(self, cleaned: CleanedLabels) -> bool:
        """Makes the labels those of a cleaning; False where it was made of something else than there is now."""
        if self._cleaning.is_off or cleaned.state is not self._state:
            return False
        self._cleaned = cleaned
        return True

    def _clean(self, corrected: Collection[int], held: Mapping[int, VoxelBox]) -> CleanedLabels:
        every = sorted({*corrected, *(index for kept in self._probabilities.values() for index in kept)})
        start, stop = self._box_with_reach(every, held)
        probabilities = {label: self._stack(label, start, stop, corrected, held) for label in self._probabilities}
        labels = self._cleaning.labelmap(probabilities, self.threshold, self._geometry.spacing)
        return CleanedLabels(VoxelBox(start, labels), self._state)

    def _cleaned_labels(self, cleaned: VoxelBox, indices: Sequence[int]) -> VoxelBox:
        """The part of some slices, painted ones as they were painted."""
        start, stop, first = list(cleaned.start), list(cleaned.stop), min(indices)
        start[self._axis], stop[self._axis] = first, max(indices) + 1
        labels = cleaned.crop_or_pad((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
        along = np.moveaxis(labels, self._axis, 0)
        along[[number for number in range(len(along)) if first + number not in indices]] = 0
        rows, columns = self._rows, self._columns
        self._restore_painted(along, indices, first, (start[rows], stop[rows], start[columns], stop[columns]))
        return VoxelBox((start[0], start[1], start[2]), labels)

    def _box(self, indices: Sequence[int]) -> Box | None:
        boxes = [box for kept in self._probabilities.values() if (box := kept.box(indices)) is not None]
        if not boxes:
            return None
        return min(b[0] for b in boxes), max(b[1] for b in boxes), min(b[2] for b in boxes), max(b[3] for b in boxes)

    def _box_with_reach(self, indices: Sequence[int], held: Mapping[int, VoxelBox]) -> tuple[Index, Index]:
        """The box around all slices, and as far around as something may be found, within the grid."""
        top, bottom, left, right = self._box(indices) or (0, 1, 0, 1)
        low, high = enclosing_extent(*held.values())
        if high != (0, 0, 0):
            top, bottom = min(top, low[self._rows]), max(bottom, high[self._rows])
            left, right = min(left, low[self._columns]), max(right, high[self._columns])
        first, last = (indices[0], indices[-1]) if indices else (0, 0)
        start, stop = self._corner(first, top, left), self._corner(last + 1, bottom, right)
        margin = [math.ceil(self._cleaning.reach_mm / self._geometry.axis_spacing(axis)) + 1 for axis in range(3)]
        begin = np.maximum(np.subtract(start, margin), 0).tolist()
        end = np.minimum(np.add(stop, margin), self._geometry.shape).tolist()
        return (begin[0], begin[1], begin[2]), (end[0], end[1], end[2])

    def _stack(
        self, label: int, start: Index, stop: Index, corrected: Collection[int], held: Mapping[int, VoxelBox]
    ) -> np.ndarray:
        """Probabilities, uint8 (slices, height, width), of a box."""
        voxels = np.zeros(np.subtract(stop, start), dtype=np.uint8)
        along, first = np.moveaxis(voxels, self._axis, 0), start[self._axis]
        box = start[self._rows], stop[self._rows], start[self._columns], stop[self._columns]
        for index in self._probabilities[label]:
            along[index - first] = self._probabilities[label].region(index, box)
        if corrected:
            mask = np.moveaxis(held.get(label, VoxelBox.empty()).crop_or_pad(start, stop), self._axis, 0)
            inside = [index - first for index in corrected]
            along[inside] = mask[inside] * np.uint8(255)
        return voxels

    def _restore_painted(self, along: np.ndarray, indices: Sequence[int], first: int, box: Box) -> None:
        """Makes painted slices what was painted, in labels (slices, rows, columns) of a box; ``first`` is the first
        slice's index."""
        for label, masks in self.painted.items():
            for index in masks.keys() & set(indices):
                restore_painted(along[index - first], label, masks[index][box[0] : box[1], box[2] : box[3]])

    def _corner(self, along: int, row: int, column: int) -> Index:
        """The array index of a place in a slice."""
        corner = [row, column]
        corner.insert(self._axis, along)
        return corner[0], corner[1], corner[2]
