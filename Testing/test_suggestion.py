"""Where errors are expected, and which slice is suggested."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from SDFSMISLib.images import suggestion
from SDFSMISLib.images.planes import Plane
from SDFSMISLib.images.suggestion import ExpectedErrors, suggest_plane

SPACING = (3.0, 1.0, 2.0)


def ball(shape: tuple[int, int, int] = (12, 20, 16)) -> np.ndarray:
    """A probability, uint8, with a soft border."""
    places = np.stack(np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij"))
    return np.clip(255 * (1.1 - 1.5 * np.sqrt((places**2).sum(axis=0))), 0, 255).astype(np.uint8)


@given(st.permutations(range(3)), st.lists(st.tuples(st.integers(0, 2), st.integers(0, 11)), min_size=1, max_size=4))
def test_a_transposed_result_has_the_same_errors_along_its_axes(
    order: list[int], painted: list[tuple[int, int]]
) -> None:
    planes = [Plane(*one) for one in painted]
    turned = [Plane(order.index(axis), index) for axis, index in painted]
    spacing = tuple(SPACING[axis] for axis in order)
    straight = ExpectedErrors.of(ball(), planes, SPACING)
    errors = ExpectedErrors.of(ball().transpose(order), turned, (spacing[0], spacing[1], spacing[2]))
    for axis, before in enumerate(order):
        np.testing.assert_allclose(errors.wrong(axis), straight.wrong(before), rtol=1e-4, atol=1e-4)


def test_nothing_is_wrong_on_painted_slices_and_more_far_from_them() -> None:
    errors = ExpectedErrors.of(ball((31, 20, 16)), [Plane(0, 15)], SPACING)
    assert errors.wrong(0)[15] == 0 and errors.certainty(0)[15] == 1
    assert errors.certainty(0)[16] > errors.certainty(0)[20] > errors.certainty(0)[24]


def test_nothing_found_is_certain_and_suggests_nothing() -> None:
    errors = ExpectedErrors.of(np.zeros((4, 5, 6), dtype=np.uint8), [], SPACING)
    assert suggest_plane([errors], [], SPACING) is None
    assert all((errors.certainty(axis) == 1).all() for axis in range(3))


def test_after_one_slice_a_slice_of_another_view_is_suggested_and_no_painted_or_skipped_one() -> None:
    planes, skip = [Plane(0, 6)], set()
    errors = ExpectedErrors.of(ball(), planes, SPACING)
    for _ in range(5):
        suggested = suggest_plane([errors], planes, SPACING, skip)
        assert suggested is not None and suggested.axis != 0 and suggested not in skip
        skip.add(suggested)


def test_a_large_result_is_looked_at_in_steps_with_nearly_the_same_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    probability, planes = ball((40, 48, 44)), [Plane(0, 20), Plane(2, 10)]
    fine = ExpectedErrors.of(probability, planes, SPACING)
    monkeypatch.setattr(suggestion, "MOST_VOXELS", probability.size // 6)
    coarse = ExpectedErrors.of(probability, planes, SPACING)
    for axis in range(3):
        assert coarse.wrong(axis).sum() == pytest.approx(fine.wrong(axis).sum(), rel=0.15)
        np.testing.assert_array_equal(coarse.area[axis], fine.area[axis])
