"""Fusion in 3D: nearer planes count more, planes come out as painted, and what is wrong on them is mended around."""

from __future__ import annotations

import itertools
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from SDFSMISLib.images import fusion
from SDFSMISLib.images.fusion import PlaneMask, correct, fuse, fuse_blocks, temporary_bytes
from SDFSMISLib.images.planes import Plane

SHAPE, SPACING = (10, 12, 14), (3.0, 1.0, 1.5)
RNG = np.random.default_rng(0)
FOUND = {axis: RNG.integers(0, 256, SHAPE, dtype=np.uint8) for axis in range(3)}


def plane_mask(axis: int, index: int) -> PlaneMask:
    side = [length for other, length in enumerate(SHAPE) if other != axis]
    mask = np.zeros(side, dtype=bool)
    mask[2:7, 3:8] = True
    return PlaneMask(Plane(axis, index), mask)


PLANES = [plane_mask(0, 4), plane_mask(1, 5), plane_mask(2, 6)]


def on(volume: np.ndarray, plane: Plane) -> np.ndarray:
    return np.moveaxis(volume, plane.axis, 0)[plane.index]


def test_a_transposed_scan_gives_the_transposed_result() -> None:
    """Planes first to last, so that the same one counts where they cross."""
    expected = fuse(FOUND, PLANES, SPACING)
    for order in itertools.permutations(range(3)):
        turned = {order.index(axis): np.transpose(one, order) for axis, one in FOUND.items()}
        planes = []
        for one in PLANES:
            inside = [axis for axis in order if axis != one.plane.axis]
            mask = one.mask if inside == sorted(inside) else one.mask.T
            planes.append(PlaneMask(Plane(order.index(one.plane.axis), one.plane.index), mask))
        found = fuse(turned, planes, tuple(SPACING[axis] for axis in order))
        assert np.abs(np.transpose(expected, order).astype(int) - found).max() <= 1  # rounding


def test_planes_come_out_as_painted_and_the_later_of_two_counts() -> None:
    fused = fuse(FOUND, PLANES, SPACING)
    last = PLANES[-1]
    np.testing.assert_array_equal(on(fused, last.plane), 255 * last.mask)
    assert set(np.unique(on(fused, PLANES[0].plane))) == {0, 255}
    turned = fuse(FOUND, PLANES[::-1], SPACING)
    np.testing.assert_array_equal(on(turned, PLANES[0].plane), 255 * PLANES[0].mask)


def test_only_what_is_known_of_a_plane_is_held() -> None:
    known = np.zeros_like(PLANES[0].mask)
    known[3:5] = True
    partly = fuse(FOUND, [replace(PLANES[0], known=known), *PLANES[1:]], SPACING)
    held = np.ones_like(known)
    held[5], held[:, 6] = False, False  # the lines of the other planes, which come later
    plane = on(partly, PLANES[0].plane)
    np.testing.assert_array_equal(plane[known & held], 255 * PLANES[0].mask[known & held])
    assert len(np.unique(plane[~known])) > 2


def test_the_axis_of_the_nearer_plane_counts_more() -> None:
    ones, zeros = np.full(SHAPE, 255, dtype=np.uint8), np.zeros(SHAPE, dtype=np.uint8)
    unknown = [replace(one, known=np.zeros_like(one.mask)) for one in PLANES[:2]]
    fused = fuse({0: ones, 1: zeros}, unknown, (10.0, 10.0, 1.0))
    assert fused[4, 11, 0] > 200 > fused[0, 5, 0] and fused[0, 5, 0] < 55


def test_an_axis_whose_slices_have_long_pixels_counts_less() -> None:
    """Sagittal slices through axial ones of 10 mm: the axial ones count more, even far from their painted slice."""
    ones, zeros = np.full(SHAPE, 255, dtype=np.uint8), np.zeros(SHAPE, dtype=np.uint8)
    unknown = [replace(one, known=np.zeros_like(one.mask)) for one in (PLANES[0], PLANES[2])]
    thick, fine = ((fuse({0: ones, 2: zeros}, unknown, (size, 1.0, 1.0))[2, 6, 6]) for size in (10.0, 1.0))
    assert thick > 180 > 140 > fine


