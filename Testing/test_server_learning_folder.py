"""The folder of learning: one backend's alone, and what others have put there stays."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from learning_examples import finished_model, lesson_request, models_of
from SDFSMISLib.errors import InputError
from SDFSMISLib.server import app
from SDFSMISLib.server.adaptations import Adaptations
from SDFSMISLib.server.learning_folder import marked
from SDFSMISLib.server.limits import Limits
from SDFSMISLib.server.scans import ScanStore
from SDFSMISLib.server.store import MemoryStore
from serving import running

TOKENS = ("first-token-of-16-letters", "second-token-of-16-letters")
SHA = "0" * 64


def started(folder: Path) -> None:
    Adaptations(folder, Limits()).close()


# -- what is there before


@pytest.mark.parametrize("name", ["scans/mine/scan.nrrd", "models/liver/weights.bin", "lock", "notes.txt"])
def test_a_folder_with_other_things_is_refused_and_they_stay(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    with pytest.raises(InputError, match="name a new or an empty folder"):
        started(tmp_path)
    assert [one for one in tmp_path.rglob("*") if one.is_file()] == [path] and path.read_text() == "mine"


def test_a_folder_of_before_is_taken_again(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "new"):
        started(folder)
        started(folder)


@pytest.mark.parametrize(
    "name",
    [
        "scans/scan.nrrd",
        "scans/everybody/.DS_Store",
        "scans/everybody/scan.nrrd",
        f"scans/everybody/more/{SHA}.nrrd",
        "models/.DS_Store",
        "models/everybody/.DS_Store",
        "models/everybody/" + "0" * 32,
        "models/everybody/liver/weights.bin",
    ],
)
def test_what_others_have_put_into_it_stays(tmp_path: Path, name: str) -> None:
    started(tmp_path)
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    finished_model(tmp_path, "kidney")
    with running(adaptations=tmp_path) as backend:
        assert models_of(backend) == [("bright", False), ("kidney", True)]
    assert path.read_text() == "mine"


def test_a_file_where_a_folder_has_to_be_is_one_sentence(tmp_path: Path) -> None:
    (marked(tmp_path) / "models").write_text("mine")
    with pytest.raises(InputError, match="name another folder"):
        started(tmp_path)


def test_scans_of_before_go_and_those_that_were_being_written_too(tmp_path: Path) -> None:
    paths = [tmp_path / "everybody" / name for name in (f"{SHA}.nrrd", f".{SHA}.0123abcd.nrrd")]
    paths[0].parent.mkdir()
    for path in paths:
        path.write_text("old")
    ScanStore(tmp_path, 1 << 30, 100.0)
    assert not any(path.exists() for path in paths)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
def test_nobody_else_on_the_computer_reads_it(tmp_path: Path) -> None:
    started(tmp_path / "on")
    for folder in ("on", "on/scans", "on/models"):
        assert (tmp_path / folder).stat().st_mode & 0o777 == 0o700


# -- its lock


@pytest.mark.skipif(sys.platform == "win32", reason="the lock of POSIX")
@pytest.mark.parametrize(("number", "said"), [(errno.EWOULDBLOCK, "Another backend"), (errno.ENOLCK, "cannot be kept")])
def test_a_lock_that_cannot_be_had_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    import fcntl

    def failing(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", failing)
    with pytest.raises(InputError, match=said):
        started(tmp_path)


# -- over time


def test_a_store_that_fails_does_not_keep_others_from_forgetting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    offered, asked = Adaptations(tmp_path, Limits()), []

    def failing() -> None:
        asked.append("scans")
        raise PermissionError(errno.EACCES, "out of reach")

    async def twice() -> None:
        keeper = asyncio.create_task(app._expire(MemoryStore(1, 1.0), offered))
        while asked.count("models") < 2:
            await asyncio.sleep(0.001)
        keeper.cancel()
        with suppress(asyncio.CancelledError):
            await keeper

    monkeypatch.setattr(app, "EXPIRE_SECONDS", 0.001)
    monkeypatch.setattr(offered.scans, "expire", failing)
    monkeypatch.setattr(offered.models, "expire", lambda: asked.append("models"))
    asyncio.run(twice())
    assert asked[:4] == ["scans", "models"] * 2 and "cannot be forgotten" in caplog.text
    offered.close()


@pytest.mark.parametrize(("tokens", "said"), [(TOKENS, True), (TOKENS[:1], False), ((), False)])
def test_models_that_no_token_reaches_are_told_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, tokens: tuple[str, ...], said: bool
) -> None:
    finished_model(tmp_path, "kidney")
    with caplog.at_level(logging.WARNING), running(adaptations=tmp_path, tokens=tokens):
        assert ("1 learned models belong to no token" in caplog.text) == said


def test_a_name_that_is_none_is_told_as_a_sentence(tmp_path: Path) -> None:
    with running(adaptations=tmp_path) as backend:
        answer = backend.ask("POST", "/adaptations", lesson_request([SHA], name="a/b"))[2]
    message = json.loads(answer)["error"]["message"]
    assert message.startswith("The request is not as it should be: body.name: The name"), message
