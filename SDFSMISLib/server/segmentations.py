"""From a request to a run: the slices it names, the painted ones, and what has come before.

The results of one run on their way to its client.
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from SDFSMISLib import __version__
from SDFSMISLib.errors import InputError
from SDFSMISLib.inference.networks import is_out_of_memory
from SDFSMISLib.inference.run import Finished, FoundResult, LaneResult, Result, Run
from SDFSMISLib.inference.segmentation import unlikeness
from SDFSMISLib.options import RunOptions
from SDFSMISLib.server.engine import BackendStopping, ClientStalled, Engine, Metrics, QueueFull, ScheduledRun
from SDFSMISLib.server.schema import ApiError, SegmentationRequest, SliceProbability
from SDFSMISLib.server.settings import LOGGER, ServerLimits, log_event
from SDFSMISLib.server.store import MissingSlices, Store
from SDFSMISLib.slices import SliceResult
from SDFSMISLib.support import SupportSet
from SDFSMISLib.wire import (
    PROTOCOL,
    RECORDS_TYPE,
    PackedProbabilities,
    pack_probability,
    write_record,
)


def build_run(request: SegmentationRequest, namespace: str, store: Store, engine: Engine) -> tuple[Run, int]:
    """The run that a request asks for, and the bytes of its slices, which it holds on to whatever the store does.

    Raises:
        ApiError: where slices are missing, the request is too large, or of another protocol.
        InputError: where it makes no sense.
    """
    if request.protocol != PROTOCOL:
        raise ApiError(
            426,
            "protocol_mismatch",
            f"This backend speaks protocol {PROTOCOL}, the request is of protocol {request.protocol}; install the same "
            "version of SDFSMIS on both sides.",
        )
    _check_size(request, engine.limits)
    query = request.query
    sent = dict(query.slices)
    addresses = [*sent.values(), *(piece.slice for piece in request.support)]
    try:
        arrays = store.get(namespace, dict.fromkeys(addresses))
    except MissingSlices as missing:
        raise ApiError(
            409,
            "slices_missing",
            f"{len(missing.addresses)} slices are not here, or no longer; send them, and ask again.",
            {"missing": missing.addresses},
        ) from missing
    scan = query.slice_stack(lambda index: arrays[sent[index]], lambda index: f"{namespace} {sent[index]}")
    _check_slices(sent, arrays, scan.count, scan.native_shape)
    painted = tuple(piece.support_slice(arrays[piece.slice]) for piece in request.support)
    for piece in painted:
        if piece.plane.has_slices_of(scan.plane) and piece.labels.shape != scan.native_shape:
            raise InputError(
                f"A slice painted on the scan has shape {piece.labels.shape}; the scan's have {scan.native_shape}."
            )
    options = RunOptions(request.strategy, request.region, request.threshold)
    labels = list(dict.fromkeys(request.labels))
    run = engine.run(scan, SupportSet(painted), options, request.slices, labels, _finished(request, scan.native_shape))
    lacking = [index for index in run.needed() if index not in sent]
    if lacking:
        raise InputError(f"Slice {lacking[0]} is needed for those that are wanted, and the query does not name it.")
    painted_bytes = sum(piece.labels.size * (1 + len(labels)) for piece in painted)
    return run, sum(array.nbytes for array in arrays.values()) + painted_bytes


def _check_size(request: SegmentationRequest, limits: ServerLimits) -> None:
    query = request.query
    pixels = math.prod(query.shape)
    # A piece that is complete is looked at for each label, also for those that are absent on it.
    masked = sum(
        math.prod(piece.shape) * (1 + max(len(piece.masks), len(request.labels) if piece.complete else 0))
        for piece in request.support
    )
    answers = max(len(request.finished), len(request.lanes) // 2)  # a lane comes from either side
    for what, given, accepted in (
        ("pixels of a slice", pixels, limits.slice_pixels),
        ("slices", max(query.count, len(query.slices)), limits.slices),
        ("painted slices", len(request.support), limits.shots),
        ("labels", len(request.labels), limits.labels),
        ("pixels of all painted slices and their masks", masked, limits.masked_pixels),
        ("slices that have come before", answers, len(request.labels) * query.count),
    ):
        if given > accepted:
            raise ApiError(413, "too_large", f"{given} {what} were given; {accepted} are accepted.")


def _check_slices(sent: dict[int, str], arrays: dict[str, np.ndarray], count: int, shape: tuple[int, int]) -> None:
    for index, address in sent.items():
        if index >= count:
            raise InputError(f"Slice {index} was named; the scan has the slices 0 to {count - 1}.")
        if arrays[address].shape != shape:
            raise InputError(f"Slice {index} was sent with shape {arrays[address].shape}; the scan's have {shape}.")


def _finished(request: SegmentationRequest, shape: tuple[int, int]) -> Finished:
    """What has come of this run before."""
    for answer in (*request.finished, *request.lanes, *(request.found or ())):
        if answer.index >= request.query.count or answer.label not in request.labels:
            raise InputError(
                f"Slice {answer.index} of label {answer.label} is said to have come before; it was not asked for."
            )
    slices = {(answer.label, answer.index): answer.model_dump() for answer in request.finished}
    lanes = {(answer.label, answer.start, answer.index): answer.model_dump() for answer in request.lanes}
    return Finished(PackedProbabilities(shape, slices), PackedProbabilities(shape, lanes), _found(request.found, shape))


def _found(
    starts: Sequence[SliceProbability] | None, shape: tuple[int, int]
) -> dict[int, tuple[int, np.ndarray]] | None:
    if starts is None:
        return None
    soft = PackedProbabilities(shape, {start.label: start.model_dump() for start in starts})
    return {start.label: (start.index, soft[start.label]) for start in starts}


ALIVE_SECONDS = 5.0  # of silence, after which a sign of life is sent
LONGEST_RETRY = 60


@dataclass(frozen=True, eq=False)
class _Batch:
    results: list[Result]
    size: int


@dataclass(frozen=True, eq=False)
class _End:
    error: BaseException | None


class ResultStream:
    """A run that takes turns on the engine's device from now on, and the records that come of it.

    To be made in the event loop's thread.

    Args:
        held: bytes of the run's slices.

    Raises:
        QueueFull: where too many runs take turns.
        BackendStopping: where the backend is about to end.
    """

    def __init__(self, engine: Engine, run: Run, held: int, metrics: Metrics) -> None:
        self._engine = engine
        self._run = run
        self._held = held
        self._metrics = metrics
        self._name = uuid.uuid4().hex[:8]
        self._began = time.monotonic()
        self._first: float | None = None
        self._outcome = "cancelled"
        self._done_before = run.done
        self._loop = asyncio.get_running_loop()
        self._arrived: asyncio.Queue[_Batch | _End] = asyncio.Queue()
        self._ticket: ScheduledRun[Result] = ScheduledRun(run.steps(), self._emit, self._close)
        left = (run.total - run.done) * engine.seconds_per_slice
        retry_after = max(1, min(round(left), LONGEST_RETRY))
        engine.hold(held, retry_after)
        try:
            engine.scheduler.submit(self._ticket, retry_after)
        except (QueueFull, BackendStopping):
            engine.release(held)
            raise
        log_event("run started", run=self._name, slices=run.total - run.done, strategy=run.options.strategy)

    async def lines(self) -> AsyncIterator[bytes]:
        """The records, each a line of bytes."""
        yield self._start()
        while True:
            try:
                arrived = await asyncio.wait_for(self._arrived.get(), ALIVE_SECONDS)
            except asyncio.TimeoutError:
                yield write_record({"type": "alive", "ahead": max(self._engine.scheduler.active_runs - 1, 0)})
                continue
            if isinstance(arrived, _End):
                self._outcome = "done" if arrived.error is None else "failed"
                yield self._end() if arrived.error is None else self._failure(arrived.error)
                return
            if self._first is None:
                self._first = time.monotonic() - self._began
            yield await run_in_threadpool(_records, arrived.results)
            self._engine.scheduler.results_sent(self._ticket, arrived.size)

    def leave(self) -> None:
        """Nobody takes the records any more; the run ends, if it has not."""
        self._engine.scheduler.cancel(self._ticket)
        self._told(self._outcome)

    def _emit(self, results: list[Result]) -> None:
        size = sum(_size(result) for result in results)
        self._engine.scheduler.results_queued(self._ticket, size)
        self._loop.call_soon_threadsafe(self._arrived.put_nowait, _Batch(results, size))

    def _close(self, error: BaseException | None) -> None:
        self._engine.release(self._held)
        if error is not None:
            self._engine.note(error)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._arrived.put_nowait, _End(error))

    def _start(self) -> bytes:
        return write_record(
            {
                "type": "start",
                "protocol": PROTOCOL,
                "version": __version__,
                "model": self._engine.segmenter.name,
                "weights_sha256": self._engine.segmenter.weights,
                "device": self._engine.device_name,
                "total": self._run.total,
                "warnings": unlikeness(self._run.scan, self._run.pieces),
            }
        )

    def _end(self) -> bytes:
        total = time.monotonic() - self._began
        seconds = {"total": total, "waiting": total - self._ticket.computing, "computing": self._ticket.computing}
        return write_record({"type": "end", "slices": self._run.done, "seconds": seconds})

    def _failure(self, error: BaseException) -> bytes:
        code, message = self._described(error)
        if code == "failed":
            LOGGER.error("run failed run=%s", self._name, exc_info=error)
        return write_record({"type": "error", "code": code, "message": message})

    def _described(self, error: BaseException) -> tuple[str, str]:
        if isinstance(error, BackendStopping):
            return "stopping", "The backend is stopping; ask again when it is back, or ask another one."
        if isinstance(error, InputError):
            return "invalid_input", str(error)
        if isinstance(error, ClientStalled):
            return "stalled", "The results were not taken for too long; ask again for those that are missing."
        if self._engine.is_fatal_device_error(error):
            return "stopping", "The backend's device has failed, and it starts again; ask again in a moment."
        if is_out_of_memory(error):
            return (
                "out_of_memory",
                "The backend's device has too little memory for a slice with these painted ones.",
            )
        return "failed", f"The backend failed ({type(error).__name__}); its log tells more, under run={self._name}."

    def _told(self, outcome: str) -> None:
        slices = self._run.done - self._done_before
        self._metrics.runs.labels(outcome).inc()
        self._metrics.slices.inc(slices)
        if slices:
            self._metrics.seconds_per_slice.observe(self._ticket.computing / slices)
        log_event(
            f"run {outcome}",
            run=self._name,
            slices=slices,
            turns=self._ticket.turns,
            seconds=time.monotonic() - self._began,
            computing=self._ticket.computing,
            first=self._first,
        )


class ResultResponse(StreamingResponse):
    """The answer that streams a run's results. Whatever ends it ends the run, even before it has begun."""

    def __init__(self, results: ResultStream) -> None:
        super().__init__(results.lines(), media_type=RECORDS_TYPE, headers={"Cache-Control": "no-store"})
        self._results = results

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._results.leave()


def _records(results: Sequence[Result]) -> bytes:
    return b"".join(write_record(_record(result)) for result in results)


def _record(result: Result) -> dict[str, object]:
    if isinstance(result, SliceResult):
        return {
            "type": "slice",
            "label": result.label,
            "index": result.index,
            **pack_probability(result.probability),
            "certainty": result.certainty,
            "finished": result.finished,
            "total": result.total,
        }
    if isinstance(result, LaneResult):
        place = {"label": result.label, "start": result.start, "index": result.index}
        return {"type": "lane", **place, **pack_probability(result.probability)}
    starts = [
        {"label": label, "index": index, **pack_probability(probability)}
        for label, (index, probability) in result.starts.items()
    ]
    return {"type": "found", "starts": starts}


def _size(result: Result) -> int:
    """Bytes in memory."""
    if isinstance(result, FoundResult):
        return sum(probability.nbytes for _, probability in result.starts.values())
    return result.probability.nbytes
