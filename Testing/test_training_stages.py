"""What a training run does beside descending: memory, pre-training, accumulation, averages, pictures, logs, kills."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file

from SDFSMISLib.cli.app import main
from SDFSMISLib.errors import InputError
from SDFSMISLib.evaluation import held_out_dice
from SDFSMISLib.model.built_in import Size, new_built_in
from SDFSMISLib.model.loading import load_pipeline
from SDFSMISLib.model.pipeline import SDFSMISPipeline
from SDFSMISLib.training import trainer
from SDFSMISLib.training.config import TrainingConfig
from SDFSMISLib.training.episodes import EpisodeSampler
from SDFSMISLib.training.learner import Denoiser, EpisodeLearner
from SDFSMISLib.training.trainer import Pace, learn_only, starting_pipeline, train
from SDFSMISLib.training.volumes import EpisodeBatch, synthetic_volumes
from training_examples import kill_before_it_saves_again, tiny_config, tiny_settings, write_manifest

SMALL = Size(resolution=32, channels=(16, 16))
ONE_STAGE: dict[str, Any] = {"autoencoder_steps": 0, "average": 0.0, "half": False}


def episodes(size: int, config: TrainingConfig) -> EpisodeBatch:
    return EpisodeSampler(synthetic_volumes(1, 0), SMALL.resolution, config).batch(size, 0)


def weights(output: Path) -> dict[str, torch.Tensor]:
    """All weights of a finished run."""
    parts = load_pipeline(output / "pipeline", "cpu").components
    return {f"{part}.{name}": value for part, network in parts.items() for name, value in network.state_dict().items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


# -- checkpointing


def gradients(checkpointing: bool) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients by name, and how many values are kept for them between the passes."""
    config = tiny_config(Path("unused"), mix={"propagate": 1.0})
    pipe = new_built_in(1, SMALL)
    learn_only(pipe, ("unet", "translator", "image_encoder", "decoder"))
    if checkpointing:
        pipe.unet.enable_gradient_checkpointing()
        pipe.vae.enable_gradient_checkpointing()
    torch.manual_seed(0)
    kept: list[int] = []
    learner = EpisodeLearner(pipe, config)
    batch = episodes(2, config)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        loss = learner(batch).loss
    loss.backward()
    return {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}, sum(kept)


def test_checkpointing_changes_no_gradient_and_keeps_less() -> None:
    """Those of the support pass too, whose keys and values leave it by another way than its output."""
    (plain, much), (checkpointed, little) = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys()
    assert any("conv_in_ref" in name for name in plain)
    for name, gradient in plain.items():
        rounding = 1e-5 * float(gradient.abs().max())
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-5, atol=rounding, msg=name)
    assert little < 0.7 * much


# -- denoising


def test_denoising_learns_and_leaves_all_but_the_unet_alone(tmp_path: Path) -> None:
    settings = ONE_STAGE | {"mix": {"independent": 1.0}, "decoded": False}
    config = tiny_config(tmp_path, **settings, denoising_steps=40, steps=0, warmup=5)
    train(config)
    before = new_built_in(config.seed, SMALL)
    after = weights(tmp_path)
    for part in ("image_encoder", "vae", "translator"):
        for name, value in getattr(before, part).state_dict().items():
            assert torch.equal(value, after[f"{part}.{name}"]), name
    assert torch.equal(after["unet.conv_in.weight"], after["unet.conv_in_ref.weight"])
    images = episodes(8, config).query_images
    trained = new_built_in(config.seed, SMALL)
    trained.unet.load_state_dict({k.removeprefix("unet."): x for k, x in after.items() if k.startswith("unet.")})
    losses = []
    for pipe in (before, trained):
        pipe.register_to_config(folds=True)
        torch.manual_seed(0)
        with torch.no_grad():
            losses.append(float(Denoiser(pipe)(images)))
    assert losses[1] < 0.9 * losses[0]


