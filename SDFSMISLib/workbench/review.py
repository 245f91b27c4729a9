"""Review of the results of a run: threshold, post-processing, certainty, corrections; accept or discard."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.images.planes import Plane
from SDFSMISLib.images.postprocess import Postprocessing
from SDFSMISLib.scene import Known, ResultWriter, SegmentTemplate, Suggestion, VoxelBox, volume_geometry
from SDFSMISLib.workbench.background import Background, JobEnded
from SDFSMISLib.workbench.run import TargetScan, defect_message
from SDFSMISLib.workbench.slice_views import (
    show_plane,
    show_scan,
    show_segmentation,
    visible_planes,
    visible_slice,
)
from SDFSMISLib.workbench.text import tr as _
from SDFSMISLib.workbench.views import Editor, Part, ResultView, ReviewView

__all__ = ["Review", "describe_cleaning"]

LOG = logging.getLogger("SDFSMIS")
BUDGET = 0.02  # seconds of one step
REST = 0.6  # seconds without a change after which surfaces are made anew
UPDATE_EVERY = 0.25  # seconds between two looks at the scene
NO_COLOR = (0.5, 0.5, 0.5)


@dataclass(eq=False)
class _Reviewed:
    """A scan with results.

    Attributes:
        due: whether the user has changed something that is not written yet. Slices that are pending without it were
            taken back by undo, and stay so.
        cleaning: the thread that computes the post-processing.
        surface_due: whether the surfaces must be made again.
        searching: the thread that finds where one more painted slice would help most.
        suggestions: what it has found, best first; None = not yet.
        shown: suggested slices that were shown already; the last of them is named until it is corrected.
        views: the slices that the views show, by view, and the one of these views that was used last.
        known: what was known by hand when it was looked at last.
    """

    target: TargetScan
    writer: ResultWriter
    due: bool = False
    cleaning: Background | None = None
    surface_due: bool = False
    searching: Background | None = None
    suggestions: list[Suggestion] | None = None
    shown: list[Plane] = field(default_factory=list)
    views: dict[str, Plane] = field(default_factory=dict)
    used_view: str = ""
    known: Known = field(default_factory=dict)

    def suggestion(self) -> Suggestion | None:
        """The best slice that was neither shown nor corrected; None if there is none."""
        left = [one for one in self.suggestions or () if one.plane not in self.known]
        return next((one for one in left if one.plane not in self.shown), None)

    def named(self) -> Plane | None:
        """The slice to name: the suggested one that was shown last, while it is not corrected; else the next."""
        if self.shown and self.shown[-1] not in self.known:
            return self.shown[-1]
        found = self.suggestion()
        return None if found is None else found.plane

    def forget_suggestions(self) -> None:
        """They are searched for again. One that is named stays so until it is corrected."""
        if self.searching is not None:
            self.searching.cancel.set()
        self.searching = self.suggestions = None

    def stop(self) -> None:
        """Ask the threads to stop."""
        for thread in (self.cleaning, self.searching):
            if thread is not None:
                thread.cancel.set()


class Review(Part[ReviewView]):
    """The results of the last run, until they are accepted or discarded. Post-processing is computed in a thread.

    Attributes:
        locked: whether accept and discard do nothing, as during a run.
    """

    def __init__(self, changed: Callable[[], None] = lambda: None) -> None:
        super().__init__(ReviewView(), changed)
        self.locked = False
        self._editor: Editor | None = None
        self._scans: list[_Reviewed] = []
        self._templates: Mapping[int, SegmentTemplate] = {}
        self._ending: Iterator[Any] | None = None
        self._accepted = False
        self._changed_at = self._updated_at = 0.0
        self._problem = ""

    @property
    def is_open(self) -> bool:
        """Whether there are results to review."""
        return bool(self._scans)

    def begin(self, targets: Sequence[TargetScan], templates: Mapping[int, SegmentTemplate], editor: Editor) -> None:
        """Review the results of a run in place of those before, which stay in the scene as they are.

        The segment editor selects the first result, so that the next stroke corrects it.
        """
        self.forget()
        self._templates, self._editor = dict(templates), editor
        self._scans = [_Reviewed(one, one.writer) for one in targets if one.writer is not None]
        if any(one.writer.threshold != self.view.threshold for one in self._scans):  # it was moved during the run
            self._change(lambda writer: writer.set_threshold(self.view.threshold))
        if self._scans and self._cleaning() is not None:
            self._change(lambda writer: writer.set_cleaning(self._cleaning()))
        self._update_view()
        if self._scans:
            writer = self._scans[self.view.scan].writer
            self._select(next((found for label in self._templates if (found := writer.segment_id(label))), None))

    def forget(self) -> None:
        """End the review; the results stay in the scene."""
        for one in self._scans:
            one.stop()
            show_segmentation(one.target.segmentation, True)
        self._scans, self._editor, self._ending, self._accepted, self._problem = [], None, None, False, ""
        kept = self.view
        self.view = ReviewView(threshold=kept.threshold, keep_largest=kept.keep_largest, smooth_mm=kept.smooth_mm)

    # -- what the user does --------------------------------------------------------------------------------------------

    def choose_scan(self, number: int) -> None:
        """Review the results of another scan, by its number in ``view.scans``, and show that scan in the views."""
        if not 0 <= number < len(self._scans) or number == self.view.scan:
            return
        self.view = replace(self.view, scan=number)
        for place, one in enumerate(self._scans):
            show_segmentation(one.target.segmentation, place == number)
        chosen = self._scans[number]
        self._guarded(chosen, lambda: show_scan(chosen.target.volume))
        self._update_view()

    def set_threshold(self, threshold: float) -> None:
        """Set the threshold of the probability, 0 to below 1, of all results and of the next run."""
        threshold = min(max(threshold, 0.0), 0.99)
        if threshold == self.view.threshold:  # a change that is none must not write again what was undone
            return
        self.view = replace(self.view, threshold=threshold)
        for one in self._scans:
            one.forget_suggestions()  # another border is uncertain elsewhere
        self._change(lambda writer: writer.set_threshold(threshold))

    def set_cleaning(self, keep_largest: bool, smooth_mm: float) -> None:
        """Set the post-processing of all results: largest piece only, smoothing (standard deviation in mm; 0 = off)."""
        smooth_mm = max(0.0, smooth_mm)
        if (keep_largest, smooth_mm) == (self.view.keep_largest, self.view.smooth_mm):
            return
        self.view = replace(self.view, keep_largest=keep_largest, smooth_mm=smooth_mm)
        self._change(lambda writer: writer.set_cleaning(self._cleaning()))

    def go_to_suggestion(self) -> None:
        """Show the slice, of any view, where one more painted slice would help most, and select its result.

        Slices that were shown are skipped the next time, until all were shown. Corrected slices are never shown.
        """
        if not self._scans:
            return
        one = self._scans[self.view.scan]
        if one.suggestion() is None:
            one.shown.clear()
        found = one.suggestion()
        if found is not None:
            one.shown.append(found.plane)
            self._guarded(one, lambda: show_plane(one.target.volume, found.plane))
            self._select(one.writer.segment_id(found.label))
            self._look_at_views(one)
            self._use_view_of(one, found.plane)
        self._update_view()

    def say_right(self) -> None:
        """Take the slice of the view that was used last as right: the next run uses all of it, and leaves it so."""
        if self._scans:
            one = self._scans[self.view.scan]
            plane = one.views.get(one.used_view)
            if plane is not None:
                self._guarded(one, lambda: one.writer.know(plane))
            self._update_view()

    def go_to_slice(self, index: int) -> None:
        """Show a slice along the axis of the results; if no view shows slices in this plane, one is turned into it."""
        if not self._scans:
            return
        one = self._scans[self.view.scan]
        self._guarded(one, lambda: show_plane(one.target.volume, Plane(one.target.axis, index)))
        self._update_view()

    def accept(self) -> None:
        """Keep the results, as soon as all changes are written."""
        if not self.locked and self._scans:
            self._accepted = True

    def discard(self) -> None:
        """Restore what the results replaced."""
        if not self.locked and self._scans:
            self._ending = self._steps(lambda writer: writer.discard_steps())

    def cleaning_notes(self) -> list[str]:
        """A sentence if post-processing is still on from an earlier review."""
        text = describe_cleaning(self.view)
        return [_("Still on from before: {what}.").format(what=text)] if text else []

    # -- steps ---------------------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Do the next piece, some 20 ms; True if more can be done at once."""
        if not self._scans:
            return False
        until, more = time.perf_counter() + BUDGET, False
        if self._accepted and self._ending is None and not any(map(_is_working, self._scans)):
            self._ending = self._steps(lambda writer: writer.accept_steps())
        if self._ending is not None:
            more = self._end(until)
        else:
            for one in self._scans:
                more = bool(self._guarded(one, partial(self._work, one, until))) or more
        if not more and time.monotonic() - self._updated_at > UPDATE_EVERY:
            self._update_view()
        return more

    def _end(self, until: float) -> bool:
        ending = self._ending
        for _share in ending or ():
            if time.perf_counter() > until:
                return True
        self.forget()
        return False

    def _work(self, one: _Reviewed, until: float) -> bool:
        """Post-process, write what is due, and make surfaces after a rest; True if more can be done at once."""
        writer = one.writer
        self._search(one)
        if not one.due:
            return False
        self._clean(one)
        while writer.pending and not writer.cleaning_due:
            writer.write_next(visible_slice(one.target.volume, one.target.axis) or 0)
            one.surface_due = True
            if time.perf_counter() > until:
                return True
        one.due = writer.cleaning_due or one.surface_due
        if one.surface_due and not writer.cleaning_due and time.monotonic() - self._changed_at > REST:
            one.surface_due = False
            writer.update_surface()
            one.due = False
        return False

    def _clean(self, one: _Reviewed) -> None:
        if one.cleaning is not None:
            for message in one.cleaning.messages():
                if not isinstance(message, JobEnded):
                    one.writer.apply_cleaned(message)
                    continue
                one.cleaning = None
                if message.error is not None:
                    one.writer.set_cleaning(None)
                    self._problem = defect_message(message.error)
        if one.cleaning is None and one.writer.cleaning_due:
            compute = one.writer.cleaning_task()
            one.cleaning = Background("SDFSMIS cleaning", lambda post, cancel: post(compute()))

    def _search(self, one: _Reviewed) -> None:
        """Find where one more painted slice would help most, when the threshold rests."""
        if one.searching is None and one.suggestions is None and time.monotonic() - self._changed_at > REST:
            compute = one.writer.doubts_task()
            one.searching = Background("SDFSMIS suggestions", lambda post, cancel: post(compute()))
        for message in one.searching.messages() if one.searching is not None else ():
            if not isinstance(message, JobEnded):
                one.suggestions = message.suggestions
                one.writer.take_doubts(message)
            elif message.error is not None:
                one.suggestions = []
                self._problem = defect_message(message.error)
            self._updated_at = 0.0

    def _steps(self, ending: Callable[[ResultWriter], Iterator[float]]) -> Iterator[Any]:
        for one in list(self._scans):
            try:
                yield from ending(one.writer)
            except InputError as error:
                LOG.info("Results on %s: %s", one.target.name, error)

    # -- within --------------------------------------------------------------------------------------------------------

    def _cleaning(self) -> Postprocessing | None:
        if not self.view.keep_largest and self.view.smooth_mm == 0:
            return None
        return Postprocessing(self.view.smooth_mm, keep_largest="volume" if self.view.keep_largest else "off")

    def _select(self, segment_id: str | None) -> None:
        """Select a segment in the segment editor, if that edits the segmentation of the segment."""
        segmentation = self._editor.node.GetSegmentationNode() if self._editor is not None else None
        if segment_id is None or segmentation is None or self._editor is None:
            return
        if segmentation.GetSegmentation().GetSegment(segment_id) is not None:
            self._editor.node.SetSelectedSegmentID(segment_id)

    def _change(self, change: Callable[[ResultWriter], None]) -> None:
        self._changed_at = time.monotonic()
        for one in self._scans:
            one.due = True
            self._guarded(one, partial(change, one.writer))
        self._update_view()

    def _look_at_views(self, one: _Reviewed) -> None:
        """Find out which view is used: the one that was moved last, or shows the slice that was corrected last."""
        views, known = visible_planes(one.target.volume), one.writer.corrections
        moved = [view for view, plane in views.items() if one.views.get(view) != plane]
        changed = [plane for plane in known if _pixels(known, plane) != _pixels(one.known, plane)]
        one.views, one.known = views, known
        if len(moved) == 1:
            one.used_view = moved[0]
        for plane in changed:
            self._use_view_of(one, plane)
        if one.used_view not in views:
            one.used_view = ""
            self._use_view_of(one, next((plane for plane in views.values() if plane.axis == one.target.axis), None))

    def _use_view_of(self, one: _Reviewed, plane: Plane | None) -> None:
        one.used_view = next((view for view, shown in one.views.items() if shown == plane), one.used_view)

    def _guarded(self, one: _Reviewed, call: Callable[[], Any]) -> Any:
        """What a call returns; None if it fails. Results that are lost are no longer reviewed."""
        try:
            return call()
        except InputError as error:
            LOG.info("Results on %s: %s", one.target.name, error)
            self._problem, lost = str(error), _is_lost(one)
        except Exception as error:  # it must not come again with every beat of the timer
            self._problem, lost = defect_message(error), True
        if lost and one in self._scans:
            self._scans.remove(one)
            self.view = replace(self.view, scan=0)
        return None

    def _update_view(self) -> None:
        """Bring the view up to date."""
        self._updated_at = time.monotonic()
        results = None
        while self._scans and results is None:
            one = self._scans[self.view.scan]
            results = self._guarded(one, partial(self._results, one))
            if results is None and one in self._scans:  # it is there, and cannot be looked at now
                return
        if results is None:
            self.view = replace(self.view, scans=(), results=(), index=None, working=False, problem=self._problem)
            return
        self._guarded(one, partial(self._look_at_views, one))
        shown = one.views.get(one.used_view)
        geometry = volume_geometry(one.target.volume)

        def name(plane: Plane | None) -> str:
            return "" if plane is None else f"{geometry.plane(plane.axis)} {plane.index}"

        self.view = replace(
            self.view,
            scans=_distinct([other.target.name for other in self._scans]),
            results=results,
            axis=one.target.axis,
            plane=geometry.plane(one.target.axis),
            index=next((plane.index for plane in one.views.values() if plane.axis == one.target.axis), None),
            suggestion=name(one.named()),
            shown=name(shown),
            is_right=shown is not None and _pixels(one.known, shown) == -1,
            working=self._accepted or self._ending is not None or any(map(_is_working, self._scans)),
            problem=self._problem,
        )

    def _results(self, one: _Reviewed) -> tuple[ResultView, ...]:
        by_hand, writer = one.writer.corrected, one.writer
        return tuple(
            ResultView(
                template.name,
                one.target.name,
                template.color or NO_COLOR,
                None if _is_working(one) else writer.volume_ml(label),
                writer.certainty(label),
                writer.painted_slices(label),
                by_hand,
            )
            for label, template in self._templates.items()
            if writer.segment_id(label) is not None
        )


def describe_cleaning(view: ReviewView) -> str:
    """The post-processing that is on, in words; "" if none is."""
    parts = [_("smoothed {mm:g} mm").format(mm=view.smooth_mm)] if view.smooth_mm else []
    return ", ".join([*parts, *([_("largest piece only")] if view.keep_largest else [])])


def _pixels(known: Known, plane: Plane) -> int:
    """How many pixels of a slice are known; -1 = all."""
    box = known.get(plane, VoxelBox.empty())
    return -1 if box is None else int(np.count_nonzero(box.voxels))


def _is_lost(one: _Reviewed) -> bool:
    try:
        _by_hand = one.writer.corrected
    except InputError:
        return True
    return False


def _is_working(one: _Reviewed) -> bool:
    return one.due and bool(one.writer.pending or one.writer.cleaning_due)


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """The names, made distinct: the second with the same name gets a number."""
    counts: dict[str, int] = {}
    distinct = []
    for name in names:
        counts[name] = counts.get(name, 0) + 1
        distinct.append(name if counts[name] == 1 else f"{name} ({counts[name]})")
    return tuple(distinct)
