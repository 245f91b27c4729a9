"""HTTP connections to a backend: address, proxy and certificates; requests that any thread can stop; retries.

`Endpoint` holds what every connection needs, `Connection` sends requests and turns failures into a `BackendError` with
a sentence for the user, `Interrupt` stops several connections at once, `RetryPolicy` decides how long to wait before a
retry and when to give up.
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
    BackendNotRunning,
    BackendUnreachable,
    CertificateNotTrusted,
    ConnectionLost,
    NotABackend,
    SlicesMissing,
    error_of_answer,
    version_mismatch,
)
from SDFSMISLib.errors import Cancelled, InputError
from SDFSMISLib.wire import PROTOCOL, PROTOCOL_HEADER, WireError, read_record

BUSY_SHARE = 15  # times the patience, for a backend that is reachable and says when to come again
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 5.0  # seconds before trying again; doubled each time
MOST_WITHOUT_RESULT = 5  # streams in a row that end without a new result, before giving up
POLL_SECONDS = 0.25  # between two checks for cancellation


class RetryPolicy:
    """How long to wait after an error before trying again, and when to give up.

    Pauses double up to `LONGEST_PAUSE`. Giving up comes after ``patience`` seconds without progress, not counting the
    time during which the backend answers.
    """

    def __init__(self, patience: float, name: str, interrupt: Interrupt) -> None:
        """
        Args:
            patience: seconds. name: of the backend, for messages. interrupt: ends a pause.
        """
        self._patience, self._name, self._interrupt = patience, name, interrupt
        self._spent = 0.0  # seconds without a connection since the last progress, before `_since`
        self._since: float | None = None  # when the connection was lost
        self._tries = 0
        self._without_result = 0
        self._most_sent = 0
        self._requested_pauses = 0.0

    def wait_or_raise(
        self,
        error: BackendError,
        raise_if_cancelled: Callable[[], None],
        on_retry: Callable[[BackendError], None] | None = None,
    ) -> None:
        """Wait before the next try, or raise if there should be none.

        Args:
            raise_if_cancelled: called several times a second.
            on_retry: called with the error before a pause.

        Raises:
            ConnectionLost: at the end of the patience.
            BackendError: ``error`` itself, if it says that the backend is busy or does not keep slices.
        """
        seconds = self._pause(error)
        if seconds is None and isinstance(error, (BackendBusy, SlicesMissing)):
            raise error
        if seconds is None:
            raise ConnectionLost(
                f"The backend at {self._name} was lost and did not come back. Check the network and the backend, then "
                "try again."
            ) from error
        if on_retry is not None and seconds:
            on_retry(error)
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            raise_if_cancelled()
            self._interrupt.wait(min(left, POLL_SECONDS))
        raise_if_cancelled()

    def connected(self) -> None:
        """The backend has accepted the run."""
        self._without_result += 1
        if self._since is not None:
            self._spent += time.monotonic() - self._since
            self._since = None

    def resolved(self, sent: int | None = None) -> None:
        """There is progress: a new result has come or, if ``sent`` is given, more slices are sent than ever before."""
        if sent is not None and sent <= self._most_sent:
            return
        self._most_sent = max(self._most_sent, sent or 0)
        self._spent, self._since, self._tries, self._requested_pauses = 0.0, None, 0, 0.0
        self._without_result = self._without_result if sent is not None else 0

    def _pause(self, error: BackendError) -> float | None:
        """Seconds to wait before the next try; None = give up."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if isinstance(error, SlicesMissing):
            self._without_result += 1
            return 0.0 if self._without_result <= MOST_WITHOUT_RESULT else None
        requested = error.retry_after if isinstance(error, BackendBusy) else None
        if requested is not None:  # the backend is reachable: within bounds, this takes nothing from the patience
            self._requested_pauses += requested
            self._since += requested
            jitter = random.uniform(0, 1)  # so that clients do not come all at once
            return requested + jitter if self._requested_pauses <= BUSY_SHARE * self._patience else None
        seconds = min(LONGEST_PAUSE, FIRST_PAUSE * 2**self._tries) * random.uniform(0.5, 1)
        self._tries = min(self._tries + 1, 16)
        spent = self._spent + now - self._since
        return None if self._without_result > MOST_WITHOUT_RESULT or spent + seconds > self._patience else seconds


