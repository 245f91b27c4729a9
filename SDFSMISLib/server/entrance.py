"""Where clients come in: an address, the tokens that are accepted there, and what is told when it is open."""

from __future__ import annotations

import json
import os
import secrets
import socket
import ssl
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass

from SDFSMISLib import __version__
from SDFSMISLib.console import say
from SDFSMISLib.errors import InputError
from SDFSMISLib.server.access import check_token, read_tokens
from SDFSMISLib.server.settings import ServeSettings

__all__ = ["Entrance", "when_stdin_closes"]

TOKEN_VARIABLE = "SDFSMIS_TOKEN"
BACKLOG = 2048  # connections that wait to be taken


@dataclass(frozen=True, eq=False)
class Entrance:
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
    def of(cls, settings: ServeSettings) -> Entrance:
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

    def tell_open(self, what: str, seconds: float) -> None:
        """The line of JSON for programs, on standard output, and a sentence for people.

        Args:
            what: serves here.
            seconds: that a slice takes.
        """
        say(f"SDFSMIS {__version__} at {self.url}, {what}, about {seconds:.2g} s a slice. Ctrl+C stops it.")
        print(json.dumps({"url": self.url, "version": __version__}), flush=True)


def when_stdin_closes(end: Callable[[], None]) -> None:
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
