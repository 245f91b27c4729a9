"""Tracks of the propagation: together they visit every slice once, outwards from the painted ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from SDFSMISLib.inference.network_images import Shot
from SDFSMISLib.inference.propagate import NEAREST_PAINTED, tracks_from

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
