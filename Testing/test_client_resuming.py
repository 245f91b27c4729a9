"""A run that breaks is taken up where it broke, and given up where that is in vain."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import small_backend
from client_examples import ADDRESSES, OTHER_SCAN, SCAN, STACKS, SUPPORT, TWO_LABELS, collected, places
from SDFSMISLib.client import Client
from SDFSMISLib.client import connection as retries
from SDFSMISLib.client.errors import (
    BackendBusy,
    BackendError,
    BackendFailed,
    ConnectionLost,
    RequestRefused,
    ScanTooLarge,
    SlicesMissing,
    VersionMismatch,
)
from SDFSMISLib.slices import SliceStack
from small_backend import LIMITS, Fault, SmallBackend, answer

pytest_plugins = ["client_fixtures"]
pytestmark = pytest.mark.usefixtures("no_proxy_and_no_long_pauses")


def half(line: bytes) -> bytes:
    return line[: len(line) // 2]


def flipped(line: bytes) -> bytes:
    damaged = bytearray(line)
    damaged[len(line) // 3] ^= 4
    return bytes(damaged)


@pytest.mark.parametrize("instead", [lambda line: b"", half, flipped], ids=["cut", "half", "damaged"])
@pytest.mark.parametrize("support", [SUPPORT, OTHER_SCAN], ids=["here", "elsewhere"])
def test_a_stream_that_breaks_at_any_record_is_taken_up_there(url, backend, support, instead) -> None:
    before, slices = (2, 6) if support is SUPPORT else (3, 7)  # records before the first lane; slices to come
    for after in range(before + 2 * slices + 2):
        backend.asked.clear()
        backend.faults.append(Fault(after=after, instead=instead))
        found = collected(Client(url).segment(STACKS, support))
        assert set(found) == places(1, without={(1, 2)} if support is SUPPORT else set())
        assert [one.finished for one in found.values()] == list(range(1, len(found) + 1))
        first, again = backend.asked
        assert (first["finished"], first["lanes"], first["found"]) == ([], [], None)
        assert {**again, "finished": [], "lanes": [], "found": None} == first
        number = min(max(after - before, 0), 2 * slices)
        assert (len(again["lanes"]), len(again["finished"])) == ((number + 1) // 2, number // 2)
        assert (again["found"] is not None) is (support is OTHER_SCAN and after > 2)


def test_a_run_over_two_views_that_breaks_at_any_record_is_taken_up_there(url: str, backend: SmallBackend) -> None:
    stacks = SliceStack.along(SCAN, [0, 2])
    previews = [("preview", 0, index) for index in range(7) if index != 2] + [("preview", 2, k) for k in range(8)]
    final = [("final", 0, index) for index in range(7) if index != 2]
    for after in range(2 + 2 * len(previews) + len(final) + 2):
        backend.asked.clear()
        backend.faults.append(Fault(after=after))
        with Client(url).segment(stacks, SUPPORT) as run:
            found = list(run)
        assert [(one.stage, one.axis, one.index) for one in found] == [*previews, *final]
        assert [one.finished for one in found] == [*range(1, 15), *6 * [14]] and {one.total for one in found} == {14}
        for one in found:
            np.testing.assert_array_equal(one.probability, answer(stacks[one.axis].read(one.index), 1))
        assert len(backend.asked[1]["finished"]) == min(max(after - 2, 0) // 2, len(previews))
    assert sorted(backend.puts()) == sorted(ADDRESSES), "slices of the other view are not sent"


def test_what_is_too_much_to_hand_back_is_computed_again(url: str, backend: SmallBackend) -> None:
    """All that has come is a request a byte too large: what has come along the second axis is left out."""
    stacks, numbers = SliceStack.along(SCAN, [0, 2]), []
    for most in (LIMITS["body_bytes"], None):
        backend.limits["body_bytes"] = most or len(json.dumps(backend.asked[-1])) - 1
        backend.faults.append(Fault(after=2 + 2 * 6 + 2 * 4))
        with Client(url).segment(stacks, SUPPORT) as run:
            assert [one.finished for one in run] == [*range(1, 15), *6 * [14]]
        numbers.append((len(backend.asked[-1]["finished"]), {one["axis"] for one in backend.asked[-1]["lanes"]}))
    assert numbers == [(6 + 4, {0, 2}), (6, {0})]


def test_of_more_records_than_a_request_may_have_whole_labels_are_computed_again(
    url: str, backend: SmallBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = places(1, 2, without={(1, 2), (2, 2), (2, 4)})
    for most, labels in ((11, {1, 2}), (10, {1}), (5, set())):
        monkeypatch.setattr("SDFSMISLib.client.remote_run.MAX_EARLIER_RECORDS", most)
        backend.faults.append(Fault(after=2 + 2 * len(expected)))
        assert set(collected(Client(url).segment(STACKS, TWO_LABELS))) == expected
        again = backend.asked[-1]
        assert {one["label"] for one in again["finished"]} == {one["label"] for one in again["lanes"]} == labels
        assert max(len(again["finished"]), len(again["lanes"])) <= most


def test_many_cuts_in_a_row_lose_nothing(url: str, backend: SmallBackend) -> None:
    backend.faults.extend(Fault(after=5) for _ in range(6))
    assert set(collected(Client(url).segment(STACKS, SUPPORT))) == places(1, without={(1, 2)})


def test_a_backend_that_breaks_without_anything_new_is_given_up(url: str, backend: SmallBackend) -> None:
    backend.faults.extend(Fault(after=2) for _ in range(20))
    with pytest.raises(ConnectionLost, match="lost and did not come back"):
        collected(Client(url).segment(STACKS, SUPPORT))
    assert len(backend.asked) == retries.MOST_WITHOUT_RESULT + 1


@pytest.mark.parametrize(
    "told",
    [
        {"type": "start", "total": 1},
        {"type": "slice", "index": -1},
        {"type": "slice", "index": 5000},
        {"type": "slice", "label": 9},
        {"type": "slice", "axis": 2},
        {"type": "slice", "stage": "preview"},
        {"type": "start", "labels": []},
        {"type": "start", "labels": [{"label": 1, "axes": [], "fused": False}]},
        {"type": "start", "labels": [{"label": 1, "axes": [0, 1], "fused": True}]},
        {"type": "lane", "start": 70},
        {"type": "lane", "axis": 1},
        {"type": "lane", "label": 9},
    ],
)
def test_what_was_not_asked_for_is_not_taken(
    url: str, backend: SmallBackend, monkeypatch: pytest.MonkeyPatch, told: dict[str, Any]
) -> None:
    right = small_backend.records

    def wrong(asked: dict[str, Any], backend: SmallBackend) -> Iterator[dict[str, Any]]:
        for record in right(asked, backend):
            yield {**record, **told} if record["type"] == told["type"] else record

    monkeypatch.setattr(small_backend, "records", wrong)
    with pytest.raises(BackendFailed, match="not understood"):
        collected(Client(url).segment(STACKS, SUPPORT))


def test_an_end_before_all_slices_have_come_is_a_failure(
    url: str, backend: SmallBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = small_backend.records

    def short(asked: dict[str, Any], backend: SmallBackend) -> Iterator[dict[str, Any]]:
        told = list(right(asked, backend))
        yield from (told[place] for place in (0, 1, 2, 3, -1))

    monkeypatch.setattr(small_backend, "records", short)
    with pytest.raises(BackendFailed, match="ended after"):
        collected(Client(url).segment(STACKS, SUPPORT))


def test_slices_that_the_backend_has_lost_are_sent_again(url: str, backend: SmallBackend) -> None:
    backend.faults.extend([Fault(after=6), Fault(forget=True)])
    assert set(collected(Client(url).segment(STACKS, SUPPORT))) == places(1, without={(1, 2)})
    assert sorted(backend.puts()) == sorted(2 * ADDRESSES)
    assert len(backend.asked[2]["finished"]) == 2


def test_a_backend_that_keeps_losing_slices_is_given_up(url: str, backend: SmallBackend) -> None:
    backend.faults.extend(Fault(forget=True) for _ in range(20))
    with pytest.raises(SlicesMissing, match="does not keep the slices"):
        collected(Client(url).segment(STACKS, SUPPORT))
    assert len(backend.asked) == retries.MOST_WITHOUT_RESULT + 1


@pytest.mark.parametrize("code", ["queue_full", "stopping"])
def test_a_busy_backend_is_asked_again_when_it_said(url: str, backend: SmallBackend, code: str) -> None:
    backend.faults.extend([Fault(status=503, code=code, retry_after=wait) for wait in ("0", "", "soon", "0")])
    assert len(collected(Client(url).segment(STACKS, SUPPORT))) == 6
    assert len(backend.asked) == 5


def test_a_backend_that_stays_busy_is_given_up_after_patience(url: str, backend: SmallBackend) -> None:
    backend.faults.append(Fault(status=503, retry_after="3600"))
    with pytest.raises(BackendBusy, match="busy with other runs"):
        collected(Client(url).segment(STACKS, SUPPORT, patience=5))
    assert len(backend.asked) == 1


@pytest.mark.parametrize("code", ["stopping", "stalled", "slices_missing"])
def test_a_backend_that_stops_within_a_run_is_asked_again(url: str, backend: SmallBackend, code: str) -> None:
    backend.faults.append(Fault(after=6, error=code))
    assert len(collected(Client(url).segment(STACKS, SUPPORT))) == 6
    assert len(backend.asked[1]["finished"]) == 2


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        ("failed", BackendFailed, "failed: It is failed. Try again; where it fails again, its log says more"),
        ("invalid_input", RequestRefused, "^It is invalid_input.$"),
        ("out_of_memory", ScanTooLarge, "It is out_of_memory. Give fewer painted slices"),
        ("a later code", BackendFailed, "It is a later code"),
    ],
)
def test_what_fails_for_good_is_not_asked_again(url: str, backend, code: str, kind: type, words: str) -> None:
    backend.faults.append(Fault(after=6, error=code))
    run, count = Client(url).segment(STACKS, SUPPORT), 0
    with run, pytest.raises(kind, match=words):
        for _ in run:
            count += 1
    assert count == 2 and len(backend.asked) == 1


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (422, "invalid_input", RequestRefused),
        (400, "bad_request", RequestRefused),
        (403, "origin_refused", RequestRefused),
        (413, "too_large", ScanTooLarge),
        (426, "protocol_mismatch", VersionMismatch),
        (500, "failed", BackendFailed),
    ],
)
def test_a_request_that_is_refused_is_not_asked_again(url: str, backend, status: int, code: str, kind: type) -> None:
    backend.faults.append(Fault(status=status, code=code))
    with pytest.raises(kind, match=f"It is {code}."):
        collected(Client(url).segment(STACKS, SUPPORT))
    assert len(backend.asked) == 1


def test_a_silent_backend_is_left_and_asked_again(url: str, backend: SmallBackend) -> None:
    backend.faults.append(Fault(after=6, silent=True))
    assert len(collected(Client(url, timeout=0.5).segment(STACKS, SUPPORT))) == 6
    assert backend.left.wait(5)


def test_a_backend_that_does_not_come_back_is_lost(backend: SmallBackend) -> None:
    backend.faults.append(Fault(after=6))
    with backend.serve() as url:
        run = Client(url).segment(STACKS, SUPPORT, patience=0.2)
        records = iter(run)
        next(records), next(records)
    with run, pytest.raises(ConnectionLost, match="did not come back") as lost:
        next(records)
    assert isinstance(lost.value.__cause__, BackendError)


def test_results_of_two_models_are_not_mixed(url: str, backend: SmallBackend) -> None:
    backend.faults.append(Fault(after=6))
    with Client(url).segment(STACKS, SUPPORT) as run:
        records = iter(run)
        next(records)
        next(records)
        backend.weights = "w2"
        with pytest.raises(BackendFailed, match="has another model now"):
            next(records)


@pytest.mark.parametrize(
    "change",
    [{"total": 7}, {"total": None}, {"box": [0, 0, 99, 99]}, {"data": "?"}, {"type": 3}, {"type": None}],
)
def test_what_is_sent_whole_and_makes_no_sense_is_a_failure(url, backend, change, monkeypatch) -> None:
    import small_backend

    plain = small_backend.records

    def changed(asked, backend):
        for record in plain(asked, backend):
            if change.keys() <= record.keys() and record["type"] in ("start", "slice"):
                record |= change
            yield {name: value for name, value in record.items() if name != "type" or value is not None}

    monkeypatch.setattr(small_backend, "records", changed)
    with pytest.raises(BackendFailed, match="sends what is not understood|ended after 6 of 7|ended after 0 of [06]"):
        collected(Client(url).segment(STACKS, SUPPORT))
