"""Who may ask, how much, and from where; looked at before anything of a request's body is read.

Where clients come in: an address, the tokens that are accepted there, and what is told when it is open.
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
from SDFSMISLib.console import say
from SDFSMISLib.errors import InputError
from SDFSMISLib.server.schema import ApiError
from SDFSMISLib.server.settings import ServeSettings
from SDFSMISLib.wire import PROTOCOL, PROTOCOL_HEADER

OPEN_PATHS = ("/healthz", "/openapi.json", "/docs", "/docs/swagger-ui.css", "/docs/swagger-ui-bundle.js")
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")  # what proxies tell of whom they speak for
SHORTEST_TOKEN = 16


def read_tokens(path: Path) -> list[str]:
    """The tokens of a file, one per line; empty lines and those that begin with # are left out.

    Raises:
        InputError: where the file cannot be read, has no token, one that is too short, or one twice.
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


def check_token(token: str, what: str) -> None:
    """Raise `InputError` for a token, named to people by `what`, that is too short or that a header cannot carry."""
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise InputError(
            f"{what} has {len(token)} characters; {SHORTEST_TOKEN} or more printable ASCII characters, none of them a "
            "blank, are needed."
        )


class AccessControl:
    """An ASGI application in front of another: refuses who must not come in, and bodies that are too large.

    Without tokens whoever reaches the address comes in; it must be one of this computer then. With several each has
    slices of its own. A page in a browser may not ask unless it comes from here: cross-origin requests are refused,
    and, without tokens, other names for this computer than its own (a foreign name that was made to point here).

    Args:
        tokens: that are accepted; none = no token is needed.
        most_body: bytes of a request's body. most_slice: where it is a slice.
    """

    def __init__(self, app: ASGIApp, tokens: Iterable[str], max_body_bytes: int, max_slice_bytes: int) -> None:
        self._app = app
        self._tokens = tuple(tokens)
        self._most_body = max_body_bytes
        self._most_slice = max_slice_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[PROTOCOL_HEADER] = str(PROTOCOL)
            await send(message)

        headers = Headers(scope=scope)
        try:
            self._check_origin(scope, headers)
            scope.setdefault("state", {})["namespace"] = "" if scope["path"] in OPEN_PATHS else self._namespace(headers)
            most = self._most_slice if scope["method"] == "PUT" else self._most_body
            self._check_length(headers, most)
        except ApiError as refused:
            await refused.answer()(scope, receive, sending)
            return
        await self._app(scope, self._counted(receive, most), sending)

    def _check_origin(self, scope: Scope, headers: Headers) -> None:
        host = headers.get("host", "")
        origin = headers.get("origin")
        if origin is not None and origin != f"{scope['scheme']}://{host}":
            raise ApiError(403, "origin_refused", f"Pages of {origin} may not use this backend.")
        if not self._tokens and any(name in headers for name in FORWARDED):
            raise ApiError(
                403,
                "origin_refused",
                "This backend runs without a token, for this computer only, and a proxy passes others on to it; start "
                "it with a token.",
            )
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if not self._tokens and name and name.lower() not in LOOPBACK_NAMES:
            raise ApiError(
                403,
                "origin_refused",
                f"This backend runs without a token and answers to {', '.join(LOOPBACK_NAMES)} only, not to {name}.",
            )

    def _namespace(self, headers: Headers) -> str:
        """Whose slices a request may see: "" for all, or what stands for its token."""
        if not self._tokens:
            return ""
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not given:
            raise ApiError(
                401,
                "token_missing",
                "This backend asks for a token; give the one it was started with.",
                headers={"WWW-Authenticate": "Bearer"},
            )
        # All are compared, in constant time, so that the time taken tells nothing.
        equal = [hmac.compare_digest(given.strip().encode(), token.encode()) for token in self._tokens]
        if not any(equal):
            raise ApiError(
                401,
                "token_wrong",
                "The token is not one of this backend's; give the one it was started with.",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if len(self._tokens) == 1:
            return ""
        return hashlib.sha256(self._tokens[equal.index(True)].encode()).hexdigest()[:16]

    def _check_length(self, headers: Headers, most: int) -> None:
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > most:
            raise self._too_large(most)

    def _too_large(self, most: int) -> ApiError:
        return ApiError(413, "too_large", f"A request of more than {most} bytes came; send less at a time.")

    def _counted(self, receive: Receive, most: int) -> Receive:
        """`receive`, with the body counted: a length need not be declared, or true."""
        read = 0

        async def counting() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > most:
                raise self._too_large(most)
            return message

        return counting


TOKEN_VARIABLE = "SDFSMIS_TOKEN"
BACKLOG = 2048  # connections that wait to be taken


@dataclass(frozen=True, eq=False)
class ListeningAddress:
    """Attributes:
    listening: a socket at the address.
    port: of the address. url: all of it.
    tokens: that are accepted; none = none is needed.
    """

    listening: socket.socket
    port: int
    url: str
    tokens: list[str]

    @classmethod
    def of(cls, settings: ServeSettings) -> ListeningAddress:
        """The entrance that the settings ask for. A token is made, and told, where one is needed and none is given.

        Raises:
            InputError: where the address is taken, a token is not one, or a file is missing.
        """
        _check_tls(settings)
        tokens = _tokens(settings)
        listening = _bound(settings.host, settings.port)
        if not settings.is_loopback:
            tokens = tokens or [_made_token()]
            _warn_of_the_open(settings)
        host, port = listening.getsockname()[:2]
        url = f"{settings.scheme}://{f'[{host}]' if ':' in host else host}:{port}"
        return cls(listening, port, url, tokens)

    def announce(self, what: str, seconds: float) -> None:
        """The line of JSON for programs, on standard output, and a sentence for people.

        Args:
            what: serves here.
            seconds: that a slice takes.
        """
        say(f"SDFSMIS {__version__} at {self.url}, {what}, about {seconds:.2g} s a slice. Ctrl+C stops it.")
        print(json.dumps({"url": self.url, "version": __version__}), flush=True)


def on_stdin_closed(end: Callable[[], None]) -> None:
    """Calls `end`, from a thread, when the program ends that holds standard input open, however that ends.

    Raises:
        InputError: if there is no standard input.
    """
    if sys.stdin is None or sys.stdin.closed:
        raise InputError("There is no standard input that could close; leave --until-stdin-closes out.")
    stdin = sys.stdin.fileno()

    def watch() -> None:
        while os.read(stdin, 1 << 10):  # not by sys.stdin, whose lock the thread would hold at the program's end
            pass
        end()

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _tokens(settings: ServeSettings) -> list[str]:
    """The tokens that are given."""
    if settings.token_file is not None:
        if settings.token is not None:
            raise InputError("Both --token and --token-file were given; give one of the two.")
        return read_tokens(settings.token_file)
    token = settings.token or os.environ.get(TOKEN_VARIABLE)
    if not token:
        return []
    check_token(token, "The token" if settings.token else f"The token in the variable {TOKEN_VARIABLE}")
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
        listening.listen(BACKLOG)  # from now on nobody else can
    except (OSError, OverflowError) as error:
        raise InputError(
            f"Cannot serve at {host}, port {port} ({error}); name another --port (0 takes a free one) or --host."
        ) from error
    return listening
