"""Parity of the official way from byte maps to masks, on the golden tensors: exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import golden
from SDFSMISLib.benchmark.tasks import official_masks, to_bytes


def check_masks(tensors: dict[str, torch.Tensor]) -> None:
    found = official_masks(tensors["seg_u8"].numpy())
    assert found.threshold == tensors["threshold"].numpy()
    np.testing.assert_array_equal(found.before_components, tensors["mask_before_cca"].numpy())
    np.testing.assert_array_equal(found.masks, tensors["mask"].numpy())


@pytest.mark.parametrize("name", golden.sub_cases("g_postprocessing"))
def test_parity_of_masks_from_byte_maps(name: str) -> None:
    tensors = golden.part("g_postprocessing", name)
    check_masks(tensors)
    if "map_mean" in tensors:
        means = (tensors["seg_u8"].numpy().astype(np.float32) / np.float32(255)).mean(axis=1)
        np.testing.assert_array_equal(means, tensors["map_mean"].numpy())


@pytest.mark.parametrize("name", golden.inference_cases())
def test_parity_of_masks_from_recorded_maps(name: str) -> None:
    """From the stored bytes the masks are exact; bytes of the stored maps are those that were stored."""
    tensors = golden.case(name)
    check_masks(tensors)
    np.testing.assert_array_equal(to_bytes(tensors["seg"].numpy()), tensors["seg_u8"].numpy())


def test_parity_bytes_are_truncated() -> None:
    np.testing.assert_array_equal(to_bytes(np.array([0, 0.9999 / 255, 0.5, 1], np.float32)), [0, 0, 127, 255])


def test_parity_no_slices_give_no_masks() -> None:
    found = official_masks(np.zeros((0, 3, 4, 5), np.uint8))
    assert found.masks.shape == (0, 4, 5) and found.threshold == 0


@pytest.mark.parametrize("levels", [np.zeros((2, 3, 4), np.uint8), np.zeros((1, 3, 4, 4), np.float32)])
def test_parity_other_shapes_and_types_are_refused(levels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected \\(slices, channels, height, width\\), uint8"):
        official_masks(levels)
