"""From a segmentation request to the stream of its results.

`build_run` makes a request into a `Run`; `ResultStream` puts the run into the engine's scheduler and turns its results
into records. The run's callbacks are called in the device's thread and only hand over to the event loop; what takes
time (packing results) is done in the thread pool. A client that disconnects cancels its run; a client that reads too
slowly gets the device less often, since only what it has read is reported to the scheduler.
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
from SDFSMISLib.inference.run import EarlierResults, MatchResult, Result, Run, TrackResult
from SDFSMISLib.inference.segmentation import mismatch_warnings
from SDFSMISLib.options import RunOptions
from SDFSMISLib.server.engine import Engine, Metrics, is_fatal_device_error, slice_identity
from SDFSMISLib.server.scheduler import BackendStopping, ClientStalled, QueueFull, ScheduledRun
from SDFSMISLib.server.schema import ApiError, SegmentationRequest
from SDFSMISLib.server.settings import LOGGER, ServerLimits, log_event
from SDFSMISLib.server.store import MissingSlices, Store
from SDFSMISLib.slices import SliceResult
from SDFSMISLib.support import SupportSet
from SDFSMISLib.wire import (
    PROTOCOL,
    RECORDS_TYPE,
    PackedProbabilities,
    pack_probability,
    unpack_probability,
    write_record,
)

ALIVE_SECONDS = 5.0  # without results, after which an `alive` record is sent
MAX_RETRY_SECONDS = 60


def build_run(request: SegmentationRequest, namespace: str, store: Store, engine: Engine) -> tuple[Run, int]:
    """The run of a request, and the bytes of memory that it holds until it ends, for `Engine.reserve`.

    Raises:
        ApiError: if slices are not stored, the request is too large, or it is of another protocol.
        InputError: if the fields of the request do not fit together.
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
    addresses = [*sent.values(), *(painted.slice for painted in request.support)]
    try:
        arrays = store.get(namespace, dict.fromkeys(addresses))
    except MissingSlices as error:
        raise ApiError(
            409,
            "slices_missing",
            f"{len(error.addresses)} slices are not stored, or no longer; send them, and try again.",
            {"missing": error.addresses},
        ) from error
    scan = query.slice_stack(lambda index: arrays[sent[index]], lambda index: slice_identity(namespace, sent[index]))
    _check_slices(sent, arrays, scan.count, scan.native_shape)
    support = tuple(painted.support_slice(arrays[painted.slice]) for painted in request.support)
    for painted_slice in support:
        if painted_slice.plane.has_slices_of(scan.plane) and painted_slice.labels.shape != scan.native_shape:
            raise InputError(
                f"A slice painted on the scan has shape {painted_slice.labels.shape}; "
                f"the scan's have {scan.native_shape}."
            )
    labels = list(dict.fromkeys(request.labels))
    run = engine.segmenter.run(
        scan,
        SupportSet(support),
        RunOptions(request.strategy, request.region, request.threshold),
        slices=request.slices,
        labels=labels,
        latents=engine.latents,
        earlier=_earlier_results(request, scan.native_shape),
    )
    not_sent = [index for index in run.needed() if index not in sent]
    if not_sent:
        raise InputError(
            f"Slice {not_sent[0]} is needed for the requested slices, but query.slices does not list it; send it."
        )
    support_bytes = sum(painted_slice.labels.size * (1 + len(labels)) for painted_slice in support)
    return run, sum(array.nbytes for array in arrays.values()) + support_bytes