DEFAULT_PORT = 7861


@dataclass(frozen=True)
class Address:
    """The address of a backend. ``path`` is empty, or the prefix of every route (``"/sdfsmis"``).

    >>> Address.of("gpu-server")
    Address(scheme='http', host='gpu-server', port=7861, path='')
    >>> Address.of("https://hospital.example/sdfsmis/").url
    'https://hospital.example:443/sdfsmis'
    """

    scheme: str
    host: str
    port: int
    path: str = ""

    @classmethod
    def of(cls, url: str) -> Address:
        """Parse a typed address: without a scheme it is http, on port 7861 if no port is given.

        0.0.0.0, on which a backend may listen, becomes 127.0.0.1.

        Raises:
            InputError: for anything but an HTTP address.
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
        """``"host:port"``, for messages and for HTTP requests."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """The address as a URL, without a trailing slash."""
        return f"{self.scheme}://{self.name}{self.path}"

    @property
    def is_local(self) -> bool:
        """Whether it is this computer, by its text alone: no name is looked up."""
        with suppress(ValueError):
            return ipaddress.ip_address(self.host).is_loopback
        return self.host == "localhost"


def _no_address(url: str) -> InputError:
    return InputError(
        f"The address {url!r:.80} was given; a backend's address looks like localhost:{DEFAULT_PORT} or "
        "https://computer:443."
    )


def tls_context(ca_file: str | None) -> ssl.SSLContext:
    """A TLS context that trusts the certificates of ``ca_file``, or if it is None those of this computer.

    Raises:
        InputError: if the file is missing or holds no certificate.
    """
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # ssl.SSLError is one
        raise InputError(f"{ca_file} cannot be read as certificates ({error}); give a PEM file.") from None


@dataclass(frozen=True)
class Proxy:
    """An HTTP proxy, and the headers with its name and password."""

    host: str
    port: int
    headers: dict[str, str]

    @classmethod
    def of(cls, text: str, target: str) -> Proxy:
        """Parse an environment variable's proxy; ``target`` is the computer to reach, for messages."""
        try:
            parts = urllib.parse.urlsplit(text if "://" in text else f"http://{text}")
            host, port = parts.hostname or "", parts.port or 80
        except ValueError:
            host = ""
        if not host or parts.scheme != "http":
            raise BackendUnreachable(
                f"The proxy {text.rpartition('@')[2]!r:.80} of the environment cannot be used. Name an http proxy "
                f"there, or add {target} to NO_PROXY."
            )
        if parts.username is None:
            return cls(host, port, {})
        pair = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        return cls(host, port, {"Proxy-Authorization": "Basic " + base64.b64encode(pair.encode()).decode("ascii")})


@dataclass(frozen=True)
class Endpoint:
    """How to connect to a backend: address, token, trusted certificates (None for http), timeout in seconds."""

    address: Address
    token: str | None
    context: ssl.SSLContext | None
    timeout: float

    def proxy(self) -> Proxy | None:
        """The environment's proxy for this address; None for this computer.

        Raises:
            BackendUnreachable: if the proxy is not an HTTP proxy.
        """
        address = self.address
        if address.is_local or urllib.request.proxy_bypass(address.name):
            return None
        proxies = urllib.request.getproxies()
        text = proxies.get(address.scheme) or proxies.get("all")
        return Proxy.of(text, address.host) if text else None

    def headers(self) -> dict[str, str]:
        """The headers of every request, the token among them."""
        headers = {"Accept": "*/*", "User-Agent": f"sdfsmis/{__version__}"}
        return headers | ({"Authorization": f"Bearer {self.token}"} if self.token else {})


CONNECT_SECONDS = 10.0  # the longest that connecting waits for an answer
MOST_ANSWER = 1 << 26  # bytes of an answer that is no stream; a list of missing slices has 67 for each
JSON_TYPE = "application/json"


