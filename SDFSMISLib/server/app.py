"""The backend as a web application: its routes, its page, and how failures are answered."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
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
from SDFSMISLib.server.engine import BackendStopping, Engine, Metrics, QueueFull
from SDFSMISLib.server.schema import (
    STREAM,
    ApiError,
    CapabilitiesResponse,
    DeviceInfo,
    ErrorResponse,
    HealthResponse,
    LimitsInfo,
    MissingSlicesResponse,
    ModelInfo,
    QueueInfo,
    SegmentationRequest,
    SliceAddresses,
)
from SDFSMISLib.server.segmentations import ResultResponse, ResultStream, build_run
from SDFSMISLib.server.settings import LOGGER
from SDFSMISLib.server.store import Store
from SDFSMISLib.wire import ARRAY_TYPE, PROTOCOL, RECORDS_TYPE, ArrayTooLarge, WireError, content_address, unpack_array

EXPIRE_SECONDS = 30.0
HEADER_BYTES = 1 << 10  # of a packed array, at most
TOGETHER = 2  # requests that are made into runs at a time: each may take some memory, and unpacks what it holds
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE")
MAX_PROBLEMS = 3  # of a bad request that its answer names

DESCRIPTION = """Paint one structure on one slice of a scan, get it on the others.

1. `POST /slices/missing`: which slices are not here yet? 2. `PUT /slices/{sha256}`: send those.
3. `POST /segmentations`: a stream of finished slices. Slices stay in memory for a while, so that a correction sends
nothing again. SDFSMISLib/client does all this with numpy and the standard library. Not a medical device."""

SliceAddress = Annotated[str, Path(pattern="^[0-9a-f]{64}$", description="content address of the slice")]


def make_app(engine: Engine, store: Store, tokens: Sequence[str] = ()) -> ASGIApp:
    """The application around an engine and the slices that were sent.

    Args:
        tokens: that are accepted; with several, each has slices of its own. None: whoever reaches the address comes in.
    """
    metrics = Metrics(engine, store)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        keeper = asyncio.create_task(_expire(store))
        yield
        keeper.cancel()
        with suppress(asyncio.CancelledError):
            await keeper

    app = FastAPI(
        title="SDFSMIS backend",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(HTTPBearer(auto_error=False))] if tokens else [],  # for the page; `AccessControl` asks
        responses=_failures(401, 403, 413),
    )
    _add_state_routes(app, engine, metrics)
    _add_slice_routes(app, engine, store, metrics)
    _add_segmentation_route(app, engine, store, metrics)
    _add_page(app)
    _add_failures(app)
    limits = engine.limits
    return _Counting(AccessControl(app, tokens, limits.body_bytes, limits.slice_bytes + HEADER_BYTES), metrics)


def _failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The documented answers of these statuses, all of one form."""
    return {status: {"model": ErrorResponse} for status in statuses}


async def _expire(store: Store) -> None:
    while True:
        await asyncio.sleep(EXPIRE_SECONDS)
        try:
            await run_in_threadpool(store.expire)
        except Exception:  # it is tried again
            LOGGER.exception("slices that are not used any more cannot be forgotten")


def _add_state_routes(app: FastAPI, engine: Engine, metrics: Metrics) -> None:
    @app.get(
        "/healthz", response_model=HealthResponse, responses={503: {"model": HealthResponse}}, summary="Is it there?"
    )
    async def healthz(response: Response) -> HealthResponse:
        if engine.lost is None and engine.scheduler.is_alive:
            return HealthResponse(status="ok", version=__version__)
        response.status_code = 503
        return HealthResponse(status="stopping" if engine.lost is None else "device lost", version=__version__)

    @app.get("/capabilities", response_model=CapabilitiesResponse, summary="What it can do, and what a slice costs")
    def capabilities() -> CapabilitiesResponse:
        segmenter = engine.segmenter
        limits = {name: getattr(engine.limits, name) for name in LimitsInfo.model_fields}
        return CapabilitiesResponse(
            version=__version__,
            protocol=PROTOCOL,
            models=[
                ModelInfo(
                    name=segmenter.name,
                    weights_sha256=segmenter.weights,
                    resolution=engine.resolution,
                    searches=segmenter.searches,
                )
            ],
            device=DeviceInfo(name=engine.device_name, kind=engine.device_kind),
            seconds_per_slice=engine.seconds_per_slice,
            strategies=list(STRATEGIES),
            regions=list(REGIONS),
            limits=LimitsInfo(**limits),
            queue=QueueInfo(running=engine.scheduler.active_runs),
        )

    @app.get(
        "/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}}, summary="Prometheus"
    )
    async def counted() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_slice_routes(app: FastAPI, engine: Engine, store: Store, metrics: Metrics) -> None:
    @app.post(
        "/slices/missing",
        response_model=MissingSlicesResponse,
        responses=_failures(400, 422),
        summary="Which are not here?",
    )
    def missing(addresses: SliceAddresses, request: Request) -> MissingSlicesResponse:
        lacking = store.missing(request.state.namespace, addresses.slices)
        metrics.asked.labels("no").inc(len(lacking))
        metrics.asked.labels("yes").inc(len(set(addresses.slices)) - len(lacking))
        return MissingSlicesResponse(missing=lacking)

    @app.put(
        "/slices/{address}",
        status_code=201,
        response_class=Response,
        responses={200: {"description": "It was here already."}, **_failures(400, 422)},
        openapi_extra={"requestBody": {"required": True, "content": {ARRAY_TYPE: {"schema": {"type": "string"}}}}},
        summary="Send one: a packed array (rows, columns), see SDFSMISLib/wire.py",
    )
    async def put(address: SliceAddress, request: Request) -> Response:
        body = await request.body()
        array = await run_in_threadpool(_checked_slice, body, address, engine)
        is_new = await run_in_threadpool(store.put, request.state.namespace, address, array)
        return Response(status_code=201 if is_new else 200)

    @app.head("/slices/{address}", response_class=Response, responses={404: {}, 422: {}}, summary="Is it here?")
    def head(address: SliceAddress, request: Request) -> Response:
        return Response(status_code=404 if store.missing(request.state.namespace, [address]) else 200)

    @app.delete(
        "/slices/{address}", status_code=204, response_class=Response, responses=_failures(422), summary="Forget it"
    )
    def delete(address: SliceAddress, request: Request) -> Response:
        store.delete(request.state.namespace, address)
        return Response(status_code=204)


