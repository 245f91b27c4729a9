"""Painted in several views: each axis is followed, crossing lines are held to, and the fusion is one result."""

from __future__ import annotations

import itertools
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch

from SDFSMISLib import InputError, Segmentation, Segmenter, SupportSet, Volume
from SDFSMISLib.errors import Cancelled
from SDFSMISLib.images.volume import Geometry
from SDFSMISLib.inference.remote import RemoteSegmenter
from SDFSMISLib.inference.run import EarlierResults, Result
from SDFSMISLib.inference.segmentation import AxisFusion
from SDFSMISLib.inference.volume_run import VolumeRun
from SDFSMISLib.model.built_in import Size, new_built_in
from SDFSMISLib.options import RunOptions
from SDFSMISLib.slices import SliceResult, SliceStack
from serving import running
from small_scans import BrightPipeline, ball_scan
from volume_examples import stored_otherwise

PLANES = [(0, 6), (1, 16), (2, 22)]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def segmenter() -> Segmenter:
    return Segmenter(BrightPipeline(), "bright")


@pytest.fixture(scope="module")
def built_in() -> Segmenter:
    torch.set_num_threads(1)
    return Segmenter.from_pretrained("built-in", "cpu")


@pytest.fixture(scope="module")
def tiny() -> Segmenter:
    """Real networks of the built-in kind, small and with random weights: for what is equal whatever they find."""
    torch.set_num_threads(1)
    return Segmenter(new_built_in(0, Size(resolution=32, channels=(16, 16))), "tiny")


def views(labelmap: Volume, *planes: tuple[int, int]) -> Volume:
    """The labelmap with nothing but these planes."""
    voxels = np.zeros_like(labelmap.voxels)
    for axis, index in planes:
        np.moveaxis(voxels, axis, 0)[index] = np.moveaxis(labelmap.voxels, axis, 0)[index]
    return replace(labelmap, voxels=voxels)


def support_of(scan: Volume, labelmap: Volume, *planes: tuple[int, int]) -> SupportSet:
    return SupportSet.from_labelmap(scan, views(labelmap, *planes), None)


def dice(found: np.ndarray, truth: np.ndarray) -> float:
    return 2 * np.count_nonzero(found & truth) / (np.count_nonzero(found) + np.count_nonzero(truth))


def noisy(shape: tuple[int, int, int] = (12, 36, 32)) -> tuple[Volume, Volume]:
    scan, labelmap = ball_scan(shape)
    noise = np.random.default_rng(0).normal(0, 10, shape)
    return replace(scan, voxels=(scan.voxels + noise).astype(np.int16)), labelmap


def assert_same(one: Segmentation, other: Segmentation) -> None:
    np.testing.assert_array_equal(one.labelmap.voxels, other.labelmap.voxels)
    for label, probability in one.probabilities.items():
        np.testing.assert_array_equal(probability, other.probabilities[label])
        np.testing.assert_array_equal(one.certainty[label], other.certainty[label])
    assert (one.axis, one.painted, one.planes, one.warnings) == (
        other.axis,
        other.painted,
        other.planes,
        other.warnings,
    )


@pytest.mark.parametrize("strategy", ["propagate", "independent"])
def test_planes_of_three_views_come_out_as_painted_in_one_result(segmenter: Segmenter, strategy: str) -> None:
    scan, labelmap = ball_scan()
    seen: list[SliceResult] = []
    support = support_of(scan, labelmap, *PLANES)
    found = segmenter.segment(scan, support, strategy, on_slice=seen.append)
    assert found.planes == tuple(PLANES) and found.painted == (6,) and found.axis == 0
    for axis, index in PLANES:
        planes = [np.moveaxis(volume.voxels, axis, 0)[index] for volume in (found.labelmap, labelmap)]
        np.testing.assert_array_equal(*planes)
    assert dice(found.labelmap.voxels == 1, labelmap.voxels == 1) > 0.98
    stages = [(one.axis, one.stage) for one in seen]
    assert [key for key, _ in itertools.groupby(stages)] == [*((a, "preview") for a in (0, 1, 2)), (0, "final")]
    assert [one.finished for one in seen if one.stage == "preview"] == list(range(1, seen[-1].total + 1))
    assert sorted(one.index for one in seen if one.stage == "final") == [k for k in range(12) if k != 6]


