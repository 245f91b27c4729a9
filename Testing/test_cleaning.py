"""Cleaning: what the panel has done to a run's labels is what the command line does, with what Slicer ships."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from SDFSMISLib.errors import InputError
from SDFSMISLib.images.postprocess import Cleaning, Postprocessing, bounding_box, largest_piece

ROOT = Path(__file__).resolve().parent.parent
SPACING = (0.8, 1.0, 2.5)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.7, 2.0]), st.booleans(), st.floats(0, 0.95))
def test_cleaning_gives_the_voxels_of_postprocessing(
    seed: int, smooth_mm: float, keep_largest: bool, threshold: float
) -> None:
    rng = np.random.default_rng(seed)
    probabilities = {label: rng.integers(0, 256, (5, 9, 8), dtype=np.uint8) for label in (1, 2)}
    expected = Postprocessing(smooth_mm, keep_largest="volume" if keep_largest else "off")
    found = Cleaning(smooth_mm, keep_largest).labelmap(probabilities, threshold, SPACING)
    np.testing.assert_array_equal(found, expected.labelmap(probabilities, threshold, SPACING))


def test_cleaning_is_off_unless_something_is_wanted() -> None:
    assert Cleaning().is_off and not Cleaning(0.5).is_off and not Cleaning(keep_largest=True).is_off
    assert Cleaning(2.0).reach_mm == 6.0
    for smooth_mm in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="smoothing"):
            Cleaning(smooth_mm)


def test_an_empty_mask_has_no_largest_piece_and_no_box() -> None:
    mask = np.zeros((3, 4, 5), dtype=bool)
    assert not largest_piece(mask).any() and bounding_box(mask) is None
    mask[1, 2:4, 3] = True
    assert bounding_box(mask) == (slice(1, 2), slice(2, 4), slice(3, 4))


def test_cleaning_needs_only_what_slicer_ships() -> None:
    blocked = ["torch", "cv2", "skimage", "numba", "SimpleITK", "requests", "pydantic"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked}));"
        "import numpy as np; from SDFSMISLib.images.postprocess import Cleaning;"
        "print(Cleaning(1.0, True).labelmap({1: np.full((3, 4, 5), 200, np.uint8)}, 0.5, (1, 1, 1)).sum())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "60"