class Interrupt:
    """Stops several connections at once, from any thread; their requests raise `Cancelled`.

    >>> interrupt = Interrupt()
    >>> with Connection(Endpoint(Address.of("localhost"), None, None, 1.0), interrupt) as connection:
    ...     interrupt.set()
    ...     connection.request("GET", "/healthz")
    Traceback (most recent call last):
    SDFSMISLib.errors.Cancelled: What was asked of the backend at localhost:7861 was cancelled.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()

    def set(self) -> None:
        """Shut all connections down, also those that are added later."""
        with self._lock:
            self._event.set()
            for open_socket in self._sockets:
                _shut(open_socket)

    def is_set(self) -> bool:
        """Whether :meth:`set` was called."""
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait until it is set, ``seconds`` at most; whether it is set."""
        return self._event.wait(seconds)

    def add(self, open_socket: socket.socket) -> None:
        """Register a connection to be shut down."""
        with self._lock:
            self._sockets.add(open_socket)
            if self._event.is_set():
                _shut(open_socket)

    def discard(self, open_socket: socket.socket) -> None:
        """Forget a connection."""
        with self._lock:
            self._sockets.discard(open_socket)


def _shut(open_socket: socket.socket) -> None:
    """Ends a connection while another thread reads from it; an SSLSocket's own method would take its state away."""
    with suppress(OSError):
        socket.socket.shutdown(open_socket, socket.SHUT_RDWR)


