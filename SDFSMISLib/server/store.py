"""The slices that clients have sent, in memory.

A slice is stored under the namespace of its client and its content address, so that it is sent once, used by any number
of runs, and visible to nobody else.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

Key = tuple[str, str]
"""Namespace and content address."""


class MissingSlices(LookupError):
    """Slices that are not stored, or not in the client's namespace. `addresses` lists theirs."""

    def __init__(self, addresses: list[str]) -> None:
        super().__init__(f"{len(addresses)} slices are not stored.")
        self.addresses = addresses


class Store(Protocol):
    """Slices by namespace and content address. All methods may be called by any thread, and may block for a moment."""

    def put(self, namespace: str, address: str, array: np.ndarray) -> bool:
        """Store a slice (rows, columns), which becomes read-only; False if it is stored already."""

    def missing(self, namespace: str, addresses: Iterable[str]) -> list[str]:
        """Those addresses that are not stored, each once, in the given order. Counts as a use of the others."""

    def get(self, namespace: str, addresses: Iterable[str]) -> dict[str, np.ndarray]:
        """Read-only slices by address. Raises `MissingSlices` if one of them is not stored."""

    def delete(self, namespace: str, address: str) -> None:
        """Remove a slice, if it is stored."""

    def expire(self) -> None:
        """Remove the slices that were not used for too long."""

    @property
    def bytes(self) -> int:
        """Memory in use."""


@dataclass(eq=False)
class _Entry:
    array: np.ndarray
    last_used: float


class MemoryStore:
    """A `Store` in the memory of this process.

    Args:
        max_bytes: of all slices; the least recently used are removed first.
        max_seconds: time after which `expire` removes a slice that was not used.
        on_removed: called with namespace and address of each removed slice, while the store is locked.
        clock: monotonic time in seconds.

    Example:
        >>> store = MemoryStore(max_bytes=1 << 20, max_seconds=3600)
        >>> store.put("alice", "a1", np.zeros((4, 8), dtype=np.int16))
        True
        >>> store.missing("alice", ["a1", "b2"]), store.missing("bob", ["a1"])
        (['b2'], ['a1'])
        >>> store.bytes
        64
    """

    def __init__(
        self,
        max_bytes: int,
        max_seconds: float,
        on_removed: Callable[[str, str], None] = lambda namespace, address: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds
        self._on_removed = on_removed
        self._clock = clock
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()  # least recently used first
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        return self._bytes

    def put(self, namespace: str, address: str, array: np.ndarray) -> bool:
        with self._lock:
            if self._use((namespace, address)) is not None:
                return False
            array.flags.writeable = False
            self._entries[namespace, address] = _Entry(array, self._clock())
            self._bytes += array.nbytes
            self._remove_oldest_while(lambda oldest: self._bytes > self._max_bytes)
            return True

    def missing(self, namespace: str, addresses: Iterable[str]) -> list[str]:
        with self._lock:
            return [address for address in dict.fromkeys(addresses) if self._use((namespace, address)) is None]

    def get(self, namespace: str, addresses: Iterable[str]) -> dict[str, np.ndarray]:
        with self._lock:
            found = {address: self._use((namespace, address)) for address in addresses}
        missing = [address for address, array in found.items() if array is None]
        if missing:
            raise MissingSlices(missing)
        return {address: array for address, array in found.items() if array is not None}

    def delete(self, namespace: str, address: str) -> None:
        with self._lock:
            if (namespace, address) in self._entries:
                self._remove((namespace, address))

    def expire(self) -> None:
        with self._lock:
            self._remove_oldest_while(lambda oldest: self._clock() - oldest.last_used > self._max_seconds)

    def _use(self, key: Key) -> np.ndarray | None:
        """The slice, which is now the most recently used one; None if it is not stored."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        entry.last_used = self._clock()
        self._entries.move_to_end(key)
        return entry.array

    def _remove_oldest_while(self, is_too_much: Callable[[_Entry], bool]) -> None:
        while self._entries:
            key, oldest = next(iter(self._entries.items()))
            if not is_too_much(oldest):
                break
            self._remove(key)

    def _remove(self, key: Key) -> None:
        self._bytes -= self._entries.pop(key).array.nbytes
        self._on_removed(*key)
