"""The question: what the user is asked, shown in the panel and not in a dialog."""

from __future__ import annotations

from typing import Any

from SDFSMISPanel.control import bring_into_sight
from SDFSMISPanel.panel_logic import PanelLogic, Question

__all__ = ["QuestionSection"]


class QuestionSection:
    """Shows the :class:`.panel_logic.Question` that waits for an answer, with its two buttons."""

    def __init__(self, ui: Any, logic: PanelLogic) -> None:
        self._ui, self._logic = ui, logic
        self._shown: Question | None = None
        ui.agreeButton.connect("clicked()", self._agree)
        ui.declineButton.connect("clicked()", self._decline)

    def show(self) -> None:
        question = self._logic.question
        if question == self._shown:
            return
        self._shown, ui = question, self._ui
        ui.questionFrame.visible = question is not None
        if question is not None:
            ui.questionLabel.text = question.text
            ui.agreeButton.text, ui.declineButton.text = question.agree, question.decline
            bring_into_sight(ui.questionFrame)

    def _agree(self) -> None:
        self._answer(True)

    def _decline(self) -> None:
        self._answer(False)

    def _answer(self, agreed: bool) -> None:
        if self._shown is not None:
            self._logic.answer(self._shown.key, agreed)
