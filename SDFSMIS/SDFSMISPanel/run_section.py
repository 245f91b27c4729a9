"""Step 4, Segment: starts a run and shows its progress."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from slicer.i18n import tr as _

from SDFSMISLib.workbench.text import format_duration
from SDFSMISLib.workbench.views import Editor, RunRequest, RunView
from SDFSMISPanel.controls import Control

if TYPE_CHECKING:
    from SDFSMISLib.workbench import Workbench

__all__ = ["RunSection"]

LOG = logging.getLogger("SDFSMIS")


class RunSection:
    """Shows a :class:`.RunView`; the button starts a run, and cancels it while it is in progress."""

    def __init__(
        self,
        ui: Any,
        workbench: Workbench,
        request: Callable[[], RunRequest],
        editor: Callable[[], Editor],
        before: Callable[[], None],
        advice: Callable[[], str],
    ) -> None:
        """
        Args:
            request, editor: called for the arguments of a run.
            before: called before a run is started; chooses the backend that was typed a moment ago.
            advice: called for what to do with the results; "" = nothing in particular.
        """
        self._ui, self._workbench, self._request, self._editor = ui, workbench, request, editor
        self._before, self._advice = before, advice
        self._run = Control(ui.runButton)
        ui.runButton.connect("clicked()", self._on_button)

    def start(self) -> None:
        """Start a run, if one can be started."""
        self._before()
        request = self._request()
        if self._workbench.run.view.running or self._workbench.run.why_not(request):
            self.show()  # it may say so only since a moment ago
            return
        LOG.info("Run asked for: %s", request)
        self._workbench.run.start(request, self._editor())

    def show(self) -> None:
        """Show the run."""
        ui, view = self._ui, self._workbench.run.view
        cancels = view.running and view.can_cancel
        why_not = self._why_not(view)
        ui.runButton.text = _("Cancel") if cancels else _("4. Segment")
        self._run.allow(why_not)
        if cancels:
            ui.runButton.toolTip = _("Stop. Slices that are finished stay.")
        self._show_progress(view)
        text = "\n".join(self._lines(view, why_not))
        ui.runLabel.text, ui.runLabel.visible = text, bool(text)
        ui.runNotesLabel.text, ui.runNotesLabel.visible = "\n".join(view.notes), bool(view.notes)

    def _why_not(self, view: RunView) -> str:
        if not view.running:
            return self._workbench.run.why_not(self._request())
        return "" if view.can_cancel else _("Wait until this has ended: {text}").format(text=view.text)

    def _lines(self, view: RunView, why_not: str) -> list[str]:
        """The status of the run, or its error; else what to do next."""
        text = _text(view)
        if view.running:
            return [text]
        following = why_not or self._advice()
        return list(dict.fromkeys(line for line in (text if view.failed else "", following) if line)) or [text]

    def _show_progress(self, view: RunView) -> None:
        bar = self._ui.runProgressBar
        bar.visible = view.running
        bar.maximum = 0 if view.fraction is None else 100  # 0 = it moves without an end
        bar.value = round(100 * (view.fraction or 0))

    def _on_button(self) -> None:
        run = self._workbench.run.view
        if run.running and run.can_cancel:
            LOG.info("Run cancelled by the user")
            self._workbench.run.cancel()
        else:
            self.start()


def _text(view: RunView) -> str:
    if view.running and view.seconds_left is not None:
        text = view.text.rstrip(".…")
        return _("{text}, about {remaining} left").format(text=text, remaining=format_duration(view.seconds_left))
    return view.text
