"""What to do where a backend is not there, is busy, or is lost: wait and try again, for as long as it makes sense.

The way to a backend: its address, the proxy before it, which certificates are trusted, what requests carry.

A connection to a backend over HTTP, which any thread can stop at once.
"""

from __future__ import annotations

import base64
import http.client
import io
import ipaddress
import json
import random
import re
import socket
import ssl
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from SDFSMISLib import __version__
from SDFSMISLib.client.errors import (
    BackendBusy,
    BackendError,
    BackendNotFound,
    BackendRefused,
    ConnectionLost,
    NotABackend,
    SlicesMissing,
    TlsRefused,
    refusal,
    version_mismatch,
)
from SDFSMISLib.errors import Cancelled, InputError
from SDFSMISLib.wire import PROTOCOL, PROTOCOL_HEADER, WireError, read_record

BUSY_SHARE = 15  # times its patience that it waits for a backend that is there and says when to come again
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 5.0  # seconds before trying again; doubled each time
MOST_IN_VAIN = 5  # streams that end without anything new before it is given up
LOOK = 0.25  # seconds between two looks at whether it was cancelled


class Trouble:
    """How long it goes on without anything new coming, not counting the time in which the backend answers."""

    def __init__(self, patience: float, name: str, interrupt: Interrupt) -> None:
        """
        Args:
            patience: seconds. name: of the backend, for people. interrupt: ends the waiting.
        """
        self._patience, self._name, self._interrupt = patience, name, interrupt
        self._spent = 0.0
        self._since: float | None = None
        self._tries = 0
        self._in_vain = 0
        self._most_sent = 0
        self._ordered = 0.0

    def outlast(
        self, error: BackendError, ask: Callable[[], None], on_trouble: Callable[[BackendError], None] | None = None
    ) -> None:
        """Wait until it makes sense to try again; raise where it does not.

        Args:
            ask: called while waiting; may raise.
            on_trouble: called with what is wrong, before it is waited.
        """
        seconds = self._pause(error)
        if seconds is None and isinstance(error, (BackendBusy, SlicesMissing)):
            raise error
        if seconds is None:
            raise ConnectionLost(
                f"The backend at {self._name} was lost and did not come back. Check the network and the backend, then "
                "try again."
            ) from error
        if on_trouble is not None and seconds:
            on_trouble(error)
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            ask()
            self._interrupt.wait(min(left, LOOK))
        ask()

    def connected(self) -> None:
        """The backend has taken the work on."""
        self._in_vain += 1
        if self._since is not None:
            self._spent += time.monotonic() - self._since
            self._since = None

    def over(self, sent: int | None = None) -> None:
        """Something new has come; or, given their number, more slices than ever were sent."""
        if sent is not None and sent <= self._most_sent:
            return
        self._most_sent = max(self._most_sent, sent or 0)
        self._spent, self._since, self._tries, self._ordered = 0.0, None, 0, 0.0
        self._in_vain = self._in_vain if sent is not None else 0

    def _pause(self, error: BackendError) -> float | None:
        """Seconds to wait before trying again; None where patience has come to its end."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if isinstance(error, SlicesMissing):
            self._in_vain += 1
            return 0.0 if self._in_vain <= MOST_IN_VAIN else None
        asked = error.retry_after if isinstance(error, BackendBusy) else None
        if asked is not None:  # the backend is there, and says when: that takes no patience, within bounds
            self._ordered += asked
            self._since += asked
            late = random.uniform(0, 1)  # clients come apart
            return asked + late if self._ordered <= BUSY_SHARE * self._patience else None
        seconds = min(LONGEST_PAUSE, FIRST_PAUSE * 2**self._tries) * random.uniform(0.5, 1)  # clients come apart
        self._tries = min(self._tries + 1, 16)
        spent = self._spent + now - self._since
        return None if self._in_vain > MOST_IN_VAIN or spent + seconds > self._patience else seconds


DEFAULT_PORT = 7861


@dataclass(frozen=True)
class Address:
    """Where a backend is. ``path`` is empty, or what stands before every route (``"/sdfsmis"``)."""

    scheme: str
    host: str
    port: int
    path: str = ""

    @classmethod
    def of(cls, url: str) -> Address:
        """The address that was typed: ``http`` is taken where no scheme stands, and then also the usual port.

        A backend that listens on 0.0.0.0 says so; one connects to 127.0.0.1.

        Raises:
            InputError: for what is no address of HTTP.
        """
        text = url.strip()
        try:
            parts = urllib.parse.urlsplit(text if "://" in text else f"http://{text}")
            host, port = parts.hostname or "", parts.port
        except ValueError:
            raise _no_address(url) from None
        if parts.scheme not in ("http", "https") or not re.fullmatch(r"[^\s/\\%@\x00-\x20]+", host) or port == 0:
            raise _no_address(url)
        if "@" in parts.netloc or parts.query or parts.fragment or re.search(r"[^!-~]", parts.path):
            raise _no_address(url)
        if port is None:
            port = {"http": 80, "https": 443}[parts.scheme] if "://" in text else DEFAULT_PORT
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return cls(parts.scheme, host, port, parts.path.rstrip("/"))

    @property
    def name(self) -> str:
        """``"host:port"``, for people and for the lines of HTTP."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.name}{self.path}"

    @property
    def is_local(self) -> bool:
        """Whether it is on this computer; no name is looked up for that."""
        with suppress(ValueError):
            return ipaddress.ip_address(self.host).is_loopback
        return self.host == "localhost"


