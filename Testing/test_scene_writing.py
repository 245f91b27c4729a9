"""Results of a run written into the MRML scene, slice by slice, and in review."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mrml_scene import MrmlScene, held, oriented_image
from scene_examples import (
    SHAPE,
    Bench,
    discard,
    few,
    finish,
    other_lattice,
    rigid,
    same_state,
    write_all,
)
from SDFSMISLib.images.postprocess import Postprocessing
from SDFSMISLib.images.volume import Geometry
from SDFSMISLib.scene import (
    ResultUnavailable,
    ResultWriter,
    ScanCache,
    SegmentTemplate,
    make_segmentation,
    read_painting,
)
from SDFSMISLib.scene.frame import ijk_to_ras
from SDFSMISLib.slices import SlicePlane
from SDFSMISLib.support import SupportSet, SupportSlice
from volume_examples import IDENTITY, geometries, random_direction, seeds


@pytest.fixture(scope="module", autouse=True)
def _slicer() -> None:
    pytest.importorskip("slicer")


@pytest.fixture
def scene() -> MrmlScene:
    return MrmlScene()


@settings(deadline=None, max_examples=25)
@given(geometries(), st.sampled_from([0, 1, 2]), seeds, st.sampled_from([0.0, 0.5, 0.731]))
def test_results_are_those_of_the_command_line_voxel_by_voxel(
    geometry: Geometry, axis: int, seed: int, threshold: float
) -> None:
    assume(max(geometry.in_plane_spacing(axis)) <= 100 * min(geometry.in_plane_spacing(axis)))
    labels = 2 if min(geometry.slice_shape(axis)) > 2 else 1
    bench = Bench(geometry, axis, seed, labels)
    before, writer = bench.state(), bench.writer(threshold=threshold)
    bench.run(writer, seed)
    finish(writer)
    assert np.array_equal(bench.held(writer), bench.expected(threshold))
    after = bench.state()
    assert same_state(before, {one: after[one] for one in before}), "others, the painted ones too, are untouched"
    for label in bench.probabilities:
        voxels = np.count_nonzero(bench.expected(threshold) == label)
        assert writer.volume_ml(label) == pytest.approx(voxels * np.prod(geometry.spacing) / 1000)


def crossing(bench: Bench, axis: int, index: int, partly: bool) -> SupportSet:
    """The support of the bench with a slice of another view; probabilities agree with it, as those of a run do."""
    rng, shape, support = np.random.default_rng(axis), bench.geometry.slice_shape(axis), bench.support()
    labels = np.where(rng.random(shape) < 0.5, rng.integers(0, 3, shape), 0).astype(np.uint16)
    for one in support.slices if axis else ():  # they lie along axis 0
        labels[one.index] = one.labels.take(index, axis=axis - 1)
    image, plane = bench.scan.slice(axis, index).astype(np.float32), SlicePlane.of(bench.scan, axis)
    known = rng.random(shape) < 0.4 if partly else np.ones(shape, dtype=bool)
    for label, probability in bench.probabilities.items():
        np.moveaxis(probability, axis, 0)[index][known] = 255 * (labels[known] == label)
    added = SupportSlice(image, labels, index, plane, True, known if partly else None)
    return SupportSet((*support.slices, added), support.names)


@pytest.mark.parametrize("partly", [False, True])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_painted_slices_of_other_views_come_out_as_painted(axis: int, partly: bool) -> None:
    bench = Bench(seed=axis)
    support = crossing(bench, axis, 6, partly)
    writer = bench.finished(support=support, threshold=0.4)
    assert np.array_equal(bench.held(writer), bench.expected(0.4, support=support))
    for cleaning in (Postprocessing(1.2, keep_largest="volume"), None):
        writer.set_cleaning(cleaning)
        write_all(writer)
        assert np.array_equal(bench.held(writer), bench.expected(0.4, cleaning, support)), cleaning


def test_before_its_slices_come_a_run_writes_only_what_was_painted() -> None:
    bench = Bench(seed=3)
    support = crossing(bench, 2, 4, partly=True)
    sagittal, (known,) = support.slices[-1], [one.known for one in support.slices if one.known is not None]
    before = bench.held(bench.finished())
    second = bench.writer(support=support, into=bench.found())
    second.add_slice(1, 7, np.zeros(SHAPE[1:], np.uint8), 0.5)
    finish(second)
    expected = before.copy()
    expected[:, :, 4] = np.where(known, sagittal.labels, before[:, :, 4])
    expected[7][expected[7] == 1] = 0
    expected[7, known[7] & (sagittal.labels[7] == 1), 4] = 1
    for one in support.slices[:2]:
        expected[one.index] = np.where(one.labels > 0, one.labels, expected[one.index])
    assert np.array_equal(bench.held(second), expected)


def test_a_result_takes_over_name_colour_and_terminology(scene: MrmlScene) -> None:
    import slicer

    bench, code = Bench(), "Category~SCT^123037004^Anatomical Structure~SCT^10200004^Liver~^^~Codes~^^~^^"
    bench.segments.GetSegment(bench.ids[0]).SetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), code)
    writer = bench.writer()
    assert writer.segment_id(1) is None
    writer.add_slice(1, 0, bench.slice(1, 0), 0.5)
    finish(writer)
    segment = bench.segments.GetSegment(writer.segment_id(1))
    assert segment.GetName() == "liver (SDFSMIS)" and segment.GetColor() == (0.8, 0.2, 0.1)
    assert SegmentTemplate.of(bench.segmentation, writer.segment_id(1)).terminology == code
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    assert logic.GetSegmentStatus(segment) == logic.InProgress
    assert SegmentTemplate.of(bench.segmentation, writer.segment_id(2)).name == "spleen (SDFSMIS)"


def test_a_run_is_one_step_of_undo() -> None:
    bench = Bench()
    before, writer = bench.state(), bench.writer()
    bench.run(writer)
    finish(writer)
    after = bench.state()
    assert len(after) == len(before) + 2
    bench.editor.logic.Undo()
    assert same_state(bench.state(), before)
    with pytest.raises(ResultUnavailable, match="deleted or undone; begin the run again"):
        write_all(writer)
    bench.editor.logic.Redo()
    assert same_state(bench.state(), after)


def test_nothing_is_written_before_something_is_to_be_written() -> None:
    bench, saved = Bench(), []
    before = bench.state()
    writer = bench.writer(save_undo=lambda: saved.append(1))
    writer.add_slice(1, 0, bench.slice(1, 0), 0.5)
    assert writer.pending == 3 and same_state(bench.state(), before) and saved == []
    discard(writer)
    assert same_state(bench.state(), before) and saved == []
    writer = bench.writer(save_undo=lambda: saved.append(1))
    while writer.write_next():
        pass
    assert saved == [1] and np.array_equal(bench.held(writer) == 1, bench.painted[0])


def test_slices_near_the_one_that_is_looked_at_come_first() -> None:
    bench = Bench(Geometry((40, 3, 4), (1, 1, 1), (0, 0, 0), IDENTITY), labels=1)
    writer = bench.writer()
    write_all(writer)
    for index in (*range(3, 12), 20, *range(25, 40)):
        writer.add_slice(1, index, np.full((3, 4), 200, np.uint8), 0.5)
    seen = []
    while writer.write_next(near=30):
        found = set(np.flatnonzero(bench.held(writer).any(axis=(1, 2))).tolist())
        seen.append(sorted(found.difference(*seen)))
    assert seen[0][1:] == list(range(26, 34)) and seen[1] == list(range(34, 40)) and seen[2] == [25]


def test_only_slices_that_change_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    import SDFSMISLib.scene.result_segment as module

    bench = Bench(labels=1)
    bench.probabilities[1] = np.where(bench.probabilities[1] > 127, np.uint8(255), np.uint8(0))
    bench.probabilities[1][7, 0, 0] = 150
    writer = bench.writer()
    bench.run(writer)
    finish(writer)
    image = bench.segments.GetSegment(writer.segment_id(1)).GetRepresentation("Binary labelmap")
    stamp = image.GetMTime()
    writer.set_threshold(0.55)
    write_all(writer)
    assert image.GetMTime() == stamp
    written: list[set[int]] = []
    original = module.write_slices
    monkeypatch.setattr(module, "write_slices", lambda *given: (written.append(given[4]), original(*given)))
    writer.set_threshold(0.6)
    write_all(writer)
    assert written == [{7}] and np.array_equal(bench.held(writer), bench.expected(0.6))


def test_certainty_is_kept_slice_by_slice() -> None:
    bench = Bench()
    writer = bench.writer()
    bench.run(writer)
    assert np.isnan(writer.certainty(1)[2]) and writer.certainty(1)[3] == pytest.approx(0.103)


def test_surfaces_that_are_shown_are_made_once_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    bench.segmentation.CreateClosedSurfaceRepresentation()
    surfaces = {one: bench.segments.GetSegment(one).GetRepresentation("Closed surface") for one in bench.ids}
    stamps = {one: surface.GetMTime() for one, surface in surfaces.items()}
    writer = bench.writer()
    bench.run(writer)
    write_all(writer)
    result = bench.segments.GetSegment(writer.segment_id(1))
    assert result.GetRepresentation("Closed surface") is None
    finish(writer)
    assert result.GetRepresentation("Closed surface").GetNumberOfPoints() > 0
    for one, surface in surfaces.items():
        assert bench.segments.GetSegment(one).GetRepresentation("Closed surface") is surface
        assert surface.GetMTime() == stamps[one], "those of other segments are not made anew"
    writer.set_threshold(0.999)
    write_all(writer)
    writer.update_surface()
    assert result.GetRepresentation("Closed surface") is not None


def test_no_surface_is_made_where_none_is_shown() -> None:
    bench = Bench()
    writer = bench.writer()
    bench.run(writer)
    finish(writer)
    assert not bench.segments.ContainsRepresentation("Closed surface")


def test_another_scan_gets_a_segmentation_of_its_own_under_its_transform() -> None:
    bench = Bench(seed=9)
    geometry = Geometry((5, 6, 7), (1, 2, 3), (50, 60, 70), random_direction(np.random.default_rng(2)))
    other = bench.scene.volume(np.zeros(geometry.shape, np.int16), geometry, name="MR")
    other.SetAndObserveTransformNodeID(bench.scene.transform(rigid(np.random.default_rng(3))).GetID())
    target = make_segmentation(other, "MR segmentation")
    templates = {1: SegmentTemplate.of(bench.segmentation, bench.ids[0]), 2: SegmentTemplate("from a file")}
    writer = ResultWriter(other, target, ScanCache().get(other), bench.support(), 1, templates)
    probability = np.random.default_rng(4).integers(0, 256, geometry.shape, dtype=np.uint8)
    for index in range(6):
        writer.add_slice(2, index, probability[:, index], 0.5)
    finish(writer)
    segments = target.GetSegmentation()
    assert segments.GetSegment(writer.segment_id(1)).GetName() == "liver (SDFSMIS)"
    assert segments.GetSegment(writer.segment_id(2)).GetName() == "from a file (SDFSMIS)"
    assert segments.GetSegment(writer.segment_id(2)).GetColor() != (0.5, 0.5, 0.5)
    assert np.array_equal(held(target, writer.segment_id(2), other), probability > 127)
    assert not held(target, writer.segment_id(1), other).any()
    assert segments.GetNumberOfLayers() == 2, "each result is alone in its labelmap"


def test_a_scan_of_512_x_512_x_300() -> None:
    """Exact at that size too; the times of the main thread are printed with -s."""
    times: dict[str, list[float]] = {}

    def timed(name: str, act: Callable[..., Any], *given: Any) -> Any:
        begun = time.perf_counter()
        try:
            return act(*given)
        finally:
            times.setdefault(name, []).append(time.perf_counter() - begun)

    geometry, scene, scans = Geometry((300, 512, 512), (0.7, 0.7, 2), (0, 0, 0), IDENTITY), MrmlScene(), ScanCache()
    voxels = np.zeros(geometry.shape, np.int16)
    voxels[:, ::7, ::5] = 100
    node = scene.volume(voxels, geometry)
    steps = scans.copy_steps(node)
    while timed("copy, one step", next, steps, None) is not None:
        pass
    scan, segmentation_node = scans.get(node), scene.segmentation(node)
    k, j, i = np.ogrid[:300, :512, :512]
    distance = ((k - 150) / 90) ** 2 + ((j - 256) / 100) ** 2 + ((i - 256) / 100) ** 2
    probability = np.clip(255 * (1.6 - distance) / 1.2, 0, 255).astype(np.uint8)
    mask = distance[150:151] < 1
    editor = scene.editor(segmentation_node, node)
    segment_id = editor.segment("liver")
    editor.paint(segment_id, mask, (150, 0, 0))
    painting = timed("read painting", read_painting, node, segmentation_node, [segment_id])
    assert painting.axis == 0 and [*painting.painted] == [(0, 150)]
    writer = ResultWriter(node, segmentation_node, scan, painting.support(scan), 0, {1: SegmentTemplate("liver")})
    for index in sorted(set(range(300)) - {150}, key=lambda index: abs(index - 150)):
        timed("take a slice", writer.add_slice, 1, index, probability[index], 0.5)
    while timed("write a block", writer.write_next, 150):
        pass
    timed("finish", finish, writer)
    for threshold in (0.4, 0.6, 0.5):
        writer.set_threshold(threshold)
        timed("another threshold", write_all, writer)
    expected = probability > 127
    expected[150] = mask
    labels = read_painting(node, segmentation_node, [writer.segment_id(1)]).labelmap().voxels
    assert np.array_equal(labels == 1, expected)
    editor.paint(writer.segment_id(1), mask, (20, 0, 0))
    assert timed("by hand", lambda: writer.corrected) == ((0, 20),)
    for name, seconds in times.items():
        print(f"{name:20s} {1000 * max(seconds):6.1f} ms at most, {len(seconds)} times")


def test_the_first_step_saves_the_state_for_undo_and_progress_is_counted() -> None:
    bench, saved = Bench(), []
    before, writer = bench.state(), bench.writer(save_undo=lambda: saved.append(1))
    assert writer.pending == 2
    assert writer.write_next() == 2 and saved == [1] and same_state(bench.state(), before)
    bench.run(writer)
    left = [writer.pending]
    while left[-1]:
        left.append(writer.write_next())
    assert left == sorted(left, reverse=True) and writer.pending == 0 and saved == [1]
    assert writer.painted_slices(1) == (2,) and writer.painted_slices(2) == (5,)


def test_a_run_without_any_slice_still_makes_its_segments() -> None:
    bench = Bench()
    target = make_segmentation(bench.node, "other")
    templates = {1: SegmentTemplate("liver"), 2: SegmentTemplate("spleen")}
    writer = ResultWriter(bench.node, target, bench.scan, SupportSet(()), 0, templates)
    assert writer.pending == 0
    while writer.write_next():
        pass
    assert target.GetSegmentation().GetNumberOfSegments() == 2 and writer.volume_ml(1) == 0


def test_undo_takes_back_what_was_written_in_place() -> None:
    bench = Bench(seed=3)
    writer = bench.writer()
    bench.run(writer)
    finish(writer)
    at_half = bench.held(writer)
    bench.editor.logic.SaveStateForUndo()
    writer.set_threshold(0.9)
    while writer.write_next():
        pass
    at_most = bench.held(writer)
    assert np.array_equal(at_most, bench.expected(0.9)) and not np.array_equal(at_most, at_half)
    bench.editor.logic.Undo()
    assert np.array_equal(bench.held(writer), at_half)
    bench.editor.logic.Redo()
    assert np.array_equal(bench.held(writer), at_most)


def test_all_who_look_at_the_segmentation_are_told_of_what_is_written() -> None:
    import slicer

    bench = Bench()
    bench.segmentation.CreateClosedSurfaceRepresentation()
    writer = bench.writer()
    bench.run(writer)
    write_all(writer)
    told: list[str] = []
    names = "SourceRepresentationModified", "RepresentationModified"
    for name in names:
        event = getattr(slicer.vtkSegmentation, name)
        bench.segmentation.AddObserver(event, lambda caller, event, name=name: told.append(name))
    stamp = bench.segments.GetSegment(writer.segment_id(1)).GetRepresentation("Binary labelmap").GetMTime()
    writer.set_threshold(0.7)
    assert writer.write_next() and told == [*names]
    assert bench.segments.GetSegment(writer.segment_id(1)).GetRepresentation("Binary labelmap").GetMTime() > stamp
    assert all(bench.segments.GetSegment(one).GetRepresentation("Closed surface") is not None for one in bench.ids)


@few
@given(seeds, st.sampled_from([0, 1, 2]))
def test_volumes_are_counted_as_slices_come_change_and_go(seed: int, axis: int) -> None:
    bench = Bench(axis=axis, seed=seed)
    writer = bench.writer()
    ml = np.prod(bench.geometry.spacing) / 1000

    def counted() -> bool:
        held = bench.held_masks(writer)
        return all(writer.volume_ml(label) == pytest.approx(held[label - 1].sum() * ml) for label in (1, 2))

    bench.run(writer, seed)
    finish(writer)
    assert counted()
    writer.set_threshold(0.8)
    for _ in range(2):
        writer.write_next()
        assert counted()
    bench.editor.paint(writer.segment_id(1), np.ones((2, 2, 2), dtype=bool), (3, 3, 3))
    assert counted()
    bench.editor.logic.Undo()
    write_all(writer)
    assert counted()


@pytest.mark.parametrize("filled", [False, True])
def test_a_result_that_came_to_lie_on_another_lattice_is_brought_back(filled: bool) -> None:
    bench = Bench(labels=1)
    first = bench.writer()
    finish(first)
    finer = other_lattice(bench.geometry, "finer")
    image = oriented_image(np.full(finer.shape, filled), ijk_to_ras(finer))
    bench.segments.GetSegment(first.segment_id(1)).AddRepresentation("Binary labelmap", image)
    bench.segments.GetSegment(first.segment_id(1)).SetTag("SDFSMIS.Slices", "0")
    bench.editor.paint(bench.ids[0], np.ones((1, 2, SHAPE[2]), dtype=bool), (2, 0, 0))  # so the slice is written
    writer = bench.writer(into={1: first.segment_id(1)})
    bench.run(writer)
    finish(writer)
    assert writer.corrected == (tuple((0, index) for index in range(SHAPE[0]) if index != 2) if filled else ())
    expected = np.ones(SHAPE, dtype=bool) if filled else bench.expected() == 1
    expected[2] = bench.painted[0][2]
    expected[2, :2] = True
    assert np.array_equal(bench.held(writer) == 1, expected)


def test_a_result_may_become_empty_and_full_again() -> None:
    bench = Bench(labels=1)
    bench.probabilities[1] = np.minimum(bench.probabilities[1], 200)
    bench.editor.erase(bench.ids[0], bench.painted[0])
    bench.editor.paint(bench.ids[0], np.ones((1, 1, 1), dtype=bool))
    writer = bench.writer()
    bench.run(writer)
    finish(writer)
    bench.editor.erase(writer.segment_id(1), np.ones(SHAPE, dtype=bool))
    assert len(writer.corrected) == SHAPE[0] and writer.volume_ml(1) == 0
    bench.editor.logic.Undo()
    for threshold in (0.9, 0.2):
        writer.set_threshold(threshold)
        write_all(writer)
        assert np.array_equal(bench.held(writer), bench.expected(threshold))
    assert writer.corrected == ()
