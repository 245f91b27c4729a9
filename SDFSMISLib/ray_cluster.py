"""A connection to Ray: to a cluster that is there, else to a Ray of this program's own."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from SDFSMISLib.errors import InputError

__all__ = ["connected", "nodes"]

REACH = 10.0  # seconds within which a cluster answers


@contextmanager
def connected() -> Iterator[None]:
    """A connection to the cluster that RAY_ADDRESS names or that runs here, which stays; else to a Ray that ends with
    the block. A connection that is there already is used.

    Raises:
        InputError: where the cluster cannot be reached.
    """
    if ray.is_initialized():
        yield
        return
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    named = os.environ.get("RAY_ADDRESS", "")
    with _without_raylet_logs():
        try:
            _knock(named)
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(
                f"Cannot reach the Ray cluster {named} ({' '.join(str(error).split())}); start one with ray start "
                "--head, or unset RAY_ADDRESS to use this machine."
            ) from error
        try:
            yield
        finally:
            ray.shutdown()


def nodes() -> list[tuple[int, int]]:
    """Processors and GPUs of each node."""
    alive = (node["Resources"] for node in ray.nodes() if node["Alive"])
    return [(int(resources.get("CPU", 0)), int(resources.get("GPU", 0))) for resources in alive]


def _knock(address: str) -> None:
    """Raises an OSError where nobody listens at an address; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH).close()


@contextmanager
def _without_raylet_logs() -> Iterator[None]:
    """Ray prints the log of a node that was lost on standard output, where results go; there is no option for it."""
    from ray._private import worker

    before = getattr(worker, "_worker_logs_enabled", True)
    worker._worker_logs_enabled = False
    try:
        yield
    finally:
        worker._worker_logs_enabled = before
