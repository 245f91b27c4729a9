"""The command line: what it writes and says; bad input is one sentence, exit code 2, and nothing written."""

from __future__ import annotations

import ast
import csv
import errno
import gzip
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
import torch

import SDFSMISLib
from SDFSMISLib import SupportSet, Volume, read_labelmap
from SDFSMISLib.cli.app import main
from SDFSMISLib.cli.segment import ManyValues
from SDFSMISLib.errors import InputError
from SDFSMISLib.images import volume
from SDFSMISLib.inference import Segmenter, output
from SDFSMISLib.model.built_in import new_built_in
from SDFSMISLib.model.loading import load_pipeline, resolve_device
from small_scans import BrightPipeline, ball_scan, painted_on
from volume_examples import FailingMoves, contents

MIDDLE = 5
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line as the `sdfsmis` program does."""

    def ran(*words: object) -> Ran:
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return ran


@pytest.fixture(autouse=True)
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


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "random"
    new_built_in().save_pretrained(folder)
    return folder


def segment(files: Path, *more: object) -> tuple[object, ...]:
    """The usual command line, and more."""
    usual = ("--support", files / "scan.nii.gz", "--mask", files / "painted.seg.nrrd")
    return ("segment", *usual, *more)


def seen(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))


# -- what it does ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extension", [".nii.gz", ".seg.nrrd", ".mha"])
def test_one_painted_slice_becomes_a_labelmap(run: Run, files: Path, extension: str) -> None:
    result = files / "made" / f"ball{extension}"
    ran = run(*segment(files, "--output", result, "--threshold", "0.4"))
    assert ran.code == 0, ran.err
    labelmap, truth = read_labelmap(result), read_labelmap(files / "full.seg.nrrd").voxels
    assert dice(labelmap.voxels > 0, truth > 0) > 0.95
    assert labelmap.geometry.same_grid(Volume.read(files / "scan.nii.gz").geometry)
    np.testing.assert_array_equal(labelmap.voxels[MIDDLE], truth[MIDDLE])
    if extension == ".seg.nrrd":
        assert labelmap.segment_names == {1: "ball"}
    (row,) = csv.DictReader((files / "made" / "ball_volumes.csv").open())
    assert (row["label"], row["name"]) == ("1", "ball")
    assert int(row["voxels"]) == np.count_nonzero(labelmap.voxels)
    assert float(row["volume_ml"]) == pytest.approx(int(row["voxels"]) * 2 / 1000, rel=1e-4)
    assert "Support: slice 5 of axis 0 (axial); label 1 (ball)." in ran.err
    assert "11 axial slices of axis 0, 1 label: about" in ran.err
    assert str(result) in ran.out and "ml" in ran.out
    assert set(os.listdir(files / "made")) - {"ball.json"} == {f"ball{extension}", "ball_volumes.csv"}


def test_the_result_tells_how_it_was_made(run: Run, files: Path) -> None:
    assert run(*segment(files, "--output", files / "a b.nii.gz", "--smooth", 1, "--fill-holes")).code == 0
    fields = json.loads((files / "a b.json").read_text())
    support = SupportSet.from_labelmap(Volume.read(files / "scan.nii.gz"), read_labelmap(files / "painted.seg.nrrd"))
    assert fields["sdfsmis_version"] == SDFSMISLib.__version__
    assert fields["sdfsmis_model"] == "built-in" and len(fields["sdfsmis_weights_sha256"]) == 64
    assert fields["sdfsmis_support"].split() == list(support.digest())
    assert fields["sdfsmis_painted"] == "axis 0, slices 5"
    assert fields["sdfsmis_command"].startswith("sdfsmis segment --support ") and "'" in fields["sdfsmis_command"]
    assert "smooth 1 mm" in fields["sdfsmis_settings"] and "fill-holes on" in fields["sdfsmis_settings"]
    assert fields["sdfsmis_date"].endswith("+00:00")
    run(*segment(files, "--output", files / "c.seg.nrrd"))
    header = SimpleITK.ReadImage(str(files / "c.seg.nrrd"))
    assert header.GetMetaData("sdfsmis_support") == fields["sdfsmis_support"]


def test_one_slice_of_a_full_labelmap(run: Run, files: Path) -> None:
    result = files / "result.nii.gz"
    words = ("segment", "--support", files / "scan.nii.gz", "--mask", files / "full.seg.nrrd", "--output", result)
    ran = run(*words, "--slice", MIDDLE)
    assert ran.code == 0 and "Support: slice 5 of axis 0" in ran.err
    ran = run(*words, "--slice", 4, 6, "--slice", 7, "--axis", "0")
    assert ran.code == 0 and "Support: slices 4, 6, 7 of axis 0" in ran.err
    ran = run(*words, "--slice", 20, "--axis=1")
    assert ran.code == 0 and "Support: slice 20 of axis 1 (coronal)" in ran.err


def test_several_labels(run: Run, files: Path) -> None:
    labelmap = read_labelmap(files / "painted.seg.nrrd")
    labelmap.voxels[:, :, 22:] *= 2
    labelmap.write(files / "two.nii.gz")
    words = ("segment", "--support", files / "scan.nii.gz", "--mask", files / "two.nii.gz", "--output")
    soft = files / "soft" / "p.nii.gz"
    ran = run(*words, files / "both.nii.gz", "--probabilities", soft)
    assert ran.code == 0 and "2 labels" in ran.err
    assert set(np.unique(read_labelmap(files / "both.nii.gz").voxels)) == {0, 1, 2}
    rows = list(csv.DictReader((files / "both_volumes.csv").open()))
    assert [row["label"] for row in rows] == ["1", "2"]
    for label in (1, 2):
        probability = Volume.read(files / "soft" / f"p_label{label}.nii.gz").voxels
        assert probability.dtype == np.float32 and (probability.min(), probability.max()) == (0, 1)
    assert run(*words, files / "one.nii.gz", "--label", 2, "--probabilities", soft).code == 0
    assert set(np.unique(read_labelmap(files / "one.nii.gz").voxels)) == {0, 2}
    assert soft.is_file()


def test_a_label_that_the_chosen_slices_lack_is_named(run: Run, files: Path) -> None:
    labelmap = read_labelmap(files / "full.seg.nrrd")
    labelmap.voxels[4] *= 2
    labelmap.segment_names[2] = "other"
    labelmap.write(files / "two.seg.nrrd")
    words = ("segment", "--support", files / "scan.nii.gz", "--mask", files / "two.seg.nrrd", "--slice", MIDDLE)
    ran = run(*words, "--output", files / "r.nii.gz")
    assert ran.code == 0
    assert "Warning: nothing of label 2 (other) is painted on the chosen slices; it is left out." in ran.err


def test_several_scans_go_into_a_folder(run: Run, files: Path) -> None:
    folder = files / "results"
    words = segment(files, "--query", files / "scan.nii.gz", files / "other.nii.gz", "--output", folder)
    ran = run(*words, "--probabilities", folder)
    assert ran.code == 0, ran.err
    names = {"scan_seg", "other_seg"}
    expected = {f"{name}{end}" for name in names for end in (".nii.gz", ".json", "_volumes.csv")}
    expected |= {f"{name}_probability{end}" for name in ("scan", "other") for end in (".nii.gz", ".json")}
    assert set(os.listdir(folder)) == expected | {"cohort.csv"}
    assert read_labelmap(folder / "other_seg.nii.gz").voxels.any()
    before = (folder / "scan_seg.nii.gz").stat().st_mtime_ns
    (folder / "other_seg.nii.gz").unlink()
    ran = run(*words, "--skip-existing")
    assert ran.code == 0 and "1 of 2 results exist and are skipped." in ran.err
    assert (folder / "other_seg.nii.gz").is_file() and (folder / "scan_seg.nii.gz").stat().st_mtime_ns == before
    ran = run(*words, "--skip-existing")
    assert ran.code == 0 and "2 of 2 results exist" in ran.err and ran.out == ""


def test_a_bad_scan_among_several_does_not_stop_the_others(run: Run, files: Path) -> None:
    (files / "bad.nii.gz").write_bytes(b"no image")
    queries = [files / name for name in ("scan.nii.gz", "bad.nii.gz", "other.nii.gz")]
    ran = run(*segment(files, "--query", *queries, "--output", files / "results"))
    assert ran.code == 1
    assert ran.err.splitlines()[-2] == "1 of 3 scans failed:"
    assert ran.err.splitlines()[-1].startswith(f"  {files / 'bad.nii.gz'}: Cannot read ")
    results = {path.name for path in (files / "results").glob("*_seg.nii.gz")}
    assert results == {"scan_seg.nii.gz", "other_seg.nii.gz"}


def test_a_support_set_segments_next_months_scan(run: Run, files: Path) -> None:
    kept = files / "ball.safetensors"
    assert run(*segment(files, "--output", files / "now.nii.gz", "--save-support-set", kept)).code == 0
    ran = run("segment", "--support-set", kept, "--query", files / "other.nii.gz", "--output", files / "next.seg.nrrd")
    assert ran.code == 0, ran.err
    labelmap = read_labelmap(files / "next.seg.nrrd")
    assert labelmap.voxels.any() and labelmap.segment_names == {1: "ball"}


def test_a_mask_on_a_cropped_grid_is_resampled_and_said(run: Run, files: Path) -> None:
    image = SimpleITK.ReadImage(str(files / "painted.seg.nrrd"))
    SimpleITK.WriteImage(image[5:35, 5:35, 3:8], str(files / "cropped.nii.gz"))
    words = ("--support", files / "scan.nii.gz", "--mask", files / "cropped.nii.gz", "--output", files / "r.nii.gz")
    ran = run("segment", *words)
    assert ran.code == 0
    (line,) = [line for line in ran.err.splitlines() if line.startswith("Warning: ")]
    assert "nearest neighbour" in line and "30 × 30 × 5" in line


def test_a_dry_run_tells_and_writes_nothing(run: Run, files: Path) -> None:
    before = seen(files)
    words = segment(files, "--query", files / "other.nii.gz", "--output", files / "new" / "x.nii.gz", "--dry-run")
    ran = run(*words, "--save-support-set", files / "set.safetensors")
    assert ran.code == 0
    assert "9 axial slices of axis 0, 1 label: about" in ran.err
    assert f"{files / 'other.nii.gz'} -> {files / 'new' / 'x.nii.gz'}" in ran.out
    assert seen(files) == before and not (files / "new").exists()


def test_a_model_folder(run: Run, files: Path, random_model: Path) -> None:
    ran = run(*segment(files, "--output", files / "r.nii.gz", "--model", random_model, "--device", "cpu"))
    assert ran.code == 0, ran.err
    assert json.loads((files / "r.json").read_text())["sdfsmis_model"] == str(random_model)


def test_a_dicom_folder(run: Run, files: Path) -> None:
    """Its results are named after the folder."""
    folder = files / "series"
    folder.mkdir()
    image = SimpleITK.ReadImage(str(files / "other.nii.gz"))
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for index in range(image.GetDepth()):
        plane = image[:, :, index]
        position = image.TransformIndexToPhysicalPoint((0, 0, index))
        tags = {
            "0008|0060": "MR",
            "0008|0018": f"1.2.3.{index + 1}",
            "0020|000e": "1.2.3.100",
            "0020|000d": "1.2.3.200",
            "0020|0032": "\\".join(map(str, position)),
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0020|0013": str(index),
        }
        for key, value in tags.items():
            plane.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{index}.dcm"))
        writer.Execute(plane)
    ran = run(*segment(files, "--query", folder, "--output", f"{files / 'results'}/"))
    assert ran.code == 0, ran.err
    assert (files / "results" / "series_seg.nii.gz").is_file()


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
    assert "Both --support-set and --support" in refused(*segment(files, *out, "--support-set", some_set))
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
    assert "painted slices there: 5" in refused(*segment(files, *out, "--slice", 3))
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


def test_a_scan_is_hashed_and_its_window_computed_once(run: Run, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given: calls.append(call.__name__) or call(*given)

    monkeypatch.setattr(Volume, "_content_hash", counted(Volume._content_hash))
    monkeypatch.setattr(volume, "robust_window", counted(volume.robust_window))
    assert run(*segment(files, "--output", files / "r.nii.gz")).code == 0
    assert sorted(calls) == ["_content_hash", "robust_window"]


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


# -- the words of a command line ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "spread"),
    [
        ("--slice 3 4 5", "--slice 3 --slice 4 --slice 5"),
        ("--slice 3 --slice 4 5", "--slice 3 --slice 4 --slice 5"),
        ("--slice=3 4", "--slice=3 --slice 4"),
        ("--slice 3 -1", "--slice 3 --slice -1"),
        ("--slice -1 -2", "--slice -1 --slice -2"),
        ("--query a b --output c", "--query a --query b --output c"),
        ("--output c --query a b", "--output c --query a --query b"),
        ("--dry-run a", "--dry-run a"),
        ("--query a --dry-run b", "--query a --dry-run b"),
        ("--query a -- b c", "--query a -- b c"),
        ("--mask --query a b", "--mask --query a b"),
        ("--unknown a --query", "--unknown a --query"),
        ("--threshold -0.5 x", "--threshold -0.5 x"),
        ("--keep-largest", "--keep-largest volume"),
        ("--keep-largest --query a b", "--keep-largest volume --query a --query b"),
        ("--keep-largest slice --fill-holes", "--keep-largest slice --fill-holes"),
        ("--keep-largest=slice", "--keep-largest=slice"),
        ("", ""),
    ],
)
def test_several_values_after_one_name(given: str, spread: str) -> None:
    import typer

    from SDFSMISLib.cli.app import app

    command = typer.main.get_command(app).commands["segment"]
    assert isinstance(command, ManyValues)
    assert command.spread(given.split()) == spread.split()


def test_keep_largest_alone_is_that_of_the_volume(run: Run, files: Path) -> None:
    assert run(*segment(files, "--keep-largest", "--output", files / "r.nii.gz")).code == 0
    assert "keep-largest volume" in (files / "r.json").read_text()


@pytest.mark.parametrize("command", ["segment", "demo", "doctor", "convert", "train", "evaluate"])
def test_every_command_has_help(run: Run, command: str) -> None:
    ran = run(command, "--help")
    assert ran.code == 0 and "Usage: sdfsmis" in ran.out and ran.err == ""


def test_the_help_of_train_names_every_configuration_that_comes_with_it(run: Run) -> None:
    shipped = {path.stem for path in (Path(SDFSMISLib.__file__).parent / "training" / "configs").iterdir()}
    text = run("train", "--help").out
    assert shipped and shipped <= set(re.findall(r"\w+", text))


ERROR = re.compile(r"(InputError|Error|Refused|NotFound|Lost|NotABackend|refuse\w*)$")
FOLDERS = {"image_encoder", "image_processor", "image_projector"}  # what files and folders are really called


def parameters() -> set[str]:
    """Names of two words that parameters and attributes of the library have: nobody but a programmer knows them."""
    names = {
        one.arg if isinstance(one, ast.arg) else one.target.id
        for path in Path(SDFSMISLib.__file__).parent.rglob("*.py")
        for one in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(one, ast.arg) or (isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name))
    }
    return {name for name in names if "_" in name.strip("_")} - FOLDERS


@pytest.mark.parametrize("files", ["client/*.py", "model/convert.py", "model/loading.py"])
def test_no_sentence_for_users_names_a_parameter_of_python(files: str) -> None:
    unknown = parameters()
    told = {}
    for path in Path(SDFSMISLib.__file__).parent.glob(files):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and ERROR.search(getattr(call.func, "id", "")):
                texts = [one.value for one in ast.walk(call) if isinstance(one, ast.Constant)]
                words = set(re.findall(r"\w+", " ".join(text for text in texts if isinstance(text, str))))
                told |= {f"{path.name}:{call.lineno}": found for found in [words & unknown] if found}
    assert not told


def test_help_and_version(run: Run) -> None:
    assert run("--version").out == f"sdfsmis {SDFSMISLib.__version__}\n"
    assert run().out == run("--help").out != ""


# -- the other commands ---------------------------------------------------------------------------------------------


def test_convert_says_what_it_needs(run: Run, files: Path) -> None:
    ran = run("convert", "--output", files / "model", "--dinov2", files)
    assert ran.code == 2 and "--stable-diffusion and --dinov2, or --official" in ran.err
    ran = run("convert", "--output", files / "model", "--dinov2", files, "--stable-diffusion", files / "none")
    assert ran.code == 2 and not (files / "model").exists()


def test_convert_hands_its_options_on(run: Run, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []
    for name in ("convert_official", "convert_stable_diffusion"):
        monkeypatch.setattr(
            f"SDFSMISLib.model.convert.{name}", lambda *given, name=name, **more: asked.append((name, given, more))
        )
    sources = ("--stable-diffusion", "sd", "--dinov2", "owner/dino")
    assert run("convert", "--output", files / "a", *sources, "--half", "--resolution", 512).code == 0
    assert run("convert", "--output", files / "b", "--official", files, "--overwrite").code == 0
    half = {"resolution": 512, "dtype": torch.float16, "overwrite": False}
    assert asked[0] == ("convert_stable_diffusion", ("sd", "owner/dino", files / "a"), half)
    whole = {"resolution": 256, "dtype": torch.float32, "overwrite": True, "stable_diffusion": None, "dinov2": None}
    assert asked[1] == ("convert_official", (files, files / "b"), whole)


def test_train_says_what_is_wrong_with_a_configuration(run: Run, files: Path) -> None:
    (files / "config.json").write_text('{"cases": "", "output": "x", "stpes": 3}')
    ran = run("train", "--config", files / "config.json")
    assert ran.code == 2 and "stpes" in ran.err


@pytest.fixture
def manifest(files: Path) -> Path:
    """Two cases of one scan: the ball, and a cube beside it that is as bright."""
    scan, labels = Volume.read(files / "scan.nii.gz"), read_labelmap(files / "full.seg.nrrd")
    cube = (slice(4, 8), slice(30, 36), slice(3, 9))
    scan.voxels[cube], labels.voxels[cube] = scan.voxels.max(), 2
    scan.write(files / "two.nii.gz")
    labels.write(files / "two_labels.nii.gz")
    case = {"group": "balls", "image": "two.nii.gz", "labels": "two_labels.nii.gz", "targets": {"ball": 1, "cube": 2}}
    cases = [{**case, "id": "balls/one", "split": "test"}, {**case, "id": "balls/two", "split": "train"}]
    path = files / "cases.json"
    path.write_text(json.dumps({"groups": {"balls": {}}, "cases": cases}))
    return path


def evaluation(manifest: Path, *words: object, protocol: str = "same-volume") -> tuple[object, ...]:
    output = manifest.parent / "results"
    return ("evaluate", "--cases", manifest, "--protocol", protocol, "--output", output, *words)


def test_evaluate_measures_models_beside_baselines(run: Run, manifest: Path) -> None:
    ran = run(*evaluation(manifest, "--baselines", "copy,growcut", "registration", "--groups", "balls"))
    assert ran.code == 0, ran.err
    folder = manifest.parent / "results"
    summary = json.loads((folder / "summary.json").read_text())
    assert [entry["method"].split()[0] for entry in summary] == ["built-in", "copy", "growcut", "registration"]
    ours, copied, *_ = (entry["groups"]["balls"]["targets"]["ball"]["dice"] for entry in summary)
    assert ours > 0.9 > copied
    assert "built-in" in ran.out and "copy" in ran.out and str(folder / "report.html") in ran.out
    assert "sdfsmis evaluate --cases" in (folder / "report.html").read_text(encoding="utf-8")
    assert run(*evaluation(manifest, "--groups", "ball")).code == 2


def test_evaluate_with_diagnostics_also_paints_another_structure(run: Run, manifest: Path) -> None:
    assert run(*evaluation(manifest, "--diagnostics", "--baselines", "copy")).code == 0
    folder = manifest.parent / "results"
    with (folder / "results.csv").open(newline="") as file:
        done = [(row["target"], row["shown"], row["method"].split()[0]) for row in csv.DictReader(file)]
    pairs = [(target, target, method) for target in ("ball", "cube") for method in ("built-in", "copy")]
    assert sorted(done) == sorted([*pairs, ("ball", "cube", "built-in"), ("cube", "ball", "built-in")])
    ours, copied = (entry["diagnostics"] for entry in json.loads((folder / "summary.json").read_text()))
    assert ours["pairing_tasks"] == 2 and ours["pairing_gap"] > 0 and copied["pairing_gap"] is None


def test_evaluate_runs_baselines_alone_and_says_what_it_left_out(run: Run, manifest: Path) -> None:
    words = ("--model", "none", "--baselines", "growcut", "copy", "--split", "test")
    ran = run(*evaluation(manifest, *words, protocol="cross-volume"))
    assert ran.code == 0 and "built-in" not in ran.out
    assert "growcut was left out: no task of the protocol cross-volume" in ran.out


def test_evaluate_in_field_has_models_take_each_slice_alone(
    run: Run, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    segment = Segmenter.segment
    monkeypatch.setattr(Segmenter, "segment", lambda *a, **k: [asked.append(k), segment(*a, **k)][1])
    assert run(*evaluation(manifest, protocol="field")).code == 0
    assert {named["strategy"] for named in asked} == {"independent"} and len(asked) == 2 * 3


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--baselines", "copy,snake"), "no baseline 'snake'; there are copy, growcut, registration"),
        (("--model", "none"), "nothing to measure"),
        (("--model", "none", "built-in"), "none, or models"),
        (("--model", "nowhere"), "nowhere"),
        (("--groups", "balls,cubes"), "no group 'cubes'"),
        (("--shots", 0), "--shots"),
        (("--shots", 3, "--protocol", "field", "--model", "none", "--baselines", "copy"), "3 shots.* field takes 1"),
        (("--protocol", "nested"), "nested"),
        (("--cases", "none.json"), "none.json"),
    ],
)
def test_bad_evaluations_are_one_sentence(run: Run, manifest: Path, words: tuple[object, ...], sentence: str) -> None:
    ran = run(*evaluation(manifest, *words))
    assert ran.code == 2 and re.search(sentence, ran.err) and len(ran.err.splitlines()) == 1
    assert not (manifest.parent / "results").exists()


def test_evaluate_without_its_packages_says_what_to_install(
    run: Run, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "monai", None)
    monkeypatch.setitem(sys.modules, "monai.metrics", None)
    ran = run(*evaluation(manifest, "--model", "none", "--baselines", "copy"))
    assert ran.code == 2 and 'pip install "sdfsmis[evaluate]"' in ran.err and len(ran.err.splitlines()) == 1
    assert not (manifest.parent / "results").exists()


# -- as a program ---------------------------------------------------------------------------------------------------


def program(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "SDFSMISLib.cli", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_the_program_answers_at_once() -> None:
    """Help, and the refusal of a missing file, without the seconds that torch takes."""
    code = (
        "import sys; from SDFSMISLib.cli.app import main; "
        "code = main(['segment', '--support', 'none', '--mask', 'none', '--output', 'x.nii.gz']); "
        "print(code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout == "2 False\n"
    assert done.stderr == "Error: There is no file or folder none.\n"


def test_the_program_hands_its_exit_code_on() -> None:
    assert program("--version").returncode == 0
    done = program("segment", "--slice", "a")
    assert (done.returncode, done.stdout) == (2, "") and len(done.stderr.splitlines()) == 1
