"""From painted slices to a volume: strategies, regions, orientations, progress; on scans with a known answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from SDFSMISLib import InputError, Segmentation, Segmenter, SupportSet, Volume
from SDFSMISLib.cli.segment_run import passes_over_slices
from SDFSMISLib.errors import Cancelled
from SDFSMISLib.images.postprocess import Postprocessing
from SDFSMISLib.images.volume import Geometry
from SDFSMISLib.inference.network_images import Shot
from SDFSMISLib.model.built_in import new_built_in
from SDFSMISLib.model.likeness import likeness_table
from SDFSMISLib.model.unet import Hints, SupportBank
from SDFSMISLib.slices import SliceResult
from small_scans import BODY, ORGAN, BrightPipeline, ball_scan, painted_on
from volume_examples import stored_otherwise

MIDDLE = 5
STRATEGIES = ("propagate", "independent")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def segmenter() -> Segmenter:
    return Segmenter(BrightPipeline(), "bright")


@pytest.fixture(scope="module")
def small() -> Segmenter:
    """The built-in configuration with random weights: what it finds means nothing, how it runs does."""
    torch.set_num_threads(1)
    return Segmenter(new_built_in().to("cpu"), "random")


def support_of(scan: Volume, labelmap: Volume, *indices: int, axis: int = 0) -> SupportSet:
    return SupportSet.from_labelmap(scan, painted_on(labelmap, *indices, axis=axis), None, indices, axis)


def joined(*sets: SupportSet) -> SupportSet:
    return SupportSet(tuple(one for support in sets for one in support.slices), sets[0].names)


def overlap(segmentation: Segmentation, labelmap: Volume) -> float:
    ours, theirs = segmentation.labelmap.voxels > 0, labelmap.voxels > 0
    return 2 * np.count_nonzero(ours & theirs) / max(np.count_nonzero(ours) + np.count_nonzero(theirs), 1)


# -- what comes out -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("region", ["auto", "full"])
def test_one_painted_slice_gives_the_volume(segmenter: Segmenter, strategy: str, region: str) -> None:
    scan, labelmap = ball_scan()
    segmentation = segmenter.segment(scan, support_of(scan, labelmap, MIDDLE), strategy, region=region)
    assert overlap(segmentation, labelmap) > 0.95
    assert segmentation.labelmap.geometry == scan.geometry
    assert segmentation.labelmap.voxels.dtype == np.uint8
    assert segmentation.labelmap.segment_names == {1: "ball"}
    assert (segmentation.axis, segmentation.painted, segmentation.warnings) == (0, (MIDDLE,), [])
    assert not segmentation.labelmap.voxels[[0, 1, -2, -1]].any(), "the structure ends, and so does the result"
    probability = segmentation.probabilities[1]
    assert probability.dtype == np.uint8 and probability.max() == 255
    assert np.isnan(segmentation.certainty[1][MIDDLE]) and np.nanmin(segmentation.certainty[1]) >= 0


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("region", ["auto", "full"])
def test_another_scan_has_every_slice_computed(segmenter: Segmenter, strategy: str, region: str) -> None:
    """The slice where propagation starts is part of the result, too."""
    painted_scan, painted = ball_scan()
    scan, labelmap = ball_scan((14, 44, 36), (0.9, 1.1, 2.0))
    segmentation = segmenter.segment(scan, support_of(painted_scan, painted, MIDDLE), strategy, region=region)
    assert segmentation.painted == ()
    assert overlap(segmentation, labelmap) > 0.95
    held = labelmap.voxels.any(axis=(1, 2))
    assert (segmentation.labelmap.voxels.any(axis=(1, 2)) == held).all()


def test_painted_slices_come_out_as_painted(segmenter: Segmenter) -> None:
    """Also where the network and the clean-up would have it otherwise."""
    scan, labelmap = ball_scan()
    ring = labelmap.voxels.copy()
    ring[MIDDLE, 14:17, 20:23] = 0
    ring[MIDDLE, 1, 1] = 1
    support = support_of(scan, Volume(ring, scan.geometry), MIDDLE)
    cleaned = Postprocessing(smooth_mm=1.0, fill_holes=True, keep_largest="volume")
    segmentation = segmenter.segment(scan, support, postprocessing=cleaned)
    np.testing.assert_array_equal(segmentation.labelmap.voxels[MIDDLE], ring[MIDDLE])


def test_propagation_stops_where_the_structure_ends(segmenter: Segmenter) -> None:
    scan, labelmap = ball_scan((20, 40, 40), gap=(7, 8))
    support = support_of(scan, labelmap, 10)
    stopped = segmenter.segment(scan, support).labelmap.voxels.any(axis=(1, 2))
    assert stopped[9:14].all() and not stopped[:9].any()
    assert segmenter.segment(scan, support, "independent").labelmap.voxels[6].any()


def test_propagation_stops_where_the_tissue_under_the_mask_is_another_one() -> None:
    class Comparing(BrightPipeline):
        def encode_support(self, images: torch.Tensor, masks: torch.Tensor, *conditions: Any) -> SupportBank:
            bank = super().encode_support(images, masks, *conditions)
            return replace(bank, likeness=likeness_table(images[:, :, 0], masks))

    scan, labelmap = ball_scan((20, 40, 40))
    voxels = scan.voxels.copy()
    voxels[:12] = np.where(labelmap.voxels[:12] > 0, int(0.8 * ORGAN), voxels[:12])  # behind it bright too, but another
    changed = Volume(voxels, scan.geometry)
    held = [
        Segmenter(pipeline()).segment(changed, support_of(changed, labelmap, 10)).labelmap.voxels.any(axis=(1, 2))
        for pipeline in (BrightPipeline, Comparing)
    ]
    assert held[0][9:14].all()
    assert held[1][9:12].all() and not held[1][12:].any()


def test_the_border_that_is_carried_along_is_soft() -> None:
    class Watched(BrightPipeline):
        def hints(self, images: torch.Tensor, bank: SupportBank, *neighbours: torch.Tensor | None) -> Hints:
            carried.extend(mask for mask in neighbours[1:] if mask is not None)
            return super().hints(images, bank, *neighbours)

    carried: list[torch.Tensor] = []
    scan, labelmap = ball_scan((20, 40, 40), (1.0, 1.0, 4.0))
    Segmenter(Watched(answer=0.7)).segment(scan, support_of(scan, labelmap, 10))
    painted, later = carried[0], carried[-1]
    assert ((painted < 0.02) | (painted > 0.98)).float().mean() > ((later < 0.02) | (later > 0.98)).float().mean()
    assert 0.6 < later.max() < 0.9


def test_between_two_painted_slices_an_empty_one_is_passed(segmenter: Segmenter) -> None:
    scan, labelmap = ball_scan((20, 40, 40), gap=(8,))
    segmentation = segmenter.segment(scan, support_of(scan, labelmap, 6, 12))
    held = segmentation.labelmap.voxels.any(axis=(1, 2))
    np.testing.assert_array_equal(held, labelmap.voxels.any(axis=(1, 2)))


def test_what_joins_the_support_is_a_slice_with_its_own_mask() -> None:
    """Also behind an empty slice: the mask found before it does not lie on that slice's image."""

    class Watched(BrightPipeline):
        def encode_support(self, images: torch.Tensor, masks: torch.Tensor, *conditions: Any) -> SupportBank:
            darkest.append(float(images[:, :, 0][masks > 0.5].min()))
            return super().encode_support(images, masks, *conditions)

    darkest: list[float] = []
    scan, labelmap = ball_scan((20, 40, 40), gap=(8,))
    Segmenter(Watched()).segment(scan, support_of(scan, labelmap, 6, 12), region="full")
    assert len(darkest) > 2 and min(darkest) > 0.5


