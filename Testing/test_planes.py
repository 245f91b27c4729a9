"""Painted planes: a labelmap tells in which views it was painted, whatever the shape and the order of axes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from SDFSMISLib.images.planes import Plane, painted_planes

SHAPE = (36, 40, 44)


def ellipsoid(*radii: float) -> np.ndarray:
    places = np.stack(np.indices(SHAPE), axis=-1) - np.array((17, 21, 22))
    return np.linalg.norm(places / radii, axis=-1) < 1


def painted(structure: np.ndarray, planes: list[Plane]) -> np.ndarray:
    mask = np.zeros_like(structure)
    for axis, index in planes:
        np.moveaxis(mask, axis, 0)[index] |= np.moveaxis(structure, axis, 0)[index]
    return mask


BLOB = ellipsoid(9, 14, 12) & ~ellipsoid(5, 6, 20)  # with a hole through it
STRUCTURES = {"round": ellipsoid(10, 12, 11), "flat": ellipsoid(6, 17, 16), "hollow": BLOB}
VIEWS = {
    "one": [(0, 17)],
    "two views": [(0, 15), (2, 24)],
    "three views": [(0, 17), (1, 19), (2, 24)],
    "two and one": [(0, 14), (0, 19), (1, 22)],
    "three and two": [(0, 13), (0, 17), (0, 20), (2, 18), (2, 27)],
    "many": [(1, index) for index in range(12, 31, 3)],
    "every other one and another view": [*((0, index) for index in range(12, 22, 2)), (2, 25)],
    "beside each other": [(0, 16), (0, 17)],
    "five beside each other": [(1, index) for index in range(17, 22)],
    "five beside each other and another view": [*((0, index) for index in range(14, 19)), (2, 20)],
}


@pytest.mark.parametrize("views", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)
def test_planes_are_those_that_were_painted_in_any_order_of_the_axes(
    structure: np.ndarray, views: list[tuple[int, int]]
) -> None:
    planes = [Plane(*view) for view in views]
    mask = painted(structure, planes)
    for order in itertools.permutations(range(3)):
        expected = sorted(Plane(order.index(axis), index) for axis, index in planes)
        assert painted_planes(np.transpose(mask, order), default_axis=order.index(0)) == expected


@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)
@pytest.mark.parametrize("default_axis", [0, 1, 2])
def test_a_structure_painted_as_a_whole_is_slices_of_the_default_axis(structure: np.ndarray, default_axis: int) -> None:
    planes = painted_planes(structure, default_axis)
    assert {plane.axis for plane in planes} == {default_axis}
    assert len(planes) == np.count_nonzero(np.moveaxis(structure, default_axis, 0).any(axis=(1, 2)))


def test_planes_contain_every_painted_voxel() -> None:
    """Whatever was painted: strokes of a brush, noise, nothing."""
    rng = np.random.default_rng(0)
    assert painted_planes(np.zeros(SHAPE, dtype=bool), default_axis=0) == []
    for share in (0.001, 0.02, 0.3):
        mask = rng.random((12, 14, 16)) < share
        mask[3:6, 2:9, 4:6] = True
        assert np.array_equal(painted(mask, painted_planes(mask, default_axis=1)), mask)
