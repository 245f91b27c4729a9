"""The segmenter of a backend with its device, its cache and its memory budget, and what the backend counts.

Threads of a backend process:

- The **event loop** (main thread) reads requests and writes the streams of results. It never computes and never waits
  for the device.
- A **thread pool** (starlette's) does what takes milliseconds to seconds on a CPU: unpacks and hashes slices, makes a
  request into a run, packs results. At most two requests are made into runs at the same time, which bounds the memory.
- The **device's thread** (`scheduler.Scheduler`) runs the networks, batch by batch, for all runs in turn. It hands
  results to the event loop by `call_soon_threadsafe` and does not wait for it.

A run holds its slices from its request to its end, whatever the store drops meanwhile; `Engine.reserve` bounds the
sum over all runs. A client cancels its run by closing the connection; the run ends after its current batch. After a
CUDA error the process cannot use its device any more: the engine stops, and the process, or the Ray replica, ends.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from SDFSMISLib.inference.networks import LatentCache
from SDFSMISLib.inference.run import Result
from SDFSMISLib.inference.segmenter import Segmenter
from SDFSMISLib.server.scheduler import QueueFull, Scheduler
from SDFSMISLib.server.settings import ServerLimits
from SDFSMISLib.server.store import Store

MAX_SCANS = 64  # with slices of other axes in the cache; a scan more, and the oldest one's are forgotten


class Engine:
    """A segmenter that several clients share.

    Attributes:
        segmenter: the networks, on their device.
        limits: see `ServerLimits`.
        seconds_per_slice: measured on construction, for one label.
        latents: encoded slices, kept from one run to the next of the same slices.
        scheduler: the runs that take turns on the device.
        device_error: first line of the error after which the device cannot be used any more; None while it works.
        on_device_error: called once, in the device's thread, when that happens; the scheduler is stopping by then.

    Example:
        >>> engine = Engine(Segmenter.from_pretrained("built-in", "cpu"), ServerLimits(reserved_bytes=1000))
        >>> engine.device_name, engine.scheduler.active_runs
        ('cpu', 0)
        >>> engine.reserve(800, retry_after=5)
        >>> engine.reserve(800, retry_after=5)
        Traceback (most recent call last):
        SDFSMISLib.server.scheduler.QueueFull: The queue is full.
        >>> engine.release(800)
        >>> engine.scheduler.stop()
    """

    def __init__(self, segmenter: Segmenter, limits: ServerLimits) -> None:
        self.segmenter = segmenter
        self.limits = limits
        self.seconds_per_slice = segmenter.seconds_per_slice()
        self.latents = LatentCache(limits.latent_bytes)
        self.device_error: str | None = None
        self.on_device_error: Callable[[], None] = lambda: None
        self._reserved_bytes = 0
        self._scans: OrderedDict[str, tuple[str, frozenset[str]]] = OrderedDict()  # namespace and addresses by identity
        self._lock = threading.Lock()
        self.scheduler: Scheduler[Result] = Scheduler(
            limits.queue, limits.unsent_bytes, limits.stall_seconds, torch.no_grad
        )

    @property
    def device_name(self) -> str:
        """`cpu`, or the GPU's name as its driver gives it."""
        device = self.segmenter.pipeline.device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

    def forget_slice(self, namespace: str, address: str) -> None:
        """Drop what was computed from a slice that left the store, or from slices that were cut from it and others."""
        with self._lock:
            scans = [scan for scan, slices in self._scans.items() if namespace == slices[0] and address in slices[1]]
            for scan in scans:
                del self._scans[scan]
        for identity in (slice_identity(namespace, address), *scans):
            self.latents.forget(identity)

    def scan_identity(self, namespace: str, addresses: Sequence[str]) -> str:
        """What the names of slices in `latents` begin with that are cut from all slices of a scan."""
        identity = slice_identity(namespace, hashlib.sha256(" ".join(addresses).encode()).hexdigest())
        with self._lock:
            self._scans[identity] = namespace, frozenset(addresses)
            self._scans.move_to_end(identity)
            oldest = self._scans.popitem(last=False)[0] if len(self._scans) > MAX_SCANS else None
        if oldest is not None:
            self.latents.forget(oldest)
        return identity

    def reserve(self, size: int, retry_after: int) -> None:
        """Reserve memory for the slices of a run, until `release`.

        Args:
            size: bytes.
            retry_after: seconds, for `QueueFull`.

        Raises:
            QueueFull: if the runs together would hold more than `ServerLimits.reserved_bytes`.
        """
        with self._lock:
            if self._reserved_bytes + size > self.limits.reserved_bytes:
                raise QueueFull(retry_after)
            self._reserved_bytes += size

    def release(self, size: int) -> None:
        """Return `size` bytes that were reserved by a run."""
        with self._lock:
            self._reserved_bytes -= size

    def record_error(self, error: BaseException) -> None:
        """Look at the error that ended a run, in the device's thread; if it is the device's last, stop."""
        if is_fatal_device_error(error) and self.device_error is None:
            self.device_error = str(error).partition("\n")[0]
            self.scheduler.stop()
            self.on_device_error()


def slice_identity(namespace: str, address: str) -> str:
    """The name of a slice in `Engine.latents`: equal slices of two clients share nothing."""
    return f"{namespace} {address}"


def is_fatal_device_error(error: BaseException) -> bool:
    """Whether CUDA refuses all work of this process after an error."""
    return "CUDA error" in str(error) or type(error).__name__ == "AcceleratorError"


SECONDS_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Metrics:
    """What a backend counts, for Prometheus."""

    def __init__(self, engine: Engine, store: Store) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self.requests = self._counter("sdfsmis_requests", "Answered requests.", "method", "route", "status")
        self.runs = self._counter("sdfsmis_runs", "Segmentations that ended: done, cancelled or failed.", "outcome")
        self.received = self._counter("sdfsmis_received_bytes", "Bytes of the bodies of requests.")
        self.slices = self._counter("sdfsmis_slices", "Slices segmented.")
        self.slice_lookups = self._counter(
            "sdfsmis_stored_slices_asked", "Slices that clients asked for before sending them.", "there"
        )
        self.seconds_per_slice = Histogram(
            "sdfsmis_seconds_per_slice",
            "Time of the device for each slice, mean of its run.",
            buckets=SECONDS_BUCKETS,
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
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self._registry)
