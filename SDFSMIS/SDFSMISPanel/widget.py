"""The panel: its sections, and the timer that drives the workbench."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import qt

from SDFSMISLib.workbench.settings import Settings
from SDFSMISPanel.backend_section import BackendSection
from SDFSMISPanel.controls import QuestionSection, Shortcuts
from SDFSMISPanel.paint_editor import PaintEditor
from SDFSMISPanel.parameter import Parameter
from SDFSMISPanel.query_section import QuerySection
from SDFSMISPanel.review_section import ReviewSection
from SDFSMISPanel.run_section import RunSection
from SDFSMISPanel.support_section import SupportSection

if TYPE_CHECKING:
    from SDFSMISLib.workbench import Workbench

__all__ = ["Panel"]

LOG = logging.getLogger("SDFSMIS")
BEAT = 50  # ms between two steps where nothing waits
BUDGET = 0.02  # s of steps between two looks at the event loop
SHOW_EVERY = 0.05  # s between two times that a change is shown


class Panel:
    """The sections of the panel, and the timer that calls :meth:`.Workbench.step`.

    Args:
        root: the widget of the .ui file.
        ui: its child widgets by name.

    Attributes:
        workbench: what the panel shows and calls.
    """

    def __init__(self, root: Any, ui: Any, workbench: Workbench, settings: Settings) -> None:
        self._root, self.workbench, self._entered, self._stale, self._shown_at = root, workbench, False, True, 0.0
        self._failures: set[tuple[str, int | None]] = set()
        self._timer = qt.QTimer()
        self._timer.setInterval(BEAT)
        self._timer.connect("timeout()", self._beat)
        self._paint = PaintEditor(ui.editorFrame)
        self._query = QuerySection(ui, workbench, self._on_change)
        self._backend, question = BackendSection(ui, workbench, settings), QuestionSection(ui, workbench)
        self._review = ReviewSection(ui, workbench)
        self._run = RunSection(
            ui, workbench, self._query.request, self._paint.editor, self._backend.take_over, self._review.advice
        )
        self._support = SupportSection(ui, workbench, settings, self._paint, self._query.leave_out)
        self._sections = (question, self._backend, self._support, self._query, self._review, self._run)
        self._shortcuts = Shortcuts(root, self._run.start, self._review.go_to_suggestion, self._review.say_right)
        workbench.changed = self._on_change
        self.show()

    def show(self) -> None:
        """Show the views of the workbench."""
        self._stale, self._shown_at = False, time.monotonic()
        for section in self._sections:
            section.show()

    def enter(self) -> None:
        """The module is opened, or the scene is another one."""
        self._entered = True
        self._paint.enter()
        self._timer.start()

    def exit(self) -> None:
        """The module is left: the panel changes nothing in the scene any more; a run continues."""
        self.restore(None)
        if self._entered:
            self._entered = False
            self._paint.exit()

    def restore(self, parameter: Parameter | None) -> None:
        """Set the controls to a scene's parameters, and store later changes there; None = store them nowhere."""
        for section in (self._support, self._query, self._review):
            section.restore(parameter)
        self.show()

    def close_scene(self) -> None:
        """The scene is about to be closed."""
        self.restore(None)
        self._paint.close_scene()
        self._support.close_scene()
        self.workbench.close_scene()
        self.show()

    def close(self) -> None:
        """The panel ends, and the run and the backend on this computer with it."""
        self.workbench.changed = None
        self._shortcuts.close()
        self._backend.close()
        self._review.close()
        self.exit()
        self._root.setMRMLScene(None)  # after a reload the old widgets live on, hidden
        self._timer.stop()
        self.workbench.close()
        self._paint.close()

    def _on_change(self) -> None:
        """Remember that views have changed; many changes in a row are shown once."""
        self._stale = True
        if not self._timer.active:
            self._timer.start()

    def _beat(self) -> None:
        more = self._guarded(self._step)
        if self._stale and (not more or time.monotonic() - self._shown_at > SHOW_EVERY):
            self._guarded(self.show)
        self._timer.setInterval(0 if more else BEAT)
        if not (more or self._entered or self._stale or self._goes_on()):
            self._timer.stop()

    def _step(self) -> bool:
        more, end = True, time.monotonic() + BUDGET
        while more and time.monotonic() < end:
            more = self.workbench.step()
        return more

    def _guarded(self, call: Callable[[], bool | None]) -> bool:
        """The result of a call. A defect is logged once, not twenty times a second; the next beat tries again."""
        try:
            return bool(call())
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            failure = place.filename, place.lineno
            if failure not in self._failures:
                self._failures.add(failure)
                LOG.exception("A defect in the panel; it goes on")
            return False

    def _goes_on(self) -> bool:
        workbench = self.workbench
        return workbench.run.view.running or workbench.review.view.working or workbench.backend.view.state == "busy"