def _no_address(url: str) -> InputError:
    return InputError(
        f"The address {url!r:.80} was given; a backend's address looks like localhost:{DEFAULT_PORT} or "
        "https://computer:443."
    )


def tls_context(ca_file: str | None) -> ssl.SSLContext:
    """What certificates are trusted: those of ``ca_file``, or those of this computer.

    Raises:
        InputError: where the file is not there or holds no certificate.
    """
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # ssl.SSLError is one
        raise InputError(f"{ca_file} cannot be read as certificates ({error}); give a PEM file.") from None


@dataclass(frozen=True)
class Proxy:
    """A proxy of HTTP, and the headers that it asks for."""

    host: str
    port: int
    headers: dict[str, str]

    @classmethod
    def of(cls, text: str, target: str) -> Proxy:
        """The proxy that an environment variable names on the way to the computer ``target``."""
        try:
            parts = urllib.parse.urlsplit(text if "://" in text else f"http://{text}")
            host, port = parts.hostname or "", parts.port or 80
        except ValueError:
            host = ""
        if not host or parts.scheme != "http":
            raise BackendNotFound(
                f"The proxy {text.rpartition('@')[2]!r:.80} of the environment cannot be used. Name an http proxy "
                f"there, or add {target} to NO_PROXY."
            )
        if parts.username is None:
            return cls(host, port, {})
        pair = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        return cls(host, port, {"Proxy-Authorization": "Basic " + base64.b64encode(pair.encode()).decode("ascii")})


@dataclass(frozen=True)
class Route:
    """How to connect to a backend: where it is, what is sent with every request, whom to trust, how long to wait."""

    address: Address
    token: str | None
    context: ssl.SSLContext | None
    timeout: float

    def proxy(self) -> Proxy | None:
        """The environment's proxy for this address; never one for this computer.

        Raises:
            BackendNotFound: where it is of a kind that is not understood.
        """
        address = self.address
        if address.is_local or urllib.request.proxy_bypass(address.name):
            return None
        proxies = urllib.request.getproxies()
        text = proxies.get(address.scheme) or proxies.get("all")
        return Proxy.of(text, address.host) if text else None

    def headers(self) -> dict[str, str]:
        headers = {"Accept": "*/*", "User-Agent": f"sdfsmis/{__version__}"}
        return headers | ({"Authorization": f"Bearer {self.token}"} if self.token else {})


CONNECT_SECONDS = 10.0  # the longest that connecting waits for an answer
MOST_ANSWER = 1 << 26  # bytes of an answer that is no stream; a list of missing slices has 67 for each
JSON_TYPE = "application/json"


class Interrupt:
    """Stops whatever is under way on several connections, from any thread; what they were doing ends as cancelled."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()

    def set(self) -> None:
        with self._lock:
            self._event.set()
            for open_socket in self._sockets:
                _shut(open_socket)

    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Waits; whether it was set meanwhile."""
        return self._event.wait(seconds)

    def add(self, open_socket: socket.socket) -> None:
        with self._lock:
            self._sockets.add(open_socket)
            if self._event.is_set():
                _shut(open_socket)

    def discard(self, open_socket: socket.socket) -> None:
        with self._lock:
            self._sockets.discard(open_socket)


