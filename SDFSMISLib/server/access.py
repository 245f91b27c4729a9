"""Who may use the backend, how much they may send, and the address at which it listens.

`AccessControl` refuses a request by its headers, before any of its body is read.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from SDFSMISLib import __version__
from SDFSMISLib.console import print_status
from SDFSMISLib.errors import InputError
from SDFSMISLib.server.schema import ApiError
from SDFSMISLib.server.settings import ServeSettings
from SDFSMISLib.wire import PROTOCOL, PROTOCOL_HEADER

OPEN_PATHS = ("/healthz", "/openapi.json", "/docs", "/docs/swagger-ui.css", "/docs/swagger-ui-bundle.js")
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
FORWARDED_HEADERS = ("forwarded", "x-forwarded-for", "x-real-ip")  # set by proxies
TOKEN_VARIABLE = "SDFSMIS_TOKEN"
MIN_TOKEN_LENGTH = 16
CONNECTION_BACKLOG = 2048


class AccessControl:
    """ASGI middleware that refuses requests without a valid token, from foreign web pages, or with too large a body.

    A request that passes has `request.state.namespace`, under which its slices are stored: one per token if there are
    several, else one for all.

    Without tokens the backend serves this computer only: requests that a proxy has forwarded, or that use another host
    name than this computer's, are refused (the second defends against DNS rebinding). Cross-origin requests from
    browsers are always refused.

    Args:
        app: the application behind.
        tokens: accepted bearer tokens; if empty, none is needed.
        max_body_bytes: body of a request.
        max_slice_bytes: body of one that uploads a single slice, ``PUT /slices/{address}``.

    Example:
        >>> import asyncio
        >>> access = AccessControl(None, ["a-token-of-16-letters"], max_body_bytes=1000, max_slice_bytes=1000)
        >>> messages = []
        >>> async def send(message):
        ...     messages.append(message)
        >>> request = {"type": "http", "method": "GET", "path": "/capabilities", "scheme": "http", "headers": []}
        >>> asyncio.run(access(request, None, send))
        >>> messages[0]["status"]
        401
    """

    def __init__(self, app: ASGIApp, tokens: Iterable[str], max_body_bytes: int, max_slice_bytes: int) -> None:
        self._app = app
        self._tokens = tuple(tokens)
        self._max_body_bytes = max_body_bytes
        self._max_slice_bytes = max_slice_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_protocol(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[PROTOCOL_HEADER] = str(PROTOCOL)
            await send(message)

        headers = Headers(scope=scope)
        is_slice = scope["method"] == "PUT" and scope["path"].startswith("/slices/")
        max_bytes = self._max_slice_bytes if is_slice else self._max_body_bytes
        try:
            self._check_origin(scope, headers)
            is_open = scope["path"] in OPEN_PATHS
            scope.setdefault("state", {})["namespace"] = "" if is_open else self._namespace(headers)
            length = headers.get("content-length", "0")
            if length.isdigit() and int(length) > max_bytes:
                raise _too_large(max_bytes)
        except ApiError as error:
            await error.response()(scope, receive, send_with_protocol)
            return
        await self._app(scope, _limited(receive, max_bytes), send_with_protocol)

    def _check_origin(self, scope: Scope, headers: Headers) -> None:
        host = headers.get("host", "")
        origin = headers.get("origin")
        if origin is not None and origin != f"{scope['scheme']}://{host}":
            raise ApiError(403, "origin_refused", f"Pages of {origin} may not use this backend.")
        if self._tokens:
            return
        if any(name in headers for name in FORWARDED_HEADERS):
            raise ApiError(
                403,
                "origin_refused",
                "This backend runs without a token, for this computer only, and a proxy forwards requests of others to "
                "it; start it with a token.",
            )
        name, _, port = host.rpartition(":")
        name = name if port.isdigit() else host
        if name and name.lower() not in LOOPBACK_NAMES:
            raise ApiError(
                403,
                "origin_refused",
                f"This backend runs without a token and answers to {', '.join(LOOPBACK_NAMES)} only, not to {name}.",
            )

    def _namespace(self, headers: Headers) -> str:
        """The namespace of the request's token; "" if all clients share one. Raises `ApiError` for a wrong token."""
        if not self._tokens:
            return ""
        challenge = {"WWW-Authenticate": "Bearer"}
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            text = "This backend needs a token; give the one it was started with."
            raise ApiError(401, "token_missing", text, headers=challenge)
        # All are compared, each in constant time, so that the time taken reveals nothing.
        equal = [hmac.compare_digest(token.strip().encode(), known.encode()) for known in self._tokens]
        if not any(equal):
            text = "The token is not one of this backend's; give the one it was started with."
            raise ApiError(401, "token_wrong", text, headers=challenge)
        if len(self._tokens) == 1:
            return ""
        return hashlib.sha256(self._tokens[equal.index(True)].encode()).hexdigest()[:16]


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(413, "too_large", f"The request has more than {max_bytes} bytes; send less at a time.")


