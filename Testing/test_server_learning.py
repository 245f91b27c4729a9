"""Learning through the backend: one at a time, in a process of its own that ends when nobody listens, and goes on."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from learning_examples import (
    Listening,
    body_scan,
    child_program,
    finished_model,
    learned,
    lesson_request,
    models_of,
    refused,
    send_scan,
    small_child,
    small_weights,
    unfinished_model,
)
from SDFSMISLib import Segmenter, Volume
from SDFSMISLib.protocol import read_record
from SDFSMISLib.server import learning, learning_child, learning_stream
from SDFSMISLib.server.adaptations import RETRY_SECONDS
from SDFSMISLib.server.learning_child import ChildRequest
from SDFSMISLib.server.limits import Limits
from SDFSMISLib.server.models import LearnedModel, Lesson, Outcome
from serving import Backend, request_of, running, task, until
from small_learning_child import make_small

TOKENS = ("first-token-of-16-letters", "second-token-of-16-letters")
SECOND = {"Authorization": f"Bearer {TOKENS[1]}"}
SHA = "0" * 64

# What stand-ins for the process do; each has its request as `asked`.
WAITS = """
print(json.dumps({"type": "progress", "done": 3, "total": 9, "text": "Learning"}), flush=True)
sys.stdin.read()
print(json.dumps({"type": "cancelled"}), flush=True)
"""
STAYS = 'print(json.dumps({"type": "progress", "done": 0, "total": 1, "text": "Deaf"}), flush=True)\ntime.sleep(600)\n'
FINISHES = """
outcome = {"weights_sha256": "ab" * 32, "resolution": 32, "improved": False, "before": 0.5, "after": 0.5, "steps": 8,
    "seconds": 1.5, "scans": 1, "skipped": ["scan 12 is too small"]}
with open(asked["folder"] + "/learned.json", "w") as file:
    json.dump(outcome, file)
