"""The workbench: from a painted slice to segments in the scene, on real nodes and with a real backend."""

from __future__ import annotations

import errno
import itertools
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("slicer")
pytest.importorskip("PySide6.QtWidgets", exc_type=ImportError)
pytest.importorskip("fastapi")

from slicer_standin import install

install()

from panel_examples import PaintedScene, answer, dice, differ  # noqa: E402
from processes import until  # noqa: E402
from SDFSMISLib.support import SupportSet  # noqa: E402
from SDFSMISLib.workbench.views import BackendChoice, BackendKind, QueryMode, RunRequest  # noqa: E402
from serving import Backend, running  # noqa: E402
from small_scans import BrightPipeline, ball_scan  # noqa: E402


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    with running() as one:
        yield one


@pytest.fixture
def panel(backend: Backend) -> Iterator[PaintedScene]:
    made = PaintedScene(backend.url)
    yield made
    made.workbench.close()


def only(results: dict[str, str]) -> str:
    (segment_id,) = results.values()
    return segment_id


# -- the main job ------------------------------------------------------------------------------------------------------


def test_a_ball_painted_on_one_slice_is_found_on_all(panel: PaintedScene) -> None:
    panel.run()
    assert not panel.last_run.failed, panel.last_run.text
    result = only(panel.results())
    assert differ(panel.held(result), panel.answer()) == 0
    assert (
        differ(panel.held(panel.segment)[6], panel.truth[6]) == 0
        and panel.held(panel.segment).sum() == panel.truth[6].sum()
    )


def test_the_result_takes_over_name_and_colour(panel: PaintedScene) -> None:
    panel.segmentation.GetSegmentation().GetSegment(panel.segment).SetColor(0.2, 0.4, 0.6)
    panel.run()
    result = panel.segmentation.GetSegmentation().GetSegment(only(panel.results()))
    assert result.GetName() == "ball (SDFSMIS)" and result.GetColor() == (0.2, 0.4, 0.6)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_may_be_painted_in_any_direction(backend: Backend, axis: int) -> None:
    painted = (6, 16, 22)[axis]
    panel = PaintedScene(backend.url, axis=axis, painted=(painted,))
    panel.run()
    assert differ(panel.held(only(panel.results())), panel.answer()) == 0
    panel.workbench.close()


def test_undo_takes_the_whole_run_back(panel: PaintedScene) -> None:
    before = panel.held(panel.segment)
    panel.run()
    panel.undo()
    assert not panel.results() and differ(panel.held(panel.segment), before) == 0


def test_only_a_range_is_segmented(panel: PaintedScene) -> None:
    panel.run(RunRequest(QueryMode.RANGE, 7, 8))
    found = panel.held(only(panel.results())).any(axis=(1, 2))
    assert np.flatnonzero(found).tolist() == [6, 7, 8]


def test_outwards_counts_from_the_slice_that_is_shown(panel: PaintedScene) -> None:
    panel.workbench.step()
    panel.workbench.support.show(panel.entries[0].key)
    panel.run(RunRequest(QueryMode.OUTWARDS, reach=1))
    found = panel.held(only(panel.results())).any(axis=(1, 2))
    assert np.flatnonzero(found).tolist() == [5, 6, 7]


def test_another_scan_gets_a_segmentation_of_its_own(panel: PaintedScene) -> None:
    other, labelmap = ball_scan(shape=(10, 44, 36))
    volume = panel.scene.scan(other, "MR")
    panel.run(RunRequest(others=(volume,)))
    nodes = panel.scene.node.GetNodesByClass("vtkMRMLSegmentationNode")
    names = {nodes.GetItemAsObject(k).GetName(): nodes.GetItemAsObject(k) for k in range(nodes.GetNumberOfItems())}
    found = names["MR (SDFSMIS)"]
    result = only(panel.results(found))
    assert dice(panel.held(result, found, volume), labelmap.voxels.astype(bool)) > 0.95
    assert panel.workbench.review.view.scans == ("CT", "MR")
    panel.run(RunRequest(QueryMode.NONE, others=(volume,)))
    assert list(panel.results(found).values()) == [result], "a second run goes on in the same segment"