@pytest.mark.parametrize("planes", [[(1, 12), (2, 16)], [(0, 3), (0, 7), (2, 16)]])
def test_more_views_are_as_good_as_one(built_in: Segmenter, planes: list[tuple[int, int]]) -> None:
    """Of which one alone finds the ball to the voxel."""
    scan, labelmap = noisy((10, 28, 24))
    found = built_in.segment(scan, support_of(scan, labelmap, *planes))
    assert dice(found.labelmap.voxels == 1, labelmap.voxels == 1) > 0.98


def test_a_scan_stored_otherwise_gives_the_same_result(tiny: Segmenter) -> None:
    """Axes in another order and flipped: the same planes of the patient, painted there."""
    scan, labelmap = noisy((16, 20, 24))
    planes = [(0, 8), (1, 8), (2, 14)]
    scan, labelmap = (replace(one, geometry=replace(one.geometry, spacing=(1.0, 1.1, 1.2))) for one in (scan, labelmap))
    expected = tiny.segment(scan, support_of(scan, labelmap, *planes))
    order, flips = (2, 0, 1), (True, False, True)
    turned = {name: stored_otherwise(one, order, flips) for name, one in (("scan", scan), ("labels", labelmap))}
    there = [
        (order.index(axis), scan.geometry.shape[axis] - 1 - index if flips[order.index(axis)] else index)
        for axis, index in planes
    ]
    found = tiny.segment(turned["scan"], support_of(turned["scan"], turned["labels"], *there))
    same = stored_otherwise(expected.labelmap, order, flips).voxels == found.labelmap.voxels
    assert same.mean() > 0.999, "but for rounding"


def test_a_second_label_may_lie_in_another_view(segmenter: Segmenter) -> None:
    scan, labelmap = ball_scan((16, 40, 40))
    halves = labelmap.voxels.copy()
    halves[..., 23:] *= 2
    both = Volume(halves, scan.geometry)
    voxels = views(replace(both, voxels=np.where(halves == 1, halves, 0)), (0, 8)).voxels
    voxels += views(replace(both, voxels=np.where(halves == 2, halves, 0)), (1, 16)).voxels
    support = SupportSet.from_labelmap(scan, Volume(voxels, scan.geometry), None)
    assert [(one.plane.axis, one.index, set(np.unique(one.labels))) for one in support.slices] == [
        (0, 8, {0, 1}),
        (1, 16, {0, 2}),
    ]
    found = segmenter.segment(scan, support)
    assert set(np.unique(found.labelmap.voxels)) == {0, 1, 2}
    np.testing.assert_array_equal(found.labelmap.voxels[8] == 1, halves[8] == 1)
    np.testing.assert_array_equal(found.labelmap.voxels[:, 16] == 2, halves[:, 16] == 2)


def test_one_axis_is_not_changed_by_planes_of_others(tiny: Segmenter) -> None:
    scan, labelmap = noisy()
    alone = tiny.segment(scan, support_of(scan, labelmap, PLANES[0]))
    named = tiny.segment(scan, support_of(scan, labelmap, *PLANES), axis=0)
    np.testing.assert_array_equal(alone.probabilities[1][:6], named.probabilities[1][:6])
    assert named.axis == 0 and named.painted == (6,)


def test_a_structure_that_a_crossing_plane_shows_goes_on_and_ends_where_it_ends_there(built_in: Segmenter) -> None:
    """On the slices of one axis alone it is lost behind a gap of slices without contrast."""
    scan, labelmap = ball_scan((20, 26, 26), spacing=(1.0, 1.0, 1.0))
    voxels = scan.voxels.copy()
    voxels[12:14][labelmap.voxels[12:14] > 0] = 100  # as its surroundings
    scan = replace(scan, voxels=voxels)
    alone = built_in.segment(scan, support_of(scan, labelmap, (0, 9)))
    crossed = built_in.segment(scan, support_of(scan, labelmap, (0, 9), (1, 10)))
    one, both = (found.labelmap.voxels[12:15] > 0 for found in (alone, crossed))
    truth = labelmap.voxels[12:15] > 0
    assert dice(both, truth) > dice(one, truth)
    assert not crossed.labelmap.voxels[:, 10][labelmap.voxels[:, 10] == 0].any()


