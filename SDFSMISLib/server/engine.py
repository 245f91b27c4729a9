"""The networks of a backend, and the device that runs take turns on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch

from SDFSMISLib.client.model_name import plain_name
from SDFSMISLib.inference.networks import LatentCache
from SDFSMISLib.inference.run import Finished, Options, Result, Run
from SDFSMISLib.inference.segmenter import Segmenter
from SDFSMISLib.server.limits import Limits
from SDFSMISLib.server.loaded_models import LatentsOf, LoadedModels
from SDFSMISLib.server.models import LearnedModels, model_missing
from SDFSMISLib.server.scheduler import QueueFull, Scheduler
from SDFSMISLib.stack import SliceStack
from SDFSMISLib.support import SupportSet


class Engine:
    """A segmenter with its device, and learned models beside it.

    Args:
        on_lost: called once, in the device's thread, when the device has failed for good.
        models: that clients have learned; None = that is not offered.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        limits: Limits,
        on_lost: Callable[[], None] = lambda: None,
        models: LearnedModels | None = None,
    ) -> None:
        self.segmenter = segmenter
        self.limits = limits
        self.seconds_per_slice = segmenter.seconds_per_slice()
        self.latents = LatentCache(limits.latent_bytes)
        self.lost: str | None = None
        """what the device failed by"""
        self.loaded = LoadedModels(segmenter.pipeline.device, limits.loaded_models)
        self._models = models
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

    def segmenter_of(self, owner: str, model: str | None) -> Segmenter:
        """The segmenter of a model: the one that is served (None, or its name), or one that the owner has learned,
        which may have to be loaded first.

        Args:
            model: its plain name.

        Raises:
            Refused: where there is none, or it cannot be loaded.
        """
        if model is None or model == plain_name(self.segmenter.name):
            return self.segmenter
        if self._models is None:
            raise model_missing(model)
        return self.loaded.segmenter(self._models.of(owner, model))

    def run(
        self,
        segmenter: Segmenter,
        scan: SliceStack,
        support: SupportSet,
        options: Options,
        slices: Sequence[int] | None,
        labels: Sequence[int],
        finished: Finished,
    ) -> Run:
        """See `Segmenter.run`; slices that were encoded for an earlier run are not encoded again."""
        latents = self.latents if segmenter is self.segmenter else LatentsOf(self.latents, segmenter.weights)
        return segmenter.run(scan, support, options, slices=slices, labels=labels, latents=latents, finished=finished)

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
