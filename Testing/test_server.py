"""The backend over real sockets: right answers for many at once, one sentence for each bad request, nothing held."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from SDFSMISLib import Segmenter
from SDFSMISLib.client import Client
from SDFSMISLib.model.unet import Hints, SupportBank
from SDFSMISLib.options import RunOptions
from SDFSMISLib.server.settings import ServerLimits
from SDFSMISLib.wire import content_address, encode_array, pack_array, read_record
from serving import Backend, Task, request_of, running, task, until
from small_scans import BrightPipeline

TOKENS = ("first-token-of-16-letters", "second-token-of-16-letters")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    with running() as made:
        yield made


@pytest.fixture(scope="module")
def shared() -> Iterator[Backend]:
    """A backend of several users."""
    with running(tokens=TOKENS) as made:
        yield made


def records(answer: bytes) -> list[dict[str, Any]]:
    return [read_record(line) for line in answer.splitlines(keepends=True)]


def segmented(client: Client, asked: Task, **options: Any) -> dict[int, np.ndarray]:
    with client.segment(asked.stack, asked.support, **options) as run:
        return {one.index: one.probability for one in run}


def is_right(found: dict[int, np.ndarray], asked: Task) -> bool:
    """Whether the ball was found on all slices but the painted one."""
    truth = asked.truth.voxels > 0
    open_slices = set(range(len(truth))) - {piece.index for piece in asked.support.slices}
    ours = np.stack([found[index] > 127 for index in sorted(open_slices)])
    theirs = truth[sorted(open_slices)]
    return set(found) == open_slices and 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()) > 0.95


# -- the way that all go


def test_a_painted_slice_becomes_all_others(backend: Backend) -> None:
    asked = task()
    status, headers, answer = backend.ask("POST", "/segmentations", request_of(backend, asked))
    told = records(answer)
    assert status == 200 and headers["content-type"].startswith("application/x-ndjson")
    assert [told[0]["type"], told[-1]["type"]] == ["start", "end"] and told[0]["total"] == 11
    slices = [one for one in told if one["type"] == "slice"]
    assert sorted(one["index"] for one in slices) == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11]
    assert [one["finished"] for one in slices] == list(range(1, 12))
    assert set(told[-1]["seconds"]) == {"total", "waiting", "computing"} and told[-1]["slices"] == 11
    assert is_right(segmented(backend.client(), asked), asked)


def test_the_same_scan_is_sent_once(backend: Backend) -> None:
    asked, sent = task(seed=5), []
    for _ in range(2):
        with backend.client().segment(asked.stack, asked.support) as run:
            list(run)
        missing = backend.ask("POST", "/slices/missing", {"slices": [content_address(asked.scan.slice(0, 3))]})
        sent.append(json.loads(missing[2]))
    assert sent == [{"missing": []}, {"missing": []}]
    metrics = backend.ask("GET", "/metrics")[2].decode()
    assert 'sdfsmis_stored_slices_asked_total{there="yes"}' in metrics


def test_a_correction_encodes_only_what_looks_otherwise(backend: Backend) -> None:
    """Whole slices look the same whatever is painted."""
    asked, engine = task((14, 40, 40), seed=6), backend.engine
    corrected = task((14, 40, 40), painted=(7, 3), seed=6)
    segmented(backend.client(), asked, options=RunOptions("independent", "full"))
    misses = engine.latents.misses
    assert is_right(segmented(backend.client(), corrected, options=RunOptions("independent", "full")), corrected)
    assert engine.latents.misses == misses and engine.latents.hits > 0


def test_what_was_deleted_is_gone(backend: Backend) -> None:
    address = backend.put(np.arange(12, dtype=np.int16).reshape(3, 4))
    assert backend.ask("HEAD", f"/slices/{address}")[0] == 200
    assert backend.ask("DELETE", f"/slices/{address}")[0] == 204
    assert backend.ask("HEAD", f"/slices/{address}")[0] == 404
    assert backend.ask("DELETE", f"/slices/{address}")[0] == 204


def test_twenty_clients_at_once_get_each_their_own_answer(backend: Backend) -> None:
    tasks = [task((8 + number % 5, 30 + number, 44 - number), seed=number) for number in range(20)]
    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(lambda asked: segmented(backend.client(), asked), tasks))
    for asked, one in zip(tasks, found, strict=True):
        local = Segmenter(BrightPipeline()).segment(asked.scan, asked.support)
        for index, probability in one.items():
            np.testing.assert_array_equal(probability, local.probabilities[1][index])
        assert len(one) == len(asked.scan.voxels) - 1


def test_memory_is_flat_over_five_hundred_requests() -> None:
    limits = ServerLimits(store_bytes=1 << 18, latent_bytes=1 << 18)
    with running(limits=limits) as backend:
        process = psutil.Process()

        def asked(number: int) -> None:
            one = task((4, 32, 32), seed=number % 40)
            answer = backend.ask("POST", "/segmentations", request_of(backend, one))[2]
            assert records(answer)[-1]["type"] == "end"

        for number in range(150):
            asked(number)
        before = process.memory_info().rss
        for number in range(500):
            asked(number)
        assert process.memory_info().rss - before < 24 << 20
        assert backend.store.bytes <= limits.store_bytes and backend.engine.latents.bytes <= limits.latent_bytes
        assert backend.engine.scheduler.active_runs == 0


# -- several users


def test_each_token_has_slices_of_its_own(shared: Backend) -> None:
    asked = task(seed=9)
    request = request_of(shared, asked)  # sent by the first
    second = {"Authorization": f"Bearer {TOKENS[1]}"}
    address = request["query"]["slices"][0][1]
    assert shared.ask("HEAD", f"/slices/{address}")[0] == 200
    assert shared.ask("HEAD", f"/slices/{address}", headers=second)[0] == 404
    status, _, answer = shared.ask("POST", "/segmentations", request, second)
    assert status == 409 and address in json.loads(answer)["error"]["missing"]
    shared.ask("DELETE", f"/slices/{address}", headers=second)
    assert shared.ask("HEAD", f"/slices/{address}")[0] == 200
    assert is_right(segmented(shared.client(TOKENS[1]), asked), asked)


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ({}, "token_missing"),
        ({"Authorization": "Basic abc"}, "token_missing"),
        ({"Authorization": "Bearer "}, "token_missing"),
        ({"Authorization": "Bearer wrong-token-of-16-letters"}, "token_wrong"),
        ({"Authorization": f"Bearer {TOKENS[0][:-1]}"}, "token_wrong"),
        ({"Authorization": "Bearer \xe9\xe9"}, "token_wrong"),
    ],
)
def test_without_the_token_nothing_is_told(shared: Backend, header: dict[str, str], code: str) -> None:
    anonymous = replace(shared, token=None)
    for method, path in [
        ("GET", "/capabilities"),
        ("GET", "/metrics"),
        ("POST", "/segmentations"),
        ("GET", "/nothing"),
    ]:
        status, headers, answer = anonymous.ask(method, path, headers=header)
        assert (status, json.loads(answer)["error"]["code"]) == (401, code)
        assert headers["www-authenticate"] == "Bearer"
    assert anonymous.ask("GET", "/healthz")[0] == 200


# -- bad requests


def changed(request: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """The request with one field, named by its path, of another value."""
    request = json.loads(json.dumps(request))
    *path, last = [int(name) if name.isdigit() else name for name in place.split(".")]
    inner = request
    for name in path:
        inner = inner[name]
    inner[last] = value
    return request


SHA = "0" * 64
BAD_FIELDS = [
    ("protocol", 2, 426, "protocol_mismatch"),
    ("protocol", "one", 422, "invalid_request"),
    ("query.axis", 3, 422, "invalid_request"),
    ("query.count", 0, 422, "invalid_request"),
    ("query.count", 5000, 413, "too_large"),
    ("query.count", 3, 422, "invalid_input"),
    ("query.shape", [40, 41], 422, "invalid_input"),
    ("query.shape", [40], 422, "invalid_request"),
    ("query.shape", [60000, 60000], 413, "too_large"),
    ("query.spacing", [1.0, 0.0], 422, "invalid_request"),
    ("query.spacing", [1.0, 1000.0], 422, "invalid_input"),
    ("query.thickness", -1, 422, "invalid_request"),
    ("query.plane", "oblique", 422, "invalid_request"),
    ("query.window", {"low": 5.0, "high": 1.0}, 422, "invalid_input"),
    ("query.window", {"low": None, "high": 1.0}, 422, "invalid_request"),
    ("query.slices", [[0, SHA]], 409, "slices_missing"),
    ("query.slices", [[0, "../../etc/passwd"]], 422, "invalid_request"),
    ("query.slices", [], 422, "invalid_input"),
    ("query.more", 1, 422, "invalid_request"),
    ("support", [], 422, "invalid_request"),
    ("support.0.slice", SHA, 409, "slices_missing"),
    ("support.0.shape", [20, 20], 422, "invalid_input"),
    ("support.0.masks", [], 422, "invalid_input"),
    ("support.0.masks.0.label", 0, 422, "invalid_request"),
    ("support.0.masks.0.label", 7, 422, "invalid_input"),
    ("support.0.masks.0.data", "%%%", 422, "invalid_input"),
    ("support.0.masks.0.data", "", 422, "invalid_input"),
    ("support.0.masks.0.data", encode_array(np.ones((40, 40), np.uint8)), 422, "invalid_input"),
    ("support.0.masks.0.data", encode_array(np.ones((4000, 4000), bool)), 422, "invalid_input"),
    ("labels", [], 422, "invalid_request"),
    ("labels", [2], 422, "invalid_input"),
    ("labels", list(range(1, 70)), 413, "too_large"),
    ("slices", [12], 422, "invalid_input"),
    ("slices", [-1], 422, "invalid_request"),
    ("slices", [], 422, "invalid_input"),
    ("strategy", "guess", 422, "invalid_request"),
    ("region", "middle", 422, "invalid_request"),
    ("threshold", 1, 422, "invalid_request"),
    ("threshold", 1e999, 422, "invalid_request"),
    ("support", [0] * 100_000, 422, "invalid_request"),
    ("finished", [0] * 100_000, 422, "invalid_request"),
    ("finished", [{"label": 1, "index": 12, "box": [0, 0, 0, 0], "data": ""}], 422, "invalid_input"),
    ("finished", [{"label": 2, "index": 0, "box": [0, 0, 0, 0], "data": ""}], 422, "invalid_input"),
    ("finished", [{"label": 1, "index": 0, "box": [0, 0, 0, 0], "data": ""}] * 13, 413, "too_large"),
    ("finished", [{"label": 1, "index": 0, "box": [0, 0, 50, 50], "data": ""}], 422, "invalid_input"),
    ("finished", [{"label": 1, "index": 0, "box": [0, 0, 2, 2], "data": "AAAA"}], 422, "invalid_input"),
    ("found", [{"label": 1, "index": 0, "box": [0, 0, 0, 0]}], 422, "invalid_request"),
]


@pytest.fixture(scope="module")
def good_request(backend: Backend) -> dict[str, Any]:
    return request_of(backend, task())


@pytest.mark.parametrize(("place", "value", "status", "code"), BAD_FIELDS)
def test_a_bad_field_is_refused_with_one_sentence(
    backend: Backend, good_request: dict[str, Any], place: str, value: Any, status: int, code: str
) -> None:
    answered, _, answer = backend.ask("POST", "/segmentations", changed(good_request, place, value))
    error = json.loads(answer)["error"]
    assert (answered, error["code"]) == (status, code), error
    assert error["message"].endswith(".") and "\n" not in error["message"] and len(error["message"]) < 900


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/nothing", None, 404, "not_found"),
        ("GET", "/slices/../../etc/passwd", None, 404, "not_found"),
        ("GET", f"/slices/{SHA}", None, 405, "method_not_allowed"),
        ("DELETE", "/slices/abc", None, 422, "invalid_request"),
        ("POST", "/segmentations", b"{", 400, "bad_request"),
        ("POST", "/segmentations", b"\xff\xfe", 400, "bad_request"),
        ("POST", "/segmentations", b"[" * 100000, 400, "bad_request"),
        ("POST", "/segmentations", b"", 422, "invalid_request"),
        ("POST", "/segmentations", b"null", 422, "invalid_request"),
        ("POST", "/slices/missing", {"slices": ["x"]}, 422, "invalid_request"),
        ("POST", "/slices/missing", {"slices": [SHA] * 70000}, 422, "invalid_request"),
        ("PUT", f"/slices/{SHA}", b"", 400, "bad_request"),
        ("PUT", f"/slices/{SHA}", b"not a slice at all", 400, "bad_request"),
        ("PUT", f"/slices/{SHA}", pack_array(np.zeros((4, 4), np.int16)), 400, "bad_request"),
        ("PUT", f"/slices/{SHA}", pack_array(np.zeros((4, 4, 4), np.int16)), 400, "bad_request"),
        ("PUT", f"/slices/{SHA}", pack_array(np.zeros((0, 4), np.int16)), 400, "bad_request"),
        ("PUT", f"/slices/{SHA}", pack_array(np.zeros((5000, 4000), np.uint8)), 413, "too_large"),
        ("PUT", f"/slices/{SHA}", pack_array(np.zeros((1 << 15, 1 << 14), bool)), 413, "too_large"),
    ],
)
def test_a_bad_request_is_refused(backend: Backend, method: str, path: str, body: Any, status: int, code: str) -> None:
    answered, _, answer = backend.ask(method, path, body, {"Content-Type": "application/json"})
    assert (answered, json.loads(answer)["error"]["code"]) == (status, code)


def test_a_body_that_is_too_large_is_refused_whether_or_not_it_says_so() -> None:
    with running(limits=ServerLimits(body_bytes=1000, slice_pixels=100)) as backend:
        status, _, answer = backend.ask("PUT", f"/slices/{SHA}", bytes(2000))
        assert (status, json.loads(answer)["error"]["code"]) == (413, "too_large")
        for path in ("/segmentations", "/slices/missing", f"/slices/{SHA}"):
            connection = http.client.HTTPConnection("127.0.0.1", backend.port, timeout=10)
            chunks = (b"x" * 100 for _ in range(30))
            method = "PUT" if path.endswith(SHA) else "POST"
            connection.request(method, path, chunks, encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
            response = connection.getresponse()
            assert (response.status, json.loads(response.read())["error"]["code"]) == (413, "too_large")
            connection.close()


def test_many_labels_on_many_slices_are_refused_before_they_take_memory(
    backend: Backend, good_request: dict[str, Any]
) -> None:
    with running(limits=ServerLimits(masked_pixels=40 * 40 * 20)) as small:
        asked = request_of(small, task())
        asked["support"][0]["complete"] = True
        asked["labels"] = list(range(1, 21))
        status, _, answer = small.ask("POST", "/segmentations", asked)
        assert (status, json.loads(answer)["error"]["code"]) == (413, "too_large")


def test_a_proxy_before_a_backend_without_a_token_is_refused(backend: Backend) -> None:
    for name in ("Forwarded", "X-Forwarded-For", "X-Real-IP"):
        status, _, answer = backend.ask("GET", "/capabilities", headers={name: "203.0.113.7"})
        assert (status, json.loads(answer)["error"]["code"]) == (403, "origin_refused")


def test_pages_of_others_and_foreign_names_of_this_computer_are_refused(backend: Backend) -> None:
    for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}, {"Host": "evil.example:7861"}):
        status, _, answer = backend.ask("GET", "/capabilities", headers=headers)
        assert (status, json.loads(answer)["error"]["code"]) == (403, "origin_refused")
    own = {"Origin": backend.url, "Host": f"127.0.0.1:{backend.port}"}
    status, answered, _ = backend.ask("GET", "/capabilities", headers=own)
    assert status == 200 and "access-control-allow-origin" not in answered


def test_the_page_of_the_interface_needs_nothing_from_elsewhere(backend: Backend) -> None:
    page = backend.ask("GET", "/docs")[2].decode()
    assert "swagger-ui-bundle.js" in page and "https://" not in page
    assert len(backend.ask("GET", "/docs/swagger-ui-bundle.js")[2]) > 100_000


def test_random_bytes_on_the_socket_do_not_stop_the_backend(backend: Backend) -> None:
    for garbage in (
        b"\x00" * 100,
        b"GET / HTTP/9.9\r\n\r\n",
        b"PUT /slices/x HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc",
    ):
        with socket.create_connection(("127.0.0.1", backend.port), timeout=5) as raw:
            raw.sendall(garbage)
    assert backend.ask("GET", "/healthz")[0] == 200


# -- a device that is busy, small, broken


class Gated(BrightPipeline):
    """A pipeline whose passes the test lets through one by one; it counts those that have begun."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.begun, self.is_open = threading.Semaphore(0), 0, True

    def segment(self, latents: torch.Tensor, bank: SupportBank, hints: Hints | None = None) -> torch.Tensor:
        self.begun += 1
        if not self.is_open:
            assert self.gate.acquire(timeout=20)
        return super().segment(latents, bank, hints)

    def shut(self) -> None:
        self.is_open, self.begun = False, 0


