"""The process of a backend: its address, its tokens, its start and its end."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import ssl
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from SDFSMISLib import __version__
from SDFSMISLib.console import say, waiting
from SDFSMISLib.errors import InputError
from SDFSMISLib.server.access import check_token, read_tokens
from SDFSMISLib.server.app import make_app
from SDFSMISLib.server.engine import Engine
from SDFSMISLib.server.limits import Limits
from SDFSMISLib.server.logs import log_to_stderr
from SDFSMISLib.server.store import MemoryStore

TOKEN_VARIABLE = "SDFSMIS_TOKEN"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
GRACE_SECONDS = 10.0  # that runs have to end in when the backend is told to stop
CLOSING_SECONDS = 5  # and their streams after that


@dataclass(frozen=True)
class ServeSettings:
    """The options of `sdfsmis serve`; see its help."""

    host: str = "127.0.0.1"
    port: int = 7861
    token: str | None = None
    token_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    model: str = "built-in"
    device: str = "auto"
    until_stdin_closes: bool = False
    limits: Limits = Limits()

    @property
    def is_loopback(self) -> bool:
        """Whether only this computer reaches the backend."""
        return self.host in LOOPBACK

    @property
    def scheme(self) -> str:
        return "https" if self.tls_cert is not None else "http"


def run_server(settings: ServeSettings) -> int:
    """Serve until told to stop; the exit code: 0, or 1 where the device failed.

    When the backend is ready one line of JSON with its address goes to standard output; all else to standard error.

    Raises:
        InputError: where the address is taken, a file is missing, the model cannot be loaded.
    """
    _check_tls(settings)
    tokens = _tokens(settings)
    listening = _bound(settings.host, settings.port)
    if not settings.is_loopback:
        tokens = tokens or [_made_token()]
        _warn_of_the_open(settings)
    log_to_stderr()
    with waiting(f"Loading the model {settings.model}"):
        from SDFSMISLib.inference.segmenter import Segmenter

        segmenter = Segmenter.from_pretrained(settings.model, settings.device)
        process: list[_Process] = []
        engine = Engine(segmenter, settings.limits, on_lost=lambda: process[0].stop(0.0))
    store = MemoryStore(
        settings.limits.store_bytes,
        settings.limits.store_seconds,
        lambda owner, address: engine.latents.forget(f"{owner} {address}"),
    )
    server = _Process(settings, make_app(engine, store, tokens), engine, listening)
    process.append(server)
    server.run_until_stopped()
    return 1 if engine.lost is not None else 0


class _Process(uvicorn.Server):
    """uvicorn, with an end that runs hear of."""

    def __init__(self, settings: ServeSettings, app: ASGIApp, engine: Engine, listening: socket.socket) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                ssl_certfile=settings.tls_cert,
                ssl_keyfile=settings.tls_key,
                timeout_graceful_shutdown=int(GRACE_SECONDS) + CLOSING_SECONDS,
            )
        )
        self._settings = settings
        self._engine = engine
        self._listening = listening

    def run_until_stopped(self) -> None:
        if self._settings.until_stdin_closes:
            threading.Thread(target=self._watch_stdin, name="parent", daemon=True).start()
        self.run(sockets=[self._listening])
        self._engine.scheduler.stop()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        address = _address(self._settings, self._listening)
        seconds = self._engine.seconds_per_slice
        say(
            f"SDFSMIS {__version__} at {address}, {self._engine.segmenter.name} on {self._engine.device_name}, about "
            f"{seconds:.2g} s a slice. Ctrl+C stops it."
        )
        print(json.dumps({"url": address, "version": __version__}), flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Being told to stop is not a failure: unlike uvicorn's, this does not raise the signal again in the end."""
        self._engine.scheduler.stop(0.0 if sig == signal.SIGINT else GRACE_SECONDS)
        self.force_exit = self.should_exit and sig == signal.SIGINT  # asked a second time
        self.should_exit = True

    def stop(self, grace: float) -> None:
        """Stop from another thread."""
        self._engine.scheduler.stop(grace)
        self.should_exit = True

    def _watch_stdin(self) -> None:
        """Ends the backend with the program that started it, however that ended."""
        while sys.stdin.buffer.read(1 << 10):
            pass
        self.stop(0.0)


def _tokens(settings: ServeSettings) -> list[str]:
    """The tokens that are given."""
    if settings.token_file is not None:
        if settings.token is not None:
            raise InputError("Both --token and --token-file were given; give one of the two.")
        return read_tokens(settings.token_file)
    token = settings.token or os.environ.get(TOKEN_VARIABLE)
    if not token:
        return []
    check_token(token)
    return [token]


def _made_token() -> str:
    token = secrets.token_urlsafe(24)
    say(f"Token, told once: {token}")
    return token


def _warn_of_the_open(settings: ServeSettings) -> None:
    if settings.tls_cert is None:
        say(
            f"Warning: {settings.host} can be reached from other computers, and without --tls-cert and --tls-key scans "
            "and the token travel in the clear."
        )


def _check_tls(settings: ServeSettings) -> None:
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise InputError("--tls-cert and --tls-key belong together; give both, or neither.")
    if settings.tls_cert is None or settings.tls_key is None:
        return
    for path in (settings.tls_cert, settings.tls_key):
        if not path.is_file():
            raise InputError(f"There is no file {path}.")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_cert, settings.tls_key)
    except (ssl.SSLError, OSError) as error:
        raise InputError(
            f"{settings.tls_cert} and {settings.tls_key} are no certificate and its key ({error}); give PEM files."
        ) from error


def _bound(host: str, port: int) -> socket.socket:
    """A socket at an address, so that one that is taken is known before the model is loaded."""
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, number)
        if os.name != "nt":  # there it would let two servers have one address
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except (OSError, OverflowError) as error:
        raise InputError(
            f"Cannot serve at {host}, port {port} ({error}); name another --port (0 takes a free one) or --host."
        ) from error
    return listening


def _address(settings: ServeSettings, listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"{settings.scheme}://{f'[{host}]' if ':' in host else host}:{port}"
