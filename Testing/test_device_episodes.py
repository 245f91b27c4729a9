"""Synthetic episodes made in batches on the device: as those of the workers are, and reproducible."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from SDFSMISLib.inference.network_images import Contrast
from SDFSMISLib.inference.registration import warp
from SDFSMISLib.training.config import TrainingConfig
from SDFSMISLib.training.device_episodes import (
    DeviceEpisodes,
    RandomDraws,
    blurred,
    displacements,
    equalizing_contrasts,
    imperfect,
    random_rotations,
    with_contrast,
)
from SDFSMISLib.training.volumes import TrainingVolume, synthetic_volumes
from test_hints import blobs, disc

KINDS = ["propagate", "independent", "cross"]
CPU = torch.device("cpu")


@cache
def volumes() -> list[TrainingVolume]:
    return synthetic_volumes(2, 0)


def drawn(kind: str, resolution: int = 32) -> DeviceEpisodes:
    config = TrainingConfig(cases="", output="", seed=7, mix={kind: 1.0}, swapped=1.0)
    return DeviceEpisodes(volumes(), resolution, config, CPU)


# -- episodes


@pytest.mark.parametrize("kind", KINDS)
def test_episodes_have_their_shapes_and_ranges(kind: str) -> None:
    for number in range(6):
        batch = drawn(kind).batch(5, number)
        shots = batch.support_images.shape[1]
        assert batch.support_images.shape == batch.support_masks.shape == (5, shots, 32, 32)
        assert batch.query_images.shape == batch.query_masks.shape == (5, 32, 32)
        assert shots == batch.painted + (kind == "propagate")
        assert batch.support_images.abs().max() <= 1 and batch.query_images.abs().max() <= 1
        assert set(batch.support_masks.unique().tolist()) | set(batch.query_masks.unique().tolist()) == {0.0, 1.0}
        assert (batch.support_masks[:, 0].sum((1, 2)) > 0).float().mean() > 0.5
        if kind == "propagate":
            assert batch.displacements is not None and batch.displacements.shape == (5, 32, 32, 2)
            assert torch.isfinite(batch.displacements).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_depends_on_seed_and_number_only(kind: str) -> None:
    episodes = drawn(kind)
    first = episodes.batch(3, 0)
    again, fresh = episodes.batch(3, 5), drawn(kind).batch(3, 5)
    assert torch.equal(again.support_images, fresh.support_images) and torch.equal(again.query_masks, fresh.query_masks)
    assert not torch.equal(first.query_images, again.query_images)


def test_some_batches_hold_what_came_before_and_some_of_their_rows_want_it() -> None:
    befores = [drawn("propagate").batch(6, number).before for number in range(8)]
    assert any(before is None for before in befores)
    wanted = torch.cat([before.wanted for before in befores if before is not None])
    assert wanted.any() and not wanted.all()


@pytest.mark.parametrize("kind", KINDS)
def test_some_queries_lack_the_target_and_targets_are_small_and_large(kind: str) -> None:
    episodes = drawn(kind, 96)
    shares = torch.cat([episodes.batch(16, number).query_masks.mean((1, 2)) for number in range(3)])
    assert 0.02 < (shares == 0).float().mean() < 0.5
    assert shares[shares > 0].min() < 0.003 and shares.max() > 0.08


def test_a_batch_holds_one_to_five_painted_slices() -> None:
    episodes = drawn("independent")
    assert {episodes.batch(1, number).painted for number in range(40)} == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("kind", ["independent", "cross"])
def test_late_every_two_episodes_ask_for_two_targets_of_the_same_slices(kind: str) -> None:
    batch = drawn(kind, 64).batch(12, 3, late=True)
    assert torch.equal(batch.support_images[0::2], batch.support_images[1::2])
    assert torch.equal(batch.query_images[0::2], batch.query_images[1::2])
    differ = (batch.support_masks[0::2, 0] != batch.support_masks[1::2, 0]).flatten(1).any(1)
    assert differ.sum() >= 3
    early = drawn(kind, 64).batch(12, 3)
    assert not torch.equal(early.query_images[0::2], early.query_images[1::2])


# -- what they are made with


def test_planes_are_turned_every_way_and_keep_their_right_angles() -> None:
    found = random_rotations(RandomDraws(0, CPU), 200)
    torch.testing.assert_close(found @ found.transpose(1, 2), torch.eye(3).expand(200, 3, 3), rtol=0, atol=1e-5)
    assert torch.allclose(torch.linalg.det(found), torch.ones(200), atol=1e-5)
    assert found.mean(0).abs().max() < 0.15


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
