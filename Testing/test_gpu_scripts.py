"""The scripts for a GPU that is at hand for some minutes, in their smallest form: on a CPU, with packed examples."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from SDFSMISLib import Segmenter, SupportSet
from SDFSMISLib.training.supervoxels import Slic
from SDFSMISLib.training.trainer import COSINE_FLOOR
from small_scans import ball_scan

SCRIPTS = Path(__file__).parent / "gpu"
MISSING = ("SimpleITK", "cv2")  # on the machine with the GPU
TINY = {
    "start": "",
    "network": {"resolution": 32, "channels": [16, 16]},
    "batch": 2,
    "rate": 1e-3,
    "synthetic_count": 1,
    "workers": 1,
    "warmup": 1,
    "write_every": 0.005,
    "picture_every": 2,
}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(SCRIPTS)
    return import_module


def test_packed_volumes_come_back(tmp_path: Path, script: Callable[[str], ModuleType]) -> None:
    pack = script("pack")
    volumes = pack.example_scans(1, side=32)
    scan = volumes[0]
    long = tuple(np.repeat(one, 3, axis=0)[:95] for one in (scan.image, *scan.maps))  # an odd number of slices
    half = Slic(20)(wide := np.repeat(scan.image, 3, axis=2), scan.spacing)
    volumes += [
        replace(scan, name="long", image=long[0], maps=long[1:], spacing=(0.3, 1.0, 1.0), axes=(0,), main=None),
        replace(scan, name="wide", image=wide, maps=(np.repeat(scan.maps[0], 3, axis=2), half)),
    ]
    sizes = pack.write_volumes(volumes, tmp_path / "volumes.npz", quality=90)
    assert set(sizes) == {"header", "image", "map0", "map1"}
    for was, found in zip(volumes, pack.read_volumes(tmp_path / "volumes.npz"), strict=True):
        assert replace(was, image=None, maps=()) == replace(found, image=None, maps=())
        assert [one.dtype for one in was.maps] == [one.dtype for one in found.maps]
        assert all(np.array_equal(*pair) for pair in zip(was.maps, found.maps, strict=True))
        if was.image is not None:
            assert found.image.dtype == np.float16
            assert np.abs(was.image - found.image).mean() < 0.03
    assert found.maps[1].shape[2] == 96, "one of the maps was kept at half size"


def test_a_file_that_is_too_large_is_refused_with_its_size(tmp_path: Path, script: Callable[[str], ModuleType]) -> None:
    with pytest.raises(SystemExit, match=r"more than 0.01 MB: lower --quality"):
        script("pack").main(["--output", str(tmp_path / "volumes.npz"), "--most", "0.01"])


def test_training_ends_by_the_clock_with_the_rate_at_its_end_and_leaves_weights_that_segment(
    tmp_path: Path, script: Callable[[str], ModuleType]
) -> None:
    script("pack").main(["--output", str(tmp_path / "volumes.npz")])
    for name in MISSING:
        (tmp_path / "missing").mkdir(exist_ok=True)
        (tmp_path / "missing" / f"{name}.py").write_text(f"raise ImportError('{name} is not installed')")
    paths = [str(tmp_path / "missing"), str(SCRIPTS.parents[1])]
    words = ["--volumes", str(tmp_path / "volumes.npz"), "--output", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "train.py"), *words, "--seconds", "1", "--changes", json.dumps(TINY)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    assert {file.name for file in out.iterdir()} == {"weights.tar", "log.jsonl", "episodes.png", "training.json"}
    report = json.loads((out / "training.json").read_text(encoding="utf-8"))
    last = json.loads((out / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert 2 <= last["step"] == report["steps"] < 24_000
    assert last["rate"] == pytest.approx(COSINE_FLOOR * TINY["rate"])
    with tarfile.open(out / "weights.tar") as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # before Python 3.11.4 there is none
        archive.extractall(tmp_path)
    scan, labelmap = ball_scan(shape=(4, 24, 24))
    segmenter = Segmenter.from_pretrained(tmp_path / "pipeline", device="cpu")
    found = segmenter.segment(scan, SupportSet.from_labelmap(scan, labelmap, slices=[2]), "independent")
    assert found.labelmap.voxels.shape == (4, 24, 24)


def test_each_part_of_the_measuring_has_its_file_and_none_is_begun_when_the_time_is_up(
    tmp_path: Path, script: Callable[[str], ModuleType]
) -> None:
    measure = script("measure")
    measure.main(["--output", str(tmp_path), "--part", "memory", "--slices", "4"])
    report = json.loads((tmp_path / "memory.json").read_text(encoding="utf-8"))
    assert report["device"] == "cpu" and report["voxels"] > 0
    measure.main(["--output", str(tmp_path), "--seconds", "0"])
    measured = json.loads((tmp_path / "measured.json").read_text(encoding="utf-8"))
    assert list(measured) == ["memory", "bench-built-in", "bench-sd15"]
    assert {part["result"] for part in measured.values()} == {"not begun: the time was up"}
