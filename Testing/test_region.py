"""Regions: a square of the slice goes to the network's grid and comes back to where it was."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from SDFSMISLib.inference.network_images import Region

sides = st.integers(1, 60)
spacings = st.floats(0.2, 8.0)


@st.composite
def painted_slices(draw):
    shape = (draw(sides), draw(sides))
    rows = sorted((draw(st.integers(0, shape[0] - 1)), draw(st.integers(0, shape[0] - 1))))
    columns = sorted((draw(st.integers(0, shape[1] - 1)), draw(st.integers(0, shape[1] - 1))))
    mask = np.zeros(shape, dtype=bool)
    mask[rows[0] : rows[1] + 1, columns[0] : columns[1] + 1] = True
    return mask, (draw(spacings), draw(spacings))


@given(painted_slices())
def test_the_region_around_a_structure_holds_all_of_it(painted):
    mask, spacing = painted
    region = Region.around(mask, spacing)
    assert region.cut(mask, 0).sum() == mask.sum()


@given(painted_slices())
def test_a_region_is_square_in_millimetres_up_to_a_pixel(painted):
    mask, spacing = painted
    for region in (Region.around(mask, spacing), Region.whole(mask.shape, spacing)):
        assert abs(region.height * spacing[0] - region.width * spacing[1]) <= spacing[0] + spacing[1]


@given(painted_slices())
def test_the_whole_region_holds_the_whole_slice(painted):
    mask, spacing = painted
    assert Region.whole(mask.shape, spacing).cut(np.ones(mask.shape), 0).sum() == mask.size


@given(painted_slices(), st.integers(0, 2**32 - 1))
def test_pasting_what_was_cut_gives_the_slice_back_inside_the_region(painted, seed):
    mask, spacing = painted
    image = np.random.default_rng(seed).random(mask.shape, dtype=np.float32)
    region = Region.around(mask, spacing)
    back = region.paste(region.cut(image, -1.0), image.shape)
    inside = region.paste(np.ones((region.height, region.width), dtype=bool), image.shape)
    assert np.array_equal(back[inside], image[inside])
    assert not back[~inside].any()


def test_an_empty_mask_gives_the_whole_slice():
    assert Region.around(np.zeros((20, 30), dtype=bool), (1, 1)) == Region.whole((20, 30), (1, 1))


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 2.0), (3.0, 0.7)])
def test_a_disc_comes_back_from_the_grid_where_it_was(spacing):
    rows, columns = np.mgrid[:120, :150]
    disc = ((rows - 50) * spacing[0]) ** 2 + ((columns - 80) * spacing[1]) ** 2 < (16 * max(spacing)) ** 2
    region = Region.around(disc, spacing)
    soft = region.from_grid(region.to_grid(disc.astype(np.float32), 96, 0.0))
    back = region.paste(soft, disc.shape) > 0.5
    assert 2 * (back & disc).sum() / (back.sum() + disc.sum()) > 0.97


def test_beyond_the_slice_the_grid_sees_what_outside_says():
    region = Region(-10, -10, 20, 20)
    grid = region.to_grid(np.ones((50, 50), dtype=np.float32), 20, -1.0)
    assert grid[:10].eq(-1).all() and torch.allclose(grid[10:, 10:], torch.ones(10, 10))
