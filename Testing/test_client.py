"""The client against small servers on loopback: it says what is wrong, sends what is missing, goes on after a cut."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_backend
from certificates import self_signed
from small_backend import Fault, Proxy, SmallBackend, answer, closed_port, listening

from SDFSMISLib.client import Client, remote_run
from SDFSMISLib.client.backend_error import (
    BackendBusy,
    BackendError,
    BackendFailed,
    BackendNotFound,
    BackendRefused,
    ConnectionLost,
    NotABackend,
    RequestRefused,
    ScanTooLarge,
    SlicesMissing,
    TlsRefused,
    TokenRefused,
    VersionMismatch,
)
from SDFSMISLib.client.remote_run import RemoteRun, RunState, SliceRecord
from SDFSMISLib.client.route import Address
from SDFSMISLib.errors import Cancelled, InputError
from SDFSMISLib.protocol import content_address
from SDFSMISLib.stack import SliceStack
from SDFSMISLib.support import SupportSet
from SDFSMISLib.volume import Geometry, Volume

SHAPE = (7, 9, 8)
GRID = Geometry(SHAPE, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_proxy_and_no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(remote_run, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(remote_run, "LONGEST_PAUSE", 0.02)


@pytest.fixture
def backend() -> SmallBackend:
    return SmallBackend()


@pytest.fixture
def url(backend: SmallBackend) -> Iterator[str]:
    with backend.serve() as url:
        yield url


def a_scan(seed: int = 0, dtype: str = "int16") -> Volume:
    return Volume(np.random.default_rng(seed).integers(0, 256, SHAPE).astype(dtype), GRID)


def painted(scan: Volume, *places: tuple[int, int]) -> SupportSet:
    """Support with a label at each (slice, label)."""
    labels = np.zeros(SHAPE, np.uint8)
    for index, label in places:
        labels[index, 2 * label : 2 * label + 2, 2:5] = label
    return SupportSet.from_labelmap(scan, Volume(labels, GRID), label=None, axis=0)


SCAN = a_scan()
STACK = SliceStack.of(SCAN, 0)
SUPPORT = painted(SCAN, (2, 1))
TWO_LABELS = painted(SCAN, (2, 1), (2, 2), (4, 2))
OTHER_SCAN = painted(a_scan(1), (3, 1))
ADDRESSES = [content_address(plane) for plane in SCAN.voxels]


def collected(run: RemoteRun) -> dict[tuple[int, int], SliceRecord]:
    """All slices of a run, each of which came once and is right."""
    found: dict[tuple[int, int], SliceRecord] = {}
    with run:
        for record in run:
            assert (record.label, record.index) not in found
            assert np.array_equal(record.probability, answer(run.stack.read(record.index), record.label))
            found[record.label, record.index] = record
    return found


def places(*labels: int, without: set[tuple[int, int]]) -> set[tuple[int, int]]:
    return {(label, index) for label in labels for index in range(SHAPE[0])} - without


# -- addresses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "used", "is_local"),
    [
        ("localhost:7861", "http://localhost:7861", True),
        (" localhost ", "http://localhost:7861", True),
        ("0.0.0.0:7861", "http://127.0.0.1:7861", True),
        ("http://[::]:7861/", "http://[::1]:7861", True),
        ("127.0.0.1:80", "http://127.0.0.1:80", True),
        ("127.4.5.6:80", "http://127.4.5.6:80", True),
        ("HTTP://Workstation", "http://workstation:80", False),
        ("workstation", "http://workstation:7861", False),
        ("https://hospital.example/sdfsmis/", "https://hospital.example:443/sdfsmis", False),
        ("192.168.1.4:9000", "http://192.168.1.4:9000", False),
        ("localhost.example:1", "http://localhost.example:1", False),
    ],
)
def test_an_address_is_taken_as_people_type_it(typed: str, used: str, is_local: bool) -> None:
    client = Client(typed)
    assert client.url == used and client.is_local is is_local


@pytest.mark.parametrize(
    "typed",
    [
        *("", "  ", "http://", "ftp://host:1", "file:///etc/passwd", "host:port", "host:99999", "host:0", "[::1"),
        *("ho st", "http://ho%st", "http://me:secret@host", "http://host?x=1", "http://host/#a", "http://host/ä"),
        *("http://host/a b", "host\r\nX: 1", "http://host/\r\nX: 1"),
    ],
)
def test_what_is_no_address_is_refused_in_a_sentence(typed: str) -> None:
    with pytest.raises(InputError, match="a backend's address looks like"):
        Client(typed)


def test_a_name_of_another_alphabet_is_no_traceback() -> None:
    address = Address.of("http://klinik-münchen.invalid:7861")
    assert not address.is_local
    with pytest.raises(BackendNotFound, match="no computer named"):
        Client("http://klinik-münchen.invalid:7861").capabilities()


@pytest.mark.parametrize("token", ["two\nlines", "schlüssel", "a\0b"])
def test_a_token_that_no_header_can_carry_is_refused(token: str) -> None:
    with pytest.raises(InputError, match="copy it again"):
        Client("localhost", token)


def test_making_a_client_and_a_run_sends_nothing() -> None:
    reached = threading.Event()
    with listening(lambda connection: reached.set()) as port:
        client = Client(f"localhost:{port}", "token")
        with client.segment(STACK, SUPPORT):
            pass
        assert not reached.wait(0.1)


# -- what can be wrong with a backend ----------------------------------------------------------------------------------


def test_capabilities_say_what_the_backend_is(url: str, backend: SmallBackend) -> None:
    found = Client(url).capabilities()
    assert (found.version, found.device_name, found.device_kind, found.running) == ("9.9", "a processor", "cpu", 0)
    assert (found.models[0].name, found.models[0].weights_sha256, found.models[0].resolution) == ("small", "w1", 64)
    assert found.seconds_per_slice == 0.5 and found.strategies == ("propagate", "independent")
    assert asdict(found.limits) == backend.limits


def test_a_backend_that_is_not_started_is_refused() -> None:
    port = closed_port()
    with pytest.raises(BackendRefused, match=f"No backend runs at 127.0.0.1:{port}. Start it"):
        Client(f"127.0.0.1:{port}").capabilities()


def test_a_computer_that_is_not_there_is_not_found() -> None:
    with pytest.raises(BackendNotFound, match="no computer named nowhere.invalid"):
        Client("nowhere.invalid:7861").capabilities()


HTML = b"<html>Welcome</html>"


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "is no SDFSMIS backend"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "need https://"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n" + HTML, "is no SDFSMIS backend"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 20\r\n\r\n" + HTML, "is no SDFSMIS backend"),
        (b"HTTP/1.1 401 No\r\nWWW-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n", "is no SDFSMIS backend"),
        (b"HTTP/1.1 301 Moved\r\nLocation: https://host/\r\nContent-Length: 0\r\n\r\n", "sends on to 'https://host/'"),
        (b"HTTP/1.1 200 OK\r\nX-SDFSMIS-Protocol: 1\r\nContent-Length: 2\r\n\r\n{}", "does not say what a backend"),
        (b"HTTP/1.1 200 OK\r\nX-SDFSMIS-Protocol: 1\r\nContent-Length: 2\r\n\r\n[}", "is no SDFSMIS backend"),
        (b"HTTP/1.1 200 OK\r\nX-SDFSMIS-Protocol: 1\r\nContent-Length: 0\r\n\r\n", "does not say what a backend"),
        (b"HTTP/1.1 200 OK\r\nX-SDFSMIS-Protocol: 1\r\n\r\n" + b"[" * 100_000, "is no SDFSMIS backend"),
        (b"HTTP/1.1 200 OK\r\n" + b"X-Long: " + b"x" * 70_000 + b"\r\n\r\n", "is no SDFSMIS backend"),
    ],
)
def test_something_else_that_answers_is_no_backend(reply: bytes, words: str) -> None:
    def respond(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(reply)

    with listening(respond) as port, pytest.raises(NotABackend, match=words):
        Client(f"localhost:{port}").capabilities()


@pytest.mark.parametrize(
    "reply", [b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nX-SDFSMIS-Protocol: 1\r\nContent-Length: 50\r\n\r\n{"]
)
def test_an_answer_that_is_cut_is_a_lost_connection(reply: bytes) -> None:
    def respond(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(reply)

    with listening(respond) as port, pytest.raises((ConnectionLost, NotABackend)):
        Client(f"localhost:{port}").capabilities()


def test_a_backend_that_says_nothing_is_waited_for_no_longer_than_was_said() -> None:
    with listening(lambda connection: connection.recv(1 << 20) and time.sleep(5)) as port:
        with pytest.raises(ConnectionLost, match="does not answer any more"):
            Client(f"localhost:{port}", timeout=0.1).capabilities()


@pytest.mark.parametrize(("status", "words"), [(502, "the backend behind it is not"), (504, "Start it")])
def test_a_gateway_without_its_backend_is_told_from_a_backend(status: int, words: str) -> None:
    def respond(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(b"HTTP/1.1 %d Bad\r\nContent-Length: 20\r\n\r\n" % status + HTML)

    with listening(respond) as port, pytest.raises(BackendRefused, match=words):
        Client(f"localhost:{port}").capabilities()


def test_a_token_is_asked_for_and_a_wrong_one_is_not_accepted(url: str, backend: SmallBackend) -> None:
    backend.token = "right"
    with pytest.raises(TokenRefused, match="asks for a token"):
        Client(url).capabilities()
    with pytest.raises(TokenRefused, match="does not accept the token"):
        Client(url, "wrong").capabilities()
    assert Client(url, " right\n").capabilities().version == "9.9"


@pytest.mark.parametrize(("protocol", "side"), [(0, "Update the backend"), (2, "Update this program")])
def test_another_protocol_says_which_side_is_too_old(url: str, backend: SmallBackend, protocol: int, side: str) -> None:
    backend.protocol = protocol
    with pytest.raises(VersionMismatch, match=side):
        Client(url).capabilities()


# -- sending slices ----------------------------------------------------------------------------------------------------


def test_only_missing_slices_are_sent_and_each_once(url: str, backend: SmallBackend) -> None:
    client, seen = Client(url), []
    client.upload(STACK, [1, 2, 3], on_progress=lambda done, total: seen.append((done, total)))
    assert sorted(backend.puts()) == sorted(ADDRESSES[1:4])
    assert seen[0] == (0, 3) and seen[-1] == (3, 3)
    client.upload(STACK, range(5), SUPPORT.slices, on_progress=lambda done, total: seen.append((done, total)))
    assert sorted(backend.puts()) == sorted(ADDRESSES[:5]), "the painted slice is one of the scan's"
    assert seen[-1] == (5, 5)
    for index in range(5):
        assert np.array_equal(backend.store[ADDRESSES[index]], SCAN.voxels[index])


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_a_painted_slice_of_the_scan_is_not_sent_twice(url: str, backend: SmallBackend, dtype: str) -> None:
    scan = a_scan(5, dtype)
    Client(url).upload(SliceStack.of(scan, 0), range(SHAPE[0]), painted(scan, (2, 1)).slices)
    assert len(backend.puts()) == SHAPE[0]
    assert {array.dtype for array in backend.store.values()} == {np.dtype(dtype)}


def test_slices_that_are_alike_are_sent_once(url: str, backend: SmallBackend) -> None:
    scan = Volume(np.zeros(SHAPE, np.int16), GRID)
    Client(url).upload(SliceStack.of(scan, 0), range(SHAPE[0]))
    assert len(backend.puts()) == 1


def test_a_big_endian_scan_is_sent_little_endian(url: str, backend: SmallBackend) -> None:
    scan = Volume(SCAN.voxels.astype(">i2"), GRID)
    assert len(collected(Client(url).segment(SliceStack.of(scan, 0), painted(scan, (2, 1))))) == 6
    assert set(backend.store) == set(ADDRESSES)


def test_on_this_computer_slices_go_over_one_connection_as_they_are(url: str, backend: SmallBackend) -> None:
    Client(url).upload(STACK, range(SHAPE[0]))
    assert len(backend.peers) == 2  # one to ask
    assert min(backend.sizes) > SCAN.voxels[0].nbytes


def test_a_connection_that_was_closed_while_idle_is_opened_again(url: str, backend: SmallBackend) -> None:
    backend.drop_idle = True
    assert len(collected(Client(url).segment(STACK, SUPPORT))) == 6


@pytest.mark.parametrize(
    ("limit", "most", "words"),
    [
        ("slice_pixels", 71, "Resample the scan"),
        ("slices", 6, "Crop the scan"),
        ("shots", 1, "Give fewer of them"),
        ("labels", 1, "some of them at a time"),
        ("store_bytes", 7 * 9 * 8 * 2 - 1, "Segment fewer slices at once, or crop"),
    ],
)
def test_a_scan_beyond_the_limits_is_refused_before_it_is_sent(
    url: str, backend: SmallBackend, limit: str, most: int, words: str
) -> None:
    backend.limits[limit] = most
    with pytest.raises(ScanTooLarge, match=words):
        collected(Client(url).segment(STACK, TWO_LABELS))
    assert backend.puts() == []


@pytest.mark.parametrize("most", [100, 800])  # less than a slice; less than the request
def test_a_request_beyond_the_limit_is_refused_before_it_is_sent(url: str, backend: SmallBackend, most: int) -> None:
    backend.limits["body_bytes"] = most
    with pytest.raises(ScanTooLarge, match="Segment fewer slices or structures"):
        collected(Client(url).segment(STACK, SUPPORT))
    assert backend.asked == []


def test_a_slice_that_the_backend_refuses_ends_the_sending(url: str, backend: SmallBackend) -> None:
    backend.put_status = 413
    with pytest.raises(ScanTooLarge, match="does not take so much: It is too_large. Segment fewer"):
        Client(url).upload(STACK, range(SHAPE[0]))
    assert len(backend.puts()) == 1


def test_sending_can_be_cancelled(url: str, backend: SmallBackend) -> None:
    backend.hold_puts = True
    with pytest.raises(Cancelled):
        Client(url).upload(STACK, range(SHAPE[0]), cancel=backend.reached.is_set)
    assert len(backend.puts()) == 1 and backend.left.wait(10)


# -- segmenting --------------------------------------------------------------------------------------------------------


def test_a_run_gives_every_open_slice_of_every_label_once(url: str, backend: SmallBackend) -> None:
    sent: list[tuple[int, int]] = []
    run = Client(url).segment(STACK, TWO_LABELS, threshold=0.4, on_upload=lambda *numbers: sent.append(numbers))
    assert run.phase == "not begun"
    found = collected(run)
    assert set(found) == places(1, 2, without={(1, 2), (2, 2), (2, 4)})
    assert [(one.finished, one.total) for one in found.values()] == [(n, 11) for n in range(1, 12)]
    assert all(one.certainty == 0.5 for one in found.values())
    assert sent[-1] == (7, 7) and run.phase == "finished"
    assert run.warnings == ["They are unlike."] and run.seconds == {"total": 2.0, "waiting": 0.5, "computing": 1.5}
    assert (run.version, run.model, run.weights_sha256, run.device) == ("9.9", "small", "w1", "a processor")
    (asked,) = backend.asked
    assert (asked["labels"], asked["slices"], asked["threshold"]) == ([1, 2], None, 0.4)
    assert (asked["strategy"], asked["region"], asked["protocol"]) == ("propagate", "auto", 1)
    assert (asked["finished"], asked["lanes"], asked["found"]) == ([], [], None)


def test_labels_slices_and_options_are_asked_for_as_given(url: str, backend: SmallBackend) -> None:
    run = Client(url).segment(STACK, TWO_LABELS, labels=[2], slices=[6, 5, 5], strategy="independent", region="full")
    assert set(collected(run)) == {(2, 5), (2, 6)}
    (asked,) = backend.asked
    assert (asked["labels"], asked["slices"]) == ([2], [5, 6])
    assert (asked["strategy"], asked["region"]) == ("independent", "full")
    assert [[mask["label"] for mask in one["masks"]] for one in asked["support"]] == [[2], [2]]


@pytest.mark.parametrize(
    ("support", "slices", "strategy", "needed"),
    [
        (SUPPORT, None, "propagate", range(7)),
        (SUPPORT, [4], "propagate", [2, 3, 4]),
        (SUPPORT, [4], "independent", [2, 4]),  # 2 is the painted slice
        (TWO_LABELS, [5], "propagate", [2, 3, 4, 5]),
        (TWO_LABELS, [2], "propagate", [2, 4]),  # all that is asked for is painted; 4 is painted
        (OTHER_SCAN, [4], "propagate", range(7)),  # it has to be found first
        (OTHER_SCAN, [4], "independent", [4]),
        (SUPPORT + OTHER_SCAN, [4], "propagate", [2, 3, 4]),
    ],
)
def test_only_slices_that_a_run_reads_are_sent(
    url: str, backend: SmallBackend, support: SupportSet, slices: list[int] | None, strategy: str, needed: list[int]
) -> None:
    collected(Client(url).segment(STACK, support, slices=slices, strategy=strategy))
    assert {address for address in backend.puts() if address in ADDRESSES} == {ADDRESSES[index] for index in needed}


@pytest.mark.parametrize(
    "arguments",
    [{"labels": [7]}, {"labels": []}, {"slices": [7]}, {"slices": []}, {"threshold": 1.0}, {"threshold": float("nan")}],
)
def test_what_cannot_be_asked_is_refused_at_once(arguments: dict) -> None:
    with pytest.raises(InputError):
        Client("localhost").segment(STACK, SUPPORT, **arguments)


@pytest.mark.parametrize("option", ["strategy", "region"])
def test_an_option_that_the_backend_does_not_know_is_refused_before_anything_is_sent(
    url: str, backend: SmallBackend, option: str
) -> None:
    with pytest.raises(InputError, match=f"The {option} 'other' was given; the backend accepts"):
        collected(Client(url).segment(STACK, SUPPORT, **{option: "other"}))
    assert backend.puts() == []


# -- what breaks is taken up again -------------------------------------------------------------------------------------


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
        run = Client(url).segment(STACK, support)
        found = collected(run)
        assert set(found) == places(1, without={(1, 2)} if support is SUPPORT else set())
        assert [one.finished for one in found.values()] == list(range(1, len(found) + 1))
        first, again = backend.asked
        assert (first["finished"], first["lanes"], first["found"]) == ([], [], None)
        assert {**again, "finished": [], "lanes": [], "found": None} == first
        number = min(max(after - before, 0), 2 * slices)
        assert (len(again["lanes"]), len(again["finished"])) == ((number + 1) // 2, number // 2)
        assert (again["found"] is not None) is (support is OTHER_SCAN and after > 2)
        state = run.state
        assert [fields["index"] for fields in state.finished] == [index for _, index in found]
        assert again["lanes"] == state.lanes[: len(again["lanes"])]
        if again["found"] is not None:
            assert again["found"] == state.found


def test_many_cuts_in_a_row_lose_nothing(url: str, backend: SmallBackend) -> None:
    backend.faults.extend(Fault(after=5) for _ in range(6))
    assert set(collected(Client(url).segment(STACK, SUPPORT))) == places(1, without={(1, 2)})


def test_a_backend_that_breaks_without_anything_new_is_given_up(url: str, backend: SmallBackend) -> None:
    backend.faults.extend(Fault(after=2) for _ in range(20))
    with pytest.raises(ConnectionLost, match="lost and did not come back"):
        collected(Client(url).segment(STACK, SUPPORT))
    assert len(backend.asked) == remote_run.MOST_IN_VAIN + 1


@pytest.mark.parametrize(
    "told",
    [
        {"type": "start", "total": 1},
        {"type": "slice", "index": -1},
        {"type": "slice", "index": 5000},
        {"type": "slice", "label": 9},
        {"type": "lane", "start": 70},
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
        collected(Client(url).segment(STACK, SUPPORT))


def test_an_end_before_all_slices_have_come_is_a_failure(
    url: str, backend: SmallBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = small_backend.records

    def short(asked: dict[str, Any], backend: SmallBackend) -> Iterator[dict[str, Any]]:
        told = list(right(asked, backend))
        yield from (told[place] for place in (0, 1, 2, 3, -1))

    monkeypatch.setattr(small_backend, "records", short)
    with pytest.raises(BackendFailed, match="ended after"):
        collected(Client(url).segment(STACK, SUPPORT))


def test_slices_that_the_backend_has_lost_are_sent_again(url: str, backend: SmallBackend) -> None:
    backend.faults.extend([Fault(after=6), Fault(forget=True)])
    assert set(collected(Client(url).segment(STACK, SUPPORT))) == places(1, without={(1, 2)})
    assert sorted(backend.puts()) == sorted(2 * ADDRESSES)
    assert len(backend.asked[2]["finished"]) == 2


def test_a_backend_that_keeps_losing_slices_is_given_up(url: str, backend: SmallBackend) -> None:
    backend.faults.extend(Fault(forget=True) for _ in range(20))
    with pytest.raises(SlicesMissing, match="does not keep the slices"):
        collected(Client(url).segment(STACK, SUPPORT))
    assert len(backend.asked) == remote_run.MOST_IN_VAIN + 1


@pytest.mark.parametrize("code", ["queue_full", "stopping"])
def test_a_busy_backend_is_asked_again_when_it_said(url: str, backend: SmallBackend, code: str) -> None:
    backend.faults.extend([Fault(status=503, code=code, retry_after=wait) for wait in ("0", "", "soon", "0")])
    assert len(collected(Client(url).segment(STACK, SUPPORT))) == 6
    assert len(backend.asked) == 5


def test_a_backend_that_stays_busy_is_given_up_after_patience(url: str, backend: SmallBackend) -> None:
    backend.faults.append(Fault(status=503, retry_after="3600"))
    with pytest.raises(BackendBusy, match="busy with other runs"):
        collected(Client(url).segment(STACK, SUPPORT, patience=5))
    assert len(backend.asked) == 1


@pytest.mark.parametrize("code", ["stopping", "stalled", "slices_missing"])
def test_a_backend_that_stops_within_a_run_is_asked_again(url: str, backend: SmallBackend, code: str) -> None:
    backend.faults.append(Fault(after=6, error=code))
    assert len(collected(Client(url).segment(STACK, SUPPORT))) == 6
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
    run, count = Client(url).segment(STACK, SUPPORT), 0
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
        collected(Client(url).segment(STACK, SUPPORT))
    assert len(backend.asked) == 1


def test_a_silent_backend_is_left_and_asked_again(url: str, backend: SmallBackend) -> None:
    backend.faults.append(Fault(after=6, silent=True))
    assert len(collected(Client(url, timeout=0.5).segment(STACK, SUPPORT))) == 6
    assert backend.left.wait(5)


def test_a_backend_that_does_not_come_back_is_lost_and_the_state_goes_on_elsewhere(backend: SmallBackend) -> None:
    backend.faults.append(Fault(after=6))
    with backend.serve() as url:
        run = Client(url).segment(STACK, SUPPORT, patience=0.2)
        records = iter(run)
        first = [next(records), next(records)]
    with run, pytest.raises(ConnectionLost, match="did not come back") as lost:
        next(records)
    assert isinstance(lost.value.__cause__, BackendError)
    kept = json.loads(json.dumps(asdict(run.state)))

    state = RunState(**kept)
    before = list(state.records(STACK.native_shape))
    assert [(one.label, one.index, one.finished, one.total) for one in before] == [(1, 0, 1, 6), (1, 1, 2, 6)]
    assert all(np.array_equal(one.probability, two.probability) for one, two in zip(first, before, strict=True))
    with backend.serve() as url:
        found = collected(Client(url).segment(STACK, SUPPORT, resume=state))
    assert set(found) == places(1, without={(1, 0), (1, 1), (1, 2)})
    assert [(one.finished, one.total) for one in found.values()] == [(3, 6), (4, 6), (5, 6), (6, 6)]
    assert len(state.finished) == 2, "what was handed in is left as it is"


def test_a_state_of_another_run_is_refused(url: str) -> None:
    run = Client(url).segment(STACK, SUPPORT)
    collected(run)
    with pytest.raises(InputError, match="of a run with other slices or options"):
        Client(url).segment(STACK, SUPPORT, threshold=0.3, resume=run.state)
    with pytest.raises(InputError, match="of a run with other slices or options"):
        Client(url).segment(STACK, TWO_LABELS, labels=[1], resume=run.state)
    assert collected(Client(url).segment(STACK, SUPPORT, resume=run.state)) == {}


def test_results_of_two_models_are_not_mixed(url: str, backend: SmallBackend) -> None:
    backend.faults.append(Fault(after=6))
    with Client(url).segment(STACK, SUPPORT) as run:
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
        collected(Client(url).segment(STACK, SUPPORT))


# -- cancelling --------------------------------------------------------------------------------------------------------


def test_cancelling_from_another_thread_closes_the_connection_at_once(url: str, backend: SmallBackend) -> None:
    backend.faults.append(Fault(after=6, silent=True))
    run, got, ended = Client(url).segment(STACK, SUPPORT), [], []

    def work() -> None:
        try:
            with run:
                for record in run:
                    got.append(record)
        except Cancelled as error:
            ended.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    assert backend.reached.wait(10) and wait_for(lambda: len(got) == 2)
    run.cancel()
    worker.join(10)
    assert not worker.is_alive() and len(ended) == 1 and len(got) == 2
    assert backend.left.wait(10)


def test_leaving_the_block_closes_the_connection(url: str, backend: SmallBackend) -> None:
    backend.faults.append(Fault(after=6, silent=True))
    with Client(url).segment(STACK, SUPPORT) as run:
        for _ in run:
            break
    assert backend.left.wait(10)
    with pytest.raises(StopIteration):
        next(iter(run))


def test_the_caller_is_asked_at_every_record(url: str, backend: SmallBackend) -> None:
    got: list[SliceRecord] = []
    with Client(url).segment(STACK, SUPPORT, cancel=lambda: len(got) == 3) as run, pytest.raises(Cancelled):
        for record in run:
            got.append(record)
    assert len(got) == 3


def test_waiting_for_a_backend_can_be_cancelled(url: str, backend: SmallBackend) -> None:
    backend.faults.append(Fault(status=503, retry_after="30"))
    run = Client(url).segment(STACK, SUPPORT)
    watcher = threading.Thread(target=lambda: wait_for(lambda: run.phase == "reconnecting") and run.cancel())
    watcher.start()
    with pytest.raises(Cancelled):
        collected(run)
    watcher.join()


def test_a_run_that_is_cancelled_before_it_begins_sends_nothing(url: str, backend: SmallBackend) -> None:
    run = Client(url).segment(STACK, SUPPORT)
    run.cancel()
    with pytest.raises(Cancelled):
        collected(run)
    assert backend.requests == []


def test_sending_within_a_run_is_cancelled_by_another_thread(url: str, backend: SmallBackend) -> None:
    backend.hold_puts = True
    run = Client(url).segment(STACK, SUPPORT)
    watcher = threading.Thread(target=lambda: backend.reached.wait(10) and run.cancel())
    watcher.start()
    with pytest.raises(Cancelled):
        collected(run)
    watcher.join()
    assert run.phase == "sending" and backend.left.wait(10)


def wait_for(happened) -> bool:
    until = time.monotonic() + 10
    while not happened() and time.monotonic() < until:
        time.sleep(0.005)
    return happened()


# -- proxies -----------------------------------------------------------------------------------------------------------


def test_another_computer_is_asked_through_the_proxy_of_the_environment(backend, monkeypatch) -> None:
    """Slices are compressed then, and go over four connections at once."""
    backend.first_puts = threading.Barrier(4, timeout=10)
    scan = Volume(np.broadcast_to(np.arange(7, dtype=np.int16)[:, None, None], SHAPE).copy(), GRID)
    with backend.serve() as url:
        proxy = Proxy(int(url.rpartition(":")[2]))
        with proxy.serve() as port:
            monkeypatch.setenv("http_proxy", f"http://me:p%40ss@localhost:{port}")
            client = Client("backend.example:7861")
            assert not client.is_local
            assert len(collected(client.segment(SliceStack.of(scan, 0), painted(scan, (2, 1))))) == 6
    assert proxy.heads[0].startswith("GET http://backend.example:7861/capabilities HTTP/1.1\r\n")
    assert all("Proxy-Authorization: Basic bWU6cEBzcw==" in head for head in proxy.heads)
    assert all("Host: backend.example:7861" in head for head in proxy.heads)
    assert len(proxy.heads) == 1 + 4
    assert max(backend.sizes) < SCAN.voxels[0].nbytes


def test_tls_goes_through_the_proxy_as_a_tunnel(backend, monkeypatch, certificate: Path) -> None:
    with backend.serve(server_context(certificate)) as url:
        proxy = Proxy(int(url.rpartition(":")[2]))
        with proxy.serve() as port:
            monkeypatch.setenv("HTTPS_PROXY", f"localhost:{port}")
            found = Client("https://backend.example:7861", ca_file=str(certificate)).capabilities()
    assert found.version == "9.9"
    assert proxy.heads[0].startswith("CONNECT backend.example:7861 HTTP/1.")


@pytest.mark.parametrize("variable", ["http_proxy", "all_proxy"])
def test_this_computer_is_never_asked_through_a_proxy(url: str, monkeypatch, variable: str) -> None:
    monkeypatch.setenv(variable, f"http://localhost:{closed_port()}")
    assert Client(url).capabilities().version == "9.9"
    assert Client(url.replace("127.0.0.1", "localhost")).capabilities().version == "9.9"


def test_names_without_a_proxy_are_asked_directly(monkeypatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://localhost:{closed_port()}")
    with pytest.raises(BackendRefused, match="localhost:[0-9]+, which the environment names, refuses"):
        Client("nowhere.invalid:7861").capabilities()
    monkeypatch.setenv("no_proxy", "nowhere.invalid")
    with pytest.raises(BackendNotFound, match="no computer named nowhere.invalid"):
        Client("nowhere.invalid:7861").capabilities()


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n", "asks for a name and password"),
        (b"HTTP/1.1 502 Bad\r\nContent-Length: 0\r\n\r\n", "the backend behind it is not"),
    ],
)
def test_a_proxy_that_refuses_is_told_from_the_backend(monkeypatch, reply: bytes, words: str) -> None:
    with Proxy(closed_port(), refuse=reply).serve() as port:
        monkeypatch.setenv("http_proxy", f"localhost:{port}")
        with pytest.raises(BackendError, match=words):
            Client("backend.example:7861").capabilities()
        monkeypatch.setenv("https_proxy", f"localhost:{port}")
        with pytest.raises(BackendNotFound, match="through the proxy localhost"):
            Client("https://backend.example:7861").capabilities()


@pytest.mark.parametrize("proxy", ["socks5://localhost:1080", "http://", "http://host:port"])
def test_a_proxy_of_another_kind_is_refused_in_a_sentence(monkeypatch, proxy: str) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(BackendNotFound, match="add backend.example to NO_PROXY"):
        Client("backend.example:7861").capabilities()


# -- TLS ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate that signs itself, with its key behind it in one file."""
    return self_signed(tmp_path_factory.mktemp("tls"))


