"""Slices in the backend's memory: each only for whom it belongs to, bounded in bytes and in time."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from SDFSMISLib.server.store import MemoryStore, MissingSlices

SLICE = np.zeros((4, 8), dtype=np.int16)  # 64 bytes


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def store_of(slices: int, seconds: float = 100.0, **options: object) -> MemoryStore:
    return MemoryStore(slices * SLICE.nbytes, seconds, **options)  # type: ignore[arg-type]


def test_a_slice_that_was_put_is_there_and_cannot_be_changed() -> None:
    store = store_of(4)
    assert store.put("", "a", SLICE.copy()) and not store.put("", "a", SLICE.copy())
    (kept,) = store.get("", ["a"]).values()
    np.testing.assert_array_equal(kept, SLICE)
    with pytest.raises(ValueError, match="read-only"):
        kept[0, 0] = 1


def test_what_is_missing_is_named() -> None:
    store = store_of(4)
    store.put("", "a", SLICE.copy())
    assert store.missing("", ["b", "a", "c", "b"]) == ["b", "c"]
    with pytest.raises(MissingSlices) as missing:
        store.get("", ["a", "b", "c"])
    assert missing.value.addresses == ["b", "c"]


def test_one_namespace_does_not_see_what_another_has_put() -> None:
    store = store_of(4)
    store.put("one", "a", SLICE.copy())
    assert store.missing("other", ["a"]) == ["a"]
    store.delete("other", "a")
    assert store.missing("one", ["a"]) == []


def test_the_slice_used_longest_ago_goes_when_room_is_needed() -> None:
    store = store_of(2)
    store.put("", "a", SLICE.copy())
    store.put("", "b", SLICE.copy())
    store.missing("", ["a"])  # asking for it is a use
    store.put("", "c", SLICE.copy())
    assert store.missing("", ["a", "b", "c"]) == ["b"] and store.bytes == 2 * SLICE.nbytes


def test_a_slice_that_is_not_used_goes_after_a_while() -> None:
    clock, gone = Clock(), []
    store = store_of(4, seconds=10, clock=clock, on_removed=lambda *place: gone.append(place))
    store.put("me", "a", SLICE.copy())
    store.put("me", "b", SLICE.copy())
    clock.now = 8
    store.get("me", ["a"])
    clock.now = 12
    store.expire()
    assert store.missing("me", ["a", "b"]) == ["b"] and gone == [("me", "b")]
    clock.now = 30
    store.expire()
    assert store.bytes == 0


def test_a_deleted_slice_is_gone_and_its_deletion_is_told() -> None:
    gone: list[tuple[str, str]] = []
    store = store_of(4, on_removed=lambda *place: gone.append(place))
    store.put("", "a", SLICE.copy())
    store.delete("", "a")
    store.delete("", "a")
    assert store.bytes == 0 and gone == [("", "a")]


def test_threads_that_put_and_take_leave_the_bytes_right() -> None:
    store = store_of(8)

    def busy(namespace: str) -> None:
        for number in range(300):
            store.put(namespace, str(number % 20), SLICE.copy())
            store.delete(namespace, str((number * 7) % 20))

    threads = [threading.Thread(target=busy, args=(str(namespace),)) for namespace in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held = sum(20 - len(store.missing(str(namespace), map(str, range(20)))) for namespace in range(4))
    assert store.bytes == held * SLICE.nbytes <= 8 * SLICE.nbytes
