"""The panel lets the backend learn from the scans of the scene: what is asked, sent, shown, and what comes of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("slicer")
pytest.importorskip("PySide6.QtWidgets", exc_type=ImportError)
pytest.importorskip("fastapi")

from slicer_standin import install

install()

from learning_client import LearningClient, LearningComputer  # noqa: E402
from panel_examples import Kept, PaintedScene  # noqa: E402
from SDFSMISLib.client import NameTaken  # noqa: E402
from SDFSMISLib.client.backend_error import ConnectionLost  # noqa: E402
from SDFSMISPanel.backend_access import BackendAccess  # noqa: E402
from SDFSMISPanel.learning_view import LearnRequest  # noqa: E402
from SDFSMISPanel.logic import Logic  # noqa: E402
from SDFSMISPanel.panel_logic import BackendChoice, BackendKind  # noqa: E402
from small_scans import ball_scan  # noqa: E402


class LearningScene(PaintedScene):
    """Two scans, and a logic whose backend learns as the test tells it."""

    def __init__(self, client: LearningClient, kept: Kept | None = None) -> None:
        super().__init__("")
        self.client = client
        self.logic.close()
        self.logic = Logic(BackendAccess(kept or Kept(), LearningComputer(client)))
        self.logic.select(self.volume, self.segmentation)
        self.other_scan = ball_scan(shape=(10, 44, 36))[0]
        self.other = self.scene.scan(self.other_scan, "MR")

    def request(self, **changes: Any) -> LearnRequest:
        return replace(LearnRequest((self.volume, self.other), "livers", 12.0), **changes)

    def learn(self, **changes: Any) -> None:
        self.logic.learn(self.request(**changes))

    def end(self) -> None:
        """Lets it end, and waits for that."""
        self.client.go_on.set()
        self.rest_of_learning()

    def rest_of_learning(self) -> None:
        self.drive(lambda: not self.logic.learning.running)

    def connect(self) -> None:
        """So that it is known what the backend offers."""
        self.logic.test_backend()
        self.drive(lambda: self.logic.backend.state == "good" and bool(self.logic.models.served))


@pytest.fixture
def panel() -> Iterator[LearningScene]:
    made = LearningScene(LearningClient())
    yield made
    made.logic.close()


# -- what comes of it --------------------------------------------------------------------------------------------------


def test_whole_scans_are_given_one_after_the_other_and_what_is_learned_segments_from_then_on(
    panel: LearningScene,
) -> None:
    panel.learn()
    assert panel.logic.learning.running
    panel.end()
    view = panel.logic.learning
    assert not view.failed and view.text == (
        "Learned from 2 scans in 9 min: 0.61 → 0.64 on held-out parts. “livers” segments from now on."
    )
    assert view.notes == ("Scan 2 is too small.",)
    assert panel.client.asked == [("livers", 12.0)]
    assert panel.client.got == [panel.scan.content_hash(), panel.other_scan.content_hash()]
    assert panel.logic.models.chosen == "livers" and panel.logic.models.learned == ("livers",)


def test_what_learned_nothing_better_is_not_chosen_and_not_kept(panel: LearningScene) -> None:
    panel.client.improved = False
    panel.learn()
    panel.end()
    assert panel.logic.learning.text.startswith("Nothing better was learned from 2 scans in 9 min (0.610 on held-out")
    assert panel.logic.models.chosen == "" and panel.client.learned == []


def test_how_far_it_is_is_shown(panel: LearningScene) -> None:
    panel.learn()
    panel.drive(lambda: panel.logic.learning.fraction == 0.3)
    assert panel.logic.learning.text == "Learning: held out 0.610 → 0.640, 12 min left at most"


def test_each_scan_that_is_sent_is_counted(panel: LearningScene) -> None:
    texts = set()
    panel.learn()
    panel.drive(lambda: bool(texts.add(panel.logic.learning.text)) or panel.logic.learning.fraction == 0.3)
    assert {"Sending scan 1 of 2…", "Sending scan 2 of 2…"} <= texts


def test_that_it_waits_for_another_one_is_shown(panel: LearningScene) -> None:
    panel.client.waits = True
    panel.learn()
    panel.drive(lambda: "another one learns there" in panel.logic.learning.text)
    assert panel.logic.learning.fraction is None


def test_a_failure_is_told_in_the_client_s_words_and_the_backend_still_counts_as_good(panel: LearningScene) -> None:
    panel.connect()
    panel.client.error = NameTaken("There is a model livers already.")
    panel.learn()
    panel.end()
    assert panel.logic.learning.failed and panel.logic.learning.text == "There is a model livers already."
    assert panel.logic.backend.state == "good" and not panel.logic.run.failed


def test_a_defect_is_told_and_does_not_come_again(panel: LearningScene) -> None:
    panel.client.error = ZeroDivisionError("by nothing")
    panel.learn()
    panel.end()
    assert panel.logic.learning.failed and "by nothing" in panel.logic.learning.text
    panel.client.error = None
    panel.learn()
    panel.rest_of_learning()
    assert not panel.logic.learning.failed


# -- ends that come early ----------------------------------------------------------------------------------------------


def test_it_is_cancelled(panel: LearningScene) -> None:
    panel.learn()
    panel.drive(lambda: panel.logic.learning.fraction == 0.3)
    panel.logic.cancel_learning()
    assert panel.logic.learning.text == "Cancelling…" and not panel.logic.learning.can_cancel
    panel.rest_of_learning()
    assert not panel.logic.learning.failed and panel.logic.learning.text.startswith("Cancelled.")
    assert panel.logic.models.chosen == ""


def test_closing_the_scene_lets_one_go_on_that_has_all_scans_but_chooses_nothing_for_the_next_scene(
    panel: LearningScene,
) -> None:
    panel.learn()
    panel.drive(lambda: panel.logic.learning.fraction == 0.3)
    panel.logic.close_scene()
    panel.scene.node.Clear(0)
    assert panel.logic.learning.running
    panel.end()
    assert panel.logic.learning.text.endswith("Choose “livers” under Backend.")
    assert panel.logic.models.chosen == "" and panel.logic.models.learned == ("livers",)


def test_closing_the_scene_ends_one_that_lacks_scans(panel: LearningScene) -> None:
    panel.learn()
    panel.logic.close_scene()
    panel.scene.node.Clear(0)
    panel.rest_of_learning()
    assert panel.client.got == [] and "before it was sent" in panel.logic.learning.text


def test_a_scan_that_is_deleted_before_its_turn_ends_it(panel: LearningScene) -> None:
    panel.learn()
    panel.scene.node.RemoveNode(panel.other)
    panel.rest_of_learning()
    assert panel.logic.learning.failed and "was deleted" in panel.logic.learning.text
    assert panel.client.got == [panel.scan.content_hash()]


def test_what_is_painted_stays_as_it_is_whatever_becomes_of_learning(panel: LearningScene) -> None:
    before = panel.held(panel.segment)
    panel.learn()
    panel.paint(8)
    panel.logic.cancel_learning()
    panel.rest_of_learning()
    assert np.array_equal(panel.held(panel.segment)[6], before[6]) and panel.held(panel.segment)[8].any()


def test_the_panel_can_be_closed_while_it_learns(panel: LearningScene) -> None:
    panel.learn()
    panel.drive(lambda: panel.logic.learning.fraction == 0.3)
    background = panel.logic._learning._background
    panel.logic.close()
    assert background.join(5) and not panel.logic.learning.running


# -- what is in the way ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"scans": ()}, "Choose the scans"),
        ({"name": "  "}, "a name"),
        ({"name": "liver/../x"}, "1 to 40 letters"),
        ({"name": "built-in"}, "already"),
        ({"name": "old"}, "forget that one"),
    ],
)
def test_what_a_request_lacks_is_said(changes: dict[str, Any], word: str) -> None:
    panel = LearningScene(LearningClient("old"))
    panel.connect()
    assert panel.logic.why_not_learn(panel.request()) == ""
    request = panel.request(**changes)
    assert word in panel.logic.why_not_learn(request)
    panel.logic.learn(request)
    assert not panel.logic.learning.running and panel.client.asked == []
    panel.logic.close()


def test_names_in_any_script_are_taken(panel: LearningScene) -> None:
    for name in ("肝臓", "foie é 2", "a", "CT-4.1_b", "x" * 40):
        assert panel.logic.why_not_learn(panel.request(name=name)) == "", name
    for name in ("x" * 41, "-a", "a.", "a:b", "_"):
        assert panel.logic.why_not_learn(panel.request(name=name)), name


def test_more_scans_than_the_backend_takes_are_refused(panel: LearningScene) -> None:
    panel.connect()
    assert "3 scans at most" in panel.logic.why_not_learn(panel.request(scans=(panel.volume,) * 4))


def test_a_volume_without_grey_values_is_refused(panel: LearningScene) -> None:
    empty = panel.scene.node.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
    assert "no grey values" in panel.logic.why_not_learn(panel.request(scans=(empty,)))


def test_a_backend_that_does_not_offer_it_says_so(panel: LearningScene) -> None:
    panel.client.offered = None
    panel.connect()
    assert "does not learn" in panel.logic.why_not_learn(panel.request())


def test_only_one_learns_at_a_time(panel: LearningScene) -> None:
    panel.learn()
    assert "learns already" in panel.logic.why_not_learn(panel.request())
    panel.learn(name="another")
    panel.end()
    assert panel.client.asked == [("livers", 12.0)]


def test_the_limit_of_the_backend_is_known_after_it_was_tried(panel: LearningScene) -> None:
    panel.connect()
    panel.logic.step()
    assert panel.logic.learning.most_minutes == 45.0


def test_a_run_can_go_on_beside_it(panel: LearningScene) -> None:
    panel.learn()
    panel.run()
    assert panel.client.models == [None] and panel.logic.learning.running


def test_the_backend_of_this_computer_is_not_changed_under_one_that_learns(panel: LearningScene) -> None:
    panel.learn()
    assert not panel.logic.backend.can_install and not panel.logic.backend.can_remove
    panel.logic.choose_backend(BackendChoice(device="cpu"))
    panel.start()
    assert "learns from scans with other settings" in panel.logic.backend.status and not panel.logic.run.running
    panel.end()
    assert panel.logic.learning.text.endswith("Choose “livers” under Backend."), "it is on another backend"
    assert panel.logic.models.chosen == "" and panel.logic.backend.can_remove


# -- consent -----------------------------------------------------------------------------------------------------------


def test_whole_scans_are_not_sent_to_another_computer_before_the_user_agrees_each_time() -> None:
    kept = Kept(["hospital.example:7861"])  # agreed to before: slices for runs
    panel = LearningScene(LearningClient(), kept)
    panel.logic.choose_backend(BackendChoice(BackendKind.SERVER, "http://hospital.example:7861"))
    for _ in range(2):
        panel.learn()
        question = panel.logic.question
        assert question is not None and "hospital.example:7861" in question.text
        assert "WHOLE scans" in question.text and "2 scans" in question.text and "disk" in question.text
        assert not panel.logic.learning.running
        panel.logic.answer(question.key, False)
        assert panel.logic.question is None and not panel.logic.learning.running
    panel.learn()
    assert panel.logic.question is not None
    panel.logic.answer(panel.logic.question.key, True)
    assert panel.logic.learning.running and kept.agreed_hosts() == ("hospital.example:7861",)
    panel.logic.close()


def test_the_question_goes_when_another_backend_is_chosen() -> None:
    panel = LearningScene(LearningClient())
    panel.logic.choose_backend(BackendChoice(BackendKind.SERVER, "http://hospital.example:7861"))
    panel.learn()
    panel.logic.choose_backend(BackendChoice())
    assert panel.logic.question is None
    panel.logic.close()


def test_a_connection_that_is_lost_is_told() -> None:
    panel = LearningScene(LearningClient())
    panel.client.error = ConnectionLost("The connection broke.")
    panel.learn()
    panel.end()
    assert panel.logic.learning.text == "The connection broke."
    panel.logic.close()
