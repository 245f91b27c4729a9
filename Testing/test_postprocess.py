"""Thresholds, conflicts, components, holes and smoothing, against results that can be checked by eye."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from SDFSMISLib.errors import InputError
from SDFSMISLib.images import postprocess as cleaning
from SDFSMISLib.images.labelmap import bounding_box
from SDFSMISLib.images.postprocess import (
    Postprocessing,
    fill_holes,
    largest_component,
    resolve_labels,
    restore_painted,
    smooth_probabilities,
)

ROOT = Path(__file__).resolve().parent.parent
ISOTROPIC = (1.0, 1.0, 1.0)


def drawn(*rows: str) -> np.ndarray:
    """A bool mask of rows of '#' and '.'."""
    return np.array([[character == "#" for character in row] for row in rows])


def random_probabilities(seed: int, shape: tuple[int, int, int] = (5, 17, 23)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(0.0, [0, 1, 1, 1, 1]), (0.2, [0, 0, 1, 1, 1]), (0.5, [0, 0, 0, 1, 1]), (0.999, [0, 0, 0, 0, 1])],
)
def test_a_voxel_must_be_above_the_threshold(threshold: float, expected: list[int]) -> None:
    probability = np.array([[[0, 51, 52, 128, 255]]], dtype=np.uint8)  # 51 / 255 = 0.2 exactly, which is not above it
    assert resolve_labels({1: probability}, threshold).tolist() == [[expected]]


def test_the_more_probable_label_wins_and_the_lower_value_a_tie() -> None:
    labels = resolve_labels(
        {
            700: np.array([[[200, 100, 180, 200, 0]]], dtype=np.uint8),
            3: np.array([[[150, 100, 220, 200, 140]]], dtype=np.uint8),
        }
    )
    assert labels.dtype == np.uint16
    assert labels.tolist() == [[[700, 0, 3, 3, 3]]]


@given(st.integers(0, 2**32 - 1), st.floats(0, 1, exclude_max=True), st.integers(1, 4))
def test_resolving_is_the_argmax_where_it_is_above_the_threshold(seed: int, threshold: float, count: int) -> None:
    stack = np.stack([random_probabilities(seed + number) for number in range(count)])
    labels = resolve_labels({number + 1: plane for number, plane in enumerate(stack)}, threshold)
    above = stack.max(axis=0) > np.floor(threshold * 255 + 1e-9)
    np.testing.assert_array_equal(labels, np.where(above, stack.argmax(axis=0) + 1, 0))


def test_what_cannot_be_resolved_is_refused() -> None:
    probability = random_probabilities(0)
    for threshold in (-0.1, 1.0, float("nan")):
        with pytest.raises(InputError, match="threshold"):
            resolve_labels({1: probability}, threshold)
    for wrong in (
        {},
        {1: probability, 2: probability[1:]},
        {1: probability / 255},
        {0: probability},
        {70000: probability},
    ):
        with pytest.raises(ValueError):
            resolve_labels(wrong, 0.5)


def test_the_largest_piece_of_a_slice_is_kept_and_corners_connect() -> None:
    mask = drawn("##....", "..#...", ".....#", "....##")
    np.testing.assert_array_equal(largest_component(mask), drawn("##....", "..#...", "......", "......") | False)
    mask = drawn("##....", "......", ".....#", "....##")
    np.testing.assert_array_equal(largest_component(mask), drawn("......", "......", ".....#", "....##"))


def test_of_equal_pieces_opencv_s_first_is_kept_wherever_the_box_begins() -> None:
    """OpenCV goes by blocks of 2 x 2 pixels: (5, 3) and (4, 20) lie in one row of blocks, (5, 20) and (6, 3) do not."""
    for first, second in (((5, 3), (4, 20)), ((5, 20), (6, 3))):
        mask = np.zeros((32, 32), dtype=bool)
        mask[first] = mask[second] = True
        assert np.argwhere(largest_component(mask)).tolist() == [list(first)]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_piece_of_each_slice_along_any_axis(axis: int) -> None:
    planes = np.stack(
        [drawn("#....", "#..##", "...##"), drawn("##...", "##...", "....#"), drawn(".....", ".....", ".....")]
    )
    expected = np.stack(
        [drawn(".....", "...##", "...##"), drawn("##...", "##...", "....."), np.zeros((3, 5), dtype=bool)]
    )
    kept = largest_component(np.moveaxis(planes, 0, axis), "slice", axis)
    np.testing.assert_array_equal(np.moveaxis(kept, axis, 0), expected)


def test_one_piece_of_a_volume_connects_through_corners() -> None:
    mask = np.zeros((4, 6, 6), dtype=bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[2, 2, 2] = True  # three voxels, corner to corner
    mask[0, 4:6, 5] = True
    kept = largest_component(mask, "volume")
    assert np.argwhere(kept).tolist() == [[0, 0, 0], [1, 1, 1], [2, 2, 2]]
    assert mask.sum() == 5  # the input stays as it was


@given(st.integers(0, 2**32 - 1), st.floats(0.02, 0.6))
def test_the_largest_piece_of_a_volume_is_as_large_as_any(seed: int, density: float) -> None:
    mask = np.random.default_rng(seed).random((6, 9, 7)) < density
    pieces, count = ndimage.label(mask, np.ones((3, 3, 3)))
    kept = largest_component(mask, "volume")
    assert kept.sum() == max(np.bincount(pieces.ravel())[1:], default=0)
    assert len(np.unique(pieces[kept])) == min(count, 1)


def test_holes_are_filled_within_a_slice_only() -> None:
    ring = drawn(".###.", ".#.#.", ".###.")
    full = drawn(".###.", ".###.", ".###.")
    np.testing.assert_array_equal(fill_holes(ring), full)
    np.testing.assert_array_equal(fill_holes(np.stack([ring, np.zeros_like(ring)]))[0], full)
    tube = np.stack([ring] * 3, axis=2)  # along axis 2 each slice is a ring; along axis 0 none encloses anything
    np.testing.assert_array_equal(fill_holes(tube, 2), np.stack([full] * 3, axis=2))
    np.testing.assert_array_equal(fill_holes(tube, 0), tube)


def test_what_is_open_to_the_border_is_no_hole_but_a_diagonal_closes_one() -> None:
    bay = drawn("#.#", "#.#", "###")
    np.testing.assert_array_equal(fill_holes(bay), bay)
    diamond = drawn(".#.", "#.#", ".#.")
    assert fill_holes(diamond)[1, 1]


@given(st.integers(0, 2**32 - 1), st.floats(0.2, 0.9))
def test_filling_is_scipy_s(seed: int, density: float) -> None:
    mask = np.random.default_rng(seed).random((11, 13)) < density
    np.testing.assert_array_equal(fill_holes(mask), ndimage.binary_fill_holes(mask))


def test_smoothing_is_in_millimetres(monkeypatch: pytest.MonkeyPatch) -> None:
    spacing = (0.5, 1.0, 4.0)
    probability = random_probabilities(3, (14, 20, 30))
    whole = ndimage.gaussian_filter(probability.astype(np.float32), (0.5, 2.0, 4.0), mode="nearest", truncate=3.0)
    for block in (1, 1 << 23):  # blocks that meet within the volume leave no seam
        monkeypatch.setattr(cleaning, "BLOCK_VOXELS", block)
        smooth = smooth_probabilities(probability, 2.0, spacing)
        assert smooth.dtype == np.uint8
        assert np.abs(smooth - whole).max() <= 0.51


def test_smoothing_keeps_slices_apart_that_lie_far_apart_and_a_full_volume_full() -> None:
    probability = np.zeros((3, 9, 9), dtype=np.uint8)
    probability[1] = 255
    np.testing.assert_array_equal(smooth_probabilities(probability, 1.0, (1.0, 1.0, 8.0)), probability)
    assert (smooth_probabilities(np.full((3, 9, 9), 255, np.uint8), 2.0, ISOTROPIC) == 255).all()
    assert not smooth_probabilities(np.zeros((3, 9, 9), np.uint8), 2.0, ISOTROPIC).any()


def test_nothing_is_done_unless_asked_for() -> None:
    probabilities = {1: random_probabilities(1), 2: random_probabilities(2)}
    before = {label: probability.copy() for label, probability in probabilities.items()}
    np.testing.assert_array_equal(
        Postprocessing().labelmap(probabilities, 0.5, ISOTROPIC), resolve_labels(probabilities, 0.5)
    )
    Postprocessing(1.0, True, "volume").labelmap(probabilities, 0.5, ISOTROPIC)
    for label, probability in probabilities.items():
        np.testing.assert_array_equal(probability, before[label])


def test_all_steps_together_on_two_labels() -> None:
    large = np.zeros((3, 12, 12), dtype=np.uint8)
    large[:, 1:8, 1:8] = 255
    large[:, 3:6, 3:6] = 0  # a hole, in the midst of which the other label lies
    large[1, 11, 11] = 255  # an islet
    small = np.zeros_like(large)
    small[:, 4, 4] = 255
    labels = Postprocessing(fill_holes=True, keep_largest="volume").labelmap({5: large, 9: small}, 0.5, ISOTROPIC)
    assert labels[1, 11, 11] == 0
    assert (labels[:, 4, 4] == 9).all()
    assert (labels[:, 1:8, 1:8] == 5).sum() == 3 * (7 * 7 - 1)


def test_options_that_mean_nothing_are_refused() -> None:
    for smooth_mm in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="smoothing"):
            Postprocessing(smooth_mm=smooth_mm)
    with pytest.raises(InputError, match="keep_largest"):
        Postprocessing(keep_largest="2d")  # type: ignore[arg-type]


def test_it_is_off_unless_something_is_chosen() -> None:
    assert Postprocessing().is_off and not Postprocessing(0.5).is_off and not Postprocessing(fill_holes=True).is_off
    assert Postprocessing(2.0).reach_mm == 6.0


def test_an_empty_mask_has_no_largest_component_and_no_box() -> None:
    mask = np.zeros((3, 4, 5), dtype=bool)
    assert not largest_component(mask).any() and bounding_box(mask) is None
    mask[1, 2:4, 3] = True
    assert bounding_box(mask) == (slice(1, 2), slice(2, 4), slice(3, 4))


def test_a_painted_slice_is_restored_and_other_labels_stay_outside_of_it() -> None:
    plane = np.array([[1, 1, 2], [2, 0, 1]], dtype=np.uint16)
    restore_painted(plane, 1, np.array([[True, False, False], [True, True, False]]))
    assert plane.tolist() == [[1, 0, 2], [1, 1, 0]]


def test_what_the_panel_uses_needs_only_what_slicer_ships() -> None:
    blocked = ["torch", "cv2", "skimage", "numba", "SimpleITK", "requests", "pydantic"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked}));"
        "import numpy as np; from SDFSMISLib.images.postprocess import Postprocessing;"
        "cleaned = Postprocessing(1.0, keep_largest='volume');"
        "print(cleaned.labelmap({1: np.full((3, 4, 5), 200, np.uint8)}, 0.5, (1, 1, 1)).sum())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "60"
