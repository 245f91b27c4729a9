"""Fixtures of the tests of the command line: it runs in this process, on a small scan, with a stand-in for a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cli_examples import MIDDLE, Ran, Run
from SDFSMISLib.cli.app import main
from SDFSMISLib.model.built_in import new_built_in
from SDFSMISLib.model.loading import load_pipeline, resolve_device
from small_scans import BrightPipeline, ball_scan, painted_on


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line as the `sdfsmis` program does."""

    def ran(*words: object) -> Ran:
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return ran


@pytest.fixture
def bright_built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the built-in weights: a stand-in that finds what is bright. Any other model is really loaded."""
    torch.set_num_threads(1)

    def load(name: str, device: str) -> Any:
        if name != "built-in":
            return load_pipeline(name, device)
        resolve_device(device)
        return BrightPipeline()

    monkeypatch.setattr("SDFSMISLib.inference.segmenter.load_pipeline", load)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with a scan, what was painted on it, its full labelmap, and another scan."""
    scan, labelmap = ball_scan()
    scan.write(tmp_path / "scan.nii.gz")
    labelmap.write(tmp_path / "full.seg.nrrd")
    painted_on(labelmap, MIDDLE).write(tmp_path / "painted.seg.nrrd")
    ball_scan((9, 36, 44))[0].write(tmp_path / "other.nii.gz")
    return tmp_path


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "random"
    new_built_in().save_pretrained(folder)
    return folder
