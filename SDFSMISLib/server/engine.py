"""The networks of a backend, and the device that runs take turns on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch

from SDFSMISLib.inference.networks import LatentCache
from SDFSMISLib.inference.run import Finished, Options, Result, Run
from SDFSMISLib.inference.segmenter import Segmenter
from SDFSMISLib.server.limits import Limits
from SDFSMISLib.server.scheduler import QueueFull, Scheduler
from SDFSMISLib.slices import SliceStack
from SDFSMISLib.support import SupportSet


class Engine:
    """A segmenter with its device.

    Args:
        on_lost: called once, in the device's thread, when the device has failed for good.
    """

    def __init__(self, segmenter: Segmenter, limits: Limits, on_lost: Callable[[], None] = lambda: None) -> None:
        self.segmenter = segmenter
        self.limits = limits
        self.seconds_per_slice = segmenter.seconds_per_slice()
        self.latents = LatentCache(limits.latent_bytes)
        self.lost: str | None = None
        """what the device failed by"""
        self._on_lost = on_lost
        self._held = 0
        self._lock = threading.Lock()
        self.scheduler: Scheduler[Result] = Scheduler(
            limits.queue, limits.backlog_bytes, limits.stall_seconds, torch.no_grad
        )

    @property
    def device_name(self) -> str:
        """`cpu`, or the name that a GPU's driver gives it."""
        device = self.segmenter.pipeline.device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

    @property
    def device_kind(self) -> str:
        return self.segmenter.pipeline.device.type

    @property
    def resolution(self) -> int:
        """Side of the square on which the networks see, pixels."""
        return self.segmenter.pipeline.config.resolution

    def run(
        self,
        scan: SliceStack,
        support: SupportSet,
        options: Options,
        slices: Sequence[int] | None,
        labels: Sequence[int],
        finished: Finished,
    ) -> Run:
        """See `Segmenter.run`; slices that were encoded for an earlier run are not encoded again."""
        return self.segmenter.run(
            scan, support, options, slices=slices, labels=labels, latents=self.latents, finished=finished
        )

    def hold(self, size: int, retry_after: int) -> None:
        """Count the bytes of a run's slices, until `release`.

        Raises:
            QueueFull: where the runs that take turns would hold too much.
        """
        with self._lock:
            if self._held + size > self.limits.held_bytes:
                raise QueueFull(retry_after)
            self._held += size

    def release(self, size: int) -> None:
        """The run that held these bytes has ended."""
        with self._lock:
            self._held -= size

    def note(self, error: BaseException) -> None:
        """Take notice of what a run failed by, in the device's thread."""
        if self.is_lost_by(error) and self.lost is None:
            self.lost = str(error).partition("\n")[0]
            self._on_lost()

    def is_lost_by(self, error: BaseException) -> bool:
        """Whether an error is one after which CUDA refuses all until the process ends."""
        return "CUDA error" in str(error) or type(error).__name__ == "AcceleratorError"