def test_each_row_is_denoised_at_its_own_timestep() -> None:
    unet = new_built_in(0, SMALL).unet
    noisy, steps = torch.randn(1, 16, 8, 8).expand(2, -1, -1, -1), torch.tensor([1, 900])
    with torch.no_grad():
        conditions = unet.condition_constants(torch.zeros(1, 1, 64))
        both = unet.denoise(noisy, steps, conditions)
        torch.testing.assert_close(both[1:], unet.denoise(noisy[:1], steps[1:], conditions))
    assert not torch.allclose(both[0], both[1], atol=1e-4)


def test_pixels_are_not_folded_into_too_few_channels(tmp_path: Path) -> None:
    pipe = new_built_in(0, SMALL)
    vae = AutoencoderKL.from_config(dict(pipe.vae.config) | {"latent_channels": 4})
    few = SDFSMISPipeline(vae, pipe.unet, pipe.image_encoder, pipe.translator, resolution=32)
    few.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="set decoded to true"):
        starting_pipeline(TrainingConfig(cases="", output="", start=str(tmp_path), decoded=False))
    index = tmp_path / "model_index.json"
    index.write_text(index.read_text().replace('"folds": false', '"folds": true'))
    with pytest.raises(InputError, match="4 channels for 4 x 4 pixels"):
        load_pipeline(tmp_path, "cpu")


def test_weights_see_folded_pixels_as_they_did_in_training(tmp_path: Path) -> None:
    folded = train(tiny_config(tmp_path / "first", **ONE_STAGE, decoded=False, steps=1))
    assert load_pipeline(folded, "cpu").config.folds
    further = tiny_settings(tmp_path / "second", **ONE_STAGE, start=str(folded), steps=1)
    del further["network"]
    through = train(TrainingConfig(**further))
    assert not load_pipeline(through, "cpu").config.folds


def test_networks_of_our_own_kind_get_the_inputs_that_their_folder_lacks(tmp_path: Path) -> None:
    small = Size(resolution=32, channels=(16, 16), neighbour=False, likeness=False)
    made = new_built_in(5, small)
    made.save_pretrained(tmp_path / "start")
    begun = starting_pipeline(TrainingConfig(cases="", output="", start=str(tmp_path / "start")))
    assert begun.takes_neighbours and begun.unet.config.likeness
    assert not begun.unet.conv_in_neighbour.weight.any() and not begun.unet.conv_in_likeness.weight.any()
    assert not begun.unet.conv_in_known.weight.any() and not begun.takes_ahead
    for name, value in made.unet.state_dict().items():
        assert torch.equal(value, begun.unet.state_dict()[name])
    with_ahead = starting_pipeline(TrainingConfig(cases="", output="", start=str(tmp_path / "start"), ahead=0.5))
    assert with_ahead.takes_ahead and not with_ahead.unet.conv_in_ahead.weight.any()
    with_ahead.save_pretrained(tmp_path / "with")
    again = starting_pipeline(TrainingConfig(cases="", output="", start=str(tmp_path / "with")))
    assert again.takes_ahead, "an input stays when a later training does not show it"


# -- steps


