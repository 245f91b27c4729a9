"""The metrics, on masks made by hand whose figures can be worked out, and without the package they need."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from SDFSMISLib.errors import InputError
from SDFSMISLib.evaluation.metrics import METRICS, check_metrics, dice, hausdorff_95, score, surface_dice

CUBIC, THICK = (1.0, 1.0, 1.0), (5.0, 1.0, 1.0)  # mm (z, y, x)


def box(*sides: slice, shape: tuple[int, int, int] = (24, 30, 30)) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[sides] = True
    return mask


CUBE = box(slice(5, 15), slice(5, 15), slice(5, 15))


def test_the_dice_of_masks_made_by_hand() -> None:
    empty, left, right = (np.zeros((2, 3, 4), dtype=bool) for _ in range(3))
    left[..., :2], right[..., 1:3] = True, True
    assert dice(empty, empty) == 1.0
    assert dice(left, empty) == dice(empty, left) == 0.0
    assert dice(left, left) == 1.0
    assert dice(left, right) == 0.5  # 2 * 6 / (12 + 12)
    left[1] = False
    assert dice(left, right) == pytest.approx(2 * 3 / (6 + 12))  # voxels of all slices are one set, no mean of slices
    for wrong in (left[:1], left.astype(np.uint8)):
        with pytest.raises(ValueError, match="bool masks"):
            dice(wrong, right)


@pytest.mark.parametrize(
    ("shift", "spacing", "distance"),
    [
        ((1, 0, 0), CUBIC, 1.0),
        ((0, 3, 0), CUBIC, 3.0),
        ((0, 0, 3), THICK, 3.0),
        ((1, 0, 0), THICK, 5.0),
        ((3, 0, 0), THICK, 15.0),
    ],
)
def test_a_cube_s_distance_is_its_shift_in_millimetres(
    shift: tuple[int, int, int], spacing: tuple[float, float, float], distance: float
) -> None:
    moved = np.roll(CUBE, shift, (0, 1, 2))
    assert hausdorff_95(CUBE, moved, spacing) == hausdorff_95(moved, CUBE, spacing) == pytest.approx(distance)


def test_surfaces_within_the_tolerance_are_the_same() -> None:
    assert surface_dice(CUBE, np.roll(CUBE, 2, 2), CUBIC) == pytest.approx(1.0)
    assert surface_dice(CUBE, np.roll(CUBE, 2, 2), (1.0, 1.0, 1.5)) < 0.9
    assert surface_dice(CUBE, np.roll(CUBE, 1, 2), THICK) == pytest.approx(1.0)
    assert surface_dice(CUBE, np.roll(CUBE, 3, 2), CUBIC, tolerance=3.0) == pytest.approx(1.0)


def test_surface_is_weighted_by_its_area() -> None:
    """Of two plates that lie on each other one face coincides, the other is a slice away: half of the area."""
    plate = box(slice(4, 5), slice(5, 25), slice(5, 25))
    assert surface_dice(plate, np.roll(plate, 1, 0), THICK) == pytest.approx(0.5)
    # 10 x 10 x 50 mm, moved by 3 mm: of its two long sides that lead to there 60 % of 500 mm² each is too far
    assert surface_dice(CUBE, np.roll(CUBE, 3, 2), THICK) == pytest.approx(1 - 0.6 * 1000 / 2200, abs=0.1)


def test_single_voxels_have_surfaces() -> None:
    voxel, another = box(slice(3, 4), slice(4, 5), slice(5, 6)), box(slice(7, 8), slice(4, 5), slice(5, 6))
    assert hausdorff_95(voxel, voxel, THICK) == 0.0 and surface_dice(voxel, voxel, THICK) == 1.0
    assert hausdorff_95(voxel, another, (2.0, 1.0, 1.0)) == 8.0 and surface_dice(voxel, another, THICK) == 0.0


def test_few_voxels_far_away_do_not_move_the_95_percent_distance() -> None:
    stray = CUBE.copy()
    stray[20, 20, 20:25] = True  # 5 beside the 488 at the cube's border
    assert hausdorff_95(stray, CUBE, CUBIC) == 0.0
    stray[20:23, 16:26, 20:25] = True
    assert hausdorff_95(stray, CUBE, CUBIC) > 5.0


def test_a_structure_at_the_edge_of_the_scan_has_a_surface_there() -> None:
    whole = np.ones((6, 8, 8), dtype=bool)
    shorter = whole.copy()
    shorter[5] = False
    assert hausdorff_95(whole, whole, THICK) == 0.0 and surface_dice(whole, whole, THICK) == 1.0
    assert hausdorff_95(whole, shorter, THICK) == 5.0


def test_the_scan_around_a_structure_changes_nothing() -> None:
    moved = np.roll(CUBE, (1, 2, 3), (0, 1, 2))
    wide = [np.pad(mask, ((20, 20), (100, 100), (100, 100))) for mask in (CUBE, moved)]
    for metric in METRICS.values():
        assert metric(*wide, THICK) == metric(CUBE, moved, THICK)


@pytest.mark.parametrize("name", ["nsd", "hd95"])
def test_an_empty_mask_has_no_surface(name: str) -> None:
    empty = np.zeros_like(CUBE)
    for pair in ((empty, empty), (CUBE, empty), (empty, CUBE)):
        assert math.isnan(METRICS[name](*pair, CUBIC))
    assert [dice(*pair) for pair in ((empty, empty), (CUBE, empty))] == [1.0, 0.0]


def test_only_the_judged_slices_count() -> None:
    reference = np.zeros((4, 3, 5), dtype=bool)
    reference[:, :, :2] = True
    prediction = reference.copy()
    prediction[:, :, 4] = True
    everywhere = [range(4), range(3)]
    assert score(prediction, reference, (1, 1, 1), [*everywhere, [0, 1, 2, 3]])["dice"] == 1.0
    assert score(prediction, reference, (1, 1, 1), [*everywhere, [3, 4]])["dice"] == 0.0
    assert score(prediction, reference, (1, 1, 1), [[0, 3], [1], [0, 4]])["dice"] == pytest.approx(2 * 2 / (4 + 2))


def test_judged_slices_only_and_in_their_own_spacing() -> None:
    wrong = np.roll(CUBE, 2, 0)
    whole = [range(side) for side in CUBE.shape]
    assert score(wrong, CUBE, THICK, [range(7, 15), *whole[1:]]) == {"dice": 1.0, "nsd": 1.0, "hd95": 0.0}
    scores = score(wrong, CUBE, THICK, whole)
    assert scores["dice"] == pytest.approx(0.8) and scores["hd95"] == 10.0
    assert score(wrong, CUBE, THICK, whole, ("dice",)).keys() == {"dice"}


def test_without_monai_dice_works_and_the_others_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "monai", None)
    monkeypatch.setitem(sys.modules, "monai.metrics", None)
    assert dice(CUBE, CUBE) == 1.0
    check_metrics(["dice"])
    for refused in (lambda: check_metrics(["hd95"]), lambda: surface_dice(CUBE, CUBE, CUBIC)):
        with pytest.raises(InputError, match=r'pip install "sdfsmis\[evaluate\]"'):
            refused()


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(InputError, match="'iou'; there are dice, nsd, hd95"):
        check_metrics(["dice", "iou"])
