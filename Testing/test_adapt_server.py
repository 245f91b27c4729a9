"""`sdfsmis adapt --server` and `segment --server --model`: weights learn on a backend, and segment there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from learning_examples import LEARNS, body_scan, child_program, finished_model, models_of
from SDFSMISLib import Volume
from SDFSMISLib.cli import main
from SDFSMISLib.client import learning as client_learning
from SDFSMISLib.server import learning, learning_stream
from serving import Backend, running

TOKEN = "a-token-of-this-backend"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(learning_stream, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(learning, "COMMAND", child_program(tmp_path, LEARNS))
    monkeypatch.delenv("SDFSMIS_TOKEN", raising=False)


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[Backend]:
    with running(adaptations=tmp_path / "adaptations", tokens=[TOKEN]) as made:
        yield made


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    for seed in (1, 2):
        body_scan(seed).write(tmp_path / "scans" / f"patient{seed}.nii.gz")
    return tmp_path / "scans"


def words(scans: Path, backend: Backend, *more: str) -> list[str]:
    return ["adapt", "--scans", str(scans), "--server", backend.url, "--token", TOKEN, *more]


def test_weights_learn_on_a_server_and_one_is_told_how_to_use_them(
    backend: Backend, scans: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (scans / "broken.nii.gz").write_bytes(b"no image")
    assert main(words(scans, backend, "--name", "our scanner", "--minutes", "2")) == 0
    out, err = capsys.readouterr()
    assert "Held-out supervoxels: soft Dice 0.500 before, 0.625 after." in out
    assert f'Segment with it: sdfsmis segment --server {backend.url} --model "our scanner" ...' in out
    assert "Learned 8 steps from 2 scans" in err and "broken.nii.gz" in err and "patient1" not in err
    assert ("our scanner", True) in models_of(backend)


def test_a_name_that_is_taken_is_used_again_only_where_that_is_asked_for(
    backend: Backend, scans: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(scans, backend, "--name", "ours")) == 0
    assert main(words(scans, backend, "--name", "ours", "--minutes", "3")) == 2
    assert "choose another name" in capsys.readouterr().err
    assert main(words(scans, backend, "--name", "ours", "--minutes", "1e5", "--replace")) == 2
    assert ("ours", True) in models_of(backend), "what cannot be learned replaces nothing"
    assert main(words(scans, backend, "--name", "ours", "--minutes", "3", "--replace")) == 0
    assert main(words(scans, backend, "--name", "new", "--replace")) == 0
    assert models_of(backend) == [("bright", False), ("new", True), ("ours", True)]


def test_what_is_interrupted_says_how_it_goes_on_and_does(
    backend: Backend, scans: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(client_learning.Learning, "_take", lambda *_: _interrupted())
        assert main(words(scans, backend, "--name", "ours")) == 130
    assert "The same command goes on." in capsys.readouterr().err
    assert main(words(scans, backend, "--name", "ours")) == 0


def _interrupted() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "Neither --output nor --server"),
        (["--output", "x", "--name", "ours"], "belong to a server"),
        (["--output", "x", "--replace"], "belong to a server"),
        (["--server", "localhost:1"], "--name is missing"),
        (["--server", "localhost:1", "--name", "ours", "--output", "x"], "do not go with --server"),
        (["--server", "localhost:1", "--name", "ours", "--model", "x"], "do not go with --server"),
        (["--server", "no address", "--name", "ours"], "address"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    scans: Path, options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["adapt", "--scans", str(scans), *options]) == 2
    assert says in capsys.readouterr().err
    assert not Path("x").exists()


def test_a_server_that_does_not_learn_or_is_not_there_is_a_sentence(
    scans: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(tokens=[TOKEN]) as backend:
        assert main(words(scans, backend, "--name", "ours")) == 1
    assert "sdfsmis serve --adaptations" in capsys.readouterr().err
    assert main(words(scans, backend, "--name", "ours")) == 1  # it has ended
    err = capsys.readouterr().err
    assert "No backend runs" in err and "Traceback" not in err


def test_segment_takes_the_name_of_a_learned_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scan = body_scan()
    scan.write(tmp_path / "scan.nii.gz")
    mask = np.zeros(scan.voxels.shape, np.uint8)
    mask[8] = scan.voxels[8] > 800
    assert mask.any()
    Volume(mask, scan.geometry).write(tmp_path / "mask.nii.gz")
    finished_model(tmp_path / "adaptations", "ours")
    with running(adaptations=tmp_path / "adaptations") as backend:
        given = ["segment", "--support", str(tmp_path / "scan.nii.gz"), "--mask", str(tmp_path / "mask.nii.gz")]
        given += ["--server", backend.url, "--output", str(tmp_path / "out.nii.gz")]
        assert main([*given, "--model", "ours"]) == 0
        assert '"ours"' in (tmp_path / "out.json").read_text(encoding="utf-8")
        assert main([*given, "--model", "theirs"]) == 1
        assert "no model 'theirs'; it has bright, ours" in capsys.readouterr().err
        assert main([*given, "--device", "cpu"]) == 2
        assert "--device is that of the server" in capsys.readouterr().err
