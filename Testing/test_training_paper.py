"""The paper's training: its episodes and its augmentation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from SDFSMISLib.errors import InputError
from SDFSMISLib.training.config import TrainingConfig
from SDFSMISLib.training.episodes import MIN_PAPER_SHARE, EpisodeSampler
from SDFSMISLib.training.synthesis import augment
from SDFSMISLib.training.volumes import TrainingVolume
from test_hints import blobs, disc
from training_examples import scan_volume

PAPER = TrainingConfig(cases="", output="", mix={"paper": 1.0})


def layered_volume() -> TrainingVolume:
    """Grey levels tell the slice; supervoxel 1 is a square, supervoxel 2 ends at slice 4, supervoxel 3 is too small."""
    plain = scan_volume("a", 0)
    image = np.broadcast_to(np.linspace(-1, 0.9, 12)[:, None, None], (12, 64, 64)).astype(np.float16)
    parts = np.zeros((12, 64, 64), dtype=np.uint16)
    parts[:, 10:40, 10:40] = 1
    parts[:4, 44:60, 44:60] = 2
    parts[:, 62:63, 62:63] = 3
    return TrainingVolume("a", image, (parts > 0, parts), True, (3.0, 1.0, 1.0), (0,), plain.orientations, "a")


def test_episodes_are_two_adjacent_slices_in_either_order_one_of_them_augmented() -> None:
    drawn = EpisodeSampler([layered_volume()], 64, PAPER)
    steps = []
    for number in range(12):
        batch = drawn.batch(4, number)
        assert batch.support_images.shape == (4, 1, 64, 64) and batch.painted == 1 and batch.displacements is None
        for support, query in zip(batch.support_masks[:, 0], batch.query_masks, strict=True):
            assert max(float(support.mean()), float(query.mean())) > MIN_PAPER_SHARE
        pairs = torch.stack([batch.support_images[:, 0, 25, 25], batch.query_images[:, 25, 25]])
        places = (pairs + 1) / 1.9 * 11
        untouched = (places - places.round()).abs() < 0.01  # the other one has another gamma
        assert untouched.any(0).all()
        steps += (places[1] - places[0]).sign().tolist()
    assert {-1.0, 1.0} <= set(steps)


def test_a_query_may_lie_behind_the_end_of_its_supervoxel() -> None:
    drawn = EpisodeSampler([layered_volume()], 64, PAPER)
    assert any((drawn.batch(4, number).query_masks.sum((1, 2)) == 0).any() for number in range(40))


def test_image_and_mask_are_moved_by_the_same_field_and_each_time_by_another() -> None:
    rng, mask = np.random.default_rng(0), disc(120, 130, 50, 256)
    image = 1.6 * mask - 0.8
    fields = [augment(rng, image, mask) for _ in range(4)]
    for seen, target in fields:
        assert ((seen > seen.mean()).float() - target).abs().mean() < 0.005
        assert seen.min() >= -1 and seen.max() <= 1
        assert 0.7 < float(target.sum() / mask.sum()) < 1.6
    assert all(not torch.equal(fields[0][1], other[1]) for other in fields[1:])


def test_augmentation_moves_as_far_on_a_small_grid() -> None:
    """Shares of the image moved, whatever its pixels."""
    moved = {}
    for side in (64, 256):
        mask = disc(side / 2, side / 2, side / 4, side)
        image = blobs(3, side)
        found = [augment(np.random.default_rng(seed), image, mask)[1] for seed in range(12)]
        moved[side] = np.mean([float((target - mask).abs().mean()) for target in found])
    assert moved[64] == pytest.approx(moved[256], rel=0.25)


def test_paper_episodes_need_scans() -> None:
    with pytest.raises(InputError, match="scans"):
        EpisodeSampler([], 64, PAPER)


def test_scans_without_a_large_enough_supervoxel_are_refused_rather_than_searched_for_ever() -> None:
    volume = layered_volume()
    volume.maps[1][volume.maps[1] < 3] = 0
    with pytest.raises(InputError, match="larger targets"):
        EpisodeSampler([volume], 64, PAPER).batch(1, 0)
