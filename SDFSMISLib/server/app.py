"""The backend as a web application: its routes, its documentation page, and how errors are answered.

`make_app` builds it around an `Engine` and a `Store`; see `engine` for the threads that work on a request.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from importlib.resources import files
from typing import Annotated, Any

import numpy as np
from fastapi import Depends, FastAPI, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, StreamingResponse
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from SDFSMISLib import __version__
from SDFSMISLib.errors import InputError
from SDFSMISLib.options import REGIONS, STRATEGIES
from SDFSMISLib.server.access import AccessControl
from SDFSMISLib.server.engine import Engine, Metrics
from SDFSMISLib.server.scheduler import BackendStopping, QueueFull
from SDFSMISLib.server.schema import (
    STREAM,
    ApiError,
    CapabilitiesResponse,
    DeviceInfo,
    HealthResponse,
    LimitsInfo,
    MissingSlicesResponse,
    ModelInfo,
    QueueInfo,
    SegmentationRequest,
    SliceAddresses,
    error_responses,
)
from SDFSMISLib.server.segmentations import ResultResponse, ResultStream, build_run
from SDFSMISLib.server.settings import LOGGER, ServerLimits
from SDFSMISLib.server.store import Store
from SDFSMISLib.wire import (
    ARRAY_TYPE,
    PROTOCOL,
    RECORDS_TYPE,
    ArrayTooLarge,
    WireError,
    content_address,
    split_slices,
    unpack_array,
)

EXPIRE_SECONDS = 30.0  # between two calls of `Store.expire`
HEADER_BYTES = 1 << 10  # of a packed array, at most
PARALLEL_BUILDS = 2  # requests that are unpacked and made into runs at the same time, since each may take much memory
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE")
MAX_PROBLEMS = 3  # of an invalid request that its answer names

DESCRIPTION = """Paint one structure on one slice of a scan, get it on the others.

