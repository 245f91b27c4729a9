"""Lanes of the propagation: together they visit every slice once, outwards from the painted ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from SDFSMISLib.inference.network_images import Shot
from SDFSMISLib.inference.propagate import NEAREST_PAINTED, lanes_from

MASK = np.ones((2, 2), dtype=bool)
SHOT = Shot(np.zeros((2, 2), dtype=np.float32), MASK, (1.0, 1.0))


def lanes(painted, count, wanted=None):
    starts = {index: MASK for index in painted}
    shots = {index: SHOT for index in painted}
    return lanes_from(1, starts, shots, [], wanted or list(range(count)), count)


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), min_size=1))))
def test_every_slice_is_answered_with_a_share_of_one_in_all_and_no_painted_one(case):
    count, painted = case
    shares: dict[int, float] = {}
    for lane in lanes(painted, count):
        for index in lane.path:
            shares[index] = shares.get(index, 0.0) + lane.share(index)
    assert set(shares) == set(range(count)) - painted
    assert all(share == pytest.approx(1.0) for share in shares.values())


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), min_size=1))))
def test_a_lane_goes_on_from_neighbour_to_neighbour(case):
    count, painted = case
    for lane in lanes(painted, count):
        steps = np.diff([lane.start, *lane.path])
        assert lane.start in painted and (np.abs(steps) == 1).all() and len(set(steps.tolist())) == 1


def test_a_slice_between_two_painted_ones_is_reached_from_both_and_the_nearer_counts_more():
    ways = {lane.start: lane for lane in lanes({2, 6}, 9) if lane.gap}
    assert {start: lane.path for start, lane in ways.items()} == {2: [3, 4, 5], 6: [5, 4, 3]}
    assert [ways[2].share(index) for index in (3, 4, 5)] == [0.75, 0.5, 0.25]


def test_only_lanes_with_a_painted_slice_ahead_outlast_an_empty_slice():
    assert [(lane.start, lane.gap) for lane in lanes({2, 5}, 8)] == [(2, None), (2, 3), (5, 3), (5, None)]


def test_lanes_go_no_further_than_the_wanted_slices_need():
    assert sorted(i for lane in lanes({10}, 50, wanted=[8, 13]) for i in lane.path) == [8, 9, 11, 12, 13]


def test_no_lane_enters_or_passes_a_slice_where_the_structure_is_not():
    absent = Shot(SHOT.image, ~MASK, (1.0, 1.0))
    ways = lanes_from(1, {4: MASK, 9: MASK}, {4: SHOT, 7: absent, 9: SHOT, 12: absent}, [], list(range(20)), 20)
    assert [(lane.start, lane.path, lane.gap) for lane in ways] == [
        (4, [3, 2, 1, 0], None),
        (4, [5, 6], None),
        (9, [8], None),
        (9, [10, 11], None),
    ]


def test_a_lane_that_sees_nothing_painted_here_looks_at_other_scans():
    absent = Shot(SHOT.image, ~MASK, (1.0, 1.0))
    (lane,) = lanes_from(1, {0: MASK}, {3: absent}, [absent, absent, absent, SHOT], [1], 4)
    assert lane.painted[0] is SHOT and lane.path == [1]


def test_a_lane_looks_at_a_bounded_number_of_painted_slices():
    assert {len(lane.painted) for lane in lanes(set(range(0, 40, 5)), 40)} == {NEAREST_PAINTED}
