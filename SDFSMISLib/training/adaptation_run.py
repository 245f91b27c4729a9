"""The trainer's last stage for as long as its owner wants, whatever the number of steps was."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from SDFSMISLib.model.pipeline import SDFSMISPipeline
from SDFSMISLib.training.batch import EpisodeBatch
from SDFSMISLib.training.config import TrainingConfig
from SDFSMISLib.training.episodes import EpisodeSampler
from SDFSMISLib.training.log import Log
from SDFSMISLib.training.trainer import Progress, TrainingRun

__all__ = ["TimedRun", "accelerator_on"]


class TimedRun(TrainingRun):
    """A run that asks before each step, and hands its averages over where it would measure them."""

    def __init__(
        self,
        config: TrainingConfig,
        accelerator: Accelerator,
        sampler: EpisodeSampler,
        progress: Progress,
        goes_on: Callable[[int], bool],
        take: Callable[[int, SDFSMISPipeline], None],
    ) -> None:
        """
        Args:
            goes_on: asked with the steps that are done; False ends the run.
            take: called with these and the averages, every `validate_every` steps.
        """
        output = Path(config.output)
        output.mkdir(parents=True, exist_ok=True)
        super().__init__(config, accelerator, sampler, None, Log(output, accelerator.is_main_process), progress)
        self.goes_on, self.take, self.step = goes_on, take, 0
        self.times: list[float] = []

    def seconds_per_step(self) -> float:
        """The median, of two steps at least."""
        return float(np.median(np.diff(self.times)))

    def _steps(self, first: int, last: int, offset: int) -> Iterator[tuple[int, Iterator[EpisodeBatch]]]:
        self.step = first
        for step, batches in super()._steps(first, last, offset):
            self.times.append(time.monotonic())
            if not self.goes_on(step):
                return
            yield step, batches
            self.step = step + 1

    def _validate(self, step: int, pipeline: SDFSMISPipeline) -> None:
        self.take(step, pipeline)


@contextmanager
def accelerator_on(device: torch.device, config: TrainingConfig) -> Iterator[Accelerator]:
    """accelerate on a device that was chosen; a process may choose another one later."""
    AcceleratorState._reset_state(reset_partial_state=True)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    try:
        yield Accelerator(
            cpu=device.type == "cpu",
            mixed_precision=config.precision,
            gradient_accumulation_steps=config.accumulate,
        )
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
