"""From a segmentation request to the stream of its results.

`build_run` makes a request into a `VolumeRun`; `ResultStream` puts the run into the engine's scheduler and turns its
results into records. The run's callbacks are called in the device's thread and only hand over to the event loop; what
takes time (packing results) is done in the thread pool. A client that disconnects cancels its run; a client that reads
too slowly gets the device less often, since only what it has read is reported to the scheduler.
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from SDFSMISLib import __version__
from SDFSMISLib.errors import InputError
from SDFSMISLib.inference.networks import is_out_of_memory
from SDFSMISLib.inference.run import EarlierResults, MatchResult, Result, TrackResult
from SDFSMISLib.inference.volume_run import VolumeRun
from SDFSMISLib.options import RunOptions
from SDFSMISLib.server.engine import Engine, Metrics, is_fatal_device_error, slice_identity
from SDFSMISLib.server.scheduler import BackendStopping, ClientStalled, QueueFull, ScheduledRun
from SDFSMISLib.server.schema import ApiError, PaintedSlice, SegmentationRequest
from SDFSMISLib.server.settings import LOGGER, MIB, ServerLimits, log_event
from SDFSMISLib.server.store import MissingSlices, Store
from SDFSMISLib.slices import SliceStack
from SDFSMISLib.support import SupportSet, SupportSlice
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


def build_run(request: SegmentationRequest, namespace: str, store: Store, engine: Engine) -> tuple[VolumeRun, int]:
    """The run of a request, and the bytes of memory that it holds until it ends, for `Engine.reserve`.

    Raises:
        ApiError: if slices are not stored, or the request is too large.
        InputError: if the fields of the request do not fit together.
    """
    _check_size(request, engine.limits)
    sent = dict(request.query.slices)
    addresses = [*sent.values(), *(painted.slice for painted in request.support if painted.slice is not None)]
    try:
        arrays = store.get(namespace, dict.fromkeys(addresses))
    except MissingSlices as error:
        raise ApiError(
            409,
            "slices_missing",
            f"{len(error.addresses)} slices are not stored, or no longer; send them, and try again.",
            {"missing": error.addresses},
        ) from error
    _check_slices(request, sent, arrays)
    stacks = _stacks(request, namespace, engine, sent, arrays)
    labels = list(dict.fromkeys(request.labels))
    support = [_support_slice(painted, stacks, sent, arrays) for painted in request.support]
    run = engine.segmenter.run(
        stacks,
        SupportSet(tuple(support)),
        RunOptions(request.strategy, request.region, request.threshold),
        slices=request.slices,
        labels=labels,
        latents=engine.latents,
        earlier=_earlier_results(request, stacks),
    )
    _check_sent(run.needed(), sent)
    size = sum(array.nbytes for array in arrays.values()) + run.fusion_bytes
    size += sum(painted.labels.size * (1 + len(labels)) for painted in support)
    if size > engine.limits.reserved_bytes:
        raise ApiError(
            413,
            "too_large",
            f"The run would take {size / MIB:.0f} MiB; {engine.limits.reserved_bytes / MIB:.0f} MiB are accepted. "
            "Segment fewer structures at once, or crop the scan.",
        )
    return run, size


def _check_size(request: SegmentationRequest, limits: ServerLimits) -> None:
    query = request.query
    sides = [*query.shape]
    sides.insert(query.axis, query.count)
    axes = {query.axis, *(other.axis for other in query.other_axes)}
    # On a complete slice every requested label is looked at, also the absent ones.
    masked_pixels = sum(
        math.prod(painted.shape)
        * (1 + (painted.known is not None) + max(len(painted.masks), len(request.labels) if painted.complete else 0))
        for painted in request.support
    )
    earlier = max(len(request.finished), len(request.lanes) // 2)  # propagation reaches a slice from either side
    for name, given, accepted in (
        ("pixels of a slice", max(math.prod(sides) // sides[axis] for axis in axes), limits.slice_pixels),
        ("slices", max(len(query.slices), *(sides[axis] for axis in axes)), limits.slices),
        ("painted slices", len(request.support), limits.shots),
        ("labels", len(request.labels), limits.labels),
        ("pixels of all painted slices and their masks", masked_pixels, limits.masked_pixels),
        ("slices of an earlier stream", earlier, len(request.labels) * sum(sides[axis] for axis in axes)),
    ):
        if given > accepted:
            raise ApiError(413, "too_large", f"{given} {name} were given; {accepted} are accepted.")


def _check_slices(request: SegmentationRequest, sent: dict[int, str], arrays: dict[str, np.ndarray]) -> None:
    count, shape = request.query.count, request.query.shape
    for index, address in sent.items():
        if index >= count:
            raise InputError(f"Slice {index} was named; the scan has the slices 0 to {count - 1}.")
        if arrays[address].shape != shape:
            raise InputError(f"Slice {index} was sent with shape {arrays[address].shape}; the scan's have {shape}.")


def _check_sent(needed: Sequence[int], sent: Mapping[int, str]) -> None:
    not_sent = [index for index in needed if index not in sent]
    if not_sent:
        raise InputError(
            f"Slice {not_sent[0]} is needed for the requested slices, but query.slices does not list it; send it."
        )


def _stacks(
    request: SegmentationRequest, namespace: str, engine: Engine, sent: dict[int, str], arrays: dict[str, np.ndarray]
) -> dict[int, SliceStack]:
    """The slices along each axis of the run, the query's own first; those along others are cut from them."""
    query = request.query
    scan = ""
    if query.other_axes:
        _check_sent(range(query.count), sent)
        scan = engine.scan_identity(namespace, [sent[index] for index in range(query.count)])

    def identity(axis: int, index: int) -> str:
        return slice_identity(namespace, sent[index]) if axis == query.axis else f"{scan} {query.axis} {axis} {index}"

    return query.slice_stacks(lambda index: arrays[sent[index]], identity)


