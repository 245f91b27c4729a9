"""The workbench: its parts, the run that is in progress, and the steps that a front end's timer drives."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from SDFSMISLib.errors import InputError
from SDFSMISLib.options import RunOptions
from SDFSMISLib.scene import EditingRules, ScanCache
from SDFSMISLib.workbench.backend_choice import ChosenBackend
from SDFSMISLib.workbench.local_backend import LocalBackendManager
from SDFSMISLib.workbench.questions import Questions
from SDFSMISLib.workbench.review import Review
from SDFSMISLib.workbench.run import Run, defect_message, run_targets
from SDFSMISLib.workbench.run_job import SupportSnapshot
from SDFSMISLib.workbench.settings import Settings
from SDFSMISLib.workbench.support_list import SaveJob, SupportList
from SDFSMISLib.workbench.text import tr as _
from SDFSMISLib.workbench.views import Editor, Part, RunRequest, RunView

__all__ = ["RunControl", "Workbench"]

LOG = logging.getLogger("SDFSMIS")


class RunControl(Part[RunView]):
    """Starts runs and saves support sets, one at a time; its view also shows errors of the other parts."""

    def __init__(
        self, backend: ChosenBackend, support: SupportList, review: Review, changed: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(RunView(), changed)
        self._backend, self._support, self._review = backend, support, review
        self._scans = ScanCache()
        self._run: Run | None = None
        self._saving: SaveJob | None = None

    @property
    def is_segmenting(self) -> bool:
        """Whether a run is in progress; saving is none."""
        return self._run is not None

    def why_not(self, request: RunRequest) -> str:
        """Why a run cannot be started now, and what to do; "" if it can."""
        if self.view.running:
            return _("Wait until this has ended, or cancel it.")
        problem = self._support.view.problem or self._backend.problem()
        if problem:
            return problem
        try:
            run_targets(request, self._support, self._support.last_snapshot())
        except InputError as error:
            return str(error)
        return ""

    def start(self, request: RunRequest, editor: Editor) -> None:
        """Start a run, after the user's consent if the backend needs it; an error becomes the text of a failed run."""
        if not self.view.running:
            self._backend.before_run(lambda: self._begin(request, editor))

    def cancel(self) -> None:
        """Stop the run; slices that are finished stay."""
        if self._run is not None:
            self._run.cancel()

    def save_support(self, path: Path) -> None:
        """Save the support set to a safetensors file, while the application goes on."""
        if self.view.running:
            return
        try:
            snapshot = self._support.snapshot()
        except InputError as error:
            self.report(str(error))
            return
        self._saving = SaveJob(snapshot, self._painted_scan(snapshot), self._scans, path)
        self.view = self._saving.view

    def report(self, text: str) -> None:
        """Show an error: as a note of the run in progress, else in place of how the last run ended."""
        if self._run is not None:
            self._run.note(text)
        elif self._saving is None:
            self.view = RunView(text=text, failed=True)

    def clear(self) -> None:
        """Forget how the last run ended."""
        self.view = RunView()

    def step(self) -> bool:
        """Do the next piece of what is running, some 20 ms; True if more can be done at once."""
        if self._run is not None:
            return self._step_run(self._run)
        if self._saving is None:
            return False
        more = self._saving.step()
        self.view = self._saving.view
        if not self.view.running:
            self._saving = None
        return more

    def close_scene(self) -> None:
        """End the run without touching the scene; a file that is being written is finished."""
        if self._run is not None:
            self._run.abandon()
            self._backend.run_ended(None, self._run.remote)
            self._leave_run()
        if self._saving is not None and not self._saving.is_writing:
            self._saving = None
        self.view = self._saving.view if self._saving is not None else RunView()
        self._scans.clear()

    def _begin(self, request: RunRequest, editor: Editor) -> None:
        if self.view.running:  # another run was started while this one waited for an answer
            return
        try:
            snapshot = self._support.snapshot()
            targets = run_targets(request, self._support, snapshot)
            source = self._backend.source()
            if self._support.scan is not None and targets[0].painted is not None:
                EditingRules.of(editor.node, self._support.scan)  # refused now, not after a minute
        except InputError as error:
            self.report(str(error))
            return
        options = RunOptions(request.strategy, request.region, self._review.view.threshold or 0.01)
        LOG.info("Run begins: %d scans, %s", len(targets), options)
        painted = self._painted_scan(snapshot)
        self._run = Run(snapshot, painted, targets, options, editor, source, self._scans)
        self._review.locked, self._support.reads_corrections = True, False
        self.view = self._run.view
        self._backend.run_begins()

    def _step_run(self, run: Run) -> bool:
        more = run.step()
        if run.has_results and self._review.is_open:
            self._review.forget()  # what is written now is of this run
        view = run.view
        if not view.running:
            self._leave_run()
            self._backend.run_ended(run.error, run.remote)
            if run.has_results:
                self._review.begin(run.targets, run.support.templates, run.editor)
                view = replace(view, notes=(*view.notes, *self._review.cleaning_notes()))
        self.view = view
        return more

    def _leave_run(self) -> None:
        self._run = None
        self._review.locked, self._support.reads_corrections = False, True

    def _painted_scan(self, snapshot: SupportSnapshot) -> Any | None:
        return self._support.scan if snapshot.painting is not None else None


class Workbench:
    """Everything that a front end does with the scene and a backend, without widgets.

    A front end calls the parts, shows their views, and calls :meth:`step` from a timer. All of it belongs on the main
    thread; what takes long is done in steps of 20 ms, or in threads.

    Args:
        settings: what is remembered from one start of the application to the next.
        local: the backend on this computer.

    Attributes:
        backend: the chosen backend: tested, installed, asked for consent.
        support: the painted slices, and those from files.
        run: starts a run, cancels it, saves the support set.
        review: the results of the last run.
        questions: what the user is asked.
        changed: called after each change of a part's view.

    A run, once a scan and a segmentation are painted::

        workbench.support.select(volume_node, segmentation_node)
        workbench.run.start(RunRequest(), Editor(editor_node, save_undo))
        while workbench.run.view.running:
            workbench.step()
        workbench.review.accept()
    """

    def __init__(self, settings: Settings, local: LocalBackendManager) -> None:
        self.changed: Callable[[], None] | None = None
        self.questions = Questions(self._on_change)
        self.backend = ChosenBackend(settings, local, self.questions, self._on_change)
        self.support = SupportList(self.questions, lambda text: self.run.report(text), self._on_change)
        self.review = Review(self._on_change)
        self.run = RunControl(self.backend, self.support, self.review, self._on_change)

    def step(self) -> bool:
        """Do the next piece of what is to be done; True if more can be done at once. A timer calls it."""
        try:
            return self._step()
        except Exception as error:  # it must not come again with every beat of the timer
            self.run.report(defect_message(error))
            return False

    def close_scene(self) -> None:
        """The scene is about to be closed: end the run, and forget all that belongs to the scene."""
        self.run.close_scene()
        self.backend.forget_waiting()
        self.review.forget()
        self.support.forget_scene()

    def close(self) -> None:
        """The front end ends: nothing goes on, and no process stays."""
        self.changed = None
        self.close_scene()
        self.backend.close()

    def _step(self) -> bool:
        more = self.backend.step()
        if self.run.view.running:
            more = self.run.step() or more
        elif self.review.is_open:
            more = self.review.step() or more
            if not self.review.is_open:  # accepted, discarded, deleted or undone
                self.run.clear()
        if not (self.run.is_segmenting or self.review.view.working):
            self.support.refresh()
        return more

    def _on_change(self) -> None:
        if self.changed is not None:
            self.changed()