def test_several_segments_are_found_in_one_run(panel: PaintedScene) -> None:
    second = panel.editor.segment("half")
    upper = np.zeros_like(panel.truth)
    upper[6, :10] = panel.truth[6, :10]
    panel.editor.erase(panel.segment, upper)
    panel.editor.paint(second, upper)
    panel.run()
    assert not panel.last_run.failed, panel.last_run.text
    assert set(panel.results()) == {"ball (SDFSMIS)", "half (SDFSMIS)"}
    found = [panel.held(one) for one in panel.results().values()]
    assert not (found[0] & found[1]).any() and dice(found[0] | found[1], panel.truth) > 0.95


# -- corrections -------------------------------------------------------------------------------------------------------


def test_a_corrected_slice_is_support_of_the_next_run_and_stays(panel: PaintedScene) -> None:
    panel.run()
    result = only(panel.results())
    wrong = np.zeros_like(panel.truth)
    wrong[8, 5:9, 5:9] = True
    panel.editor.paint(result, wrong)
    panel.drive(lambda: any(entry.origin == "corrected" for entry in panel.entries))
    assert [(entry.index, entry.origin) for entry in panel.entries] == [
        (6, "painted"),
        (8, "corrected"),
    ]
    panel.run()
    assert only(panel.results()) == result and panel.held(result)[wrong].all()
    assert differ(panel.held(result)[8, 14:, 14:], panel.answer()[8, 14:, 14:]) == 0, "far from the stroke it is found"


def test_a_corrected_slice_can_be_removed_from_the_list_until_the_next_stroke_on_it(panel: PaintedScene) -> None:
    panel.run()
    result = only(panel.results())
    wrong = np.zeros_like(panel.truth)
    wrong[8, 5:9, 5:9] = True
    panel.editor.paint(result, wrong)
    panel.drive(lambda: [entry.index for entry in panel.entries] == [6, 8])
    panel.workbench.support.remove(["here:0:8"])
    assert [entry.index for entry in panel.entries] == [6]
    support = panel.workbench.support.snapshot()
    assert support.used.keys() == {(0, 6)} and support.painting is not None and not support.painting.corrections
    panel.run()
    panel.rest()
    assert [entry.index for entry in panel.entries] == [6], "a run reads the painting anew"
    assert panel.held(only(panel.results()))[wrong].all(), "what was painted stays"
    panel.editor.paint(only(panel.results()), np.roll(wrong, 4, axis=2))
    panel.drive(lambda: [(one.index, one.origin) for one in panel.entries] == [(6, "painted"), (8, "corrected")])


def test_a_stroke_in_another_view_is_kept_and_a_slice_can_be_said_to_be_right(panel: PaintedScene) -> None:
    for name in ("Yellow", "Green"):
        panel.show_view(name)
    panel.run()
    result = only(panel.results())
    wrong = np.zeros_like(panel.truth)
    wrong[2:5, 4:7, 30] = True
    panel.show(2, 30)
    panel.editor.paint(result, wrong)
    panel.drive(lambda: any(entry.origin == "corrected" for entry in panel.entries))
    assert [(entry.plane, entry.index, entry.origin) for entry in panel.entries] == [
        ("axial", 6, "painted"),
        ("sagittal", 30, "corrected"),
    ]
    panel.drive(lambda: panel.workbench.review.view.shown == "sagittal 30")
    assert panel.workbench.review.view.results[0].by_hand == ((2, 30),) and not panel.workbench.review.view.is_right
    panel.run()
    assert not panel.last_run.failed, panel.last_run.text
    after = panel.held(result)
    assert after[wrong].all() and differ(after[6], panel.truth[6]) == 0 and dice(after, panel.truth) > 0.9
    assert panel.workbench.review.view.results[0].by_hand == ((2, 30),), "the next run knows of it, too"

    panel.show(2, 30)
    panel.drive(lambda: panel.workbench.review.view.shown == "sagittal 30")
    panel.workbench.review.say_right()
    panel.drive(lambda: panel.entries[-1].origin == "right")
    assert panel.workbench.review.view.is_right
    panel.run()
    assert differ(panel.held(result)[:, :, 30], after[:, :, 30]) == 0
    panel.undo()
    panel.undo()
    panel.drive(lambda: panel.entries[-1].origin == "corrected")