def test_a_scan_without_the_structure_comes_out_empty(segmenter: Segmenter) -> None:
    scan, labelmap = ball_scan()
    voxels = np.where(scan.voxels == ORGAN, BODY, scan.voxels)
    voxels[0, 0, 0] = ORGAN  # so that the window stays; too small to be a structure
    segmentation = segmenter.segment(Volume(voxels, scan.geometry), support_of(scan, labelmap, MIDDLE))
    assert not segmentation.labelmap.voxels.any()
    assert segmentation.volumes_ml() == {1: 0.0}


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_any_axis(segmenter: Segmenter, axis: int, strategy: str) -> None:
    scan, labelmap = ball_scan((16, 30, 36))
    index = int(np.argmax(labelmap.voxels.sum(axis=tuple({0, 1, 2} - {axis}))))
    segmentation = segmenter.segment(scan, support_of(scan, labelmap, index, axis=axis), strategy)
    assert (segmentation.axis, segmentation.painted) == (axis, (index,))
    assert overlap(segmentation, labelmap) > 0.9


def test_another_scan_is_cut_in_the_plane_of_the_painting(segmenter: Segmenter) -> None:
    """Its file may hold its axes in another order."""
    painted_scan, painted = ball_scan()
    scan, labelmap = ball_scan((12, 36, 44))
    turned, turned_labels = (stored_otherwise(one, (1, 2, 0), (True, False, True)) for one in (scan, labelmap))
    support = support_of(painted_scan, painted, MIDDLE)
    segmentation = segmenter.segment(turned, support)
    assert segmentation.axis == 2
    assert segmentation.warnings == []
    assert overlap(segmentation, turned_labels) > 0.95


