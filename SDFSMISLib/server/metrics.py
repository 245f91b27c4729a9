"""What the backend counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from SDFSMISLib.server.engine import Engine
from SDFSMISLib.server.store import Store

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
            ("sdfsmis_queue_runs", "Runs that take turns.", lambda: engine.scheduler.running),
            ("sdfsmis_stored_bytes", "Memory of the slices that are kept.", lambda: store.bytes),
            ("sdfsmis_latent_bytes", "Memory of the encoded slices that are kept.", lambda: engine.latents.bytes),
            ("sdfsmis_latent_hits", "Encoded slices that were used again.", lambda: engine.latents.hits),
            ("sdfsmis_latent_misses", "Slices that had to be encoded.", lambda: engine.latents.misses),
        ):
            Gauge(name, text, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        """All of them, in Prometheus' text format."""
        return generate_latest(self._registry)
