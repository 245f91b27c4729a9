"""One trainer for every size: first, where wanted, the decoder of the autoencoder, then the rest on episodes.

It runs on accelerate: `sdfsmis train` on a CPU or one GPU, `accelerate launch -m SDFSMISLib.training CONFIG` on several
GPUs or machines. A run that was stopped at any moment goes on from its last checkpoint with the very batches and draws
that were to come, so that on a CPU it ends in the same weights, bit by bit.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import nn
from torch.utils.data import DataLoader, Dataset

from SDFSMISLib.model.built_in import new_built_in
from SDFSMISLib.model.loading import load_pipeline, quiet
from SDFSMISLib.model.pipeline import SDFSMISPipeline
from SDFSMISLib.training.checkpoint import Checkpoint
from SDFSMISLib.training.config import TrainingConfig
from SDFSMISLib.training.episodes import EpisodeBatch, EpisodeSampler
from SDFSMISLib.training.learner import EpisodeLearner
from SDFSMISLib.training.pictures import write_episodes
from SDFSMISLib.training.volumes import TrainingVolume, load_training_volumes, synthetic_volumes

__all__ = ["Progress", "train"]

SECOND_STAGE = 10_000_000  # number of its first batch, so that the stages never share one
COSINE_FLOOR = 0.03
POLYNOMIAL_FLOOR = 1e-4
SAY_EVERY = 50  # steps

Progress = Callable[[int, int, str], None]
"""(steps done, steps in all, what they bring)"""


def train(config: TrainingConfig, progress: Progress | None = None) -> Path:
    """Train, or go on training, and return the folder of the finished pipeline."""
    accelerator = Accelerator(
        mixed_precision=config.precision,
        gradient_accumulation_steps=config.accumulate,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    pipeline = starting_pipeline(config)
    volumes: list[TrainingVolume] = []
    if config.cases:
        with accelerator.main_process_first():  # which leaves the supervoxels for the others
            volumes += load_training_volumes(Path(config.cases), output / "cache", config)
    volumes += synthetic_volumes(config.synthetic_count, config.seed)
    sampler = EpisodeSampler(volumes, pipeline.config.resolution, config)
    run = _Run(config, accelerator, sampler, _Log(output, accelerator.is_main_process), progress)
    if config.autoencoder_steps:
        run.autoencoder(pipeline)
    result = run.segmentation(pipeline)
    if accelerator.is_main_process:
        _write(result, output, config.half)
    accelerator.wait_for_everyone()
    return output / "pipeline"


def starting_pipeline(config: TrainingConfig) -> SDFSMISPipeline:
    """The networks to begin with, float32; those of the built-in configuration get the inputs that `start` lacks."""
    if not config.start:
        return new_built_in(config.seed)
    begun = load_pipeline(config.start, "cpu")
    fresh = new_built_in(config.seed)
    if list(begun.unet.config.block_out_channels) != list(fresh.unet.config.block_out_channels):
        return begun
    fresh.unet.load_state_dict(fresh.unet.state_dict() | begun.unet.state_dict())
    begun.register_modules(unet=fresh.unet)
    return begun


def _write(pipeline: SDFSMISPipeline, output: Path, half: bool) -> None:
    part = output / ".pipeline.part"
    with quiet():
        pipeline.to("cpu", torch.float16 if half else torch.float32)
        pipeline.save_pretrained(part)
    shutil.rmtree(output / "pipeline", ignore_errors=True)
    part.rename(output / "pipeline")


class _Run:
    """The two stages of one run."""

    def __init__(
        self,
        config: TrainingConfig,
        accelerator: Accelerator,
        sampler: EpisodeSampler,
        log: _Log,
        progress: Progress | None,
    ) -> None:
        self.config, self.accelerator, self.sampler = config, accelerator, sampler
        self.log, self.progress = log, progress
        self.output = Path(config.output)

    def autoencoder(self, pipeline: SDFSMISPipeline) -> None:
        """The decoder learns to bring back images and masks; the encoder stays as it is set."""
        config, vae = self.config, pipeline.vae
        learn_only(pipeline, ("decoder",))
        optimizer = torch.optim.AdamW(_learning(vae), lr=config.autoencoder_rate, weight_decay=config.decay)
        checkpoint = Checkpoint(self.output / "autoencoder.safetensors", {"network.vae": vae}, optimizer)
        first, extra = checkpoint.load()
        model = _Reconstruction(vae)
        learner, ready = self.accelerator.prepare(model, optimizer)
        for step, batches in self._steps(first, config.autoencoder_steps, 0):
            set_rate(optimizer, config.autoencoder_rate * _cosine(step, config.autoencoder_steps, config.warmup))
            for batch in batches:
                loss, image, mask, spread = learner(*_pictures(batch, 2 * config.batch))
                self._descend(learner, ready, loss)
            self._say(step, config.autoencoder_steps, {"autoencoder": loss, "image": image, "mask": mask})
            if self._is_due(step, config.autoencoder_steps, config.save_every):
                extra = {"scaling_factor": 1 / float(spread)}
                checkpoint.save(step + 1, extra)
        vae.register_to_config(scaling_factor=float(extra["scaling_factor"]))

    def segmentation(self, pipeline: SDFSMISPipeline) -> SDFSMISPipeline:
        """The learned parts learn from episodes; returns the pipeline of their moving averages."""
        config = self.config
        pipeline.to(self.accelerator.device)
        for network in (pipeline.vae, pipeline.unet):
            network.to(memory_format=torch.channels_last)  # on a CPU, a step takes three quarters of the time
        learn_only(pipeline, config.learned)
        average = _averaging(pipeline) if config.average else pipeline
        optimizer = new_optimizer(pipeline, config)
        kept = {f"network.{name}": network for name, network in _changing(pipeline).items()}
        if config.average:
            kept |= {f"average.{name}": network for name, network in _changing(average, of=pipeline).items()}
        checkpoint = Checkpoint(self.output / "segmentation.safetensors", kept, optimizer)
        first, _ = checkpoint.load()
        model, ready = self.accelerator.prepare(EpisodeLearner(pipeline, config), optimizer)
        for step, batches in self._steps(first, config.steps, SECOND_STAGE):
            set_rate(optimizer, config.rate * rate_share(step, config))
            for batch in batches:
                learned = model(batch)
                self._descend(model, ready, learned.loss)
            if config.average:
                _average(average, pipeline, min(config.average, (1 + step) / (10 + step)))
            self._say(step, config.steps, learned.parts)
            if self._is_due(step, config.steps, config.picture_every):
                self._picture(step + 1, pipeline, batch, learned.predicted)
            if self._is_due(step, config.steps, config.save_every):
                checkpoint.save(step + 1)
            if self._is_due(step, config.steps, config.validate_every):
                self._validate(step + 1, average)
        return average

    # -- what both stages need

    def _steps(self, first: int, last: int, offset: int) -> Iterator[tuple[int, Iterator[EpisodeBatch]]]:
        """(step, its batches on this process), with the random numbers that belong to the step."""
        accelerator, config = self.accelerator, self.config
        if first >= last:
            return
        numbers = [
            offset + (step * config.accumulate + part) * accelerator.num_processes + accelerator.process_index
            for step in range(first, last)
            for part in range(config.accumulate)
        ]
        threads = torch.get_num_threads()
        with contextlib.ExitStack() as stack:
            ahead = 4 if config.workers else None
            late = offset + round(last * (1 - config.late)) * config.accumulate * accelerator.num_processes
            dataset = _Episodes(self.sampler, config.batch, numbers, late)
            loader = DataLoader(dataset, batch_size=None, num_workers=config.workers, prefetch_factor=ahead)
            stack.callback(torch.set_num_threads, threads)
            batches = iter(loader)
            for step in range(first, last):
                torch.manual_seed(config.seed + offset + step * accelerator.num_processes + accelerator.process_index)
                yield step, (next(batches) for _ in range(config.accumulate))

    def _descend(self, model: nn.Module, optimizer: Any, loss: torch.Tensor) -> None:
        with self.accelerator.accumulate(model):
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients and self.config.clip:
                self.accelerator.clip_grad_norm_(model.parameters(), self.config.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def _say(self, step: int, steps: int, parts: dict[str, torch.Tensor]) -> None:
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
        """Dice of the held-out cases, by the code that measures finished weights."""
        if not self.config.held_out:
            return
        from SDFSMISLib.evaluation import evaluate, read_manifest, segmenter_method, summarise
        from SDFSMISLib.inference.segmenter import Segmenter

        manifest = read_manifest(self.config.cases)
        cases = [case for case in manifest.cases if case.id in self.config.held_out]
        rows = evaluate(manifest, "same-volume", {"now": segmenter_method(Segmenter(pipeline))}, cases)
        if rows:
            groups = summarise(rows)[0].groups
            self.log.write({"step": step} | {f"validation {name}": mean.values["dice"] for name, mean in groups.items()})


class _Episodes(Dataset):
    """Place -> batch, so that a resumed run goes on with the very batches that were to come."""

    def __init__(self, sampler: EpisodeSampler, size: int, numbers: list[int], late: int) -> None:
        self.sampler, self.size, self.numbers, self.late = sampler, size, numbers, late

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> EpisodeBatch:
        torch.set_num_threads(1)
        number = self.numbers[place]
        return self.sampler.batch(self.size, number, number >= self.late)


class _Reconstruction(nn.Module):
    """What the decoder makes of the encoder's latents: absolute and squared error."""

    def __init__(self, vae: nn.Module) -> None:
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


