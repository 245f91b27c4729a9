"""A backend for tests of the client: it keeps the wire contract, segments by a formula, and fails as it is told to.

Also a proxy that writes down what passes it, and servers that are no backend.
"""

from __future__ import annotations

import json
import socket
import ssl
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from SDFSMISLib.server.schema import PaintedSlice, Query
from SDFSMISLib.wire import (
    PROTOCOL,
    PROTOCOL_HEADER,
    content_address,
    pack_probability,
    split_slices,
    unpack_array,
    write_record,
)

LIMITS = {
    "slice_pixels": 10_000,
    "slices": 100,
    "shots": 5,
    "labels": 4,
    "body_bytes": 1 << 20,
    "store_bytes": 1 << 20,
    "queue": 8,
}


@dataclass
class Fault:
    """What happens to one request for a segmentation, in this order.

    Attributes:
        forget: the backend has lost all slices before.
        status, code: refused with them (and with ``retry_after`` seconds).
        after: the stream is broken after so many records. None = it is not.
        instead: bytes that come instead of the record that would be next: a part of it, or a damaged one.
        error: code of an error record that comes in its place.
        silent: nothing more comes, the connection stays open until the client closes it.
    """

    forget: bool = False
    status: int = 0
    code: str = "queue_full"
    retry_after: str = "0"
    after: int | None = None
    instead: Callable[[bytes], bytes] = lambda line: b""
    error: str = ""
    silent: bool = False


@dataclass(eq=False)
class SmallBackend:
    token: str | None = None
    protocol: int = PROTOCOL
    limits: dict[str, int] = field(default_factory=lambda: dict(LIMITS))
    weights: str = "w1"
    model: dict[str, Any] = field(default_factory=dict)
    accepted: dict[str, list[str]] = field(
        default_factory=lambda: {"strategy": ["propagate", "independent"], "region": ["auto", "full"]}
    )
    drop_idle: bool = False
    """closes each connection behind an answer, without a word"""
    put_status: int = 0
    """refuses slices with it"""
    hold_puts: bool = False
    """takes a slice and does not answer until the client has gone"""
    first_puts: threading.Barrier | None = None
    """the first slice of each connection is answered when those of all are there"""

    def __post_init__(self) -> None:
        self.store: dict[str, np.ndarray] = {}
        self.requests: list[tuple[str, str]] = []
        self.sizes: list[int] = []
        self.uploads: list[list[str]] = []
        self.asked: list[dict[str, Any]] = []
        self.peers: set[int] = set()
        self.faults: deque[Fault] = deque()
        self.left = threading.Event()
        """a client closed the connection on which it waited"""
        self.reached = threading.Event()
        """a client waits for it now"""

    def puts(self) -> list[str]:
        """The addresses of all slices that were sent, in their order."""
        return [address for addresses in self.uploads for address in addresses]

    def serve(self, context: ssl.SSLContext | None = None) -> Any:
        return _serving(self, context)


def answer(image: np.ndarray, label: int) -> np.ndarray:
    """The probability that the small backend gives for a slice; zero on many."""
    values = np.abs(image.astype(np.float64)) % 256
    return np.where(values > 200, np.minimum(values + label, 255), 0).astype(np.uint8)


class _Server(ThreadingHTTPServer):
    daemon_threads, block_on_close = True, False

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # clients that leave are what is tested
            super().handle_error(request, client_address)