def _support_slice(
    painted: PaintedSlice, stacks: Mapping[int, SliceStack], sent: Mapping[int, str], arrays: Mapping[str, np.ndarray]
) -> SupportSlice:
    """A painted slice, its image sent or cut from the scan."""
    scan, axis, index = next(iter(stacks.values())), painted.axis, painted.index
    if painted.scan == scan.plane.scan:
        shape = tuple(side for other, side in enumerate(scan.scan_shape) if other != axis)
        if painted.shape != shape:
            raise InputError(
                f"A slice painted on axis {axis} of the scan has shape {painted.shape}; the scan's have {shape}."
            )
        if index >= scan.scan_shape[axis]:
            raise InputError(
                f"Slice {index} of axis {axis} is painted; the scan has the slices 0 to {scan.scan_shape[axis] - 1}."
            )
    if painted.slice is not None:
        return painted.support_slice(arrays[painted.slice])
    if painted.scan != scan.plane.scan or axis not in stacks or (axis == scan.plane.axis and index not in sent):
        raise InputError(
            f"Painted slice {index} of axis {axis} has no address, and is none of the query's slices; send its image."
        )
    return painted.support_slice(stacks[axis].read(index))


def _earlier_results(request: SegmentationRequest, stacks: Mapping[int, SliceStack]) -> dict[int, EarlierResults]:
    """What an earlier stream of the same request gave before it was cut, by axis."""
    for known in (*request.finished, *request.lanes, *(request.found or ())):
        if known.axis not in stacks or known.index >= stacks[known.axis].count or known.label not in request.labels:
            raise InputError(
                f"Slice {known.index} of axis {known.axis} and label {known.label} is given as an earlier result, but "
                "is not requested."
            )
    earlier = {}
    for axis, stack in stacks.items():
        shape = stack.native_shape
        finished = {(known.label, known.index): known.model_dump() for known in request.finished if known.axis == axis}
        lanes = {
            (known.label, known.start, known.index): known.model_dump() for known in request.lanes if known.axis == axis
        }
        found = {
            known.label: (known.index, unpack_probability(known.model_dump(), shape))
            for known in request.found or ()
            if known.axis == axis
        }
        earlier[axis] = EarlierResults(
            PackedProbabilities(shape, finished),
            PackedProbabilities(shape, lanes),
            None if request.found is None else found,
        )
    return earlier


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

    def __init__(self, engine: Engine, run: VolumeRun, size: int, metrics: Metrics) -> None:
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
                "labels": [
                    {"label": label, "axes": list(axes), "fused": label in self._run.fused}
                    for label, axes in self._run.axes.items()
                ],
                "warnings": self._run.warnings,
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
    if isinstance(result, MatchResult):
        starts = [
            {"label": label, "axis": result.axis, "index": index, **pack_probability(probability)}
            for label, (index, probability) in result.starts.items()
        ]
        return {"type": "found", "starts": starts}
    place = {"label": result.label, "axis": result.axis, "index": result.index}
    if isinstance(result, TrackResult):
        return {"type": "lane", **place, "start": result.start, **pack_probability(result.probability)}
    return {
        "type": "slice",
        **place,
        "stage": result.stage,
        **pack_probability(result.probability),
        "certainty": result.certainty,
        "finished": result.finished,
        "total": result.total,
    }


def _size(results: Sequence[Result]) -> int:
    """Bytes of memory."""
    arrays: list[np.ndarray] = []
    for result in results:
        if isinstance(result, MatchResult):
            arrays += [probability for _, probability in result.starts.values()]
        else:
            arrays.append(result.probability)
    return sum(array.nbytes for array in arrays)
