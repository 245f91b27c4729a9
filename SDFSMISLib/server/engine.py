"""One thread on the device, and the runs that take turns on it, a batch at a time.

A small run never waits for a large one to end; a run whose client is slow, or gone, takes no turns. One thread for all,
since CUDA's libraries keep what they have prepared by thread.

The networks of a backend, and the device that runs take turns on.

What the backend counts, for Prometheus.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from SDFSMISLib.inference.networks import LatentCache
from SDFSMISLib.inference.run import Finished, Result, Run
from SDFSMISLib.inference.segmenter import Segmenter
from SDFSMISLib.options import RunOptions
from SDFSMISLib.server.settings import LOGGER, ServerLimits
from SDFSMISLib.server.store import Store
from SDFSMISLib.slices import SliceStack
from SDFSMISLib.support import SupportSet

Item = TypeVar("Item")


class QueueFull(RuntimeError):
    """As many runs take turns as may. `retry_after` is the seconds after which to come again."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("The queue is full.")
        self.retry_after = retry_after


class BackendStopping(RuntimeError):
    """The scheduler takes no more runs."""


class ClientStalled(RuntimeError):
    """Nobody took the results of a run for too long."""


@dataclass(eq=False)
class ScheduledRun(Generic[Item]):
    """A run that takes turns.

    Attributes:
        steps: the run's batches.
        emit: called with what a batch gave, in the device's thread; must not block.
        close: called once, behind the last `emit`, with what the run failed by, or None.
        computing: seconds on the device. turns: how often it was there.
    """

    steps: Generator[list[Item], None, None]
    emit: Callable[[list[Item]], None]
    close: Callable[[BaseException | None], None]
    computing: float = 0.0
    turns: int = 0
    backlog: int = 0  # bytes of results that wait for the client
    taken: float = field(default_factory=time.monotonic)  # when the client last took some
    cancelled: bool = False


class Scheduler(Generic[Item]):
    """Runs in turn.

    Args:
        most: runs that may take turns at once.
        most_backlog: bytes; a run of which more waits for its client takes no turns.
        most_stall: seconds that such a run waits before it fails with `ClientStalled`.
        around: entered by the device's thread for its whole life, such as `torch.no_grad()`.
    """

    def __init__(
        self,
        most: int,
        max_backlog_bytes: int,
        max_stall_seconds: float,
        around: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    ) -> None:
        self._most = most
        self._most_backlog = max_backlog_bytes
        self._most_stall = max_stall_seconds
        self._around = around
        self._waiting: deque[ScheduledRun[Item]] = deque()
        self._on_device: ScheduledRun[Item] | None = None
        self._stopping = False
        self._ended = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="device", daemon=True)
        self._thread.start()

    @property
    def active_runs(self) -> int:
        """Runs that take turns now."""
        return len(self._waiting) + (self._on_device is not None)

    @property
    def is_alive(self) -> bool:
        """Whether the device's thread is there and takes runs."""
        return self._thread.is_alive() and not self._stopping

    def submit(self, ticket: ScheduledRun[Item], retry_after: int = 5) -> None:
        """Let a run take turns.

        Raises:
            QueueFull: where there are too many.
            BackendStopping: where no more are taken.
        """
        with self._changed:
            self.check(retry_after)
            self._waiting.append(ticket)
            self._changed.notify()

    def check(self, retry_after: int = 5) -> None:
        """Raise as `submit` would now."""
        if self._stopping or not self._thread.is_alive():
            raise BackendStopping("The backend is stopping.")
        if self.active_runs >= self._most:
            raise QueueFull(retry_after)

    def cancel(self, ticket: ScheduledRun[Item]) -> None:
        """End a run after the batch it is at; `close` is called without an error. Harmless for one that has ended."""
        with self._changed:
            ticket.cancelled = True
            self._changed.notify()

    def results_queued(self, ticket: ScheduledRun[Item], size: int) -> None:
        """A batch gave `size` bytes of results, which wait for the client."""
        with self._changed:
            if ticket.backlog <= self._most_backlog < ticket.backlog + size:
                ticket.taken = time.monotonic()  # it has not had more to take until now
            ticket.backlog += size

    def results_sent(self, ticket: ScheduledRun[Item], size: int) -> None:
        """The client took `size` bytes of a run's results."""
        with self._changed:
            ticket.backlog -= size
            ticket.taken = time.monotonic()
            self._changed.notify()

    def stop(self, grace: float = 0.0) -> None:
        """Take no more runs; those not done after `grace` seconds fail with `BackendStopping`; returns at once."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        timer = threading.Timer(grace, self._end)
        timer.daemon = True
        timer.start()

    def join(self, timeout: float | None = None) -> None:
        """Wait until the device's thread has ended, after `stop`."""
        self._thread.join(timeout)

    def _end(self) -> None:
        with self._changed:
            self._ended = True  # whoever waits fails at once, whoever is on the device does so behind its batch
            self._changed.notify()

    def _work(self) -> None:
        with self._around():
            while (ticket := self._next()) is not None:
                self._turn(ticket)

    def _next(self) -> ScheduledRun[Item] | None:
        """The ticket whose turn it is; None when all is done and no more will come."""
        with self._changed:
            while True:
                for _ in range(len(self._waiting)):
                    ticket = self._waiting.popleft()
                    if self._is_ready(ticket):
                        self._on_device = ticket
                        return ticket
                    self._waiting.append(ticket)
                if self._stopping and not self._waiting:
                    return None
                self._changed.wait(1.0 if self._waiting else None)

    def _is_ready(self, ticket: ScheduledRun[Item]) -> bool:
        if ticket.cancelled or self._ended or ticket.backlog <= self._most_backlog:
            return True
        return time.monotonic() - ticket.taken > self._most_stall

    def _turn(self, ticket: ScheduledRun[Item]) -> None:
        """One batch of a run, or its end."""
        goes_on = False
        error: Exception | None = None
        try:
            goes_on = self._batch(ticket)
        except Exception as failure:  # one run's failure is not the others'
            error = failure
        with self._changed:
            self._on_device = None
            if goes_on:
                self._waiting.append(ticket)
        if not goes_on:
            self._end_of(ticket, error)

    def _end_of(self, ticket: ScheduledRun[Item], error: Exception | None) -> None:
        """Nothing that goes wrong here may end the thread that all runs need."""
        try:
            ticket.steps.close()
        except Exception as failure:
            error = error or failure
        try:
            ticket.close(error)
        except Exception:
            LOGGER.exception("end of a run failed")

    def _batch(self, ticket: ScheduledRun[Item]) -> bool:
        """One batch of a run; whether more may follow."""
        if ticket.cancelled:
            return False
        if self._ended:
            raise BackendStopping("The backend is stopping.")
        if ticket.backlog > self._most_backlog:
            raise ClientStalled("Nobody took the results for too long.")
        began = time.monotonic()
        try:
            items = next(ticket.steps, None)
        finally:
            ticket.computing += time.monotonic() - began
            ticket.turns += 1
        if items:
            ticket.emit(items)
        return items is not None