@contextmanager
def _serving(backend: SmallBackend, context: ssl.SSLContext | None) -> Iterator[str]:
    handler = type("Handler", (_Handler,), {"backend": backend})
    server = _Server(("127.0.0.1", 0), handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"{'http' if context is None else 'https'}://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    backend: SmallBackend
    first_put = True

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _respond(self) -> None:
        backend = self.backend
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path
        backend.requests.append((self.command, path))
        backend.peers.add(self.client_address[1])
        if backend.token is not None and self.headers.get("Authorization") != f"Bearer {backend.token}":
            given = "token_wrong" if "Authorization" in self.headers else "token_missing"
            self._refuse(401, given)
        elif (self.command, path) == ("GET", "/capabilities"):
            self._answer(200, self._capabilities())
        elif (self.command, path) == ("POST", "/slices/missing"):
            missing = [one for one in json.loads(body)["slices"] if one not in backend.store]
            self._answer(200, {"missing": missing})
        elif (self.command, path) == ("PUT", "/slices"):
            self._put(dict(split_slices(body)))
        elif (self.command, path) == ("POST", "/segmentations"):
            self._segment(json.loads(body))
        else:
            self._refuse(404, "not_found")
        if backend.drop_idle:
            self.close_connection = True

    do_GET = do_POST = do_PUT = _respond  # noqa: N815

    def _put(self, slices: dict[str, memoryview]) -> None:
        backend = self.backend
        backend.uploads.append(list(slices))
        if backend.first_puts is not None and self.first_put:
            self.first_put = False
            backend.first_puts.wait()
        if backend.hold_puts:
            self._wait_until_left()
            return
        if backend.put_status:
            self._refuse(backend.put_status, "too_large")
            return
        is_new = not slices.keys() <= backend.store.keys()
        for address, packed in slices.items():
            array = unpack_array(packed, 1 << 20)
            assert content_address(array) == address
            backend.sizes.append(len(packed))
            backend.store[address] = array
        self._answer(201 if is_new else 200, None)

    def _capabilities(self) -> dict[str, Any]:
        return {
            "name": "sdfsmis",
            "version": "9.9",
            "protocol": self.backend.protocol,
            "models": [
                {"name": "small", "weights_sha256": self.backend.weights, "resolution": 64, **self.backend.model}
            ],
            "device": {"name": "a processor", "kind": "cpu"},
            "seconds_per_slice": 0.5,
            "strategies": self.backend.accepted["strategy"],
            "regions": self.backend.accepted["region"],
            "limits": self.backend.limits,
            "queue": {"running": 0},
        }

    def _refuse(self, status: int, code: str, headers: dict[str, str] | None = None, **more: object) -> None:
        self._answer(status, {"error": {"code": code, "message": f"It is {code}.", **more}}, headers)

    def _answer(self, status: int, content: object, headers: dict[str, str] | None = None) -> None:
        body = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        self.send_header(PROTOCOL_HEADER, str(self.backend.protocol))
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _segment(self, asked: dict[str, Any]) -> None:
        backend = self.backend
        backend.asked.append(asked)
        fault = backend.faults.popleft() if backend.faults else Fault()
        if fault.forget:
            backend.store.clear()
        if fault.status:
            self._refuse(fault.status, fault.code, {"Retry-After": fault.retry_after} if fault.retry_after else None)
            return
        addresses = [address for _, address in asked["query"]["slices"]]
        addresses += [one["slice"] for one in asked["support"] if one["slice"] is not None]
        missing = [address for address in addresses if address not in backend.store]
        if missing:
            self._refuse(409, "slices_missing", missing=missing)
            return
        self.send_response(200)
        self.send_header(PROTOCOL_HEADER, str(backend.protocol))
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number, record in enumerate(records(asked, backend)):
            line = write_record(record)
            if number == fault.after:
                self._break(fault, line)
                return
            self._chunk(line)
        self.wfile.write(b"0\r\n\r\n")

    def _break(self, fault: Fault, line: bytes) -> None:
        instead = fault.instead(line)
        if fault.error:
            instead = write_record({"type": "error", "code": fault.error, "message": f"It is {fault.error}."})
        if instead:
            self._chunk(instead)
        if fault.silent:
            self._wait_until_left()
        self.close_connection = True
        with suppress(OSError):
            socket.socket.shutdown(self.connection, socket.SHUT_RDWR)

    def _wait_until_left(self) -> None:
        self.backend.reached.set()
        with suppress(OSError):
            self.connection.recv(1)
        self.backend.left.set()
        self.close_connection = True

    def _chunk(self, data: bytes) -> None:
        with suppress(OSError):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))


