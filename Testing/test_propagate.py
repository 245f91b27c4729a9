"""Tracks of the propagation: together they visit every slice once, outwards from the painted ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from SDFSMISLib.images.geometry import Geometry
from SDFSMISLib.images.volume import Volume
from SDFSMISLib.inference.network_images import Shot
from SDFSMISLib.inference.painted_shapes import Between, Taper
from SDFSMISLib.inference.propagate import NEAREST_PAINTED, Track, tracks_from
from SDFSMISLib.slices import SliceStack

MASK = np.ones((2, 2), dtype=bool)
SHOT = Shot(np.zeros((2, 2), dtype=np.float32), MASK, (1.0, 1.0))


def tracks(painted, count, requested=None):
    starts = {index: MASK for index in painted}
    shots = {index: SHOT for index in painted}
    return tracks_from(1, starts, shots, [], requested or list(range(count)), count)


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), min_size=1))))
def test_the_weights_of_every_slice_sum_to_one_and_no_painted_slice_is_visited(case):
    count, painted = case
    weights: dict[int, float] = {}
    for track in tracks(painted, count):
        for index in track.path:
            weights[index] = weights.get(index, 0.0) + track.weight(index)
    assert set(weights) == set(range(count)) - painted
    assert all(weight == pytest.approx(1.0) for weight in weights.values())


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), min_size=1))))
def test_a_track_goes_on_from_neighbour_to_neighbour(case):
    count, painted = case
    for track in tracks(painted, count):
        steps = np.diff([track.start, *track.path])
        assert track.start in painted and (np.abs(steps) == 1).all() and len(set(steps.tolist())) == 1


def test_a_slice_between_two_painted_ones_is_reached_from_both_and_the_nearer_counts_more():
    made = {track.start: track for track in tracks({2, 6}, 9) if track.gap}
    assert {start: track.path for start, track in made.items()} == {2: [3, 4, 5], 6: [5, 4, 3]}
    assert [made[2].weight(index) for index in (3, 4, 5)] == [0.75, 0.5, 0.25]


def test_only_tracks_with_a_painted_slice_ahead_outlast_an_empty_slice():
    assert [(track.start, track.gap) for track in tracks({2, 5}, 8)] == [(2, None), (2, 3), (5, 3), (5, None)]


def test_tracks_go_no_further_than_the_requested_slices_need():
    assert sorted(i for track in tracks({10}, 50, requested=[8, 13]) for i in track.path) == [8, 9, 11, 12, 13]


def test_no_track_enters_or_passes_a_slice_where_the_structure_is_not():
    absent = Shot(SHOT.image, ~MASK, (1.0, 1.0))
    made = tracks_from(1, {4: MASK, 9: MASK}, {4: SHOT, 7: absent, 9: SHOT, 12: absent}, [], list(range(20)), 20)
    assert [(track.start, track.path, track.gap) for track in made] == [
        (4, [3, 2, 1, 0], None),
        (4, [5, 6], None),
        (9, [8], None),
        (9, [10, 11], None),
    ]


def test_a_track_that_sees_nothing_painted_here_looks_at_other_scans():
    absent = Shot(SHOT.image, ~MASK, (1.0, 1.0))
    (track,) = tracks_from(1, {0: MASK}, {3: absent}, [absent, absent, absent, SHOT], [1], 4)
    assert track.painted[0] is SHOT and track.path == [1]


def test_a_track_looks_at_a_bounded_number_of_painted_slices():
    assert {len(track.painted) for track in tracks(set(range(0, 40, 5)), 40)} == {NEAREST_PAINTED}


# -- behind the outermost of several painted slices


def disc(radius: float) -> np.ndarray:
    rows, columns = np.ogrid[:40, :40]
    return (rows - 20) ** 2 + (columns - 20) ** 2 <= radius**2


def taper_behind(painted: dict[int, np.ndarray], thickness: float = 3.0) -> Taper | None:
    """That of the track from the last painted slice upwards."""
    grid = Geometry((20, 40, 40), (1.0, 1.0, thickness), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    scan = SliceStack.of(Volume(np.zeros(grid.shape, dtype=np.int16), grid), axis=0)
    shots = {index: Shot(np.zeros(mask.shape, dtype=np.float32), mask, (1.0, 1.0)) for index, mask in painted.items()}
    outwards = tracks_from(1, painted, shots, [], list(range(20)), 20)[-1]
    assert outwards.path == list(range(max(painted) + 1, 20))
    return Taper.of(outwards, scan)


def test_a_structure_that_shrinks_towards_the_last_painted_slice_shrinks_on_behind_it_and_ends() -> None:
    taper = taper_behind({0: disc(16), 4: disc(12), 8: disc(8)})
    assert taper is not None
    areas = [np.count_nonzero(taper.reaches(distance)) for distance in range(1, 8)]
    assert disc(8).sum() > areas[0] > areas[1] > areas[2] > areas[-1] == 0


def test_a_structure_that_stays_may_go_on_but_not_beside_what_was_painted() -> None:
    taper = taper_behind({1: disc(8), 4: disc(8), 8: disc(8)})
    assert taper is not None
    np.testing.assert_array_equal(taper.reaches(11), disc(8))


def test_an_oblique_structure_may_go_on_where_it_is_heading() -> None:
    taper = taper_behind({0: disc(5), 4: np.roll(disc(5), 3, axis=1), 8: np.roll(disc(5), 6, axis=1)})
    assert taper is not None
    reached = taper.reaches(4)
    assert reached[20, 29] and not reached[20, 20]


def test_a_thin_sheet_that_moves_from_slice_to_slice_does_not_end_by_that() -> None:
    sheets = [np.roll(disc(15) & (abs(np.arange(40) - 20) < 2), move, axis=1) for move in (0, 4, 1)]
    assert taper_behind({0: sheets[0], 4: sheets[1], 8: sheets[2]}) is None
    assert taper_behind({0: sheets[0], 4: sheets[0], 8: sheets[0]}) is not None


def test_slices_side_by_side_or_only_two_do_not_tell_how_a_structure_ends() -> None:
    for painted in ({8: 8}, {4: 12, 8: 8}, {7: 9, 8: 8}):
        assert taper_behind({index: disc(radius) for index, radius in painted.items()}) is None
    assert taper_behind({4: disc(12), 7: disc(9), 8: disc(8)}) is not None


def test_a_part_behind_a_slice_without_the_structure_does_not_tell_how_another_one_ends() -> None:
    nothing = np.zeros((40, 40), dtype=bool)
    masks = {0: disc(16), 3: disc(14), 6: nothing, 9: disc(8)}
    shots = {index: Shot(np.zeros(mask.shape, dtype=np.float32), mask, (1.0, 1.0)) for index, mask in masks.items()}
    starts = {index: mask for index, mask in masks.items() if mask.any()}
    outwards = tracks_from(1, starts, shots, [], list(range(20)), 20)[-1]
    assert outwards.path[0] == 10 and not outwards.behind


# -- between two painted slices

GAP_GRID = Geometry((20, 40, 40), (1.0, 1.0, 3.0), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
GAP_SCAN = SliceStack.of(Volume(np.zeros(GAP_GRID.shape, dtype=np.int16), GAP_GRID), axis=0)
TRACE = np.full((40, 40), 10, dtype=np.uint8)


def inwards(first: np.ndarray, second: np.ndarray) -> list[Track]:
    """The tracks from either of two painted slices, 4 and 12, to the other one."""
    shots = {k: Shot(np.zeros((40, 40), dtype=np.float32), mask, (1.0, 1.0)) for k, mask in ((4, first), (12, second))}
    return [track for track in tracks_from(1, {4: first, 12: second}, shots, [], list(range(20)), 20) if track.gap]


def found_between(track: Track, probability: np.ndarray, share: float = 0.5) -> np.ndarray:
    between = Between.of(track, GAP_SCAN)
    assert between is not None
    return between.combine(probability, share, 0.5) > 127


def test_a_lost_structure_is_taken_to_change_evenly_from_one_painted_slice_to_the_next() -> None:
    upwards, downwards = inwards(disc(12), disc(8))
    np.testing.assert_array_equal(found_between(upwards, TRACE), found_between(downwards, TRACE))
    areas = [np.count_nonzero(found_between(upwards, TRACE, share)) for share in (0.1, 0.3, 0.5, 0.7, 0.9)]
    assert disc(12).sum() >= areas[0] and all(np.diff(areas) < 0) and areas[-1] >= disc(8).sum()


def test_a_lost_oblique_structure_is_found_on_its_way() -> None:
    way = found_between(inwards(np.roll(disc(4), -10, axis=1), np.roll(disc(4), 10, axis=1))[0], TRACE)
    assert way[20, 20] and not way[20, [10, 30]].any()


def test_a_structure_of_which_the_networks_find_no_trace_is_absent() -> None:
    assert not found_between(inwards(disc(8), disc(8))[0], np.zeros((40, 40), dtype=np.uint8)).any()


def test_a_trace_elsewhere_is_none_of_the_structure() -> None:
    elsewhere = np.zeros((40, 40), dtype=np.uint8)
    elsewhere[2, 2] = 200
    track = inwards(disc(6), disc(6))[0]
    assert not found_between(track, elsewhere).any()
    np.testing.assert_array_equal(found_between(track, np.maximum(elsewhere, TRACE))[8:], disc(6)[8:])


def test_masks_that_are_little_alike_leave_the_background_as_it_is() -> None:
    first, second = disc(9), np.roll(disc(3), 11, axis=1) & ~disc(8)
    between = Between.of(inwards(first, second)[0], GAP_SCAN)
    assert between is not None and 0 < between.likeness < 0.5
    found = between.combine(TRACE, 0.5, 0.5)
    around = np.hypot(*(np.mgrid[:40, :40] - 20)) < 17
    assert found[~around].max() < 40


@pytest.mark.parametrize("move", [0, 1, 3, 5])
def test_a_line_of_one_pixel_stays_one_where_it_moves(move: int) -> None:
    line = np.zeros((40, 40), dtype=bool)
    line[10:30, 18] = True
    track = inwards(line, np.roll(line, move, axis=1))[0]
    areas = {int(found_between(track, TRACE, share).sum()) for share in (0.1, 0.3, 0.5, 0.7, 0.9)}
    assert areas == {20}


def test_what_the_networks_find_counts_more_than_what_is_expected_unless_they_lose_the_structure() -> None:
    (upwards, _), bulge = inwards(disc(8), disc(8)), np.roll(disc(8), 2, axis=0)
    np.testing.assert_array_equal(found_between(upwards, 255 * bulge.astype(np.uint8)), bulge)
    np.testing.assert_array_equal(found_between(upwards, 255 * disc(8).astype(np.uint8)), disc(8))
    remnant = np.roll(disc(2), 6, axis=0)
    assert found_between(upwards, 255 * remnant.astype(np.uint8)).sum() > disc(6).sum()


def test_masks_that_share_nothing_let_nothing_be_expected() -> None:
    """A ring around the other mask; and a move of 30 mm between slices that are 24 mm apart."""
    assert Between.of(inwards(disc(16) & ~disc(12), disc(6))[0], GAP_SCAN) is None
    left, right = (np.roll(disc(4), columns, axis=1) for columns in (-15, 15))
    assert Between.of(inwards(left, right)[0], GAP_SCAN) is None


def test_only_tracks_to_another_painted_slice_expect_a_shape() -> None:
    shots = {k: Shot(np.zeros((40, 40), dtype=np.float32), disc(6), (1.0, 1.0)) for k in (4, 12)}
    made = tracks_from(1, {4: disc(6), 12: disc(6)}, shots, [], list(range(20)), 20)
    assert [Between.of(track, GAP_SCAN) is None for track in made] == [True, False, False, True]
