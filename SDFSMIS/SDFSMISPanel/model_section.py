"""The model, in step 1: which of the backend's models segments."""

from __future__ import annotations

from typing import Any

from slicer.i18n import tr as _

from SDFSMISPanel.control import Control
from SDFSMISPanel.learning_view import ModelsView
from SDFSMISPanel.panel_logic import PanelLogic
from SDFSMISPanel.parameter import Parameter

__all__ = ["ModelSection"]


class ModelSection:
    """Shows :class:`.learning_view.ModelsView`; the choice is kept in the scene."""

    def __init__(self, ui: Any, logic: PanelLogic) -> None:
        self._ui, self._logic = ui, logic
        self._parameter: Parameter | None = None
        self._shown: ModelsView | None = None
        self._names: tuple[str, ...] = ()
        self._left: str | None = None  # what was chosen when the module was left
        self._box, self._forget = Control(ui.segmentingModelComboBox), Control(ui.forgetModelButton)
        ui.segmentingModelComboBox.connect("activated(int)", self._on_chosen)
        ui.forgetModelButton.connect("clicked()", self._logic.forget_model)

    def restore(self, parameter: Parameter | None) -> None:
        """Takes over what a scene says, and keeps there what is changed from now on; None = nowhere."""
        if parameter is None:
            self._left = self._logic.models.chosen if self._parameter is not None else self._left
        elif self._left in (None, self._logic.models.chosen):
            self._logic.choose_model(parameter.model)
        else:  # it was learned while the module was left, and chosen by itself
            parameter.model = self._logic.models.chosen
        self._parameter = parameter

    def close_scene(self) -> None:
        """The scene is about to be closed: the next one says for itself what is chosen."""
        self._parameter = self._left = None

    def show(self) -> None:
        view = self._logic.models
        if self._parameter is not None and self._parameter.model != view.chosen:  # a learned one is chosen by itself
            self._parameter.model = view.chosen
        if view is self._shown:
            return
        before, self._shown = self._shown, view
        self._show_names(view)
        self._box.allow("" if len(self._names) > 1 else _("There is no other one. One is made by learning from scans."))
        self._forget.allow("" if view.can_forget else self._why_not_forget(view))
        problem = self._ui.segmentingModelProblemLabel
        problem.text, problem.visible = view.problem, bool(view.problem)
        if view.problem and (before is None or before.problem != view.problem):
            self._ui.backendCollapsibleButton.collapsed = False  # something is to be done here

    def _show_names(self, view: ModelsView) -> None:
        gone = (view.chosen,) if view.chosen and view.chosen not in view.learned else ()
        names, box = ("", *view.learned, *gone), self._ui.segmentingModelComboBox
        served = view.served or _("the backend's own")
        missing = _("{name} (missing)") if view.problem else "{name}"
        texts = [served, *view.learned, *(missing.format(name=name) for name in gone)]
        box.blockSignals(True)
        box.clear()
        box.addItems(texts)
        box.currentIndex = names.index(view.chosen)
        box.blockSignals(False)
        self._names = names

    def _why_not_forget(self, view: ModelsView) -> str:
        if not view.chosen:
            return _("Choose a model that was learned first; the backend's own one stays.")
        if view.chosen in view.learned:
            return _("Wait until what goes on with this model has ended.")
        return _("Test the connection first: it is not known whether the backend has this model.")

    def _on_chosen(self, number: int) -> None:
        self._logic.choose_model(self._names[number])