def _checked_slice(body: bytes, address: str, engine: Engine) -> np.ndarray:
    """The slice of a request's body; raises `ApiError` where it is none, is too large, or another one."""
    limits = engine.limits
    most = min(limits.slice_bytes, limits.store_bytes)
    try:
        array = unpack_array(body, most)
    except ArrayTooLarge as error:
        raise ApiError(413, "too_large", str(error)) from error
    except WireError as error:
        raise ApiError(400, "bad_request", str(error)) from error
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
    making = asyncio.Semaphore(TOGETHER)

    @app.post(
        "/segmentations",
        response_class=StreamingResponse,
        responses={
            200: {"description": STREAM, "content": {RECORDS_TYPE: {}}},
            **_failures(400, 409, 422, 426, 503),
        },
        summary="Segment; a stream of finished slices",
    )
    async def segment(wanted: SegmentationRequest, request: Request) -> ResultResponse:
        engine.scheduler.check()
        async with making:
            run, held = await run_in_threadpool(build_run, wanted, request.state.namespace, store, engine)
        return ResultResponse(ResultStream(engine, run, held, metrics))


def _add_page(app: FastAPI) -> None:
    """The page of the routes. Its script is served from here: a page that fetches it from elsewhere tells others who
    works with this, and stays blank where there is no internet."""
    shipped = files("fastapi_offline") / "static"
    for name, kind in (("swagger-ui-bundle.js", "text/javascript"), ("swagger-ui.css", "text/css")):
        content = (shipped / name).read_bytes()

        def served(content: bytes = content, kind: str = kind) -> Response:
            return Response(content, media_type=kind, headers={"Cache-Control": "max-age=86400"})

        app.add_api_route(f"/docs/{name}", served, include_in_schema=False)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=app.title,
            swagger_js_url="/docs/swagger-ui-bundle.js",
            swagger_css_url="/docs/swagger-ui.css",
            swagger_favicon_url="data:,",
        )


def _add_failures(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> Response:
        return error.answer()

    @app.exception_handler(InputError)
    async def bad_input(_: Request, error: InputError) -> Response:
        return ApiError(422, "invalid_input", str(error)).answer()

    @app.exception_handler(QueueFull)
    async def full(_: Request, error: QueueFull) -> Response:
        headers = {"Retry-After": str(error.retry_after)}
        return ApiError(503, "queue_full", "As many runs take turns as may; ask again later.", headers=headers).answer()

    @app.exception_handler(BackendStopping)
    async def stopping(_: Request, error: BackendStopping) -> Response:
        text = "The backend is stopping; ask again when it is back, or ask another one."
        return ApiError(503, "stopping", text, headers={"Retry-After": "5"}).answer()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        problems = error.errors()
        if any(problem["type"] == "json_invalid" for problem in problems):
            return ApiError(400, "bad_request", "The request's body is no JSON.").answer()
        told = "; ".join(_problem(problem) for problem in problems[:MAX_PROBLEMS])
        more = f"; and {len(problems) - MAX_PROBLEMS} more" if len(problems) > MAX_PROBLEMS else ""
        return ApiError(422, "invalid_request", f"The request is not as it should be: {told}{more}.").answer()

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
        return ApiError(error.status_code, code, f"{error.detail}; see /docs.", headers=error.headers).answer()

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        LOGGER.error("request failed", exc_info=error)
        return ApiError(500, "failed", f"The backend failed ({type(error).__name__}); its log tells more.").answer()


def _problem(problem: dict[str, Any]) -> str:
    where = ".".join(str(place) for place in problem["loc"])
    return f"{where}: {problem['msg']}"[:200]


class _Counting:
    """An ASGI application in front of another: counts answers by route and status, and the bytes of bodies."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")
                method = scope["method"] if scope["method"] in METHODS else "other"
                self._metrics.requests.labels(method, route, str(message["status"])).inc()
            await send(message)

        async def received() -> Message:
            message = await receive()
            self._metrics.received.inc(len(message.get("body", b"")))
            return message

        await self._app(scope, received, counted)
