"""Examples of the next run: painted slices of any view as they are listed, and support sets as files."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("slicer")
pytest.importorskip("PySide6.QtWidgets", exc_type=ImportError)
pytest.importorskip("fastapi")

from slicer_standin import install

install()

from panel_examples import PaintedScene, answer, dice, differ, only  # noqa: E402
from SDFSMISLib.support import SupportSet  # noqa: E402
from SDFSMISLib.workbench.views import RunRequest  # noqa: E402
from serving import Backend  # noqa: E402
from small_scans import ball_scan  # noqa: E402

pytest_plugins = ["workbench_fixtures"]


def test_painted_slices_are_listed_with_pictures(panel: PaintedScene) -> None:
    panel.drive(lambda: all(entry.thumbnail is not None for entry in panel.entries))
    (entry,) = panel.entries
    assert (entry.index, entry.plane, entry.scan, entry.structures, entry.origin) == (
        6,
        "axial",
        "CT",
        ("ball",),
        "painted",
    )
    assert entry.area_cm2 == pytest.approx(panel.truth[6].sum() / 100)
    assert entry.thumbnail is not None and entry.thumbnail.shape == (64, 64, 3)
    panel.paint(4)
    panel.workbench.step()
    assert [one.index for one in panel.entries] == [4, 6]


def test_an_unpainted_slice_can_say_that_nothing_is_there(panel: PaintedScene) -> None:
    panel.workbench.step()
    panel.view.JumpSliceByOffsetting(0, 0, 7.0)
    panel.workbench.support.use_slice(panel.view)
    entry = next(one for one in panel.entries if one.origin == "chosen")
    assert entry.structures == () and entry.area_cm2 == 0


def test_a_removed_slice_comes_back_with_the_next_stroke_on_it(panel: PaintedScene) -> None:
    panel.paint(4)
    panel.workbench.step()
    panel.workbench.support.remove(["here:0:4"])
    assert [one.index for one in panel.entries] == [6]
    panel.editor.paint(panel.segment, np.ones((1, 1, 1), dtype=bool), (4, 0, 0))
    panel.workbench.step()
    assert [one.index for one in panel.entries] == [4, 6]


def test_without_a_painted_slice_the_panel_says_what_to_do(backend: Backend) -> None:
    panel = PaintedScene(backend.url, painted=())
    panel.workbench.step()
    assert "Nothing is painted in ball" in panel.workbench.run.why_not(RunRequest())
    panel.run()
    assert panel.last_run.failed and "Nothing is painted" in panel.last_run.text and not panel.results()
    panel.workbench.close()


def test_a_view_that_lies_across_is_turned_after_asking(panel: PaintedScene) -> None:
    panel.workbench.step()
    matrix = panel.view.GetSliceToRAS()
    matrix.SetElement(1, 2, 0.7)
    matrix.SetElement(2, 2, 0.7)
    panel.view.UpdateMatrices()
    panel.workbench.support.use_slice(panel.view)
    question = panel.workbench.questions.view
    assert question is not None and "lies across" in question.text
    panel.workbench.questions.answer(question.key, True)
    assert panel.workbench.questions.view is None
    assert any(entry.origin == "chosen" for entry in panel.entries)


def test_a_saved_support_set_finds_the_structure_in_the_next_patient(panel: PaintedScene, tmp_path: Path) -> None:
    path = tmp_path / "ball.safetensors"
    panel.workbench.step()
    panel.workbench.run.save_support(path)
    panel.drive(lambda: not panel.last_run.running)
    assert not panel.last_run.failed, panel.last_run.text
    assert SupportSet.load(path).names == {1: "ball"}
    other, labelmap = ball_scan(shape=(10, 44, 36))
    volume = panel.scene.scan(other, "MR")
    segmentation = panel.scene.segmentation(volume, "Next")
    panel.workbench.close_scene()
    panel.workbench.support.select(volume, segmentation)
    panel.workbench.support.load(path)
    assert [entry.origin for entry in panel.entries] == ["file"]
    panel.run()
    assert not panel.last_run.failed, panel.last_run.text
    found = panel.held(only(panel.results(segmentation)), segmentation, volume)
    assert dice(found, labelmap.voxels.astype(bool)) > 0.95
    wrong = np.zeros(found.shape, dtype=bool)
    wrong[7, 5:9, 5:9] = True
    result = only(panel.results(segmentation))
    editor = panel.scene.editor(segmentation, volume)
    editor.paint(result, wrong)
    panel.drive(lambda: [entry.origin for entry in panel.entries] == ["corrected", "file"])
    panel.run()
    assert not panel.last_run.failed, panel.last_run.text
    assert differ(panel.held(result, segmentation, volume)[7], found[7] | wrong[7]) == 0


def test_a_support_set_that_is_being_saved_cannot_be_cancelled(panel: PaintedScene, tmp_path: Path) -> None:
    path = tmp_path / "ball.safetensors"
    panel.workbench.step()
    panel.workbench.run.save_support(path)
    while panel.last_run.running:
        assert not panel.last_run.can_cancel
        panel.workbench.run.cancel()
        panel.workbench.step()
    assert path.exists() and "saved as ball.safetensors" in panel.last_run.text and not panel.last_run.failed


def test_a_full_disk_is_told_though_the_scene_was_closed_while_a_support_set_was_saved(
    panel: PaintedScene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, closed = threading.Event(), threading.Event()

    def save(support: SupportSet, path: Path) -> None:
        begun.set()
        assert closed.wait(20)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SupportSet, "save", save)
    panel.workbench.step()
    panel.workbench.run.save_support(tmp_path / "ball.safetensors")
    panel.drive(begun.is_set)
    panel.workbench.run.cancel()
    panel.workbench.close_scene()
    closed.set()
    panel.drive(lambda: not panel.last_run.running)
    assert panel.last_run.failed and "No space left" in panel.last_run.text


def test_a_file_that_is_no_support_set_is_refused_in_words(panel: PaintedScene, tmp_path: Path) -> None:
    path = tmp_path / "letter.safetensors"
    path.write_text("Dear colleague")
    panel.workbench.support.load(path)
    assert panel.last_run.failed and "letter.safetensors" in panel.last_run.text


def test_a_slice_that_only_slices_of_other_views_cross_is_no_example(panel: PaintedScene) -> None:
    panel.workbench.step()
    panel.show(2, 22)
    panel.workbench.support.use_slice(panel.view)
    assert panel.last_run.failed and "cross sagittal 22" in panel.last_run.text
    assert [entry.index for entry in panel.entries] == [6]
    panel.show(2, 38)  # beside the ball
    panel.workbench.support.use_slice(panel.view)
    assert [(entry.plane, entry.index, entry.structures) for entry in panel.entries] == [
        ("axial", 6, ("ball",)),
        ("sagittal", 38, ()),
    ]
    panel.workbench.run.clear()
    panel.run()
    assert not panel.last_run.failed and differ(panel.held(only(panel.results())), panel.answer()) == 0


def test_slices_painted_in_several_views_are_one_support(panel: PaintedScene) -> None:
    panel.paint(22, axis=2)
    panel.paint(16, axis=1)
    panel.drive(lambda: len(panel.entries) == 3 and all(entry.thumbnail is not None for entry in panel.entries))
    assert [(entry.plane, entry.index, entry.structures) for entry in panel.entries] == [
        ("axial", 6, ("ball",)),
        ("coronal", 16, ("ball",)),
        ("sagittal", 22, ("ball",)),
    ]
    painted = panel.held(panel.segment)
    panel.run()
    assert not panel.last_run.failed, panel.last_run.text
    expected = answer(panel.scan, painted, "auto")
    assert differ(panel.held(only(panel.results())), expected) == 0
    for plane in (np.s_[6], np.s_[:, 16], np.s_[:, :, 22]):
        assert differ(expected[plane], panel.truth[plane]) == 0
    panel.workbench.support.remove(["here:0:6"])
    assert [entry.plane for entry in panel.entries] == ["coronal", "sagittal"]
    panel.run()
    assert len(panel.results()) == 1, "it goes on in the same result, though its slices are of another view now"


def test_two_structures_may_be_painted_in_two_views(panel: PaintedScene) -> None:
    other = panel.editor.segment("half")
    half = np.zeros_like(panel.truth)
    half[:, 16:, 22] = panel.truth[:, 16:, 22]
    panel.editor.paint(other, half)
    panel.drive(lambda: len(panel.entries) == 2)
    assert [(entry.plane, entry.structures) for entry in panel.entries] == [
        ("axial", ("ball",)),
        ("sagittal", ("half",)),
    ]
    assert [(one.name, one.slices) for one in panel.workbench.support.view.segments] == [("ball", 1), ("half", 1)]
