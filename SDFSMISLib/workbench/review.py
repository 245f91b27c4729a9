"""Review: what a run left in the scene, while the user looks at it: threshold, cleaning, certainty, the end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from SDFSMISLib.errors import InputError
from SDFSMISLib.images.postprocess import Postprocessing
from SDFSMISLib.scene import ResultWriter, SegmentTemplate, rotate_to_volume_plane
from SDFSMISLib.workbench.background import Background, Ended
from SDFSMISLib.workbench.run import Target, unexpected
from SDFSMISLib.workbench.slice_views import show_in_views, show_scan, show_segmentation, slice_nodes, visible_slice
from SDFSMISLib.workbench.text import tr as _
from SDFSMISLib.workbench.views import ResultView, ReviewView

__all__ = ["Review"]

LOG = logging.getLogger("SDFSMIS")
BUDGET = 0.02  # seconds of one step
REST = 0.6  # seconds without a change after which surfaces are made anew
LOOK_EVERY = 0.25  # seconds between two looks at the scene
NO_COLOR = (0.5, 0.5, 0.5)


@dataclass(eq=False)
class _Reviewed:
    """A scan with results.

    Attributes:
        due: whether the user has changed something that is not written yet. Slices that are pending without it were
            taken back by undo, and stay so.
    """

    target: Target
    writer: ResultWriter
    due: bool = False
    cleaning: Background | None = None
    surface_due: bool = False


class Review:
    """Everything is on the main thread; cleaning is computed in a thread of its own.

    Attributes:
        view: what the panel shows.
    """

    def __init__(self) -> None:
        self.view = ReviewView()
        self._scans: list[_Reviewed] = []
        self._looks: Mapping[int, SegmentTemplate] = {}
        self._ending: Iterator[Any] | None = None
        self._accepted = False
        self._shown: set[int] = set()
        self._changed_at = self._looked_at = 0.0
        self._problem = ""

    @property
    def is_open(self) -> bool:
        """Whether there are results to review."""
        return bool(self._scans)

    def begin(self, targets: Sequence[Target], looks: Mapping[int, SegmentTemplate]) -> None:
        """Reviews the results of a run in place of those before, which stay as they are."""
        self.forget()
        self._looks = dict(looks)
        self._scans = [_Reviewed(one, one.writer) for one in targets if one.writer is not None]
        if any(one.writer.threshold != self.view.threshold for one in self._scans):  # it was moved during the run
            self._change(lambda writer: writer.set_threshold(self.view.threshold))
        if self._scans and self._cleaning() is not None:
            self._change(lambda writer: writer.set_cleaning(self._cleaning()))
        self._look()

    def forget(self) -> None:
        """Lets go of the results; they stay in the scene."""
        for one in self._scans:
            if one.cleaning is not None:
                one.cleaning.cancel.set()
        for one in self._scans:
            show_segmentation(one.target.segmentation, True)
        self._scans, self._ending, self._accepted, self._problem = [], None, False, ""
        self._shown.clear()
        kept = self.view
        self.view = ReviewView(threshold=kept.threshold, keep_largest=kept.keep_largest, smooth_mm=kept.smooth_mm)

    # -- what the user does --------------------------------------------------------------------------------------------

    def choose_scan(self, number: int) -> None:
        """The scan whose results are looked at."""
        if not 0 <= number < len(self._scans) or number == self.view.scan:
            return
        self.view = replace(self.view, scan=number)
        self._shown.clear()
        for place, one in enumerate(self._scans):
            show_segmentation(one.target.segmentation, place == number)
        chosen = self._scans[number]
        self._guarded(chosen, lambda: show_scan(chosen.target.volume))
        self._look()

    def set_threshold(self, threshold: float) -> None:
        """Of all results, and of the next run; 0 to below 1."""
        threshold = min(max(threshold, 0.0), 0.99)
        if threshold == self.view.threshold:  # a change that is none must not write again what was undone
            return
        self.view = replace(self.view, threshold=threshold)
        self._change(lambda writer: writer.set_threshold(threshold))

    def set_cleaning(self, keep_largest: bool, smooth_mm: float) -> None:
        """Of all results: only the largest piece is kept, the border is smoothed (standard deviation in mm)."""
        smooth_mm = max(0.0, smooth_mm)
        if (keep_largest, smooth_mm) == (self.view.keep_largest, self.view.smooth_mm):
            return
        self.view = replace(self.view, keep_largest=keep_largest, smooth_mm=smooth_mm)
        self._change(lambda writer: writer.set_cleaning(self._cleaning()))

    def least_certain(self) -> str | None:
        """ID of the segment that is least certain of all in a scan, after the views were made to show where.

        What was shown is left out the next time, until all slices were.
        """
        if not self._scans:
            return None
        one = self._scans[self.view.scan]
        found = self._guarded(one, lambda: one.writer.least_certain(self._shown))
        if found is None:
            self._shown.clear()
            found = self._guarded(one, one.writer.least_certain)
        if found is None:
            return None
        label, index = found
        self._shown.add(index)
        self.go_to(index)
        return one.writer.segment_id(label)

    def go_to(self, index: int) -> None:
        """Makes the views show a slice; turns one into the slices where none lies in them."""
        if not self._scans:
            return
        one = self._scans[self.view.scan]
        self._guarded(one, lambda: self._show(one.target, index))
        self._look()

    def accept(self) -> None:
        """The results stay, as soon as all that is wanted of them is written."""
        self._accepted = True

    def discard(self) -> None:
        """The results become what they were before the run."""
        self._ending = self._steps(lambda writer: writer.discard_steps())

    def cleaning_note(self) -> str:
        """That cleaning is still on from before; "" where it is off."""
        parts = [_("smoothed {mm:g} mm").format(mm=self.view.smooth_mm)] if self.view.smooth_mm else []
        parts += [_("largest piece only")] if self.view.keep_largest else []
        return _("Still on from before: {what}.").format(what=", ".join(parts)) if parts else ""

    def first_result(self) -> str | None:
        """ID of the segment of the first structure in the scan that is reviewed."""
        if not self._scans:
            return None
        writer = self._scans[self.view.scan].writer
        return next((found for label in self._looks if (found := writer.segment_id(label)) is not None), None)

    # -- step by step --------------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Does the next piece, of some 20 ms; whether there is more to do at once."""
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
        if not more and time.monotonic() - self._looked_at > LOOK_EVERY:
            self._look()
        return more

    def _end(self, until: float) -> bool:
        ending = self._ending
        for _share in ending or ():
            if time.perf_counter() > until:
                return True
        self.forget()
        return False

    def _work(self, one: _Reviewed, until: float) -> bool:
        """Cleans, writes what is due, and makes surfaces when it rests; whether there is more at once."""
        writer = one.writer
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
                if not isinstance(message, Ended):
                    one.writer.apply_cleaned(message)
                    continue
                one.cleaning = None
                if message.error is not None:
                    one.writer.set_cleaning(None)
                    self._problem = unexpected(message.error)
        if one.cleaning is None and one.writer.cleaning_due:
            compute = one.writer.cleaning_task()
            one.cleaning = Background("SDFSMIS cleaning", lambda post, cancel: post(compute()))

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

    def _change(self, change: Callable[[ResultWriter], None]) -> None:
        self._changed_at = time.monotonic()
        for one in self._scans:
            one.due = True
            self._guarded(one, partial(change, one.writer))
        self._look()

    def _show(self, target: Target, index: int) -> None:
        if show_in_views(target.volume, target.axis, index):
            return
        node = next(slice_nodes(target.volume.GetScene()), None)
        if node is not None:
            node.SetOrientation(_plane(target).capitalize())
            rotate_to_volume_plane(node, target.volume)
            show_in_views(target.volume, target.axis, index)

    def _guarded(self, one: _Reviewed, call: Callable[[], Any]) -> Any:
        """What a call returns; where the results are gone, they are no longer reviewed."""
        try:
            return call()
        except InputError as error:
            LOG.info("Results on %s: %s", one.target.name, error)
            self._problem = str(error)
            if one in self._scans and self._is_lost(one):
                self._scans.remove(one)
                self.view = replace(self.view, scan=0)
            return None
        except Exception as error:  # it must not come again with every beat of the timer
            self._problem = unexpected(error)
            if one in self._scans:
                self._scans.remove(one)
                self.view = replace(self.view, scan=0)
            return None

    def _is_lost(self, one: _Reviewed) -> bool:
        try:
            _ = one.writer.corrected
        except InputError:
            return True
        return False

    def _look(self) -> None:
        """Brings the view up to date."""
        self._looked_at = time.monotonic()
        results = None
        while self._scans and results is None:
            one = self._scans[self.view.scan]
            results = self._guarded(one, partial(self._results, one))
            if results is None and one in self._scans:  # it is there, and cannot be looked at now
                return
        if results is None:
            self.view = replace(self.view, scans=(), results=(), index=None, working=False, problem=self._problem)
            return
        self.view = replace(
            self.view,
            scans=_distinct([other.target.name for other in self._scans]),
            results=results,
            plane=_plane(one.target),
            index=self._guarded(one, lambda: visible_slice(one.target.volume, one.target.axis)),
            working=self._accepted or self._ending is not None or any(map(_is_working, self._scans)),
            problem=self._problem,
        )

    def _results(self, one: _Reviewed) -> tuple[ResultView, ...]:
        by_hand, writer = one.writer.corrected, one.writer
        return tuple(
            ResultView(
                look.name,
                one.target.name,
                look.color or NO_COLOR,
                None if _is_working(one) else writer.volume_ml(label),
                writer.certainty(label),
                writer.painted_slices(label),
                by_hand,
            )
            for label, look in self._looks.items()
            if writer.segment_id(label) is not None
        )


def _is_working(one: _Reviewed) -> bool:
    return one.due and bool(one.writer.pending or one.writer.cleaning_due)


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Names of which no two are the same: the second of a name gets a number."""
    counts: dict[str, int] = {}
    told = []
    for name in names:
        counts[name] = counts.get(name, 0) + 1
        told.append(name if counts[name] == 1 else f"{name} ({counts[name]})")
    return tuple(told)


def _plane(target: Target) -> str:
    from SDFSMISLib.scene.frame import volume_geometry

    return volume_geometry(target.volume).plane(target.axis)
