"""`sdfsmis segment` with bad input, or where something goes wrong: one sentence, exit code 2, and nothing written."""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import SimpleITK

from cli_examples import Run, seen, segment
from SDFSMISLib import SupportSet, Volume, read_labelmap
from SDFSMISLib.errors import InputError
from SDFSMISLib.inference import Segmenter, output
from small_scans import BrightPipeline
from volume_examples import FailingMoves, contents

pytest_plugins = ["cli_fixtures"]
pytestmark = pytest.mark.usefixtures("bright_built_in")


# -- what it refuses ------------------------------------------------------------------------------------------------


@pytest.fixture
def refused(run: Run, files: Path) -> Iterator[Callable[..., str]]:
    """Runs a command line that must be refused with one sentence, and leave the folder as it was; the sentence."""

    def sentence(*words: object) -> str:
        before = seen(files)
        ran = run(*words)
        errors = [line for line in ran.err.splitlines() if line.startswith("Error: ")]
        assert ran.code == 2, ran
        assert len(errors) == 1 and ran.err.splitlines()[-1] == errors[0], ran.err
        assert "Traceback" not in ran.err and ran.out == ""
        assert seen(files) == before
        return errors[0]

    yield sentence


def test_contradicting_options(refused: Callable[..., str], files: Path) -> None:
    out = ("--output", files / "r.nii.gz")
    some_set = files / "painted.seg.nrrd"
    assert "Both a support set and --support" in refused(*segment(files, *out, "--support-set", some_set))
    assert "--support and --mask is missing" in refused("segment", *out)
    assert "--mask is missing" in refused("segment", *out, "--support", files / "scan.nii.gz")
    assert "name one with --query" in refused("segment", *out, "--support-set", some_set)
    query = ("--query", files / "scan.nii.gz")
    assert "--slice and --axis" in refused("segment", *out, *query, "--support-set", some_set, "--slice", 3)
    assert "Missing option '--output'" in refused(*segment(files))
    assert "see sdfsmis segment --help" in refused(*segment(files, *out, "--enigne", "ray"))
    assert "'magic' is not one of 'propagate', 'independent'" in refused(*segment(files, *out, "--strategy", "magic"))
    assert "'3' is not one of" in refused(*segment(files, *out, "--axis", "3"))
    assert "No such command" in refused("segmnet")


@pytest.mark.parametrize("threshold", ["0", "1", "1.5", "-0.2", "nan"])
def test_a_threshold_out_of_range(refused: Callable[..., str], files: Path, threshold: str) -> None:
    sentence = refused(*segment(files, "--output", files / "r.nii.gz", "--threshold", threshold))
    assert "between 0 and 1" in sentence


def test_clean_up_out_of_range(refused: Callable[..., str], files: Path) -> None:
    out = ("--output", files / "r.nii.gz")
    assert "smoothing of -1.0 mm" in refused(*segment(files, *out, "--smooth", "-1"))
    assert "--smooth" in refused(*segment(files, *out, "--smooth", "much"))
    assert "smoothing of nan" in refused(*segment(files, *out, "--smooth", "nan"))
    assert "--keep-largest" in refused(*segment(files, *out, "--keep-largest", "some"))