@pytest.mark.parametrize("wrong_axis", [0, 2])
def test_an_axis_that_is_wrong_on_the_planes_of_the_others_counts_less(
    wrong_axis: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = np.zeros(SHAPE, dtype=bool)
    truth[:, 2:10, 3:12] = True
    planes = [PlaneMask(Plane(axis, index), truth.take(index, axis)) for axis, index in ((0, 5), (2, 6))]
    found = {
        axis: np.zeros(SHAPE, dtype=np.uint8) if axis == wrong_axis else 255 * truth.astype(np.uint8) for axis in (0, 2)
    }
    for axis, index in (one.plane for one in planes):  # each axis agrees with its own plane
        np.moveaxis(found[axis], axis, 0)[index] = 255 * truth.take(index, axis)
    far_apart = (30.0, 30.0, 30.0)
    trusted = fuse(found, planes, far_apart)[truth].mean()
    monkeypatch.setattr(fusion, "MISTRUST", 0)
    assert trusted > 1.2 * fuse(found, planes, far_apart)[truth].mean()


def test_what_an_axis_has_wrong_on_another_ones_plane_is_mended_before_its_own_plane_outweighs_it() -> None:
    ones, truth = np.full(SHAPE, 255, dtype=np.uint8), np.zeros(SHAPE, dtype=bool)
    truth[:, :, :6] = True
    planes = [PlaneMask(Plane(0, 5), truth[5]), PlaneMask(Plane(1, 6), truth[:, 6])]
    fused = fuse({0: ones, 1: ones}, planes, SPACING)
    assert fused[5, 7, 9] == 0 and fused[6, 7, 9] < 60 and fused[0, 1, 2] == 255


@pytest.mark.parametrize("block", [1, 500, 1 << 23])
def test_blocks_change_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = fuse(FOUND, PLANES, SPACING)
    monkeypatch.setattr(fusion, "BLOCK_VOXELS", block)
    np.testing.assert_array_equal(fuse(FOUND, PLANES, SPACING), expected)


def test_it_gives_way_after_each_block_and_what_follows_is_left_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion, "BLOCK_VOXELS", 2 * SHAPE[1] * SHAPE[2])
    expected, result = fuse(FOUND, PLANES, SPACING), np.zeros(SHAPE, dtype=np.uint8)
    steps = fuse_blocks(result, FOUND, PLANES, SPACING)
    done = [int(result.any(axis=(1, 2)).sum()) for _ in steps]
    assert done == [*[0] * 2 * len(FOUND), 2, 4, 6, 8, 10], "twice for each axis, and after each block of two slices"
    np.testing.assert_array_equal(result, expected)
    partly = np.zeros(SHAPE, dtype=np.uint8)
    for _ in itertools.islice(fuse_blocks(partly, FOUND, PLANES, SPACING), 2 * len(FOUND) + 2):
        pass
    assert not partly[4:].any()


@pytest.mark.parametrize("shape", [(24, 40, 40), (6, 80, 80)])
def test_it_takes_no_more_memory_than_it_says(shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion, "BLOCK_VOXELS", 5000)
    found = {axis: RNG.integers(0, 256, shape, dtype=np.uint8) for axis in range(3)}
    planes = []
    for axis in (0, 1, 2, 0, 1, 2):
        sides = [side for other, side in enumerate(shape) if other != axis]
        known = np.ones(sides, dtype=bool) if len(planes) > 2 else None
        planes.append(PlaneMask(Plane(axis, len(planes)), np.ones(sides, dtype=bool), known))
    held_in_planes = sum(16 * one.mask.size for one in planes)  # their masks, and what each axis and all have wrong
    fuse(found, planes, SPACING)
    tracemalloc.start()
    fuse(found, planes, SPACING)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= found[0].nbytes + temporary_bytes(shape) + held_in_planes


