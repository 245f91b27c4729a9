"""Episodes across scans without labels: levels of other scans are found, and targets are carried to where they lie."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from SDFSMISLib.images.volume import Geometry, Volume
from SDFSMISLib.model.built_in import Size, new_built_in
from SDFSMISLib.training.config import TrainingConfig
from SDFSMISLib.training.learner import EpisodeLearner
from SDFSMISLib.training.trainer import train
from SDFSMISLib.training.unlabelled_episodes import (
    MaskedSlice,
    SliceMatching,
    UnlabelledSampler,
    match_scans,
    match_slices,
)
from SDFSMISLib.training.volumes import EpisodeBatch, SliceTarget, TrainingVolume, slice_axes

ORGANS = ((4, 24, 20, 4, 10), (10, 40, 44, 4, 9), (8, 38, 22, 3, 7), (12, 22, 40, 4, 8))
"""Middle (slice, row, column) and radii, along slices and across, of the organs 1 to 4."""


def organs(slices: int = 16, lifted: int = 0, stretched: float = 1.0) -> np.ndarray:
    """Which organ each voxel belongs to, uint16 (slices, 64, 64); `lifted` by slices, `stretched` across."""
    z, y, x = np.mgrid[:slices, :64, :64].astype(float)
    z, x = z - lifted, (x - 32) / stretched + 32
    labels = np.zeros(z.shape, dtype=np.uint16)
    for number, (level, row, column, reach, wide) in enumerate(ORGANS, 1):
        inside = ((z - level) / reach) ** 2 + ((y - row) / wide) ** 2 + ((x - column) / wide) ** 2 < 1
        labels[inside] = number
    return labels


def body(seed: int, slices: int = 16, lifted: int = 0, stretched: float = 1.0) -> np.ndarray:
    """A noisy body with these organs, float32 (slices, 64, 64)."""
    _, y, x = np.mgrid[:slices, :64, :64].astype(float)
    x = (x - 32) / stretched + 32
    noise = np.random.default_rng(seed).normal(0, 2, x.shape)
    scan = np.where(((y - 32) / 26) ** 2 + ((x - 32) / 29) ** 2 < 1, 300.0 + noise, 0.0)
    labels = organs(slices, lifted, stretched)
    for number, (level, *_) in enumerate(ORGANS, 1):
        scan[labels == number] += 120.0 + 90 * level
    return scan.astype(np.float32)


def geometry(shape: tuple[int, ...], up: float = 1.0) -> Geometry:
    return Geometry(shape, (1.5, 1.5, 5.0), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, up))


def training_volume(voxels: np.ndarray, labels: np.ndarray, name: str, up: float = 1.0) -> TrainingVolume:
    """A scan whose supervoxels are these labels."""
    grid = geometry(voxels.shape, up)
    spacing = (5.0, 1.5, 1.5)
    axes, main = slice_axes(grid, voxels.shape, spacing)
    return TrainingVolume(
        name=name,
        image=Volume(voxels, grid).window("robust").normalize(voxels).astype(np.float16),
        maps=(labels, labels),
        labelled=True,
        spacing=spacing,
        axes=axes,
        orientations=(grid.slice_orientation(0), grid.slice_orientation(1), grid.slice_orientation(2)),
        group="scans",
        main=main,
    )


@pytest.fixture(scope="module")
def scans() -> list[TrainingVolume]:
    """Four bodies, every other one a slice higher, each a little wider than the one before."""
    shapes = [{"lifted": number % 2, "stretched": 1 + 0.03 * number} for number in range(4)]
    return [training_volume(body(n, **shape), organs(**shape), f"scan {n}") for n, shape in enumerate(shapes)]


def settings(**changes: Any) -> TrainingConfig:
    return TrainingConfig(**{"cases": "", "output": "", "seed": 3, "mix": {"cross": 1.0}, "label_share": 0.9} | changes)


def sampler(scans: list[TrainingVolume], **changes: Any) -> UnlabelledSampler:
    matching = SliceMatching(0.0, 1.0, 1.0, scans[0].maps[0].shape[0])
    pairs = {(a.name, b.name): matching for a in scans for b in scans if a is not b}
    return UnlabelledSampler(scans, 32, settings(**changes), pairs)


@pytest.mark.parametrize("backwards", [False, True])
def test_levels_of_another_scan_are_found(backwards: bool) -> None:
    made = []
    for number, lifted in enumerate((0, 3)):
        voxels, labels = body(number, slices=20, lifted=lifted), organs(slices=20, lifted=lifted)
        if backwards and number == 1:
            made.append(training_volume(voxels[::-1].copy(), labels[::-1].copy(), "other", up=-1.0))
        else:
            made.append(training_volume(voxels, labels, f"scan {number}"))
    one, other = made
    assert one.main is not None and other.main == replace(one.main, rising=not backwards)
    matching = match_slices(one, other)
    assert matching is not None
    for index in (6, 8, 10):
        there = matching.at(index)
        assert there is not None and abs((19 - there if backwards else there) - (index + 3)) <= 1


def test_scans_of_other_anatomies_are_no_partners(scans: list[TrainingVolume]) -> None:
    noise = np.random.default_rng(0).normal(500, 200, (16, 64, 64)).astype(np.float32)
    assert match_slices(scans[0], training_volume(noise, organs(), "noise")) is None


def test_each_scan_has_a_few_partners_of_its_group_and_plane(
    scans: list[TrainingVolume], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("SDFSMISLib.training.unlabelled_episodes.MAX_PARTNERS", 1)
    monkeypatch.setattr("SDFSMISLib.training.unlabelled_episodes.PROBES", 4)
    volume = scans[0]
    assert volume.main is not None
    kinds = [("a", volume.main), ("b", volume.main), ("a", replace(volume.main, plane="coronal"))]
    many = [replace(volume, name=f"{n} {k}", group=kinds[k][0], main=kinds[k][1]) for n in range(3) for k in range(3)]
    pairs = match_scans(many)
    assert sorted(one for one, _ in pairs) == sorted(one.name for one in many)  # one for each, of two
    assert all(one.split()[1] == other.split()[1] for one, other in pairs)
    first, second = many[0], many[3]
    assert not match_scans([]) and not match_scans([first])
    assert set(match_scans(many[:4])) == {(first.name, second.name), (second.name, first.name)}


def test_slices_that_are_hidden_are_neither_compared_nor_painted() -> None:
    """As in Setting II, where slices that show a tested organ are blank."""
    made = []
    for number in range(2):
        voxels, labels = body(number, slices=24), organs(slices=24)
        voxels[10 + number : 18 + number] = labels[10 + number : 18 + number] = 0
        made.append(training_volume(voxels, labels, f"scan {number}"))
    pairs = match_scans(made)
    assert len(pairs) == 2
    matching = pairs["scan 0", "scan 1"]
    assert all(abs((matching.at(index) or 0) - index) <= 1 for index in (4, 8))  # behind them nothing tells
    drawn = sampler(made)
    one, other = made
    assert (
        drawn._warped_slice(SliceTarget(one, 0, 8, 0, (3,)), other, SliceMatching(4.0, 1.0, 1.0, 24)) is None
    )  # a blank one


def test_a_target_is_carried_to_where_it_lies_in_the_other_scan(scans: list[TrainingVolume]) -> None:
    drawn = sampler(scans)
    one, other = scans[0], scans[2]
    found = drawn._warped_slice(SliceTarget(one, 0, 10, 0, (4,)), other, SliceMatching(0.0, 1.0, 1.0, 16))
    assert isinstance(found, MaskedSlice)
    there = other.maps[0][10] == 4
    assert 2 * (found.mask() & there).sum() / (found.mask().sum() + there.sum()) > 0.7


def test_episodes_across_scans_show_two_whole_slices_and_depend_on_their_number_only(
    scans: list[TrainingVolume],
) -> None:
    drawn = sampler(scans)
    drawn.batch(4, 1)
    batch, again = drawn.batch(4, 2), sampler(scans).batch(4, 2)
    assert batch.support_images.shape == (4, 1, 32, 32) and batch.displacements is None
    assert (batch.support_masks.sum((2, 3)) > 0).all() and batch.query_masks.any()
    assert torch.equal(batch.support_images, again.support_images)
    assert torch.equal(batch.support_masks, again.support_masks)


def test_a_painted_slice_elsewhere_shows_the_target_and_not_another_scans_supervoxel_of_that_number(
    scans: list[TrainingVolume],
) -> None:
    drawn = sampler(scans, mix={"propagate": 1.0})
    keys = [drawn._other_scan_support(drawn._query()) for _ in range(60)]
    assert any(key is not None for key in keys)
    assert all(isinstance(key, MaskedSlice) for key in keys if key is not None)


def test_a_mask_that_is_brought_lies_on_the_query_but_not_where_the_answer_is(scans: list[TrainingVolume]) -> None:
    drawn = sampler(scans)
    drawn.takes_warped_masks = True
    batch = drawn.batch(6, 1)
    assert batch.warped and batch.painted == 1
    torch.testing.assert_close(batch.support_images[:, -1], batch.query_images)
    warped, answers = batch.support_masks[:, -1].bool(), batch.query_masks.bool()
    both = (warped & answers).sum((1, 2)).float()
    overlap = 2 * both / (warped.sum((1, 2)) + answers.sum((1, 2)))
    assert 0.5 < overlap.mean() < 0.99


def test_a_trainer_carries_supervoxels_across_scans_where_the_configuration_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("SDFSMISLib.training.unlabelled_episodes.PROBES", 4)
    new_built_in(1, Size(resolution=32, channels=(16, 16))).save_pretrained(tmp_path / "start")
    cases = []
    for number in range(2):
        voxels = body(number, lifted=number % 2, stretched=1 + 0.03 * number)
        Volume(voxels, geometry(voxels.shape)).write(tmp_path / f"scan_{number}.nii.gz")
        Volume((voxels > 0).astype(np.uint8), geometry(voxels.shape)).write(tmp_path / f"body_{number}.nii.gz")
        about = {"id": str(number), "group": "bodies", "modality": "MR", "targets": {"body": 1}, "split": "train"}
        cases.append(about | {"image": f"scan_{number}.nii.gz", "labels": f"body_{number}.nii.gz"})
    (tmp_path / "cases.json").write_text(json.dumps({"groups": {"bodies": {}}, "cases": cases}), encoding="utf-8")
    seen: list[EpisodeBatch] = []
    forward = EpisodeLearner.forward
    monkeypatch.setattr(EpisodeLearner, "forward", lambda self, batch: seen.append(batch) or forward(self, batch))
    about = {"cases": str(tmp_path / "cases.json"), "output": str(tmp_path / "out"), "label_share": 0.0}
    about |= {"start": str(tmp_path / "start")}
    own = {"shippable": False, "supervoxels": "felzenszwalb", "supervoxel_size": 200, "across": "registration"}
    fast = {"steps": 2, "batch": 2, "synthetic_count": 0, "workers": 0}
    train(TrainingConfig(**about, **own, **fast, mix={"cross": 1.0}))
    assert len(seen) == 2 and all(batch.warped for batch in seen)
    for batch in seen:
        torch.testing.assert_close(batch.support_images[:, -1], batch.query_images)


def test_one_scan_alone_makes_episodes_too(scans: list[TrainingVolume]) -> None:
    batch = sampler(scans[:1]).batch(3, 0)
    assert batch.query_masks.shape == (3, 32, 32)
