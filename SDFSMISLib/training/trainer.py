"""The trainer of the built-in weights: first the decoder of the autoencoder, then U-Net, image encoder and translator
on episodes.

The encoder is set, not learned (`fold_encoder`). With `autoencoder_weight` 0 the decoder is frozen after its own stage,
as in the paper; a small one that has seen few images gains from learning on with the rest, its own loss weighted so.
The rest learns from the decoded mask (cross-entropy and soft Dice;
one step without noise allows it: Martin Garcia et al., "Fine-tuning image-conditional diffusion models is easier than
you think", WACV 2025) and from the mask latent (mean squared error, the paper's loss).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset

from SDFSMISLib.errors import InputError
from SDFSMISLib.model.built_in import new_built_in
from SDFSMISLib.model.loading import load_pipeline, quiet
from SDFSMISLib.model.pipeline import SDFSMISPipeline
from SDFSMISLib.training.episodes import EpisodeBatch, EpisodeSampler
from SDFSMISLib.training.volumes import TrainingVolume, load_training_volumes, synthetic_volumes

LOGIT_SCALE = 4.0  # decoded masks lie around -1 and 1; as logits of the cross-entropy they are stretched by this


@dataclass(frozen=True)
class TrainingConfig:
    """All that a training run depends on; read from JSON.

    Attributes:
        cases: manifest of training volumes (only its `split: train`), or "" for synthetic ones alone.
        output: folder of checkpoints and of the finished pipeline.
        start: a pipeline folder of the built-in configuration to start from; "" = random weights.
        autoencoder_steps, steps: optimiser steps of the two stages; with 0 the decoder stays as it is in `start`.
        batch: episodes per step. rate: peak learning rate (warm-up, then cosine to 3 %). decay: of AdamW.
        average: decay of the exponential moving average that is kept as the result.
        mix, synthetic_share, label_share: see `EpisodeSampler`.
        latent_weight: weight of the paper's loss beside the loss on the decoded mask.
        autoencoder_weight: weight of the autoencoder's loss in the second stage; 0 freezes it there.
        without_prior: share of batches that are asked without the neighbour's mask as prior.
        save_every: steps between checkpoints.
    """

    cases: str
    output: str
    start: str = ""
    seed: int = 0
    autoencoder_steps: int = 1000
    steps: int = 4000
    batch: int = 8
    autoencoder_rate: float = 2e-3
    rate: float = 8e-4
    decay: float = 0.01
    average: float = 0.998
    synthetic_count: int = 40
    mix: dict[str, float] = field(default_factory=lambda: {"propagate": 0.6, "independent": 0.28, "cross": 0.12})
    synthetic_share: float = 0.25
    label_share: float = 0.45
    latent_weight: float = 0.1
    autoencoder_weight: float = 0.0
    without_prior: float = 0.0
    save_every: int = 100
    workers: int = 1

    @classmethod
    def read(cls, path: Path) -> TrainingConfig:
        """The configuration in a JSON file; `InputError` for one that cannot be read or has unknown keys."""
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"The configuration {path} cannot be read ({error}); give a JSON file.") from error
        unknown = set(content) - {f.name for f in fields(cls)}
        if unknown:
            raise InputError(f"{path} has unknown keys {sorted(unknown)}; known are {[f.name for f in fields(cls)]}.")
        missing = {"cases", "output"} - set(content)
        if missing:
            raise InputError(f"{path} lacks {sorted(missing)}.")
        return cls(**content)


class _Episodes(Dataset):
    """Batch number -> batch, so that a resumed run goes on with the very batches that were to come."""

    def __init__(self, sampler: EpisodeSampler, size: int, first: int, last: int) -> None:
        self.sampler, self.size, self.first, self.last = sampler, size, first, last

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, index: int) -> EpisodeBatch:
        torch.set_num_threads(1)
        return self.sampler.batch(self.size, self.first + index)


def train(config: TrainingConfig) -> Path:
    """Train, or go on training, and return the folder of the finished pipeline (float16)."""
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline = new_built_in(config.seed).to(device)
    if config.start:
        begun = load_pipeline(config.start, device)
        for name, network in begun.components.items():
            getattr(pipeline, name).load_state_dict(network.state_dict())
        pipeline.vae.register_to_config(scaling_factor=begun.vae.config.scaling_factor)
    for network in (pipeline.vae, pipeline.unet):
        network.to(memory_format=torch.channels_last)  # a step takes 1.6 s instead of 2.2 s on one core
    volumes: list[TrainingVolume] = []
    if config.cases:
        volumes += load_training_volumes(Path(config.cases), output / "cache")
    volumes += synthetic_volumes(config.synthetic_count, config.seed)
    sampler = EpisodeSampler(
        volumes, pipeline.config.resolution, config.seed, config.mix, config.synthetic_share, config.label_share
    )
    if config.autoencoder_steps:
        _train_autoencoder(pipeline, sampler, config, output)
    average = _train_segmentation(pipeline, sampler, config, output)
    part = output / ".pipeline.part"
    with quiet():
        average.to("cpu", torch.float16)
        average.save_pretrained(part)
    shutil.rmtree(output / "pipeline", ignore_errors=True)
    part.rename(output / "pipeline")
    return output / "pipeline"


# -- first stage: the autoencoder


def _train_autoencoder(
    pipeline: SDFSMISPipeline, sampler: EpisodeSampler, config: TrainingConfig, output: Path
) -> None:
    vae = pipeline.vae
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    state = _Checkpoint(output / "autoencoder.safetensors", {"vae": vae}, config.autoencoder_rate, config.decay)
    for step, batch in _batches(sampler, config, state.load(), config.autoencoder_steps):
        state.set_rate(config.autoencoder_rate * _schedule(step, config.autoencoder_steps))
        pictures = torch.cat([batch.support_images.flatten(0, 1), batch.query_images])
        masks = 2 * torch.cat([batch.support_masks.flatten(0, 1), batch.query_masks]) - 1
        half = min(len(pictures), 2 * config.batch)
        inputs = torch.cat([pictures[-half:], masks[-half:]])[:, None].expand(-1, 3, -1, -1).to(pipeline.device)
        with torch.no_grad():
            latents = vae.encode(inputs).latent_dist.mode()
        decoded = vae.decode(latents).sample
        error = (decoded - inputs).abs()
        loss = error.mean() + (decoded - inputs).square().mean()
        state.update(loss)
        if step % 50 == 0:
            _say(output, {"autoencoder": step, "image": error[:half].mean().item(), "mask": error[half:].mean().item()})
        if (step + 1) % config.save_every == 0 or step + 1 == config.autoencoder_steps:
            state.save(step + 1, {"scaling_factor": 1 / latents.std().item()})
    vae.register_to_config(scaling_factor=float(state.extra["scaling_factor"]))


# -- second stage: episodes


def _train_segmentation(
    pipeline: SDFSMISPipeline, sampler: EpisodeSampler, config: TrainingConfig, output: Path
) -> SDFSMISPipeline:
    for part in (pipeline.vae.decoder, pipeline.vae.post_quant_conv):
        part.requires_grad_(config.autoencoder_weight > 0)
    learned = dict(pipeline.components)
    average = new_built_in(config.seed).to(pipeline.device)
    average.vae.register_to_config(scaling_factor=pipeline.vae.config.scaling_factor)
    state = _Checkpoint(
        output / "segmentation.safetensors", learned, config.rate, config.decay, dict(average.components)
    )
    began, seen = time.monotonic(), 0
    sums: dict[str, float] = {}
    for step, batch in _batches(sampler, config, state.load(), config.steps, offset=10_000_000):
        state.set_rate(config.rate * _schedule(step, config.steps))
        loss, parts = episode_loss(pipeline, batch, config)
        state.update(loss, min(config.average, (1 + step) / (10 + step)))
        seen += 1
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + value
        if (step + 1) % 50 == 0:
            rate = (time.monotonic() - began) / seen
            _say(output, {"step": step + 1, "seconds": round(rate, 2)} | {k: round(v / 50, 4) for k, v in sums.items()})
            sums = {}
        if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
            state.save(step + 1, {})
    return average


def episode_loss(
    pipeline: SDFSMISPipeline, batch: EpisodeBatch, config: TrainingConfig
) -> tuple[torch.Tensor, dict[str, float]]:
    """Loss of a batch of episodes, and its parts as numbers for the log.

    Cross-entropy and soft Dice on the decoded mask, plus `latent_weight` x mean squared error on the scaled mask
    latent, plus `autoencoder_weight` x absolute error of what the decoder makes of an image's or a mask's own latent.
    """
    device = pipeline.device
    images = batch.support_images.to(device)[:, :, None].expand(-1, -1, 3, -1, -1)
    masks = batch.support_masks.to(device)
    queries = batch.query_images.to(device)[:, None].expand(-1, 3, -1, -1)
    target = batch.query_masks.to(device)
    with torch.no_grad():
        mask_latents, answer = pipeline.encode_masks(masks.flatten(0, 1)), pipeline.encode_masks(target)
        latents, query_latents = pipeline.encode_images(images.flatten(0, 1)), pipeline.encode_images(queries)
    token = pipeline.condition_token(images[:, : batch.painted], masks[:, : batch.painted])
    bank = pipeline.support_bank(
        latents, mask_latents, masks.flatten(0, 1), pipeline.unet.condition_constants(token), masks.shape[1]
    )
    prior = masks[:, -1] if batch.painted < masks.shape[1] else None  # the last finished slice shows where to look
    if torch.rand(()) < config.without_prior:
        prior = None
    predicted = pipeline.predict(query_latents, bank, prior)
    logits = LOGIT_SCALE * pipeline.decode_raw(predicted).mean(1)
    entropy = F.binary_cross_entropy_with_logits(logits, target)
    probability = logits.sigmoid()
    overlap = (probability * target).sum((1, 2))
    dice = (2 * overlap + 10) / (probability.sum((1, 2)) + target.sum((1, 2)) + 10)
    latent = F.mse_loss(predicted, answer)
    loss = entropy + (1 - dice).mean() + config.latent_weight * latent
    if config.autoencoder_weight > 0:
        half = len(target) // 2  # of the episodes the image comes back, of the others the mask
        shown = torch.cat([queries[:half], (2 * target[half:, None] - 1).expand(-1, 3, -1, -1)])
        decoded = pipeline.decode_raw(torch.cat([query_latents[:half], answer[half:]]))
        loss = loss + config.autoencoder_weight * (decoded - shown).abs().mean()
    with torch.no_grad():
        hard, present = (logits > 0).float(), target.sum((1, 2)) > 0
        exact = 2 * (hard * target).sum((1, 2)) / (hard.sum((1, 2)) + target.sum((1, 2))).clamp(min=1)
        score = exact[present].mean().item() if present.any() else 1.0
    return loss, {"loss": loss.item(), "entropy": entropy.item(), "latent": latent.item(), "dice": score}


# -- what both stages need


class _Checkpoint:
    """Networks, optimiser, average and step number in one safetensors file, written beside and renamed."""

    def __init__(
        self,
        path: Path,
        networks: dict[str, nn.Module],
        rate: float,
        decay: float,
        averaged: dict[str, nn.Module] | None = None,
    ) -> None:
        self.path, self.networks, self.averaged = path, networks, averaged or {}
        self.parameters = [p for n in networks.values() for p in n.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=rate, weight_decay=decay)
        self.extra: dict[str, float] = {}
        for name, network in self.averaged.items():
            network.load_state_dict(networks[name].state_dict())

    def set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def update(self, loss: torch.Tensor, average: float = 0.0) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        with torch.no_grad():
            for name, network in self.averaged.items():
                for kept, now in zip(network.parameters(), self.networks[name].parameters(), strict=True):
                    kept.lerp_(now, 1 - average)

    def save(self, step: int, extra: dict[str, float]) -> None:
        self.extra = extra
        tensors: dict[str, torch.Tensor] = {}
        for kind, networks in (("network", self.networks), ("average", self.averaged)):
            for name, network in networks.items():
                tensors |= {f"{kind}.{name}.{k}": v.contiguous() for k, v in network.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v.contiguous() for k, v in moments.items()}
        part = self.path.with_name(f".{self.path.name}.part")
        save_file(tensors, part, metadata={"step": str(step), "extra": json.dumps(extra)})
        os.replace(part, self.path)

    def load(self) -> int:
        """The step to go on with: 0 where there is no checkpoint."""
        if not self.path.exists():
            return 0
        from safetensors import safe_open

        with safe_open(self.path, "pt") as kept:
            metadata = kept.metadata()
        tensors = load_file(self.path)
        for kind, networks in (("network", self.networks), ("average", self.averaged)):
            for name, network in networks.items():
                prefix = f"{kind}.{name}."
                network.load_state_dict({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})
        state = self.optimizer.state_dict()
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".", 2)
                state["state"].setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict(state)
        self.extra = json.loads(metadata["extra"])
        return int(metadata["step"])


def _batches(
    sampler: EpisodeSampler, config: TrainingConfig, first: int, last: int, offset: int = 0
) -> Iterator[tuple[int, EpisodeBatch]]:
    if first >= last:
        return
    dataset = _Episodes(sampler, config.batch, offset + first, offset + last)
    threads = torch.get_num_threads()
    with contextlib.ExitStack() as stack:
        loader = DataLoader(
            dataset, batch_size=None, num_workers=config.workers, prefetch_factor=4 if config.workers else None
        )
        stack.callback(torch.set_num_threads, threads)
        for step, batch in enumerate(loader, start=first):
            torch.manual_seed(config.seed + offset + step)  # so that a resumed run draws what the whole one would have
            yield step, batch


def _schedule(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / 100)
    return warm * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _say(output: Path, record: dict[str, float]) -> None:
    line = json.dumps(record)
    print(line, flush=True)
    with (output / "log.jsonl").open("a") as log:
        log.write(line + "\n")
