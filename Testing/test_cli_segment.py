"""`sdfsmis segment`: what it writes and says."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK

import SDFSMISLib
from cli_examples import MIDDLE, Run, seen, segment
from SDFSMISLib import SupportSet, Volume, read_labelmap
from SDFSMISLib.images import volume

pytest_plugins = ["cli_fixtures"]
pytestmark = pytest.mark.usefixtures("bright_built_in")


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))


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
    ran = run(*words, "--slice", "0:4,0:6", "0:7,")
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


def test_keep_largest_alone_is_that_of_the_volume(run: Run, files: Path) -> None:
    assert run(*segment(files, "--keep-largest", "--output", files / "r.nii.gz")).code == 0
    assert "keep-largest volume" in (files / "r.json").read_text()


def test_a_scan_is_hashed_and_its_window_computed_once(run: Run, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given: calls.append(call.__name__) or call(*given)

    monkeypatch.setattr(Volume, "_content_hash", counted(Volume._content_hash))
    monkeypatch.setattr(volume, "robust_window", counted(volume.robust_window))
    assert run(*segment(files, "--output", files / "r.nii.gz")).code == 0
    assert sorted(calls) == ["_content_hash", "robust_window"]