@pytest.fixture
def gated() -> Iterator[tuple[Backend, Gated]]:
    pipeline = Gated()
    with running(pipeline, ServerLimits(queue=2)) as backend:
        pipeline.shut()
        yield backend, pipeline
        pipeline.is_open = True
        for _ in range(1000):
            pipeline.gate.release()


def begun(backend: Backend, request: dict[str, Any]) -> socket.socket:
    """A segmentation that was asked for and whose stream has begun; closing the socket leaves it."""
    body = json.dumps(request).encode()
    raw = socket.create_connection(("127.0.0.1", backend.port), timeout=10)
    raw.sendall(b"POST /segmentations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
    raw.sendall(b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert b"200 OK" in raw.recv(1 << 16)
    return raw


def test_a_client_that_vanishes_frees_the_device_within_a_batch(gated: tuple[Backend, Gated]) -> None:
    backend, pipeline = gated
    raw = begun(backend, request_of(backend, task((40, 40, 40))))
    until(lambda: pipeline.begun == 1)
    raw.close()
    until(lambda: next(iter([backend.engine.scheduler._on_device])).is_cancelled)
    pipeline.gate.release()
    until(lambda: backend.engine.scheduler.active_runs == 0)
    assert pipeline.begun == 1


def test_a_full_queue_says_when_to_come_again(gated: tuple[Backend, Gated]) -> None:
    backend, _ = gated
    request = request_of(backend, task())
    held = [begun(backend, request) for _ in range(2)]
    status, headers, answer = backend.ask("POST", "/segmentations", request)
    assert (status, json.loads(answer)["error"]["code"]) == (503, "queue_full")
    assert 1 <= int(headers["retry-after"]) <= 60
    for raw in held:
        raw.close()


def test_runs_do_not_hold_more_memory_than_is_accepted() -> None:
    asked = task()
    with running(limits=ServerLimits(reserved_bytes=asked.scan.voxels.nbytes + 6400)) as backend:
        request = request_of(backend, asked)
        assert records(backend.ask("POST", "/segmentations", request)[2])[-1]["type"] == "end"
        assert records(backend.ask("POST", "/segmentations", request)[2])[-1]["type"] == "end"
        larger = request_of(backend, task((14, 40, 40)))
        status, _, answer = backend.ask("POST", "/segmentations", larger)
        assert (status, json.loads(answer)["error"]["code"]) == (503, "queue_full")


def test_a_small_request_is_not_stuck_behind_a_large_one(gated: tuple[Backend, Gated]) -> None:
    backend, pipeline = gated
    large = begun(backend, request_of(backend, task((200, 24, 24), painted=(100,))))
    until(lambda: pipeline.begun == 1)
    small = task((5, 40, 40), seed=3)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(segmented, backend.client(), small)
        until(lambda: backend.engine.scheduler.active_runs == 2)
        for _ in range(10):
            pipeline.gate.release()
        assert len(answer.result(20)) == 4
    assert backend.engine.scheduler.active_runs == 1
    large.close()


def test_a_client_that_does_not_read_does_not_hold_the_device() -> None:
    limits = ServerLimits(unsent_bytes=1 << 16, stall_seconds=1.0)
    with running(limits=limits) as backend:
        lazy = begun(backend, request_of(backend, task((120, 160, 160))))
        other = task(seed=4)
        assert is_right(segmented(backend.client(), other), other)
        until(lambda: backend.engine.scheduler.active_runs == 0)
        lazy.close()


class Poisoned(BrightPipeline):
    """A pipeline that fails on bright images of one size, by the error it is given."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error, self.is_poisoned = error, False

    def segment(self, latents: torch.Tensor, bank: SupportBank, hints: Hints | None = None) -> torch.Tensor:
        if self.is_poisoned:
            raise self.error
        return super().segment(latents, bank, hints)


@pytest.mark.parametrize(
    ("error", "code"),
    [(ValueError("no such thing"), "failed"), (torch.cuda.OutOfMemoryError("CUDA out of memory"), "out_of_memory")],
)
def test_a_poisoned_request_gets_its_error_and_the_next_one_works(error: Exception, code: str) -> None:
    pipeline, asked = Poisoned(error), task()
    with running(pipeline) as backend:
        request = request_of(backend, asked)
        pipeline.is_poisoned = True
        last = records(backend.ask("POST", "/segmentations", request)[2])[-1]
        assert (last["type"], last["code"]) == ("error", code) and "no such thing" not in last["message"]
        pipeline.is_poisoned = False
        assert is_right(segmented(backend.client(), asked), asked)


def test_a_device_that_failed_for_good_is_told_and_refuses_more() -> None:
    pipeline = Poisoned(RuntimeError("CUDA error: an illegal memory access was encountered"))
    with running(pipeline) as backend:
        request = request_of(backend, task())
        pipeline.is_poisoned = True
        last = records(backend.ask("POST", "/segmentations", request)[2])[-1]
        assert (last["type"], last["code"]) == ("error", "stopping")
        status, _, answer = backend.ask("GET", "/healthz")
        assert (status, json.loads(answer)["status"]) == (503, "device lost")


class Crowded(BrightPipeline):
    """A device that holds two queries at a time."""

    def segment(self, latents: torch.Tensor, bank: SupportBank, hints: Hints | None = None) -> torch.Tensor:
        if len(latents) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return super().segment(latents, bank, hints)


def test_a_device_out_of_memory_gets_less_at_a_time() -> None:
    asked = task((20, 40, 40))
    with running(Crowded()) as backend:
        assert is_right(segmented(backend.client(), asked, options=RunOptions("independent")), asked)


def test_runs_are_told_that_the_backend_stops_and_new_ones_are_refused(gated: tuple[Backend, Gated]) -> None:
    backend, pipeline = gated
    request = request_of(backend, task())
    raw = begun(backend, request)
    until(lambda: pipeline.begun == 1)
    backend.engine.scheduler.stop(0.0)
    status, headers, answer = backend.ask("POST", "/segmentations", request)
    assert (status, json.loads(answer)["error"]["code"]) == (503, "stopping") and "retry-after" in headers
    pipeline.gate.release()
    told = b""
    while b'"code":"stopping"' not in told:
        told += raw.recv(1 << 16)
    raw.close()
    assert backend.ask("GET", "/healthz")[0] == 503