def test_a_slice_said_to_be_right_after_a_run_over_some_slices_tells_of_those_only(panel: PaintedScene) -> None:
    panel.show_view("Yellow")
    panel.run(RunRequest(QueryMode.RANGE, 7, 8))
    middle = int(panel.truth[3:6].sum(axis=(0, 1)).argmax())
    panel.show(2, middle)
    panel.drive(lambda: panel.workbench.review.view.shown == f"sagittal {middle}")
    panel.workbench.review.say_right()
    panel.drive(lambda: len(panel.entries) == 2)
    panel.run()
    found = panel.held(only(panel.results()))
    assert panel.answer()[3, :, middle].any() and found[3, :, middle].any()
    assert dice(found, panel.truth) > 0.95


def test_the_slice_where_one_more_helps_most_is_gone_to(panel: PaintedScene) -> None:
    for name in ("Yellow", "Green"):
        panel.show_view(name)
    panel.run()
    panel.drive(lambda: panel.workbench.review.view.suggestion != "")
    (found,) = panel.workbench.review.view.results
    assert found.certainty[7] > found.certainty[9], "axial 6 was painted: the farther from it, the less is certain"
    seen = []
    first = panel.workbench.review.view.suggestion
    for _ in range(4):
        panel.workbench.review.go_to_suggestion()
        seen.append(panel.workbench.review.view.shown)
        assert panel.workbench.review.view.suggestion == seen[-1], "it is named until it is corrected"
        assert panel.editor.node.GetSelectedSegmentID() == only(panel.results()), "the next stroke corrects the result"
    assert (
        seen[0] == first
        and len(set(seen)) == 4
        and {"axial 6", ""}.isdisjoint(seen)
        and len({one.split()[0] for one in seen}) > 1
    )
    panel.show(("axial", "coronal", "sagittal").index(seen[0].split()[0]), int(seen[0].split()[1]))
    panel.drive(lambda: panel.workbench.review.view.shown == seen[0])
    panel.workbench.review.say_right()
    for _ in range(12):
        panel.workbench.review.go_to_suggestion()
        assert panel.workbench.review.view.shown != seen[0]


# -- review ------------------------------------------------------------------------------------------------------------


def test_the_threshold_acts_on_kept_probabilities(backend: Backend) -> None:
    with running(BrightPipeline(answer=0.6)) as unsure:
        panel = PaintedScene(unsure.url)
        panel.run()
        result = only(panel.results())
        assert panel.held(result)[7].any()
        panel.workbench.review.set_threshold(0.8)
        panel.rest()
        assert not panel.held(result)[7].any() and differ(panel.held(result)[6], panel.truth[6]) == 0
        panel.workbench.review.set_threshold(0.3)
        panel.rest()
        assert panel.held(result)[7].any()
        panel.workbench.close()


def test_suggestions_and_certainty_follow_the_threshold() -> None:
    with running(BrightPipeline(answer=0.6)) as unsure:
        panel = PaintedScene(unsure.url)
        panel.run()
        review = panel.workbench.review
        panel.drive(lambda: review.view.suggestion != "")
        before = review.view.results[0].certainty
        review.set_threshold(0.8)
        panel.drive(lambda: not np.array_equal(review.view.results[0].certainty, before, equal_nan=True))
        expected = review._scans[0].writer.doubts_task()()
        assert review._scans[0].suggestions == expected.suggestions
        panel.workbench.close()


def test_the_volume_is_told_in_millilitres(panel: PaintedScene) -> None:
    panel.run()
    panel.rest()
    assert panel.workbench.review.view.results[0].volume_ml == pytest.approx(panel.answer().sum() * 2 / 1000)


def test_the_largest_piece_is_kept_where_that_is_wanted(backend: Backend) -> None:
    scan, _ = ball_scan()
    voxels = scan.voxels.copy()
    voxels[:, 27:29, 20:24] = 200  # bright, and apart from the ball
    panel = PaintedScene(backend.url, scan=replace(scan, voxels=voxels))
    panel.run()
    result = only(panel.results())
    assert panel.held(result)[7, 27:29, 20:24].any()
    panel.workbench.review.set_cleaning(True, 0.0)
    panel.rest()
    assert not panel.held(result)[:, 27:29, 20:24].any()
    panel.workbench.review.set_cleaning(False, 0.0)
    panel.rest()
    assert panel.held(result)[7, 27:29, 20:24].any()
    panel.workbench.close()


