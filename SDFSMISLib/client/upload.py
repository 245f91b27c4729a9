"""Sending slices to a backend: each once, and only those that it lacks; a few at a time in one request."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from SDFSMISLib.client.capabilities import Limits
from SDFSMISLib.client.connection import Connection, Endpoint, Interrupt
from SDFSMISLib.client.errors import NotABackend
from SDFSMISLib.errors import Cancelled
from SDFSMISLib.slices import SliceStack
from SDFSMISLib.support import SupportSlice
from SDFSMISLib.wire import ARRAY_TYPE, content_address, join_slices, pack_array, same_image, support_image_for_wire

__all__ = ["OnProgress", "SliceUpload", "plan_upload", "send_missing"]

CONNECTIONS = 4  # to another computer, to hide its latency; a backend on this computer gets one, uncompressed
UPLOAD_BYTES = 1 << 20  # of one request, which is lost if its connection breaks; many proxies take no more
LOCAL_UPLOAD_BYTES = 4 << 20  # of one request to a backend on this computer
GROUP_BYTES = 8 << 20  # in memory, of the slices that one connection sends in a row
POLL_SECONDS = 0.1  # between two checks for cancellation

OnProgress = Callable[[int, int], None]
"""Called with the number of slices that the backend has and the number that it needs, in the caller's thread."""


@dataclass(frozen=True, eq=False)
class SliceUpload:
    """The slices that a run needs on the backend.

    Attributes:
        query: content addresses of the scan's slices along its main axis, by index.
        support: content addresses of the images of the painted slices, in their order; None = the backend cuts it.
        arrays: reads the array of an address.
        sizes: bytes in memory of the array of an address.
    """

    query: dict[int, str]
    support: list[str | None]
    arrays: dict[str, Callable[[], np.ndarray]]
    sizes: dict[str, int]


def plan_upload(
    stacks: Mapping[int, SliceStack],
    indices: Sequence[int],
    support: Sequence[SupportSlice],
    raise_if_cancelled: Callable[[], None],
) -> SliceUpload:
    """Read slices and the images of painted slices one by one, for their addresses.

    Args:
        stacks: the slices along each axis of the run, by axis, the main one first.
        indices: of the slices to send, along the main axis.
        raise_if_cancelled: called before each slice.
    """
    main = next(iter(stacks.values()))
    arrays: dict[str, Callable[[], np.ndarray]] = {}
    sizes: dict[str, int] = {}

    def address_of(read: Callable[[], np.ndarray]) -> str:
        raise_if_cancelled()
        array = read()
        address = content_address(array)
        arrays.setdefault(address, read)
        sizes[address] = array.nbytes
        return address

    query = {index: address_of(partial(main.read, index)) for index in indices}
    support_addresses = [
        None if _is_cut(stacks, main, painted) else address_of(partial(_support_image, main, painted))
        for painted in support
    ]
    return SliceUpload(query, support_addresses, arrays, sizes)


def send_missing(
    connection: Connection,
    upload: SliceUpload,
    limits: Limits,
    on_progress: OnProgress | None = None,
    is_cancelled: Callable[[], bool] | None = None,
) -> None:
    """Send the slices of an upload that the backend lacks.

    Args:
        connection: asks which are missing; the slices go over further connections, which its interrupt stops too.
        is_cancelled: called several times a second; True stops the upload.

    Raises:
        ScanTooLarge: if the slices are more than the backend accepts.
        BackendError: if the backend is unreachable, refuses or fails.
        Cancelled: if ``is_cancelled`` returned True, or the interrupt was set.
    """
    limits.check_store(sum(upload.sizes.values()))
    missing = _missing(connection, upload)
    done, total = len(upload.arrays) - len(missing), len(upload.arrays)
    if on_progress is not None:
        on_progress(done, total)
    senders = _Senders(connection.endpoint, connection.interrupt, limits, upload, missing)
    try:
        while done < total:
            if is_cancelled is not None and is_cancelled():
                raise Cancelled("Sending the slices was cancelled.")
            done += senders.count_sent(POLL_SECONDS)
            if on_progress is not None:
                on_progress(done, total)
    except (Cancelled, KeyboardInterrupt):
        connection.interrupt.set()
        raise
    finally:
        senders.stop()


