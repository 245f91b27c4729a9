"""What a user changes in results in the MRML scene: it is known, stays, and is support of the next run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scene_examples import (
    SHAPE,
    Bench,
    accept,
    discard,
    finish,
    one_slice,
    same_state,
    write_all,
)
from SDFSMISLib.images.planes import Plane
from SDFSMISLib.images.volume import Geometry
from SDFSMISLib.scene import read_painting, read_results, with_corrections
from SDFSMISLib.scene.segment_tags import WrittenSlices, get_tag
from volume_examples import IDENTITY


@pytest.fixture(scope="module", autouse=True)
def _slicer() -> None:
    pytest.importorskip("slicer")


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_what_a_user_changes_in_a_result_is_known_and_stays(axis: int) -> None:
    bench = Bench(axis=axis, seed=1)
    writer = bench.finished()
    assert writer.corrected == ()
    count, mask = bench.geometry.shape[axis], np.zeros(bench.geometry.slice_shape(axis), dtype=bool)
    mask[1:4, 2:6] = True
    found = bench.held_masks(writer)
    bench.editor.paint(writer.segment_id(1), *one_slice(axis, 1, mask))
    bench.editor.erase(writer.segment_id(1), *one_slice(axis, count - 1, np.ones_like(mask)))
    assert writer.corrected == ((axis, 1), (axis, count - 1))
    shown = bench.held_masks(writer)
    known = bench.near(found[0] != shown[0], axis)
    for threshold in (0.1, 0.9):
        writer.set_threshold(threshold)
        write_all(writer)
        expected = bench.expected(threshold)
        for label in (1, 2):
            after = np.where(known, shown[label - 1], expected == label)
            assert np.array_equal(bench.held_masks(writer)[label - 1], after)
    assert writer.corrected == ((axis, 1), (axis, count - 1)), "they stay known after the slices were written again"
    bench.editor.logic.Undo()
    assert writer.corrected == ((axis, 1),), "undo took back the erasing, but not the painting"


def test_strokes_in_any_view_of_a_result_are_known_on_that_slice_only() -> None:
    bench = Bench(Geometry(SHAPE, (2, 2, 3), (0, 0, 0), IDENTITY), labels=1, seed=1)
    writer = bench.finished()
    found, axial = bench.held(writer), np.ones((1, 3, 3), dtype=bool)
    sagittal = found[2:8, 3:5, 5:6] == 0
    bench.editor.erase(writer.segment_id(1), ~sagittal, (2, 3, 5))
    bench.editor.paint(writer.segment_id(1), sagittal, (2, 3, 5))  # all voxels of the stroke are others now
    bench.editor.paint(writer.segment_id(1), axial, (8, 0, 0))
    shown = bench.held(writer)
    assert writer.corrected == ((0, 8), (2, 5))
    support = bench.corrected(bench.found()).support(bench.scan)
    assert [(one.plane.axis, one.index, one.known is None) for one in support.slices] == [
        (0, 2, True),
        (0, 8, False),
        (2, 5, False),
    ]
    changed = np.array([found != shown] * 2)
    changed[0, :8], changed[1, 8] = False, False
    for one, plane, near in (
        (support.slices[1], np.s_[8], bench.near(changed[0])),
        (support.slices[2], np.s_[:, :, 5], bench.near(changed[1], axis=2)),
    ):
        assert np.array_equal(one.known, near[plane])
        assert np.array_equal(one.mask(1), (shown[plane] == 1) & near[plane])
    assert not support.slices[2].known.all()
    known = bench.near(changed[0]) | bench.near(changed[1], axis=2)
    bench.probabilities = {1: 255 - bench.probabilities[1]}
    second = bench.finished(support=support, into=bench.found())
    assert np.array_equal(bench.held(second), np.where(known, shown, bench.expected(support=support)))
    assert second.corrected == ((0, 8), (2, 5)), "they stay corrections for the run after that"


def test_a_slice_that_was_said_to_be_right_stays_and_is_support() -> None:
    bench = Bench(seed=6)
    writer = bench.finished()
    results, before = bench.found(), bench.held(writer)
    for plane in (Plane(2, 4), Plane(0, 7)):
        writer.know(plane)
    assert writer.corrected == ((0, 7), (2, 4))
    writer.set_threshold(0.9)
    write_all(writer)
    known = np.zeros(SHAPE, dtype=bool)
    known[7] = known[:, :, 4] = True
    assert np.array_equal(bench.held(writer), np.where(known, before, bench.expected(0.9)))
    support = bench.corrected(results).support(bench.scan)
    right = {(one.plane.axis, one.index): one for one in support.slices if one.complete}
    assert right.keys() == {(0, 7), (2, 4)} and all(one.known is None for one in right.values())
    assert np.array_equal(right[2, 4].labels, before[:, :, 4])
    of_one = bench.corrected({1: results[1]}).support(bench.scan)
    assert not any(one.complete for one in of_one.slices), "structures without a result were not looked at there"
    bench.editor.logic.Undo()
    assert writer.corrected == ((2, 4),), "saying so is a step of undo"


def test_what_no_brush_does_counts_as_slices_of_the_run() -> None:
    bench = Bench(labels=1, axis=1, seed=2)
    bench.probabilities[1][:] = 0
    writer = bench.finished()
    z, y, x = np.ogrid[:5, :5, :5]
    ball = (z - 2) ** 2 + (y - 2) ** 2 + (x - 2) ** 2 <= 6
    bench.editor.paint(writer.segment_id(1), ball, (3, 4, 3))
    assert writer.corrected == tuple((1, index) for index in range(4, 9))


def test_a_slice_painted_while_the_run_goes_on_is_not_overwritten() -> None:
    bench = Bench(labels=1)
    writer = bench.writer()
    writer.add_slice(1, 0, bench.slice(1, 0), 0.5)
    write_all(writer)
    mask = np.zeros(SHAPE, dtype=bool)
    mask[6, 3:5, 3:5] = True
    bench.editor.paint(writer.segment_id(1), mask)
    bench.run(writer)
    finish(writer)
    expected = np.where(bench.near(mask), mask, bench.expected() == 1)
    assert writer.corrected == ((0, 6),) and np.array_equal(bench.held(writer) == 1, expected)


def test_slices_that_an_undo_took_away_in_the_middle_of_a_run_are_written_again() -> None:
    bench = Bench(labels=1)
    writer = bench.writer()
    for index in (0, 1):
        writer.add_slice(1, index, bench.slice(1, index), 0.5)
    write_all(writer)
    bench.editor.paint(bench.other, np.ones((1, 1, 1), dtype=bool))  # saves the state for undo
    bench.run(writer)
    write_all(writer)
    bench.editor.logic.Undo()
    assert not np.array_equal(bench.held(writer), bench.expected())
    finish(writer)
    assert writer.corrected == () and np.array_equal(bench.held(writer), bench.expected())


def test_corrections_are_support_of_the_next_run_and_come_out_as_they_are() -> None:
    bench = Bench(seed=4)
    first = bench.writer()
    bench.run(first)
    finish(first)
    accept(first)
    results, found = bench.found(), bench.held(first)
    assert results == {label: first.segment_id(label) for label in (1, 2)}
    stroke = np.zeros((1, *SHAPE[1:]), dtype=bool)
    stroke[0, 2:5, 2:5] = True
    bench.editor.erase(results[1], np.ones((1, *SHAPE[1:]), dtype=bool), (7, 0, 0))  # the liver is not there
    bench.editor.erase(results[2], stroke, (8, 0, 0))
    bench.editor.paint(results[1], stroke, (8, 0, 0))
    bench.editor.erase(results[2], stroke, (5, 0, 0))  # on the spleen's painted slice
    bench.editor.paint(results[1], stroke & ~np.roll(stroke, 2, axis=2), (5, 0, 0))
    shown = bench.held(first)
    known = bench.near(found != shown)
    painting = bench.corrected(results)
    support = painting.support(bench.scan)
    assert painting.corrections.keys() == {(0, 5), (0, 7), (0, 8)} and painting.axis == 0
    slices = [(one.index, one.complete, one.known is None) for one in support.slices]
    assert slices == [(2, False, True), (5, True, True), (7, True, False), (8, True, False)], "slice 5 was painted"
    for one in support.slices[1:]:
        for label in (1, 2):
            mask = shown[one.index] == label
            assert np.array_equal(one.mask(label), mask if one.known is None else mask & known[one.index])
    named = painting.support(bench.scan, [Plane(0, 2), Plane(0, 5)], [Plane(0, 2)]).slices
    assert [(one.index, one.complete) for one in named] == [(2, True), (5, True), (7, True), (8, True)]

    bench.probabilities = {label: 255 - one for label, one in bench.probabilities.items()}
    second = bench.writer(support=support, into=results)
    bench.run(second, support=support)
    finish(second)
    corrected = ((0, 5), (0, 7), (0, 8))
    assert {label: second.segment_id(label) for label in (1, 2)} == results and second.corrected == corrected
    assert np.array_equal(bench.held(second), bench.expected(support=support))
    again = bench.corrected(results)
    assert tuple(again.corrections) == corrected, "they stay corrections for the run after that"


def test_what_is_painted_in_the_painted_segment_after_a_run_counts_before_the_result() -> None:
    bench = Bench(labels=1, seed=5)
    first = bench.writer()
    bench.run(first)
    finish(first)
    result, stroke = first.segment_id(1), np.zeros((1, *SHAPE[1:]), dtype=bool)
    stroke[0, 1:3, 1:4] = True
    for index in (2, 6):  # the slice that was painted, and another one; as in overwriting, the result loses the stroke
        bench.editor.paint(bench.ids[0], stroke, (index, 0, 0))
        bench.editor.erase(result, stroke, (index, 0, 0))
    bench.editor.paint(result, stroke, (4, 0, 0))
    painting = bench.corrected({1: result})
    support = painting.support(bench.scan)
    assert painting.corrections.keys() == {(0, 4)} and [one.index for one in support.slices] == [2, 6, 4]
    second = bench.writer(support=support, into={1: result})
    bench.run(second, support=support)
    finish(second)
    assert np.array_equal(bench.held(second), bench.expected(support=support))
    assert second.corrected == ((0, 4),)


def test_a_stroke_in_a_result_that_takes_from_the_painted_segment_is_a_correction() -> None:
    import slicer

    bench = Bench(seed=5)
    first = bench.finished()
    results, stroke = bench.found(), np.zeros((1, *SHAPE[1:]), dtype=bool)
    stroke[0, 2:6, 2:6] = True
    bench.editor.node.SetOverwriteMode(slicer.vtkMRMLSegmentEditorNode.OverwriteAllSegments)
    bench.editor.paint(results[1], stroke, (2, 0, 0))  # where the liver is painted
    shown = bench.held(first)
    assert bench.painting().mask(1).voxels.sum() < bench.painted[0].sum(), "the liver gave the stroke away"
    painting = bench.corrected(results)
    assert painting.corrections.keys() == {(0, 2)}
    support = painting.support(bench.scan)
    (corrected,) = (one for one in support.slices if one.index == 2)
    assert np.array_equal(corrected.mask(1), shown[2] == 1) and corrected.known is None
    second = bench.finished(support=support, into=results)
    assert np.array_equal(bench.held(second)[2] == 1, shown[2] == 1) and second.corrected == ((0, 2),)


def test_what_only_was_erased_in_the_painted_segment_does_not_take_a_correction_away() -> None:
    bench = Bench(labels=1, seed=5)
    first = bench.finished()
    stroke = np.ones((1, 2, 2), dtype=bool)
    bench.editor.paint(first.segment_id(1), stroke, (2, 0, 0))
    bench.editor.erase(bench.ids[0], np.ones((1, 3, SHAPE[2]), dtype=bool), (2, 0, 0))
    assert bench.corrected(bench.found()).corrections.keys() == {(0, 2)}


def test_a_stroke_between_the_plan_of_a_run_and_its_first_slice_is_kept() -> None:
    bench = Bench(seed=4)
    bench.finished()
    results, stroke = bench.found(), np.ones((1, 2, 2), dtype=bool)
    bench.editor.erase(results[2], np.ones((1, 3, 3), dtype=bool), (8, 5, 5))
    bench.editor.paint(results[1], stroke, (8, 5, 5))
    support = bench.corrected(results).support(bench.scan)
    assert [one.index for one in support.slices] == [2, 5, 8]
    for index in (8, 2):  # one that was corrected before, and a painted one
        bench.editor.erase(results[2], np.ones((1, 2, 2), dtype=bool), (index, 0, 0))
        bench.editor.paint(results[1], stroke, (index, 0, 0))
    bench.probabilities = {label: 255 - one for label, one in bench.probabilities.items()}
    second = bench.writer(support=support, into=results)
    shown = bench.labels(results)
    bench.run(second, support=support)
    finish(second)
    after = bench.held(second)
    for index in (2, 8):
        assert np.array_equal(after[index, :2, :2], shown[index, :2, :2])
    assert second.corrected == ((0, 2), (0, 8)) and np.array_equal(after[5], bench.expected(support=support)[5])


def test_a_stroke_on_a_painted_slice_that_is_not_written_yet_is_kept() -> None:
    bench = Bench(labels=1)
    writer = bench.writer()
    writer.add_slice(1, 0, bench.slice(1, 0), 0.5)
    while writer.segment_id(1) is None:
        writer.write_next()
    stroke = np.ones((1, 2, 2), dtype=bool)
    bench.editor.paint(writer.segment_id(1), stroke, (2, 7, 7))
    bench.run(writer)
    finish(writer)
    found = bench.held(writer)[2]
    near = bench.near(np.pad(stroke, ((2, 6), (7, 1), (7, 2))))[2]
    assert np.array_equal(found, np.where(near, np.pad(stroke[0], ((7, 1), (7, 2))), bench.expected()[2]))
    assert writer.corrected == ((0, 2),)


def test_a_stroke_on_a_slice_that_is_being_painted_anew_is_kept() -> None:
    bench = Bench(labels=1)
    result = bench.finished().segment_id(1)
    stroke = np.ones((1, 2, 2), dtype=bool)
    for index in (4, 6):
        bench.editor.paint(bench.ids[0], stroke, (index, 7, 7))
        bench.editor.erase(result, stroke, (index, 7, 7))
    support = bench.corrected({1: result}).support(bench.scan)
    second = bench.writer(support=support, into={1: result})
    second.write_next()
    second.write_next()
    bench.editor.paint(result, stroke, (6, 1, 1))
    shown = bench.labels({1: result})[6]
    bench.run(second, support=support)
    finish(second)
    after = bench.held(second)
    assert np.array_equal(after[6, 1:3, 1:3], shown[1:3, 1:3]) and second.corrected == ((0, 6),)
    assert np.array_equal(after[4], bench.expected(support=support)[4])


def test_a_correction_counts_before_what_was_painted_on_its_slice_and_not_used() -> None:
    bench = Bench(labels=1, seed=5)
    stroke = np.zeros((1, *SHAPE[1:]), dtype=bool)
    stroke[0, 1:3, 1:4] = True
    bench.editor.paint(bench.ids[0], stroke, (6, 0, 0))
    support = bench.painting().support(bench.scan, [Plane(0, 2)])
    first = bench.writer(support=support)
    bench.run(first, support=support)
    finish(first)
    found = bench.held(first)
    bench.editor.erase(first.segment_id(1), stroke, (6, 0, 0))
    painting, shown = bench.corrected({1: first.segment_id(1)}), bench.held(first)
    assert painting.corrections.keys() == {(0, 6)}
    mask = np.where(bench.near(found != shown)[6], shown[6] == 1, stroke[0])
    assert np.array_equal(painting.support(bench.scan).slices[1].mask(1), mask)


def test_corrections_are_known_after_saving_and_loading(tmp_path: Path) -> None:
    bench = Bench(labels=1)
    writer = bench.writer()
    bench.run(writer)
    finish(writer)
    bench.editor.paint(writer.segment_id(1), np.ones((1, 2, 2), dtype=bool), (8, 0, 0))
    bench.editor.paint(writer.segment_id(1), np.ones((8, 10, 1), dtype=bool), (0, 0, 4))
    writer.know(Plane(1, 7))
    assert writer.corrected == ((0, 8), (1, 7), (2, 4))
    loaded = bench.scene.load_segmentation(bench.scene.save(bench.segmentation, tmp_path / "saved.seg.nrrd"))
    found = bench.found(loaded)
    assert found == {1: writer.segment_id(1)}
    held = read_results(bench.node, loaded, found)
    painting = with_corrections(read_painting(bench.node, loaded, bench.ids), held)
    before = bench.corrected(found).corrections
    assert painting.corrections.keys() == before.keys() == {(0, 8), (1, 7), (2, 4)}
    for plane, one in painting.corrections.items():
        assert np.array_equal(one.labels, before[plane].labels) and np.array_equal(one.known, before[plane].known)


def test_a_slice_corrected_in_a_result_of_version_0_1_0_is_right_as_a_whole() -> None:
    bench = Bench(labels=1)
    writer = bench.finished()
    bench.segments.GetSegment(writer.segment_id(1)).RemoveTag("SDFSMIS.Written")
    bench.editor.paint(writer.segment_id(1), np.ones((1, 2, 2), dtype=bool), (8, 0, 0))
    shown = bench.held(writer)
    support = bench.corrected(bench.found()).support(bench.scan)
    assert [(one.index, one.known) for one in support.slices] == [(2, None), (8, None)]
    bench.probabilities = {1: 255 - bench.probabilities[1]}
    second = bench.finished(support=support, into=bench.found())
    assert np.array_equal(bench.held(second)[8], shown[8]) and second.corrected == ((0, 8),)


def test_corrections_are_known_in_a_run_along_another_axis() -> None:
    bench = Bench(labels=1, seed=7)
    writer = bench.finished()
    found, results = bench.held(writer), bench.found()
    bench.editor.paint(writer.segment_id(1), np.ones((1, 2, 3), dtype=bool), (8, 0, 0))
    shown, before = bench.held(writer), bench.state()
    bench.axis, support = 2, bench.corrected(results).support(bench.scan)
    second = bench.finished(support=support, into=results)
    assert second.corrected == ((0, 8),) and bench.found() == results
    assert np.array_equal(bench.held(second), bench.expected(support=support))
    assert np.array_equal(bench.held(second)[bench.near(found != shown)], shown[bench.near(found != shown)])
    discard(second)
    assert same_state(bench.state(), before) and bench.corrected(results).corrections.keys() == {(0, 8)}


def test_without_results_there_are_no_corrections() -> None:
    bench = Bench()
    assert not bench.corrected({}).corrections and not bench.corrected({1: "gone", 2: bench.other}).corrections
    writer = bench.writer()
    bench.run(writer)
    finish(writer)
    assert not bench.corrected({1: writer.segment_id(1)}).corrections
    bench.ids = [bench.other]
    assert bench.found() == {}


@pytest.mark.parametrize("damage", [lambda text: "", lambda text: text[:-8], lambda text: "9" * 9 + text, str.upper])
def test_a_damaged_record_of_what_was_painted_makes_a_correction_count(damage: Callable[[str], str]) -> None:
    bench = Bench(labels=1)
    result, stroke = bench.finished().segment_id(1), np.ones((1, 2, 2), dtype=bool)
    segment = bench.segments.GetSegment(result)
    bench.editor.paint(result, stroke, (2, 0, 0))
    bench.editor.paint(bench.ids[0], stroke, (2, 5, 5))
    assert not bench.corrected({1: result}).corrections
    segment.SetTag("SDFSMIS.Painted", damage(get_tag(segment, "SDFSMIS.Painted")))
    assert bench.corrected({1: result}).corrections.keys() == {(0, 2)}


@pytest.mark.parametrize("tag", ["", "3 1=00000000", "0 1:00000000", "0 1=xyz", "0  1=0123abcd 12=00000000"])
def test_a_record_that_is_none_counts_for_nothing(tag: str) -> None:
    bench = Bench()
    bench.segments.GetSegment(bench.other).SetTag("SDFSMIS.Slices", tag)
    record = WrittenSlices.read_tag(bench.segments.GetSegment(bench.other))
    assert (record is None) == ("0123abcd" not in tag)
