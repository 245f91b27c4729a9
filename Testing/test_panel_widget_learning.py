"""The panel's widgets for learning and for the choice of a model, on a stand-in for Slicer."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

slicer = pytest.importorskip("slicer")
pytest.importorskip("PySide6")

if TYPE_CHECKING:
    from panel_fixtures import Shown

pytest_plugins = ["panel_fixtures"]


def learning(**fields: Any) -> Any:
    from SDFSMISPanel.learning_view import LearningView

    return LearningView(**fields)


def models(**fields: Any) -> Any:
    from SDFSMISPanel.learning_view import ModelsView

    return ModelsView(**{"served": "built-in", "learned": ("livers", "knees"), **fields})


# -- learning


def test_chosen_scans_a_name_and_a_time_reach_the_logic(shown: Shown) -> None:
    ui, scans = shown.ui, [shown.scan(), shown.scan("MR")]
    for scan in scans:
        ui.learningScansSelector.check(scan)
    ui.learningNameLineEdit.text, ui.learningMinutesSpinBox.value = " livers ", 25
    ui.learnButton.click()
    (request,) = shown.logic.asked("learn")[0]
    assert list(request.scans) == scans and (request.name, request.minutes) == ("livers", 25.0)


def test_a_name_is_suggested_that_tells_nothing_of_the_scans_and_is_not_taken(shown: Shown) -> None:
    from SDFSMISPanel.learning_section import suggested_name

    field = shown.ui.learningNameLineEdit
    assert field.text == ""
    first, second = shown.scan("Meier^Anna"), shown.scan("MR")
    shown.ui.learningScansSelector.check(first)
    assert field.text == f"1 scan {date.today().isoformat()}"
    shown.ui.learningScansSelector.check(second)
    assert field.text == f"2 scans {date.today().isoformat()}"
    shown.put(models=models(learned=(field.text,)))
    assert field.text == f"2 scans {date.today().isoformat()} no. 2", "the other one has just been learned"
    field.text = "mine"
    shown.ui.learningScansSelector.uncheck(first)
    assert field.text == "mine", "what was typed stays"
    day = date(2026, 11, 29)
    taken = ["2 scans 2026-11-29", "2 scans 2026-11-29 no. 2"]
    assert suggested_name(2, day, taken) == "2 scans 2026-11-29 no. 3"


def test_why_it_cannot_learn_is_said_at_the_button_and_below_it_where_scans_are_chosen(
    shown: Shown,
) -> None:
    shown.logic.learning_reason = "Give the model that is learned a name."
    shown.put()
    shown.panel.show()
    ui = shown.ui
    assert not ui.learnButton.enabled and "a name" in ui.learnButton.toolTip and not shown.seen("learningLabel")
    ui.learningScansSelector.check(shown.scan())
    assert ui.learningLabel.text == "Give the model that is learned a name."
    ui.learnButton.click()
    assert shown.logic.asked("learn") == []


def test_while_it_learns_progress_is_shown_and_it_can_be_cancelled(shown: Shown) -> None:
    ui = shown.ui
    assert not shown.seen("learningProgressBar")
    shown.put(learning=learning(running=True, text="Sending scan 1 of 4…"))
    assert shown.seen("learningProgressBar") and ui.learningProgressBar.maximum == 0
    shown.put(learning=learning(running=True, text="Learning: held out 0.610 → 0.640", fraction=0.3))
    assert ui.learningProgressBar.value == 30 and ui.learningLabel.text == "Learning: held out 0.610 → 0.640"
    assert ui.learnButton.text == "Cancel" and not ui.learningNameLineEdit.enabled and ui.runButton.enabled
    ui.learnButton.click()
    assert shown.logic.asked("cancel_learning") == [()] and shown.logic.asked("learn") == []
    shown.put(learning=learning(running=True, text="Cancelling…", can_cancel=False))
    assert not ui.learnButton.enabled and "within some seconds" in ui.learnButton.toolTip


def test_what_came_of_it_is_shown_with_its_notes(shown: Shown) -> None:
    shown.put(learning=learning(text="Learned from 4 scans in 9 min: 0.61 → 0.64.", notes=("Scan 2 is too small.",)))
    assert shown.ui.learningLabel.text == "Learned from 4 scans in 9 min: 0.61 → 0.64."
    assert shown.ui.learningNotesLabel.text == "Scan 2 is too small." and not shown.seen("learningProgressBar")
    assert shown.ui.learnButton.text == "Learn" and shown.ui.learningNameLineEdit.enabled


def test_the_time_ends_where_the_backend_s_limit_is(shown: Shown) -> None:
    shown.put(learning=learning(most_minutes=45.0))
    assert shown.ui.learningMinutesSpinBox.maximum == 45 and shown.ui.learningMinutesSpinBox.value == 10


def test_the_timer_goes_on_while_it_learns_and_the_module_is_left(shown: Shown) -> None:
    shown.put(learning=learning(running=True, text="Learning"))
    shown.widget.exit()
    shown.settle()
    assert shown.panel._timer.active


# -- the model


def test_the_models_are_listed_and_a_choice_reaches_the_logic_and_the_scene(shown: Shown) -> None:
    box = shown.ui.segmentingModelComboBox
    assert not box.enabled and "no other one" in box.toolTip
    shown.put(models=models())
    assert [box.itemText(k) for k in range(box.count)] == ["built-in", "livers", "knees"] and box.enabled
    box.currentIndex = 2
    box.activated(2)
    shown.settle()
    assert shown.logic.asked("choose_model")[-1] == ("knees",)
    assert shown.widget.logic.getParameterNode().model == "knees"


def test_the_choice_of_a_scene_is_taken_over(shown: Shown) -> None:
    shown.widget.exit()
    shown.widget.logic.getParameterNode().model = "livers"
    shown.widget.enter()
    shown.settle()
    assert shown.logic.asked("choose_model")[-1] == ("livers",)
    assert shown.ui.segmentingModelComboBox.currentText == "livers", "though nothing is known of the backend"


def test_a_model_that_was_learned_is_kept_in_the_scene_also_where_the_module_was_left(
    shown: Shown,
) -> None:
    shown.put(models=models(chosen="livers"))
    assert shown.widget.logic.getParameterNode().model == "livers"
    shown.widget.exit()
    shown.logic.show(models=models(chosen="knees"))
    shown.widget.enter()
    shown.settle()
    assert shown.widget.logic.getParameterNode().model == "knees" and shown.logic.models.chosen == "knees"


def test_the_next_scene_begins_with_the_served_model(shown: Shown) -> None:
    shown.put(models=models(chosen="livers"))
    shown.standin.close_scene()
    assert shown.widget.logic.getParameterNode().model == "" and shown.logic.asked("choose_model")[-1] == ("",)


def test_a_model_that_is_missing_is_said_where_it_is_chosen(shown: Shown) -> None:
    shown.ui.backendCollapsibleButton.collapsed = True
    shown.put(models=models(chosen="hips", problem="The model “hips” is not on this backend."))
    assert shown.ui.segmentingModelComboBox.currentText == "hips (missing)"
    assert shown.seen("segmentingModelProblemLabel") and not shown.ui.backendCollapsibleButton.collapsed
    shown.put(models=models())
    assert not shown.seen("segmentingModelProblemLabel")


def test_a_model_is_forgotten_by_a_button_that_says_why_it_cannot_be(shown: Shown) -> None:
    button = shown.ui.forgetModelButton
    assert not button.enabled and "Choose a model that was learned" in button.toolTip
    shown.put(models=models(chosen="livers"))
    assert not button.enabled and "Wait until" in button.toolTip
    shown.put(models=models(chosen="hips"))
    assert not button.enabled and "Test the connection" in button.toolTip
    shown.put(models=models(chosen="livers", can_forget=True))
    button.click()
    assert shown.logic.asked("forget_model") == [()]


@pytest.mark.parametrize("name", ["learning", "learned", "missing"])
def test_the_new_parts_fit_into_a_narrow_panel(shown: Shown, tmp_path: Path, name: str) -> None:
    for scan in ("CTA abdomen", "CT of the next day"):
        shown.ui.learningScansSelector.check(shown.scan(scan))
    text = "Learned from 4 scans in 9 min: 0.61 → 0.64 on held-out parts. “4 scans 2026-11-29” segments from now on."
    shown.put(
        **{
            "learning": {"learning": learning(running=True, text="Learning: held out 0.610 → 0.640", fraction=0.3)},
            "learned": {
                "learning": learning(text=text, notes=("Scan 2 is left out: it has 3 slices.",)),
                "models": models(learned=("4 scans 2026-11-29",), chosen="4 scans 2026-11-29", can_forget=True),
            },
            "missing": {"models": models(chosen="hips", problem="The model “hips” is not on this backend.")},
        }[name]
    )
    for step in ("backend", "support", "query", "review", "learning"):
        getattr(shown.ui, f"{step}CollapsibleButton").collapsed = step not in ("learning", "backend")
    root = shown.module.parent._native
    root.setFixedWidth(420)
    shown.standin.process(0.1)
    assert root.minimumSizeHint().width() <= 420
    folder = Path(os.environ.get("PANEL_PICTURES", tmp_path))
    assert shown.standin.screenshot(shown.module.parent, folder / f"panel-{name}.png").stat().st_size > 10_000