def test_several_labels_and_a_choice_of_them(segmenter: Segmenter) -> None:
    scan, labelmap = ball_scan()
    halves = labelmap.voxels.astype(np.uint16) * 300
    halves[:, :, 24:] //= 100
    named = Volume(halves, scan.geometry, segment_names={3: "right", 300: "left"})
    support = support_of(scan, named, MIDDLE)
    both = segmenter.segment(scan, support)
    assert both.labelmap.voxels.dtype == np.uint16
    assert set(np.unique(both.labelmap.voxels)) <= {0, 3, 300}
    assert both.labelmap.segment_names == {3: "right", 300: "left"}
    assert sorted(both.probabilities) == sorted(both.voxel_counts()) == [3, 300]
    one = segmenter.segment(scan, support, labels=[300])
    assert sorted(one.probabilities) == [300]
    with pytest.raises(InputError, match="label 7; it has 3, 300"):
        segmenter.segment(scan, support, labels=[7])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_slice_that_only_says_not_here_leaves_the_other_scans_slices_in_use(strategy: str) -> None:
    """Painted on one scan; on the query a slice is named that does not hold the structure."""
    painted_scan, painted = ball_scan()
    scan, labelmap = ball_scan((14, 44, 36), (0.9, 1.1, 2.0))
    other = np.zeros_like(labelmap.voxels)
    other[1, 2:8, 2:8] = 2
    support = joined(support_of(painted_scan, painted, MIDDLE), support_of(scan, Volume(other, scan.geometry), 1))
    pipeline, told = BrightPipeline(), list[SliceResult]()
    segmentation = Segmenter(pipeline).segment(scan, support, strategy, labels=[1], on_slice=told.append)
    assert overlap(segmentation, labelmap) > 0.95
    assert pipeline.painted_pixels and min(pipeline.painted_pixels) > 0
    assert sorted(result.index for result in told) == [0, *range(2, 14)]


def test_propagation_does_not_pass_a_slice_that_was_named_as_empty(segmenter: Segmenter) -> None:
    scan, labelmap = ball_scan((20, 40, 40))
    drawn = painted_on(labelmap, 10)
    segmentation = segmenter.segment(scan, SupportSet.from_labelmap(scan, drawn, 1, [10, 12], 0))
    held = segmentation.labelmap.voxels.any(axis=(1, 2))
    assert held[11] and not held[12:].any() and held[8]


def test_labels_share_the_encoding_of_slices_that_they_see_alike() -> None:
    scan, labelmap = ball_scan()
    halves = labelmap.voxels * 1
    halves[:, :, 24:] *= 2
    support = support_of(scan, Volume(halves, scan.geometry), MIDDLE)
    pipeline = BrightPipeline()
    Segmenter(pipeline).segment(scan, support, "independent", region="full")
    assert pipeline.encoded == scan.slice_count(0) - 1
    assert sum(queries for queries, _ in pipeline.batches) == 2 * pipeline.encoded


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_low_threshold_holds_for_finding_the_structure_too(strategy: str) -> None:
    painted_scan, painted = ball_scan()
    scan, labelmap = ball_scan((14, 44, 36), (0.9, 1.1, 2.0))
    dim = Segmenter(BrightPipeline(answer=0.4))
    support = support_of(painted_scan, painted, MIDDLE)
    assert overlap(dim.segment(scan, support, strategy, threshold=0.3), labelmap) > 0.9
    assert not dim.segment(scan, support, strategy).labelmap.voxels.any()


