"""A rough mask moves onto the structure by the histograms of its inside and outside."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from SDFSMISLib.inference.registration import refine_by_histogram

SPACING = (1.0, 1.0)


def disc(centre: tuple[int, int], radius: float, side: int = 64) -> np.ndarray:
    rows, columns = np.mgrid[:side, :side]
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))


@pytest.mark.parametrize("bright", [True, False])
def test_a_mask_that_is_a_little_off_moves_onto_the_structure(bright: bool) -> None:
    truth, rough = disc((32, 32), 12), disc((35, 30), 11)
    image = np.random.default_rng(0).normal(0, 0.1, truth.shape) + (truth if bright else ~truth)
    found = refine_by_histogram(image, rough.astype(np.float32), SPACING) > 0.5
    assert dice(rough, truth) < 0.86
    assert dice(found, truth) > 0.92


def test_what_is_alike_but_far_away_does_not_join() -> None:
    truth, other = disc((32, 20), 9), disc((32, 52), 9)
    image = np.random.default_rng(0).normal(0, 0.05, truth.shape) + truth + other
    found = refine_by_histogram(image, truth.astype(np.float32), SPACING) > 0.5
    assert not (found & other).any()


def test_an_empty_mask_stays_empty() -> None:
    assert not refine_by_histogram(np.ones((8, 9)), np.zeros((8, 9), np.float32), SPACING).any()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.floats(0.1, 8), st.integers(0, 2**31))
def test_any_image_and_mask_give_probabilities(rows: int, columns: int, step: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(rows, columns)) * rng.integers(0, 2)
    found = refine_by_histogram(image, rng.random((rows, columns)).astype(np.float16), (step, 2 * step))
    assert found.shape == (rows, columns) and np.isfinite(found).all()
    assert found.min() >= 0 and found.max() <= 1