def _pictures(batch: EpisodeBatch, most: int) -> tuple[torch.Tensor, torch.Tensor]:
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


def _learning(*networks: nn.Module) -> list[nn.Parameter]:
    return [parameter for network in networks for parameter in network.parameters() if parameter.requires_grad]


def _changing(pipeline: SDFSMISPipeline, of: SDFSMISPipeline | None = None) -> dict[str, nn.Module]:
    """The networks of `pipeline` that learn, or those whose like learns in `of`."""
    return {n: network for n, network in pipeline.components.items() if _learning(getattr(of or pipeline, n))}


def _averaging(pipeline: SDFSMISPipeline) -> SDFSMISPipeline:
    """A pipeline with copies of the networks that learn."""
    parts = {n: copy.deepcopy(network) if _learning(network) else network for n, network in pipeline.components.items()}
    average = type(pipeline)(**parts, **_own_settings(pipeline))
    for network in _changing(average, of=pipeline).values():
        network.requires_grad_(False)
    return average


def _own_settings(pipeline: SDFSMISPipeline) -> dict[str, Any]:
    return {"resolution": pipeline.config.resolution, "official_details": pipeline.config.official_details}


@torch.no_grad()
def _average(average: SDFSMISPipeline, pipeline: SDFSMISPipeline, decay: float) -> None:
    for name, network in _changing(average, of=pipeline).items():
        for kept, now in zip(network.parameters(), getattr(pipeline, name).parameters(), strict=True):
            kept.lerp_(now, 1 - decay)


