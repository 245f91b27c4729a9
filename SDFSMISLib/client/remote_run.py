"""A run on a backend: slices come one by one, what breaks is taken up where it broke, any thread may cancel it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Literal

import numpy as np

from SDFSMISLib.client.capabilities import Capabilities, ask_capabilities
from SDFSMISLib.client.connection import Connection, Interrupt, Route, Trouble
from SDFSMISLib.client.errors import BackendError, BackendFailed, refusal, shown
from SDFSMISLib.client.upload import OnProgress, Shipment, send, shipment_of
from SDFSMISLib.errors import Cancelled, InputError
from SDFSMISLib.slices import SliceStack, needed_slices
from SDFSMISLib.support import SupportSlice
from SDFSMISLib.wire import PROTOCOL, query_fields, support_fields, unpack_probability

__all__ = ["Phase", "RemoteRun", "RunState", "SliceRecord"]

Phase = Literal["not begun", "connecting", "sending", "waiting", "computing", "reconnecting", "finished"]
MOST_WARNINGS = 20


@dataclass(frozen=True, eq=False)
class SliceRecord:
    """One finished slice of one label.

    Attributes:
        label: label value. index: which slice of the stack.
        probability: uint8 (rows, columns), native, 255 meaning 1.
        certainty: 0 to 1.
        finished, total: slices done so far, this one included, and slices in all (labels counted one by one).
    """

    label: int
    index: int
    probability: np.ndarray
    certainty: float
    finished: int
    total: int


@dataclass
class RunState:
    """What a run has received, for going on with it later. It holds plain types only, as JSON does:
    ``RunState(**json.loads(json.dumps(dataclasses.asdict(state))))`` is the same.

    Attributes:
        request: stands for what was asked; a run that asks for something else does not go on from here.
        weights_sha256: the model that it came from; empty before the first answer.
        total: slices in all; 0 before the first answer.
        finished: label, index, box, data and certainty of each slice.
        lanes, found: what the backend wants back, as it came.
    """

    request: str
    weights_sha256: str = ""
    total: int = 0
    finished: list[dict[str, Any]] = field(default_factory=list)
    lanes: list[dict[str, Any]] = field(default_factory=list)
    found: list[dict[str, Any]] | None = None


@dataclass(eq=False)
class RemoteRun:
    """A run on a backend; made by ``Client.segment``, it begins when it is iterated over.

    ``for record in run`` gives each finished slice once. Leaving its ``with`` block, or :meth:`cancel` from any thread,
    closes the connection, and the backend stops.

    Attributes:
        phase: what goes on, for showing; any thread may look.
        ahead: other runs that take turns with this one.
        warnings: what a user should know about the fit of support and query, one sentence each.
        version, model, weights_sha256, device: of the backend, once it has begun.
        seconds: ``total``, ``waiting`` and ``computing``, once it has ended.
    """

    route: Route
    stack: SliceStack
    pieces: Sequence[SupportSlice]
    labels: Sequence[int]
    slices: Sequence[int] | None
    strategy: str
    region: str
    threshold: float
    on_upload: OnProgress | None
    cancelled: Callable[[], bool] | None
    on_trouble: Callable[[BackendError], None] | None
    patience: float
    resume: RunState | None = None
    phase: Phase = field(default="not begun", init=False)
    ahead: int = field(default=0, init=False)
    warnings: list[str] = field(default_factory=list, init=False)
    version: str = field(default="", init=False)
    model: str = field(default="", init=False)
    weights_sha256: str = field(default="", init=False)
    device: str = field(default="", init=False)
    seconds: dict[str, float] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._interrupt = Interrupt()
        self._records = self._run()
        self._wanted = self.stack.wanted(self.slices)
        asked = self._asked()
        if self.resume is not None and self.resume.request != asked:
            raise InputError("The state is of a run with other slices or options; begin this one without it.")
        self._state = self._copy(self.resume) if self.resume is not None else RunState(asked)
        self._got = {(one["label"], one["index"]) for one in self._state.finished}
        self._painted = {label: self._painted_of(label) for label in self.labels}
        self._expected = self._to_come()
        self._got_lanes = {(one["label"], one["start"], one["index"]) for one in self._state.lanes}
        self._trouble = Trouble(self.patience, self.route.address.name, self._interrupt)

    def __iter__(self) -> Iterator[SliceRecord]:
        return self._records

    def __enter__(self) -> RemoteRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()
        self._records.close()

    def cancel(self) -> None:
        """Close the connection at once; who iterates gets `Cancelled`. Harmless for a run that has ended."""
        self._interrupt.set()

    @property
    def state(self) -> RunState:
        """What has come so far; a copy. Hand it to ``Client.segment(resume=...)`` to go on from there."""
        return self._copy(self._state)

    @staticmethod
    def _copy(state: RunState) -> RunState:
        return replace(state, finished=list(state.finished), lanes=list(state.lanes))

    def _asked(self) -> str:
        """Stands for all that has a part in the result."""
        fields = query_fields(self.stack, {}) | {"support": [piece.digest() for piece in self.pieces]}
        fields |= {"labels": list(self.labels), "wanted": self._wanted, "strategy": self.strategy}
        fields |= {"region": self.region, "threshold": self.threshold}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

    def _run(self) -> Generator[SliceRecord, None, None]:
        with Connection(self.route, self._interrupt) as connection:
            self._ask()
            self.phase = "connecting"
            capabilities = self._accepted(ask_capabilities(connection))
            self.phase = "sending"
            shipment = shipment_of(self.stack, self._needed(), self.pieces, self._ask)
            request = self._request(shipment)
            while True:
                try:
                    self.phase = "sending"
                    send(connection, shipment, capabilities.limits, self._on_upload, self.cancelled)
                    yield from self._stream(connection, request, capabilities)
                    break
                except BackendError as error:
                    connection.close()
                    if not error.passing:
                        raise
                    self.phase = "reconnecting"
                    self._trouble.outlast(error, self._ask, self.on_trouble)
        self.phase = "finished"

    def _ask(self) -> None:
        if self.cancelled is not None and self.cancelled():
            self.cancel()
        if self._interrupt.is_set():
            raise Cancelled("The run was cancelled.")

    def _accepted(self, capabilities: Capabilities) -> Capabilities:
        """Raise where the backend says beforehand that it does not take the run."""
        for what, given, known in (
            ("strategy", self.strategy, capabilities.strategies),
            ("region", self.region, capabilities.regions),
        ):
            if given not in known:
                raise InputError(f"The {what} {given!r} was given; the backend accepts {' and '.join(known)}.")
        capabilities.limits.check(self.stack, len(self.pieces), len(self.labels))
        return capabilities

    def _painted_of(self, label: int) -> dict[int, bool]:
        """The slices of the stack that are painted, or said to be without the label; whether they show it."""
        here = (piece for piece in self.pieces if piece.scan == self.stack.scan and piece.axis == self.stack.axis)
        known = ((piece.index, bool(piece.mask(label).any()), piece.complete) for piece in here)
        return {index: shows for index, shows, complete in known if shows or complete}

    def _to_come(self) -> set[tuple[int, int]]:
        """Label and index of all slices that the run gives."""
        return {(label, index) for label in self.labels for index in self._wanted if index not in self._painted[label]}

    def _needed(self) -> list[int]:
        """The slices of the stack that the backend will read."""
        open_labels = {label for label, _ in self._expected}
        if not open_labels:
            return []
        starts = [{index for index, shows in self._painted[label].items() if shows} for label in open_labels]
        painted = set().union(*starts) if all(starts) else set()
        return needed_slices(self.strategy, self.stack.count, self._wanted, painted)

    def _request(self, shipment: Shipment) -> dict[str, Any]:
        """The request, without what has come already."""
        return {
            "protocol": PROTOCOL,
            "query": query_fields(self.stack, shipment.query),
            "support": [
                support_fields(piece, self.labels, address)
                for piece, address in zip(self.pieces, shipment.support, strict=True)
            ],
            "labels": list(self.labels),
            "slices": None if self.slices is None else self._wanted,
            "strategy": self.strategy,
            "region": self.region,
            "threshold": self.threshold,
        }

    def _on_upload(self, done: int, total: int) -> None:
        self._trouble.over(done)
        if self.on_upload is not None:
            self.on_upload(done, total)

    def _stream(
        self, connection: Connection, request: Mapping[str, Any], capabilities: Capabilities
    ) -> Generator[SliceRecord, None, None]:
        """The slices of one connection, to the end of the run."""
        finished = [_kept(fields, "label", "index", "box", "data") for fields in self._state.finished]
        body = json.dumps({**request, "finished": finished, "lanes": self._state.lanes, "found": self._state.found})
        capabilities.limits.check_body(len(body))
        self.phase = "waiting"
        response = connection.open("POST", "/segmentations", body.encode())
        self._trouble.connected()
        rows, columns = self.stack.native_shape
        longest = (1 << 16) + 2 * rows * columns * len(self.labels)
        while True:
            record = connection.record(response, longest)
            self._ask()
            try:
                if record["type"] == "end":
                    self._end(record)
                    return
                fresh = self._take(record)
            except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
                raise BackendFailed(
                    f"The backend at {self.route.address.name} sends what is not understood ({error}). Update the "
                    "older of backend and program."
                ) from error
            if fresh is not None:
                yield fresh

    def _take(self, record: Mapping[str, Any]) -> SliceRecord | None:
        """Take a record in; the slice that is new by it. Records of kinds that are not known are left out."""
        kind = record["type"]
        if kind == "start":
            self._start(record)
        elif kind == "alive":
            self.ahead = int(record["ahead"])
            self.phase = "waiting" if self.ahead else "computing"
        elif kind == "slice" and (record["label"], record["index"]) not in self._got:
            return self._take_slice(record)
        elif kind == "lane":
            self._take_lane(record)
        elif kind == "found" and self._state.found is None:
            starts = [_kept(one, "label", "index", "box", "data") for one in record["starts"]]
            if len(starts) > len(self.labels) or not all(self._is_of_run(one) for one in starts):
                raise ValueError("starts that were not asked for")
            self._state.found = starts
            self._trouble.over()
        elif kind == "error":
            raise refusal(self.route.address.name, 0, str(record["code"]), str(record["message"]))
        return None

    def _is_of_run(self, record: Mapping[str, Any]) -> bool:
        return record["label"] in self.labels and 0 <= record["index"] < self.stack.count

    def _take_lane(self, record: Mapping[str, Any]) -> None:
        """Keep what a lane has answered, for going on later; at most two come to a slice, one from either side."""
        place = (record["label"], record["start"], record["index"])
        most = 2 * len(self.labels) * self.stack.count
        if not self._is_of_run(record) or not 0 <= record["start"] < self.stack.count or len(self._got_lanes) > most:
            raise ValueError("a lane that was not asked for")
        if place not in self._got_lanes:
            self._got_lanes.add(place)
            self._state.lanes.append(_kept(record, "label", "start", "index", "box", "data"))
            self._trouble.over()

    def _take_slice(self, record: Mapping[str, Any]) -> SliceRecord:
        if (record["label"], record["index"]) not in self._expected:
            raise ValueError(f"slice {record['index']!s:.20} of label {record['label']!s:.20}, which was not asked for")
        fields = _kept(record, "label", "index", "box", "data", "certainty")
        fresh = _record(fields, self.stack.native_shape, len(self._state.finished) + 1, self._state.total)
        self._got.add((fresh.label, fresh.index))
        self._state.finished.append(fields)
        self._trouble.over()
        self.phase = "computing"
        return fresh

    def _start(self, record: Mapping[str, Any]) -> None:
        state, weights = self._state, str(record["weights_sha256"])
        if state.weights_sha256 not in ("", weights):
            raise BackendFailed(
                f"The backend at {self.route.address.name} has another model now than when the run began. Begin the "
                "run again."
            )
        self.version, self.model, self.device = (str(record[name]) for name in ("version", "model", "device"))
        self.warnings = [shown(warning) for warning in record["warnings"][:MOST_WARNINGS]]
        self.weights_sha256 = state.weights_sha256 = weights
        state.total = int(record["total"])
        if state.total != len(self._expected):
            raise ValueError(f"{state.total} slices in place of {len(self._expected)}")

    def _end(self, record: Mapping[str, Any]) -> None:
        self.seconds = {str(name): float(value) for name, value in record["seconds"].items()}
        if not self.weights_sha256 or self._got != self._expected:
            raise BackendFailed(
                f"The backend at {self.route.address.name} ended after {len(self._state.finished)} of "
                f"{self._state.total} slices. Begin the run again; if that does not help, update the backend."
            )


def _kept(fields: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: fields[name] for name in names}


def _record(fields: Mapping[str, Any], shape: tuple[int, int], finished: int, total: int) -> SliceRecord:
    probability = unpack_probability(fields, shape)
    label, index, certainty = int(fields["label"]), int(fields["index"]), float(fields["certainty"])
    return SliceRecord(label, index, probability, certainty, finished, total)
