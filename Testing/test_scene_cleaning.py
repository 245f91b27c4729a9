"""Another threshold and cleaning of results in the MRML scene, in any thread, written in steps."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from scene_examples import (
    Bench,
    accept,
    finish,
    two_balls,
    write_all,
)
from SDFSMISLib.errors import InputError
from SDFSMISLib.images.postprocess import Postprocessing


@pytest.fixture(scope="module", autouse=True)
def _slicer() -> None:
    pytest.importorskip("slicer")


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_another_threshold_and_cleaning_act_on_the_kept_probabilities(axis: int) -> None:
    bench = Bench(axis=axis)
    writer = bench.writer()
    bench.run(writer)
    finish(writer)
    for threshold in (0.2, 0.9, 0.5):
        writer.set_threshold(threshold)
        write_all(writer)
        assert np.array_equal(bench.held(writer), bench.expected(threshold)) and writer.threshold == threshold
    for cleaning in (
        Postprocessing(keep_largest="volume"),
        Postprocessing(1.2, keep_largest="volume"),
        Postprocessing(3.0),
    ):
        writer.set_cleaning(cleaning)
        write_all(writer)
        assert np.array_equal(bench.held(writer), bench.expected(0.5, cleaning)), cleaning
    writer.set_cleaning(None)
    write_all(writer)
    assert np.array_equal(bench.held(writer), bench.expected())
    with pytest.raises(InputError, match="The threshold 1.5 was given; a probability from 0"):
        writer.set_threshold(1.5)


@pytest.mark.parametrize("cleaning", [Postprocessing(keep_largest="volume"), Postprocessing(smooth_mm=2.5)])
def test_cleaning_wanted_during_the_run_is_done_at_its_end(cleaning: Postprocessing) -> None:
    bench = two_balls()
    writer = bench.writer(threshold=0.3)
    writer.set_cleaning(cleaning)
    bench.run(writer)
    while writer.write_next():
        pass
    assert np.array_equal(bench.held(writer), bench.expected(0.3)), "slices appear as they come"
    finish(writer)
    assert np.array_equal(bench.held(writer), bench.expected(0.3, cleaning))
    assert not np.array_equal(bench.held(writer), bench.expected(0.3))


def test_cleaning_sees_what_was_changed_by_hand() -> None:
    bench = two_balls()
    writer = bench.writer()
    bench.run(writer)
    finish(writer)
    whole = bench.held(writer) == 1
    for index in (4, 5):
        bridge = np.zeros((1, 20, 20), dtype=bool)
        bridge[0, 5:18, 2:13] = True  # beyond all that is probable
        whole[index] = bridge[0]
        bench.editor.paint(writer.segment_id(1), bridge, (index, 0, 0))
    writer.set_cleaning(Postprocessing(keep_largest="volume"))
    cleaned = writer.cleaning_task()()
    assert all((cleaned.labels.crop_or_pad((k, 5, 2), (k + 1, 18, 13)) == 1).all() for k in (4, 5)), "all of the bridge"
    assert writer.apply_cleaned(cleaned)
    while writer.write_next():
        pass
    assert np.array_equal(bench.held(writer) == 1, whole), "the bridge that was painted makes one piece of the two"


def test_cleaning_goes_on_in_a_thread_of_its_own_and_is_written_in_steps() -> None:
    bench = two_balls()
    writer = bench.writer()
    bench.run(writer)
    finish(writer)
    before, wanted, made = bench.held(writer), Postprocessing(1.5, keep_largest="volume"), []
    assert not writer.cleaning_due
    writer.set_cleaning(wanted)
    assert writer.cleaning_due and writer.pending == 0, "what was written stays until it is cleaned"
    job = writer.cleaning_task()
    worker = threading.Thread(target=lambda: made.append(job()))
    worker.start()
    worker.join()
    assert np.array_equal(bench.held(writer), before) and writer.cleaning_due
    assert writer.apply_cleaned(made[0]) and not writer.cleaning_due and writer.pending > 0
    while writer.write_next():
        pass
    assert np.array_equal(bench.held(writer), bench.expected(0.5, wanted))


def test_what_was_cleaned_for_something_else_is_ignored() -> None:
    bench = two_balls()
    writer = bench.writer()
    writer.set_cleaning(Postprocessing(keep_largest="volume"))
    during_the_run = writer.cleaning_task()
    bench.run(writer)
    write_all(writer)
    shown = bench.held(writer)
    at_another_threshold = writer.cleaning_task()
    writer.set_threshold(0.8)
    with_another_cleaning = writer.cleaning_task()
    writer.set_cleaning(Postprocessing(2.0))
    of_another_run = bench.writer().cleaning_task()
    for job in (during_the_run, at_another_threshold, with_another_cleaning, of_another_run):
        assert not writer.apply_cleaned(job()) and writer.cleaning_due and writer.pending == 0
    writer.write_next()
    assert np.array_equal(bench.held(writer), shown)
    right = writer.cleaning_task()()
    assert writer.apply_cleaned(right)
    write_all(writer)
    assert np.array_equal(bench.held(writer), bench.expected(0.8, Postprocessing(2.0)))
    writer.set_cleaning(None)
    assert not writer.apply_cleaned(right) and writer.pending > 0
    accept(writer)
    assert not writer.apply_cleaned(right) and not writer.cleaning_due and writer.pending == 0


def test_slices_that_come_after_a_cleaning_are_written_by_the_threshold_alone() -> None:
    bench = two_balls()
    writer = bench.writer()
    writer.set_cleaning(Postprocessing(keep_largest="volume"))
    for index in (1, 3):
        writer.add_slice(1, index, bench.slice(1, index), 0.5)
    write_all(writer)
    assert not writer.cleaning_due
    writer.add_slice(1, 7, bench.slice(1, 7), 0.5)
    assert writer.cleaning_due
    while writer.write_next():
        pass
    assert np.array_equal(bench.held(writer)[7] == 1, bench.slice(1, 7) > 127)
    finish(writer)
    assert not bench.held(writer)[7].any() and not writer.cleaning_due, "the piece around the painted slice is larger"


def test_the_same_threshold_and_cleaning_change_nothing() -> None:
    bench = two_balls()
    writer = bench.writer()
    bench.run(writer)
    finish(writer)
    writer.set_threshold(0.5)
    writer.set_cleaning(None)
    writer.set_cleaning(Postprocessing())
    assert writer.pending == 0 and not writer.cleaning_due