def descended(folder: Path, rows: list[slice], monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Weights after one step on parts of the same two episodes."""
    config = tiny_config(
        folder, **ONE_STAGE, steps=1, accumulate=len(rows), warmup=0, losses={"latent": 1.0}, mix={"independent": 1.0}
    )
    batch = episodes(2, config)
    parts = iter(
        EpisodeBatch(
            batch.support_images[r], batch.support_masks[r], batch.query_images[r], batch.query_masks[r], batch.painted
        )
        for r in rows
    )
    monkeypatch.setattr(EpisodeSampler, "rendered", lambda *_: next(parts))
    with monkeypatch.context() as context:
        context.setattr(torch.optim, "AdamW", lambda groups, lr, weight_decay: torch.optim.SGD(groups, lr=lr))
        train(config)
    monkeypatch.undo()
    return weights(folder)


def test_two_passes_of_one_episode_make_the_step_of_one_pass_of_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = descended(tmp_path / "parts", [slice(0, 1), slice(1, 2)], monkeypatch)
    whole = descended(tmp_path / "whole", [slice(0, 2)], monkeypatch)
    begun = new_built_in(0, SMALL).unet.state_dict()
    assert not torch.equal(whole["unet.conv_in.weight"], begun["conv_in.weight"])
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_the_result_is_the_moving_average_of_the_weights(tmp_path: Path) -> None:
    """At each step it moves towards the weights by one minus `average`, or faster where the run is young."""
    name, seen = "unet.conv_out.weight", []

    def progress(done: int, total: int, text: str) -> None:
        if done > 1:  # the checkpoint of the step before is there
            seen.append(load_file(tmp_path / "segmentation.safetensors"))

    train(tiny_config(tmp_path, **ONE_STAGE | {"average": 0.15}, steps=3, save_every=1), progress)
    seen.append(load_file(tmp_path / "segmentation.safetensors"))
    wanted = new_built_in(0, SMALL).unet.state_dict()["conv_out.weight"]
    for step, kept in enumerate(seen):
        decay = min(0.15, (1 + step) / (10 + step))
        wanted = decay * wanted + (1 - decay) * kept[f"network.{name}"]
        torch.testing.assert_close(kept[f"average.{name}"], wanted, rtol=1e-5, atol=1e-7)
    assert len(seen) == 3
    assert torch.equal(weights(tmp_path)[name], seen[-1][f"average.{name}"])
    assert not torch.equal(seen[-1][f"average.{name}"], seen[-1][f"network.{name}"])


def test_episodes_made_on_the_device_are_those_of_the_workers(tmp_path: Path) -> None:
    settings = ONE_STAGE | {"cases": str(write_manifest(tmp_path)), "steps": 2, "save_every": 2, "synthetic_share": 0.5}
    trained = []
    for name, on_device in (("workers", False), ("device", True)):
        folder = tmp_path / name
        train(tiny_config(folder, **settings, on_device=on_device, workers=1), cache=tmp_path / "cache")
        trained.append(weights(folder))
    assert all(torch.equal(trained[0][key], trained[1][key]) for key in trained[0])


# -- by the clock


class Clock:
    """In place of the module `time`: it goes on by so many seconds from step to step."""

    def __init__(self, *steps: float) -> None:
        self.now, self.steps = 0.0, list(steps)

    def monotonic(self) -> float:
        return self.now

    def step(self) -> None:
        self.now += self.steps.pop(0)


def paced(clock: Clock, seconds: float, spent: float = 0.0) -> list[float]:
    """How far each step found the stage."""
    pace, shares = Pace(0, seconds, spent), []
    for number in pace.all_steps(first=5):
        assert number == 5 + len(shares)
        shares.append(pace.share)
        clock.step()
    assert pace.is_last
    return shares


def test_the_last_step_by_the_clock_begins_at_the_end_of_the_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(*[10.0] * 10)
    monkeypatch.setattr(trainer, "time", clock)
    assert paced(clock, seconds=50) == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0])
    assert clock.now == 50, "the time is used up and not exceeded"
    clock.now = 1000.0
    assert paced(clock, seconds=50, spent=30) == pytest.approx([0.6, 1.0]), "a run that goes on"


def test_a_step_longer_than_all_the_time_is_followed_by_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(70.0, 1.0)
    monkeypatch.setattr(trainer, "time", clock)
    assert paced(clock, seconds=50) == [0.0, 1.0]


def test_the_schedule_does_not_go_back_after_a_step_that_took_long(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(1.0, 29.0, *[1.0] * 70)
    monkeypatch.setattr(trainer, "time", clock)
    shares = paced(clock, seconds=100)
    assert shares == sorted(shares) and shares[2:4] == pytest.approx([30 / 71] * 2) and clock.now == 100


def test_some_steps_are_late_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(69.0, 2.0)
    monkeypatch.setattr(trainer, "time", clock)
    pace, late = Pace(0, seconds=100), []
    for _ in range(2):
        clock.step()
        late.append(pace.is_late(step=0, late=0.3))
    assert late == [False, True]


def test_a_stopped_run_goes_on_with_the_time_that_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, reached = Clock(25.0, 25.0, 5.0, 10.0, 20.0, 0.0), []
    monkeypatch.setattr(trainer, "time", clock)
    config = tiny_config(tmp_path, **ONE_STAGE, minutes=1.0, save_every=1)

    def progress(done: int, total: int, text: str) -> None:
        clock.step()
        reached.append((done, total))
        if len(reached) == 2:  # of which the second is not saved
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, progress)
    clock.now += 1000.0
    train(config, progress)
    train(config, progress)  # it is over
    assert reached == [(0, 60), (25, 60), (25, 60), (30, 60), (40, 60), (60, 60)]


def test_the_pipeline_is_written_while_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, found = Clock(*[30.0] * 4), []
    monkeypatch.setattr(trainer, "time", clock)

    def written(folder: Path) -> None:
        found.append((clock.now, load_pipeline(folder, "cpu").unet.state_dict()["conv_out.weight"]))

    train(tiny_config(tmp_path, **ONE_STAGE, write_every=1.0), lambda *_: clock.step(), written=written)
    assert [now for now, _ in found] == [60.0, 120.0], "after a minute, and at the end"
    assert not torch.equal(found[0][1], found[1][1])


# -- what is written


class Board:
    """In place of tensorboard's writer."""

    written: list[tuple[str, float, int]] = []

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.written.append((name, value, step))

    def flush(self) -> None:
        pass


def test_log_pictures_validation_and_tensorboard_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Board  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    manifest = write_manifest(tmp_path)
    content = json.loads(manifest.read_text(encoding="utf-8"))
    content["cases"].append(content["cases"][0] | {"id": "third"})
    manifest.write_text(json.dumps(content), encoding="utf-8")
    every = {"cases": str(manifest), "held_out": ["third"], "validate_every": 2, "picture_every": 2}
    config = tiny_config(tmp_path / "out", **ONE_STAGE, **every, batch=2, steps=2, denoising_steps=2)
    train(config, validate=held_out_dice)
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    names = {name for line in lines for name in line}
    assert names >= {"step", "denoising", "loss", "entropy", "dice", "latent", "overlap", "validation balls"}
    assert {name for name, *_ in Board.written} == names
    with Image.open(tmp_path / "out" / "pictures" / "step_000002.png") as picture:
        assert picture.height == 2 * 32 and picture.width % 32 == 0


def test_without_tensorboard_the_log_is_written_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    train(tiny_config(tmp_path, **ONE_STAGE, steps=1))
    assert (tmp_path / "log.jsonl").read_text(encoding="utf-8").count("\n") == 1


# -- runs that were stopped


def test_a_run_stopped_in_a_step_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ONE_STAGE | {"on_device": True}
    train(tiny_config(tmp_path / "whole", **settings))
    forward, calls = EpisodeLearner.forward, []

    def stopped(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:  # behind the checkpoint at step 2
            raise KeyboardInterrupt
        return forward(*arguments)

    with monkeypatch.context() as context:
        context.setattr(EpisodeLearner, "forward", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(tiny_config(tmp_path / "stopped", **settings))
    train(tiny_config(tmp_path / "stopped", **settings))
    assert_same(weights(tmp_path / "stopped"), weights(tmp_path / "whole"))


def test_a_killed_process_is_taken_up_to_the_same_weights_bit_by_bit(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path / "killed", denoising_steps=2, half=False)
    (tmp_path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    words = ["train", "--config", str(tmp_path / "config.json")]
    kill_before_it_saves_again(tmp_path / "killed" / "segmentation.safetensors", main, words)
    assert not (tmp_path / "killed" / "pipeline").exists()
    assert main(words) == 0
    assert main([*words, "--output", str(tmp_path / "whole")]) == 0
    assert_same(weights(tmp_path / "killed"), weights(tmp_path / "whole"))
