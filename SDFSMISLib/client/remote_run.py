"""A run on a backend: finished slices come one by one, a broken connection is taken up again, any thread may cancel."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal

from SDFSMISLib.client.capabilities import Capabilities, Limits, Model, fetch_capabilities
from SDFSMISLib.client.connection import Connection, Endpoint, Interrupt, RetryPolicy
from SDFSMISLib.client.errors import BackendError, BackendFailed, error_of_answer, printable
from SDFSMISLib.client.upload import OnProgress, SliceUpload, plan_upload, send_missing
from SDFSMISLib.errors import Cancelled, InputError
from SDFSMISLib.options import RunOptions
from SDFSMISLib.slices import AHEAD, SliceResult, SliceStack, needed_slices, propagation_stride
from SDFSMISLib.support import SupportSlice
from SDFSMISLib.wire import MAX_EARLIER_RECORDS, PROTOCOL, query_fields, support_fields, unpack_probability

__all__ = ["Phase", "RemoteRun"]

Phase = Literal["not begun", "connecting", "sending", "waiting", "computing", "reconnecting", "finished"]
MOST_WARNINGS = 20
ANSWER = ("label", "axis", "index", "box", "data")  # fields of a probability that a backend wants back after a cut

Place = tuple[int, int, int]
"""Label, axis and index of a slice."""


@dataclass(eq=False)
class RemoteRun:
    """A run on a backend, made by ``Client.segment``. Iterating over it starts it and gives each finished slice once.

    Slices of a label that is followed along several axes come as previews, then those of the main axis as final ones.

    Leaving its ``with`` block, or calling :meth:`cancel` from any thread, closes the connection, and the backend stops.

    Attributes:
        total: number of slices along all axes, labels counted one by one, fused slices not; 0 before the run has begun.
        phase: what the run is doing, to show to a user; any thread may read it.
        ahead: number of other runs that take turns with this one.
        warnings: mismatches of support and query that a user should know of, one sentence each.
        version, model, weights_sha256, device: of the backend, "" before it has started the run.
        seconds: wall-clock times ``total``, ``waiting`` and ``computing``; empty before the end.
    """

    endpoint: Endpoint
    stacks: Mapping[int, SliceStack]
    support: Sequence[SupportSlice]
    labels: Sequence[int]
    slices: Sequence[int] | None
    options: RunOptions
    on_upload: OnProgress | None
    is_cancelled: Callable[[], bool] | None
    on_retry: Callable[[BackendError], None] | None
    patience: float
    total: int = field(default=0, init=False)
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
        self._retries = RetryPolicy(self.patience, self.endpoint.address.name, self._interrupt)
        self._results = self._run()
        self._requested = self.scan.wanted(self.slices)
        self._painted = {
            (label, axis): self._painted_indices(label, axis) for label in self.labels for axis in self.stacks
        }
        self._axes: dict[int, Sequence[int]] = {}  # along which each label is followed
        self._fused: set[int] = set()  # labels
        self._expected: set[Place] = set()
        self._expected_final: set[Place] = set()  # of fused labels
        # What has come, by place, and for lanes by the slice where they start: the backend gets it back after a lost
        # connection, but for final slices of fused labels.
        self._finished: dict[Place, dict[str, Any]] = {}
        self._lanes: dict[tuple[Place, int], dict[str, Any]] = {}
        self._found: list[dict[str, Any]] | None = None
        self._final: set[Place] = set()

    @property
    def scan(self) -> SliceStack:
        """The slices along the main axis."""
        return next(iter(self.stacks.values()))

    def __iter__(self) -> Iterator[SliceResult]:
        return self._results

    def __enter__(self) -> RemoteRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()
        self._results.close()

    def cancel(self) -> None:
        """Close the connection at once; the thread that iterates gets `Cancelled`. Harmless after the end."""
        self._interrupt.set()

    def _run(self) -> Generator[SliceResult, None, None]:
        with Connection(self.endpoint, self._interrupt) as connection:
            self._raise_if_cancelled()
            self.phase = "connecting"
            capabilities = fetch_capabilities(connection)
            self._check(capabilities)
            self.phase = "sending"
            needed = self._needed(capabilities.models[0])
            upload = plan_upload(self.stacks, needed, self.support, self._raise_if_cancelled)
            request = self._request(upload)
            while True:
                try:
                    self.phase = "sending"
                    send_missing(connection, upload, capabilities.limits, self._on_upload, self.is_cancelled)
                    yield from self._stream(connection, request, capabilities)
                    break
                except BackendError as error:
                    connection.close()
                    if not error.is_temporary:
                        raise
                    self.phase = "reconnecting"
                    self._retries.wait_or_raise(error, self._raise_if_cancelled, self.on_retry)
        self.phase = "finished"

    def _raise_if_cancelled(self) -> None:
        if self.is_cancelled is not None and self.is_cancelled():
            self.cancel()
        if self._interrupt.is_set():
            raise Cancelled("The run was cancelled.")

    def _check(self, capabilities: Capabilities) -> None:
        """Raise if the backend says beforehand that it does not accept the run."""
        for what, given, accepted in (
            ("strategy", self.options.strategy, capabilities.strategies),
            ("region", self.options.region, capabilities.regions),
        ):
            if given not in accepted:
                raise InputError(f"The {what} {given!r} was given; the backend accepts {' and '.join(accepted)}.")
        capabilities.limits.check(self.stacks.values(), len(self.support), len(self.labels))

    def _painted_indices(self, label: int, axis: int) -> dict[int, bool]:
        """Slices along an axis that are not computed: wholly known ones that show the label (True), or surely do not
        (False)."""
        plane = self.stacks[axis].plane
        own = (one for one in self.support if one.known is None and one.plane.has_slices_of(plane))
        shows = ((one.index, bool(one.mask(label).any()), one.complete) for one in own)
        return {index: is_shown for index, is_shown, is_complete in shows if is_shown or is_complete}

    def _to_segment(self, label: int, axis: int) -> list[int]:
        indices = self._requested if axis == self.scan.plane.axis else range(self.stacks[axis].count)
        return [index for index in indices if index not in self._painted[label, axis]]

    def _needed(self, model: Model) -> list[int]:
        """The slices of the main axis that the backend will read."""
        if len(self.stacks) > 1:
            return list(range(self.scan.count))
        axis = self.scan.plane.axis
        open_labels = [label for label in self.labels if self._to_segment(label, axis)]
        if not open_labels:
            return []
        starts = [{index for index, shows in self._painted[label, axis].items() if shows} for label in open_labels]
        painted = set().union(*starts) if all(starts) else set()
        ahead = AHEAD * propagation_stride(self.scan.plane.thickness) if model.looks_ahead else 0
        return needed_slices(self.options.strategy, self.scan.count, self._requested, painted, ahead)

    def _request(self, upload: SliceUpload) -> dict[str, Any]:
        """The fields of the request, without those of an earlier connection."""
        return {
            "protocol": PROTOCOL,
            "query": query_fields(self.stacks, upload.query),
            "support": [
                support_fields(painted, self.labels, address)
                for painted, address in zip(self.support, upload.support, strict=True)
            ],
            "labels": list(self.labels),
            "slices": None if self.slices is None else self._requested,
            **self.options.settings,
        }

    def _on_upload(self, done: int, total: int) -> None:
        self._retries.resolved(done)
        if self.on_upload is not None:
            self.on_upload(done, total)

    def _stream(
        self, connection: Connection, request: Mapping[str, Any], capabilities: Capabilities
    ) -> Generator[SliceResult, None, None]:
        """The new slices of one connection, to the end of the run."""
        self.phase = "waiting"
        response = connection.request("POST", "/segmentations", self._body(request, capabilities.limits))
        self._retries.connected()
        pixels = max(math.prod(stack.native_shape) for stack in self.stacks.values())
        longest = (1 << 16) + 2 * pixels * len(self.labels)
        while True:
            record = connection.next_record(response, longest)
            self._raise_if_cancelled()
            try:
                if record["type"] == "end":
                    self._end(record)
                    return
                result = self._receive(record)
            except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
                raise BackendFailed(
                    f"The backend at {self.endpoint.address.name} sends what is not understood ({error}). Update the "
                    "older of backend and program."
                ) from error
            if result is not None:
                yield result

    def _body(self, request: Mapping[str, Any], limits: Limits) -> bytes:
        """A request with what has come of as many axes and labels as the backend takes; the rest is computed again."""
        kept = [(axis, label) for axis in self.stacks for label in self.labels]
        while True:
            finished, lanes = (
                [one for one in records.values() if (one["axis"], one["label"]) in kept]
                for records in (self._finished, self._lanes)
            )
            if max(len(finished), len(lanes)) <= MAX_EARLIER_RECORDS:
                body = json.dumps({**request, "finished": finished, "lanes": lanes, "found": self._found}).encode()
                if len(body) <= limits.body_bytes or not kept:
                    limits.check_body(len(body))
                    return body
            kept.pop()

    def _receive(self, record: Mapping[str, Any]) -> SliceResult | None:
        """Process a record; the slice if it is a new one. Records of unknown types are ignored."""
        kind = record["type"]
        if kind == "start":
            self._start(record)
        elif kind == "alive":
            self.ahead = int(record["ahead"])
            self.phase = "waiting" if self.ahead else "computing"
        elif kind == "slice":
            return self._receive_slice(record)
        elif kind == "lane":
            self._receive_lane(record)
        elif kind == "found" and self._found is None:
            starts = [_select(one, *ANSWER) for one in record["starts"]]
            if len(starts) > len(self.labels) or not all(self._is_of_run(one) for one in starts):
                raise ValueError("starts that were not asked for")
            self._found = starts
            self._retries.resolved()
        elif kind == "error":
            raise error_of_answer(self.endpoint.address.name, 0, str(record["code"]), str(record["message"]))
        return None

    def _is_of_run(self, record: Mapping[str, Any], index: str = "index") -> bool:
        axis = record["axis"]
        return axis in self._axes.get(record["label"], ()) and 0 <= record[index] < self.stacks[axis].count

    def _receive_lane(self, record: Mapping[str, Any]) -> None:
        """Keep an intermediate probability; at most two come to a slice, one from each side."""
        place = (record["label"], record["axis"], record["index"]), record["start"]
        most = 2 * len(self.labels) * sum(stack.count for stack in self.stacks.values())
        if not self._is_of_run(record) or not self._is_of_run(record, "start") or len(self._lanes) > most:
            raise ValueError("a lane that was not asked for")
        if place not in self._lanes:
            self._lanes[place] = _select(record, *ANSWER, "start")
            self._retries.resolved()

    def _receive_slice(self, record: Mapping[str, Any]) -> SliceResult | None:
        """A slice that is new; None for one that came before the connection was lost."""
        place = label, axis, index = record["label"], record["axis"], record["index"]
        stage: Literal["preview", "final"] = "final" if record["stage"] == "final" else "preview"
        is_fusion = stage == "final" and label in self._fused
        is_stage_right = stage == "final" or label in self._fused
        if not is_stage_right or place not in (self._expected_final if is_fusion else self._expected):
            raise ValueError(f"slice {index!s:.20} of axis {axis!s:.20} and label {label!s:.20}, not asked for")
        if place in (self._final if is_fusion else self._finished):
            return None
        probability = unpack_probability(record, self.stacks[axis].native_shape)
        certainty = float(record["certainty"])
        if is_fusion:
            self._final.add(place)
        else:
            self._finished[place] = _select(record, *ANSWER)
        self._retries.resolved()
        self.phase = "computing"
        return SliceResult(label, axis, index, probability, certainty, len(self._finished), self.total, stage)

    def _start(self, record: Mapping[str, Any]) -> None:
        weights, total = str(record["weights_sha256"]), int(record["total"])
        if self.weights_sha256 not in ("", weights):
            raise BackendFailed(
                f"The backend at {self.endpoint.address.name} has another model now than when the run began. Begin the "
                "run again."
            )
        self.version, self.model, self.device = (str(record[name]) for name in ("version", "model", "device"))
        self.warnings = [printable(warning) for warning in record["warnings"][:MOST_WARNINGS]]
        self.weights_sha256 = weights
        self._axes = {one["label"]: [*one["axes"]] for one in record["labels"]}
        self._fused = {one["label"] for one in record["labels"] if one["fused"]}
        along = self._axes.values()
        if self._axes.keys() != set(self.labels) or not all(axes and set(axes) <= self.stacks.keys() for axes in along):
            raise ValueError("other labels or axes than those that were asked for")
        self._expected = {
            (label, axis, index)
            for label, axes in self._axes.items()
            for axis in axes
            for index in self._to_segment(label, axis)
        }
        main = self.scan.plane.axis
        self._expected_final = {
            (label, main, index) for label in self._fused for index in self._to_segment(label, main)
        }
        if total != len(self._expected):
            raise ValueError(f"{total} slices in place of {len(self._expected)}")
        self.total = total

    def _end(self, record: Mapping[str, Any]) -> None:
        self.seconds = {str(name): float(value) for name, value in record["seconds"].items()}
        if not self.weights_sha256 or self._finished.keys() != self._expected or self._final != self._expected_final:
            raise BackendFailed(
                f"The backend at {self.endpoint.address.name} ended after {len(self._finished) + len(self._final)} of "
                f"{len(self._expected) + len(self._expected_final)} slices. Begin the run again; if that does not "
                "help, update the backend."
            )


def _select(fields: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: fields[name] for name in names}
