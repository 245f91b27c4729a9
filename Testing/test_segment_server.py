"""`sdfsmis segment --server`: the same files as without, and one sentence where the server is not what it should be."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from SDFSMISLib import Volume, read_labelmap
from SDFSMISLib.cli.app import main
from serving import Backend, running
from small_scans import BrightPipeline, ball_scan, painted_on

TOKEN = "a-token-of-more-than-16-letters"


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    torch.set_num_threads(1)
    with running(tokens=[TOKEN]) as made:
        yield made


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a painted scan and a folder of others; here, too, what is bright is found."""
    monkeypatch.setattr("SDFSMISLib.inference.segmenter.load_pipeline", lambda name, device: BrightPipeline())
    scan, labelmap = ball_scan()
    scan.write(tmp_path / "scan.nii.gz")
    painted_on(labelmap, 5).write(tmp_path / "painted.seg.nrrd")
    (tmp_path / "scans").mkdir()
    for number in range(3):
        ball_scan((9 + number, 36, 44))[0].write(tmp_path / "scans" / f"{number}.nii.gz")
    return tmp_path


def segment(files: Path, output: str, *more: object) -> int:
    usual = ["segment", "--support", files / "scan.nii.gz", "--mask", files / "painted.seg.nrrd"]
    return main([str(word) for word in (*usual, "--output", files / output, *more)])


def test_the_labelmap_and_its_probabilities_are_those_made_here(backend: Backend, files: Path) -> None:
    there = ("--server", backend.url, f"--token={TOKEN}")
    for query in ((), ("--query", files / "scans" / "1.nii.gz")):
        assert segment(files, "here.nii.gz", *query, "--probabilities", files / "p_here.nii.gz") == 0
        assert segment(files, "there.nii.gz", *query, "--probabilities", files / "p_there.nii.gz", *there) == 0
        for one, other in (("here", "there"), ("p_here", "p_there")):
            ours, theirs = (Volume.read(files / f"{name}.nii.gz").voxels for name in (one, other))
            np.testing.assert_array_equal(ours, theirs)
        assert read_labelmap(files / "there.nii.gz").voxels.any()
    told = (files / "there.json").read_text()
    assert '"sdfsmis_model": "bright"' in told and "sdfsmis_weights_sha256" in told


def test_the_token_may_come_from_the_environment(
    backend: Backend, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDFSMIS_TOKEN", TOKEN)
    assert segment(files, "there.nii.gz", "--server", backend.url) == 0


def test_the_token_is_not_kept_with_the_results(backend: Backend, files: Path) -> None:
    for option in (("--token", TOKEN), (f"--token={TOKEN}",)):
        assert segment(files, "there.nrrd", "--server", backend.url, *option) == 0
        header = (files / "there.nrrd").read_bytes()
        assert b"--token" in header and TOKEN.encode() not in header


def test_nothing_is_written_or_sent_by_a_dry_run(backend: Backend, files: Path) -> None:
    before = backend.store.bytes
    assert segment(files, "there.nii.gz", "--server", backend.url, "--token", TOKEN, "--dry-run") == 0
    assert not (files / "there.nii.gz").exists() and backend.store.bytes == before


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_cohort_goes_through_a_server(backend: Backend, files: Path, jobs: int) -> None:
    (files / "scans" / "broken.nii.gz").write_bytes(b"no scan")
    there = ("--server", backend.url, "--token", TOKEN, "--jobs", jobs)
    assert segment(files, "results/", "--query", files / "scans", *there) == 1
    with (files / "results" / "cohort.csv").open(newline="") as file:
        rows = {Path(row["scan"]).name: row["status"] for row in csv.DictReader(file)}
    assert rows == {"0.nii.gz": "done", "1.nii.gz": "done", "2.nii.gz": "done", "broken.nii.gz": "failed"}


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--server", "http://127.0.0.1:1"], 1, "127.0.0.1:1"),
        (["--server", "{url}"], 1, "asks for a token"),
        (["--server", "{url}", "--token", "wrong-token-of-16-letters"], 1, "does not accept the token"),
        (["--server", "ftp://there"], 2, "ftp"),
        (["--server", "{url}", "--model", "other"], 2, "--model and --device"),
        (["--server", "{url}", "--device", "cpu"], 2, "--model and --device"),
        (["--token", "x" * 16], 2, "--server"),
        (["--server", "https://127.0.0.1:1", "--server-certificate", "{folder}/none.pem"], 2, "none.pem"),
    ],
)
def test_a_server_that_is_not_what_it_should_be_is_one_sentence(
    backend: Backend, files: Path, capsys: pytest.CaptureFixture[str], options: list[Any], code: int, said: str
) -> None:
    filled = [option.format(url=backend.url, folder=files) for option in options]
    assert segment(files, "there.nii.gz", *filled) == code
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err and not (files / "there.nii.gz").exists(), err