class Engine:
    """A segmenter with its device.

    Args:
        on_lost: called once, in the device's thread, when the device has failed for good.
    """

    def __init__(
        self, segmenter: Segmenter, limits: ServerLimits, on_device_error: Callable[[], None] = lambda: None
    ) -> None:
        self.segmenter = segmenter
        self.limits = limits
        self.seconds_per_slice = segmenter.seconds_per_slice()
        self.latents = LatentCache(limits.latent_bytes)
        self.lost: str | None = None
        """what the device failed by"""
        self._on_lost = on_device_error
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
        options: RunOptions,
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
            if self._held + size > self.limits.reserved_bytes:
                raise QueueFull(retry_after)
            self._held += size

    def release(self, size: int) -> None:
        """The run that held these bytes has ended."""
        with self._lock:
            self._held -= size

    def note(self, error: BaseException) -> None:
        """Take notice of what a run failed by, in the device's thread."""
        if self.is_fatal_device_error(error) and self.lost is None:
            self.lost = str(error).partition("\n")[0]
            self._on_lost()

    def is_fatal_device_error(self, error: BaseException) -> bool:
        """Whether an error is one after which CUDA refuses all until the process ends."""
        return "CUDA error" in str(error) or type(error).__name__ == "AcceleratorError"


SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Metrics:
    """Counters of one application."""

    def __init__(self, engine: Engine, store: Store) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self.requests = Counter(
            "sdfsmis_requests", "Answered requests.", ["method", "route", "status"], registry=self._registry
        )
        self.runs = Counter(
            "sdfsmis_runs", "Segmentations that ended: done, cancelled or failed.", ["outcome"], registry=self._registry
        )
        self.received = Counter("sdfsmis_received_bytes", "Bytes of the bodies of requests.", registry=self._registry)
        self.slices = Counter("sdfsmis_slices", "Slices segmented.", registry=self._registry)
        self.seconds_per_slice = Histogram(
            "sdfsmis_seconds_per_slice",
            "Time of the device for each slice, mean of its run.",
            buckets=SECONDS,
            registry=self._registry,
        )
        self.asked = Counter(
            "sdfsmis_stored_slices_asked",
            "Slices that clients asked for before sending them.",
            ["there"],
            registry=self._registry,
        )
        for name, text, value in (
            ("sdfsmis_queue_runs", "Runs that take turns.", lambda: engine.scheduler.active_runs),
            ("sdfsmis_stored_bytes", "Memory of the slices that are kept.", lambda: store.bytes),
            ("sdfsmis_latent_bytes", "Memory of the encoded slices that are kept.", lambda: engine.latents.bytes),
            ("sdfsmis_latent_hits", "Encoded slices that were used again.", lambda: engine.latents.hits),
            ("sdfsmis_latent_misses", "Slices that had to be encoded.", lambda: engine.latents.misses),
        ):
            Gauge(name, text, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        """All of them, in Prometheus' text format."""
        return generate_latest(self._registry)
