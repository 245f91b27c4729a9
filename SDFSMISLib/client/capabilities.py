"""The capabilities of a backend: its version, models, device and limits."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from SDFSMISLib.client.connection import Connection
from SDFSMISLib.client.errors import NotABackend, ScanTooLarge, printable, version_mismatch
from SDFSMISLib.slices import SliceStack
from SDFSMISLib.wire import PROTOCOL

__all__ = ["Capabilities", "Limits", "Model", "fetch_capabilities"]


@dataclass(frozen=True)
class Model:
    """A model of a backend.

    Attributes:
        resolution: side of the square image that its networks take, in pixels.
        searches: whether its networks search for a structure on another scan; for other models registration does.
        looks_ahead: whether its networks see slices ahead of the one that they segment, which are sent too.
    """

    name: str
    weights_sha256: str
    resolution: int
    searches: bool = True
    looks_ahead: bool = False


@dataclass(frozen=True)
class Limits:
    """The most that a backend accepts.

    Attributes:
        slice_pixels: pixels of one slice. slices: slices of one scan.
        shots, labels: painted slices and labels of one request.
        body_bytes: bytes of one HTTP request.
        store_bytes: bytes in memory of all slices that it keeps.
        queue: runs that take turns.
    """

    slice_pixels: int
    slices: int
    shots: int
    labels: int
    body_bytes: int
    store_bytes: int
    queue: int

    def check(self, stacks: Collection[SliceStack], shots: int, labels: int) -> None:
        """Raise `ScanTooLarge` if a run, over the slices along one axis or several, is beyond the limits."""
        pixels = max(math.prod(stack.native_shape) for stack in stacks)
        for given, most, what, instead in (
            (pixels, self.slice_pixels, "pixels in a slice", "Resample the scan to larger pixels"),
            (max(stack.count for stack in stacks), self.slices, "slices in a scan", "Crop the scan"),
            (shots, self.shots, "painted slices", "Give fewer of them"),
            (labels, self.labels, "structures at once", "Segment some of them at a time"),
        ):
            if given > most:
                raise ScanTooLarge(f"The backend takes {most} {what}, and these are {given}. {instead}.")

    def check_store(self, size: int) -> None:
        """Raise `ScanTooLarge` if the slices of a run, ``size`` bytes, are more than the backend keeps."""
        if size > self.store_bytes:
            raise ScanTooLarge(
                f"The slices take {size / 2**20:.0f} MiB, and the backend keeps {self.store_bytes / 2**20:.0f} MiB at "
                "most. Segment fewer slices at once, or crop the scan."
            )

    def check_body(self, size: int) -> None:
        """Raise `ScanTooLarge` if a request of ``size`` bytes is larger than the backend accepts."""
        if size > self.body_bytes:
            raise ScanTooLarge(
                f"A request takes {size / 2**20:.1f} MiB, and the backend takes {self.body_bytes / 2**20:.1f} MiB at "
                "most. Segment fewer slices or structures at once."
            )


@dataclass(frozen=True)
class Capabilities:
    """The answer of a backend to ``GET /capabilities``.

    Attributes:
        version: of its program.
        models: the first one segments.
        device_name: of the processor or graphics card. device_kind: ``cpu`` or ``cuda``.
        seconds_per_slice: time for one slice of one label, as measured on that device.
        running: runs that take turns on it now.
    """

    version: str
    models: tuple[Model, ...]
    device_name: str
    device_kind: str
    seconds_per_slice: float
    strategies: tuple[str, ...]
    regions: tuple[str, ...]
    limits: Limits
    running: int


def fetch_capabilities(connection: Connection) -> Capabilities:
    """Ask a backend for its capabilities.

    Raises:
        NotABackend: if another program answers.
        VersionMismatch: if the backend has another protocol.
    """
    answer, name = connection.request_json("GET", "/capabilities"), connection.endpoint.address.name
    if isinstance(answer, dict) and answer.get("name") == "sdfsmis":
        if answer.get("protocol") != PROTOCOL:
            raise version_mismatch(name, answer.get("protocol"))
        try:
            return _parse(answer)
        except (LookupError, TypeError, ValueError, OverflowError):
            pass
    raise NotABackend(f"What answers at {name} does not say what a backend says. Correct the address, or update it.")


def _parse(answer: dict[str, Any]) -> Capabilities:
    limits = answer["limits"]
    if not answer["models"] or not math.isfinite(answer["seconds_per_slice"]):
        raise ValueError("no model, or a time that is none")
    return Capabilities(
        version=printable(answer["version"]),
        models=tuple(
            Model(
                printable(one["name"]),
                printable(one["weights_sha256"]),
                int(one["resolution"]),
                bool(one.get("searches", True)),
                bool(one.get("looks_ahead", False)),
            )
            for one in answer["models"]
        ),
        device_name=printable(answer["device"]["name"]),
        device_kind=str(answer["device"]["kind"]),
        seconds_per_slice=float(answer["seconds_per_slice"]),
        strategies=tuple(map(str, answer["strategies"])),
        regions=tuple(map(str, answer["regions"])),
        limits=Limits(**{name: int(limits[name]) for name in Limits.__dataclass_fields__}),
        running=int(answer["queue"]["running"]),
    )