print(json.dumps({"type": "done"}), flush=True)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(learning, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(learning_stream, "PAUSE_SECONDS", 0.01)


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets a program take the place of the process that learns."""
    return lambda text: monkeypatch.setattr(learning, "COMMAND", child_program(tmp_path, text))


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[Backend]:
    with running(adaptations=tmp_path / "adaptations") as made:
        yield made


def learners() -> list[psutil.Process]:
    """The stand-ins that run now; other tests of a run may have left processes that serve many."""
    found = []
    for process in psutil.Process().children():
        with suppress(psutil.Error):  # it has ended meanwhile
            if "child.py" in " ".join(process.cmdline()):
                found.append(process)
    return found


def leave_off(backend: Backend, scan: str, child: Callable[[str], None]) -> None:
    """Weights begin to learn, and their client leaves."""
    child(WAITS)
    stream = Listening(backend, lesson_request([scan]))
    stream.until("progress")
    stream.leave()
    until(lambda: not is_running(backend))


@pytest.fixture
def scan(backend: Backend) -> str:
    return send_scan(backend, body_scan())


def is_there(backend: Backend, content: str) -> bool:
    return backend.ask("HEAD", f"/scans/{content}")[0] == 200


def is_running(backend: Backend) -> bool:
    return json.loads(backend.ask("GET", "/capabilities")[2])["adaptations"]["running"]


def folders(backend: Backend, tmp_path: Path) -> int:
    """Models on disk, finished or not."""
    return len(list((tmp_path / "adaptations" / "models").glob("*/*")))


# -- the real process


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)
    monkeypatch.setattr(learning, "COMMAND", small_child())
    monkeypatch.setattr(learning, "GRACE_SECONDS", 30.0)


def test_learning_that_was_cut_goes_on_in_another_backend_and_its_model_segments(tmp_path: Path, small: None) -> None:
    start, scan, folder = (
        Segmenter.from_pretrained(small_weights(tmp_path / "start"), "cpu"),
        body_scan(),
        tmp_path / "on",
    )
    content = cut_learning(folder, scan, start)
    with running(segmenter=start, adaptations=folder) as backend:
        request = lesson_request([content])
        assert refused(backend, "POST", "/adaptations", request) == (409, "scans_missing")
        send_scan(backend, scan)
        told = learned(backend, request)
        texts = [record["text"] for record in told if record["type"] == "progress"]
        assert any(text.startswith("Learning") for text in texts) and not any("Reading" in text for text in texts)
        begun, end = told[0], told[-1]
        assert (begun["model"], begun["weights_sha256"], begun["device"]) == (start.name, start.weights, "cpu")
        assert (end["type"], end["name"], end["scans"], end["skipped"]) == ("end", "liver of us", 1, [])
        assert end["steps"] >= 8 and end["seconds"] > 0 and end["improved"] == (end["after"] != end["before"])
        assert str(tmp_path) not in json.dumps(told[1:])

        assert models_of(backend) == [(start.name, False), ("liver of us", True)] and not is_there(backend, content)
        left = {path.name for path in folder.rglob("*")}
        assert not left & {"report.html", "pictures", "work", f"{content}.nrrd"} and "learned.json" in left
        found = backend.ask("POST", "/segmentations", request_of(backend, task((5, 40, 40)), model="liver of us"))[2]
        first, last = (read_record(line) for line in (found.splitlines(True)[0], found.splitlines(True)[-1]))
        assert (first["weights_sha256"], last["type"]) == (end["weights_sha256"], "end")


def cut_learning(folder: Path, scan: Volume, start: Segmenter) -> str:
    """What is left of a backend that ended when learning had just begun; the scan's content hash."""
    content = scan.content_hash()
    model = unfinished_model(folder, Lesson("liver of us", (content,), 0.03, start.weights))
    path = scan.write(folder / "scans" / "everybody" / f"{content}.nrrd")
    said: list[str] = []
    ended = learning_child._learned(
        ChildRequest(str(model.folder), (str(path),), start.name, "cpu"),
        lambda done, total, text: said.append(text),
        lambda: any(text.startswith("Learning") for text in said),
    )
    assert ended == {"type": "cancelled"} and said[0] == f"Reading {content}.nrrd"
    return content


# -- its end


def test_what_was_learned_is_told_again_and_another_request_of_its_name_is_refused(
    backend: Backend, scan: str, child: Callable[[str], None]
) -> None:
    child(FINISHES)
    request = lesson_request([scan, scan], name="  liver".strip())
    first = learned(backend, request)
    assert [record["type"] for record in first] == ["start", "end"] and first[0]["scans"] == 1
    assert first[1]["weights_sha256"] == "ab" * 32 and first[1]["skipped"] == ["scan 12 is too small"]
    assert not is_there(backend, scan) and models_of(backend) == [("bright", False), ("liver", True)]
    child("sys.exit(1)")
    assert learned(backend, request) == first  # the client that lost the last record; without scans
    for change in ({}, {"minutes": 0.04}, {"scans": [SHA]}):
        send_scan(backend, body_scan())
        if change:
            assert refused(backend, "POST", "/adaptations", {**request, **change}) == (409, "name_taken")
        else:
            assert learned(backend, request) == first
        assert is_there(backend, scan) == (change == {"scans": [SHA]})  # only what nobody learns from goes
    backend.ask("DELETE", f"/scans/{scan}")
    assert backend.ask("DELETE", "/models/liver")[0] == 204
    assert refused(backend, "POST", "/adaptations", request) == (409, "scans_missing")


def test_who_leaves_cancels_and_what_goes_on_is_kept(
    backend: Backend, scan: str, child: Callable[[str], None], tmp_path: Path
) -> None:
    child(WAITS)
    stream = Listening(backend, lesson_request([scan]))
    progress = stream.until("progress")
    assert (progress["done"], progress["total"], progress["text"]) == (3, 9, "Learning") and progress["seconds"] >= 0
    assert is_running(backend)
    assert refused(backend, "DELETE", "/models/liver%20of%20us") == (409, "model_in_use")
    backend.ask("DELETE", f"/scans/{scan}")  # it is learned from, and stays
    stream.leave()
    until(lambda: not is_running(backend))
    assert is_there(backend, scan) and folders(backend, tmp_path) == 1
    child(FINISHES)
    assert learned(backend, lesson_request([scan]))[-1]["type"] == "end" and folders(backend, tmp_path) == 1
    counted = backend.ask("GET", "/metrics")[2].decode()
    for outcome in ("cancelled", "done"):
        assert f'sdfsmis_adaptations_total{{outcome="{outcome}"}} 1.0' in counted


def test_another_request_takes_the_place_of_an_unfinished_one_of_its_name(
    backend: Backend, scan: str, child: Callable[[str], None], tmp_path: Path
) -> None:
    child(WAITS)
    stream = Listening(backend, lesson_request([scan]))
    stream.until("progress")
    (before,) = (tmp_path / "adaptations" / "models").glob("*/*")
    stream.leave()
    until(lambda: not is_running(backend))
    child(FINISHES)
    assert learned(backend, lesson_request([scan], minutes=0.5))[-1]["type"] == "end"
    assert not before.exists() and folders(backend, tmp_path) == 1


def test_an_unfinished_model_can_be_forgotten(
    backend: Backend, scan: str, child: Callable[[str], None], tmp_path: Path
) -> None:
    leave_off(backend, scan, child)
    assert is_there(backend, scan)
    assert backend.ask("DELETE", "/models/liver%20of%20us")[0] == 204 and folders(backend, tmp_path) == 0
    assert not is_there(backend, scan)


def test_what_a_process_has_finished_after_its_backend_was_killed_is_found(
    backend: Backend, scan: str, child: Callable[[str], None], tmp_path: Path
) -> None:
    leave_off(backend, scan, child)
    (folder,) = (tmp_path / "adaptations" / "models").glob("*/*")
    LearnedModel.read(folder).finish(Outcome("ab" * 32, 32, True, 0.5, 0.625, 8, 1.5, 1, ()))
    child("sys.exit(1)")
    assert [record["type"] for record in learned(backend, lesson_request([scan]))] == ["start", "end"]
    assert models_of(backend) == [("bright", False), ("liver of us", True)] and not is_there(backend, scan)


def test_a_process_that_does_not_hear_is_killed(backend: Backend, scan: str, child: Callable[[str], None]) -> None:
    child(STAYS)
    stream = Listening(backend, lesson_request([scan]))
    stream.until("progress")
    (process,) = learners()
    stream.leave()
    until(lambda: not is_running(backend))
    assert not process.is_running() and is_there(backend, scan)


@pytest.mark.parametrize(
    ("program", "code", "stays"),
    [
        ("import os\nos._exit(3)", "failed", True),
        ("print('no record', flush=True)\nsys.stdin.read()", "failed", True),
        ("print(json.dumps({'type': 'cut', 'code': 'out_of_memory', 'message': 'No.'}))", "out_of_memory", True),
        ("print(json.dumps({'type': 'error', 'code': 'failed', 'message': 'No.'}))", "failed", False),
        ("print(json.dumps({'type': 'error', 'code': 'invalid_input', 'message': 'No.'}))", "invalid_input", False),
    ],
)
def test_what_fails_says_why_and_stays_only_where_it_may_go_on(
    backend: Backend, scan: str, child: Callable[[str], None], tmp_path: Path, program: str, code: str, stays: bool
) -> None:
    child(program)
    last = learned(backend, lesson_request([scan]))[-1]
    assert (last["type"], last["code"]) == ("error", code)
    assert is_there(backend, scan) == stays and folders(backend, tmp_path) == stays and not is_running(backend)
    child(FINISHES)
    send_scan(backend, body_scan())
    assert learned(backend, lesson_request([scan]))[-1]["type"] == "end"


def test_a_backend_that_stops_says_so_and_keeps_what_goes_on(
    backend: Backend, scan: str, child: Callable[[str], None], tmp_path: Path
) -> None:
    child(WAITS)
    stream = Listening(backend, lesson_request([scan]))
    stream.until("progress")
    assert backend.adaptations is not None
    backend.adaptations.stop()
    assert stream.until("error")["code"] == "stopping"
    assert refused(backend, "POST", "/adaptations", lesson_request([scan])) == (503, "stopping")
    assert folders(backend, tmp_path) == 1


def test_a_process_that_cannot_be_started_is_one_sentence(
    backend: Backend, scan: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "COMMAND", ("no-such-program-here",))
    assert refused(backend, "POST", "/adaptations", lesson_request([scan])) == (500, "failed")
    assert not is_running(backend) and is_there(backend, scan)


def test_a_process_that_no_thread_can_follow_is_killed(
    backend: Backend, scan: str, child: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoThread(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    class Threading:
        Thread, RLock, Lock = NoThread, threading.RLock, threading.Lock

    child(STAYS)
    monkeypatch.setattr(learning, "threading", Threading)
    assert refused(backend, "POST", "/adaptations", lesson_request([scan])) == (500, "failed")
    assert not is_running(backend) and is_there(backend, scan) and not learners()


def test_silence_is_broken_by_signs_of_life(
    backend: Backend, scan: str, child: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning_stream, "ALIVE_SECONDS", 0.02)
    child(WAITS)
    stream = Listening(backend, lesson_request([scan]))
    assert stream.until("alive") == {"type": "alive"}
    stream.leave()


# -- one at a time


def test_a_second_one_is_told_to_come_again(tmp_path: Path, child: Callable[[str], None]) -> None:
    child(WAITS)
    with running(adaptations=tmp_path / "adaptations", tokens=TOKENS) as backend:
        stream = Listening(backend, lesson_request([send_scan(backend, body_scan())]))
        stream.until("progress")
        theirs = Backend(backend.port, backend.engine, backend.store, TOKENS[1])
        request = lesson_request([send_scan(theirs, body_scan())])
        status, headers, answer = theirs.ask("POST", "/adaptations", request)
        assert (status, json.loads(answer)["error"]["code"]) == (503, "busy")
        assert int(headers["retry-after"]) == RETRY_SECONDS and is_running(theirs)
        stream.leave()
        until(lambda: not is_running(theirs))
        child(FINISHES)
        assert learned(theirs, request)[-1]["type"] == "end"
        assert models_of(theirs) == [("bright", False), ("liver of us", True)] and models_of(backend) == [
            ("bright", False)
        ]


def test_the_same_request_listens_to_what_it_has_begun(
    backend: Backend, scan: str, child: Callable[[str], None]
) -> None:
    """As a client does whose connection was lost before the backend has noticed."""
    child(WAITS)
    first, second = (Listening(backend, lesson_request([scan])) for _ in range(2))
    assert first.until("progress")["done"] == second.until("progress")["done"] == 3
    first.leave()
    assert is_running(backend)
    second.leave()
    until(lambda: not is_running(backend))


# -- what is refused


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    folder = tmp_path_factory.mktemp("adaptations")
    finished_model(folder, "kidney")
    with running(adaptations=folder, limits=Limits(models=1)) as made:
        yield made


def numbered(count: int) -> list[str]:
    return [f"{number:064x}" for number in range(count)]


@pytest.mark.parametrize(
    ("field", "value", "status", "code"),
    [
        ("protocol", 2, 426, "protocol_mismatch"),
        ("name", "", 422, "invalid_request"),
        ("name", "a" * 41, 422, "invalid_request"),
        ("name", "a.", 422, "invalid_request"),
        ("name", "-a", 422, "invalid_request"),
        ("name", "../a", 422, "invalid_request"),
        ("name", "a/b", 422, "invalid_request"),
        ("name", "a\\b", 422, "invalid_request"),
        ("name", "a\u202eb", 422, "invalid_request"),
        ("name", "\u0301a", 422, "invalid_request"),
        ("name", "C:", 422, "invalid_request"),
        ("name", 7, 422, "invalid_request"),
        ("name", "bright", 422, "invalid_input"),
        ("name", "kidney", 409, "name_taken"),
        ("name", "another", 409, "too_many_models"),
        ("scans", [], 422, "invalid_request"),
        ("scans", ["../../etc/passwd"], 422, "invalid_request"),
        ("scans", [SHA.upper().replace("0", "A")], 422, "invalid_request"),
        ("scans", numbered(41), 422, "invalid_input"),
        ("scans", numbered(70_000), 422, "invalid_request"),
        ("minutes", 0, 422, "invalid_request"),
        ("minutes", -1, 422, "invalid_request"),
        ("minutes", 60.5, 422, "invalid_input"),
        ("minutes", 1e999, 422, "invalid_request"),
        ("minutes", "nan", 422, "invalid_request"),
        ("minutes", None, 422, "invalid_request"),
        ("more", 1, 422, "invalid_request"),
    ],
)
def test_a_bad_field_is_refused_with_one_sentence(
    idle: Backend, field: str, value: Any, status: int, code: str
) -> None:
    assert refused(idle, "POST", "/adaptations", lesson_request([SHA]) | {field: value}) == (status, code)


@pytest.mark.parametrize(
    "name", ["a", "Leber 2", "пе-чень", "肝臓", "यकृत", "a.b_c", "1", "COM1", "e\u0301", " Leber\n 2 "]
)
def test_a_name_of_any_script_is_taken(backend: Backend, child: Callable[[str], None], name: str) -> None:
    child(FINISHES)
    content = send_scan(backend, body_scan())
    composed = learned(backend, lesson_request([content], name=name))[-1]["name"]
    assert models_of(backend) == [("bright", False), (composed, True)]
    assert composed == {"e\u0301": "\u00e9", " Leber\n 2 ": "Leber 2"}.get(name, name)


def test_scans_that_are_missing_are_named(backend: Backend, scan: str) -> None:
    status, _, answer = backend.ask("POST", "/adaptations", lesson_request([scan, SHA, SHA]))
    error = json.loads(answer)["error"]
    assert (status, error["code"], error["missing"]) == (409, "scans_missing", [SHA])