def _limited(receive: Receive, max_bytes: int) -> Receive:
    """`receive` that raises once more than `max_bytes` came: the declared length may be absent, or wrong."""
    received = 0

    async def receive_limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > max_bytes:
            raise _too_large(max_bytes)
        return message

    return receive_limited


@dataclass(frozen=True, eq=False)
class ListeningAddress:
    """The address at which a backend listens, and the tokens that it accepts there.

    Attributes:
        listener: the bound socket, which already queues connections.
        port: the actual one, also if port 0 (any free one) was requested.
        url: scheme, host and port.
        tokens: accepted tokens; empty = none is needed.
    """

    listener: socket.socket
    port: int
    url: str
    tokens: list[str]

    @classmethod
    def open(cls, settings: ServeSettings) -> ListeningAddress:
        """Bind the address that the settings name.

        If other computers can reach it and no token is given, one is made and written once to standard error.

        Raises:
            InputError: if the address is taken, a token is not acceptable, or the certificate cannot be loaded.
        """
        _check_tls(settings)
        tokens = _given_tokens(settings)
        listening = _bind(settings.host, settings.port)
        if not settings.is_loopback:
            tokens = tokens or [_new_token()]
            if settings.tls_cert is None:
                print_status(
                    f"Warning: {settings.host} can be reached from other computers, and without --tls-cert and "
                    "--tls-key scans and the token travel in the clear."
                )
        host, port = listening.getsockname()[:2]
        url = f"{settings.scheme}://{f'[{host}]' if ':' in host else host}:{port}"
        return cls(listening, port, url, tokens)

    def announce(self, model: str, seconds_per_slice: float) -> None:
        """Print that the backend is ready: a sentence on standard error, a line of JSON on standard output."""
        print_status(
            f"SDFSMIS {__version__} at {self.url}, {model}, about {seconds_per_slice:.2g} s a slice. Ctrl+C stops it."
        )
        print(json.dumps({"url": self.url, "version": __version__}), flush=True)


def read_tokens(path: Path) -> list[str]:
    """Tokens from a text file with one per line; empty lines and lines that begin with # are skipped.

    Raises:
        InputError: if the file cannot be read, has no token, or has one that is too short or appears twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"The token file {path} cannot be read ({error}); give a text file with a token per line."
        ) from error
    tokens = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not tokens:
        raise InputError(f"The token file {path} has no token; write one per line.")
    if len(set(tokens)) < len(tokens):
        raise InputError(f"The token file {path} has the same token twice; give each user one of their own.")
    for number, token in enumerate(tokens, 1):
        check_token(token, f"Token {number} of {path}")
    return tokens


def check_token(token: str, name: str) -> None:
    """Raise `InputError`, which calls the token `name`, if it is too short or cannot be sent in a header."""
    if len(token) < MIN_TOKEN_LENGTH or not token.isascii() or not token.isprintable() or " " in token:
        raise InputError(
            f"{name} has {len(token)} characters; {MIN_TOKEN_LENGTH} or more printable ASCII characters without "
            "blanks are needed."
        )


def on_stdin_closed(callback: Callable[[], None]) -> None:
    """Call `callback`, from a thread, once standard input closes: the program that holds it has ended, or was killed.

    Raises:
        InputError: if there is no standard input.
    """
    if sys.stdin is None or sys.stdin.closed:
        raise InputError("There is no standard input that could close; leave --until-stdin-closes out.")
    stdin = sys.stdin.fileno()

    def watch() -> None:
        while os.read(stdin, 1 << 10):  # not sys.stdin.read, which would hold its lock when the interpreter ends
            pass
        callback()

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _given_tokens(settings: ServeSettings) -> list[str]:
    if settings.token_file is not None:
        if settings.token is not None:
            raise InputError("Both --token and --token-file were given; give one of the two.")
        return read_tokens(settings.token_file)
    token = settings.token or os.environ.get(TOKEN_VARIABLE)
    if not token:
        return []
    check_token(token, "The token" if settings.token else f"The token in the variable {TOKEN_VARIABLE}")
    return [token]


def _new_token() -> str:
    token = secrets.token_urlsafe(24)
    print_status(f"Token, shown once: {token}")
    return token


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


def _bind(host: str, port: int) -> socket.socket:
    """A listening socket; bound before the model is loaded, so that an address that is taken fails at once."""
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, number)
        if os.name != "nt":  # there it would let two servers share one address
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(CONNECTION_BACKLOG)
    except (OSError, OverflowError) as error:
        raise InputError(
            f"Cannot serve at {host}, port {port} ({error}); name another --port (0 takes a free one) or --host."
        ) from error
    return listening
