"""The process of a backend, from its start to its end."""

from __future__ import annotations

import signal
import socket
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn
from starlette.types import ASGIApp

from SDFSMISLib.console import waiting
from SDFSMISLib.server.access import ListeningAddress, on_stdin_closed
from SDFSMISLib.server.settings import ServeSettings, log_to_stderr
from SDFSMISLib.server.store import MemoryStore

if TYPE_CHECKING:
    from SDFSMISLib.server.engine import Engine

__all__ = ["ServeSettings", "run_server"]

GRACE_SECONDS = 10.0  # for active runs to end after SIGTERM
CLOSING_SECONDS = 5  # for their streams to end after that
MAX_CONNECTIONS = 1024


def run_server(settings: ServeSettings) -> int:
    """Serve until stopped; the exit code: 0, or 1 if the device failed.

    When the backend is ready, one line of JSON with its address goes to standard output; all else to standard error.
    SIGTERM lets active runs end for `GRACE_SECONDS`; SIGINT stops them after their current batch.

    Raises:
        InputError: if the address is taken, a file is missing, the model cannot be loaded, or Ray is not installed.
    """
    if settings.engine == "ray":
        from SDFSMISLib.server.ray_serving import run_ray_server

        return run_ray_server(settings)
    address = ListeningAddress.open(settings)
    log_to_stderr()
    with waiting(f"Loading the model {settings.model}"):
        from SDFSMISLib.inference.segmenter import Segmenter
        from SDFSMISLib.server.app import make_app
        from SDFSMISLib.server.engine import Engine

        engine = Engine(Segmenter.from_pretrained(settings.model, settings.device), settings.limits)
    store = MemoryStore(settings.limits.store_bytes, settings.limits.store_seconds, engine.forget_slice)
    server = _Server(settings, make_app(engine, store, address.tokens), engine, address)
    engine.on_device_error = server.stop
    if settings.until_stdin_closes:
        on_stdin_closed(server.stop)
    server.run(sockets=[address.listener])
    engine.scheduler.stop()
    return 1 if engine.device_error is not None else 0


class _Server(uvicorn.Server):
    """uvicorn's server, which announces its address and stops the engine's runs when it stops."""

    def __init__(self, settings: ServeSettings, app: ASGIApp, engine: Engine, address: ListeningAddress) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                limit_concurrency=MAX_CONNECTIONS,
                ssl_certfile=settings.tls_cert,
                ssl_keyfile=settings.tls_key,
                timeout_graceful_shutdown=int(GRACE_SECONDS) + CLOSING_SECONDS,
            )
        )
        self._engine = engine
        self._address = address

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        model = f"{self._engine.segmenter.name} on {self._engine.device_name}"
        self._address.announce(model, self._engine.seconds_per_slice)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Unlike uvicorn's, does not raise the signal again in the end: being stopped is not a failure."""
        self._engine.scheduler.stop(0.0 if sig == signal.SIGINT else GRACE_SECONDS)
        self.force_exit = self.should_exit and sig == signal.SIGINT  # the second Ctrl+C
        self.should_exit = True

    def stop(self) -> None:
        """Stop at once; may be called by any thread."""
        self._engine.scheduler.stop()
        self.should_exit = True