1. `POST /slices/missing`: which slices are not here yet? 2. `PUT /slices`: send those, several at once.
3. `POST /segmentations`: a stream of finished slices. Slices stay in memory for a while, so that a correction sends
nothing again. SDFSMISLib/client does all this with numpy and the standard library. Not a medical device."""

SliceAddress = Annotated[str, Path(pattern="^[0-9a-f]{64}$", description="content address of the slice")]


def make_app(engine: Engine, store: Store, tokens: Sequence[str] = ()) -> ASGIApp:
    """The ASGI application around an engine and a store.

    Args:
        tokens: accepted bearer tokens; if there are several, each has a namespace of its own in the store. If empty,
            no token is needed, and requests are accepted from this computer only.
    """
    metrics = Metrics(engine, store)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        expiry = asyncio.create_task(_expire_slices(store))
        yield
        expiry.cancel()
        with suppress(asyncio.CancelledError):
            await expiry

    app = FastAPI(
        title="SDFSMIS backend",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(HTTPBearer(auto_error=False))] if tokens else [],  # documents what AccessControl checks
        responses=error_responses(401, 403, 413),
    )
    _add_state_routes(app, engine, metrics)
    _add_slice_routes(app, engine.limits, store, metrics)
    _add_segmentation_route(app, engine, store, metrics)
    _add_docs_page(app)
    _add_error_handlers(app)
    limits = engine.limits
    return _RequestMetrics(AccessControl(app, tokens, limits.body_bytes, limits.slice_bytes + HEADER_BYTES), metrics)


async def _expire_slices(store: Store) -> None:
    while True:
        await asyncio.sleep(EXPIRE_SECONDS)
        try:
            await run_in_threadpool(store.expire)
        except Exception:  # the next attempt follows
            LOGGER.exception("unused slices cannot be removed")


def _add_state_routes(app: FastAPI, engine: Engine, metrics: Metrics) -> None:
    @app.get(
        "/healthz", response_model=HealthResponse, responses={503: {"model": HealthResponse}}, summary="Is it there?"
    )
    async def healthz(response: Response) -> HealthResponse:
        if engine.device_error is None and engine.scheduler.is_alive:
            return HealthResponse(status="ok", version=__version__)
        response.status_code = 503
        return HealthResponse(status="stopping" if engine.device_error is None else "device lost", version=__version__)

    @app.get("/capabilities", response_model=CapabilitiesResponse, summary="What it can do, and what a slice costs")
    def capabilities() -> CapabilitiesResponse:
        segmenter = engine.segmenter
        model = ModelInfo(
            name=segmenter.name,
            weights_sha256=segmenter.weights,
            resolution=segmenter.pipeline.config.resolution,
            searches=segmenter.searches,
            looks_ahead=segmenter.pipeline.takes_ahead,
        )
        return CapabilitiesResponse(
            version=__version__,
            protocol=PROTOCOL,
            models=[model],
            device=DeviceInfo(name=engine.device_name, kind=segmenter.pipeline.device.type),
            seconds_per_slice=engine.seconds_per_slice,
            strategies=list(STRATEGIES),
            regions=list(REGIONS),
            limits=LimitsInfo.model_validate(engine.limits, from_attributes=True),
            queue=QueueInfo(running=engine.scheduler.active_runs),
        )

    @app.get(
        "/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}}, summary="Prometheus"
    )
    async def prometheus() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_slice_routes(app: FastAPI, limits: ServerLimits, store: Store, metrics: Metrics) -> None:
    @app.post(
        "/slices/missing",
        response_model=MissingSlicesResponse,
        responses=error_responses(400, 422),
        summary="Which are not here?",
    )
    def missing(addresses: SliceAddresses, request: Request) -> MissingSlicesResponse:
        missing = store.missing(request.state.namespace, addresses.slices)
        metrics.slice_lookups.labels("no").inc(len(missing))
        metrics.slice_lookups.labels("yes").inc(len(set(addresses.slices)) - len(missing))
        return MissingSlicesResponse(missing=missing)

    @app.put(
        "/slices",
        status_code=201,
        response_class=Response,
        responses={200: {"description": "All were here already."}, **error_responses(400, 422)},
        openapi_extra={"requestBody": {"required": True, "content": {ARRAY_TYPE: {"schema": {"type": "string"}}}}},
        summary="Send several, each as sha256 (32 bytes), length (4, little-endian) of its packed array, and that",
    )
    async def put_several(request: Request) -> Response:
        body = await request.body()
        is_new = await run_in_threadpool(_put_slices, split_slices(body), request.state.namespace, limits, store)
        return Response(status_code=201 if is_new else 200)

    @app.put(
        "/slices/{address}",
        status_code=201,
        response_class=Response,
        responses={200: {"description": "It was here already."}, **error_responses(400, 422)},
        openapi_extra={"requestBody": {"required": True, "content": {ARRAY_TYPE: {"schema": {"type": "string"}}}}},
        summary="Send one: a packed array (rows, columns), see SDFSMISLib/wire.py",
    )
    async def put(address: SliceAddress, request: Request) -> Response:
        body = await request.body()
        slices = [(address, memoryview(body))]
        is_new = await run_in_threadpool(_put_slices, slices, request.state.namespace, limits, store)
        return Response(status_code=201 if is_new else 200)

    @app.head("/slices/{address}", response_class=Response, responses={404: {}, 422: {}}, summary="Is it here?")
    def head(address: SliceAddress, request: Request) -> Response:
        return Response(status_code=404 if store.missing(request.state.namespace, [address]) else 200)

    @app.delete(
        "/slices/{address}",
        status_code=204,
        response_class=Response,
        responses=error_responses(422),
        summary="Forget it",
    )
    def delete(address: SliceAddress, request: Request) -> Response:
        store.delete(request.state.namespace, address)
        return Response(status_code=204)


def _put_slices(slices: Iterable[tuple[str, memoryview]], namespace: str, limits: ServerLimits, store: Store) -> bool:
    """Store the slices of a request's body, each given as its address and packed array; whether one of them is new.

    Raises:
        ApiError: if one is damaged, too large, or another one than its address says; those before it are stored.
    """
    is_new, left = False, max(limits.body_bytes, limits.slice_bytes)  # bytes in memory that may still come
    try:
        for number, (address, data) in enumerate(slices):
            if number == limits.slices:
                raise ApiError(413, "too_large", f"More than {limits.slices} slices came; send fewer at once.")
            array = _unpack_slice(data, address, left, limits)
            left -= array.nbytes
            is_new |= store.put(namespace, address, array)
    except ArrayTooLarge as error:
        raise ApiError(413, "too_large", str(error)) from error
    except WireError as error:
        raise ApiError(400, "bad_request", str(error)) from error
    return is_new


def _unpack_slice(data: memoryview, address: str, most_bytes: int, limits: ServerLimits) -> np.ndarray:
    """A slice (rows, columns); raises as `_put_slices`, or a `WireError`."""
    array = unpack_array(data, min(most_bytes, limits.slice_bytes, limits.store_bytes))
    if array.ndim != 2 or not array.size:
        raise ApiError(400, "bad_request", f"An array of shape {array.shape} came; a slice has (rows, columns).")
    if math.prod(array.shape) > limits.slice_pixels:
        raise ApiError(
            413, "too_large", f"A slice of shape {array.shape} came; it may have {limits.slice_pixels} pixels."
        )
    if content_address(array) != address:
        raise ApiError(400, "bad_request", "The slice that came is not the one of its address; send it again.")
    return array


def _add_segmentation_route(app: FastAPI, engine: Engine, store: Store, metrics: Metrics) -> None:
    build_slots = asyncio.Semaphore(PARALLEL_BUILDS)

    @app.post(
        "/segmentations",
        response_class=StreamingResponse,
        responses={
            200: {"description": STREAM, "content": {RECORDS_TYPE: {}}},
            **error_responses(400, 409, 422, 426, 503),
        },
        summary="Segment; a stream of finished slices",
    )
    async def segment(body: SegmentationRequest, request: Request) -> ResultResponse:
        engine.scheduler.check()
        async with build_slots:
            run, size = await run_in_threadpool(build_run, body, request.state.namespace, store, engine)
        return ResultResponse(ResultStream(engine, run, size, metrics))


def _add_docs_page(app: FastAPI) -> None:
    """The page /docs. Its script is served from here: fetched from the internet, it would reveal who works with this
    backend, and leave the page blank on a network without internet."""
    shipped = files("fastapi_offline") / "static"
    for name, media_type in (("swagger-ui-bundle.js", "text/javascript"), ("swagger-ui.css", "text/css")):
        content = (shipped / name).read_bytes()

        def static_file(content: bytes = content, media_type: str = media_type) -> Response:
            return Response(content, media_type=media_type, headers={"Cache-Control": "max-age=86400"})

        app.add_api_route(f"/docs/{name}", static_file, include_in_schema=False)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=app.title,
            swagger_js_url="/docs/swagger-ui-bundle.js",
            swagger_css_url="/docs/swagger-ui.css",
            swagger_favicon_url="data:,",
        )


def _add_error_handlers(app: FastAPI) -> None:
    """Answer every exception with an `ErrorResponse`."""

    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(InputError)
    async def invalid_input(_: Request, error: InputError) -> Response:
        return ApiError(422, "invalid_input", str(error)).response()

    @app.exception_handler(QueueFull)
    async def queue_full(_: Request, error: QueueFull) -> Response:
        headers = {"Retry-After": str(error.retry_after)}
        text = "The backend computes as many runs as it accepts; try again later."
        return ApiError(503, "queue_full", text, headers=headers).response()

    @app.exception_handler(BackendStopping)
    async def stopping(_: Request, error: BackendStopping) -> Response:
        text = "The backend is stopping; try again when it is back, or use another one."
        return ApiError(503, "stopping", text, headers={"Retry-After": "5"}).response()

    @app.exception_handler(RequestValidationError)
    async def invalid_request(_: Request, error: RequestValidationError) -> Response:
        problems = error.errors()
        if any(problem["type"] == "json_invalid" for problem in problems):
            return ApiError(400, "bad_request", "The request's body is no JSON.").response()
        text = "; ".join(_problem_text(problem) for problem in problems[:MAX_PROBLEMS])
        more = f"; and {len(problems) - MAX_PROBLEMS} more" if len(problems) > MAX_PROBLEMS else ""
        return ApiError(422, "invalid_request", f"The request is not valid: {text}{more}.").response()

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
        return ApiError(error.status_code, code, f"{error.detail}; see /docs.", headers=error.headers).response()

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        LOGGER.error("request failed", exc_info=error)
        return ApiError(500, "failed", f"The backend failed ({type(error).__name__}); see its log.").response()


def _problem_text(problem: dict[str, Any]) -> str:
    field = ".".join(str(part) for part in problem["loc"])
    return f"{field}: {problem['msg']}"[:200]


class _RequestMetrics:
    """ASGI middleware that counts answers by route and status, and the bytes of bodies."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counting_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")
                method = scope["method"] if scope["method"] in METHODS else "other"
                self._metrics.requests.labels(method, route, str(message["status"])).inc()
            await send(message)

        async def counting_receive() -> Message:
            message = await receive()
            self._metrics.received.inc(len(message.get("body", b"")))
            return message

        await self._app(scope, counting_receive, counting_send)