def server_context(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def test_a_certificate_is_trusted_by_choice_only(backend: SmallBackend, certificate: Path) -> None:
    with backend.serve(server_context(certificate)) as url:
        with pytest.raises(TlsRefused, match="is not trusted .*name it as ca_file"):
            Client(url).capabilities()
        with pytest.raises(TlsRefused, match="is not trusted .*mismatch"):  # made for another name
            Client(url.replace("127.0.0.1", "localhost"), ca_file=str(certificate)).capabilities()
        assert backend.requests == []
        assert Client(url, verify=False).capabilities().version == "9.9"
        assert len(collected(Client(url, ca_file=str(certificate)).segment(STACK, SUPPORT))) == 6


def test_a_run_over_tls_is_resumed_and_cancelled(backend: SmallBackend, certificate: Path) -> None:
    with backend.serve(server_context(certificate)) as url:
        client = Client(url, ca_file=str(certificate))
        backend.faults.extend([Fault(after=6), Fault(after=5, silent=True)])
        run = client.segment(STACK, SUPPORT)
        watcher = threading.Thread(target=lambda: wait_for(lambda: len(run.state.finished) == 3) and run.cancel())
        watcher.start()
        with pytest.raises(Cancelled):
            collected(run)
        watcher.join()
        assert len(run.state.finished) == 3 and backend.left.wait(10)


def test_http_where_tls_is_spoken_and_the_other_way_round_is_said(backend, certificate: Path) -> None:
    with backend.serve() as url, pytest.raises(NotABackend, match="does not speak TLS. Write http://"):
        Client(url.replace("http:", "https:")).capabilities()
    with backend.serve(server_context(certificate)) as url, pytest.raises(BackendError):
        Client(url.replace("https:", "http:")).capabilities()


def test_a_certificate_file_that_is_none_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    other.write_text("no certificate")
    for path in (other, tmp_path / "absent.pem"):
        with pytest.raises(InputError, match="give a PEM file"):
            Client("https://localhost", ca_file=str(path))
