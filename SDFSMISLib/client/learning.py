"""Learning on a backend: scans are sent one by one, and the backend tells how far it is until a model has come of them.

What breaks is taken up where it broke: the same request goes on there, or gives the same model again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from SDFSMISLib.client.backend_error import BackendError, BackendFailed, ScanTooLarge, SlicesMissing, refusal, shown
from SDFSMISLib.client.capabilities import Adaptations, Capabilities, Limits, ask_capabilities
from SDFSMISLib.client.connection import Connection, Interrupt
from SDFSMISLib.client.model_name import model_name
from SDFSMISLib.client.route import Route
from SDFSMISLib.client.trouble import Trouble
from SDFSMISLib.client.upload import Shipment, scan_shipment, send
from SDFSMISLib.errors import Cancelled, InputError
from SDFSMISLib.protocol import PROTOCOL
from SDFSMISLib.volume import Volume

__all__ = ["LearnedModel", "Learning", "LearningProgress", "ScanSource"]

LONGEST_RECORD = 1 << 17
MOST_SKIPPED = 64
SLOWEST_WRITE = 8 << 20  # bytes of a scan in a second, in which a backend at least compresses and writes it
SHORT_HASH = 12  # letters of a scan's hash by which a backend names it in texts

ScanSource = Callable[[], Volume]
"""Gives a scan when it is its turn to be sent; it may be called again, where the backend has lost the scan."""


@dataclass(frozen=True)
class LearnedModel:
    """What the backend has learned.

    Attributes:
        name: under which it segments with it. weights_sha256: of its weights.
        improved: False where nothing better was learned and the weights are those at the start.
        before, after: mean soft Dice on held-out supervoxels, of the weights at the start and of the new ones.
        steps: of the training. seconds: that it took there.
        scans: how many were learned from. skipped: why others were not, a sentence each: those that could not be read
            here, then those of which the backend says so.
    """

    name: str
    weights_sha256: str
    improved: bool
    before: float
    after: float
    steps: int
    seconds: float
    scans: int
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class LearningProgress:
    """How far it is: ``done`` of ``total``, and ``text``, a line for people.

    ``phase`` is `sending`; `waiting`, for a backend that is busy or was lost; or `learning`.
    """

    done: int
    total: int
    text: str
    phase: Literal["sending", "waiting", "learning"]


@dataclass(frozen=True)
class _ScanRequest:
    """What puts a scan together on the backend.

    Attributes:
        content: hash. body: of the request. size: bytes of the scan in memory. slices: that are sent.
        called: its name, for people.
    """

    content: str
    body: bytes
    size: int
    slices: int
    called: str


class Learning:
    """One request to learn; made by ``Client.learn``."""

    def __init__(
        self,
        route: Route,
        scans: Sequence[ScanSource],
        name: str,
        minutes: float,
        on_progress: Callable[[LearningProgress], None] | None,
        cancel: Callable[[], bool] | None,
        patience: float,
    ) -> None:
        if not scans:
            raise InputError("No scan was given; give scans of the kind that is to be segmented.")
        if not minutes > 0:
            raise InputError(f"{minutes:g} minutes were given; the time to learn must be above 0.")
        self._route, self._scans, self._name, self._minutes = route, scans, model_name(name), minutes
        self._on_progress, self._cancelled = on_progress, cancel
        self._interrupt = Interrupt()
        self._trouble = Trouble(patience, route.address.name, self._interrupt)
        self._requests: dict[int, _ScanRequest] = {}
        self._unread: dict[int, str] = {}  # why scans could not be read
        self._sent = 0  # slices of the scans before
        self._heard: set[tuple[int, int, str]] = set()  # progress that has come
        self._is_there = False  # a model of this name; what it was learned from only the backend knows

    def run(self) -> LearnedModel:
        """Sends what is missing and waits for the model; see ``Client.learn``."""
        with Connection(self._route, self._interrupt) as connection:
            self._ask()
            capabilities = ask_capabilities(connection)
            offered = self._offered(capabilities)
            self._is_there = any(one.learned and one.name == self._name for one in capabilities.models)
            while True:
                try:
                    self._sent = 0
                    for number in range(len(self._scans)):
                        self._send_readable(connection, number, capabilities, offered)
                    if not self._requests:
                        raise InputError(
                            f"None of the {len(self._scans)} scans can be read: {next(iter(self._unread.values()))}"
                        )
                    return self._learned(connection)
                except BackendError as error:
                    connection.close()
                    if not error.passing:
                        raise
                    self._is_there = False
                    self._trouble.outlast(error, self._ask, self._wait)

    def _offered(self, capabilities: Capabilities) -> Adaptations:
        """What the backend takes; raises where that is not this, before anything is sent."""
        offered = capabilities.adaptations
        if offered is None:
            raise refusal(self._route.address.name, 404, "not_offered", "")
        if self._minutes > offered.most_minutes:
            raise InputError(f"{self._minutes:g} minutes were given; the backend takes {offered.most_minutes:g}.")
        if len(self._scans) > offered.most_scans:
            raise InputError(
                f"{len(self._scans)} scans were given; the backend takes {offered.most_scans}. Leave some out: more "
                "are hardly learned from in the time."
            )
        return offered

    def _ask(self) -> None:
        if self._cancelled is not None and self._cancelled():
            raise Cancelled("Learning was cancelled; the same request goes on with it.")

    def _say(self, done: int, total: int, text: str, phase: Literal["sending", "waiting", "learning"]) -> None:
        if self._on_progress is not None:
            self._on_progress(LearningProgress(done, total, text, phase))

    def _wait(self, error: BackendError) -> None:
        self._say(0, 1, str(error), "waiting")

    # -- scans

    def _send_readable(
        self, connection: Connection, number: int, capabilities: Capabilities, offered: Adaptations
    ) -> None:
        """See `_send`; a scan that cannot be read is passed over."""
        if number in self._unread:
            return
        try:
            self._send(connection, number, capabilities, offered)
        except InputError as error:
            self._unread[number] = str(error)
            self._requests.pop(number, None)

    def _send(self, connection: Connection, number: int, capabilities: Capabilities, offered: Adaptations) -> None:
        """Have the backend hold a scan, its slices sent only where it does not yet."""
        self._ask()
        scan = None
        if number not in self._requests:
            self._tell_sent(number, 0, 1)
            scan = self._read(number, capabilities.limits, offered)
            self._requests[number] = self._request(number, scan, scan_shipment(scan, self._ask))
        if self._is_there:  # the name is taken, or all was learned before: either way nothing need be sent
            return
        try:
            self._put(number)
            return
        except SlicesMissing:
            scan = scan or self._read(number, capabilities.limits, offered)
        shipment = scan_shipment(scan, self._ask)
        self._requests[number] = self._request(number, scan, shipment)  # it may have been changed meanwhile

        def on_progress(done: int, total: int) -> None:
            self._trouble.over(self._sent + done)
            self._tell_sent(number, done, total)

        send(connection, shipment, capabilities.limits, on_progress, self._cancelled)
        self._put(number)

    def _read(self, number: int, limits: Limits, offered: Adaptations) -> Volume:
        """A scan, in the byte order in which it is sent, whose hash is then that of what the backend gets."""
        scan = self._scans[number]()
        count, rows, columns = scan.geometry.shape
        for given, most, what in (
            (scan.voxels.nbytes / 2**20, offered.most_bytes / 2**20, "MiB"),
            (count, limits.slices, "slices"),
            (rows * columns, limits.slice_pixels, "pixels in a slice"),
        ):
            if given > most:
                raise ScanTooLarge(
                    f"The backend takes scans of {most:.0f} {what} at most, and {_called(number, scan)} has "
                    f"{given:.0f}. Crop it, or leave it out."
                )
        return replace(scan, voxels=scan.voxels.astype(scan.voxels.dtype.newbyteorder("<"), copy=False))

    def _request(self, number: int, scan: Volume, shipment: Shipment) -> _ScanRequest:
        grid = scan.geometry
        fields = {
            "protocol": PROTOCOL,
            "shape": list(grid.shape),
            "spacing": list(grid.spacing),
            "origin": list(grid.origin),
            "direction": list(grid.direction),
            "slices": [shipment.query[index] for index in range(grid.shape[0])],
        }
        body = json.dumps(fields).encode()
        return _ScanRequest(scan.content_hash(), body, scan.voxels.nbytes, len(shipment.arrays), _called(number, scan))

    def _put(self, number: int) -> None:
        asked = self._requests[number]
        seconds = self._route.timeout + asked.size / SLOWEST_WRITE  # there is no sign of life before it is written
        with Connection(replace(self._route, timeout=seconds), self._interrupt) as connection:
            connection.ask("PUT", f"/scans/{asked.content}", asked.body)
        self._sent += asked.slices
        self._trouble.over(self._sent)

    def _tell_sent(self, number: int, done: int, total: int) -> None:
        """Progress in thousandths of all scans, since nobody knows the slices of those that come."""
        count = len(self._scans)
        share = (number + done / max(total, 1)) / count
        self._say(round(1000 * share), 1000, f"Sending scan {number + 1} of {count}", "sending")

    # -- learning

    def _learned(self, connection: Connection) -> LearnedModel:
        scans = list(dict.fromkeys(one.content for one in self._requests.values()))
        fields = {"protocol": PROTOCOL, "name": self._name, "scans": scans, "minutes": self._minutes}
        response = connection.open("POST", "/adaptations", json.dumps(fields).encode())
        self._trouble.connected()
        while True:
            record = connection.record(response, LONGEST_RECORD)
            self._ask()
            try:
                model = self._take(record)
            except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
                raise BackendFailed(
                    f"The backend at {self._route.address.name} sends what is not understood ({error}). Update the "
                    "older of backend and program."
                ) from error
            if model is not None:
                return model

    def _take(self, record: Mapping[str, Any]) -> LearnedModel | None:
        """Take a record in; the model where it is the last. Records of kinds that are not known are left out."""
        kind = record["type"]
        if kind == "progress":
            done, total, text = int(record["done"]), int(record["total"]), self._plain(record["text"])
            if (done, total, text) not in self._heard:  # else a backend that always breaks there would be asked forever
                self._heard.add((done, total, text))
                self._trouble.over()
            self._say(done, total, text, "learning")
        elif kind == "error" and record["code"] == "out_of_memory":
            raise ScanTooLarge(f"{shown(record['message'])} Use a backend with more memory.")
        elif kind == "error":
            raise refusal(self._route.address.name, 0, str(record["code"]), str(record["message"]))
        elif kind == "end":
            return LearnedModel(
                name=str(record["name"]),
                weights_sha256=str(record["weights_sha256"]),
                improved=bool(record["improved"]),
                before=float(record["before"]),
                after=float(record["after"]),
                steps=int(record["steps"]),
                seconds=float(record["seconds"]),
                scans=int(record["scans"]),
                skipped=(*self._unread.values(), *(self._plain(why) for why in record["skipped"][:MOST_SKIPPED])),
            )
        return None

    def _plain(self, text: object) -> str:
        """A text of the backend, in which scans have the names that they have here."""
        line = shown(text)
        for asked in self._requests.values():
            line = line.replace(f"scan {asked.content[:SHORT_HASH]}", asked.called)
        return line


def _called(number: int, scan: Volume) -> str:
    """A scan's name for people: that of its file, where it has one."""
    return scan.path.name if scan.path is not None else f"scan {number + 1}"
