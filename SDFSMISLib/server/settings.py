"""What the backend accepts at most, so that no request can take all of a machine.

What a backend is told when it is started.

The backend's log: one line an event, `name key=value …`; never anything of a scan.
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from SDFSMISLib.options import BUILT_IN

MIB = 1 << 20
MAX_ITEM_BYTES = 8  # of a pixel of any type


@dataclass(frozen=True)
class ServerLimits:
    """Attributes:
    slice_pixels: of one slice.
    slices: of one scan.
    shots: painted slices of one request.
    labels: of one request.
    masked_pixels: pixels of all painted slices of one request together, and of their masks, label by label.
    body_bytes: of one request that is no slice.
    store_bytes: of all slices that are kept, as they are in memory; those unused for longest go first.
    store_seconds: a slice that was not used for so long goes.
    held_bytes: of the slices of all runs that take turns, which stay whatever becomes of the store; a run that would
        exceed them is told to come again.
    latent_bytes: of the encoded slices that are kept for the next run.
    queue: runs that take turns; another one is told to come again.
    backlog_bytes: results of a run that wait for its client; a run with more waits, and does not hold the device.
    stall_seconds: a client that takes nothing for so long has gone.
    """

    slice_pixels: int = 4096 * 4096
    slices: int = 4096
    shots: int = 64
    labels: int = 64
    masked_pixels: int = 1 << 27
    body_bytes: int = 48 * MIB
    store_bytes: int = 2048 * MIB
    store_seconds: float = 3600.0
    reserved_bytes: int = 4096 * MIB
    latent_bytes: int = 256 * MIB
    queue: int = 32
    backlog_bytes: int = 64 * MIB
    stall_seconds: float = 120.0

    @property
    def slice_bytes(self) -> int:
        """Of the largest slice that is accepted, of any type, packed or not."""
        return MAX_ITEM_BYTES * self.slice_pixels


@dataclass(frozen=True)
class ServeSettings:
    """The options of `sdfsmis serve`; see its help."""

    host: str = "127.0.0.1"
    port: int = 7861
    token: str | None = None
    token_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    model: str = BUILT_IN
    device: str = "auto"
    engine: Literal["process", "ray"] = "process"
    until_stdin_closes: bool = False
    limits: ServerLimits = ServerLimits()

    @property
    def is_loopback(self) -> bool:
        """Whether only this computer reaches the backend."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def scheme(self) -> str:
        return "https" if self.tls_cert is not None else "http"


LOGGER = logging.getLogger("sdfsmis.server")


def log_event(name: str, **fields: object) -> None:
    """Log an event with its fields; those that are None are left out."""
    told = " ".join(f"{key}={_value(value)}" for key, value in fields.items() if value is not None)
    LOGGER.info("%s %s", name, told)


def log_to_stderr() -> None:
    """Show the log, and uvicorn's errors, on standard error. Its warnings tell of each malformed request."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for logger, level in ((LOGGER, logging.INFO), (logging.getLogger("uvicorn.error"), logging.ERROR)):
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    return text if text and text.isprintable() and not set(text) & set(' "=') else json.dumps(text)