@dataclass(eq=False)
class Connection:
    """One connection to a backend, kept open between requests; for one thread, closed by ``with``.

    All requests raise:
        BackendError: if there is no answer, or an error.
        Cancelled: if ``interrupt`` was set.
    """

    endpoint: Endpoint
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
        """Close the connection; the next request opens a new one."""
        if self._socket is not None:
            self.interrupt.discard(self._socket)
            _shut(self._socket)  # an answer that is not read to its end would keep the connection open
        if self._http is not None:
            self._http.close()
        self._http = self._socket = None

    def request_json(self, method: str, path: str, body: bytes = b"", media_type: str = JSON_TYPE) -> Any:
        """The JSON of an answer; None if it is empty."""
        response = self.request(method, path, body, media_type)
        data = self._read(response)
        try:
            return json.loads(data) if data else None
        except (ValueError, RecursionError):
            raise self._not_a_backend() from None

    def request(
        self, method: str, path: str, body: bytes = b"", media_type: str = JSON_TYPE
    ) -> http.client.HTTPResponse:
        """The answer, its body not read yet; raises a `BackendError` for one with an error status."""
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
            raise self.translated(error) from error
        if response.status >= 300 or response.headers.get(PROTOCOL_HEADER) != str(PROTOCOL):
            answered = self._answered_error(response)
            self.close()  # it may not have read the request to its end
            raise answered
        return response

    def next_record(self, response: http.client.HTTPResponse, longest: int) -> dict[str, Any]:
        """The next record of a stream, of `longest` bytes at most."""
        try:
            line = response.readline(longest)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise self.translated(error) from error
        try:
            return read_record(line)
        except WireError as error:
            raise self.translated(http.client.IncompleteRead(line)) from error

    def translated(self, error: Exception) -> Exception:
        """The exception to raise after sending or receiving failed; closes the connection."""
        self.close()
        if self.interrupt.is_set():
            return self._cancelled()
        name = self.endpoint.address.name
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
        headers = self.endpoint.headers()
        if method in ("POST", "PUT"):
            headers |= {"Content-Type": media_type, "Content-Length": str(len(body))}
        target = self.endpoint.address.path + path
        if self._proxy is not None and self.endpoint.address.scheme == "http":
            target = f"http://{self.endpoint.address.name}{target}"
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
        endpoint, address = self.endpoint, self.endpoint.address
        self._proxy = endpoint.proxy()
        host, port = address.host, address.port
        if self._proxy is not None:
            host, port = self._proxy.host, self._proxy.port
        seconds = min(endpoint.timeout, CONNECT_SECONDS)
        if address.scheme == "https":
            made: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, port, timeout=seconds, context=endpoint.context
            )
            if self._proxy is not None:
                made.set_tunnel(address.host, address.port, self._proxy.headers)
        else:
            made = http.client.HTTPConnection(host, port, timeout=seconds)
        try:
            made.connect()
        except (OSError, UnicodeError, http.client.HTTPException) as error:
            made.close()
            raise (self._cancelled() if self.interrupt.is_set() else self._connect_error(error)) from error
        made.sock.settimeout(endpoint.timeout)
        made.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._http, self._socket = made, made.sock
        self.interrupt.add(made.sock)

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        """The whole body of an answer."""
        try:
            data = response.read(MOST_ANSWER)
            left = response.read(1)
            if not left and response.length:  # bytes that were announced and did not come
                raise http.client.IncompleteRead(data, response.length)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise self.translated(error) from error
        if left:
            raise self._not_a_backend()
        return data

    def _cancelled(self) -> Cancelled:
        return Cancelled(f"What was asked of the backend at {self.endpoint.address.name} was cancelled.")

    def _not_a_backend(self) -> NotABackend:
        self.close()
        address = self.endpoint.address
        hint = "" if address.scheme == "https" else "; some backends need https:// before it"
        return NotABackend(
            f"What answers at {address.name} is no SDFSMIS backend. Correct the address and its port{hint}."
        )

    def _connect_error(self, error: Exception) -> BackendError:
        """The error for a failed attempt to connect."""
        address, proxy = self.endpoint.address, self._proxy
        through = f" through the proxy {proxy.host}" if proxy else ""
        if isinstance(error, ssl.SSLCertVerificationError):
            return CertificateNotTrusted(
                f"The certificate of {address.name} is not trusted ({error.verify_message}). Ask its keeper for the "
                "certificate's file (PEM) and give it as the server's certificate, or use the name that the "
                "certificate is made for."
            )
        if isinstance(error, ssl.SSLError):
            return NotABackend(f"{address.name} does not speak TLS. Write http:// instead of https:// if it is yours.")
        if isinstance(error, ConnectionRefusedError):
            if proxy:
                return BackendNotRunning(
                    f"The proxy {proxy.host}:{proxy.port}, which the environment names, refuses connections. Start "
                    f"it, or name {address.host} in the variable NO_PROXY."
                )
            return BackendNotRunning(f"No backend runs at {address.name}. Start it, or correct the address.")
        if isinstance(error, (socket.gaierror, UnicodeError)):
            host = proxy.host if proxy else address.host
            return BackendUnreachable(
                f"There is no computer named {host} in this network. Correct the address, or connect to the network "
                "that it belongs to."
            )
        if isinstance(error, TimeoutError):
            return BackendUnreachable(
                f"{address.name} does not answer{through}. Correct the address, or ask whether a firewall is between."
            )
        return BackendUnreachable(
            f"{address.name} cannot be reached{through} ({error}). Check the address and network."
        )

    def _answered_error(self, response: http.client.HTTPResponse) -> BackendError:
        """The error that an answer with an error status stands for."""
        status, headers, name = response.status, response.headers, self.endpoint.address.name
        try:
            answer = json.loads(self._read(response))
        except (ValueError, RecursionError):
            answer = None
        theirs = headers.get(PROTOCOL_HEADER)
        if theirs is None:
            return self._error_of_other_program(status, headers.get("Location"))
        if theirs != str(PROTOCOL):
            return version_mismatch(name, theirs)
        fields = answer.get("error") if isinstance(answer, dict) else None
        fields = fields if isinstance(fields, dict) else {}
        wait = headers.get("Retry-After", "")
        retry_after = float(wait) if wait.isascii() and wait.isdigit() else None
        return error_of_answer(name, status, str(fields.get("code", "")), str(fields.get("message", "")), retry_after)

    def _error_of_other_program(self, status: int, location: str | None) -> BackendError:
        """The error for an answer of another program than a backend, such as a proxy."""
        name = self.endpoint.address.name
        if status == 407:
            return BackendUnreachable(
                "The proxy asks for a name and password. Put them into the proxy's address in the environment, or add "
                f"{self.endpoint.address.host} to NO_PROXY."
            )
        if status in (502, 503, 504):
            return BackendNotRunning(f"{name} is there, and the backend behind it is not ({status}). Start it.")
        if location and 300 <= status < 400:
            self.close()
            return NotABackend(f"{name} sends on to {location!r:.80}. Give the address of the backend itself.")
        return self._not_a_backend()