def test_what_is_wrong_on_a_plane_is_mended_around_it_and_less_farther_away() -> None:
    too_much = np.full(SHAPE, 180, dtype=np.uint8)
    mended = correct(too_much, [PLANES[0]], SPACING)
    np.testing.assert_array_equal(mended[4], 255 * PLANES[0].mask)
    inside, outside = mended[:, 3, 4].astype(int), mended[:, 0, 0].astype(int)
    assert (np.diff(inside[4:]) <= 0).all() and (np.diff(outside[4:]) >= 0).all()
    assert inside[5] > 180 > outside[5]


def test_a_plane_that_agrees_changes_nothing() -> None:
    agreeing = FOUND[0].copy()
    agreeing[4] = 255 * PLANES[0].mask
    np.testing.assert_array_equal(correct(agreeing, [PLANES[0]], SPACING), agreeing)


def test_the_same_error_on_two_neighbours_is_mended_once() -> None:
    half = np.full(SHAPE, 128, dtype=np.uint8)
    one, both = (correct(half, [replace(PLANES[0], plane=Plane(0, k)) for k in ks], SPACING) for ks in ([5], [4, 5]))
    np.testing.assert_array_equal(both[6:], one[6:])


def test_unknown_pixels_of_a_plane_take_nothing_from_what_its_neighbour_mends() -> None:
    half, known = np.full(SHAPE, 128, dtype=np.uint8), np.zeros_like(PLANES[0].mask)
    alone = correct(half, [PLANES[0]], SPACING)
    unknown = replace(PLANES[0], plane=Plane(0, 5), known=known)
    np.testing.assert_array_equal(correct(half, [PLANES[0], unknown], SPACING), alone)


def test_strokes_on_a_scan_that_was_segmented_by_examples_of_another_change_only_their_surroundings() -> None:
    found, unknown = np.zeros(SHAPE, dtype=np.uint8), np.zeros_like(PLANES[0].mask)
    found[:, 2:10, 3:12] = 255
    known = unknown.copy()
    known[3, 3] = True
    erased = fuse({0: found}, [replace(PLANES[0], mask=unknown, known=known)], SPACING)
    assert erased[4, 3, 3] == 0 and (erased[:, 5:10, 6:12] == 255).all()
    other_axis = fuse({0: found}, [replace(PLANES[2], known=np.zeros_like(PLANES[2].mask))], SPACING)
    np.testing.assert_array_equal(other_axis, found)


# -- what finished scans let expect


def test_a_prior_is_fused_with_the_axes_and_agrees_with_the_planes() -> None:
    prior = np.full(SHAPE, 255, dtype=np.uint8)
    fused = fuse(FOUND, PLANES, SPACING, prior)
    for one in PLANES[-1:]:  # of planes that cross the later one counts
        np.testing.assert_array_equal(on(fused, one.plane), 255 * one.mask.astype(np.uint8))
    assert fuse(FOUND, [], SPACING, prior).mean() > fuse(FOUND, [], SPACING).mean()


def test_a_transposed_prior_gives_the_transposed_result() -> None:
    prior = RNG.integers(0, 256, SHAPE, dtype=np.uint8)
    expected = fuse({0: FOUND[0]}, PLANES[:1], SPACING, prior)
    turned = fuse({2: FOUND[0].T}, [plane_of_last_axis()], SPACING[::-1], prior.T)
    assert np.abs(expected.T.astype(int) - turned).max() <= 1  # rounding


def plane_of_last_axis() -> PlaneMask:
    one = PLANES[0]
    return PlaneMask(Plane(2, one.plane.index), one.mask.T)


def test_the_more_a_prior_is_wrong_on_a_plane_the_less_it_counts_elsewhere() -> None:
    nothing = np.zeros((40, 12, 14), dtype=np.uint8)
    painted = plane_mask(0, 0)
    right, wrong = np.zeros_like(nothing), np.zeros_like(nothing)
    right[:, 2:7, 3:8] = wrong[:, 2:7, 3:8] = 255
    wrong[0] = np.roll(wrong[0], 6, axis=0)
    away = 8, 4, 5
    trusted, doubted = (int(fuse({0: nothing}, [painted], (3.0, 1.0, 1.0), one)[away]) for one in (right, wrong))
    assert doubted + 50 < trusted