def records(asked: dict[str, Any], backend: SmallBackend) -> Iterator[dict[str, Any]]:
    """The records of a run: a lane before each slice, a sign of life behind the first, what was found first of all.

    Each label is followed along all axes; with several, the slices of the main one come once more in the end.
    """
    sent = dict(asked["query"]["slices"])
    stacks = Query.model_validate(asked["query"]).slice_stacks(lambda index: backend.store[sent[index]])
    main, *others = stacks
    painted = set()
    for one in asked["support"]:
        image = stacks[one["axis"]].read(one["index"]) if one["slice"] is None else backend.store[one["slice"]]
        piece = PaintedSlice.model_validate(one).support_slice(image)
        if piece.plane.scan == stacks[main].plane.scan and piece.plane.axis in stacks:
            painted |= {(label, one["axis"], one["index"]) for label in asked["labels"] if piece.mask(label).any()}
    wanted = {axis: stack.wanted(asked["slices"] if axis == main else None) for axis, stack in stacks.items()}
    every = [(label, axis, index) for axis in stacks for label in asked["labels"] for index in wanted[axis]]
    places = [place for place in every if place not in painted]
    known = {(one["label"], one["axis"], one["index"]) for one in asked["finished"]}
    lanes = {(one["label"], one["axis"], one["index"]) for one in asked["lanes"]}
    yield {
        "type": "start",
        "protocol": backend.protocol,
        "version": "9.9",
        "model": "small",
        "weights_sha256": backend.weights,
        "device": "a processor",
        "total": len(places),
        "labels": [{"label": label, "axes": [*stacks], "fused": bool(others)} for label in asked["labels"]],
        "warnings": ["They are unlike."],
    }
    yield {"type": "alive", "ahead": 2}
    if not painted and asked["found"] is None and asked["strategy"] == "propagate":
        first = pack_probability(answer(stacks[main].read(0), 1))
        yield {"type": "found", "starts": [{"label": 1, "axis": main, "index": 0, **first}]}
    counted = {"certainty": 0.5, "finished": 1, "total": len(places)}
    for label, axis, index in places:
        place = {"label": label, "axis": axis, "index": index}
        probability = pack_probability(answer(stacks[axis].read(index), label))
        if (label, axis, index) not in lanes:
            yield {"type": "lane", **place, "start": 0, **probability}
        if (label, axis, index) not in known:
            yield {"type": "slice", **place, "stage": "preview" if others else "final", **probability, **counted}
    for label, axis, index in places if others else ():
        if axis == main:
            probability = pack_probability(answer(stacks[axis].read(index), label))
            yield {
                "type": "slice",
                "label": label,
                "axis": axis,
                "index": index,
                "stage": "final",
                **probability,
                **counted,
            }
    yield {"type": "later version", "what": "is not known"}
    yield {"type": "end", "slices": len(places), "seconds": {"total": 2.0, "waiting": 0.5, "computing": 1.5}}


@contextmanager
def listening(respond: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server of raw bytes; the port it listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def work() -> None:
            with suppress(OSError):
                while True:
                    connection = server.accept()[0]
                    threading.Thread(target=run, args=(connection,), daemon=True).start()

        def run(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                respond(connection)

        threading.Thread(target=work, daemon=True).start()
        yield server.getsockname()[1]
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)  # else the thread would wait on


def closed_port() -> int:
    """A port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@dataclass(eq=False)
class Proxy:
    """A proxy on loopback that leads every name to one port and keeps the heads of what it was asked."""

    target: int
    refuse: bytes = b""
    heads: list[str] = field(default_factory=list)

    @contextmanager
    def serve(self) -> Iterator[int]:
        with listening(self._respond) as port:
            yield port

    def _respond(self, client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(1)
        self.heads.append(head.decode())
        if self.refuse:
            client.sendall(self.refuse)
            return
        with socket.create_connection(("127.0.0.1", self.target)) as onward:
            if head.startswith(b"CONNECT"):
                client.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
            else:
                onward.sendall(head)
            back = threading.Thread(target=_pump, args=(onward, client), daemon=True)
            back.start()
            _pump(client, onward)
            back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
