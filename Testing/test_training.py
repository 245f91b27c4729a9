"""Training: episodes are reproducible, and a run that was stopped goes on as if it had not been."""

import json

import numpy as np
import pytest
import torch

from SDFSMISLib.errors import InputError
from SDFSMISLib.training.config import TrainingConfig
from SDFSMISLib.training.episodes import EpisodeSampler
from SDFSMISLib.training.synthesis import synthetic_labels
from SDFSMISLib.training.volumes import TrainingVolume, load_training_volumes, synthetic_volumes
from SDFSMISLib.volume import Geometry, SliceOrientation, Volume

PLAIN_CONFIG = TrainingConfig(cases="", output="")
PLAIN = (SliceOrientation(False, False, False),) * 3


def scan_volume(name: str, shift: int) -> TrainingVolume:
    """A bright ball on a dark ground, with the ball as label 1."""
    z, y, x = np.mgrid[:24, :40, :40]
    ball = (z - 12) ** 2 + (y - 20 - shift) ** 2 + (x - 20) ** 2 < 64
    image = np.where(ball, 0.5, -0.5).astype(np.float16)
    return TrainingVolume(name, image, (ball.astype(np.uint16),), True, (2.0, 1.0, 1.0), (0, 1, 2), PLAIN, "balls")


def sampler(kind: str) -> EpisodeSampler:
    volumes = [scan_volume("a", 0), scan_volume("b", 5)] + (synthetic_volumes(2, 0) if kind != "cross" else [])
    mix = {kind: 1.0}
    config = TrainingConfig(cases="", output="", seed=7, mix=mix, synthetic_share=0.5, label_share=0.5, rollout=0.5)
    return EpisodeSampler(volumes, 32, config)


@pytest.mark.parametrize("kind", ["propagate", "independent", "cross"])
def test_episodes_have_their_shapes_and_ranges(kind):
    for number in range(5):
        batch = sampler(kind).batch(3, number)
        shots = batch.support_images.shape[1]
        assert batch.support_images.shape == batch.support_masks.shape == (3, shots, 32, 32)
        assert batch.query_images.shape == batch.query_masks.shape == (3, 32, 32)
        assert 1 <= batch.painted <= shots
        assert batch.support_images.abs().max() <= 1 and batch.query_images.abs().max() <= 1
        assert set(batch.support_masks.unique().tolist()) <= {0.0, 1.0}
        assert (batch.support_masks[:, 0].sum((1, 2)) > 0).all()


@pytest.mark.parametrize("kind", ["propagate", "independent", "cross"])
def test_a_batch_depends_on_seed_and_number_only(kind):
    drawn = sampler(kind)
    drawn.batch(2, 0)
    again, fresh = drawn.batch(2, 5), sampler(kind).batch(2, 5)
    assert torch.equal(again.support_images, fresh.support_images) and torch.equal(again.query_masks, fresh.query_masks)


def test_a_propagate_episode_holds_the_neighbour_beside_the_painted_slice():
    batch = sampler("propagate").batch(2, 0)
    assert batch.support_images.shape[1] == batch.painted + 1


def test_some_queries_lack_the_target():
    empty = [float(m.sum()) == 0 for n in range(12) for m in sampler("propagate").batch(4, n).query_masks]
    assert 0 < sum(empty) < len(empty) / 2


def test_synthetic_labels_have_many_structures():
    labels = synthetic_labels(np.random.default_rng(0), 32)
    assert labels.shape == (32, 32, 32) and len(np.unique(labels)) > 4


@pytest.fixture
def manifest(tmp_path):
    """Two cases with labels: one for training, one for testing."""
    cases = []
    for name, split in (("first", "train"), ("second", "test")):
        volume = scan_volume(name, 0)
        geometry = Geometry(volume.image.shape, (1, 1, 2), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
        Volume((volume.image * 100).astype(np.float32), geometry).write(tmp_path / f"{name}.nii.gz")
        Volume(volume.maps[0].astype(np.uint8), geometry).write(tmp_path / f"{name}_labels.nii.gz")
        cases.append(
            {
                "id": name,
                "group": "balls",
                "image": f"{name}.nii.gz",
                "labels": f"{name}_labels.nii.gz",
                "modality": "MR",
            }
            | {"targets": {"ball": 1}, "split": split}
        )
    content = {"groups": {"balls": {"may_train_shipped_weights": True}}, "cases": cases}
    (tmp_path / "cases.json").write_text(json.dumps(content))
    return tmp_path / "cases.json"


def test_only_training_cases_are_read(manifest):
    volumes = load_training_volumes(manifest, manifest.parent / "cache", PLAIN_CONFIG)
    assert [volume.name for volume in volumes] == ["first"]
    assert volumes[0].maps[1].max() > 10  # supervoxels


def test_a_group_whose_terms_forbid_it_is_left_out(manifest):
    content = json.loads(manifest.read_text())
    content["groups"]["balls"]["may_train_shipped_weights"] = False
    manifest.write_text(json.dumps(content))
    with pytest.raises(InputError, match="no case"):
        load_training_volumes(manifest, manifest.parent / "cache", PLAIN_CONFIG)


def test_supervoxels_are_kept(manifest):
    first = load_training_volumes(manifest, manifest.parent / "cache", PLAIN_CONFIG)[0]
    kept = {path: path.stat().st_mtime_ns for path in (manifest.parent / "cache").iterdir()}
    again = load_training_volumes(manifest, manifest.parent / "cache", PLAIN_CONFIG)[0]
    assert all(np.array_equal(a, b) for a, b in zip(first.maps, again.maps, strict=True))
    assert kept == {path: path.stat().st_mtime_ns for path in (manifest.parent / "cache").iterdir()}


def tiny_config(folder, **changes):
    settings = {
        "cases": "",
        "autoencoder_steps": 2,
        "steps": 4,
        "batch": 1,
        "synthetic_count": 2,
        "save_every": 2,
        "workers": 0,
    }
    return TrainingConfig(output=str(folder), **(settings | changes))


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    from safetensors.torch import load_file

    from SDFSMISLib.training import trainer

    trainer.train(tiny_config(tmp_path / "whole"))
    real, calls = trainer.EpisodeLearner.forward, []

    def stopped(*arguments):
        calls.append(1)
        if len(calls) == 4:  # behind the checkpoint at step 2
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(trainer.EpisodeLearner, "forward", stopped)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(tiny_config(tmp_path / "stopped"))
    monkeypatch.setattr(trainer.EpisodeLearner, "forward", real)
    folder = trainer.train(tiny_config(tmp_path / "stopped"))
    for part in ("unet", "vae", "image_encoder", "translator"):
        name = "model.safetensors" if part == "image_encoder" else "diffusion_pytorch_model.safetensors"
        one, other = (load_file(path / "pipeline" / part / name) for path in (tmp_path / "whole", folder.parent))
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("not json", "cannot be read"),
        ('{"cases": "", "output": "x", "stepps": 3}', "stepps"),
        ('{"cases": ""}', "output"),
    ],
)
def test_a_bad_configuration_is_refused_in_a_sentence(tmp_path, content, says):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(InputError, match=says):
        TrainingConfig.read(path)
