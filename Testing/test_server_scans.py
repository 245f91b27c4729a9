"""Whole scans on the backend: put together from slices, each its owner's alone, gone when they are of no more use."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learning_examples import body_scan, refused, scan_request, send_scan
from SDFSMISLib import Volume
from SDFSMISLib.server.failures import Refused
from SDFSMISLib.server.limits import Limits
from SDFSMISLib.server.scans import ScanStore
from serving import Backend, running

TOKENS = ("first-token-of-16-letters", "second-token-of-16-letters")
SECOND = {"Authorization": f"Bearer {TOKENS[1]}"}
SHA = "0" * 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adaptations")


@pytest.fixture(scope="module")
def backend(folder: Path) -> Iterator[Backend]:
    with running(adaptations=folder, tokens=TOKENS) as made:
        yield made


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "scans").rglob("*") if path.is_file())


# -- the way that all go


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32, np.int64])
def test_a_scan_is_put_together_as_it_was(backend: Backend, folder: Path, dtype: type) -> None:
    scan = Volume(body_scan(1).voxels.astype(dtype), body_scan().geometry)
    content = send_scan(backend, scan)
    (path,) = (folder / "scans").rglob(f"{content}*")
    there = Volume.read(path)
    assert there.content_hash() == content
    np.testing.assert_array_equal(there.voxels, scan.voxels)
    assert there.geometry.same_grid(scan.geometry)
    assert backend.ask("HEAD", f"/scans/{content}")[0] == 200
    assert backend.ask("DELETE", f"/scans/{content}")[0] == 204
    assert backend.ask("HEAD", f"/scans/{content}")[0] == 404 and content not in "".join(files(folder))
    assert backend.ask("DELETE", f"/scans/{content}")[0] == 204


def test_a_scan_that_is_there_is_not_put_together_again_and_needs_no_slices(backend: Backend) -> None:
    scan = body_scan(2)
    content, request = send_scan(backend, scan), scan_request(backend, scan)
    for address in request["slices"]:
        backend.ask("DELETE", f"/slices/{address}")
    assert backend.ask("PUT", f"/scans/{content}", request)[0] == 200


def test_each_token_has_scans_of_its_own(backend: Backend) -> None:
    content = send_scan(backend, body_scan(3))
    assert backend.ask("HEAD", f"/scans/{content}", headers=SECOND)[0] == 404
    assert backend.ask("DELETE", f"/scans/{content}", headers=SECOND)[0] == 204
    assert backend.ask("HEAD", f"/scans/{content}")[0] == 200
    request = scan_request(backend, body_scan(3))
    assert refused(backend, "PUT", f"/scans/{content}", request, **SECOND) == (409, "slices_missing")


# -- what is refused


@pytest.fixture(scope="module")
def good(backend: Backend) -> tuple[str, dict[str, Any]]:
    scan = body_scan(4)
    return scan.content_hash(), scan_request(backend, scan)


TURN = [1.0, 0, 0, 0, 1, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("field", "value", "status", "code"),
    [
        ("protocol", 2, 426, "protocol_mismatch"),
        ("shape", [16, 48, 47], 422, "invalid_input"),
        ("shape", [15, 48, 48], 422, "invalid_input"),
        ("shape", [16, 48], 422, "invalid_request"),
        ("shape", [0, 48, 48], 422, "invalid_request"),
        ("shape", [60000, 60000, 60000], 422, "invalid_input"),
        ("spacing", [1.5, 1.25, 5.5], 400, "bad_request"),
        ("spacing", [1.5, 1.25, 0.0], 422, "invalid_request"),
        ("spacing", [1.5, 1.25, 1e5], 422, "invalid_input"),
        ("spacing", [1.5, 1.25, 1e999], 422, "invalid_request"),
        ("origin", [0.0, 0.0, 1e999], 422, "invalid_request"),
        ("origin", [0.0, 0.0, None], 422, "invalid_request"),
        ("origin", [0.0, 0.0, 0.0], 400, "bad_request"),
        ("direction", [-1.0, *TURN[1:]], 400, "bad_request"),
        ("direction", [2.0, *TURN[1:]], 422, "invalid_input"),
        ("direction", [0.0] * 9, 422, "invalid_input"),
        ("direction", TURN[:8], 422, "invalid_request"),
        ("direction", TURN * 1000, 422, "invalid_request"),
        ("slices", [], 422, "invalid_request"),
        ("slices", [SHA] * 16, 409, "slices_missing"),
        ("slices", [SHA] * 15, 422, "invalid_input"),
        ("slices", [SHA] * 70_000, 422, "invalid_request"),
        ("slices", ["../../etc/passwd"] * 16, 422, "invalid_request"),
        ("more", 1, 422, "invalid_request"),
    ],
)
def test_a_bad_field_is_refused_and_nothing_is_written(
    backend: Backend, folder: Path, good: tuple[str, dict[str, Any]], field: str, value: Any, status: int, code: str
) -> None:
    before = files(folder)
    assert refused(backend, "PUT", f"/scans/{good[0]}", {**good[1], field: value}) == (status, code)
    assert files(folder) == before


def test_slices_of_two_types_are_no_scan(backend: Backend, good: tuple[str, dict[str, Any]]) -> None:
    other = backend.put(np.zeros((48, 48), dtype=np.float32))
    request = {**good[1], "slices": [*good[1]["slices"][1:], other]}
    assert refused(backend, "PUT", f"/scans/{good[0]}", request) == (422, "invalid_input")


def test_slices_in_another_order_are_another_scan(backend: Backend, good: tuple[str, dict[str, Any]]) -> None:
    request = {**good[1], "slices": good[1]["slices"][::-1]}
    assert refused(backend, "PUT", f"/scans/{good[0]}", request) == (400, "bad_request")


@pytest.mark.parametrize(
    "path", ["/scans/abc", f"/scans/{SHA.replace('0', 'G')}", f"/scans/{SHA}%0a", f"/scans/..%2f{SHA[3:]}"]
)
def test_what_is_no_hash_is_no_scan(backend: Backend, good: tuple[str, dict[str, Any]], path: str) -> None:
    status, code = refused(backend, "PUT", path, good[1])
    assert (status, code) in [(422, "invalid_request"), (404, "not_found")]


@pytest.mark.parametrize("limits", [Limits(scan_bytes=16 * 48 * 48), Limits(slices=15)])
def test_a_scan_that_is_too_large_is_refused(tmp_path: Path, limits: Limits) -> None:
    scan = body_scan()
    with running(adaptations=tmp_path, limits=limits) as backend:
        request = scan_request(backend, scan)
        assert refused(backend, "PUT", f"/scans/{scan.content_hash()}", request) == (413, "too_large")


def test_a_request_that_is_longer_than_any_scan_needs_is_refused(tmp_path: Path) -> None:
    with running(adaptations=tmp_path, limits=Limits(body_bytes=1000)) as backend:
        request = scan_request(backend, body_scan())
        assert refused(backend, "PUT", f"/scans/{SHA}", request) == (413, "too_large")


def test_without_a_folder_nothing_of_it_is_offered() -> None:
    with running() as backend:
        scan = body_scan()
        lesson = {"protocol": 1, "name": "liver", "scans": [SHA], "minutes": 1.0}
        for method, path, body in [
            ("PUT", f"/scans/{SHA}", scan_request(backend, scan)),
            ("DELETE", f"/scans/{SHA}", None),
            ("POST", "/adaptations", lesson),
            ("DELETE", "/models/liver", None),
        ]:
            assert refused(backend, method, path, body) == (404, "not_offered")
        assert backend.ask("HEAD", f"/scans/{SHA}")[0] == 404
        assert b'"adaptations":null' in backend.ask("GET", "/capabilities")[2]


# -- how long they stay


def stored(store: ScanStore, name: str, age: float = 0.0) -> Path:
    content = name * 64
    store.put("", content, body_scan())
    path = store.path("", content)
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_what_was_not_used_for_too_long_goes_and_what_is_learned_from_stays(tmp_path: Path) -> None:
    store = ScanStore(tmp_path / "scans", 1 << 30, 100.0)
    old, used, held = stored(store, "a", 200), stored(store, "b", 200), stored(store, "c", 200)
    assert store.missing("", ["b" * 64, "d" * 64, "d" * 64]) == ["d" * 64]
    store.hold("", ["c" * 64])
    store.expire()
    assert (old.exists(), used.exists(), held.exists()) == (False, True, True)
    store.delete("", ["b" * 64, "c" * 64])
    assert (used.exists(), held.exists()) == (False, True)
    store.release()
    store.expire()
    assert held.exists()  # its hour begins now
    store.delete("", ["c" * 64])
    assert not held.exists()


def test_what_does_not_fit_is_refused_and_only_what_has_expired_makes_room(tmp_path: Path) -> None:
    size = stored(ScanStore(tmp_path / "first", 1 << 30, 100.0), "a").stat().st_size
    store = ScanStore(tmp_path / "scans", int(2.5 * size), 100.0)
    oldest, older = stored(store, "a", 20), stored(store, "b", 10)
    for owner, status in (("", 413), ("0" * 16, 503)):
        with pytest.raises(Refused) as refusal:
            store.put(owner, SHA, body_scan())
        assert refusal.value.status_code == status and not store.path(owner, SHA).exists()
    assert oldest.exists() and older.exists()
    os.utime(oldest, (time.time() - 200,) * 2)
    assert store.put("0" * 16, SHA, body_scan()) and not oldest.exists() and older.exists()


def test_a_scan_beyond_what_is_kept_is_refused_and_the_others_stay(tmp_path: Path) -> None:
    scans = [body_scan(seed) for seed in (1, 2)]
    size = scans[0].write(tmp_path / "one.nrrd").stat().st_size
    with running(adaptations=tmp_path / "on", limits=Limits(kept_scan_bytes=int(1.5 * size)), tokens=TOKENS) as backend:
        content = send_scan(backend, scans[0])
        request = scan_request(backend, scans[1])
        assert refused(backend, "PUT", f"/scans/{scans[1].content_hash()}", request) == (413, "too_large")
        theirs = Backend(backend.port, backend.engine, backend.store, TOKENS[1])
        request = scan_request(theirs, scans[1])
        status, headers, answer = theirs.ask("PUT", f"/scans/{scans[1].content_hash()}", request)
        assert (status, headers["retry-after"]) == (503, "60") and b"scans_full" in answer
        assert files(tmp_path / "on") == [f"{content}.nrrd"]


def test_what_a_backend_before_has_left_is_deleted(tmp_path: Path) -> None:
    left = stored(ScanStore(tmp_path / "scans", 1 << 30, 100.0), "a")
    ScanStore(tmp_path / "scans", 1 << 30, 100.0)
    assert not left.exists()


def test_no_scan_outlives_its_backend(tmp_path: Path) -> None:
    with running(adaptations=tmp_path) as backend:
        send_scan(backend, body_scan())
        assert len(files(tmp_path)) == 1
    assert files(tmp_path) == []