def _check_size(request: SegmentationRequest, limits: ServerLimits) -> None:
    query = request.query
    # On a complete slice every requested label is looked at, also the absent ones.
    masked_pixels = sum(
        math.prod(painted.shape) * (1 + max(len(painted.masks), len(request.labels) if painted.complete else 0))
        for painted in request.support
    )
    earlier = max(len(request.finished), len(request.lanes) // 2)  # propagation reaches a slice from either side
    for name, given, accepted in (
        ("pixels of a slice", math.prod(query.shape), limits.slice_pixels),
        ("slices", max(query.count, len(query.slices)), limits.slices),
        ("painted slices", len(request.support), limits.shots),
        ("labels", len(request.labels), limits.labels),
        ("pixels of all painted slices and their masks", masked_pixels, limits.masked_pixels),
        ("slices of an earlier stream", earlier, len(request.labels) * query.count),
    ):
        if given > accepted:
            raise ApiError(413, "too_large", f"{given} {name} were given; {accepted} are accepted.")


def _check_slices(sent: dict[int, str], arrays: dict[str, np.ndarray], count: int, shape: tuple[int, int]) -> None:
    for index, address in sent.items():
        if index >= count:
            raise InputError(f"Slice {index} was named; the scan has the slices 0 to {count - 1}.")
        if arrays[address].shape != shape:
            raise InputError(f"Slice {index} was sent with shape {arrays[address].shape}; the scan's have {shape}.")


def _earlier_results(request: SegmentationRequest, shape: tuple[int, int]) -> EarlierResults:
    """What an earlier stream of the same request gave before it was cut."""
    found = request.found
    for known in (*request.finished, *request.lanes, *(found or ())):
        if known.index >= request.query.count or known.label not in request.labels:
            raise InputError(
                f"Slice {known.index} of label {known.label} is given as an earlier result, but is not requested."
            )
    slices = {(known.label, known.index): known.model_dump() for known in request.finished}
    tracks = {(known.label, known.start, known.index): known.model_dump() for known in request.lanes}
    starts = {known.label: (known.index, unpack_probability(known.model_dump(), shape)) for known in found or ()}
    return EarlierResults(
        PackedProbabilities(shape, slices), PackedProbabilities(shape, tracks), None if found is None else starts
    )


@dataclass(frozen=True, eq=False)
class _End:
    error: BaseException | None


class ResultStream:
    """A run in the engine's scheduler, and the records of its results.

    The run is submitted on construction, which must happen in the event loop's thread, and may compute before the
    first record is read. `close` must be called in the end.

    Args:
        size: bytes of memory that the run holds, see `build_run`.

    Raises:
        QueueFull: if too many runs are active.
        BackendStopping: if the backend is stopping.

    Example:
        Within a route, `run, size = build_run(request, namespace, store, engine)`, then ::

            stream = ResultStream(engine, run, size, metrics)
            try:
                async for line in stream.lines():  # {"type":"start", ...}, {"type":"slice", ...}, ...
                    await send(line)
            finally:
                stream.close()
    """

    def __init__(self, engine: Engine, run: Run, size: int, metrics: Metrics) -> None:
        self._engine = engine
        self._run = run
        self._size = size
        self._metrics = metrics
        self._id = uuid.uuid4().hex[:8]  # for the log
        self._began = time.monotonic()
        self._first_seconds: float | None = None
        self._outcome = "cancelled"
        self._done_before = run.done
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[list[Result] | _End] = asyncio.Queue()
        self._scheduled: ScheduledRun[Result] = ScheduledRun(run.steps(), self._on_results, self._on_end)
        seconds_left = (run.total - run.done) * engine.seconds_per_slice
        retry_after = max(1, min(round(seconds_left), MAX_RETRY_SECONDS))
        engine.reserve(size, retry_after)
        try:
            engine.scheduler.submit(self._scheduled, retry_after)
        except (QueueFull, BackendStopping):
            engine.release(size)
            raise
        log_event("run started", run=self._id, slices=run.total - run.done, strategy=run.options.strategy)

    async def lines(self) -> AsyncIterator[bytes]:
        """The records, each a line of JSON, as /docs describes them; the last is an `end` or an `error` record."""
        yield self._start_record()
        while True:
            try:
                results = await asyncio.wait_for(self._queue.get(), ALIVE_SECONDS)
            except asyncio.TimeoutError:
                yield write_record({"type": "alive", "ahead": max(self._engine.scheduler.active_runs - 1, 0)})
                continue
            if isinstance(results, _End):
                self._outcome = "done" if results.error is None else "failed"
                yield self._end_record() if results.error is None else self._error_record(results.error)
                return
            if self._first_seconds is None:
                self._first_seconds = time.monotonic() - self._began
            yield await run_in_threadpool(_pack_results, results)
            self._engine.scheduler.results_sent(self._scheduled, _size(results))

    def close(self) -> None:
        """Cancel the run if it has not ended, and count it."""
        self._engine.scheduler.cancel(self._scheduled)
        slices = self._run.done - self._done_before
        computing = self._scheduled.computing_seconds
        self._metrics.runs.labels(self._outcome).inc()
        self._metrics.slices.inc(slices)
        if slices:
            self._metrics.seconds_per_slice.observe(computing / slices)
        log_event(
            f"run {self._outcome}",
            run=self._id,
            slices=slices,
            turns=self._scheduled.turns,
            seconds=time.monotonic() - self._began,
            computing=computing,
            first=self._first_seconds,
        )

    def _on_results(self, results: list[Result]) -> int:
        self._loop.call_soon_threadsafe(self._queue.put_nowait, results)
        return _size(results)

    def _on_end(self, error: BaseException | None) -> None:
        self._engine.release(self._size)
        if error is not None:
            self._engine.record_error(error)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._queue.put_nowait, _End(error))

    def _start_record(self) -> bytes:
        return write_record(
            {
                "type": "start",
                "protocol": PROTOCOL,
                "version": __version__,
                "model": self._engine.segmenter.name,
                "weights_sha256": self._engine.segmenter.weights,
                "device": self._engine.device_name,
                "total": self._run.total,
                "warnings": mismatch_warnings(self._run.scan, self._run.support_slices),
            }
        )

    def _end_record(self) -> bytes:
        total, computing = time.monotonic() - self._began, self._scheduled.computing_seconds
        seconds = {"total": total, "waiting": total - computing, "computing": computing}
        return write_record({"type": "end", "slices": self._run.done, "seconds": seconds})

    def _error_record(self, error: BaseException) -> bytes:
        code, message = _describe_error(error, self._id)
        if code == "failed":
            LOGGER.error("run failed run=%s", self._id, exc_info=error)
        return write_record({"type": "error", "code": code, "message": message})


