"""One trainer for every size: where wanted the decoder of the autoencoder and the U-Net on images, then all of it on
episodes.

It runs on accelerate: `sdfsmis train` on a CPU or one GPU, `accelerate launch -m SDFSMISLib.cli train` on several GPUs
or machines. A run that was stopped at any moment goes on from its last checkpoint with the very batches and draws
that were to come, so that on a CPU it ends in the same weights, bit by bit.
"""

from __future__ import annotations

import copy
import math
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from diffusers import AutoencoderKL
from torch import nn
from torch.utils.data import DataLoader, Dataset

from SDFSMISLib.errors import InputError
from SDFSMISLib.model.built_in import new_built_in
from SDFSMISLib.model.loading import load_pipeline, quiet
from SDFSMISLib.model.pipeline import SDFSMISPipeline
from SDFSMISLib.model.unet import SupportQueryUNet
from SDFSMISLib.training.checkpoint import Checkpoint, Log, write_episodes
from SDFSMISLib.training.config import TrainingConfig
from SDFSMISLib.training.episodes import EpisodeSampler
from SDFSMISLib.training.learner import (
    Denoiser,
    EpisodeLearner,
    copy_input_weights,
    own_settings,
    with_folding_autoencoder,
)
from SDFSMISLib.training.unlabelled_episodes import UnlabelledSampler, match_scans
from SDFSMISLib.training.volumes import (
    EpisodeBatch,
    TrainingVolume,
    label_volumes,
    load_training_volumes,
    synthetic_volumes,
)

__all__ = ["Progress", "TrainingRun", "Validator", "starting_pipeline", "train"]

AUTOENCODER, DENOISING, SEGMENTATION = 0, 5_000_000, 10_000_000  # first batches: no two stages share one
COSINE_FLOOR = 0.03
POLYNOMIAL_FLOOR = 1e-4

Progress = Callable[[int, int, str], None]
"""(steps done, steps in total, the last losses in words)"""

Validator = Callable[[SDFSMISPipeline, Path, Sequence[str]], Mapping[str, float]]
"""(networks, manifest, ids of its held-out cases) -> mean Dice by group; see `evaluation.held_out_dice`."""


