"""How a backend is started, what it accepts at most, and its log.

The log has one line per event, `name key=value …`, and never anything of a scan or its patient.
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
MAX_PIXEL_BYTES = 8


@dataclass(frozen=True)
class ServerLimits:
    """Upper bounds that keep any request, or all together, from taking a whole machine.

    Attributes:
        slice_pixels: pixels of one slice.
        slices: slices of one scan.
        shots: painted slices of one request.
        labels: labels of one request.
        masked_pixels: pixels of all painted slices of one request plus those of their masks, label by label.
        body_bytes: body of any request other than the upload of a single slice.
        store_bytes: memory of the stored slices of all clients; the least recently used are dropped first.
        store_seconds: time after which a slice that was not used is dropped.
        reserved_bytes: memory of the slices of all active runs, which they hold whatever the store drops, and of what
            they fuse; a run that would exceed it is refused, with a time to try again if it would not do so alone.
        latent_bytes: memory of the encoded slices that are kept for the next run.
        queue: active runs; one more is refused with a time to try again.
        unsent_bytes: results of a run that its client has not read; a run with more is not given the device.
        stall_seconds: time after which such a run fails.
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
    unsent_bytes: int = 64 * MIB
    stall_seconds: float = 120.0

    @property
    def slice_bytes(self) -> int:
        """Bytes of the largest accepted slice, of any type, compressed or not."""
        return MAX_PIXEL_BYTES * self.slice_pixels


@dataclass(frozen=True)
class ServeSettings:
    """The options of `sdfsmis serve`, whose help describes them.

    Example:
        >>> settings = ServeSettings(host="0.0.0.0", token="at-least-16-characters")
        >>> settings.is_loopback, settings.scheme
        (False, 'http')
    """

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
        """Whether only this computer can reach the backend."""
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
    """Log an event with its fields; those that are None are left out, floats have three decimals."""
    text = " ".join(f"{key}={_field_text(value)}" for key, value in fields.items() if value is not None)
    LOGGER.info("%s %s", name, text)


def log_to_stderr() -> None:
    """Show this log, and uvicorn's errors, on standard error.

    uvicorn's warnings stay out: it writes one for each malformed request.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for logger, level in ((LOGGER, logging.INFO), (logging.getLogger("uvicorn.error"), logging.ERROR)):
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False


def _field_text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    return text if text and text.isprintable() and not set(text) & set(' "=') else json.dumps(text)
