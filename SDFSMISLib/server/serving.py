"""The process of a backend: its start and its end."""

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

GRACE_SECONDS = 10.0  # that runs have to end in when the backend is told to stop
MAX_CONNECTIONS = 1024  # open at once
CLOSING_SECONDS = 5  # and their streams after that


def run_server(settings: ServeSettings) -> int:
    """Serve until told to stop; the exit code: 0, or 1 where the device failed.

    When the backend is ready one line of JSON with its address goes to standard output; all else to standard error.

    Raises:
        InputError: where the address is taken, a file is missing, the model cannot be loaded, or Ray is not there.
    """
    if settings.engine == "ray":
        from SDFSMISLib.server.ray_serving import run_ray_server

        return run_ray_server(settings)
    entrance = ListeningAddress.of(settings)
    log_to_stderr()
    with waiting(f"Loading the model {settings.model}"):
        from SDFSMISLib.inference.segmenter import Segmenter
        from SDFSMISLib.server.app import make_app
        from SDFSMISLib.server.engine import Engine

        segmenter = Segmenter.from_pretrained(settings.model, settings.device)
        process: list[_Process] = []
        engine = Engine(segmenter, settings.limits, on_device_error=lambda: process[0].stop(0.0))
    store = MemoryStore(
        settings.limits.store_bytes,
        settings.limits.store_seconds,
        lambda owner, address: engine.latents.forget(f"{owner} {address}"),
    )
    server = _Process(settings, make_app(engine, store, entrance.tokens), engine, entrance)
    process.append(server)
    server.run_until_stopped()
    return 1 if engine.lost is not None else 0


class _Process(uvicorn.Server):
    """uvicorn, with an end that runs hear of."""

    def __init__(self, settings: ServeSettings, app: ASGIApp, engine: Engine, entrance: ListeningAddress) -> None:
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
        self._settings = settings
        self._engine = engine
        self._entrance = entrance

    def run_until_stopped(self) -> None:
        if self._settings.until_stdin_closes:
            on_stdin_closed(lambda: self.stop(0.0))
        self.run(sockets=[self._entrance.listening])
        self._engine.scheduler.stop()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        model = f"{self._engine.segmenter.name} on {self._engine.device_name}"
        self._entrance.announce(model, self._engine.seconds_per_slice)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Being told to stop is not a failure: unlike uvicorn's, this does not raise the signal again in the end."""
        self._engine.scheduler.stop(0.0 if sig == signal.SIGINT else GRACE_SECONDS)
        self.force_exit = self.should_exit and sig == signal.SIGINT  # asked a second time
        self.should_exit = True

    def stop(self, grace: float) -> None:
        """Stop from another thread."""
        self._engine.scheduler.stop(grace)
        self.should_exit = True
