"""The results of one run: written into a segmentation as slices arrive, changed in review, accepted or discarded."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.images.planes import Plane
from SDFSMISLib.images.postprocess import Postprocessing
from SDFSMISLib.scene.corrections import Known, added_voxels, join, known_within, plane_extent
from SDFSMISLib.scene.editing_rules import EditingRules
from SDFSMISLib.scene.frame import VoxelBox, as_index
from SDFSMISLib.scene.result_segment import (
    OutputSegmentation,
    ResultSegment,
    ResultUnavailable,
    result_scan_key,
    results_on_other_scans,
)
from SDFSMISLib.scene.run_labels import CleanedLabels, ResultDoubts, RunLabels
from SDFSMISLib.scene.scan import Scan
from SDFSMISLib.scene.segment_tags import PAINTED_TAG, SegmentTemplate, decode_mask, get_tag
from SDFSMISLib.scene.segment_voxels import SURFACE, erase_from_segment, get_segment, read_clipped, read_extent
from SDFSMISLib.support import SupportSet

__all__ = ["ResultWriter"]

BLOCK, BLOCK_PIXELS = 8, 1 << 22  # slices written in one step, and their pixels in all labels, at most
STEP_VOXELS = 1 << 22  # erased from another segment in one step


class ResultWriter:
    """Writes the slices of a run on one volume into one segmentation, each label into a segment of its own.

    Nothing is written before the first :meth:`write_next`, which saves the state for undo first; so one undo takes the
    whole run back. No other segment is touched before :meth:`accept_steps`. Painted slices, of any view, stay as
    painted. What a user corrects in one result, and what lies close to it on its slice, is not written again in any of
    the results, nor is a slice that was said to be right; unless that slice is painted anew in the painted segment.

    All methods run on the main thread and take some milliseconds, except :meth:`update_surface`;
    :meth:`accept_steps` and :meth:`discard_steps` do so in each of their steps.

    For a sequence, results are those of the frame that the scan was copied from. If another frame is shown meanwhile
    (see :attr:`scan_changed`), slices are still written into the results of the original frame.

    Everything that reads or changes the scene, except :meth:`discard_steps`, raises :class:`ResultUnavailable` if the
    segmentation or volume was deleted, closed or moved, or if all results were deleted or undone; slices written before
    stay as they are. A single result that is deleted is left out from then on.

    Args:
        scan: copy of the volume, made when the run began. Its content hash is needed, so it should be computed already.
        support: its slices on this scan are the painted ones.
        axis: array axis along which slices are counted.
        templates: name, colour and terminology of each label's result.
        into: IDs of results of earlier runs to continue in, by label; see :func:`.result_segment.find_results`. Other
            labels, and those whose result belongs to another scan or frame of a sequence, get a new segment.
        rules: where editing is allowed and which segments are overwritten; None = everywhere, and none.
        save_undo: called before the first change, and before results are discarded.
        threshold: probability above which a voxel belongs to the structure, 0 to below 1.

    Raises:
        InputError: for a threshold out of range, or a transform between volume and segmentation that is not linear.
        SegmentNotFound: if a segment of ``into`` is not in the segmentation.

    A run on the nodes of a scene, with ``slicer-core`` or inside Slicer::

        writer = ResultWriter(volume_node, segmentation_node, scan, support, 0, {1: SegmentTemplate("liver")})
        for result in run:
            writer.add_slice(result.label, result.index, result.probability, result.certainty)
            writer.write_next(near=shown_slice(slice_node, volume_node).index)
        writer.set_threshold(0.4)  # in review
        for share in writer.accept_steps():
            slicer.app.processEvents()
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
        self._output = OutputSegmentation(volume_node, segmentation_node, scan)
        self._segmentation_node, self._frame = segmentation_node, self._output.frame
        self._scan, self._axis, self._rules = scan, axis, rules
        self._templates, self._save_undo = dict(templates), save_undo
        self._into = {
            label: segment_id
            for label, segment_id in (into or {}).items()
            if result_scan_key(get_segment(segmentation_node, segment_id)) == scan.key
        }
        self._labels = RunLabels(scan.geometry, scan.content_hash(), axis, support, templates, threshold)
        self._pending = {label: self._touched(label) for label in self._labels.painted}
        self._segments: dict[int, ResultSegment] = {}
        self._unopened = list(self._templates)
        self._begun = self._closed = self._surface_due = False
        self._added: VoxelBox | None = None

    # -- during the run ------------------------------------------------------------------------------------------------

    def add_slice(self, label: int, index: int, probability: np.ndarray, certainty: float) -> None:
        """Stores a computed slice, to be written later: uint8 (rows, columns) on the volume's grid, 255 meaning 1.

        Raises:
            ValueError: for an array of another shape or type.
        """
        for changed in self._labels.add_slice(label, index, probability, certainty):
            if not self._closed:
                self._pending[changed].add(index)

    @property
    def pending(self) -> int:
        """How many slices, counted for each label, are still to be written; 0 = nothing to do."""
        return max(sum(len(indices) for indices in self._pending.values()), len(self._unopened) if self._begun else 0)

    def write_next(self, near: int = 0) -> int:
        """Writes one block of neighbouring slices of one label; the first steps save for undo and create segments.

        Args:
            near: index of the slice in view; those around it come first.

        Returns:
            How many slices are still :attr:`pending`.
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
            pixels = math.prod(self._scan.geometry.slice_shape(self._axis)) * len(self._templates)
            block = _block(self._pending[label], nearest, min(BLOCK, max(1, BLOCK_PIXELS // pixels)))
            self._write(label, block)
        return self.pending

    def update_surface(self) -> None:
        """Recomputes the surfaces of the results if surfaces are shown; as slow as Slicer computes them."""
        self._refresh()
        self._create_surfaces()

    @property
    def scan_changed(self) -> bool:
        """Whether the volume now shows another frame of its sequence than when the run began, or other voxels."""
        return self._output.scan_changed

    # -- review --------------------------------------------------------------------------------------------------------

    @property
    def threshold(self) -> float:
        """Probability above which a voxel belongs to the structure."""
        return self._labels.threshold

    def set_threshold(self, threshold: float) -> None:
        """Changes the threshold, 0 to below 1; slices become :attr:`pending`, or :attr:`cleaning_due` becomes true.

        Raises:
            InputError: for a threshold out of range.
        """
        if threshold != self._labels.threshold:
            self._labels.threshold = threshold
            self._labels_changed()

    def set_cleaning(self, cleaning: Postprocessing | None) -> None:
        """Cleaning of all slices together, None = off; :attr:`cleaning_due` becomes true, or slices :attr:`pending`."""
        requested = cleaning or Postprocessing()
        if requested != self._labels.cleaning:
            self._labels.cleaning = requested
            self._labels_changed()

    @property
    def cleaning_due(self) -> bool:
        """Whether cleaning is on and was not yet applied to the current slices; true all through a run.

        Until it is applied, written slices stay, and slices that arrive are written by the threshold alone.
        """
        return self._labels.cleaning_due and not self._closed

    def cleaning_task(self) -> Callable[[], CleanedLabels]:
        """A function that cleans the slices as they are now, including a user's corrections.

        It works on copies, so any thread may call it; it takes a tenth of a second to a second. Its result goes to
        :meth:`apply_cleaned`.
        """
        corrected = self.corrections
        held = {}
        for label, one in self._segments.items() if corrected else ():
            box = one.read()
            held[label] = VoxelBox(box.start, box.voxels & known_within(corrected, box.start, box.stop)).trimmed()
        return self._labels.cleaning_task(corrected, held)

    def apply_cleaned(self, cleaned: CleanedLabels) -> bool:
        """Applies the result of a cleaning: slices become :attr:`pending`.

        Returns:
            False, with nothing changed, if threshold, cleaning or slices have changed since, or the run was accepted or
            discarded.
        """
        applied = not self._closed and self._labels.apply_cleaned(cleaned)
        if applied:
            self._all_pending()
        return applied

    @property
    def corrections(self) -> Known:
        """What a user has corrected in any of the results, and said to be right, in this run and those before."""
        if self._begun:
            self._refresh()
        return self._corrections()

    @property
    def corrected(self) -> tuple[Plane, ...]:
        """The slices of any view that a user has corrected in one of the results, or said to be right, sorted."""
        return tuple(self.corrections)

    def know(self, plane: Plane) -> None:
        """Take a slice of any view as right in all results, as it is now; the state for undo is saved first.

        After a run over some slices, of a slice of another view that part is right which lies on them.

        Raises:
            ResultUnavailable: see the class.
        """
        self._refresh()
        if self._save_undo is not None:
            self._save_undo()
        for label, one in self._segments.items():
            one.know(plane, self._computed_part(label, plane))

    def _computed_part(self, label: int, plane: Plane) -> VoxelBox | None:
        """Bool, the part of a slice that a run has computed or that was painted; None = all of it."""
        shape, axis, finished = as_index(self._scan.geometry.shape), self._axis, sorted(self._labels.finished(label))
        if plane.axis == axis or len(finished) == shape[axis]:
            return None
        start, stop = plane_extent(plane, shape)
        part = np.zeros(np.subtract(stop, start), dtype=bool)
        np.moveaxis(part, axis, 0)[finished] = True
        return VoxelBox(start, part)

    def painted_slices(self, label: int) -> tuple[int, ...]:
        """The slices along the axis on which a label was painted when the run began, sorted."""
        return tuple(sorted(self._labels.painted[label]))

    def certainty(self, label: int) -> np.ndarray:
        """How certain each slice of the volume is, 0 to 1; NaN if it was not computed."""
        return self._labels.certainty[label].copy()

    def doubts_task(self, skip: Collection[Plane] = ()) -> Callable[[], ResultDoubts]:
        """A function that finds where the result is likely wrong; see `take_doubts`.

        It works on copies, so any thread may call it; it takes a tenth of a second to some seconds.

        Args:
            skip: slices that are not to be named, beside painted and corrected ones.
        """
        corrections = self.corrections
        whole = {plane for plane, box in corrections.items() if box is None}
        return self._labels.doubts_task(whole, {*corrections, *skip})

    def take_doubts(self, doubts: ResultDoubts) -> None:
        """Make the certainty of the slices that which was found."""
        self._labels.certainty = {label: one.copy() for label, one in doubts.certainty.items()}

    def segment_id(self, label: int) -> str | None:
        """ID of a label's result; None if nothing was written yet, or it was deleted."""
        return self._segments[label].segment_id if label in self._segments else None

    def volume_ml(self, label: int) -> float:
        """Volume in ml of a result as it is in the scene, corrections included; 0 if it was deleted."""
        if self._begun:
            self._refresh()
        voxels = self._segments[label].voxel_count if label in self._segments else 0
        return voxels * math.prod(self._scan.geometry.spacing) / 1000

    # -- the end -------------------------------------------------------------------------------------------------------

    def accept_steps(self) -> Iterator[float]:
        """Ends the review: the results stay, and other segments lose the voxels that the rules let them overwrite.

        The painted segments lose nothing, so that they can be used again. Each step takes milliseconds, except for a
        cleaning that is still due and Slicer's surfaces.

        Yields:
            The share that is done, 0 to 1.
        """
        self._refresh()
        if self.cleaning_due:
            self.apply_cleaned(self.cleaning_task()())
        total = max(1, self.pending)
        while left := self.write_next():
            yield 0.5 * max(0.0, 1 - left / total)
        others = self._rules.overwritten(self._segmentation_node, self._own_segments()) if self._rules else []
        for number, segment_id in enumerate(others):
            for result in [*self._segments.values()]:
                for _ in self._erase_steps(segment_id, result):
                    yield 0.5 + 0.5 * number / len(others)
        self.update_surface()
        self._close()
        yield 1.0

    def discard_steps(self) -> Iterator[float]:
        """Ends the review: results created by the run are removed, others become what they were before.

        The state for undo is saved first. What a user has corrected since the run began stays in all results, for the
        next run. Nothing is raised: deleted results are ignored. Each step takes milliseconds,
        except for Slicer's surfaces.

        Yields:
            The share that is done, 0 to 1.
        """
        was_closed = self._closed
        self._close()
        results = [] if was_closed else self._readable()
        if results and self._save_undo is not None:
            self._save_undo()
        kept = join(*(one.corrected_since for one in results))
        for number, result in enumerate(results, 1):
            if self._output.exists and result.exists:
                result.restore(kept)
            yield number / (len(results) + 1)
        if results and self._output.exists:
            self._create_surfaces()
        yield 1.0

    # -- the state of the scene ----------------------------------------------------------------------------------------

    def _refresh(self) -> None:
        """Reads what others have changed; saves for undo the first time.

        Raises:
            ResultUnavailable: see the class.
        """
        if self._closed:
            raise ResultUnavailable("The results were accepted or discarded; begin another run.")
        self._output.check()
        if not self._begun:
            if self._save_undo is not None:
                self._save_undo()
            self._begun = True
        present = {label: one for label, one in self._segments.items() if one.exists}
        if self._segments and not present:
            raise ResultUnavailable("The results were deleted or undone; begin the run again to have them back.")
        self._segments = present
        for label, one in self._segments.items():
            if one.refresh():  # undo may have removed written slices
                due = self._labels.finished(label) | self._touched(label)
                self._pending[label] |= {k for k in due if not one.has_written(k)}
        for label, indices in self._pending.items():
            if label not in self._segments and label not in self._unopened:  # it was deleted
                indices.clear()

    def _readable(self) -> list[ResultSegment]:
        """The results that are still in the scene as labelmaps, refreshed."""
        readable = []
        for one in self._segments.values():
            if self._output.exists and one.exists:
                with suppress(InputError):
                    one.refresh()
                    readable.append(one)
        return readable

    def _corrections(self) -> Known:
        return join(*(one.corrections for one in self._segments.values()))

    def _own_segments(self) -> set[str]:
        """Segments that editing rules do not count as others: results, painted segments, results on other scans."""
        painted = {one.source for one in self._templates.values() if one.is_in(self._segmentation_node)}
        results = {one.segment_id for one in self._segments.values()}
        return results | painted | results_on_other_scans(self._segmentation_node, self._scan.key)

    # -- writing -------------------------------------------------------------------------------------------------------

    def _open(self, label: int) -> None:
        """Creates the segment of a label, or continues in that of an earlier run."""
        self._unopened.remove(label)
        node, template = self._segmentation_node, self._templates[label]
        if label in self._into:
            added = self._added_since()
            segment = ResultSegment.resume(node, self._into[label], self._frame, self._axis, added)
        else:
            segment = ResultSegment.create(node, template, self._frame, self._axis, self._scan)
        segment.record_painted(template)
        self._segments[label] = segment

    def _touched(self, label: int) -> set[int]:
        """Slices that are written before they were computed."""
        return self._labels.touched(label, by_absence=label in self._into)

    def _added_since(self) -> VoxelBox:
        """What was added to the painted segments since the run before."""
        if self._added is None:
            node, shape = self._segmentation_node, as_index(self._scan.geometry.shape)
            self._added = added_voxels(
                (
                    read_clipped(node, template.source, self._frame),
                    decode_mask(get_tag(get_segment(node, self._into[label]), PAINTED_TAG), shape),
                )
                for label, template in self._templates.items()
                if label in self._into and template.is_in(node)
            )
        return self._added

    def _write(self, label: int, indices: list[int]) -> None:
        labels = self._labels.labels(indices)
        box = VoxelBox(labels.start, labels.voxels == label).trimmed()
        if self._rules is not None and box.voxels.size:
            editable = self._rules.editable(box, self._scan, self._segmentation_node, self._frame, self._own_segments())
            painted = known_within(self._labels.known[label], box.start, box.stop)
            box = VoxelBox(box.start, box.voxels & (editable | painted))  # painted voxels whatever the rules say
        self._segments[label].write(indices, self._with_held(label, indices, box))
        self._pending[label] -= set(indices)

    def _with_held(self, label: int, indices: list[int], box: VoxelBox) -> VoxelBox:
        """A box of some slices with what stays there of the result: corrections, and slices that have not come yet."""
        corrections, waiting = self._corrections(), set(indices) - self._labels.finished(label)
        if not corrections and not waiting:
            return box
        low, high = [0, 0, 0], list(self._scan.geometry.shape)
        low[self._axis], high[self._axis] = min(indices), max(indices) + 1
        start, stop = as_index(low), as_index(high)
        stays = known_within(corrections, start, stop)
        if waiting:  # of them only what was painted is written
            layers = [index - start[self._axis] for index in waiting]
            painted = np.moveaxis(known_within(self._labels.known[label], start, stop), self._axis, 0)
            np.moveaxis(stays, self._axis, 0)[layers] |= ~painted[layers]
        held = read_extent(self._segmentation_node, self._segments[label].segment_id, self._frame, start, stop)
        return VoxelBox(start, np.where(stays, held, box.crop_or_pad(start, stop))).trimmed()

    def _erase_steps(self, segment_id: str, result: ResultSegment) -> Iterator[None]:
        """Erases a result's voxels from another segment, some slices in each step."""
        if self._segmentation_node.GetSegmentation().GetSegment(segment_id) is None:
            return
        box = result.read()
        thickness = max(1, STEP_VOXELS // max(1, math.prod(box.voxels.shape[1:])))
        for first in range(0, len(box.voxels), thickness):
            part = VoxelBox(box.start, box.voxels[first : first + thickness]).shifted((first, 0, 0))
            has_surface = get_segment(self._segmentation_node, segment_id).GetRepresentation(SURFACE) is not None
            if erase_from_segment(self._segmentation_node, segment_id, self._frame, part) and has_surface:
                self._surface_due = True
            yield

    def _create_surfaces(self) -> None:
        """Only if surfaces are shown and one is missing."""
        segmentation, results = self._segmentation_node.GetSegmentation(), [*self._segments.values()]
        due = self._surface_due or any(one.surface_due for one in results if one.exists)
        if due or segmentation.ContainsRepresentation(SURFACE):
            segmentation.CreateRepresentation(SURFACE)
            self._surface_due = False
            for one in results:
                one.surface_due = False

    def _labels_changed(self) -> None:
        if self._labels.cleaning.is_off:
            self._all_pending()

    def _all_pending(self) -> None:
        if not self._closed:
            for label, indices in self._pending.items():
                indices |= self._labels.computed(label)

    def _close(self) -> None:
        self._closed = True
        for indices in self._pending.values():
            indices.clear()


def _block(pending: set[int], nearest: int, limit: int) -> list[int]:
    """At most ``limit`` neighbouring pending slices around one."""
    first = last = nearest
    while last - first + 1 < limit and ({first - 1, last + 1} & pending):
        if first - 1 in pending:
            first -= 1
        if last + 1 in pending and last - first + 1 < limit:
            last += 1
    return list(range(first, last + 1))