def test_discard_takes_the_results_away_and_accept_keeps_them(panel: PaintedScene) -> None:
    panel.run()
    panel.workbench.review.discard()
    panel.drive(lambda: not panel.workbench.review.view.results)
    assert not panel.results()
    panel.run()
    panel.workbench.review.accept()
    panel.drive(lambda: not panel.workbench.review.view.results)
    assert differ(panel.held(only(panel.results())), panel.answer()) == 0


def test_results_deleted_in_review_are_said_to_be_gone(panel: PaintedScene) -> None:
    panel.run()
    panel.segmentation.GetSegmentation().RemoveSegment(only(panel.results()))
    panel.workbench.review.set_threshold(0.4)
    assert not panel.workbench.review.view.results and "deleted" in panel.workbench.review.view.problem
    panel.run()
    assert panel.results()


# -- support -----------------------------------------------------------------------------------------------------------


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


# -- cancelling, losing ------------------------------------------------------------------------------------------------


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


def test_undo_in_review_takes_a_second_run_back_and_nothing_writes_it_again(panel: PaintedScene) -> None:
    panel.run(RunRequest(QueryMode.RANGE, 7, 8))
    result = only(panel.results())
    before = panel.held(result)
    panel.run()
    panel.rest()
    assert differ(panel.held(result), panel.answer()) == 0
    panel.undo()
    for _ in range(10):
        panel.workbench.step()
        time.sleep(0.05)
    assert differ(panel.held(result), before) == 0 and not panel.workbench.review.view.working


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


def test_a_run_that_brings_nothing_leaves_the_review_of_the_one_before(panel: PaintedScene) -> None:
    with running(BrightPipeline(answer=0.6)) as unsure:
        panel.workbench.backend.choose(BackendChoice(BackendKind.SERVER, unsure.url))
        panel.run()
    panel.workbench.backend.choose(BackendChoice(BackendKind.SERVER, "http://127.0.0.1:9"))
    panel.run()
    assert panel.last_run.failed
    result = only(panel.results())
    assert panel.held(result)[7].any()
    panel.workbench.review.set_threshold(0.8)
    panel.rest()
    assert not panel.held(result)[7].any()


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


def test_what_is_wrong_during_a_run_is_told_beside_it(panel: PaintedScene, tmp_path: Path) -> None:
    (tmp_path / "letter.safetensors").write_text("Dear colleague")
    panel.start()
    panel.workbench.support.load(tmp_path / "letter.safetensors")
    panel.drive(lambda: not panel.last_run.running)
    assert not panel.last_run.failed and any("letter.safetensors" in note for note in panel.last_run.notes)


def test_accepting_ends_what_was_said_of_the_run(panel: PaintedScene) -> None:
    panel.run()
    panel.workbench.review.accept()
    panel.rest()
    assert panel.last_run.text == ""


def test_a_segment_that_is_not_painted_takes_no_part(panel: PaintedScene) -> None:
    panel.editor.segment("spleen")
    panel.workbench.step()
    assert panel.workbench.run.why_not(RunRequest()) == ""
    assert [(one.name, one.slices) for one in panel.workbench.support.view.segments] == [("ball", 1), ("spleen", 0)]
    panel.run()
    assert list(panel.results()) == ["ball (SDFSMIS)"]


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


def test_another_scan_in_review_is_shown_in_the_views(panel: PaintedScene) -> None:
    other, _ = ball_scan(shape=(10, 44, 36))
    volume = panel.scene.scan(other, "CT")
    composite = panel.scene.node.AddNewNodeByClass("vtkMRMLSliceCompositeNode")
    panel.run(RunRequest(others=(volume,)))
    assert panel.workbench.review.view.scans == ("CT", "CT (2)")
    panel.workbench.review.choose_scan(1)
    assert composite.GetBackgroundVolumeID() == volume.GetID()
    assert not panel.segmentation.GetDisplayNode().GetVisibility()
    panel.drive(lambda: panel.workbench.review.view.suggestion != "")
    suggested = panel.workbench.review.view.suggestion
    panel.workbench.review.go_to_suggestion()
    assert panel.workbench.review.view.shown == suggested
    panel.workbench.review.accept()
    panel.rest()
    assert panel.segmentation.GetDisplayNode().GetVisibility()


def test_where_each_structure_was_found_is_told(panel: PaintedScene) -> None:
    panel.run()
    found = np.flatnonzero(panel.answer().any(axis=(1, 2)))
    assert f"Found: ball on axial slices {found[0]} to {found[-1]}." in panel.last_run.notes