def test_a_structure_too_fine_for_the_grid_is_still_painted() -> None:
    mask = np.zeros((400, 400), dtype=bool)
    mask[100, 200:202] = True
    shot = Shot(np.zeros((400, 400), dtype=np.float32), mask, (1.0, 1.0))
    painted = shot.on_grid(shot.region(full=True), 40)[1]
    assert set(painted.unique().tolist()) == {0.0, 1.0} and painted.sum() <= 4
    nothing = Shot(shot.image, np.zeros_like(mask), (1.0, 1.0))
    assert not nothing.on_grid(nothing.region(full=True), 40)[1].any()


def test_volumes_are_in_millilitres(segmenter: Segmenter) -> None:
    scan, labelmap = ball_scan(spacing=(0.5, 2.0, 3.0))
    segmentation = segmenter.segment(scan, support_of(scan, labelmap, MIDDLE))
    count = int(np.count_nonzero(segmentation.labelmap.voxels))
    assert segmentation.voxel_counts() == {1: count}
    assert segmentation.volumes_ml()[1] == pytest.approx(count * 3.0 / 1000)


def test_only_the_slices_that_are_asked_for(segmenter: Segmenter) -> None:
    scan, labelmap = ball_scan()
    segmentation = segmenter.segment(scan, support_of(scan, labelmap, MIDDLE), slices=[7])
    held = np.flatnonzero(segmentation.labelmap.voxels.any(axis=(1, 2)))
    assert held.tolist() == [MIDDLE, 7]


# -- how it runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("other", [False, True])
def test_every_open_slice_is_told_once(segmenter: Segmenter, strategy: str, other: bool) -> None:
    painted_scan, labelmap = ball_scan()
    scan = ball_scan((9, 40, 40))[0] if other else painted_scan
    told: list[SliceResult] = []
    segmentation = segmenter.segment(scan, support_of(painted_scan, labelmap, MIDDLE), strategy, on_slice=told.append)
    expected = [index for index in range(scan.slice_count(0)) if other or index != MIDDLE]
    assert sorted(result.index for result in told) == expected
    assert [result.finished for result in told] == list(range(1, len(expected) + 1))
    assert {result.total for result in told} == {len(expected)}
    for result in told:
        np.testing.assert_array_equal(result.probability, segmentation.probabilities[1][result.index])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_cancelling_stops_within_a_batch(segmenter: Segmenter, strategy: str) -> None:
    scan, labelmap = ball_scan()
    told: list[SliceResult] = []
    with pytest.raises(Cancelled):
        segmenter.segment(
            scan,
            support_of(scan, labelmap, MIDDLE),
            strategy,
            batch_size=2,
            on_slice=told.append,
            cancel=lambda: len(told) >= 3,
        )
    assert len(told) == 3


def test_memory_is_bounded_by_the_batch(segmenter: Segmenter) -> None:
    scan, labelmap = ball_scan((40, 40, 40))
    support = support_of(scan, labelmap, 12, 16, 20, 24, 28)
    for strategy in STRATEGIES:
        segmenter.segment(scan, support, strategy, batch_size=4)
    pipeline = segmenter.pipeline
    assert max(queries for queries, _ in pipeline.batches) <= 4
    assert max(shots for _, shots in pipeline.batches) <= 5


def test_the_same_run_gives_the_same_result(small: Segmenter) -> None:
    scan, labelmap = ball_scan((5, 40, 40))
    support = support_of(scan, labelmap, 2)
    first, second = (small.segment(scan, support) for _ in range(2))
    np.testing.assert_array_equal(first.probabilities[1], second.probabilities[1])
    one_by_one = small.segment(scan, support, "independent", batch_size=1).probabilities[1]
    together = small.segment(scan, support, "independent", batch_size=8).probabilities[1]
    assert np.abs(one_by_one.astype(int) - together.astype(int)).max() <= 1


def test_the_time_to_expect_is_measured(small: Segmenter) -> None:
    assert 0 < small.seconds_per_slice() < 60


# -- what a user is told --------------------------------------------------------------------------------------------


