"""Ablations: pipelines without a part of the method, trained and tested so; the official code's training targets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmark_examples import (
    dice_of,
    few_organs,
    ran,
    scans_of,
    spleen_alone,
    write_config,
    write_scans,
    write_weights,
)
from SDFSMISLib.errors import InputError
from SDFSMISLib.model.built_in import Size, new_built_in
from SDFSMISLib.model.loading import load_pipeline
from SDFSMISLib.model.pipeline import SDFSMISPipeline
from SDFSMISLib.training.config import TrainingConfig
from SDFSMISLib.training.volumes import load_training_volumes
from test_benchmark_run import run_words, write_paper
from test_hints import blobs, disc

SIDE = 32


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scans(tmp_path_factory.mktemp("scans"))


def pipeline(*without: str) -> SDFSMISPipeline:
    made = new_built_in(0, Size(resolution=SIDE, channels=(16, 16)))
    made.register_to_config(without=list(without))
    return made


def picture(seed: int) -> torch.Tensor:
    return blobs(seed, SIDE)[None, None].expand(1, 3, -1, -1)


@torch.no_grad()
def predicted(pipe: SDFSMISPipeline, support: int = 1, radius: int = 8) -> torch.Tensor:
    """The mask latents of one query with one support."""
    masks = disc(SIDE / 2, SIDE / 2, radius, SIDE)[None, None]
    bank = pipe.encode_support(picture(support)[None], masks)
    return pipe.predict(pipe.encode_images(picture(7)), bank)


def test_without_nothing_all_is_as_before() -> None:
    plain = new_built_in(0, Size(resolution=SIDE, channels=(16, 16)))
    assert list(plain.config.without) == []
    assert torch.equal(predicted(plain), predicted(pipeline()))


@pytest.mark.parametrize("part", ["translator", "prototype", "bank"])
def test_each_part_makes_a_difference(part: str) -> None:
    assert not torch.allclose(predicted(pipeline()), predicted(pipeline(part)), atol=1e-5)


def test_without_the_translator_the_condition_is_empty() -> None:
    token = pipeline("translator").condition_token(picture(1)[None], torch.ones(1, 1, SIDE, SIDE))
    assert token.shape == (1, 1, pipeline().translator.config.output_dim) and not token.any()


def test_without_the_bank_queries_see_no_keys_of_the_supports() -> None:
    masks = torch.ones(1, 2, SIDE, SIDE)
    bank = pipeline("bank").encode_support(torch.cat([picture(1), picture(2)])[None], masks)
    assert all(keys.shape[1] == 0 for keys in (*bank.keys.values(), *bank.values.values())) and bank.shots == 2


def test_without_all_three_the_support_is_not_seen_at_all() -> None:
    """So there is no fourth way by which it comes in."""
    blind = pipeline("translator", "prototype", "bank")
    assert torch.equal(predicted(blind, support=1), predicted(blind, support=2, radius=4))
    for part in ("translator", "prototype", "bank"):
        others = [name for name in ("translator", "prototype", "bank") if name != part]
        seeing = pipeline(*others)
        assert not torch.equal(predicted(seeing, support=1), predicted(seeing, support=2, radius=4)), part


def test_a_folder_keeps_what_its_weights_were_trained_without(tmp_path: Path) -> None:
    pipeline("bank", "prototype").save_pretrained(tmp_path / "folder")
    assert list(load_pipeline(tmp_path / "folder", "cpu").config.without) == ["bank", "prototype"]
    with pytest.raises(InputError, match="without"):
        path = tmp_path / "config.json"
        path.write_text(json.dumps({"cases": "", "output": "x", "without": ["vae"]}), encoding="utf-8")
        TrainingConfig.read(path)


def test_one_command_makes_the_ablation_table(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spleen_alone(monkeypatch)
    config = write_config(tmp_path, steps=1, losses={"dice": 1.0, "latent": 0.1})
    words = ["ablate", *run_words(manifest, config, tmp_path / "out")[1:]]
    ran(*words, "--fold", "0")
    names = ["vtct", "query-enhancement", "support-values", "dice", "latent"]
    out = capsys.readouterr().out
    assert "## Abd-MRI, fold 0: ablations, Dice, %" in out
    assert [line.split(" | ")[1] for line in out.splitlines() if "| without" in line] == [f"without {n}" for n in names]
    assert (tmp_path / "out" / "ablation.md").read_text(encoding="utf-8") in out
    for name in names:
        kept = tmp_path / "out" / f"without-{name}" / "training" / "fold0-all" / "configuration.json"
        settings = json.loads(kept.read_text(encoding="utf-8"))
        assert settings["losses"].get(name, 1.0) == (0.0 if name in ("dice", "latent") else 1.0)
    kept_once = list((tmp_path / "out").rglob("supervoxels_*.npz"))
    assert kept_once and {path.parent for path in kept_once} == {tmp_path / "out/training-set/chaos_t2/supervoxels"}


def test_weights_as_they_are_can_be_ablated(manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spleen_alone(monkeypatch)
    weights = write_weights(tmp_path / "tiny")
    words = run_words(manifest, "none", tmp_path / "out", "--model", weights, "--protocol", "official", "--fold", "0")
    ran("ablate", *words[1:])
    found = [dice_of(path) for path in sorted((tmp_path / "out").iterdir()) if path.is_dir()]
    assert len(found) == 4 and all(one != other for one in found for other in found if one is not other)


def test_the_official_training_asks_for_labels_in_place_of_supervoxels(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_organs(monkeypatch, "left kidney", "spleen")
    config, start = write_paper(tmp_path)
    words = run_words(manifest, config, tmp_path / "out", "--model", start, "--fold", "0", "--protocol", "official")
    ran(*words)
    folder = tmp_path / "out" / "training" / "fold0-official"
    settings = TrainingConfig.read(folder / "configuration.json", cases=str(folder / "cases.json"), output="x")
    volumes = load_training_volumes(folder / "cases.json", tmp_path / "cache", settings)
    assert len(volumes) == len(scans_of(manifest)) - 4
    for volume in volumes:
        labels, targets = volume.maps
        assert np.array_equal(labels, targets) and set(np.unique(targets)) == {0, 2, 3}  # the kidneys
    rows = dice_of(tmp_path / "out")
    assert {organ for _, _, organ in rows} == {"left kidney", "spleen"}
    (path,) = (tmp_path / "out" / "results").iterdir()
    told = json.loads(path.read_text(encoding="utf-8"))["about"]["configuration"]
    assert (told["supervoxels"], told["across"]) == ("labels", "labels")