def test_strokes_hold_what_is_known_and_leave_the_rest_to_the_networks(segmenter: Segmenter) -> None:
    scan, labelmap = ball_scan((12, 40, 80))
    support = support_of(scan, labelmap, (0, 6))
    stroke = np.zeros((12, 40), dtype=bool)  # of a sagittal slice: here the structure is not
    stroke[5:8, 14:20] = True
    (plane,) = SupportSet.from_labelmap(scan, labelmap, axis=2, slices=[44]).slices
    corrected = replace(plane, labels=np.where(stroke, 0, plane.labels).astype(np.uint16), known=stroke)
    both = SupportSet((*support.slices, corrected), support.names)
    found = segmenter.segment(scan, both).labelmap.voxels
    assert not found[:, :, 44][stroke].any() and found[:, :, 44].any()
    np.testing.assert_array_equal(found[6][:, :44], labelmap.voxels[6][:, :44])
    others = np.abs(np.arange(80) - 44) > 12
    without = segmenter.segment(scan, support).labelmap.voxels
    assert dice(found[..., others] > 0, without[..., others] > 0) > 0.98


def test_a_support_set_with_strokes_is_kept(tmp_path) -> None:
    scan, labelmap = ball_scan()
    support = support_of(scan, labelmap, (0, 6))
    partly = replace(support.slices[0], known=labelmap.voxels[6] > 0)
    path = SupportSet((*support.slices, partly), support.names).save(tmp_path / "set.safetensors")
    loaded = SupportSet.load(path)
    assert loaded.slices[0].known is None and loaded.digest()[0] == support.digest()[0]
    np.testing.assert_array_equal(loaded.slices[1].known, partly.known)
    assert loaded.digest()[1] == partly.digest() != loaded.digest()[0]


def test_a_backend_gives_the_same_for_a_part_of_a_scan_and_for_another_one(tiny: Segmenter) -> None:
    scan, labelmap = noisy((6, 22, 20))
    halves = Volume(labelmap.voxels * np.where(np.arange(20) < 11, 1, 2).astype(np.uint8), scan.geometry)
    support = support_of(scan, halves, (0, 3), (2, 13))
    other = replace(scan, voxels=scan.voxels[:, ::-1].copy())
    with running(segmenter=tiny) as backend:
        for query, options in (
            (scan, {"strategy": "independent", "slices": [2, 3, 4]}),
            (other, {"labels": [2], "slices": [2]}),
        ):
            remote = RemoteSegmenter(backend.client()).segment(query, support, **options)
            assert_same(remote, tiny.segment(query, support, **options))


def test_a_backend_gives_the_same(tiny: Segmenter) -> None:
    """One label painted on an axial slice and corrected by a stroke on a coronal one, another on a sagittal one."""
    scan, labelmap = noisy((10, 30, 28))
    halves = Volume(labelmap.voxels * np.where(np.arange(28) < 16, 1, 2).astype(np.uint8), scan.geometry)
    axial, sagittal, coronal = (
        SupportSet.from_labelmap(scan, views(halves, (axis, k)), label, axis=axis).slices[0]
        for axis, k, label in ((0, 5, 1), (2, 19, 2), (1, 13, 1))
    )
    support = SupportSet((axial, sagittal, replace(coronal, known=np.arange(28) < 12 + np.zeros((10, 1)))))
    local = tiny.segment(scan, support)
    assert set(np.unique(local.labelmap.voxels)) == {0, 1, 2}
    seen: list[SliceResult] = []
    with running(segmenter=tiny) as backend:
        remote = RemoteSegmenter(backend.client()).segment(scan, support, on_slice=seen.append)
        assert backend.store.bytes == scan.voxels.nbytes, "slices of other views are not sent"
    assert_same(remote, local)
    assert {(one.label, one.axis, one.stage) for one in seen} == {
        (1, 0, "preview"),
        (2, 2, "preview"),
        (1, 0, "final"),
        (2, 0, "final"),
    }
    assert [one.finished for one in seen if one.stage == "preview"] == list(range(1, seen[-1].total + 1))


