"""The backend refuses a bad request with one sentence, over real sockets, whatever is wrong with it."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from SDFSMISLib.server.settings import ServerLimits
from SDFSMISLib.wire import PROTOCOL, content_address, encode_array, join_slices, pack_array
from serving import Backend, request_of, running, task


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    with running() as made:
        yield made


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
SLICE = (content_address(np.zeros((4, 4))), pack_array(np.zeros((4, 4))))
BOMB = (content_address(np.zeros((10, 10))), pack_array(np.zeros((10, 10))))
SAGITTAL = {
    "axis": 2,
    "orientation": {"transpose": True, "flip_rows": False, "flip_columns": True},
    "plane": "sagittal",
}
BAD_FIELDS = [
    ("protocol", 1, 426, "protocol_mismatch"),
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
    ("query.other_axes", [SAGITTAL, SAGITTAL], 422, "invalid_input"),
    ("query.other_axes", [SAGITTAL | {"axis": 0}], 422, "invalid_input"),
    ("query.other_axes", [SAGITTAL | {"axis": 3}], 422, "invalid_request"),
    ("query.other_axes", [SAGITTAL | {"plane": "oblique"}], 422, "invalid_request"),
    ("query.other_axes", [SAGITTAL] * 3, 422, "invalid_request"),
    ("support", [], 422, "invalid_request"),
    ("support.0.slice", SHA, 409, "slices_missing"),
    ("support.0.shape", [20, 20], 422, "invalid_input"),
    ("support.0.axis", 1, 422, "invalid_input"),
    ("support.0.index", 12, 422, "invalid_input"),
    ("support.0.known", "%%%", 422, "invalid_input"),
    ("support.0.known", encode_array(np.ones((40, 41), bool)), 422, "invalid_input"),
    ("support.0.known", encode_array(np.ones((40, 40), bool)), 422, "invalid_input"),
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
    ("finished", [{"label": 1, "axis": 0, "index": 12, "box": [0, 0, 0, 0], "data": ""}], 422, "invalid_input"),
    ("finished", [{"label": 2, "axis": 0, "index": 0, "box": [0, 0, 0, 0], "data": ""}], 422, "invalid_input"),
    ("finished", [{"label": 1, "axis": 0, "index": 0, "box": [0, 0, 0, 0], "data": ""}] * 13, 413, "too_large"),
    ("finished", [{"label": 1, "axis": 2, "index": 0, "box": [0, 0, 0, 0], "data": ""}], 422, "invalid_input"),
    ("finished", [{"label": 1, "axis": 0, "index": 0, "box": [0, 0, 50, 50], "data": ""}], 422, "invalid_input"),
    ("finished", [{"label": 1, "axis": 0, "index": 0, "box": [0, 0, 2, 2], "data": "AAAA"}], 422, "invalid_input"),
    ("found", [{"label": 1, "axis": 0, "index": 0, "box": [0, 0, 0, 0]}], 422, "invalid_request"),
    ("found", [{"label": 1, "axis": 1, "index": 0, "box": [0, 0, 0, 0], "data": ""}], 422, "invalid_input"),
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


def test_a_client_of_the_protocol_before_is_told_so_whatever_else_it_sends(
    backend: Backend, good_request: dict[str, Any]
) -> None:
    finished = [{"label": 1, "index": 0, "box": [0, 0, 0, 0], "data": ""}]  # without the axis, as it was
    before = good_request | {"protocol": PROTOCOL - 1, "finished": finished}
    status, headers, answer = backend.ask("POST", "/segmentations", before)
    said = f"speaks protocol {PROTOCOL}, and the request is of protocol {PROTOCOL - 1}; update the program that"
    assert status == 426 and said in json.loads(answer)["error"]["message"]
    assert headers["x-sdfsmis-protocol"] == str(PROTOCOL)


def test_slices_of_other_axes_need_all_slices(backend: Backend, good_request: dict[str, Any]) -> None:
    asked = changed(good_request, "query.other_axes", [SAGITTAL])
    asked["query"]["slices"].pop(3)
    status, _, answer = backend.ask("POST", "/segmentations", asked)
    assert status == 422 and "Slice 3 is needed" in json.loads(answer)["error"]["message"]


def test_a_painted_slice_without_an_address_is_one_of_the_scan(backend: Backend, good_request: dict[str, Any]) -> None:
    for scan, axis, shape in (("another", 0, [40, 40]), (good_request["query"]["scan"], 2, [12, 40])):
        asked = json.loads(json.dumps(good_request))
        asked["support"][0] |= {"slice": None, "scan": scan, "axis": axis, "shape": shape}
        status, _, answer = backend.ask("POST", "/segmentations", asked)
        assert status == 422 and "is none of the query's slices" in json.loads(answer)["error"]["message"]


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
        ("PUT", "/slices", b"not a slice at all", 400, "bad_request"),
        ("PUT", "/slices", join_slices([(SHA, b"not a slice at all")]), 400, "bad_request"),
        ("PUT", "/slices", join_slices([(SHA, pack_array(np.zeros((4, 4), np.int16)))]), 400, "bad_request"),
        ("PUT", "/slices", join_slices([SLICE, SLICE])[:-1], 400, "bad_request"),
        ("PUT", "/slices", join_slices(4097 * [SLICE]), 413, "too_large"),
        ("PUT", "/slices", join_slices([SLICE, (SHA, pack_array(np.zeros((5000, 4000), np.uint8)))]), 413, "too_large"),
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
        status, _, answer = backend.ask("PUT", "/slices", join_slices(6 * [BOMB]))
        assert (status, json.loads(answer)["error"]["code"]) == (413, "too_large"), "they are larger when unpacked"
        for path in ("/segmentations", "/slices", "/slices/missing", f"/slices/{SHA}"):
            connection = http.client.HTTPConnection("127.0.0.1", backend.port, timeout=10)
            chunks = (b"x" * 100 for _ in range(30))
            method = "PUT" if path in ("/slices", f"/slices/{SHA}") else "POST"
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
