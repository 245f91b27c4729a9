"""Results in review: corrections, suggestions, the threshold, the volume; accepted, discarded or undone."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("slicer")
pytest.importorskip("PySide6.QtWidgets", exc_type=ImportError)
pytest.importorskip("fastapi")

from slicer_standin import install

install()

from panel_examples import PaintedScene, dice, differ, only  # noqa: E402
from SDFSMISLib.workbench.views import BackendChoice, BackendKind, QueryMode, RunRequest  # noqa: E402
from serving import Backend, running  # noqa: E402
from small_scans import BrightPipeline, ball_scan  # noqa: E402

pytest_plugins = ["workbench_fixtures"]


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


def test_accepting_ends_what_was_said_of_the_run(panel: PaintedScene) -> None:
    panel.run()
    panel.workbench.review.accept()
    panel.rest()
    assert panel.last_run.text == ""


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
