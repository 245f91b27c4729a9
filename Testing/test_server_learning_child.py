"""The process in which weights learn: its streams, its folder and its end; without any learning."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from learning_examples import finished_model
from SDFSMISLib.server import learning, learning_child
from SDFSMISLib.server.folder_lock import locked
from SDFSMISLib.server.learning_child import ChildRequest, _without_places
from SDFSMISLib.server.models import LearnedModel, Lesson

SHA = "0" * 64


def test_the_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    """It waits for the folder, which another one has; then standard input ends, as where a backend is killed."""
    model = LearnedModel.made(tmp_path / "model", Lesson("liver", (), 1.0, ""))
    asked = {"folder": str(model.folder), "scans": [], "model": "built-in", "device": "cpu"}
    with locked(model.folder):
        process = subprocess.Popen(learning.COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(asked).encode() + b"\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["text"] == "Starting"
        assert process.communicate(timeout=60)[0] == b'{"type": "cancelled"}\n' and process.returncode == 0


def test_libraries_find_nothing_on_standard_input_and_its_end_is_heard() -> None:
    program = (
        "import os; from SDFSMISLib.server import learning_child as child; asked = child._request(); "
        "kept = child._own_input(); print('ready', flush=True); "
        "print(os.read(0, 9), os.read(kept, 9), os.read(kept, 9))"
    )
    asked = {"folder": "", "scans": [], "model": "", "device": ""}
    with subprocess.Popen((sys.executable, "-c", program), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(asked).encode() + b"\n")
        process.stdin.flush()
        assert process.stdout.readline().strip() == b"ready"
        assert process.communicate(b"more", timeout=60)[0].split() == [b"b''", b"b'more'", b"b''"]


def test_what_another_process_has_finished_is_not_learned_again(tmp_path: Path) -> None:
    model = LearnedModel.read(finished_model(tmp_path, "kidney").folder)
    asked = ChildRequest(str(model.folder), ("no such scan",), "built-in", "cpu")
    assert learning_child._learned(asked, lambda *_: None, lambda: False) == {"type": "done"}
    assert LearnedModel.read(model.folder) == model


def test_a_folder_that_stays_in_use_is_a_failure_after_which_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning_child, "LOCK_SECONDS", 0.0)
    ended = learning_child._learned(ChildRequest(str(tmp_path), (), "built-in", "cpu"), lambda *_: None, lambda: False)
    assert (ended["type"], ended["code"]) == ("cut", "failed")


def test_what_a_client_reads_names_no_place_of_the_backend() -> None:
    asked = ChildRequest("/srv/models/x", (f"/srv/scans/{SHA}.nrrd",), "built-in", "cpu")
    text = f"/srv/scans/{SHA}.nrrd has 2 voxels; {SHA}.nrrd is left out; cannot write /srv/models/x/pipeline"
    told = "scan 000000000000 has 2 voxels; scan 000000000000 is left out; cannot write the backend's folder/pipeline"
    assert _without_places(text, asked) == told
