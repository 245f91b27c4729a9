"""Sending slices to a backend: each once, those that it has not at all, one at a time in memory on each connection."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from SDFSMISLib.client.capabilities import Limits
from SDFSMISLib.client.connection import Connection, Interrupt, Route
from SDFSMISLib.client.errors import NotABackend
from SDFSMISLib.errors import Cancelled
from SDFSMISLib.slices import SliceStack
from SDFSMISLib.support import SupportSlice
from SDFSMISLib.wire import ARRAY_TYPE, content_address, pack_array, support_image_for_wire

__all__ = ["OnProgress", "Shipment", "send", "shipment_of"]

CONNECTIONS = 4  # to another computer, whose answers are waited for; on this one compressing would only cost time
LOOK = 0.1  # seconds between two looks at whether it was cancelled

OnProgress = Callable[[int, int], None]
"""Called with the number of slices that the backend has and the number that it needs, in the caller's thread."""


@dataclass(frozen=True, eq=False)
class Shipment:
    """The slices that a run needs on the backend.

    Attributes:
        query: content addresses of the scan's slices, by index.
        support: those of the painted slices' images, in the order of the pieces.
        arrays: what gives each slice, by address.
        size: bytes of all, each once, in memory.
    """

    query: dict[int, str]
    support: list[str]
    arrays: dict[str, Callable[[], np.ndarray]]
    size: int


def shipment_of(
    stack: SliceStack, indices: Sequence[int], pieces: Sequence[SupportSlice], ask: Callable[[], None]
) -> Shipment:
    """The slices ``indices`` of a stack and the images of painted slices, looked at one by one.

    Args:
        ask: called before each slice; may raise.
    """
    arrays: dict[str, Callable[[], np.ndarray]] = {}
    size = 0

    def addressed(read: Callable[[], np.ndarray]) -> str:
        nonlocal size
        ask()
        array = read()
        address = content_address(array)
        if address not in arrays:
            arrays[address] = read
            size += array.nbytes
        return address

    query = {index: addressed(partial(stack.read, index)) for index in indices}
    support = [addressed(partial(_image, stack, piece)) for piece in pieces]
    return Shipment(query, support, arrays, size)


def send(
    connection: Connection,
    shipment: Shipment,
    limits: Limits,
    on_progress: OnProgress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> None:
    """Send those slices of a shipment that the backend has not.

    Args:
        connection: for asking what is missing; the slices go over others, which its interrupt stops too.
        cancel: asked while sending; True stops it.

    Raises:
        ScanTooLarge: where the backend does not take so much.
        BackendError: for all else that can go wrong with it.
        Cancelled: where `cancel` said so, or the interrupt was set.
    """
    limits.check_store(shipment.size)
    missing = _missing(connection, shipment)
    done, total = len(shipment.arrays) - len(missing), len(shipment.arrays)
    if on_progress is not None:
        on_progress(done, total)
    sending = _Sending(connection.route, connection.interrupt, limits, shipment, missing)
    try:
        while done < total:
            if cancel is not None and cancel():
                raise Cancelled("Sending the slices was cancelled.")
            done += sending.sent(LOOK)
            if on_progress is not None:
                on_progress(done, total)
    except (Cancelled, KeyboardInterrupt):
        connection.interrupt.set()
        raise
    finally:
        sending.stop()


def _missing(connection: Connection, shipment: Shipment) -> list[str]:
    """The addresses that the backend asks for."""
    answer = connection.ask("POST", "/slices/missing", json.dumps({"slices": list(shipment.arrays)}).encode())
    missing = answer.get("missing") if isinstance(answer, dict) else None
    if not isinstance(missing, list) or not all(isinstance(one, str) and one in shipment.arrays for one in missing):
        raise NotABackend(
            f"What answers at {connection.route.address.name} asks for slices that it was not told of. Update it."
        )
    return list(dict.fromkeys(missing))


def _image(stack: SliceStack, piece: SupportSlice) -> np.ndarray:
    """A painted slice's image as it is sent."""
    lies_here = piece.scan == stack.scan and piece.axis == stack.axis and piece.index < stack.count
    return support_image_for_wire(piece, stack.read(piece.index) if lies_here else None)


class _Sending:
    """Threads that send slices, each over a connection of its own."""

    def __init__(
        self, route: Route, interrupt: Interrupt, limits: Limits, shipment: Shipment, missing: Sequence[str]
    ) -> None:
        self._route, self._interrupt, self._limits, self._arrays = route, interrupt, limits, shipment.arrays
        self._compress = not route.address.is_local
        self._open: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._reading = threading.Lock()
        for address in missing:
            self._open.put(address)
        count = min(CONNECTIONS if self._compress else 1, len(missing))
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def sent(self, seconds: float) -> int:
        """How many slices were sent meanwhile, waiting for the first so long; raises what a thread failed by."""
        count = 0
        try:
            while True:
                outcome = self._done.get(timeout=0 if count else seconds)
                if outcome is not None:
                    raise outcome
                count += 1
        except queue.Empty:
            return count

    def stop(self) -> None:
        """End after the slices that are under way."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        try:
            with Connection(self._route, self._interrupt) as connection:
                while not self._stop.is_set():
                    self._send(connection, self._open.get_nowait())
                    self._done.put(None)
        except queue.Empty:
            pass
        except BaseException as error:
            self._done.put(error)

    def _send(self, connection: Connection, address: str) -> None:
        with self._reading:  # what reads a scan need not be made for several threads
            array = self._arrays[address]()
        packed = pack_array(array, self._compress)
        self._limits.check_body(len(packed))
        connection.ask("PUT", f"/slices/{address}", packed, ARRAY_TYPE)