def test_missing_and_damaged_files(refused: Callable[..., str], files: Path) -> None:
    out = ("--output", files / "r.nii.gz")
    assert "There is no file or folder" in refused(*segment(files, *out, "--query", files / "none.nii.gz"))
    whole = (files / "other.nii.gz").read_bytes()
    bad = files / "bad.nii.gz"
    for content, words in ((b"", "is empty"), (b"no image", "Cannot read"), (whole[: len(whole) // 2], "cut short")):
        bad.write_bytes(content)
        assert words in refused(*segment(files, *out, "--query", bad))
        assert words in refused("segment", "--support", files / "scan.nii.gz", "--mask", bad, *out)
    bad.write_bytes(gzip.compress(gzip.decompress(whole)[:-100]))
    assert "cut short" in refused(*segment(files, *out, "--query", bad))
    (files / "bad.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0nothing of the kind")
    words = ("segment", "--support-set", files / "bad.safetensors", "--query", files / "scan.nii.gz", *out)
    assert "damaged" in refused(*words)


def test_what_is_no_volume(refused: Callable[..., str], files: Path) -> None:
    flat, grey = files / "flat.mha", SimpleITK.Image([20, 20], SimpleITK.sitkUInt8)
    SimpleITK.WriteImage(grey, str(flat))
    SimpleITK.WriteImage(grey, str(files / "flat.png"))
    SimpleITK.WriteImage(SimpleITK.Image([8, 8, 8, 3], SimpleITK.sitkFloat32), str(files / "series.nii.gz"))
    SimpleITK.WriteImage(SimpleITK.Image([8, 8, 8], SimpleITK.sitkVectorUInt8, 3), str(files / "colour.nrrd"))
    expected = {"flat.mha": "2 dimensions", "flat.png": "2 dimensions", "series.nii.gz": "4 dimensions"}
    for name, words in {**expected, "colour.nrrd": "3 values per voxel"}.items():
        assert words in refused(*segment(files, "--output", files / "r.nii.gz", "--query", files / name))


def test_spacings_that_cannot_be(refused: Callable[..., str], files: Path) -> None:
    content = bytearray(gzip.decompress((files / "other.nii.gz").read_bytes()))
    for spacing in (0.0, float("nan"), -1.0):
        content[80:84] = struct.pack("<f", spacing)
        (files / "zero.nii.gz").write_bytes(gzip.compress(bytes(content)))
        sentence = refused(*segment(files, "--output", files / "r.nii.gz", "--query", files / "zero.nii.gz"))
        assert "spacing" in sentence
    image = SimpleITK.ReadImage(str(files / "other.nii.gz"))
    image.SetSpacing((1.0, 1.0, 1e6))
    SimpleITK.WriteImage(image, str(files / "absurd.nrrd"))
    sentence = refused(*segment(files, "--output", files / "r.nii.gz", "--query", files / "absurd.nrrd"))
    assert "1e+06 mm" in sentence


def test_masks_that_say_nothing(refused: Callable[..., str], files: Path) -> None:
    out = ("--output", files / "r.nii.gz")
    labelmap = read_labelmap(files / "painted.seg.nrrd")
    Volume(labelmap.voxels * 0, labelmap.geometry).write(files / "empty.nii.gz")
    words = ("segment", "--support", files / "scan.nii.gz", "--mask", files / "empty.nii.gz", *out)
    assert "The mask is empty" in refused(*words)
    assert "no label 4; it has 1" in refused(*segment(files, *out, "--label", 4))
    assert "Slice 12 was named" in refused(*segment(files, *out, "--slice", 12))
    assert "Slice -1 was named" in refused(*segment(files, *out, "--slice", -1))
    assert "Slice 12 was named" in refused(*segment(files, *out, "--slice", "5,0:12"))
    assert "several as 2:40,2:45" in refused(*segment(files, *out, "--slice", "0:3,0:"))
    assert "painted slices: slice 5 of axis 0" in refused(*segment(files, *out, "--slice", 3))
    image = SimpleITK.ReadImage(str(files / "painted.seg.nrrd"))
    image.SetOrigin((1000.0, 0.0, 0.0))
    SimpleITK.WriteImage(image, str(files / "away.nii.gz"))
    words = ("segment", "--support", files / "scan.nii.gz", "--mask", files / "away.nii.gz", *out)
    sentence = refused(*words)
    assert "origin (1000" in sentence and "origin (-20" in sentence


def test_labels_and_queries_of_a_support_set(run: Run, refused: Callable[..., str], files: Path) -> None:
    kept = files / "ball.safetensors"
    run(*segment(files, "--output", files / "now.nii.gz", "--save-support-set", kept))
    words = ("segment", "--support-set", kept, "--query", files / "other.nii.gz", "--output", files / "r.nii.gz")
    assert "label 3; it has 1" in refused(*words, "--label", 3)


def test_places_that_cannot_be_written(refused: Callable[..., str], files: Path) -> None:
    """All of them known before any network is loaded."""
    assert "ends with one of" in refused(*segment(files, "--output", files / "r.xyz"))
    assert "ends with one of" in refused(*segment(files, "--output", files / "r.gz"))
    below_a_file = files / "scan.nii.gz" / "r.nii.gz"
    assert "Cannot write" in refused(*segment(files, "--output", below_a_file))
    good = ("--output", files / "r.nii.gz")
    assert "Cannot write" in refused(*segment(files, *good, "--probabilities", below_a_file))
    assert "Cannot write" in refused(*segment(files, *good, "--save-support-set", files / "full.seg.nrrd" / "s"))
    assert "ends with one of" in refused(*segment(files, *good, "--probabilities", files / "p.png"))
    (files / "taken_volumes.csv").mkdir()
    assert "it is a folder" in refused(*segment(files, "--output", files / "taken.nii.gz"))
    if Path("/proc/self").exists():
        assert "Cannot write /proc/r.nii.gz" in refused(*segment(files, "--output", "/proc/r.nii.gz"))


def test_results_never_replace_what_is_read(refused: Callable[..., str], files: Path) -> None:
    for name in ("scan.nii.gz", "painted.seg.nrrd"):
        assert "would replace an input" in refused(*segment(files, "--output", files / name))
    sentence = refused(*segment(files, "--output", files / "r.nii.gz", "--save-support-set", files / "scan.nii.gz"))
    assert "would replace an input" in sentence
    (files / "link.nii.gz").symlink_to(files / "scan.nii.gz")
    assert "would replace an input" in refused(*segment(files, "--output", files / "link.nii.gz"))


def test_a_json_file_of_another_program_is_left_alone(refused: Callable[..., str], files: Path) -> None:
    """Such as the sidecar that BIDS keeps beside a scan."""
    (files / "scan.json").write_text('{"EchoTime": 0.03}')
    assert "another program" in refused(*segment(files, "--output", files / "scan.nii"))


def test_results_never_replace_each_other(refused: Callable[..., str], files: Path) -> None:
    same = files / "r.nii.gz"
    assert "Two results" in refused(*segment(files, "--output", same, "--probabilities", same))
    SimpleITK.WriteImage(SimpleITK.ReadImage(str(files / "other.nii.gz")), str(files / "scan.mha"))
    queries = ("--query", files / "scan.nii.gz", files / "scan.mha")
    assert "results of the same name" in refused(*segment(files, *queries, "--output", files / "results"))
    assert "name a folder" in refused(*segment(files, *queries, "--output", files / "r.nii.gz"))
    folder = ("--output", files / "results", "--probabilities", files / "p.nii.gz")
    assert "name a folder" in refused(*segment(files, *queries, *folder))


def test_models_that_cannot_be(refused: Callable[..., str], files: Path, random_model: Path, tmp_path: Path) -> None:
    out = ("--output", files / "r.nii.gz")
    assert "is unknown" in refused(*segment(files, *out, "--model", "bulit-in"))
    weights = Path("unet") / "diffusion_pytorch_model.safetensors"
    broken = tmp_path / "broken"
    shutil.copytree(random_model, broken)
    (broken / weights).write_bytes((random_model / weights).read_bytes()[:100_000])
    assert "truncated" in refused(*segment(files, *out, "--model", broken))
    (broken / weights).unlink()
    assert str(broken / "unet") in refused(*segment(files, *out, "--model", broken))
    (broken / "model_index.json").write_text("{")
    assert "model_index.json" in refused(*segment(files, *out, "--model", broken))


def test_devices_that_are_not_there(refused: Callable[..., str], files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    out = ("--output", files / "r.nii.gz")
    assert "finds no CUDA GPU; use auto or cpu" in refused(*segment(files, *out, "--device", "cuda"))
    assert "is unknown" in refused(*segment(files, *out, "--device", "gpu"))


# -- what goes wrong on the way -------------------------------------------------------------------------------------


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("where", ["volumes", "probabilities", "labelmap"])
def test_a_full_disk_leaves_nothing(
    run: Run, files: Path, monkeypatch: pytest.MonkeyPatch, where: str, existing: bool
) -> None:
    """And an earlier result stays as it was."""
    words = segment(files, "--output", files / "r.nii.gz", "--probabilities", files / "soft" / "p.nrrd")
    if existing:
        assert run(*words).code == 0
    before = seen(files)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if where == "volumes":
        monkeypatch.setattr(output, "_write_volumes", full)
    else:
        write, name = Volume.write, {"labelmap": "r.nii.gz", "probabilities": "p.nrrd"}[where]

        def write_or_not(volume: Volume, path: Path, *more: object) -> Path:
            return full() if path.name == name else write(volume, path, *more)

        monkeypatch.setattr(Volume, "write", write_or_not)
    ran = run(*words)
    assert ran.code == 2 and "No space left on device" in ran.err.splitlines()[-1]
    assert ".sdfsmis-" not in ran.err
    assert seen(files) == before


@pytest.mark.parametrize("existing", [False, True])
def test_whichever_move_of_a_result_to_its_place_fails_all_is_as_it_was(
    files: Path, monkeypatch: pytest.MonkeyPatch, existing: bool
) -> None:
    scan, labelmap = Volume.read(files / "scan.nii.gz"), read_labelmap(files / "painted.seg.nrrd")
    made = Segmenter(BrightPipeline()).segment(scan, SupportSet.from_labelmap(scan, labelmap))
    places = files / "results" / "r.nii.gz", {1: files / "soft" / "p.nrrd"}
    if existing:
        output.write_segmentation(made, places[0], {"run": "first"}, places[1])
    before, step = contents(files), 0
    while True:
        failing = FailingMoves(step)
        monkeypatch.setattr(os, "replace", failing)
        if not failed(lambda: output.write_segmentation(made, places[0], {"run": "second"}, places[1])):
            break
        assert failing.failed and contents(files) == before, step
        step += 1
    results = sorted(path.name for folder in ("results", "soft") for path in (files / folder).iterdir())
    assert results == ["p.nrrd", "r.json", "r.nii.gz", "r_volumes.csv"] and step >= (11 if existing else 7)
    assert json.loads((files / "results" / "r.json").read_text()) == {"run": "second"}


def failed(call: Callable[[], Any]) -> bool:
    try:
        call()
    except InputError:
        return True
    return False


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "Interrupted"),
        (MemoryError("12 GiB"), 1, "memory does not suffice (12 GiB)"),
        (ZeroDivisionError("by\nzero"), 1, "Failed: ZeroDivisionError: by zero (details in "),
    ],
)
def test_an_interruption_or_a_defect(
    run: Run, files: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, words: str
) -> None:
    """One line, no traceback, nothing half-written."""
    monkeypatch.setenv("TMPDIR", str(files.parent))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = seen(files)

    def stop(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Segmenter, "segment", stop)
    ran = run(*segment(files, "--output", files / "new" / "r.nii.gz"))
    assert ran.code == code
    assert words in ran.err.splitlines()[-1] and "Traceback" not in ran.err
    assert seen(files) == before and not (files / "new").exists()