class ResultResponse(StreamingResponse):
    """The HTTP response that streams a run's results. However it ends, even before it began, it closes the stream."""

    def __init__(self, results: ResultStream) -> None:
        super().__init__(results.lines(), media_type=RECORDS_TYPE, headers={"Cache-Control": "no-store"})
        self._results = results

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._results.close()


def _describe_error(error: BaseException, run_id: str) -> tuple[str, str]:
    """Code and message of the `error` record for what a run failed with."""
    if isinstance(error, BackendStopping):
        return "stopping", "The backend is stopping; try again when it is back, or use another one."
    if isinstance(error, InputError):
        return "invalid_input", str(error)
    if isinstance(error, ClientStalled):
        return "stalled", "The results were not read for too long; request those that are missing again."
    if is_fatal_device_error(error):
        return "stopping", "The backend's device has failed, and the backend starts again; try again in a moment."
    if is_out_of_memory(error):
        return "out_of_memory", "The backend's device has too little memory for a slice with these painted ones."
    return "failed", f"The backend failed ({type(error).__name__}); see its log, under run={run_id}."


def _pack_results(results: Sequence[Result]) -> bytes:
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
    if isinstance(result, TrackResult):
        place = {"label": result.label, "start": result.start, "index": result.index}
        return {"type": "lane", **place, **pack_probability(result.probability)}
    starts = [
        {"label": label, "index": index, **pack_probability(probability)}
        for label, (index, probability) in result.starts.items()
    ]
    return {"type": "found", "starts": starts}


def _size(results: Sequence[Result]) -> int:
    """Bytes of memory."""
    arrays: list[np.ndarray] = []
    for result in results:
        if isinstance(result, MatchResult):
            arrays += [probability for _, probability in result.starts.values()]
        else:
            arrays.append(result.probability)
    return sum(array.nbytes for array in arrays)