def _shut(open_socket: socket.socket) -> None:
    """Ends a connection under the thread that reads from it. An SSLSocket's own method would take its state away."""
    with suppress(OSError):
        socket.socket.shutdown(open_socket, socket.SHUT_RDWR)


@dataclass(eq=False)
class Connection:
    """One connection to a backend, kept open from one request to the next; for one thread, closed by ``with``.

    All requests raise:
        BackendError: where there is no answer, or one that refuses.
        Cancelled: where ``interrupt`` was set.
    """

    route: Route
    interrupt: Interrupt
    _http: http.client.HTTPConnection | None = field(default=None, init=False)
    _socket: socket.socket | None = field(default=None, init=False)
    _proxy: Proxy | None = field(default=None, init=False)

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._socket is not None:
            self.interrupt.discard(self._socket)
            _shut(self._socket)  # an answer that is not read to its end would keep the connection open
        if self._http is not None:
            self._http.close()
        self._http = self._socket = None

    def ask(self, method: str, path: str, body: bytes = b"", media_type: str = JSON_TYPE) -> Any:
        """The JSON that a backend answers; None where it answers nothing."""
        response = self.open(method, path, body, media_type)
        data = self._read(response)
        try:
            return json.loads(data) if data else None
        except (ValueError, RecursionError):
            raise self._not_a_backend() from None

    def open(self, method: str, path: str, body: bytes = b"", media_type: str = JSON_TYPE) -> http.client.HTTPResponse:
        """The answer, not read yet, where it is one of success."""
        reused = self._http is not None and self._http.sock is not None
        try:
            try:
                response = self._send(method, path, body, media_type)
            except (ConnectionError, ssl.SSLError):
                if not reused or self.interrupt.is_set():
                    raise
                self.close()  # the backend had closed it while it was idle
                response = self._send(method, path, body, media_type)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise self.explained(error) from error
        if response.status >= 300 or response.headers.get(PROTOCOL_HEADER) != str(PROTOCOL):
            refused = self._refusal(response)
            self.close()  # it may not have read the request to its end
            raise refused
        return response

    def record(self, response: http.client.HTTPResponse, longest: int) -> dict[str, Any]:
        """The next record of a stream, of `longest` bytes at most."""
        try:
            line = response.readline(longest)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise self.explained(error) from error
        try:
            return read_record(line)
        except WireError as error:
            raise self.explained(http.client.IncompleteRead(line)) from error

    def explained(self, error: Exception) -> Exception:
        """What to raise where sending or receiving failed; closes the connection."""
        self.close()
        if self.interrupt.is_set():
            return self._cancelled()
        name = self.route.address.name
        if isinstance(error, http.client.HTTPException) and not isinstance(
            error, (http.client.RemoteDisconnected, http.client.IncompleteRead)
        ):
            return self._not_a_backend()
        if isinstance(error, TimeoutError):
            return ConnectionLost(f"The backend at {name} does not answer any more. Try again, or restart it.")
        return ConnectionLost(f"The connection to {name} broke. Check the network and the backend, then try again.")

    def _send(self, method: str, path: str, body: bytes, media_type: str) -> http.client.HTTPResponse:
        if self._http is None or self._http.sock is None:
            self._connect()
        assert self._http is not None
        headers = self.route.headers()
        if method in ("POST", "PUT"):
            headers |= {"Content-Type": media_type, "Content-Length": str(len(body))}
        target = self.route.address.path + path
        if self._proxy is not None and self.route.address.scheme == "http":
            target = f"http://{self.route.address.name}{target}"
            headers |= self._proxy.headers
        try:  # from a file the body goes in blocks, each with a time of its own
            self._http.request(method, target, io.BytesIO(body) if body else None, headers)
        except ConnectionError:
            with suppress(OSError, http.client.HTTPException):
                return self._http.getresponse()  # it was refused before it was sent whole
            raise
        return self._http.getresponse()

    def _connect(self) -> None:
        self.close()
        if self.interrupt.is_set():
            raise self._cancelled()
        route, address = self.route, self.route.address
        self._proxy = route.proxy()
        host, port = address.host, address.port
        if self._proxy is not None:
            host, port = self._proxy.host, self._proxy.port
        seconds = min(route.timeout, CONNECT_SECONDS)
        if address.scheme == "https":
            made: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, port, timeout=seconds, context=route.context
            )
            if self._proxy is not None:
                made.set_tunnel(address.host, address.port, self._proxy.headers)
        else:
            made = http.client.HTTPConnection(host, port, timeout=seconds)
        try:
            made.connect()
        except (OSError, UnicodeError, http.client.HTTPException) as error:
            made.close()
            raise (self._cancelled() if self.interrupt.is_set() else self._unreachable(error)) from error
        made.sock.settimeout(route.timeout)
        made.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._http, self._socket = made, made.sock
        self.interrupt.add(made.sock)

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        """An answer that is no stream."""
        try:
            data = response.read(MOST_ANSWER)
            left = response.read(1)
            if not left and response.length:  # bytes that were announced and did not come
                raise http.client.IncompleteRead(data, response.length)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise self.explained(error) from error
        if left:
            raise self._not_a_backend()
        return data

    def _cancelled(self) -> Cancelled:
        return Cancelled(f"What was asked of the backend at {self.route.address.name} was cancelled.")

    def _not_a_backend(self) -> NotABackend:
        self.close()
        address = self.route.address
        hint = "" if address.scheme == "https" else "; some backends need https:// before it"
        return NotABackend(
            f"What answers at {address.name} is no SDFSMIS backend. Correct the address and its port{hint}."
        )

    def _unreachable(self, error: Exception) -> BackendError:
        """Why connecting failed."""
        address, proxy = self.route.address, self._proxy
        through = f" through the proxy {proxy.host}" if proxy else ""
        if isinstance(error, ssl.SSLCertVerificationError):
            return TlsRefused(
                f"The certificate of {address.name} is not trusted ({error.verify_message}). Ask its keeper for the "
                "certificate's file (PEM) and give it as the server's certificate, or use the name that the "
                "certificate is made for."
            )
        if isinstance(error, ssl.SSLError):
            return NotABackend(f"{address.name} does not speak TLS. Write http:// instead of https:// if it is yours.")
        if isinstance(error, ConnectionRefusedError):
            if proxy:
                return BackendRefused(
                    f"The proxy {proxy.host}:{proxy.port}, which the environment names, refuses connections. Start "
                    f"it, or name {address.host} in the variable NO_PROXY."
                )
            return BackendRefused(f"No backend runs at {address.name}. Start it, or correct the address.")
        if isinstance(error, (socket.gaierror, UnicodeError)):
            host = proxy.host if proxy else address.host
            return BackendNotFound(
                f"There is no computer named {host} in this network. Correct the address, or connect to the network "
                "that it belongs to."
            )
        if isinstance(error, TimeoutError):
            return BackendNotFound(
                f"{address.name} does not answer{through}. Correct the address, or ask whether a firewall is between."
            )
        return BackendNotFound(f"{address.name} cannot be reached{through} ({error}). Check the address and network.")

    def _refusal(self, response: http.client.HTTPResponse) -> BackendError:
        """What an answer that is no success says."""
        status, headers, name = response.status, response.headers, self.route.address.name
        try:
            answer = json.loads(self._read(response))
        except (ValueError, RecursionError):
            answer = None
        theirs = headers.get(PROTOCOL_HEADER)
        if theirs is None:
            return self._foreign(status, headers.get("Location"))
        if theirs != str(PROTOCOL):
            return version_mismatch(name, theirs)
        fields = answer.get("error") if isinstance(answer, dict) else None
        fields = fields if isinstance(fields, dict) else {}
        wait = headers.get("Retry-After", "")
        retry_after = float(wait) if wait.isascii() and wait.isdigit() else None
        return refusal(name, status, str(fields.get("code", "")), str(fields.get("message", "")), retry_after)

    def _foreign(self, status: int, location: str | None) -> BackendError:
        """What an answer means that no backend of ours gave: something else, or a proxy before it."""
        name = self.route.address.name
        if status == 407:
            return BackendNotFound(
                "The proxy asks for a name and password. Put them into the proxy's address in the environment, or add "
                f"{self.route.address.host} to NO_PROXY."
            )
        if status in (502, 503, 504):
            return BackendRefused(f"{name} is there, and the backend behind it is not ({status}). Start it.")
        if location and 300 <= status < 400:
            self.close()
            return NotABackend(f"{name} sends on to {location!r:.80}. Give the address of the backend itself.")
        return self._not_a_backend()
