"""How results in the MRML scene end: accepted, discarded, or lost in the middle of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mrml_scene import held
from scene_examples import (
    SHAPE,
    TURN,
    Bench,
    accept,
    discard,
    finish,
    put_under,
    same_state,
    write_all,
)
from SDFSMISLib.errors import InputError
from SDFSMISLib.images.planes import Plane
from SDFSMISLib.scene import EditingRules, ResultUnavailable, ResultWriter, SegmentNotFound


@pytest.fixture(scope="module", autouse=True)
def _slicer() -> None:
    pytest.importorskip("slicer")


@pytest.mark.parametrize("finished", [False, True])
def test_discarding_leaves_everything_as_it_was(finished: bool) -> None:
    bench = Bench()
    before, writer = bench.state(), bench.writer()
    bench.run(writer)
    finish(writer) if finished else writer.write_next()
    discard(writer)
    assert same_state(bench.state(), before)
    with pytest.raises(ResultUnavailable, match="accepted or discarded"):
        writer.write_next()


def test_discarding_a_run_that_went_on_in_earlier_results_gives_these_back() -> None:
    bench = Bench()
    first = bench.writer()
    bench.run(first)
    finish(first)
    bench.editor.paint(first.segment_id(1), np.ones((1, 2, 2), dtype=bool), (8, 0, 0))
    before = bench.state()
    bench.probabilities = {label: 255 - one for label, one in bench.probabilities.items()}
    second = bench.writer(into={label: first.segment_id(label) for label in (1, 2)})
    bench.run(second)
    finish(second)
    assert not same_state(bench.state(), before)
    discard(second)
    assert same_state(bench.state(), before) and first.corrected == ((0, 8),)


def test_corrections_stay_when_the_run_is_discarded_and_undo_brings_the_rest_back() -> None:
    bench, stroke = Bench(seed=4), np.ones((1, 2, 2), dtype=bool)
    before, writer = bench.state(), bench.finished()
    results, found = bench.found(), bench.held(writer)
    bench.editor.erase(results[2], stroke, (7, 0, 0))
    bench.editor.paint(results[1], stroke, (7, 0, 0))
    bench.editor.erase(results[1], np.ones((1, *SHAPE[1:]), dtype=bool), (4, 0, 0))  # the liver is not there
    writer.know(Plane(2, 3))
    shown, in_review = bench.held(writer), bench.state()
    discard(writer)
    left, known = bench.labels(results), bench.near(found != shown)
    known[:, :, 3] = True
    assert np.array_equal(left, np.where(known, shown, 0))
    assert same_state(before, {one: held for one, held in bench.state().items() if one in before})
    assert bench.found() == results, "the next run goes on in what is left"
    painting = bench.corrected(results)
    assert {plane: one.known is None for plane, one in painting.corrections.items()} == {
        (0, 4): False,
        (0, 7): False,
        (2, 3): True,
    }
    support = painting.support(bench.scan)
    second = bench.finished(support=support, into=results)
    assert second.corrected == ((0, 4), (0, 7), (2, 3))
    assert np.array_equal(bench.held(second), bench.expected(support=support))
    for _ in range(2):
        bench.editor.logic.Undo()
    assert same_state(bench.state(), in_review)


def test_a_result_with_nothing_on_corrected_slices_goes_when_another_one_stays() -> None:
    bench = Bench(seed=4)
    bench.probabilities[2][7] = 0
    writer = bench.finished()
    bench.editor.paint(writer.segment_id(1), np.ones((1, 2, 2), dtype=bool), (7, 0, 0))
    kept, gone = writer.segment_id(1), writer.segment_id(2)
    discard(writer)
    assert bench.found() == {1: kept} and bench.segments.GetSegment(gone) is None


def test_corrections_in_results_of_an_earlier_run_stay_when_the_later_one_is_discarded() -> None:
    bench, stroke = Bench(labels=1), np.ones((1, 2, 2), dtype=bool)
    first = bench.finished()
    result = first.segment_id(1)
    bench.editor.paint(result, stroke, (8, 0, 0))
    bench.editor.paint(bench.ids[0], stroke, (2, 0, 0))
    bench.editor.paint(bench.ids[0], stroke, (4, 0, 0))
    bench.editor.erase(result, stroke, (4, 0, 0))  # as in overwriting
    before = bench.labels({1: result})
    bench.probabilities = {1: 255 - bench.probabilities[1]}
    support = bench.corrected({1: result}).support(bench.scan)
    second = bench.finished(support=support, into={1: result})
    found = bench.held(second)
    for index in (2, 5):  # one that was painted anew before the run, and one that it computed
        bench.editor.paint(result, stroke, (index, 7, 7))
    shown = bench.held(second)
    discard(second)
    assert np.array_equal(bench.labels({1: result}), np.where(bench.near(found != shown), shown, before))
    corrections = bench.corrected({1: result}).corrections
    assert corrections.keys() == {(0, 2), (0, 5), (0, 8)}, "slice 4 was painted anew since"


def test_discarding_what_came_to_be_surfaces_leaves_it_alone() -> None:
    bench = Bench(labels=1)
    writer = bench.finished()
    bench.segmentation.CreateClosedSurfaceRepresentation()
    bench.segmentation.SetSourceRepresentationToClosedSurface()
    discard(writer)
    assert bench.segments.GetSegment(writer.segment_id(1)) is not None


def test_a_result_of_another_run_may_share_its_labelmap() -> None:
    bench = Bench()
    first = bench.writer()
    bench.run(first)
    finish(first)
    bench.segments.CollapseBinaryLabelmaps(False)
    before = bench.state()
    into = {label: first.segment_id(label) for label in (1, 2)}
    assert bench.segments.GetNumberOfLayers() < 5
    bench.probabilities = {label: 255 - one for label, one in bench.probabilities.items()}
    second = bench.writer(into=into)
    bench.run(second)
    finish(second)
    assert np.array_equal(bench.held(second), bench.expected())
    after = bench.state()
    others = before.keys() - set(into.values())
    assert same_state({one: before[one] for one in others}, {one: after[one] for one in others})


def ways_to_lose() -> dict[str, tuple[Callable[[Bench, ResultWriter], Any], str]]:
    return {
        "segmentation deleted": (lambda b, w: b.scene.node.RemoveNode(b.segmentation), "segmentation was deleted"),
        "volume deleted": (lambda b, w: b.scene.node.RemoveNode(b.node), "scan was deleted"),
        "scene closed": (lambda b, w: b.scene.node.Clear(False), "scene closed"),
        "results deleted": (
            lambda b, w: [b.segments.RemoveSegment(w.segment_id(label)) for label in (1, 2)],
            "results were deleted or undone",
        ),
        "run undone": (lambda b, w: b.editor.logic.Undo(), "results were deleted or undone"),
        "volume moved": (lambda b, w: b.node.SetOrigin(1, 2, 3), "changed, or moved"),
        "volume emptied": (lambda b, w: b.node.SetAndObserveImageData(None), "changed, or moved"),
        "volume transformed": (lambda b, w: put_under(b.node, b.scene.transform(TURN)), "changed, or moved"),
        "volume warped": (lambda b, w: put_under(b.node, b.scene.warp()), "changed, or moved"),
    }


@pytest.mark.parametrize("way", list(ways_to_lose()))
def test_what_is_lost_in_the_middle_of_a_run_is_said_in_a_sentence(way: str) -> None:
    lose, message = ways_to_lose()[way]
    bench = Bench()
    support, writer = bench.support(), bench.writer()
    for index in (0, 1):
        writer.add_slice(1, index, bench.slice(1, index), 0.5)
        write_all(writer)
    lose(bench, writer)
    writer.add_slice(1, 3, bench.slice(1, 3), 0.5)
    for act in (ResultWriter.write_next, ResultWriter.update_surface, accept, finish):
        with pytest.raises(ResultUnavailable, match=message):
            act(writer)
    discard(writer)
    if way not in ("segmentation deleted", "scene closed"):
        assert set(bench.segments.GetSegmentIDs()) == {*bench.ids, bench.other}, "what was left of it can be discarded"
    assert support.labels == (1, 2) and writer.certainty(1)[3] == 0.5


def test_a_scene_that_is_gone_with_all_its_nodes_is_a_lost_result() -> None:
    bench = Bench()
    writer = bench.writer()
    writer.add_slice(1, 0, bench.slice(1, 0), 0.5)
    write_all(writer)
    bench.scene.node.Clear(True)
    del bench.scene, bench.editor, bench.segmentation, bench.node
    with pytest.raises(ResultUnavailable):
        write_all(writer)


def test_one_result_that_is_deleted_is_left_out_and_the_other_goes_on() -> None:
    bench = Bench()
    writer = bench.writer()
    write_all(writer)
    bench.segments.RemoveSegment(writer.segment_id(1))
    bench.run(writer)
    finish(writer)
    assert writer.segment_id(1) is None and writer.volume_ml(1) == 0 and writer.pending == 0
    assert np.array_equal(bench.held(writer) == 2, bench.expected() == 2)
    accept(writer)


def test_renamed_and_deleted_sources_do_not_matter() -> None:
    bench = Bench()
    expected, writer = bench.expected(), bench.writer()
    write_all(writer)
    bench.segments.GetSegment(writer.segment_id(1)).SetName("right lobe")
    support = bench.support()
    for segment_id in bench.ids:
        bench.segments.RemoveSegment(segment_id)
    bench.run(writer, support=support)
    finish(writer)
    accept(writer)
    assert bench.segments.GetSegment(writer.segment_id(1)).GetName() == "right lobe"
    assert np.array_equal(bench.held(writer), expected)


def test_what_cannot_be_written_into_is_refused_at_once() -> None:
    bench = Bench()
    with pytest.raises(SegmentNotFound):
        bench.writer(into={1: "nothing"})
    with pytest.raises(InputError, match="threshold 1"):
        bench.writer(threshold=1)
    writer = bench.writer()
    with pytest.raises(ValueError, match="is a slice"):
        writer.add_slice(1, 0, np.zeros((3, 3), np.uint8), 0.5)
    with pytest.raises(ValueError, match="is a slice"):
        writer.add_slice(1, 0, np.zeros(SHAPE[1:], bool), 0.5)


@pytest.mark.parametrize("shown", [False, True])
def test_accepting_in_steps_is_accepting(shown: bool) -> None:
    import slicer

    states = []
    for stepwise in (False, True):
        bench = Bench(seed=8)
        if shown:
            bench.segmentation.CreateClosedSurfaceRepresentation()
        bench.editor.node.SetOverwriteMode(slicer.vtkMRMLSegmentEditorNode.OverwriteAllSegments)
        writer = bench.writer(rules=EditingRules.of(bench.editor.node, bench.node))
        bench.run(writer)
        writer.set_threshold(0.6)
        if stepwise:
            shares = list(writer.accept_steps())
            assert shares == sorted(shares) and shares[-1] == 1.0 and len(shares) > 3
        else:
            accept(writer)
        results = bench.held(writer)
        assert np.array_equal(results, bench.expected(0.6))
        states.append(dict(bench.state().values()))
        for segment_id in bench.segments.GetSegmentIDs():
            surface = bench.segments.GetSegment(segment_id).GetRepresentation("Closed surface")
            assert (surface is not None) == shown
            if shown and segment_id == bench.other:
                before = surface.GetNumberOfPoints()
                bench.segments.GetSegment(segment_id).RemoveRepresentation("Closed surface")
                bench.segmentation.CreateClosedSurfaceRepresentation()
                anew = bench.segments.GetSegment(segment_id).GetRepresentation("Closed surface")
                assert anew.GetNumberOfPoints() == before, "the surface is that of what is left"
    assert states[0].keys() == states[1].keys()
    assert all(np.array_equal(mask, states[1][name]) for name, mask in states[0].items())


def test_accepting_that_was_left_off_can_be_done_again() -> None:
    import slicer

    bench = Bench(seed=8)
    bench.editor.node.SetOverwriteMode(slicer.vtkMRMLSegmentEditorNode.OverwriteAllSegments)
    writer = bench.writer(rules=EditingRules.of(bench.editor.node, bench.node))
    bench.run(writer)
    steps = writer.accept_steps()
    assert next(steps) < 1
    del steps
    writer.set_threshold(0.4)
    accept(writer)
    results = bench.held(writer)
    assert np.array_equal(results, bench.expected(0.4))
    assert not (held(bench.segmentation, bench.other, bench.node) & (results > 0)).any()


def test_discarding_in_steps_lets_nothing_be_written_in_between() -> None:
    bench = Bench()
    first = bench.writer()
    bench.run(first)
    finish(first)
    before = bench.state()
    bench.probabilities = {label: 255 - one for label, one in bench.probabilities.items()}
    second = bench.writer(into={label: first.segment_id(label) for label in (1, 2)})
    bench.run(second)
    finish(second)
    steps = second.discard_steps()
    assert 0 < next(steps) < 1
    with pytest.raises(ResultUnavailable, match="accepted or discarded"):
        second.write_next()
    assert list(steps)[-1] == 1.0 and same_state(bench.state(), before)