def test_unlike_scans_are_warned_of(segmenter: Segmenter) -> None:
    painted_scan, painted = ball_scan()
    support = support_of(painted_scan, painted, MIDDLE)
    coarse = ball_scan(spacing=(4.0, 4.0, 8.0))[0]
    assert "Pixels are 4 mm" in segmenter.segment(coarse, support).warnings[0]
    bright = Volume((painted_scan.voxels * 10).astype(np.int16), painted_scan.geometry)
    assert "another modality" in segmenter.segment(bright, support).warnings[0]
    assert "another anatomical plane" in segmenter.segment(ball_scan((30, 40, 40))[0], support, axis=1).warnings[0]


def test_only_slices_that_are_used_are_warned_of(segmenter: Segmenter) -> None:
    scan, labelmap = ball_scan()
    bright = Volume((scan.voxels * 10).astype(np.int16), scan.geometry)
    support = joined(support_of(bright, labelmap, MIDDLE), support_of(scan, labelmap, MIDDLE))
    assert segmenter.segment(scan, support).warnings == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slices": [12]}, "Slice 12 was given; axis 0 of the scan has the slices 0 to 11"),
        ({"slices": []}, "No slice was given"),
        ({"labels": []}, "nothing painted"),
        ({"window": "magic"}, "'magic'"),
    ],
)
def test_bad_options_are_named(segmenter: Segmenter, options: dict[str, object], message: str) -> None:
    scan, labelmap = ball_scan()
    with pytest.raises(InputError, match=message):
        segmenter.segment(scan, support_of(scan, labelmap, MIDDLE), **options)


# -- any grid -------------------------------------------------------------------------------------------------------

sides, steps = st.integers(1, 24), st.floats(0.2, 8)


@settings(max_examples=25)
@given(
    shape=st.tuples(sides, sides, sides),
    spacing=st.tuples(steps, steps, steps),
    axis=st.sampled_from([0, 1, 2]),
    dtype=st.sampled_from(["uint8", "int16", "float32"]),
    strategy=st.sampled_from(STRATEGIES),
    seed=st.integers(0, 1000),
)
def test_any_grid_keeps_its_geometry_and_its_painting(
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    axis: int,
    dtype: str,
    strategy: str,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    direction = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    geometry = Geometry(shape, spacing, (1.0, -2.0, 3.0), tuple(direction.ravel()))
    scan = Volume(rng.integers(0, 200, shape).astype(dtype), geometry)
    labels = (rng.random(shape) < 0.3).astype(np.uint8)
    labels.flat[0] = 1
    support = support_of(scan, Volume(labels, geometry), 0, axis=axis)
    segmentation = Segmenter(BrightPipeline(16)).segment(scan, support, strategy)
    assert segmentation.labelmap.geometry == geometry
    np.testing.assert_array_equal(segmentation.labelmap.slice(axis, 0), np.take(labels, 0, axis))
    assert segmentation.painted == (0,)


class Counting(BrightPipeline):
    """Of the built-in weights' kind, which registers, or of the paper's, which searches by its networks."""

    def __init__(self, takes_neighbours: bool) -> None:
        super().__init__()
        self.takes_neighbours = self.sees_contrast = takes_neighbours


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("painted_here", [True, False])
@pytest.mark.parametrize("takes_neighbours", [True, False])
def test_the_time_that_is_told_counts_the_passes_that_are_made(
    strategy: Any, painted_here: bool, takes_neighbours: bool
) -> None:
    ball, labels = ball_scan()
    voxels, painted = (np.repeat(one.voxels[MIDDLE : MIDDLE + 1], 40, axis=0) for one in (ball, labels))
    grid = replace(ball.geometry, shape=voxels.shape)
    scan, labelmap = Volume(voxels, grid), Volume(painted, grid)
    query = scan if painted_here else Volume(voxels[:-1].copy(), replace(grid, shape=(39, *voxels.shape[1:])))
    segmenter = Segmenter(Counting(takes_neighbours))
    segmenter.segment(query, support_of(scan, labelmap, 20), strategy)
    counted = sum(rows for rows, _ in segmenter.pipeline.batches)
    assert round(counted / 39) == passes_over_slices(strategy, painted_here, segmenter.searches)
