"""Slices that were sent, in memory: each once, each only for whom it belongs to, none for longer than it is of use."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np


class MissingSlices(LookupError):
    """Slices that are not here, or not this client's. `addresses` are theirs."""

    def __init__(self, addresses: list[str]) -> None:
        super().__init__(f"{len(addresses)} slices are not here")
        self.addresses = addresses


class Store(Protocol):
    """Slices by namespace and content address. All may be called from several threads."""

    def put(self, namespace: str, address: str, array: np.ndarray) -> bool:
        """Keep a slice; False where it is there already."""

    def missing(self, namespace: str, addresses: Iterable[str]) -> list[str]:
        """Those that are not here, each once, in their order. The others are kept a while longer."""

    def get(self, namespace: str, addresses: Iterable[str]) -> dict[str, np.ndarray]:
        """Slices, read-only. Raises `MissingSlices`."""

    def delete(self, namespace: str, address: str) -> None:
        """Forget a slice, if it is here."""

    def expire(self) -> None:
        """Forget what has not been used for too long."""

    @property
    def bytes(self) -> int:
        """Memory in use."""


@dataclass(eq=False)
class _Kept:
    array: np.ndarray
    used: float


class MemoryStore:
    """Slices of this process.

    Args:
        most_bytes: of all slices; those unused for longest go first.
        most_seconds: that a slice stays without being used.
        on_forgotten: called with namespace and address of each slice that went.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        most_bytes: int,
        max_seconds: float,
        on_removed: Callable[[str, str], None] = lambda namespace, address: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most_bytes = most_bytes
        self._most_seconds = max_seconds
        self._on_forgotten = on_removed
        self._clock = clock
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()  # the one used last comes last
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        return self._bytes

    def put(self, namespace: str, address: str, array: np.ndarray) -> bool:
        with self._lock:
            if self._used((namespace, address)) is not None:
                return False
            array.flags.writeable = False
            self._kept[namespace, address] = _Kept(array, self._clock())
            self._bytes += array.nbytes
            self._drop(lambda oldest: self._bytes > self._most_bytes)
            return True

    def missing(self, namespace: str, addresses: Iterable[str]) -> list[str]:
        with self._lock:
            return [address for address in dict.fromkeys(addresses) if self._used((namespace, address)) is None]

    def get(self, namespace: str, addresses: Iterable[str]) -> dict[str, np.ndarray]:
        with self._lock:
            found = {address: self._used((namespace, address)) for address in addresses}
        missing = [address for address, array in found.items() if array is None]
        if missing:
            raise MissingSlices(missing)
        return {address: array for address, array in found.items() if array is not None}

    def delete(self, namespace: str, address: str) -> None:
        with self._lock:
            if (namespace, address) in self._kept:
                self._forget((namespace, address))

    def expire(self) -> None:
        with self._lock:
            self._drop(lambda oldest: self._clock() - oldest.used > self._most_seconds)

    def _used(self, key: tuple[str, str]) -> np.ndarray | None:
        kept = self._kept.get(key)
        if kept is None:
            return None
        kept.used = self._clock()
        self._kept.move_to_end(key)
        return kept.array

    def _drop(self, is_too_much: Callable[[_Kept], bool]) -> None:
        while self._kept:
            key, oldest = next(iter(self._kept.items()))
            if not is_too_much(oldest):
                break
            self._forget(key)

    def _forget(self, key: tuple[str, str]) -> None:
        self._bytes -= self._kept.pop(key).array.nbytes
        self._on_forgotten(*key)
