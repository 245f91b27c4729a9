"""The demonstration and the doctor, on a small scan and a stand-in pipeline; and the demonstration's real scan."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from SDFSMISLib import InputError, Volume, read_labelmap
from SDFSMISLib.cli.app import main
from SDFSMISLib.cli.demo import Head, read_head, run_demo
from small_scans import BrightPipeline, ball_scan


@pytest.fixture(autouse=True)
def bright_built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr("SDFSMISLib.inference.segmenter.load_pipeline", lambda *_: BrightPipeline())


@pytest.fixture
def small_head(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Head:
    scan, labelmap = ball_scan()
    scan.write(tmp_path / "head.nii.gz")
    head = Head(Volume.read(tmp_path / "head.nii.gz"), labelmap)
    monkeypatch.setattr("SDFSMISLib.cli.demo.read_head", lambda: head)
    return head


def test_the_demonstration_writes_and_tells(
    small_head: Head, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "demo output"
    assert main(["demo", "--output", str(output)]) == 0
    told = capsys.readouterr().out
    names = {"brain_tissue.seg.nrrd", "brain_tissue_volumes.csv", "painted_slice.seg.nrrd", "contact_sheet.png"}
    assert set(os.listdir(output)) == names
    assert all(name in told for name in names)
    painted, result = (read_labelmap(output / f"{name}.seg.nrrd") for name in ("painted_slice", "brain_tissue"))
    (index,) = np.flatnonzero(painted.voxels.any(axis=(1, 2)))
    np.testing.assert_array_equal(painted.voxels[index], small_head.reference.voxels[index])
    np.testing.assert_array_equal(result.voxels[index], small_head.reference.voxels[index])
    assert f"slice {index} of axis 0, axial" in told
    assert "a slice, on cpu" in told
    assert f"--mask '{output / 'painted_slice.seg.nrrd'}'" in told
    with Image.open(output / "contact_sheet.png") as sheet:
        assert sheet.width > 800


def test_the_demonstration_measures_beside_the_copied_slice(small_head: Head, tmp_path: Path) -> None:
    result = run_demo(tmp_path / "out")
    assert result.dice > 0.95 > 0.8 > result.copy_dice > 0.3
    assert 0 < result.seconds_per_slice < result.seconds
    assert all(file.is_file() for file in result.files)


def test_a_folder_that_cannot_be_written_is_known_at_once(
    small_head: Head, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--output", str(tmp_path / "head.nii.gz" / "out")]) == 2
    assert capsys.readouterr().err.startswith("Error: Cannot write ")


def test_the_real_head() -> None:
    """A whole head at 1 mm; its grey and white matter have the volume that an adult's have."""
    pytest.importorskip("nilearn")
    head = read_head()
    assert head.scan.geometry.spacing == (1.0, 1.0, 1.0)
    assert head.reference.geometry.same_grid(head.scan.geometry)
    assert 1.0e6 < np.count_nonzero(head.reference.voxels) < 2.2e6  # voxels of 1 µl
    assert head.scan.voxels[head.reference.voxels == 1].mean() > head.scan.voxels.mean()


def test_without_nilearn_a_user_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(InputError, match="pip install nilearn`, or `make demo`"):
        read_head()


def test_the_doctor_finds_all_good(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    plenty = SimpleNamespace(available=8 << 30, total=16 << 30)
    monkeypatch.setattr("psutil.virtual_memory", lambda: plenty)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=8 << 30, total=16 << 30))
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "All good."
    for what in ("sdfsmis", "Python", "torch", "SimpleITK", "cpu", "memory", "disk here", "weights", "self-test"):
        assert any(line.startswith(f"  {what} ") for line in lines), what


def test_the_doctor_says_what_to_do(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that fails does not keep the others from being made."""

    def missing(*_: Any) -> None:
        raise InputError("The weights are not there; install the package again.")

    monkeypatch.setattr("SDFSMISLib.inference.segmenter.load_pipeline", missing)
    monkeypatch.setattr("psutil.virtual_memory", lambda: 1 / 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20, total=16 << 30))
    assert main(["doctor"]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("To do: ")
    for words in ("Free some of the disk", "The weights are not there", "ZeroDivisionError"):
        assert words in last


def test_the_doctor_tries_the_weights_out(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = BrightPipeline()
    monkeypatch.setattr(pipeline, "segment", lambda latents, *_: torch.zeros_like(latents))
    monkeypatch.setattr("SDFSMISLib.inference.segmenter.load_pipeline", lambda *_: pipeline)
    assert main(["doctor"]) == 1
    assert "found the wrong place" in capsys.readouterr().out
