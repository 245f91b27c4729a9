"""The pixels of a batch of episodes: sampled together as one by one, and given a look."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from SDFSMISLib.images.geometry import SliceOrientation
from SDFSMISLib.inference.network_images import Contrast
from SDFSMISLib.inference.registration import warp
from SDFSMISLib.training.rendering import (
    RandomDraws,
    blurred,
    displacements,
    equalizing_contrasts,
    imperfect,
    render,
    with_contrast,
)
from SDFSMISLib.training.volume_store import VolumeStore, pixels_on_grid
from SDFSMISLib.training.volumes import Crop, SliceTarget, TrainingVolume, resampled
from test_hints import blobs, disc
from training_examples import scan_volume

CPU = torch.device("cpu")


# -- slices


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("crop", [Crop((20.0, 14.0), 9.0, 0.3), Crop((22.0, 30.0), 60.0, mirror=True)])
@pytest.mark.parametrize("turned", [False, True])
def test_slices_are_sampled_together_as_each_of_them_alone(axis: int, crop: Crop, turned: bool) -> None:
    rng = np.random.default_rng(axis)
    shape, spacing = (24, 30, 40), (1.5, 0.8, 1.2)
    image = rng.uniform(-1, 1, shape).astype(np.float16)
    labels = rng.integers(0, 4, shape).astype(np.uint16)
    turn = SliceOrientation(turned, turned, not turned)
    volumes = [
        TrainingVolume("other", np.zeros(shape, np.float16), (labels * 0,), True, spacing, (0,), (turn,) * 3, "a"),
        TrainingVolume("one", image, (labels * 0, labels), True, spacing, (0, 1, 2), (turn,) * 3, "a"),
    ]
    store = VolumeStore(volumes, CPU)
    bent = replace(crop, bend=torch.from_numpy(rng.normal(0, 0.05, (1, 5, 5, 2)).astype(np.float32)))
    views = [(SliceTarget(store.volumes[1], axis, z, 1, (1, 3)), one) for z, one in ((4, crop), (9, bent), (20, crop))]
    views.append((SliceTarget(store.volumes[0], axis, 3, 0, (2,)), crop))
    images = store.images(store.image_cuts(views, 24), 24)
    masks = store.masks(store.mask_cuts(views, 24), 24)
    for (target, one), found, mask in zip(views, images, masks, strict=True):
        alone = resampled(torch.from_numpy(target.image().astype(np.float32)) + 1, target.spacing, one, 24) - 1
        torch.testing.assert_close(found, alone, rtol=0, atol=2e-3)
        inside = resampled(torch.from_numpy(target.mask().astype(np.float32)), target.spacing, one, 24)
        unsure = (inside - 0.5).abs() < 1e-3
        assert torch.equal((inside > 0.5) | unsure, (mask > 0) | unsure)
    counted = [pixels_on_grid(*view, 24) for view in views]
    assert counted == masks.sum((1, 2)).tolist() and max(counted) > 10
    assert [pixels_on_grid(*view, 24, step=3) for view in views] == masks[:, 1::3, 1::3].sum((1, 2)).tolist()


def test_a_thick_slice_is_the_mean_of_thin_ones() -> None:
    volume = scan_volume("a", 0)
    image = np.broadcast_to(np.linspace(-1, 1, 24)[:, None, None], (24, 40, 40)).astype(np.float16)
    store = VolumeStore([replace(volume, image=image)], CPU)
    target = SliceTarget(store.volumes[0], 0, 12, 0, (1,))
    crop = Crop((20.0, 20.0), 8.0)

    def images(*targets: SliceTarget) -> torch.Tensor:
        return store.images(store.image_cuts([(one, crop) for one in targets], 8), 8)

    thin, thick = images(target, replace(target, thick=3))
    torch.testing.assert_close(thin, thick, rtol=0, atol=1e-3)
    thicker = images(replace(target, index=1, thick=10))  # cut off by the scan's end
    assert float(thicker.mean()) == pytest.approx(float(image[0:6, 0, 0].mean()), abs=0.05)


def test_labels_that_look_alike_are_told_apart_by_shape_alone() -> None:
    labels = torch.arange(64).view(1, 1, 1, 8, 8).repeat_interleave(4, 3).repeat_interleave(4, 4)
    kinds = [len(render(RandomDraws(seed, CPU), labels, True).round(decimals=1).unique()) for seed in range(20)]
    assert min(kinds) < max(kinds)


# -- what they are made with


def test_contrasts_are_those_of_the_segmenter() -> None:
    images = torch.stack([blobs(1), 0.1 * blobs(2) - 0.3, torch.full((96, 96), -1.0), (3 * blobs(3)).clamp(-1, 1)])
    values = equalizing_contrasts(images)
    equalized = with_contrast(images, values)
    for image, mine, found in zip(images, values, equalized, strict=True):
        contrast = Contrast.of(image)
        torch.testing.assert_close(mine, contrast.values, rtol=0, atol=1e-5)
        torch.testing.assert_close(found, contrast(image), rtol=0, atol=1e-4)


def test_each_image_is_blurred_by_its_own_amount() -> None:
    point = torch.zeros(2, 33, 33)
    point[:, 16, 16] = 1
    sharp, soft = blurred(point, torch.tensor([0.5, 2.0]))
    assert float(sharp.sum()) == pytest.approx(1, abs=1e-4) and float(soft.sum()) == pytest.approx(1, abs=1e-4)
    places = torch.arange(33.0) - 16
    spread = [float((x.sum(0) * places**2).sum()) for x in (sharp, soft)]
    assert spread[0] < 0.4 and spread[1] == pytest.approx(4, rel=0.05)


def test_errors_keep_a_mask_where_it_was_and_change_most() -> None:
    masks = disc(30, 34, 12, 64).expand(40, -1, -1)
    wrong = imperfect(RandomDraws(1, CPU), masks)
    assert set(wrong.unique().tolist()) == {0.0, 1.0}
    dice = 2 * (wrong * masks).sum((1, 2)) / (wrong.sum((1, 2)) + masks.sum((1, 2)))
    assert 0.7 < float(dice.mean()) < 0.98
    assert 0.05 < float((dice == 1).float().mean()) < 0.5


# -- registration


def test_masks_are_carried_along_with_what_has_moved() -> None:
    shifts = [(0, 0), (3, 0), (0, -4), (2, 3)]
    image, mask = blobs(), disc(48, 48, 15)
    moved = torch.stack([torch.roll(image, shift, (0, 1)) for shift in shifts])
    wanted = torch.stack([torch.roll(mask, shift, (0, 1)) for shift in shifts]) > 0.5
    found = warp(mask.expand(4, -1, -1), displacements(image.expand(4, -1, -1), moved)) > 0.5
    dice = 2 * (found & wanted).sum((1, 2)) / (found.sum((1, 2)) + wanted.sum((1, 2)))
    assert dice.min() > 0.93


def test_a_slice_lies_on_itself_and_one_without_structure_is_no_error() -> None:
    image, flat = blobs(1)[None], torch.full((1, 96, 96), -1.0)
    assert displacements(image, image).abs().max() < 1e-3
    assert torch.isfinite(displacements(flat, image)).all() and not displacements(flat, flat).any()


def test_small_grids_are_registered_too() -> None:
    rng = np.random.default_rng(0)
    pair = torch.from_numpy(rng.uniform(-1, 1, (2, 1, 24, 24)).astype(np.float32))
    assert displacements(*pair).shape == (1, 24, 24, 2)
