"""The panel's logic: knows the scene and the backend's client, but no widget. Everything is on the main thread."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from SDFSMISLib.errors import InputError
from SDFSMISLib.options import RunOptions
from SDFSMISLib.scene import EditingRules, ObliqueView, ScanCache, rotate_to_volume_plane
from SDFSMISLib.workbench.backend_choice import BackendAccess
from SDFSMISLib.workbench.review import Review
from SDFSMISLib.workbench.run import PanelRun, run_targets, unexpected
from SDFSMISLib.workbench.slice_views import show_in_views
from SDFSMISLib.workbench.support_list import SupportList, SupportSaving
from SDFSMISLib.workbench.text import tr as _
from SDFSMISLib.workbench.views import (
    BackendChoice,
    BackendView,
    Editor,
    Question,
    ReviewView,
    RunRequest,
    RunView,
    SupportView,
)

__all__ = ["Logic"]

LOG = logging.getLogger("SDFSMIS")
PARALLEL = "parallel"


class Logic:
    """Keeps :class:`.panel_logic.PanelLogic`; see there."""

    def __init__(self, access: BackendAccess) -> None:
        self._access, self._support, self._review = access, SupportList(), Review()
        self._scans = ScanCache()
        self._editor: Editor | None = None
        self._run: PanelRun | None = None
        self._saving: SupportSaving | None = None
        self._last_run = RunView()
        self._question: Question | None = None
        self._answered: Callable[[bool], None] | None = None
        self._on_change: Callable[[], None] | None = None
        self._shown: tuple[Any, ...] = ()

    @property
    def backend(self) -> BackendView:
        return self._access.view

    @property
    def support(self) -> SupportView:
        return self._support.view

    @property
    def run(self) -> RunView:
        going = self._run or self._saving
        return going.view if going is not None else self._last_run

    @property
    def review(self) -> ReviewView:
        return self._review.view

    @property
    def question(self) -> Question | None:
        return self._question or self._access.question

    def observe(self, on_change: Callable[[], None] | None) -> None:
        self._on_change = on_change

    def step(self) -> bool:
        try:
            more = self._step()
        except Exception as error:  # it must not come again with every beat of the timer
            self._say(unexpected(error))
            more = False
        self._tell()
        return more

    def _step(self) -> bool:
        more = self._access.step()
        if self._run is not None:
            more = self._run.step() or more
            if self._run.has_results and self._review.is_open:
                self._review.forget()  # what is written now is of this run
            if self._run.over:
                self._end_run()
        elif self._saving is not None:
            more = self._saving.step() or more
            if self._saving.over:
                self._last_run, self._saving = self._saving.view, None
        elif self._review.is_open:
            more = self._review.step() or more
            if not self._review.is_open:  # accepted, discarded, deleted, or undone: what was said of the run is past
                self._last_run = RunView()
        if self._run is None and not self._review.view.working:
            self._support.refresh(True)
        return more

    def answer(self, key: str, agreed: bool) -> None:
        if self._question is not None and self._question.key == key:
            answered, self._question, self._answered = self._answered, None, None
            if answered is not None:
                answered(agreed)
        else:
            self._access.answer(key, agreed)
        self._tell()

    # -- backend -------------------------------------------------------------------------------------------------------

    def choose_backend(self, choice: BackendChoice) -> None:
        self._access.choose(choice)
        self._tell()

    def test_backend(self) -> None:
        self._access.test()
        self._tell()

    def install(self) -> None:
        self._access.install()
        self._tell()

    def cancel_installation(self) -> None:
        self._access.cancel_installation()
        self._tell()

    def remove_installation(self) -> None:
        self._access.remove()
        self._tell()

    # -- support -------------------------------------------------------------------------------------------------------

    def select(self, scan: Any | None, segmentation: Any | None) -> None:
        self._support.select(scan, segmentation)
        self._look_at_support()

    def choose_segments(self, segment_ids: Sequence[str]) -> None:
        self._support.choose_segments(segment_ids)
        self._look_at_support()

    def use_every_painted(self, every: bool) -> None:
        self._support.use_every_painted(every)
        self._look_at_support()

    def use_slice(self, slice_node: Any) -> None:
        try:
            self._support.use_slice(slice_node)
        except ObliqueView as error:
            scan = self._support.scan
            question = Question(PARALLEL, str(error), _("Turn the view"), _("Leave it"))
            self._ask(question, lambda agreed: self._turn(slice_node, scan) if agreed else None)
        except InputError as error:
            self._say(str(error))
        self._look_at_support()

    def remove_support(self, keys: Sequence[str]) -> None:
        self._support.remove(keys)
        self._look_at_support()

    def show_support(self, key: str) -> None:
        place, scan = self._support.place(key), self._support.scan
        if place is not None and scan is not None:
            self._guarded(lambda: show_in_views(scan, *place))

    def save_support(self, path: Path) -> None:
        if not self.run.running:
            self._guarded(lambda: self._save(path))
        self._tell()

    def load_support(self, path: Path) -> None:
        self._guarded(lambda: self._support.load(path))
        self._look_at_support()

    # -- run -----------------------------------------------------------------------------------------------------------

    def why_not(self, request: RunRequest) -> str:
        if self.run.running:
            return _("Something goes on; wait until it has ended, or cancel it.")
        problem = self._support.view.problem or self._access.problem()
        if problem:
            return problem
        try:
            run_targets(request, self._support, self._support.plan_so_far())
        except InputError as error:
            return str(error)
        return ""

    def start(self, request: RunRequest, editor: Editor) -> None:
        if self.run.running:
            return
        self._access.before_run(lambda: self._begin(request, editor))
        self._tell()

    def cancel(self) -> None:
        if self._run is not None:
            self._run.cancel()
        self._tell()

    # -- review --------------------------------------------------------------------------------------------------------

    def review_scan(self, number: int) -> None:
        self._review.choose_scan(number)
        self._tell()

    def set_threshold(self, threshold: float) -> None:
        self._review.set_threshold(threshold)
        self._tell()

    def set_cleaning(self, keep_largest: bool, smooth_mm: float) -> None:
        self._review.set_cleaning(keep_largest, smooth_mm)
        self._tell()

    def go_to_least_certain(self) -> None:
        self._edit(self._review.least_certain())
        self._tell()

    def go_to_slice(self, index: int) -> None:
        self._review.go_to(index)
        self._tell()

    def accept(self) -> None:
        self._end_review(self._review.accept)

    def discard(self) -> None:
        self._end_review(self._review.discard)

    # -- life ----------------------------------------------------------------------------------------------------------

    def close_scene(self) -> None:
        if self._run is not None:
            self._run.abandon()
            self._access.run_ended(None, self._run.remote)
        self._access.forget_waiting()
        self._run, self._last_run, self._editor = None, RunView(), None
        if self._saving is not None and not self._saving.is_writing:
            self._saving = None
        self._question = self._answered = None
        self._review.forget()
        self._scans.clear()
        self._support.forget_scene()
        self._tell()

    def close(self) -> None:
        self._on_change = None
        self.close_scene()
        self._access.close()

    # -- within --------------------------------------------------------------------------------------------------------

    def _begin(self, request: RunRequest, editor: Editor) -> None:
        """Starts the run; what is wrong becomes the text of a run that has failed."""
        if self.run.running:  # another one was started while this one waited for an answer
            return
        try:
            plan = self._support.plan()
            targets = run_targets(request, self._support, plan)
            source = self._access.source()
            if self._support.scan is not None and targets[0].painted is not None:
                EditingRules.of(editor.node, self._support.scan)  # refused now, not after a minute
        except InputError as error:
            self._say(str(error))
            return
        painted = self._support.scan if plan.painting is not None else None
        options = RunOptions(request.strategy, request.region, self._review.view.threshold or 0.01)
        self._editor = editor
        LOG.info("Run begins: %d scans, %s", len(targets), options)
        self._run = PanelRun(plan, painted, targets, options, editor, source, self._scans)
        self._access.run_begins()

    def _end_run(self) -> None:
        run = self._run
        assert run is not None
        self._run, self._last_run = None, run.view
        self._access.run_ended(run.error, run.remote)
        if run.has_results:
            self._review.begin(run.targets, run.plan.looks)
            self._edit(self._review.first_result())
            note = self._review.cleaning_note()
            if note:
                self._last_run = replace(self._last_run, notes=(*self._last_run.notes, note))

    def _edit(self, segment_id: str | None) -> None:
        """Chooses a segment in the segment editor, where that has it: what is painted next is meant to correct it."""
        segmentation = self._editor.node.GetSegmentationNode() if self._editor is not None else None
        if segment_id is None or segmentation is None or self._editor is None:
            return
        if segmentation.GetSegmentation().GetSegment(segment_id) is not None:
            self._editor.node.SetSelectedSegmentID(segment_id)

    def _end_review(self, end: Callable[[], None]) -> None:
        if self._run is None and self._review.is_open:
            end()
        self._tell()

    def _look_at_support(self) -> None:
        self._support.refresh(self._run is None)
        self._tell()

    def _save(self, path: Path) -> None:
        plan = self._support.plan()
        painted = self._support.scan if plan.painting is not None else None
        self._saving = SupportSaving(plan, painted, self._scans, path)

    def _turn(self, slice_node: Any, scan: Any) -> None:
        if scan is self._support.scan and scan is not None:
            self._guarded(lambda: rotate_to_volume_plane(slice_node, scan))
            self.use_slice(slice_node)

    def _ask(self, question: Question, answered: Callable[[bool], None]) -> None:
        self._question, self._answered = question, answered

    def _guarded(self, call: Callable[[], Any]) -> None:
        """What is wrong is said in the panel."""
        try:
            call()
        except (InputError, OSError) as error:
            self._say(str(error))

    def _say(self, text: str) -> None:
        if self._run is not None:
            self._run.note(text)
        else:
            self._last_run = RunView(text=text, failed=True)

    def _tell(self) -> None:
        """Calls who observes, if something that is shown has changed."""
        shown = (self.backend, self.support, self.run, self.review, self.question)
        if any(now is not before for now, before in zip(shown, self._shown or (None,) * 5, strict=True)):
            self._shown = shown
            if self._on_change is not None:
                self._on_change()
