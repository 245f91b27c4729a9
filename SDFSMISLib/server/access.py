"""Who may ask, how much, and from where; looked at before anything of a request's body is read."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from SDFSMISLib.errors import InputError
from SDFSMISLib.server.failures import Refused
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


class Access:
    """An ASGI application in front of another: refuses who must not come in, and bodies that are too large.

    Without tokens whoever reaches the address comes in; it must be one of this computer then. With several each has
    slices of its own. A page in a browser may not ask unless it comes from here: cross-origin requests are refused,
    and, without tokens, other names for this computer than its own (a foreign name that was made to point here).

    Args:
        tokens: that are accepted; none = no token is needed.
        most_body: bytes of a request's body. most_slice: where it is a slice.
    """

    def __init__(self, app: ASGIApp, tokens: Iterable[str], most_body: int, most_slice: int) -> None:
        self._app = app
        self._tokens = tuple(tokens)
        self._most_body = most_body
        self._most_slice = most_slice

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
            scope.setdefault("state", {})["owner"] = "" if scope["path"] in OPEN_PATHS else self._owner(headers)
            most = self._most_slice if scope["method"] == "PUT" else self._most_body
            self._check_length(headers, most)
        except Refused as refused:
            await refused.answer()(scope, receive, sending)
            return
        await self._app(scope, self._counted(receive, most), sending)

    def _check_origin(self, scope: Scope, headers: Headers) -> None:
        host = headers.get("host", "")
        origin = headers.get("origin")
        if origin is not None and origin != f"{scope['scheme']}://{host}":
            raise Refused(403, "origin_refused", f"Pages of {origin} may not use this backend.")
        if not self._tokens and any(name in headers for name in FORWARDED):
            raise Refused(
                403,
                "origin_refused",
                "This backend runs without a token, for this computer only, and a proxy passes others on to it; start "
                "it with a token.",
            )
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if not self._tokens and name and name.lower() not in LOOPBACK_NAMES:
            raise Refused(
                403,
                "origin_refused",
                f"This backend runs without a token and answers to {', '.join(LOOPBACK_NAMES)} only, not to {name}.",
            )

    def _owner(self, headers: Headers) -> str:
        """Whose slices a request may see: "" for all, or what stands for its token."""
        if not self._tokens:
            return ""
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not given:
            raise Refused(
                401,
                "token_missing",
                "This backend asks for a token; give the one it was started with.",
                headers={"WWW-Authenticate": "Bearer"},
            )
        # All are compared, in constant time, so that the time taken tells nothing.
        equal = [hmac.compare_digest(given.strip().encode(), token.encode()) for token in self._tokens]
        if not any(equal):
            raise Refused(
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

    def _too_large(self, most: int) -> Refused:
        return Refused(413, "too_large", f"A request of more than {most} bytes came; send less at a time.")

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