def _missing(connection: Connection, upload: SliceUpload) -> list[str]:
    """The addresses of an upload that the backend lacks."""
    answer = connection.request_json("POST", "/slices/missing", json.dumps({"slices": list(upload.arrays)}).encode())
    missing = answer.get("missing") if isinstance(answer, dict) else None
    if not isinstance(missing, list) or not all(isinstance(one, str) and one in upload.arrays for one in missing):
        raise NotABackend(
            f"What answers at {connection.endpoint.address.name} asks for slices that it was not told of. Update it."
        )
    return list(dict.fromkeys(missing))


def _support_image(stack: SliceStack, painted: SupportSlice) -> np.ndarray:
    """A painted slice's image as it is sent."""
    is_of_stack = painted.plane.has_slices_of(stack.plane) and painted.index < stack.count
    return support_image_for_wire(painted, stack.read(painted.index) if is_of_stack else None)


def _is_cut(stacks: Mapping[int, SliceStack], main: SliceStack, painted: SupportSlice) -> bool:
    """Whether the backend can cut a painted slice's image from the slices of the main axis."""
    stack = stacks.get(painted.plane.axis)
    if stack is None or stack is main or not painted.plane.has_slices_of(stack.plane) or painted.index >= stack.count:
        return False
    return same_image(stack.read(painted.index), painted.image)


class _Senders:
    """Threads that send slices, each over its own connection."""

    def __init__(
        self, endpoint: Endpoint, interrupt: Interrupt, limits: Limits, upload: SliceUpload, missing: Sequence[str]
    ) -> None:
        self._endpoint, self._interrupt, self._limits, self._arrays = endpoint, interrupt, limits, upload.arrays
        self._compress = not endpoint.address.is_local
        self._open: queue.SimpleQueue[list[str]] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[int | BaseException] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._reading = threading.Lock()
        self._most_bytes = min(UPLOAD_BYTES if self._compress else LOCAL_UPLOAD_BYTES, limits.body_bytes)
        connections = CONNECTIONS if self._compress else 1
        share = sum(upload.sizes[address] for address in missing) // connections
        groups = _groups(missing, upload.sizes, min(GROUP_BYTES, share))
        for addresses in groups:
            self._open.put(addresses)
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(min(connections, len(groups)))]
        for thread in self._threads:
            thread.start()

    def count_sent(self, seconds: float) -> int:
        """How many slices were sent since the last call, after waiting ``seconds`` at most for the first.

        Raises the exception that ended a thread.
        """
        count = 0
        try:
            while True:
                outcome = self._done.get(timeout=0 if count else seconds)
                if isinstance(outcome, BaseException):
                    raise outcome
                count += outcome
        except queue.Empty:
            return count

    def stop(self) -> None:
        """Wait for the slices that are being sent; send no further ones."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        try:
            with Connection(self._endpoint, self._interrupt) as connection:
                while not self._stop.is_set():
                    self._send(connection, self._open.get_nowait())
        except queue.Empty:
            pass
        except BaseException as error:
            self._done.put(error)

    def _send(self, connection: Connection, addresses: Sequence[str]) -> None:
        """Send slices, in as few requests as may be."""
        parts: list[bytes] = []
        for address in addresses:
            part = join_slices([(address, self._packed(address))])
            is_full = sum(map(len, parts)) + len(part) > self._most_bytes or len(parts) == self._limits.slices
            if parts and is_full:
                self._put(connection, parts)
                parts = []
            parts.append(part)
        self._put(connection, parts)

    def _put(self, connection: Connection, parts: Sequence[bytes]) -> None:
        if self._stop.is_set():
            return
        body = b"".join(parts)
        self._limits.check_body(len(body))
        connection.request_json("PUT", "/slices", body, ARRAY_TYPE)
        self._done.put(len(parts))

    def _packed(self, address: str) -> bytes:
        with self._reading:  # what reads a scan need not be made for several threads
            array = self._arrays[address]()
        return pack_array(array, self._compress)


def _groups(addresses: Sequence[str], sizes: Mapping[str, int], most_bytes: int) -> list[list[str]]:
    """The addresses in groups of slices that are sent together, of ``most_bytes`` at most or of one slice."""
    groups: list[list[str]] = []
    left = 0
    for address in addresses:
        if sizes[address] > left or not groups:
            groups.append([])
            left = most_bytes
        groups[-1].append(address)
        left -= sizes[address]
    return groups
