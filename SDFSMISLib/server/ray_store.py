"""Slices that all replicas of a cluster share: the store of one process, in an actor."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from SDFSMISLib.server.failures import Refused
from SDFSMISLib.server.limits import Limits
from SDFSMISLib.server.logs import event
from SDFSMISLib.server.store import MemoryStore, MissingSlices

__all__ = ["RayStore", "shared_slices"]

NAME, NAMESPACE = "sdfsmis-slices", "sdfsmis"
ANSWER_SECONDS = 30.0  # that an answer is waited for, a restart of the actor included
RETRY_SECONDS = 2
TOGETHER = 16  # slices that come at once, so that a large scan does not fill the object store

Key = tuple[str, str]  # owner and content address


@contextmanager
def shared_slices(limits: Limits) -> Iterator[None]:
    """The actor that every `RayStore` of the cluster asks; it ends with the block, and with this process, on whose node
    it is."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    made = ray.remote(_Slices).options(
        name=NAME,
        namespace=NAMESPACE,
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=1,
        scheduling_strategy=here,
    )
    actor: Any = made.remote(limits.store_bytes, limits.store_seconds)
    try:
        yield
    finally:
        ray.kill(actor)


class _Slices:
    """The actor. It does one thing at a time."""

    def __init__(self, most_bytes: int, most_seconds: float) -> None:
        self._store = MemoryStore(most_bytes, most_seconds, lambda *key: self._here.discard(key))
        self._here: set[Key] = set()

    def put(self, owner: str, address: str, array: np.ndarray) -> bool:
        self._here.add((owner, address))
        return self._store.put(owner, address, np.array(array))  # not a view that keeps a part of the object store

    def missing(self, owner: str, addresses: list[str]) -> list[str]:
        return self._store.missing(owner, addresses)

    def get(self, owner: str, addresses: list[str]) -> dict[str, np.ndarray]:
        """Those that are here."""
        missing = set(self._store.missing(owner, addresses))
        return self._store.get(owner, [address for address in addresses if address not in missing])

    def delete(self, owner: str, address: str) -> None:
        self._store.delete(owner, address)

    def expire(self, read: list[Key]) -> tuple[int, list[Key]]:
        """Memory in use, and which of the slices that a replica has read are here no longer."""
        self._store.expire()
        return self._store.bytes, [key for key in read if key not in self._here]


class RayStore:
    """Slices in an actor of the cluster; see `Store`. All calls block; the application makes them in its threads.

    Arrays travel through Ray's object store and do not stay there: the actor and who asks for them have copies. What
    does not fit into the object store Ray may write to its spill folder for that while.

    Where the actor is lost, for want of memory for example, it starts again and is empty: clients are told which slices
    are missing, and send them again. A call that is under way meanwhile is made once more; where no answer comes it
    fails with 503, after which clients try again too.

    Of a slice that goes, by a client's wish or by itself, other replicas learn by `expire`, which the application calls
    twice a minute. For so long their latents of it may stay in memory; they are found under owner and content only, so
    nobody else can come by them.

    Args:
        on_forgotten: called with owner and address of each slice that went, of those that this replica has read.
    """

    def __init__(self, on_forgotten: Callable[[str, str], None]) -> None:
        self._actor: Any = ray.get_actor(NAME, NAMESPACE)
        self._on_forgotten = on_forgotten
        self._read: set[Key] = set()
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """Memory in use when `expire` was called last."""
        return self._bytes

    def put(self, owner: str, address: str, array: np.ndarray) -> bool:
        return self._answer(self._actor.put.remote(owner, address, array))

    def missing(self, owner: str, addresses: Iterable[str]) -> list[str]:
        return self._answer(self._actor.missing.remote(owner, list(addresses)))

    def get(self, owner: str, addresses: Iterable[str]) -> dict[str, np.ndarray]:
        wanted = list(dict.fromkeys(addresses))
        missing = self.missing(owner, wanted)
        arrays: dict[str, np.ndarray] = {}
        for start in range(0, 0 if missing else len(wanted), TOGETHER):
            part = wanted[start : start + TOGETHER]
            found = self._answer(self._actor.get.remote(owner, part))
            arrays |= {address: _own(array) for address, array in found.items()}
            missing += [address for address in part if address not in found]
        if missing:
            raise MissingSlices(missing)
        with self._lock:
            self._read |= {(owner, address) for address in wanted}
        return arrays

    def delete(self, owner: str, address: str) -> None:
        self._answer(self._actor.delete.remote(owner, address))
        self._forget([(owner, address)])

    def expire(self) -> None:
        with self._lock:
            read = list(self._read)
        with suppress(Refused):  # it is called again soon
            self._bytes, gone = self._answer(self._actor.expire.remote(read))
            self._forget(gone)

    def _forget(self, keys: Iterable[Key]) -> None:
        for key in keys:
            with self._lock:
                self._read.discard(key)
            self._on_forgotten(*key)

    def _answer(self, reference: Any) -> Any:
        try:
            return ray.get(reference, timeout=ANSWER_SECONDS)
        except RayTaskError:
            raise  # a defect
        except RayError as error:
            event("store does not answer", why=type(error).__name__)
            raise Refused(
                503,
                "stopping",
                "The store of the slices starts again; ask again in a moment.",
                headers={"Retry-After": str(RETRY_SECONDS)},
            ) from error


def _own(array: np.ndarray) -> np.ndarray:
    """A copy that keeps no part of the object store."""
    copy = np.array(array)
    copy.flags.writeable = False
    return copy
