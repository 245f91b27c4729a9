"""Runs that do not end well: cancelled, without their scene or backend, or with a defect; all in words."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import pytest

pytest.importorskip("slicer")
pytest.importorskip("PySide6.QtWidgets", exc_type=ImportError)
pytest.importorskip("fastapi")

from slicer_standin import install

install()

from panel_examples import PaintedScene, differ, only  # noqa: E402
from processes import until  # noqa: E402
from SDFSMISLib.workbench.views import RunRequest  # noqa: E402
from serving import Backend, running  # noqa: E402
from small_scans import BrightPipeline, ball_scan  # noqa: E402

pytest_plugins = ["workbench_fixtures"]


class SlowPipeline(BrightPipeline):
    """Waits before each batch until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()
        self.begun = threading.Event()

    def segment(self, *args: object, **named: object) -> object:
        self.begun.set()
        assert self.go_on.wait(20)
        return super().segment(*args, **named)


class StoppingPipeline(BrightPipeline):
    """Stops after some passes until it may go on."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after, self.go_on, self.stopped = after, threading.Event(), threading.Event()

    def segment(self, *args: Any, **named: Any) -> Any:
        if len(self.batches) >= self.after:
            self.stopped.set()
            assert self.go_on.wait(20)
        return super().segment(*args, **named)


def test_a_cancelled_run_keeps_what_was_finished(panel: PaintedScene) -> None:
    panel.start()
    panel.drive(lambda: panel.last_run.text != "")
    panel.workbench.run.cancel()
    panel.drive(lambda: not panel.last_run.running)
    assert not panel.last_run.failed and "Cancelled" in panel.last_run.text
    panel.run()
    assert differ(panel.held(only(panel.results())), panel.answer()) == 0


def test_a_cancelled_run_of_several_views_keeps_what_was_finished_and_all_that_was_painted() -> None:
    pipeline = StoppingPipeline(after=9)
    with running(pipeline) as slow:
        panel = PaintedScene(slow.url)
        panel.paint(22, axis=2)
        panel.start()
        panel.drive(pipeline.stopped.is_set)
        panel.drive(lambda: bool(panel.results()) and bool(panel.held(only(panel.results()))[8].sum()))
        panel.workbench.run.cancel()
        pipeline.go_on.set()
        panel.drive(lambda: not panel.last_run.running)
        assert "Cancelled" in panel.last_run.text
        held = panel.held(only(panel.results()))
        assert differ(held[6], panel.truth[6]) == 0 and differ(held[:, :, 22], panel.truth[:, :, 22]) == 0
        panel.workbench.review.accept()
        panel.rest()
        assert differ(panel.held(only(panel.results())), held) == 0
        panel.workbench.close()


def test_closing_the_scene_ends_the_run(panel: PaintedScene, backend: Backend) -> None:
    panel.start()
    panel.drive(lambda: panel.last_run.text != "Reading the scan…")
    panel.workbench.close_scene()
    panel.scene.node.Clear(False)
    for _ in range(5):
        panel.workbench.step()
    assert not panel.last_run.running and panel.entries == ()
    until(lambda: backend.engine.scheduler.active_runs == 0)


def test_a_segmentation_deleted_in_the_middle_ends_the_run_in_words(panel: PaintedScene) -> None:
    panel.start()
    panel.drive(lambda: bool(panel.results()))
    panel.scene.node.RemoveNode(panel.segmentation)
    panel.drive(lambda: not panel.last_run.running)
    assert panel.last_run.failed and "segmentation was deleted" in panel.last_run.text


def test_a_defect_ends_the_run_in_words_and_does_not_come_again(
    panel: PaintedScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    from SDFSMISLib.workbench import run as panel_run

    monkeypatch.setattr(panel_run, "ResultWriter", lambda *arguments, **options: 1 / 0)
    panel.start()
    panel.drive(lambda: not panel.last_run.running)
    assert panel.last_run.failed and "ZeroDivisionError" in panel.last_run.text
    monkeypatch.undo()
    panel.run()
    assert not panel.last_run.failed


def test_a_backend_that_is_not_there_is_said_to_be_so(backend: Backend) -> None:
    panel = PaintedScene("http://127.0.0.1:9")
    panel.workbench.backend.test()
    panel.drive(lambda: panel.workbench.backend.view.state != "busy")
    assert panel.workbench.backend.view.state == "bad" and "127.0.0.1:9" in panel.workbench.backend.view.status
    panel.workbench.close()


def test_a_volume_deleted_in_the_middle_ends_the_run_in_words(panel: PaintedScene) -> None:
    panel.start()
    panel.drive(lambda: bool(panel.results()))
    panel.scene.node.RemoveNode(panel.volume)
    panel.drive(lambda: not panel.last_run.running)
    assert panel.last_run.failed and "deleted" in panel.last_run.text


def test_another_scan_that_was_deleted_is_left_out_and_the_rest_goes_on(panel: PaintedScene) -> None:
    gone, kept = (panel.scene.scan(ball_scan(shape=(8, 40, 40))[0], name) for name in ("gone", "kept"))
    panel.start(RunRequest(others=(gone, kept)))
    panel.drive(lambda: bool(panel.results()))
    panel.scene.node.RemoveNode(gone)
    panel.drive(lambda: not panel.last_run.running)
    assert panel.workbench.review.view.scans == ("CT", "kept"), panel.last_run


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("lost", list(itertools.product([False, True], repeat=3)))
def test_a_run_whose_last_remaining_place_is_lost_is_cancelled(order: tuple[int, ...], lost: tuple[bool, ...]) -> None:
    from SDFSMISLib.workbench.run import Run, TargetScan
    from SDFSMISLib.workbench.run_job import ScanFinished

    targets = [TargetScan(None, None, None, name) for name in ("CT", "MR", "PET")]
    run = Run(None, None, targets, None, None, None, None)
    for place, number in enumerate(order):
        if lost[number]:
            run._lose(targets[number], "The segmentation was deleted.")
        else:
            run._take(ScanFinished(number, ()))
        is_last = place == len(order) - 1
        assert run._cancelled == (is_last and lost[number])  # who ends well ends the run without being told to


def test_another_scan_that_cannot_be_read_is_left_out_with_a_note(panel: PaintedScene) -> None:
    empty = panel.scene.node.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
    panel.run(RunRequest(others=(empty,)))
    assert not panel.last_run.failed and any("empty" in note for note in panel.last_run.notes)
    assert panel.results()
