"""The routes of learning from scans: scans that are put together, adaptations, and the models that come of them."""

from __future__ import annotations

import asyncio
import math
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Path, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from SDFSMISLib.client.model_name import plain_name
from SDFSMISLib.errors import InputError
from SDFSMISLib.geometry import Geometry
from SDFSMISLib.protocol import RECORDS_TYPE
from SDFSMISLib.server.adaptations import Adaptations
from SDFSMISLib.server.engine import Engine
from SDFSMISLib.server.failures import Refused, documented
from SDFSMISLib.server.learning_stream import LearningResponse, LearningStream
from SDFSMISLib.server.limits import Limits
from SDFSMISLib.server.logs import LOGGER
from SDFSMISLib.server.model_name import ModelName
from SDFSMISLib.server.models import Lesson
from SDFSMISLib.server.schema import LEARNING_STREAM, AdaptationRequest, AdaptationState, ScanHash, ScanRequest
from SDFSMISLib.server.segmentations import check_protocol, slices_of
from SDFSMISLib.server.store import Store
from SDFSMISLib.volume import Volume

__all__ = ["adaptation_state", "add_learning_routes"]

Content = Annotated[ScanHash, Path()]
Name = Annotated[ModelName, Path()]


def add_learning_routes(app: FastAPI, engine: Engine, store: Store, adaptations: Adaptations | None) -> None:
    """Adds them; without adaptations all answer that this is not offered."""
    _add_scan_routes(app, engine.limits, store, adaptations)
    _add_adaptation_route(app, engine, adaptations)

    @app.delete(
        "/models/{name}",
        status_code=204,
        response_class=Response,
        responses=documented(404, 409, 422),
        summary="Forget a model that was learned",
    )
    def forget(name: Name, request: Request) -> Response:
        engine.loaded.drop(_offered(adaptations).forget(request.state.owner, name))
        return Response(status_code=204)


def adaptation_state(adaptations: Adaptations | None, limits: Limits) -> AdaptationState | None:
    """What /capabilities tells of learning."""
    if adaptations is None:
        return None
    return AdaptationState(
        running=adaptations.is_running,
        most_minutes=limits.minutes,
        most_scans=limits.scans,
        most_bytes=min(limits.scan_bytes, limits.store_bytes),
    )


def _offered(adaptations: Adaptations | None) -> Adaptations:
    if adaptations is None:
        text = "This backend does not let weights learn; start it with sdfsmis serve --adaptations and a folder."
        raise Refused(404, "not_offered", text)
    return adaptations


def _add_scan_routes(app: FastAPI, limits: Limits, store: Store, adaptations: Adaptations | None) -> None:
    one_at_a_time = asyncio.Semaphore(1)  # a whole scan is in memory meanwhile, twice

    @app.put(
        "/scans/{content}",
        status_code=201,
        response_class=Response,
        responses={200: {"description": "It was here already."}, **documented(400, 404, 409, 422, 426, 503)},
        summary="Put a scan together from slices that were sent; to be learned from",
    )
    async def put(content: Content, asked: ScanRequest, request: Request) -> Response:
        scans, owner = _offered(adaptations).scans, request.state.owner
        check_protocol(asked.protocol)
        if not await run_in_threadpool(scans.missing, owner, [content]):
            return Response(status_code=200)
        async with one_at_a_time:
            scan = await run_in_threadpool(_put_together, asked, content, owner, store, limits)
            try:
                is_new = await run_in_threadpool(scans.put, owner, content, scan)
            except InputError as error:
                LOGGER.error("scan cannot be written: %s", error)
                text = "The backend cannot write the scan; its log tells why."
                raise Refused(500, "failed", text) from error
        return Response(status_code=201 if is_new else 200)

    @app.head("/scans/{content}", response_class=Response, responses={404: {}, 422: {}}, summary="Is it here?")
    def head(content: Content, request: Request) -> Response:
        missing = _offered(adaptations).scans.missing(request.state.owner, [content])
        return Response(status_code=404 if missing else 200)

    @app.delete(
        "/scans/{content}",
        status_code=204,
        response_class=Response,
        responses=documented(404, 422),
        summary="Forget it",
    )
    def delete(content: Content, request: Request) -> Response:
        _offered(adaptations).scans.delete(request.state.owner, [content])
        return Response(status_code=204)


def _put_together(asked: ScanRequest, content: str, owner: str, store: Store, limits: Limits) -> Volume:
    """The scan of a request; raises `Refused` or `InputError` where it is none, is too large, or another one."""
    geometry = Geometry(asked.shape, asked.spacing, asked.origin, tuple(asked.direction))
    count, *sides = geometry.shape
    if count != len(asked.slices):
        raise InputError(f"{len(asked.slices)} slices were named for a scan of {count}; name each, along array axis 0.")
    for what, given, accepted in (
        ("slices", count, limits.slices),
        ("pixels of a slice", math.prod(sides), limits.slice_pixels),
    ):
        if given > accepted:
            raise Refused(413, "too_large", f"{given} {what} were given; {accepted} are accepted.")
    arrays = slices_of(asked.slices, owner, store)
    kinds = {(array.shape, array.dtype) for array in arrays.values()}
    shape, dtype = next(iter(kinds))
    if len(kinds) > 1 or shape != tuple(sides):
        raise InputError(f"Slices of {_told(kinds)} were sent for a scan of shape {geometry.shape}; all are alike.")
    most, size = min(limits.scan_bytes, limits.store_bytes), math.prod(geometry.shape) * dtype.itemsize
    if size > most:
        raise Refused(413, "too_large", f"A scan of {size} bytes was given; {most} are accepted.")
    scan = Volume(np.stack([arrays[address] for address in asked.slices]), geometry)
    if scan.content_hash() != content:
        raise Refused(400, "bad_request", "The slices and the numbers that came make another scan than the one named.")
    return scan


def _told(kinds: set[tuple[Any, Any]]) -> str:
    """A few of the shapes and types of slices."""
    return ", ".join(sorted(f"{shape} {dtype}" for shape, dtype in kinds)[:3])


def _add_adaptation_route(app: FastAPI, engine: Engine, adaptations: Adaptations | None) -> None:
    @app.post(
        "/adaptations",
        response_class=StreamingResponse,
        responses={
            200: {"description": LEARNING_STREAM, "content": {RECORDS_TYPE: {}}},
            **documented(400, 404, 409, 422, 426, 503),
        },
        summary="Let weights learn from scans without labels; a stream that tells how far it is",
    )
    async def learn(wanted: AdaptationRequest, request: Request) -> LearningResponse:
        offered, served = _offered(adaptations), engine.segmenter
        check_protocol(wanted.protocol)
        _check(wanted, served.name, engine.limits)
        lesson = Lesson(wanted.name, tuple(sorted(set(wanted.scans))), wanted.minutes, served.weights)
        device = str(served.pipeline.device)
        learned = await run_in_threadpool(offered.begin, request.state.owner, lesson, served.name, device)
        start = {"model": served.name, "weights_sha256": served.weights, "device": engine.device_name}
        return LearningResponse(LearningStream(learned, start))


def _check(wanted: AdaptationRequest, served: str, limits: Limits) -> None:
    if wanted.minutes > limits.minutes:
        raise InputError(f"{wanted.minutes:g} minutes were given; {limits.minutes:g} are accepted.")
    if len(set(wanted.scans)) > limits.scans:
        raise InputError(f"{len(set(wanted.scans))} scans were given; {limits.scans} are accepted.")
    if wanted.name == plain_name(served):
        raise InputError(f"{served} is the name of the model that is served; choose another one.")
