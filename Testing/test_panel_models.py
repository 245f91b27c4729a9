"""Which model segments: chosen in the panel, kept in the scene, sent with each run, and forgotten."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("slicer")
pytest.importorskip("PySide6.QtWidgets", exc_type=ImportError)
pytest.importorskip("fastapi")

from slicer_standin import install

install()

from learning_client import LearningClient, LearningComputer  # noqa: E402
from panel_examples import Kept, PaintedScene  # noqa: E402
from SDFSMISLib.client.backend_error import RequestRefused  # noqa: E402
from SDFSMISPanel.backend_access import BackendAccess  # noqa: E402
from SDFSMISPanel.logic import Logic  # noqa: E402
from SDFSMISPanel.panel_logic import BackendChoice, RunRequest  # noqa: E402


class ModelScene(PaintedScene):
    """A painted scan, and a logic whose backend has learned models."""

    def __init__(self, client: LearningClient) -> None:
        super().__init__("")
        self.client = client
        self.logic.close()
        self.logic = Logic(BackendAccess(Kept(), LearningComputer(client)))
        self.logic.select(self.volume, self.segmentation)

    def connect(self) -> None:
        self.logic.test_backend()
        self.drive(lambda: bool(self.logic.models.served))


@pytest.fixture
def panel() -> Iterator[ModelScene]:
    made = ModelScene(LearningClient("livers", "knees"))
    yield made
    made.logic.close()


def test_the_models_of_a_backend_are_known_after_it_was_tried(panel: ModelScene) -> None:
    assert panel.logic.models.served == "" and panel.logic.models.learned == ()
    panel.connect()
    assert panel.logic.models.served == "built-in" and panel.logic.models.learned == ("livers", "knees")


def test_the_chosen_model_goes_with_each_run(panel: ModelScene) -> None:
    panel.run()
    panel.logic.choose_model("knees")
    panel.run()
    panel.logic.choose_model("")
    panel.run()
    assert panel.client.models == [None, "knees", None]


def test_a_model_that_is_gone_is_said_before_a_run_and_another_one_is_offered(panel: ModelScene) -> None:
    panel.connect()
    panel.logic.choose_model("hips")
    assert panel.logic.models.problem == panel.logic.why_not(RunRequest())
    assert "“hips” is not on this backend" in panel.logic.models.problem
    assert "such as “built-in”" in panel.logic.models.problem
    panel.logic.choose_model("livers")
    assert panel.logic.models.problem == "" == panel.logic.why_not(RunRequest())


def test_a_model_that_a_run_does_not_find_is_said_and_the_served_one_is_not_taken_by_itself(panel: ModelScene) -> None:
    panel.logic.choose_model("hips")
    assert panel.logic.models.problem == "", "nothing is known of the backend yet"
    panel.run()
    assert panel.client.models == ["hips"]
    assert panel.logic.run.failed and "no model hips" in panel.logic.run.text
    assert "“hips” is not on this backend" in panel.logic.models.problem and panel.logic.models.chosen == "hips"
    panel.drive(lambda: panel.logic.models.learned == ("livers", "knees"))
    assert panel.logic.backend.state == "good", "nothing is wrong with the backend"
    panel.logic.choose_model("")
    assert panel.logic.why_not(RunRequest()) == ""


def test_what_is_known_of_one_backend_does_not_count_for_another(panel: ModelScene) -> None:
    panel.connect()
    panel.logic.choose_model("knees")
    panel.logic.choose_backend(BackendChoice(device="cpu"))
    panel.logic.step()
    assert panel.logic.models.learned == () and panel.logic.models.chosen == "knees"
    assert panel.logic.models.problem == "" and not panel.logic.models.can_forget


def test_a_model_is_forgotten_after_asking_and_the_served_one_is_chosen(panel: ModelScene) -> None:
    panel.connect()
    panel.logic.choose_model("livers")
    panel.logic.forget_model()
    question = panel.logic.question
    assert question is not None and "“livers”" in question.text
    panel.logic.answer(question.key, False)
    assert panel.client.learned == ["livers", "knees"]
    panel.logic.forget_model()
    panel.logic.answer(question.key, True)
    panel.drive(lambda: panel.logic.models.chosen == "")
    assert panel.client.learned == ["knees"] and panel.logic.models.learned == ("knees",)
    assert panel.logic.models.problem == ""


def test_one_that_somebody_else_has_forgotten_is_forgotten_too(panel: ModelScene) -> None:
    panel.connect()
    panel.logic.choose_model("livers")
    panel.client.learned.remove("livers")
    panel.logic.forget_model()
    panel.logic.answer("forget model", True)
    panel.drive(lambda: panel.logic.models.chosen == "")
    assert panel.logic.models.problem == ""


def test_why_a_model_was_not_forgotten_is_said(panel: ModelScene) -> None:
    panel.connect()
    panel.logic.choose_model("livers")
    panel.client.forget_error = RequestRefused("It is being learned; cancel that first.")
    panel.logic.forget_model()
    panel.logic.answer("forget model", True)
    panel.drive(lambda: bool(panel.logic.models.problem))
    assert panel.logic.models.problem == "It is being learned; cancel that first."
    assert panel.logic.models.chosen == "livers" and panel.logic.models.can_forget


def test_the_served_model_cannot_be_forgotten(panel: ModelScene) -> None:
    panel.connect()
    panel.logic.forget_model()
    assert panel.logic.question is None and not panel.logic.models.can_forget