def train(
    config: TrainingConfig,
    progress: Progress | None = None,
    cache: Path | None = None,
    validate: Validator | None = None,
) -> Path:
    """Train, or go on training, and return the folder of the finished pipeline.

    Args:
        config: the run; its `output` holds the checkpoints that a stopped run goes on from.
        progress: called after each step of the main process.
        cache: folder of the supervoxels, shared by several trainings on the same scans; None: one in `output`.
        validate: measures held-out cases every `validate_every` steps; None: they are not measured.

    Raises:
        InputError: for scans that cannot be used, and a checkpoint of another configuration.
    """
    accelerator = Accelerator(
        mixed_precision=config.precision,
        gradient_accumulation_steps=config.accumulate,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    pipeline = starting_pipeline(config)
    pipeline.register_to_config(without=list(config.without))
    volumes: list[TrainingVolume] = []
    if config.cases:
        with accelerator.main_process_first():  # which leaves the supervoxels for the others
            volumes += load_training_volumes(Path(config.cases), cache or output / "cache", config)
    synthetic = synthetic_volumes(config.synthetic_count, config.seed)
    if config.label_maps:
        synthetic += label_volumes(Path(config.label_maps), config)
    sampler = _sampler(
        config, volumes, synthetic, pipeline, accelerator.device if config.on_device else "cpu", progress
    )
    del volumes, synthetic  # of which the sampler has copies
    log = Log(output, accelerator.is_main_process)
    run = TrainingRun(config, accelerator, sampler, log, progress, validate)
    if config.autoencoder_steps:
        run.autoencoder(pipeline)
    if config.denoising_steps:
        run.denoising(pipeline)
    result = run.segmentation(pipeline)
    if accelerator.is_main_process:
        _write(result, output, config.half)
    accelerator.wait_for_everyone()
    return output / "pipeline"


def starting_pipeline(config: TrainingConfig) -> SDFSMISPipeline:
    """The networks to begin with, float32; those of our own kind get the inputs that `start` lacks."""
    if not config.start:
        return new_built_in(config.seed, config.network)
    begun = load_pipeline(config.start, "cpu")
    if not begun.has_folding_autoencoder:
        return begun
    fresh = SupportQueryUNet.from_config(dict(begun.unet.config) | {"neighbour": True, "likeness": True, "known": True})
    fresh.load_state_dict(fresh.state_dict() | begun.unet.state_dict())
    begun.register_modules(unet=fresh)
    return begun


def _sampler(
    config: TrainingConfig,
    scans: list[TrainingVolume],
    synthetic: list[TrainingVolume],
    pipeline: SDFSMISPipeline,
    device: torch.device | str,
    progress: Progress | None,
) -> EpisodeSampler:
    resolution = pipeline.config.resolution
    if config.across == "registration" and config.mix.get("cross"):

        def report(number: int) -> None:
            if progress:
                progress(0, config.steps, f"comparing scans, {number} of {len(scans)}")

        pairs = match_scans(scans, report)
        if len(scans) > 1 and not pairs:
            text = "No two scans look alike: episodes across scans show slices of one scan, bent as if of another."
            warnings.warn(text, stacklevel=2)
        return UnlabelledSampler(scans + synthetic, resolution, config, pairs, pipeline.takes_neighbours, device)
    return EpisodeSampler(scans + synthetic, resolution, config, device)


def _write(pipeline: SDFSMISPipeline, output: Path, half: bool) -> None:
    part = output / ".pipeline.part"
    with quiet():
        pipeline.to("cpu", torch.float16 if half else torch.float32)
        pipeline.save_pretrained(part)
    shutil.rmtree(output / "pipeline", ignore_errors=True)
    part.rename(output / "pipeline")


class TrainingRun:
    """The stages of one run."""

    def __init__(
        self,
        config: TrainingConfig,
        accelerator: Accelerator,
        sampler: EpisodeSampler,
        log: Log,
        progress: Progress | None,
        validate: Validator | None,
    ) -> None:
        self.config, self.accelerator, self.sampler = config, accelerator, sampler
        self.log, self.progress, self.validate = log, progress, validate
        self.output = Path(config.output)

    def autoencoder(self, pipeline: SDFSMISPipeline) -> None:
        """The decoder learns to bring back images and masks; the encoder stays as it is set."""
        config, vae = self.config, pipeline.vae
        learn_only(pipeline, ("decoder",))
        optimizer = torch.optim.AdamW(_trainable(vae), lr=config.autoencoder_rate, weight_decay=config.decay)
        checkpoint = Checkpoint(self.output / "autoencoder.safetensors", {"network.vae": vae}, optimizer)
        first, extra = checkpoint.load()
        model = _Reconstruction(vae)
        learner, ready = self.accelerator.prepare(model, optimizer)
        for step, batches in self._batches_by_step(first, config.autoencoder_steps, AUTOENCODER):
            set_rate(optimizer, config.autoencoder_rate * _cosine(step, config.autoencoder_steps, config.warmup))
            for batch in batches:
                loss, image, mask, spread = learner(*_images_and_masks(batch, 2 * config.batch))
                self._optimise(learner, ready, loss)
            extra = {"scaling_factor": 1 / float(self.accelerator.gather(spread[None]).mean())}  # the same everywhere
            self._log_step(step, config.autoencoder_steps, {"autoencoder": loss.detach(), "image": image, "mask": mask})
            if self._is_due(step, config.autoencoder_steps, config.save_every):
                checkpoint.save(step + 1, extra)
        vae.register_to_config(scaling_factor=float(extra["scaling_factor"]))

    def denoising(self, pipeline: SDFSMISPipeline) -> None:
        """The U-Net learns to take noise off images; see `Denoiser`."""
        config, unet = self.config, pipeline.unet
        self._prepare(pipeline, ("unet",))
        optimizer = torch.optim.AdamW(_trainable(unet), lr=config.denoising_rate, weight_decay=config.decay)
        checkpoint = Checkpoint(self.output / "denoising.safetensors", {"network.unet": unet}, optimizer)
        first, _ = checkpoint.load()
        model, ready = self.accelerator.prepare(Denoiser(self._learner_view(pipeline)), optimizer)
        for step, batches in self._batches_by_step(first, config.denoising_steps, DENOISING):
            set_rate(optimizer, config.denoising_rate * _cosine(step, config.denoising_steps, config.warmup))
            for batch in batches:
                loss = model(_images_and_masks(batch, 2 * config.batch)[0])
                self._optimise(model, ready, loss)
            self._log_step(step, config.denoising_steps, {"denoising": loss.detach()})
            if self._is_due(step, config.denoising_steps, config.save_every):
                checkpoint.save(step + 1)
        copy_input_weights(pipeline)

    def segmentation(self, pipeline: SDFSMISPipeline) -> SDFSMISPipeline:
        """The learned parts learn from episodes; returns the pipeline of their moving averages."""
        config = self.config
        self._prepare(pipeline, config.learned)
        average = _moving_average(pipeline) if config.average else pipeline
        optimizer = new_optimizer(pipeline, config)
        kept = {f"network.{name}": network for name, network in _trained_networks(pipeline).items()}
        if config.average:
            kept |= {f"average.{name}": network for name, network in _trained_networks(average, of=pipeline).items()}
        checkpoint = Checkpoint(self.output / "segmentation.safetensors", kept, optimizer)
        first, _ = checkpoint.load()
        model, ready = self.accelerator.prepare(EpisodeLearner(self._learner_view(pipeline), config), optimizer)
        for step, batches in self._batches_by_step(first, config.steps, SEGMENTATION):
            set_rate(optimizer, config.rate * rate_share(step, config))
            for batch in batches:
                learned = model(batch)
                self._optimise(model, ready, learned.loss)
            if config.average:
                _update_average(average, pipeline, min(config.average, (1 + step) / (10 + step)))
            self._log_step(step, config.steps, learned.parts)
            if self._is_due(step, config.steps, config.picture_every):
                self._picture(step + 1, self._learner_view(pipeline), batch, learned.predicted)
            if self._is_due(step, config.steps, config.save_every):
                checkpoint.save(step + 1)
            if self._is_due(step, config.steps, config.validate_every):
                self._validate(step + 1, self._learner_view(average))
        return average

    # -- what the stages need

    def _prepare(self, pipeline: SDFSMISPipeline, learned: tuple[str, ...]) -> None:
        """On the device, these parts to learn."""
        pipeline.to(self.accelerator.device)
        for network in (pipeline.vae, pipeline.unet):
            network.to(memory_format=torch.channels_last)  # on a CPU, a step takes three quarters of the time
            if self.config.checkpointing:
                network.enable_gradient_checkpointing()
        learn_only(pipeline, learned)

    def _learner_view(self, pipeline: SDFSMISPipeline) -> SDFSMISPipeline:
        return pipeline if self.config.decoded else with_folding_autoencoder(pipeline)

    def _batches_by_step(self, first: int, last: int, offset: int) -> Iterator[tuple[int, Iterator[EpisodeBatch]]]:
        """(step, its batches on this process), with the random numbers that belong to the step."""
        accelerator, config = self.accelerator, self.config
        if first >= last:
            return
        numbers = [
            offset + (step * config.accumulate + part) * accelerator.num_processes + accelerator.process_index
            for step in range(first, last)
            for part in range(config.accumulate)
        ]
        workers = 0 if config.on_device else config.workers
        ahead = 4 if workers else None
        late = offset + round(last * (1 - config.late)) * config.accumulate * accelerator.num_processes
        dataset = _Episodes(self.sampler, config, numbers, late)
        batches = iter(
            DataLoader(
                dataset, batch_size=None, num_workers=workers, prefetch_factor=ahead, worker_init_fn=_use_one_thread
            )
        )
        for step in range(first, last):
            torch.manual_seed(config.seed + offset + step * accelerator.num_processes + accelerator.process_index)
            yield step, (_or_raise(next(batches)) for _ in range(config.accumulate))

    def _optimise(self, model: nn.Module, optimizer: Any, loss: torch.Tensor) -> None:
        with self.accelerator.accumulate(model):
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients and self.config.clip:
                self.accelerator.clip_grad_norm_(model.parameters(), self.config.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def _log_step(self, step: int, steps: int, parts: dict[str, torch.Tensor]) -> None:
        text = self.log.add(step + 1, steps, {name: float(value) for name, value in parts.items()})
        if self.progress and self.accelerator.is_main_process:
            self.progress(step + 1, steps, text)

    def _is_due(self, step: int, steps: int, every: int) -> bool:
        return self.accelerator.is_main_process and bool(every) and ((step + 1) % every == 0 or step + 1 == steps)

    @torch.no_grad()
    def _picture(self, step: int, pipeline: SDFSMISPipeline, batch: EpisodeBatch, predicted: torch.Tensor) -> None:
        maps = pipeline.decode(predicted).mean(1)
        write_episodes(batch, maps, self.output / "pictures" / f"step_{step:06d}.png")

    def _validate(self, step: int, pipeline: SDFSMISPipeline) -> None:
        """Logs the Dice of the held-out cases."""
        if self.validate and self.config.held_out:
            dice = self.validate(pipeline, Path(self.config.cases), self.config.held_out)
            if dice:
                self.log.write({"step": step} | {f"validation {name}": value for name, value in dice.items()})


def _use_one_thread(_: int) -> None:
    """A worker leaves the other cores to the networks."""
    torch.set_num_threads(1)


class _Episodes(Dataset):
    """Place -> batch, so that a resumed run goes on with the very batches that were to come."""

    def __init__(self, sampler: EpisodeSampler, config: TrainingConfig, numbers: list[int], late: int) -> None:
        self.sampler, self.config, self.numbers, self.late = sampler, config, numbers, late

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> EpisodeBatch | InputError:
        number = self.numbers[place]
        try:
            return self.sampler.batch(self.config.batch, number, number >= self.late)
        except InputError as error:  # which a loader would wrap in a traceback
            return error


def _or_raise(batch: EpisodeBatch | InputError) -> EpisodeBatch:
    """The batch; raises what a worker could not."""
    if isinstance(batch, InputError):
        raise batch
    return batch


class _Reconstruction(nn.Module):
    """What the decoder makes of the encoder's latents: absolute and squared error."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pictures: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, ...]:
        inputs = torch.cat([pictures, masks])[:, None].expand(-1, 3, -1, -1).to(next(self.vae.parameters()).device)
        with torch.no_grad():
            latents = self.vae.encode(inputs).latent_dist.mode()
        decoded = self.vae.decode(latents).sample
        error = (decoded - inputs).abs()
        image, mask = error[: len(pictures)].mean(), error[len(pictures) :].mean()
        return error.mean() + error.square().mean(), image.detach(), mask.detach(), latents.std()


def _images_and_masks(batch: EpisodeBatch, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and masks of a batch in [-1, 1], `most` of each at most."""
    pictures = torch.cat([batch.support_images.flatten(0, 1), batch.query_images])
    masks = 2 * torch.cat([batch.support_masks.flatten(0, 1), batch.query_masks]) - 1
    return pictures[-most:], masks[-most:]


# -- parameters and their averages


def learn_only(pipeline: SDFSMISPipeline, parts: tuple[str, ...]) -> None:
    """Let these parts learn (see `TrainingConfig.learned`), and nothing else."""
    for name, network in pipeline.components.items():
        network.requires_grad_(name in parts)
    for part in (pipeline.vae.decoder, pipeline.vae.post_quant_conv):
        part.requires_grad_("decoder" in parts)


def _trainable(*networks: nn.Module) -> list[nn.Parameter]:
    return [parameter for network in networks for parameter in network.parameters() if parameter.requires_grad]


def _trained_networks(pipeline: SDFSMISPipeline, of: SDFSMISPipeline | None = None) -> dict[str, nn.Module]:
    """The networks of `pipeline` that learn, or those whose like learns in `of`."""
    return {n: network for n, network in pipeline.components.items() if _trainable(getattr(of or pipeline, n))}


def _moving_average(pipeline: SDFSMISPipeline) -> SDFSMISPipeline:
    """A pipeline with copies of the networks that learn."""
    parts = {
        n: copy.deepcopy(network) if _trainable(network) else network for n, network in pipeline.components.items()
    }
    average = type(pipeline)(**parts, **own_settings(pipeline))
    for network in _trained_networks(average, of=pipeline).values():
        network.requires_grad_(False)
    return average


@torch.no_grad()
def _update_average(average: SDFSMISPipeline, pipeline: SDFSMISPipeline, decay: float) -> None:
    for name, network in _trained_networks(average, of=pipeline).items():
        for kept, now in zip(network.parameters(), getattr(pipeline, name).parameters(), strict=True):
            kept.lerp_(now, 1 - decay)


# -- optimiser and rates


def new_optimizer(pipeline: SDFSMISPipeline, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over what learns, the translator in a group of its own."""
    rest = _trainable(pipeline.unet, pipeline.image_encoder, pipeline.vae)
    groups = [
        {"params": rest, "factor": 1.0},
        {"params": _trainable(pipeline.translator), "factor": config.translator_rate},
    ]
    return torch.optim.AdamW(groups, lr=config.rate, weight_decay=config.decay)


def rate_share(step: int, config: TrainingConfig) -> float:
    """The rate at a step of the second stage, as a share of the peak."""
    schedule = _polynomial if config.schedule == "polynomial" else _cosine
    return schedule(step, config.steps, config.warmup)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("factor", 1.0)


def _cosine(step: int, steps: int, warmup: int) -> float:
    """Share of the peak rate: warm-up, then half a cosine."""
    falling = COSINE_FLOOR + (1 - COSINE_FLOOR) * 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(1.0, (step + 1) / max(warmup, 1)) * falling


def _polynomial(step: int, steps: int, warmup: int) -> float:
    """Share of the peak rate as in the official code: linear, to a floor of 1e-4."""
    falling = POLYNOMIAL_FLOOR + (1 - POLYNOMIAL_FLOOR) * max(0.0, 1 - step / steps)
    return min(1.0, (step + 1) / warmup) * falling if warmup else falling
