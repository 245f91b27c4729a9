"""One trainer for every size: where wanted the decoder of the autoencoder and the U-Net on images, then all of it on
episodes.

It runs on accelerate: `sdfsmis train` on a CPU or one GPU, `accelerate launch -m SDFSMISLib.cli train` on several GPUs
or machines. A run that was stopped at any moment goes on from its last checkpoint with the very batches and draws
that were to come, so that on a CPU it ends in the same weights, bit by bit; unless it has so many `minutes`, when rates
and the number of steps depend on the computer.
"""

from __future__ import annotations

import copy
import itertools
import math
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import broadcast
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
from SDFSMISLib.training.episodes import DrawnBatch, EpisodeSampler
from SDFSMISLib.training.learner import (
    Denoiser,
    EpisodeLearner,
    copy_input_weights,
    own_settings,
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
"""(steps done, steps in total, the last losses in words); seconds in place of steps where the clock ends a run"""

Validator = Callable[[SDFSMISPipeline, Path, Sequence[str]], Mapping[str, float]]
"""(networks, manifest, ids of its held-out cases) -> mean Dice by group; see `evaluation.held_out_dice`."""


def train(
    config: TrainingConfig,
    progress: Progress | None = None,
    cache: Path | None = None,
    validate: Validator | None = None,
    *,
    scans: Sequence[TrainingVolume] | None = None,
    written: Callable[[Path], None] | None = None,
) -> Path:
    """Train, or go on training, and return the folder of the finished pipeline.

    Args:
        config: the run; its `output` holds the checkpoints that a stopped run goes on from.
        progress: called after each step of the main process.
        cache: folder of the supervoxels, shared by several trainings on the same scans; None: one in `output`.
        validate: measures held-out cases every `validate_every` steps; None: they are not measured.
        scans: scans, and label volumes without image, in place of those that `cases` and `label_maps` name.
        written: called with the folder of the pipeline each time that it was written.

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
    volumes: list[TrainingVolume] = [volume for volume in scans or () if volume.image is not None]
    synthetic = synthetic_volumes(config.synthetic_count, config.seed)
    synthetic += [volume for volume in scans or () if volume.image is None]
    if config.cases and scans is None:
        with accelerator.main_process_first():  # which leaves the supervoxels for the others
            volumes += load_training_volumes(Path(config.cases), cache or output / "cache", config)
    if config.label_maps and scans is None:
        synthetic += label_volumes(Path(config.label_maps), config)
    sampler = _sampler(
        config, volumes, synthetic, pipeline, accelerator.device if config.on_device else "cpu", progress
    )
    del volumes, synthetic, scans  # of which the sampler has copies
    log = Log(output, accelerator.is_main_process)
    run = TrainingRun(config, accelerator, sampler, log, progress, validate, written)
    if config.autoencoder_steps:
        run.autoencoder(pipeline)
    if config.denoising_steps:
        run.denoising(pipeline)
    result = run.segmentation(pipeline)
    if accelerator.is_main_process:
        run.write(result)
    accelerator.wait_for_everyone()
    return output / "pipeline"


def starting_pipeline(config: TrainingConfig) -> SDFSMISPipeline:
    """The networks to begin with, float32; those of our own kind get the inputs that `start` lacks.

    Raises:
        InputError: if `decoded` is false and the latent has fewer channels than its square has pixels.
    """
    begun = load_pipeline(config.start, "cpu") if config.start else new_built_in(config.seed, config.network)
    if not (begun.has_folding_autoencoder or config.decoded):
        channels, factor = begun.vae.config.latent_channels, begun.latent_factor
        raise InputError(
            f"This autoencoder has {channels} channels for {factor} x {factor} pixels, so that pixels cannot be folded "
            "into them; set decoded to true."
        )
    begun.register_to_config(folds=not config.decoded)
    if not (config.start and begun.has_folding_autoencoder):
        return begun
    inputs = {"neighbour": True, "likeness": True, "known": True, "ahead": begun.takes_ahead or config.ahead > 0}
    fresh = SupportQueryUNet.from_config(dict(begun.unet.config) | inputs)
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


class Pace:
    """How far a stage has come: by its steps, or by the clock.

    By the clock a step begins at the share of the time that has passed of all but the last step's, as long as the one
    before it; so the last one begins at 1, as the rate wants it, and ends about when the time does.

    Args:
        steps: of the stage, if `seconds` is 0.
        seconds: of the stage by the clock, of which a run that goes on has `spent` some.
        device: None for a single process; else of the processes, which all end with the step of the first one.

    Attributes:
        step: number of the step that has begun.
        share: how far the stage was when it began, 0 to 1.
        is_last: whether it is the last one.
    """

    def __init__(self, steps: int, seconds: float = 0.0, spent: float = 0.0, device: torch.device | None = None):
        self.steps, self.seconds, self.device = steps, seconds, device
        self.began = time.monotonic() - spent
        self.step, self.share, self.is_last = -1, 0.0, False

    @property
    def spent(self) -> float:
        """Seconds that the stage took until now."""
        return time.monotonic() - self.began

    def is_over(self, first: int) -> bool:
        """Whether a run that goes on has no step left, `first` the next one."""
        return self.spent >= self.seconds if self.seconds else first >= self.steps

    def all_steps(self, first: int) -> Iterator[int]:
        """The numbers of the steps from `first` on, each when it is to begin."""
        begun = self.spent
        for step in itertools.count(first) if self.seconds else range(first, self.steps):
            self.step = step
            if self.seconds:
                before, begun = begun, self.spent
                self.share = max(self.share, self._share(begun, begun - before))  # after a long step, such as a test
                self.is_last = self.share == 1
            else:
                self.share, self.is_last = step / self.steps, step + 1 == self.steps
            yield step
            if self.is_last:
                return

    def _share(self, now: float, step: float) -> float:
        """Of the time without a last step of `step` seconds."""
        share = min(1.0, now / (self.seconds - step)) if step < self.seconds else 1.0
        if self.device is None:
            return share
        return float(broadcast(torch.tensor([share], device=self.device)))

    def is_late(self, step: int, late: float) -> bool:
        """Whether a batch that is made now for this step belongs to the share `late` at the end."""
        done = self.spent / self.seconds if self.seconds else step / self.steps
        return done >= 1 - late

    def is_due(self, every: int) -> bool:
        """Whether something that is done every so many steps, 0 for never, and behind the last one, is due."""
        return bool(every) and ((self.step + 1) % every == 0 or self.is_last)


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
        written: Callable[[Path], None] | None,
    ) -> None:
        self.config, self.accelerator, self.sampler = config, accelerator, sampler
        self.log, self.progress, self.validate, self.written = log, progress, validate, written
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
        pace = self._pace(config.autoencoder_steps)
        for step, batches in self._batches_by_step(first, pace, AUTOENCODER):
            rate = config.autoencoder_rate * _cosine(step, pace.share, config.warmup)
            set_rate(optimizer, rate)
            for batch in batches:
                loss, image, mask, spread = learner(*_images_and_masks(batch, 2 * config.batch))
                self._optimise(learner, ready, loss)
            extra = {"scaling_factor": 1 / float(self.accelerator.gather(spread[None]).mean())}  # the same everywhere
            self._log_step(pace, {"autoencoder": loss.detach(), "image": image, "mask": mask}, rate)
            if self._is_due(pace, config.save_every):
                checkpoint.save(step + 1, extra)
        vae.register_to_config(scaling_factor=float(extra["scaling_factor"]))

    def denoising(self, pipeline: SDFSMISPipeline) -> None:
        """The U-Net learns to take noise off images; see `Denoiser`."""
        config, unet = self.config, pipeline.unet
        self._prepare(pipeline, ("unet",))
        optimizer = torch.optim.AdamW(_trainable(unet), lr=config.denoising_rate, weight_decay=config.decay)
        checkpoint = Checkpoint(self.output / "denoising.safetensors", {"network.unet": unet}, optimizer)
        first, _ = checkpoint.load()
        model, ready = self.accelerator.prepare(Denoiser(pipeline), optimizer)
        pace = self._pace(config.denoising_steps)
        for step, batches in self._batches_by_step(first, pace, DENOISING):
            rate = config.denoising_rate * _cosine(step, pace.share, config.warmup)
            set_rate(optimizer, rate)
            for batch in batches:
                loss = model(_images_and_masks(batch, 2 * config.batch)[0])
                self._optimise(model, ready, loss)
            self._log_step(pace, {"denoising": loss.detach()}, rate)
            if self._is_due(pace, config.save_every):
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
        first, extra = checkpoint.load()
        model, ready = self.accelerator.prepare(EpisodeLearner(pipeline, config), optimizer)
        pace = self._pace(config.steps, 60 * config.minutes, extra.get("seconds", 0.0))
        next_writing = pace.spent + 60 * config.write_every
        for step, batches in self._batches_by_step(first, pace, SEGMENTATION):
            rate = config.rate * rate_share(step, config, pace.share)
            set_rate(optimizer, rate)
            for batch in batches:
                learned = model(batch)
                self._optimise(model, ready, learned.loss)
            if config.average:
                _update_average(average, pipeline, min(config.average, (1 + step) / (10 + step)))
            self._log_step(pace, learned.parts, rate)
            if self._is_due(pace, config.picture_every):
                self._picture(step + 1, pipeline, batch, learned.predicted)
            if self._is_due(pace, config.save_every):
                spent = {"seconds": pace.seconds if pace.is_last else pace.spent} if pace.seconds else {}
                checkpoint.save(step + 1, spent)
            if self._is_due(pace, config.validate_every):
                self._validate(step + 1, average)
            if config.write_every and pace.spent >= next_writing and not pace.is_last:
                next_writing = pace.spent + 60 * config.write_every
                if self.accelerator.is_main_process:
                    self.write(average)
        return average

    def write(self, pipeline: SDFSMISPipeline) -> None:
        """Write these weights as the run's pipeline, in place of what it has written before."""
        part, replaced, folder = (self.output / name for name in (".pipeline.part", ".pipeline.old", "pipeline"))
        parts = copy.deepcopy(pipeline.components)  # which go on learning elsewhere, in another type
        with quiet():
            kept = type(pipeline)(**parts, **own_settings(pipeline))
            kept.to("cpu", torch.float16 if self.config.half else torch.float32).save_pretrained(part)
        shutil.rmtree(replaced, ignore_errors=True)
        if folder.exists():
            folder.rename(replaced)
        part.rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)
        if self.written:
            self.written(folder)

    # -- what the stages need

    def _pace(self, steps: int, seconds: float = 0.0, spent: float = 0.0) -> Pace:
        return Pace(steps, seconds, spent, self.accelerator.device if self.accelerator.num_processes > 1 else None)

    def _prepare(self, pipeline: SDFSMISPipeline, learned: tuple[str, ...]) -> None:
        """On the device, these parts to learn."""
        pipeline.to(self.accelerator.device)
        for network in (pipeline.vae, pipeline.unet):
            network.to(memory_format=torch.channels_last)  # on a CPU, a step takes three quarters of the time
            if self.config.checkpointing:
                network.enable_gradient_checkpointing()
        learn_only(pipeline, learned)

    def _batches_by_step(self, first: int, pace: Pace, offset: int) -> Iterator[tuple[int, Iterator[EpisodeBatch]]]:
        """(step, its batches on this process), with the random numbers that belong to the step."""
        accelerator, config = self.accelerator, self.config
        if pace.is_over(first):
            return
        workers = config.workers
        if config.on_device and workers:
            # Forks share the volumes, and leave the GPU to this process; what would count on it is counted before.
            workers = workers if sys.platform == "linux" else 0
            self.sampler.count_slices()
        loader = DataLoader(
            _Episodes(self.sampler, config, accelerator, pace, first, offset),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            worker_init_fn=_use_one_thread,
            pin_memory=config.on_device and accelerator.device.type == "cuda",
        )
        batches = iter(loader)
        for step in pace.all_steps(first):
            torch.manual_seed(config.seed + offset + step * accelerator.num_processes + accelerator.process_index)
            yield step, (self._pixels(next(batches)) for _ in range(config.accumulate))

    def _pixels(self, made: EpisodeBatch | DrawnBatch | InputError) -> EpisodeBatch:
        """The batch that a worker made or drew; raises what it could not."""
        if isinstance(made, InputError):
            raise made
        return made if isinstance(made, EpisodeBatch) else self.sampler.rendered(made)

    def _optimise(self, model: nn.Module, optimizer: Any, loss: torch.Tensor) -> None:
        with self.accelerator.accumulate(model):
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients and self.config.clip:
                self.accelerator.clip_grad_norm_(model.parameters(), self.config.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def _log_step(self, pace: Pace, parts: dict[str, torch.Tensor], rate: float) -> None:
        text = self.log.add(pace.step + 1, parts, rate, pace.is_last)
        if self.progress and self.accelerator.is_main_process:
            done, of = (pace.spent, pace.seconds) if pace.seconds else (pace.step + 1, pace.steps)
            self.progress(round(done), round(of), text)

    def _is_due(self, pace: Pace, every: int) -> bool:
        return self.accelerator.is_main_process and pace.is_due(every)

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


LONGEST = 1_000_000  # steps of a stage that the clock ends


class _Episodes(Dataset):
    """Place -> batch, or with `on_device` what was drawn for it, so that a resumed run goes on with the very batches
    that were to come."""

    def __init__(
        self,
        sampler: EpisodeSampler,
        config: TrainingConfig,
        accelerator: Accelerator,
        pace: Pace,
        first: int,
        offset: int,
    ) -> None:
        self.sampler, self.config, self.pace, self.first, self.offset = sampler, config, pace, first, offset
        self.processes, self.process = accelerator.num_processes, accelerator.process_index

    def __len__(self) -> int:
        steps = LONGEST if self.pace.seconds else self.pace.steps - self.first
        return steps * self.config.accumulate

    def __getitem__(self, place: int) -> EpisodeBatch | DrawnBatch | InputError:
        place += self.first * self.config.accumulate
        late = self.pace.is_late(place // self.config.accumulate, self.config.late)
        try:
            number = self.offset + place * self.processes + self.process
            drawn = self.sampler.drawn(self.config.batch, number, late)
            return drawn if self.config.on_device else self.sampler.rendered(drawn)
        except InputError as error:  # which a loader would wrap in a traceback
            return error


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
        now = list(getattr(pipeline, name).parameters())
        torch._foreach_lerp_(list(network.parameters()), now, 1 - decay)  # in a few launches on a GPU


# -- optimiser and rates


def new_optimizer(pipeline: SDFSMISPipeline, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over what learns, the translator in a group of its own."""
    rest = _trainable(pipeline.unet, pipeline.image_encoder, pipeline.vae)
    groups = [
        {"params": rest, "factor": 1.0},
        {"params": _trainable(pipeline.translator), "factor": config.translator_rate},
    ]
    return torch.optim.AdamW(groups, lr=config.rate, weight_decay=config.decay)


def rate_share(step: int, config: TrainingConfig, share: float | None = None) -> float:
    """The rate at a step of the last stage, as a share of the peak; `share`: of the stage that is over, if not told by
    the step."""
    schedule = _polynomial if config.schedule == "polynomial" else _cosine
    return schedule(step, step / config.steps if share is None else share, config.warmup)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("factor", 1.0)


def _cosine(step: int, share: float, warmup: int) -> float:
    """Share of the peak rate: warm-up, then half a cosine."""
    falling = COSINE_FLOOR + (1 - COSINE_FLOOR) * 0.5 * (1 + math.cos(math.pi * share))
    return min(1.0, (step + 1) / max(warmup, 1)) * falling


def _polynomial(step: int, share: float, warmup: int) -> float:
    """Share of the peak rate as in the official code: linear, to a floor of 1e-4."""
    falling = POLYNOMIAL_FLOOR + (1 - POLYNOMIAL_FLOOR) * max(0.0, 1 - share)
    return min(1.0, (step + 1) / warmup) * falling if warmup else falling
