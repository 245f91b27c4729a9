"""What a user changes in results in the MRML scene: it is known, stays, and is support of the next run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scene_examples import SHAPE, Bench, one_slice
from SDFSMISLib.scene import find_result, read_painting, read_results, with_corrections
from SDFSMISLib.scene.slice_record import SliceRecord


@pytest.fixture(scope="module", autouse=True)
def _slicer() -> None:
    pytest.importorskip("slicer")


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_what_a_user_changes_in_a_result_is_known_and_stays(axis: int) -> None:
    bench = Bench(axis=axis, seed=1)
    writer = bench.writer()
    bench.run(writer)
    writer.finish()
    assert writer.by_hand == ()
    count, mask = bench.geometry.shape[axis], np.zeros(bench.geometry.slice_shape(axis), dtype=bool)
    mask[1:4, 2:6] = True
    bench.editor.paint(writer.segment_id(1), *one_slice(axis, 1, mask))
    bench.editor.erase(writer.segment_id(1), *one_slice(axis, count - 1, np.ones_like(mask)))
    assert writer.by_hand == (1, count - 1)
    corrected = np.moveaxis(bench.held_masks(writer), axis + 1, 1)[:, [1, -1]].copy()
    for threshold in (0.1, 0.9):
        writer.set_threshold(threshold)
        writer.write_all()
        labels = np.moveaxis(bench.held_masks(writer), axis + 1, 1)
        expected = np.moveaxis(bench.expected(threshold), axis, 0)
        assert np.array_equal(labels[:, [1, -1]], corrected)
        untouched = [index for index in range(count) if index not in (1, count - 1)]
        for label in (1, 2):
            assert np.array_equal(labels[label - 1][untouched], expected[untouched] == label)
    bench.editor.logic.Undo()
    assert writer.by_hand == (1,), "undo took back the erasing, but not the painting"


def test_a_slice_painted_while_the_run_goes_on_is_not_overwritten() -> None:
    bench = Bench(labels=1)
    writer = bench.writer()
    writer.take(1, 0, bench.slice(1, 0), 0.5)
    writer.write_all()
    mask = np.zeros((1, *SHAPE[1:]), dtype=bool)
    mask[0, 3:5, 3:5] = True
    bench.editor.paint(writer.segment_id(1), mask, (6, 0, 0))
    bench.run(writer)
    writer.finish()
    expected = bench.expected() == 1
    expected[6] = mask[0]
    assert writer.by_hand == (6,) and np.array_equal(bench.held(writer) == 1, expected)


def test_slices_that_an_undo_took_away_in_the_middle_of_a_run_are_written_again() -> None:
    bench = Bench(labels=1)
    writer = bench.writer()
    for index in (0, 1):
        writer.take(1, index, bench.slice(1, index), 0.5)
    writer.write_all()
    bench.editor.paint(bench.other, np.ones((1, 1, 1), dtype=bool))  # saves the state for undo
    bench.run(writer)
    writer.write_all()
    bench.editor.logic.Undo()
    assert not np.array_equal(bench.held(writer), bench.expected())
    writer.finish()
    assert writer.by_hand == () and np.array_equal(bench.held(writer), bench.expected())


def test_corrections_are_support_of_the_next_run_and_come_out_as_they_are() -> None:
    bench = Bench(seed=4)
    first = bench.writer()
    bench.run(first)
    first.finish()
    first.accept()
    results = {label: find_result(bench.node, bench.segmentation, one, 0) for label, one in enumerate(bench.ids, 1)}
    assert results == {label: first.segment_id(label) for label in (1, 2)}
    stroke = np.zeros((1, *SHAPE[1:]), dtype=bool)
    stroke[0, 2:5, 2:5] = True
    bench.editor.erase(results[1], np.ones((1, *SHAPE[1:]), dtype=bool), (7, 0, 0))  # the liver is not there
    bench.editor.erase(results[2], stroke, (8, 0, 0))
    bench.editor.paint(results[1], stroke, (8, 0, 0))
    bench.editor.erase(results[2], stroke, (5, 0, 0))  # on the spleen's painted slice
    bench.editor.paint(results[1], stroke & ~np.roll(stroke, 2, axis=2), (5, 0, 0))
    shown = bench.held_masks(first)

    painting = bench.corrected(results)
    support = painting.support(bench.scan)
    assert painting.corrected == (5, 7, 8) and painting.axis == 0
    assert [(piece.index, piece.complete) for piece in support.slices] == [(2, False), (5, True), (7, True), (8, True)]
    for piece in support.slices[1:]:
        for label in (1, 2):
            assert np.array_equal(piece.mask(label), shown[label - 1][piece.index])
    named = painting.support(bench.scan, [2, 5]).slices
    assert [(piece.index, piece.complete) for piece in named] == [(2, True), (5, True), (7, True), (8, True)]

    bench.probabilities = {label: 255 - one for label, one in bench.probabilities.items()}
    second = bench.writer(support=support, into=results)
    bench.run(second, support=support)
    second.finish()
    assert {label: second.segment_id(label) for label in (1, 2)} == results and second.by_hand == (5, 7, 8)
    assert np.array_equal(bench.held(second), bench.expected(support=support))
    again = bench.corrected(results)
    assert again.corrected == (5, 7, 8), "they stay corrections for the run after that"


def test_what_is_painted_in_the_painted_segment_after_a_run_counts_before_the_result() -> None:
    bench = Bench(labels=1, seed=5)
    first = bench.writer()
    bench.run(first)
    first.finish()
    result, stroke = first.segment_id(1), np.zeros((1, *SHAPE[1:]), dtype=bool)
    stroke[0, 1:3, 1:4] = True
    for index in (2, 6):  # the slice that was painted, and another one; as in overwriting, the result loses the stroke
        bench.editor.paint(bench.ids[0], stroke, (index, 0, 0))
        bench.editor.erase(result, stroke, (index, 0, 0))
    bench.editor.paint(result, stroke, (4, 0, 0))
    painting = bench.corrected({1: result})
    support = painting.support(bench.scan)
    assert painting.corrected == (4,) and [piece.index for piece in support.slices] == [2, 4, 6]
    second = bench.writer(support=support, into={1: result})
    bench.run(second, support=support)
    second.finish()
    assert np.array_equal(bench.held(second), bench.expected(support=support))
    assert second.by_hand == (4,)


def test_a_correction_counts_before_what_was_painted_on_its_slice_and_not_used() -> None:
    bench = Bench(labels=1, seed=5)
    stroke = np.zeros((1, *SHAPE[1:]), dtype=bool)
    stroke[0, 1:3, 1:4] = True
    bench.editor.paint(bench.ids[0], stroke, (6, 0, 0))
    support = bench.painting().support(bench.scan, [2])
    first = bench.writer(support=support)
    bench.run(first, support=support)
    first.finish()
    bench.editor.erase(first.segment_id(1), stroke, (6, 0, 0))
    painting = bench.corrected({1: first.segment_id(1)})
    assert painting.corrected == (6,)
    assert np.array_equal(painting.support(bench.scan).slices[1].mask(1), bench.held_masks(first)[0, 6])


def test_corrections_are_known_after_saving_and_loading(tmp_path: Path) -> None:
    bench = Bench(labels=1)
    writer = bench.writer()
    bench.run(writer)
    writer.finish()
    bench.editor.paint(writer.segment_id(1), np.ones((1, 2, 2), dtype=bool), (8, 0, 0))
    assert writer.by_hand == (8,)
    loaded = bench.scene.load_segmentation(bench.scene.save(bench.segmentation, tmp_path / "saved.seg.nrrd"))
    found = find_result(bench.node, loaded, bench.ids[0], 0)
    assert found == writer.segment_id(1) and find_result(bench.node, loaded, bench.ids[0], 1) is None
    held = read_results(bench.node, loaded, {1: found})
    painting = with_corrections(read_painting(bench.node, loaded, bench.ids), held)
    assert painting.corrected == (8,)


def test_without_results_there_are_no_corrections() -> None:
    bench = Bench()
    assert bench.corrected({}).corrected == () and bench.corrected({1: "gone", 2: bench.other}).corrected == ()
    writer = bench.writer()
    bench.run(writer)
    writer.finish()
    assert bench.corrected({1: writer.segment_id(1)}).corrected == ()
    assert find_result(bench.node, bench.segmentation, bench.other, 0) is None


@pytest.mark.parametrize("tag", ["", "3 1=00000000", "0 1:00000000", "0 1=xyz", "0  1=0123abcd 12=00000000"])
def test_a_record_that_is_none_counts_for_nothing(tag: str) -> None:
    bench = Bench()
    bench.segments.GetSegment(bench.other).SetTag("SDFSMIS.Slices", tag)
    record = SliceRecord.on(bench.segments.GetSegment(bench.other))
    assert (record is None) == ("0123abcd" not in tag)
