"""What stands before Ray Serve's proxies, so that clients understand what these answer by themselves."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from SDFSMISLib.protocol import PROTOCOL, PROTOCOL_HEADER
from SDFSMISLib.server.failures import Refused

__all__ = ["middlewares"]

SERVES_OWN = "/-/"  # paths that tell load balancers how a proxy is
RETRY_SECONDS = 2


def middlewares() -> list[Middleware]:
    """For Ray Serve, which calls it in each proxy; see RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH."""
    return [Middleware(_Translated)]


class _Translated:
    """An ASGI application before another: what is not an answer of a replica becomes one that says to come again.

    A proxy answers in plain text, or not at all, where the replica that it asked is lost, or it knows of none yet.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(SERVES_OWN):
            await self._app(scope, receive, send)
            return
        is_replicas: bool | None = None  # not known before the answer begins

        async def sending(message: Message) -> None:
            nonlocal is_replicas
            if is_replicas is None:
                is_replicas = PROTOCOL_HEADER in Headers(raw=message.get("headers", ()))
            if is_replicas:
                await send(message)

        await self._app(scope, receive, sending)
        if not is_replicas:
            headers = {"Retry-After": str(RETRY_SECONDS), PROTOCOL_HEADER: str(PROTOCOL)}
            text = "The replica that was asked is gone, or none is there yet; ask again in a moment."
            await Refused(503, "stopping", text, headers=headers).answer()(scope, receive, send)
