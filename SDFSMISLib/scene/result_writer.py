"""The results of one run, written into a segmentation while they come in, changed in review, accepted or discarded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.scene.editing_rules import EditingRules
from SDFSMISLib.scene.frame import Frame
from SDFSMISLib.scene.piece import Piece
from SDFSMISLib.scene.result_segment import ResultSegment, SegmentLook
from SDFSMISLib.scene.run_labels import LabelmapOf, RunLabels
from SDFSMISLib.scene.scan import Scan
from SDFSMISLib.scene.segment import SURFACE, read_within, remove_from_segment, segment_of
from SDFSMISLib.support import SupportSet

__all__ = ["ResultLost", "ResultWriter"]

BLOCK = 8  # slices that are written at once while a run goes on


class ResultLost(InputError):
    """What the results are written into is gone: deleted, undone, closed, or moved."""


class ResultWriter:
    """Writes the slices of a run on one volume into one segmentation, each label into a segment of its own.

    Nothing is written before the first of :meth:`write_next`, :meth:`write_all` and :meth:`finish`, which saves the
    state for undo first; so undo takes the whole run back. Until :meth:`accept` no other segment is touched. Painted
    slices come out as painted. A slice that a user changes in a result is not written again, in any of the results.

    What reads or changes the scene, but for :meth:`discard`, raises :class:`ResultLost` when segmentation or volume are
    deleted, closed or moved, or all results were deleted or undone; what was written then stays as it is. A single
    result that is deleted is left out from then on.
    """

    def __init__(
        self,
        volume_node: Any,
        segmentation_node: Any,
        scan: Scan,
        support: SupportSet,
        axis: int,
        looks: Mapping[int, SegmentLook],
        *,
        into: Mapping[int, str] | None = None,
        rules: EditingRules | None = None,
        save_undo: Callable[[], Any] | None = None,
        threshold: float = 0.5,
    ) -> None:
        """
        Args:
            scan: of the volume, as it was when the run began.
            support: whose slices on this scan, along the axis, come out as painted.
            axis: array axis along which slices come.
            looks: of each label of the run, what its result takes over.
            into: IDs of results of earlier runs to go on in, by label; see :func:`.result_segment.find_result`. Other
                labels get a segment of their own.
            rules: where editing is allowed and what is overwritten; None = everywhere, nothing.
            save_undo: called once, before anything is changed.
            threshold: probability above which a voxel belongs to the structure, 0 to below 1.

        Raises:
            InputError: for a threshold that is none, or a transform that is not linear between volume and segmentation.
            SegmentGone: where a segment of ``into`` is not there.
        """
        self._volume_node, self._segmentation_node = volume_node, segmentation_node
        self._scan, self._axis, self._rules = scan, axis, rules
        self._frame = Frame.of(volume_node, segmentation_node)
        self._looks, self._into, self._save_undo = dict(looks), dict(into or {}), save_undo
        for segment_id in self._into.values():
            segment_of(segmentation_node, segment_id)
        self._labels = RunLabels(scan.geometry, scan.content_hash(), axis, support, looks, threshold)
        self._pending = {label: set(masks) for label, masks in self._labels.painted.items()}
        self._segments: dict[int, ResultSegment] = {}
        self._begun = self._closed = False

    # -- while the run goes on -----------------------------------------------------------------------------------------

    def take(self, label: int, index: int, probability: np.ndarray, certainty: float) -> None:
        """Keeps a finished slice, to be written later: uint8 (rows, columns) as the volume has it, 255 meaning 1.

        Raises ValueError for an array of another shape or type.
        """
        for changed in self._labels.put(label, index, probability, certainty):
            if not self._closed:
                self._pending[changed].add(index)

    @property
    def pending(self) -> int:
        """How many slices, labels counted one by one, are still to be written."""
        return sum(len(indices) for indices in self._pending.values())

    def write_next(self, near: int = 0) -> int:
        """Writes one block of neighbouring slices of one label; how many are still :attr:`pending`.

        Args:
            near: the slice that is looked at; those around it come first.
        """
        self._look()
        waiting = [(abs(index - near), index, label) for label in self._pending for index in self._pending[label]]
        if waiting:
            _, nearest, label = min(waiting)
            block = _block(self._pending[label], nearest)
            self._write(label, block, self._labels.labels(block))
        return self.pending

    def write_all(self) -> None:
        """Writes all that is to be written, each label at once."""
        self._look()
        indices = sorted(set().union(*self._pending.values()))
        if indices:
            held = {label: one.content() for label, one in self._segments.items()} if self._by_hand() else {}
            labels = self._labels.cleaned_labels(indices, self._by_hand(), held)
            for label in self._segments:
                self._write(label, sorted(self._pending[label]), labels)

    def finish(self) -> None:
        """Ends the run: writes the rest, cleaned if that is wanted, and brings the surfaces up to date."""
        if self._labels.labelmap_of is not None:
            self._all_pending()
        self.write_all()
        self.update_surface()

    def update_surface(self) -> None:
        """Makes the surfaces of the results anew where surfaces are shown; slow, as Slicer's surfaces are."""
        self._look()
        self._make_surfaces()

    # -- review --------------------------------------------------------------------------------------------------------

    @property
    def threshold(self) -> float:
        """Probability above which a voxel belongs to the structure."""
        return self._labels.threshold

    def set_threshold(self, threshold: float) -> None:
        """Another threshold, 0 to below 1. Slices are :attr:`pending` then; :meth:`write_all` writes those that change.

        Raises:
            InputError: for a threshold that is none.
        """
        self._labels.threshold = threshold
        self._all_pending()

    def set_cleaning(self, labelmap_of: LabelmapOf | None, reach_mm: float = 0.0) -> None:
        """What makes a labelmap of all probabilities, such as one that keeps the largest component.

        It has a part in what :meth:`write_all` and :meth:`finish` write.

        Args:
            labelmap_of: None = the threshold alone.
            reach_mm: how far beyond all that is probable it may find something, as smoothing does.
        """
        self._labels.labelmap_of, self._labels.reach_mm = labelmap_of, reach_mm
        self._all_pending()

    @property
    def by_hand(self) -> tuple[int, ...]:
        """Slices that a user has changed in one of the results since they were written, sorted."""
        if self._begun:
            self._look()
        return tuple(sorted(self._by_hand()))

    def certainty(self, label: int) -> np.ndarray:
        """How sure each slice of the volume is, 0 to 1; NaN where none was computed."""
        return self._labels.certainty[label].copy()

    def least_certain(self) -> int | None:
        """The slice of the lowest certainty, of those that were not changed by hand; None where none was computed."""
        lowest = np.nanmin(np.nan_to_num([*self._labels.certainty.values()], nan=np.inf), axis=0)
        lowest[list(self.by_hand)] = np.inf
        return int(lowest.argmin()) if np.isfinite(lowest).any() else None

    def segment_id(self, label: int) -> str | None:
        """ID of a label's result; None where nothing was written yet, or it was deleted."""
        return self._segments[label].segment_id if label in self._segments else None

    def volume_ml(self, label: int) -> float:
        """Volume of a result as it is in the scene, what was changed by hand included; 0 where it was deleted."""
        self._look()
        voxels = int(np.count_nonzero(self._segments[label].content().voxels)) if label in self._segments else 0
        return voxels * math.prod(self._scan.geometry.spacing) / 1000

    # -- the end -------------------------------------------------------------------------------------------------------

    def accept(self) -> None:
        """Ends the review: the results stay, and take from other segments what the rules let them overwrite.

        The painted segments give nothing away, so that they can be used again.
        """
        self.write_all()
        if self._rules is not None:
            for segment_id in self._rules.overwritten(self._segmentation_node, self._own()):
                for result in self._segments.values():
                    self._take_from(segment_id, result.content())
        self.update_surface()
        self._close()

    def discard(self) -> None:
        """Ends the review: results that the run made are removed, those it went on in become what they were.

        It raises nothing: what is not there any more is left alone.
        """
        if not self._closed and _is_present(self._segmentation_node):
            for result in self._segments.values():
                if result.is_there:
                    result.restore()
            self._make_surfaces()
        self._close()

    # -- within --------------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """What is true of the scene now: begins if it has not begun; raises where there is nothing to write into."""
        if self._closed:
            raise ResultLost("The results were accepted or discarded; begin another run.")
        self._check_nodes()
        if not self._begun:
            self._begin()
        self._segments = {label: one for label, one in self._segments.items() if one.is_there}
        if not self._segments:
            raise ResultLost("The results were deleted or undone; begin the run again to have them back.")
        for label, one in self._segments.items():
            if one.refresh():  # by undo, what was written may be gone
                self._pending[label] |= {k for k in self._labels.known(label) if not one.has_written(k)}
        by_hand = self._by_hand()
        for label, indices in self._pending.items():
            indices -= (by_hand - self._labels.painted[label].keys()) if label in self._segments else set(indices)

    def _make_surfaces(self) -> None:
        """Only where one is missing, though surfaces are shown."""
        segmentation, here = self._segmentation_node.GetSegmentation(), [*self._segments.values()]
        if segmentation.ContainsRepresentation(SURFACE) or any(one.surface_due for one in here if one.is_there):
            segmentation.CreateRepresentation(SURFACE)
            for one in here:
                one.surface_due = False

    def _check_nodes(self) -> None:
        for node, what in ((self._segmentation_node, "segmentation"), (self._volume_node, "scan")):
            if not _is_present(node):
                raise ResultLost(f"The {what} was deleted, or the scene closed; results cannot be written any more.")
        try:
            moved = not self._frame.same(Frame.of(self._volume_node, self._segmentation_node))
        except InputError:
            moved = True
        if moved:
            raise ResultLost(
                "The scan was changed, or moved against the segmentation, since the run began; begin the run again."
            )

    def _begin(self) -> None:
        if self._save_undo is not None:
            self._save_undo()
        self._begun = True
        where = self._segmentation_node
        for label, look in self._looks.items():
            if label in self._into:
                self._segments[label] = ResultSegment.take(where, self._into[label], self._frame, self._axis)
            else:
                self._segments[label] = ResultSegment.make(where, look, self._frame, self._axis)
            self._segments[label].note_painted(look.source)

    def _all_pending(self) -> None:
        for label, indices in self._pending.items():
            indices |= self._labels.computed(label)

    def _by_hand(self) -> set[int]:
        return set().union(*(one.by_hand for one in self._segments.values()))

    def _own(self) -> set[str]:
        """Segments that belong to the run: the results, and the painted ones."""
        return {one.segment_id for one in self._segments.values()} | {look.source for look in self._looks.values()}

    def _write(self, label: int, indices: list[int], labels: Piece) -> None:
        piece = Piece(labels.start, labels.voxels == label).trimmed()
        if self._rules is not None and piece.voxels.size:
            allowed = self._rules.allowed(piece, self._scan, self._segmentation_node, self._frame, self._own())
            allowed |= self._painted(label, piece)
            piece = Piece(piece.start, piece.voxels & allowed)
        self._segments[label].write(indices, piece)
        self._pending[label] -= set(indices)

    def _painted(self, label: int, piece: Piece) -> np.ndarray:
        """Which voxels in the box of a piece lie on slices painted with a label: nobody asks whether those may be."""
        painted = np.zeros(piece.voxels.shape, dtype=bool)
        along, first = np.moveaxis(painted, self._axis, 0), piece.start[self._axis]
        along[[k - first for k in self._labels.painted[label] if first <= k < piece.stop[self._axis]]] = True
        return painted

    def _take_from(self, segment_id: str, piece: Piece) -> None:
        """Takes away from another segment what a result holds."""
        other = read_within(self._segmentation_node, segment_id, self._frame)
        both = Piece(piece.start, piece.voxels & other.cut(piece.start, piece.stop)).trimmed()
        if both.voxels.size:
            remove_from_segment(self._segmentation_node, segment_id, both, self._frame)

    def _close(self) -> None:
        self._closed = True
        for indices in self._pending.values():
            indices.clear()


def _is_present(node: Any) -> bool:
    """Whether a node is in a scene."""
    return node.GetScene() is not None and bool(node.GetScene().IsNodePresent(node))


def _block(pending: set[int], nearest: int) -> list[int]:
    """Neighbouring pending slices around one."""
    first = last = nearest
    while last - first + 1 < BLOCK and ({first - 1, last + 1} & pending):
        if first - 1 in pending:
            first -= 1
        if last + 1 in pending and last - first + 1 < BLOCK:
            last += 1
    return list(range(first, last + 1))