# -- optimiser and rates


def new_optimizer(pipeline: SDFSMISPipeline, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over what learns, the translator in a group of its own."""
    rest = _learning(pipeline.unet, pipeline.image_encoder, pipeline.vae)
    groups = [
        {"params": rest, "factor": 1.0},
        {"params": _learning(pipeline.translator), "factor": config.translator_rate},
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


class _Log:
    """Means over some steps, as lines of `log.jsonl` and, where it is installed, for tensorboard."""

    def __init__(self, output: Path, writes: bool) -> None:
        self.path, self.writes = output / "log.jsonl", writes
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.began, self.steps, self.text = time.monotonic(), 0, ""
        self.board = _tensorboard(output) if writes else None

    def add(self, step: int, steps: int, parts: dict[str, float]) -> str:
        """Take a step's numbers in; returns the last line's loss and overlap in a few words."""
        self.steps += 1
        for name, value in parts.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1
        if step % SAY_EVERY == 0 or step == steps:
            seconds = (time.monotonic() - self.began) / self.steps
            means = {name: self.sums[name] / self.counts[name] for name in self.sums}
            self.write({"step": step, "seconds": round(seconds, 2)} | means)
            self.text = ", ".join(f"{name} {means[name]:.3f}" for name in ("loss", "overlap") if name in means)
            self.sums, self.counts = {}, {}
        return self.text

    def write(self, record: dict[str, float]) -> None:
        if not self.writes:
            return
        with self.path.open("a", encoding="utf-8") as log:
            log.write(json.dumps({name: round(value, 5) for name, value in record.items()}) + "\n")
        if self.board is not None:
            for name, value in record.items():
                self.board.add_scalar(name, value, int(record["step"]))
            self.board.flush()


def _tensorboard(output: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(output / "tensorboard"))
