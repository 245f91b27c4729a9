"""The results of one run, written into a segmentation while they come in, changed in review, accepted or discarded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.images.postprocess import Postprocessing
from SDFSMISLib.scene.editing_rules import EditingRules
from SDFSMISLib.scene.frame import VoxelBox
from SDFSMISLib.scene.result_segment import (
    OutputSegmentation,
    ResultSegment,
    ResultUnavailable,
    result_scan_key,
    results_on_other_scans,
)
from SDFSMISLib.scene.run_labels import CleanedLabels, RunLabels
from SDFSMISLib.scene.scan import Scan
from SDFSMISLib.scene.segment_tags import SegmentTemplate
from SDFSMISLib.scene.segment_voxels import SURFACE, erase_from_segment, get_segment
from SDFSMISLib.support import SupportSet

__all__ = ["ResultWriter"]

BLOCK, BLOCK_PIXELS = 8, 1 << 22  # slices that are written at once, and their pixels in all labels, at most
STEP_VOXELS = 1 << 22  # that are taken from another segment at once


class ResultWriter:
    """Writes the slices of a run on one volume into one segmentation, each label into a segment of its own.

    Nothing is written before the first of :meth:`write_next`, :meth:`write_all` and :meth:`finish`, which saves the
    state for undo first; so undo takes the whole run back. Until :meth:`accept` no other segment is touched. Painted
    slices come out as painted. A slice that a user changes in a result is not written again, in any of the results;
    nor is a painted one, unless something was added to the painted segment there since the run before.

    :meth:`add_slice`, :meth:`write_next`, each step of :meth:`accept_steps` and :meth:`discard_steps`, and all queries
    take some milliseconds; :meth:`write_all`, :meth:`finish`, :meth:`accept` and :meth:`discard` do everything at once.

    For a sequence, results are those of the frame that the scan was copied from. If another frame is shown meanwhile
    (see :attr:`scan_changed`), slices are still written into the results of the original frame.

    Everything that reads or changes the scene, except :meth:`discard`, raises :class:`ResultUnavailable` if the
    segmentation or volume was deleted, closed or moved, or if all results were deleted or undone; slices written before
    stay as they are. A single result that is deleted is left out from then on.
    """

    def __init__(
        self,
        volume_node: Any,
        segmentation_node: Any,
        scan: Scan,
        support: SupportSet,
        axis: int,
        templates: Mapping[int, SegmentTemplate],
        *,
        into: Mapping[int, str] | None = None,
        rules: EditingRules | None = None,
        save_undo: Callable[[], Any] | None = None,
        threshold: float = 0.5,
    ) -> None:
        """
        Args:
            scan: of the volume, as it was when the run began. Its content hash is asked for, so it should be known.
            support: whose slices on this scan, along the axis, come out as painted.
            axis: array axis along which slices come.
            looks: of each label of the run, what its result takes over.
            into: IDs of results of earlier runs to go on in, by label; see :func:`.result_segment.find_results`. Other
                labels, and those whose result is that of another scan or frame of a sequence, get a segment of their
                own.
            rules: where editing is allowed and what is overwritten; None = everywhere, nothing.
            save_undo: called before anything is changed, and before results are discarded.
            threshold: probability above which a voxel belongs to the structure, 0 to below 1.

        Raises:
            InputError: for a threshold that is none, or a transform that is not linear between volume and segmentation.
            SegmentNotFound: where a segment of ``into`` is not there.
        """
        self._place = OutputSegmentation(volume_node, segmentation_node, scan)
        self._segmentation_node, self._frame = segmentation_node, self._place.frame
        self._scan, self._axis, self._rules = scan, axis, rules
        self._looks, self._into, self._save_undo = dict(templates), dict(into or {}), save_undo
        for label, segment_id in [*self._into.items()]:
            if result_scan_key(get_segment(segmentation_node, segment_id)) != scan.key:
                del self._into[label]
        self._labels = RunLabels(scan.geometry, scan.content_hash(), axis, support, templates, threshold)
        self._pending = {label: set(masks) for label, masks in self._labels.painted.items()}
        self._segments: dict[int, ResultSegment] = {}
        self._unopened = list(self._looks)
        self._begun = self._closed = self._surface_due = False

    # -- while the run goes on -----------------------------------------------------------------------------------------

    def add_slice(self, label: int, index: int, probability: np.ndarray, certainty: float) -> None:
        """Keeps a finished slice, to be written later: uint8 (rows, columns) as the volume has it, 255 meaning 1.

        Raises ValueError for an array of another shape or type.
        """
        for changed in self._labels.put(label, index, probability, certainty):
            if not self._closed:
                self._pending[changed].add(index)

    @property
    def pending(self) -> int:
        """How many slices, labels counted one by one, are still to be written; 0 = there is nothing to do."""
        return max(sum(len(indices) for indices in self._pending.values()), len(self._unopened) if self._begun else 0)

    @property
    def written(self) -> int:
        """How many slices, labels counted one by one, have come in or are painted, and are written."""
        return sum(len(self._labels.known(label) - indices) for label, indices in self._pending.items())

    def write_next(self, near: int = 0) -> int:
        """Does one step: writes one block of neighbouring slices of one label; how many are still :attr:`pending`.

        The first steps save the state for undo and make the segments, one each.

        Args:
            near: the slice that is looked at; those around it come first.
        """
        began = self._begun
        self._refresh()
        if not began:
            return self.pending
        waiting = [(abs(index - near), index, label) for label in self._pending for index in self._pending[label]]
        if self._unopened:
            self._open(self._unopened[0])
        elif waiting:
            _, nearest, label = min(waiting)
            pixels = math.prod(self._scan.geometry.slice_shape(self._axis)) * len(self._looks)
            block = _block(self._pending[label], nearest, min(BLOCK, max(1, BLOCK_PIXELS // pixels)))
            self._write(label, block, self._labels.labels(block))
        return self.pending

    def write_all(self) -> None:
        """Writes all that is to be written, each label at once, cleaned if that is wanted."""
        self._refresh()
        for label in [*self._unopened]:
            self._open(label)
        if self.cleaning_due:
            self.apply_cleaned(self.cleaning_task()())
        self._refresh()
        indices = sorted(set().union(*self._pending.values()))
        if indices:
            labels = self._labels.labels(indices)
            for label in self._segments:
                self._write(label, sorted(self._pending[label]), labels)

    def finish(self) -> None:
        """Ends the run: writes the rest, cleaned if that is wanted, and brings the surfaces up to date."""
        self.write_all()
        self.update_surface()

    def update_surface(self) -> None:
        """Makes the surfaces of the results anew where surfaces are shown; slow, as Slicer's surfaces are."""
        self._refresh()
        self._make_surfaces()

    @property
    def scan_changed(self) -> bool:
        """Whether the volume does not show what the run began with any more: another frame of its sequence, or other
        voxels."""
        return self._place.scan_changed

    # -- review --------------------------------------------------------------------------------------------------------

    @property
    def threshold(self) -> float:
        """Probability above which a voxel belongs to the structure."""
        return self._labels.threshold

    def set_threshold(self, threshold: float) -> None:
        """Another threshold, 0 to below 1. Slices are :attr:`pending` then, or :attr:`cleaning_due` is true.

        Raises:
            InputError: for a threshold that is none.
        """
        if threshold != self._labels.threshold:
            self._labels.threshold = threshold
            self._labels_changed()

    def set_cleaning(self, cleaning: Postprocessing | None) -> None:
        """What is done to all slices together; None = nothing. :attr:`cleaning_due` is true then, or slices are
        :attr:`pending`."""
        wanted = cleaning or Postprocessing()
        if wanted != self._labels.cleaning:
            self._labels.cleaning = wanted
            self._labels_changed()

    @property
    def cleaning_due(self) -> bool:
        """Whether a cleaning is wanted that was not taken for what is known now; so it is all along a run.

        Until it is taken, what was written stays, and slices that come in are written by the threshold alone.
        """
        return self._labels.cleaning_due and not self._closed

    def cleaning_task(self) -> Callable[[], CleanedLabels]:
        """What cleans the slices as they are now, those that were changed by hand included.

        It works on copies, so any thread may call it; it takes a tenth of a second to a second. What it gives is for
        :meth:`apply_cleaned`.
        """
        if self._begun:
            self._refresh()
        corrected = self._by_hand()
        held = {
            label: one.read().keep_slices(self._axis, corrected) for label, one in self._segments.items() if corrected
        }
        return self._labels.cleaner(corrected, held)

    def apply_cleaned(self, cleaned: CleanedLabels) -> bool:
        """Takes what a cleaning gave: slices are :attr:`pending` then.

        It is false, and nothing changes, where threshold, cleaning or slices are other ones by now, or the results were
        accepted or discarded.
        """
        taken = not self._closed and self._labels.apply_cleaned(cleaned)
        if taken:
            self._all_pending()
        return taken

    @property
    def corrected(self) -> tuple[int, ...]:
        """Slices that a user has changed in one of the results since they were written, sorted."""
        if self._begun:
            self._refresh()
        return tuple(sorted(self._by_hand()))

    def painted_slices(self, label: int) -> tuple[int, ...]:
        """The slices of the volume on which a label was painted when the run began, sorted."""
        return tuple(sorted(self._labels.painted[label]))

    def certainty(self, label: int) -> np.ndarray:
        """How sure each slice of the volume is, 0 to 1; NaN where none was computed."""
        return self._labels.certainty[label].copy()

    def least_certain(self) -> int | None:
        """The slice of the lowest certainty, of those that were not changed by hand; None where none was computed."""
        lowest = np.nanmin(np.nan_to_num([*self._labels.certainty.values()], nan=np.inf), axis=0)
        lowest[list(self.corrected)] = np.inf
        return int(lowest.argmin()) if np.isfinite(lowest).any() else None

    def segment_id(self, label: int) -> str | None:
        """ID of a label's result; None where nothing was written yet, or it was deleted."""
        return self._segments[label].segment_id if label in self._segments else None

    def volume_ml(self, label: int) -> float:
        """Volume of a result as it is in the scene, what was changed by hand included; 0 where it was deleted."""
        if self._begun:
            self._refresh()
        voxels = self._segments[label].voxels if label in self._segments else 0
        return voxels * math.prod(self._scan.geometry.spacing) / 1000

    # -- the end -------------------------------------------------------------------------------------------------------

    def accept(self) -> None:
        """Ends the review: the results stay, and take from other segments what the rules let them overwrite.

        The painted segments give nothing away, so that they can be used again.
        """
        for _ in self.accept_steps():
            pass

    def accept_steps(self) -> Iterator[float]:
        """Accepts in steps of milliseconds, but for Slicer's surfaces; yields the share that is done.

        What is still :attr:`cleaning_due` is cleaned in one step.
        """
        self._refresh()
        if self.cleaning_due:
            self.apply_cleaned(self.cleaning_task()())
        most = max(1, self.pending)
        while left := self.write_next():
            yield 0.5 * max(0.0, 1 - left / most)
        others = self._rules.overwritten(self._segmentation_node, self._own()) if self._rules is not None else []
        for number, segment_id in enumerate(others):
            for result in [*self._segments.values()]:
                for _ in self._taking_from(segment_id, result):
                    yield 0.5 + 0.5 * number / len(others)
        self.update_surface()
        self._close()
        yield 1.0

    def discard(self) -> None:
        """Ends the review: results that the run made are removed, those it went on in become what they were.

        The state for undo is saved first. Slices that a user has changed since the run began stay, in all of the
        results, and are corrections for the next run. It raises nothing: what is not there any more is left alone.
        """
        for _ in self.discard_steps():
            pass

    def discard_steps(self) -> Iterator[float]:
        """Discards in steps of milliseconds, but for Slicer's surfaces; yields the share that is done."""
        was_closed = self._closed
        self._close()
        there = [] if was_closed else self._readable()
        if there and self._save_undo is not None:
            self._save_undo()
        kept = set().union(*(one.changed_during_run for one in there))
        for number, result in enumerate(there, 1):
            if self._place.exists and result.exists:
                result.restore(kept)
            yield number / (len(there) + 1)
        if there and self._place.exists:
            self._make_surfaces()
        yield 1.0

    # -- within --------------------------------------------------------------------------------------------------------

    def _readable(self) -> list[ResultSegment]:
        """The results that are there and still labelmaps, looked at."""
        readable = []
        for one in self._segments.values():
            if self._place.exists and one.exists:
                with suppress(InputError):
                    one.refresh()
                    readable.append(one)
        return readable

    def _refresh(self) -> None:
        """What is true of the scene now: begins if it has not begun; raises where there is nothing to write into."""
        if self._closed:
            raise ResultUnavailable("The results were accepted or discarded; begin another run.")
        self._place.check()
        if not self._begun:
            if self._save_undo is not None:
                self._save_undo()
            self._begun = True
        there = {label: one for label, one in self._segments.items() if one.exists}
        if self._segments and not there:
            raise ResultUnavailable("The results were deleted or undone; begin the run again to have them back.")
        self._segments = there
        for label, one in self._segments.items():
            if one.refresh():  # by undo, what was written may be gone
                self._pending[label] |= {k for k in self._labels.known(label) if not one.has_written(k)}
        corrected = self._by_hand()
        for label, indices in self._pending.items():
            is_written = label in self._segments or label in self._unopened
            indices -= self._left_alone(label, corrected) if is_written else set(indices)

    def _left_alone(self, label: int, corrected: set[int]) -> set[int]:
        """Slices by hand that are not written into a label's result: all but painted ones that are as they were."""
        painted, result = self._labels.painted[label].keys() & corrected, self._segments.get(label)
        if result is None:
            return corrected - painted
        newer = painted & result.corrected
        newer -= {k for k in newer if result.has_digest(k, self._labels.painted_digest(label, k))}
        if newer:
            anew = set().union(*(one.newly_painted for one in self._segments.values()))
            newer -= anew - result.changed_during_run
        return (corrected - painted) | newer

    def _open(self, label: int) -> None:
        """Makes the segment of a label, or takes that of an earlier run."""
        self._unopened.remove(label)
        where, template = self._segmentation_node, self._looks[label]
        if label in self._into:
            segment = ResultSegment.resume(where, self._into[label], self._frame, self._axis)
        else:
            segment = ResultSegment.create(where, template, self._frame, self._axis, self._scan)
        segment.record_painted(template)
        self._segments[label] = segment

    def _make_surfaces(self) -> None:
        """Only where one is missing, though surfaces are shown."""
        segmentation, here = self._segmentation_node.GetSegmentation(), [*self._segments.values()]
        due = self._surface_due or any(one.surface_due for one in here if one.exists)
        if due or segmentation.ContainsRepresentation(SURFACE):
            segmentation.CreateRepresentation(SURFACE)
            self._surface_due = False
            for one in here:
                one.surface_due = False

    def _labels_changed(self) -> None:
        if self._labels.cleaning.is_off:
            self._all_pending()

    def _all_pending(self) -> None:
        if not self._closed:
            for label, indices in self._pending.items():
                indices |= self._labels.computed(label)

    def _by_hand(self) -> set[int]:
        return set().union(*(one.corrected for one in self._segments.values()))

    def _own(self) -> set[str]:
        """Segments that are no others to the run: the results, the painted ones, and results on other scans."""
        painted = {template.source for template in self._looks.values() if template.is_in(self._segmentation_node)}
        results = {one.segment_id for one in self._segments.values()}
        return results | painted | results_on_other_scans(self._segmentation_node, self._scan.key)

    def _write(self, label: int, indices: list[int], labels: VoxelBox) -> None:
        piece = VoxelBox(labels.start, labels.voxels == label).trimmed()
        if self._rules is not None and piece.voxels.size:
            allowed = self._rules.allowed(piece, self._scan, self._segmentation_node, self._frame, self._own())
            allowed |= self._painted(label, piece)
            piece = VoxelBox(piece.start, piece.voxels & allowed)
        self._segments[label].write(indices, piece)
        self._pending[label] -= set(indices)

    def _painted(self, label: int, piece: VoxelBox) -> np.ndarray:
        """Which voxels in the box of a piece lie on slices painted with a label: nobody asks whether those may be."""
        painted = np.zeros(piece.voxels.shape, dtype=bool)
        along, first = np.moveaxis(painted, self._axis, 0), piece.start[self._axis]
        along[[k - first for k in self._labels.painted[label] if first <= k < piece.stop[self._axis]]] = True
        return painted

    def _taking_from(self, segment_id: str, result: ResultSegment) -> Iterator[None]:
        """Takes away from another segment what a result holds, some slices a step."""
        if self._segmentation_node.GetSegmentation().GetSegment(segment_id) is None:
            return
        content = result.read()
        thickness = max(1, STEP_VOXELS // max(1, math.prod(content.voxels.shape[1:])))
        for first in range(0, len(content.voxels), thickness):
            part = VoxelBox(content.start, content.voxels[first : first + thickness]).shifted((first, 0, 0))
            shown = get_segment(self._segmentation_node, segment_id).GetRepresentation(SURFACE) is not None
            if erase_from_segment(self._segmentation_node, segment_id, self._frame, part) and shown:
                self._surface_due = True
            yield

    def _close(self) -> None:
        self._closed = True
        for indices in self._pending.values():
            indices.clear()


def _block(pending: set[int], nearest: int, most: int) -> list[int]:
    """Neighbouring pending slices around one."""
    first = last = nearest
    while last - first + 1 < most and ({first - 1, last + 1} & pending):
        if first - 1 in pending:
            first -= 1
        if last + 1 in pending and last - first + 1 < most:
            last += 1
    return list(range(first, last + 1))
