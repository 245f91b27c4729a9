"""The panel with a real backend that learns: from scans of the scene to a model that segments."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("slicer")
pytest.importorskip("PySide6.QtWidgets", exc_type=ImportError)
pytest.importorskip("fastapi")
pytest.importorskip("accelerate")
pytest.importorskip("numba")

from slicer_standin import install

install()

from learning_examples import body_scan, child_program, finished_model, small_weights  # noqa: E402
from panel_examples import PaintedScene  # noqa: E402
from SDFSMISLib import Segmenter  # noqa: E402
from SDFSMISLib.server import learning, learning_stream  # noqa: E402
from SDFSMISPanel.learning_view import LearnRequest  # noqa: E402
from SDFSMISPanel.panel_logic import RunRequest  # noqa: E402
from serving import Backend, running  # noqa: E402

# In place of the process that learns, which takes longer than a test should: it reads the scans, waits until it may go
# on, and finishes with other weights.
CHILD = """
import pathlib, shutil
here, folder = pathlib.Path({here!r}), pathlib.Path(asked["folder"])
assert all(pathlib.Path(scan).is_file() for scan in asked["scans"])
print(json.dumps({{"type": "progress", "done": 3, "total": 9, "text": "Learning: held out 0.500"}}), flush=True)
while not (here / "go on").exists():
    time.sleep(0.01)
shutil.copytree(here / "better", folder / "pipeline", dirs_exist_ok=True)
outcome = {{"weights_sha256": (here / "digest").read_text(), "resolution": 32, "improved": True, "before": 0.5}}
outcome |= {{"after": 0.75, "steps": 8, "seconds": 61.0, "scans": len(asked["scans"]), "skipped": []}}
(folder / "learned.json").write_text(json.dumps(outcome))
print(json.dumps({{"type": "done"}}), flush=True)
"""


@pytest.fixture
def backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    """A backend with small weights that has learned a model before."""
    monkeypatch.setattr(learning_stream, "ALIVE_SECONDS", 0.1)
    finished_model(tmp_path / "adaptations", "livers")
    better = Segmenter.from_pretrained(small_weights(tmp_path / "better", 5), "cpu")
    (tmp_path / "digest").write_text(better.weights)
    monkeypatch.setattr(learning, "COMMAND", child_program(tmp_path, CHILD.format(here=str(tmp_path))))
    start = Segmenter.from_pretrained(small_weights(tmp_path / "start"), "cpu")
    with running(segmenter=start, adaptations=tmp_path / "adaptations") as made:
        yield made


@pytest.fixture
def panel(backend: Backend) -> Iterator[PaintedScene]:
    made = PaintedScene(backend.url)
    made.logic.test_backend()
    made.drive(lambda: bool(made.logic.models.served))
    yield made
    made.logic.close()


def test_a_learned_model_segments_when_it_is_chosen_and_no_more_when_it_was_forgotten(panel: PaintedScene) -> None:
    assert panel.logic.models.learned == ("livers",)
    panel.logic.choose_model("livers")
    panel.run()
    assert not panel.logic.run.failed, panel.logic.run.text
    assert "livers on" in panel.logic.backend.status
    panel.logic.forget_model()
    panel.logic.answer("forget model", True)
    panel.drive(lambda: panel.logic.models.learned == ())
    panel.logic.choose_model("livers")
    assert "is not on this backend" in panel.logic.why_not(RunRequest())


def test_a_run_goes_on_beside_learning_and_the_next_one_is_by_what_was_learned(
    panel: PaintedScene, tmp_path: Path
) -> None:
    volumes = [panel.scene.scan(body_scan(seed), f"CT {seed}") for seed in (0, 1)]
    panel.logic.learn(LearnRequest(tuple(volumes), "bodies", 10.0))
    panel.drive(lambda: panel.logic.learning.text.startswith("Learning"))
    panel.run()
    assert not panel.logic.run.failed, panel.logic.run.text
    assert "bodies" not in panel.logic.backend.status and panel.logic.learning.running
    (tmp_path / "go on").touch()
    panel.drive(lambda: not panel.logic.learning.running)
    assert panel.logic.learning.text == (
        "Learned from 2 scans in 1 min: 0.50 → 0.75 on held-out parts. “bodies” segments from now on."
    )
    assert set(panel.logic.models.learned) == {"livers", "bodies"} and panel.logic.models.chosen == "bodies"
    panel.run()
    assert not panel.logic.run.failed, panel.logic.run.text
    assert "bodies on" in panel.logic.backend.status


def test_cancelling_ends_the_process_and_the_same_scans_can_be_taken_up_again(
    panel: PaintedScene, backend: Backend, tmp_path: Path
) -> None:
    request = LearnRequest((panel.scene.scan(body_scan(), "CT"),), "bodies", 10.0)
    panel.logic.learn(request)
    panel.drive(lambda: panel.logic.learning.text.startswith("Learning"))
    panel.logic.cancel_learning()
    panel.drive(lambda: not panel.logic.learning.running)
    assert panel.logic.learning.text.startswith("Cancelled.") and panel.logic.models.chosen == ""
    assert backend.adaptations is not None
    (tmp_path / "go on").touch()
    panel.drive(lambda: not backend.adaptations.is_running)
    panel.logic.learn(request)
    panel.drive(lambda: not panel.logic.learning.running)
    assert panel.logic.models.chosen == "bodies", panel.logic.learning
