"""Learn from scans: whole scans by which the backend's weights become better, and how far that is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from datetime import date
from typing import Any

from slicer.i18n import tr as _

from SDFSMISPanel.control import Control
from SDFSMISPanel.learning_view import LearningView, LearnRequest
from SDFSMISPanel.panel_logic import PanelLogic

__all__ = ["LearningSection"]

LOG = logging.getLogger("SDFSMIS")


class LearningSection:
    """Shows :class:`.learning_view.LearningView`; its button begins to learn, and cancels what goes on.

    Args:
        before: called before anything is asked for; takes over what was typed a moment ago.
    """

    def __init__(self, ui: Any, logic: PanelLogic, before: Callable[[], None]) -> None:
        self._ui, self._logic, self._before = ui, logic, before
        self._button, self._suggested = Control(ui.learnButton), ""
        self._inputs = [Control(one) for one in (ui.learningScansSelector, ui.learningNameLineEdit)]
        self._inputs.append(Control(ui.learningMinutesSpinBox))
        ui.learningScansSelector.connect("checkedNodesChanged()", self._on_scans)
        ui.learningNameLineEdit.connect("textChanged(QString)", self._on_name)
        ui.learnButton.connect("clicked()", self._on_button)

    def close_scene(self) -> None:
        """The scene is about to be closed: the next one gets a name of its own."""
        self._suggest("")

    def show(self) -> None:
        ui, view = self._ui, self._logic.learning
        if self._suggested in self._logic.models.learned:
            self._suggest_anew()
        why_not = "" if view.running else self._logic.why_not_learn(self._request())
        cancelling = _("It ends within some seconds.")
        ui.learnButton.text = _("Cancel") if view.running else _("Learn")
        self._button.allow(why_not if not view.running or view.can_cancel else cancelling)
        if view.running and view.can_cancel:
            ui.learnButton.toolTip = _("Stop. The same scans under the same name go on where it was, for a time.")
        for one in self._inputs:
            one.allow(_("Wait until it has learned, or cancel it.") if view.running else "")
        ui.learningMinutesSpinBox.maximum = max(1, int(view.most_minutes))
        self._show_progress(view)
        text = "\n".join(self._lines(view, why_not))
        ui.learningLabel.text, ui.learningLabel.visible = text, bool(text)
        ui.learningNotesLabel.text, ui.learningNotesLabel.visible = "\n".join(view.notes), bool(view.notes)

    def _request(self) -> LearnRequest:
        ui = self._ui
        scans = tuple(ui.learningScansSelector.checkedNodes())
        return LearnRequest(scans, ui.learningNameLineEdit.text.strip(), float(ui.learningMinutesSpinBox.value))

    def _lines(self, view: LearningView, why_not: str) -> list[str]:
        """What goes on, or came of it; and what is in the way of learning, where something was chosen for it."""
        begun = bool(self._ui.learningScansSelector.checkedNodes())
        following = why_not if begun and (view.failed or not view.text) else ""
        return list(dict.fromkeys(line for line in (view.text, following) if line))

    def _show_progress(self, view: LearningView) -> None:
        bar = self._ui.learningProgressBar
        bar.visible = view.running
        bar.maximum = 0 if view.fraction is None else 100  # 0 = it moves without an end
        bar.value = round(100 * (view.fraction or 0))

    # -- what the user does

    def _on_scans(self) -> None:
        self._suggest_anew()
        self.show()

    def _suggest_anew(self) -> None:
        count = len(self._ui.learningScansSelector.checkedNodes())
        self._suggest(suggested_name(count, date.today(), self._logic.models.learned) if count else "")

    def _suggest(self, name: str) -> None:
        """Puts a name into the field, unless the user has typed one."""
        field = self._ui.learningNameLineEdit
        before, self._suggested = self._suggested, name
        if field.text in ("", before):
            field.text = name

    def _on_name(self, _text: str) -> None:
        self.show()

    def _on_button(self) -> None:
        if self._logic.learning.running:
            LOG.info("Learning cancelled by the user")
            self._logic.cancel_learning()
            return
        self._before()
        request = self._request()
        if self._logic.why_not_learn(request):
            self.show()  # it may say so only since a moment ago
            return
        self._logic.learn(request)


def suggested_name(scans: int, day: date, taken: Collection[str]) -> str:
    """A name that is not taken. It tells nothing of the scans: their names may be those of patients."""
    name = (_("1 scan {day}") if scans == 1 else _("{n} scans {day}")).format(n=scans, day=day.isoformat())
    number = 2
    while name in taken:
        name = f"{name.removesuffix(f' no. {number - 1}')} no. {number}"
        number += 1
    return name
