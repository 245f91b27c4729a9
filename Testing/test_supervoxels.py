"""Supervoxels: parts that look alike, none too small, and made once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from SDFSMISLib.training.supervoxels import Felzenszwalb, Slic, cached_supervoxels, foreground, graph_components

CUBE = (1.0, 1.0, 1.0)


def blocks() -> np.ndarray:
    """Grey levels of four blocks (6, 20, 20), apart by more than any noise."""
    levels = np.zeros((6, 20, 20), dtype=np.float32)
    levels[:, :10, :10], levels[:, :10, 10:], levels[:, 10:, :10], levels[:, 10:, 10:] = 20, 90, 160, 230
    return levels


def test_blocks_of_one_level_are_one_part_each():
    parts = graph_components(blocks(), CUBE, 1.0, 50)
    assert len(np.unique(parts)) == 4
    assert all(len(np.unique(parts[blocks() == level])) == 1 for level in (20, 90, 160, 230))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 200))
def test_no_part_is_smaller_than_asked_for_and_each_hangs_together(seed, least):
    levels = np.random.default_rng(seed).uniform(0, 255, (5, 12, 12)).astype(np.float32)
    parts = graph_components(levels, (3.0, 1.0, 1.0), 1.0, least)
    for value in np.unique(parts):
        assert (parts == value).sum() >= least
        assert ndimage.label(parts == value, np.ones((3, 3, 3)))[1] == 1


def test_thick_slices_hold_together_less():
    levels = np.full((2, 8, 8), 20, dtype=np.float32)  # steps of 10 and 24 within a slice, of 7 between slices
    levels[0, :, 4:], levels[1, :, :4], levels[1, :, 4:] = 30, 13, 37
    thin, thick = (graph_components(levels, (step, 1.0, 1.0), 1.0, 33) for step in (1.0, 9.0))
    assert thin[0, 0, 0] == thin[1, 0, 0] != thin[0, 0, 7]
    assert thick[0, 0, 0] == thick[0, 0, 7] != thick[1, 0, 0]


def test_the_background_is_no_supervoxel():
    image = np.full((4, 30, 30), -1.0, dtype=np.float32)
    image[:, 5:25, 5:25] = 0.2
    image[:, 10:14, 10:14] = -1.0  # a dark hole in the body belongs to it
    image[:, 0, 0] = 0.9  # a bright speck outside does not
    assert foreground(image)[:, 5:25, 5:25].all() and foreground(image).sum() == 4 * 20 * 20
    found = Felzenszwalb(50)(image, CUBE)
    assert ((found > 0) == foreground(image)).all() and found.max() == len(np.unique(found)) - 1


@pytest.mark.parametrize("kind", [Slic(8), Felzenszwalb(50)])
def test_supervoxels_are_made_once_and_again_when_the_scan_is_another(kind, tmp_path):
    image = (blocks() / 127.5 - 1).astype(np.float16)
    first = cached_supervoxels(kind, image, CUBE, tmp_path, "a")
    kept = [(path.name, path.stat().st_mtime_ns) for path in tmp_path.iterdir()]
    assert np.array_equal(first, cached_supervoxels(kind, image, CUBE, tmp_path, "a"))
    assert [(path.name, path.stat().st_mtime_ns) for path in tmp_path.iterdir()] == kept
    cached_supervoxels(kind, image[:, ::-1], CUBE, tmp_path, "a")
    assert len(list(tmp_path.iterdir())) == 2