def test_a_label_of_which_no_slice_is_known_as_a_whole_is_refused(segmenter: Segmenter) -> None:
    scan, labelmap = ball_scan()
    (plane,) = support_of(scan, labelmap, (0, 6)).slices
    with pytest.raises(InputError, match="label 1 is known as a whole, only in part"):
        segmenter.segment(scan, SupportSet((replace(plane, known=plane.labels > 0),)))


def test_a_run_that_was_cut_goes_on_to_the_same_bytes(tiny: Segmenter) -> None:
    scan, labelmap = noisy((10, 30, 28))
    support = support_of(scan, labelmap, (0, 5), (2, 15))
    stacks = {axis: SliceStack.of(scan, axis) for axis in support.axes_on(scan, scan.content_hash())}

    def run(earlier: dict[int, EarlierResults] | None = None) -> VolumeRun:
        return VolumeRun(tiny.pipeline, stacks, {1: support.for_label(1)}, RunOptions(), earlier=earlier)

    def finals(results: list[Result]) -> dict[int, bytes]:
        return {
            one.index: one.probability.tobytes()
            for one in results
            if isinstance(one, SliceResult) and one.stage == "final"
        }

    with torch.no_grad():
        whole = [[*results] for results in run().steps()]
        for cut in (3, len(whole) // 2, len(whole) - 1):
            earlier = {axis: EarlierResults() for axis in stacks}
            for result in itertools.chain.from_iterable(whole[:cut]):
                if not isinstance(result, SliceResult) or result.stage == "preview":
                    earlier[result.axis].add(result)
            rest = [one for results in run(earlier).steps() for one in results]
            assert finals(rest) == finals([*itertools.chain.from_iterable(whole)])


def test_some_slices_of_the_main_axis_and_a_cancelled_run(segmenter: Segmenter) -> None:
    scan, labelmap = ball_scan()
    support = support_of(scan, labelmap, *PLANES)
    some = segmenter.segment(scan, support, slices=[4, 5, 6])
    assert np.flatnonzero(np.isfinite(some.certainty[1])).tolist() == [4, 5]
    assert dice(some.labelmap.voxels[4:7] > 0, labelmap.voxels[4:7] > 0) > 0.98
    count = itertools.count()
    with pytest.raises(Cancelled):
        segmenter.segment(scan, support, cancel=lambda: next(count) > 14)


def test_on_another_scan_all_planes_are_examples(segmenter: Segmenter) -> None:
    scan, labelmap = ball_scan()
    other, truth = ball_scan((14, 44, 40))
    found = segmenter.segment(other, support_of(scan, labelmap, *PLANES))
    assert found.axis == 0 and found.planes == ()
    assert dice(found.labelmap.voxels > 0, truth.voxels > 0) > 0.9


def test_slices_are_named_with_their_axis_where_several_were_painted() -> None:
    scan, labelmap = ball_scan()
    mask = views(labelmap, *PLANES)
    named = SupportSet.from_labelmap(scan, mask, slices=[(0, 6), (2, 22), (0, 1)])
    assert [(one.plane.axis, one.index, one.complete) for one in named.slices] == [
        (0, 1, True),
        (0, 6, True),
        (2, 22, True),
    ]
    with pytest.raises(InputError, match="Slice 6 was named without its axis.*0, 1, 2.*0:6"):
        SupportSet.from_labelmap(scan, mask, slices=[6])
    with pytest.raises(InputError, match="name it as 1:20, or"):
        SupportSet.from_labelmap(scan, mask, slices=[20])  # axis 0 has no such slice
    for index in (-1, 40):
        with pytest.raises(InputError, match=f"Slice {index} was named; .* 0 to 11 of axis 0 and .* 0 to 39 of axis 2"):
            SupportSet.from_labelmap(scan, mask, slices=[index])
    with pytest.raises(InputError, match="axis 2 of the scan has slices 0 to 39"):
        SupportSet.from_labelmap(scan, mask, slices=[(2, 40)])
    assert [one.index for one in SupportSet.from_labelmap(scan, mask, slices=[6], axis=0).slices] == [6]


def test_the_main_axis_has_most_planes_then_the_finest_pixels() -> None:
    grid = Geometry((20, 20, 20), (1.0, 1.0, 3.0), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    scan = Volume(np.zeros(grid.shape, dtype=np.int16), grid)
    structure = np.zeros(grid.shape, dtype=np.uint8)
    structure[5:15, 5:15, 5:15] = 1

    def axes(*planes: tuple[int, int]) -> tuple[int, ...]:
        return support_of(scan, Volume(structure, grid), *planes).axes_on(scan, scan.content_hash())

    assert axes((0, 10), (1, 10), (2, 10)) == (0, 1, 2)
    assert axes((1, 8), (1, 12), (0, 10)) == (1, 0)
    assert axes((2, 10), (1, 9)) == (1, 2)


def test_the_batch_size_changes_no_more_than_rounding(tiny: Segmenter) -> None:
    """In slices thinner than a stride, too."""
    scan, labelmap = noisy((24, 30, 28))
    geometry = replace(scan.geometry, spacing=(1.0, 1.0, 0.3))
    scan, labelmap = replace(scan, geometry=geometry), replace(labelmap, geometry=geometry)
    support = support_of(scan, labelmap, (0, 12))
    found = [tiny.segment(scan, support, batch_size=size).probabilities[1].astype(int) for size in (8, 1)]
    assert max(np.abs(found[0] - other).max() for other in found[1:]) <= 1


def test_a_fusion_is_many_steps_between_which_a_run_can_be_stopped(
    segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So other clients of a server get turns within it; and a cancelled one gives no fused slice."""
    monkeypatch.setattr("SDFSMISLib.images.fusion.BLOCK_VOXELS", 1)
    scan, labelmap = ball_scan()
    support = support_of(scan, labelmap, *PLANES)
    stacks = SliceStack.along(scan, [0, 1, 2])
    run = segmenter.run(stacks, support, RunOptions())
    stages = [{one.stage for one in results if isinstance(one, SliceResult)} for results in run.steps()]
    last_preview = max(step for step, seen in enumerate(stages) if "preview" in seen)
    first_final = min(step for step, seen in enumerate(stages) if "final" in seen)
    assert first_final - last_preview > scan.geometry.shape[0], "at least one step for each slice"
    seen: list[SliceResult] = []
    asked = itertools.count()

    def cancel() -> bool:
        is_previewed = bool(seen) and seen[-1].finished == seen[-1].total
        return is_previewed and next(asked) > 3

    with pytest.raises(Cancelled):
        segmenter.segment(scan, support, on_slice=seen.append, cancel=cancel)
    assert {one.stage for one in seen} == {"preview"}


def test_the_memory_that_a_fusion_says_it_takes_is_enough(segmenter: Segmenter) -> None:
    scan, labelmap = ball_scan()
    support = support_of(scan, labelmap, *PLANES)
    fusion = AxisFusion(SliceStack.of(scan, 0), (0, 1, 2), {1: support.for_label(1)})
    rng = np.random.default_rng(0)
    tracemalloc.start()
    for axis in range(3):
        for index, plane in enumerate(np.moveaxis(scan.voxels, axis, 0)):
            noise = rng.integers(1, 256, plane.shape, dtype=np.uint8)
            fusion.add(SliceResult(1, axis, index, noise, 1.0, 1, 1))
    said = fusion.bytes
    final = [one for batch in fusion.final(1, range(12), batch_size=1) for one in batch[:0]]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert final == [] and peak <= said
