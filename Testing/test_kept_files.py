"""What users have kept of version 0.1.0 is read as it was written: support sets, an example, a pipeline, a scene,
results, a training."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from SDFSMISLib import Example, SupportSet, Volume
from SDFSMISLib.benchmark.scores import organ_means, read_fold_results
from SDFSMISLib.cli.app import main
from SDFSMISLib.evaluation import Row, copy_support, evaluate, read_manifest, read_results
from SDFSMISLib.evaluation.baselines import Method
from SDFSMISLib.evaluation.results import Prediction, prediction_path
from SDFSMISLib.model import SDFSMISPipeline
from SDFSMISLib.model.loading import load_pipeline, weights_digest
from small_scans import ball_scan

KEPT = Path(__file__).parent / "kept_files"
DIGEST = "6286c12b51862e9333b81759e567d081b3712694b0c37d3b858c998ab89872ee"  # of example.safetensors


def test_a_kept_support_set_holds_its_painted_slice() -> None:
    support = SupportSet.load(KEPT / "one_slice.safetensors")
    scan, labelmap = ball_scan(shape=(8, 24, 24))
    (piece,) = support.slices
    assert (support.labels, support.names, piece.plane.axis, piece.index, piece.plane.name) == (
        (1,),
        {1: "ball"},
        0,
        4,
        "axial",
    )
    assert np.array_equal(piece.image, scan.voxels[4]) and np.array_equal(piece.labels, labelmap.voxels[4])
    assert (piece.plane.spacing, piece.plane.thickness, piece.plane.scan) == ((1.0, 1.0), 2.0, scan.content_hash())
    assert np.array_equal(np.unique(piece.canonical_image()), np.unique(piece.plane.window.normalize(piece.image)))


def test_a_kept_support_set_of_two_slices_has_both_labels_and_their_names() -> None:
    support = SupportSet.load(KEPT / "two_labels.safetensors")
    labelmap = ball_scan(shape=(8, 24, 24))[1].voxels
    labelmap[5, :, 14:] *= 2
    assert (support.labels, support.names) == ((1, 2), {1: "ball", 2: "half"})
    assert [piece.index for piece in support.slices] == [3, 5]
    assert all(np.array_equal(piece.labels, labelmap[piece.index]) for piece in support.slices)


def test_a_kept_example_has_its_scan_and_labels() -> None:
    example = Example.load(KEPT / "example.safetensors")
    scan, labelmap = ball_scan(shape=(8, 24, 24))
    labelmap.voxels[5, :, 14:] *= 2
    assert (example.name, example.names) == ("example", {1: "ball", 2: "half"})
    assert np.array_equal(example.labels, labelmap.voxels) and example.scan == scan.content_hash()
    assert example.geometry == scan.geometry and example.window == scan.window()
    grey = (example.window.normalize(scan.voxels) + 1) * 127.5
    assert np.abs(grey - example.image).max() <= 0.5
    assert example.digest() == DIGEST


def test_a_kept_pipeline_is_loaded() -> None:
    pipe = SDFSMISPipeline.from_pretrained(KEPT / "pipeline")
    assert pipe.config.resolution == 32
    assert sum(value.numel() for value in pipe.unet.state_dict().values()) > 10_000


def test_finished_scans_of_a_kept_cohort_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(KEPT / "cohort", tmp_path / "study")
    monkeypatch.chdir(tmp_path / "study")
    before = {path.name: path.read_bytes() for path in Path("results").iterdir() if path.name != "cohort.csv"}
    words = "segment --support scans/a.nii.gz --mask painted.seg.nrrd --query scans/a.nii.gz scans/b.nii.gz"
    assert main([*words.split(), "--skip-existing", "--output", "results/"]) == 0
    assert before == {path.name: path.read_bytes() for path in Path("results").iterdir() if path.name != "cohort.csv"}
    with open("results/cohort.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["result"], row["status"], row["name"]) for row in rows] == [
        ("a_seg.nii.gz", "done", "ball"),
        ("b_seg.nii.gz", "done", "ball"),
    ]
    for row in rows:
        assert int(row["voxels"]) == np.count_nonzero(Volume.read(Path("results") / row["result"]).voxels)


def kept_rows() -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """The rows of `results/results.csv` and of `results/results.json`."""
    with open("results/results.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file)), json.loads(Path("results/results.json").read_text(encoding="utf-8"))


def test_a_kept_evaluation_is_complete_and_goes_on_when_asked_for_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("monai")
    shutil.copytree(KEPT / "evaluation", tmp_path / "study")
    monkeypatch.chdir(tmp_path / "study")
    kept, columns = kept_rows(), Path("results/results.csv").read_text(encoding="utf-8").splitlines()[0]
    summary = json.loads(Path("results", "summary.json").read_text(encoding="utf-8"))
    (weights,) = {row.method for row in read_results("results/results.csv")} - {"copy"}

    def measure(**baselines: Method) -> list[Row]:
        """As `sdfsmis evaluate --model pipeline --baselines ... --diagnostics --output results`."""
        methods = {weights: lambda task: pytest.fail("this was measured before"), **baselines}
        manifest = read_manifest("cases.json")
        return evaluate(manifest, "same-volume", methods, output="results", mispaired=(weights,))

    assert weights == f"pipeline {weights_digest(load_pipeline(str(KEPT / 'pipeline'), 'cpu'))[:8]}"
    rows = measure(copy=lambda task: pytest.fail("this too"))
    assert len(rows) == 8 and "directions" not in columns
    for before, after in zip(kept, kept_rows(), strict=True):
        assert all(old.items() <= new.items() for old, new in zip(before, after, strict=True))
    for old, new in zip(summary, json.loads(Path("results", "summary.json").read_text(encoding="utf-8")), strict=True):
        assert old.keys() <= new.keys() and old["diagnostics"].keys() == new["diagnostics"].keys()
        assert [new[name] for name in ("dice", "nsd", "hd95")] == pytest.approx(
            [old[name] for name in ("dice", "nsd", "hd95")], rel=1e-5
        )
    again = [row for row in measure(again=copy_support) if row.method == "again"]
    copied = [row for row in rows if row.method == "copy"]
    for one, other in zip(again, copied, strict=True):
        assert (one.case, one.target, one.painted, one.ml) == (other.case, other.target, other.painted, other.ml)
        assert one.scores.pop("dice_whole") > other.scores["dice"]
        assert one.scores == pytest.approx(other.scores, rel=1e-5)
        predictions = (Prediction.load(prediction_path(Path("results"), row.key)) for row in (one, other))
        assert all(np.array_equal(a, b) for a, b in zip(*(vars(its).values() for its in predictions), strict=True))


def test_a_kept_benchmark_run_is_put_into_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    (kept,) = read_fold_results(KEPT / "benchmark")
    content = json.loads(kept.path.read_text(encoding="utf-8"))
    assert len(kept.scores) == len(content["scores"]) == 16 and kept.about == content["about"]
    for kind, dice in content["dice"].items():
        assert organ_means([kept], kind) == pytest.approx(dice)
    assert main(["benchmark", "table", "--results", str(KEPT / "benchmark")]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "ours: every scan once" in line]
    organs = ("liver", "right kidney", "left kidney", "spleen", "mean")
    assert [f"{100 * content['dice']['own'][organ]:.2f}" for organ in organs] == re.findall(r"\d+\.\d\d", row)


def test_a_kept_training_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    from SDFSMISLib.training.config import TrainingConfig
    from SDFSMISLib.training.trainer import train

    shutil.copy(KEPT / "training" / "segmentation.safetensors", tmp_path)
    config = TrainingConfig.read(
        KEPT / "training" / "config.json", output=str(tmp_path), start=str(KEPT / "pipeline"), steps=3
    )
    steps: list[int] = []
    folder = train(config, lambda done, total, text: steps.append(done))
    assert steps == [2, 3], "the first was done"
    before, after = (load_pipeline(str(one), "cpu").components for one in (KEPT / "pipeline", folder))
    for name, network in before.items():  # later versions add inputs to the U-Net
        found = after[name].state_dict()
        same = all(torch.equal(value, found[key]) for key, value in network.state_dict().items())
        assert same == (name != "image_encoder"), name


def test_a_kept_scene_gives_its_results_and_corrections_back(tmp_path: Path) -> None:
    slicer = pytest.importorskip("slicer")
    from mrml_scene import MrmlScene, held
    from SDFSMISLib.scene import SegmentTemplate, find_results, read_painting, read_results, with_corrections

    scene = MrmlScene()
    cache, files = slicer.vtkCacheManager(), slicer.vtkDataIOManager()  # as Slicer has; bundles are unpacked there
    cache.SetRemoteCacheDirectory(str(tmp_path / "cache"))
    files.SetCacheManager(cache)
    scene.node.SetCacheManager(cache)
    scene.node.SetDataIOManager(files)
    shutil.copy(KEPT / "scene.mrb", tmp_path)
    assert scene.node.ReadFromMRB(str(tmp_path / "scene.mrb"))
    volume = scene.node.GetFirstNodeByClass("vtkMRMLScalarVolumeNode")
    segmentation = scene.node.GetFirstNodeByClass("vtkMRMLSegmentationNode")
    segments = segmentation.GetSegmentation()
    names = [segments.GetSegment(one).GetName() for one in segments.GetSegmentIDs()]
    assert names == ["liver", "spleen", "other", "liver (SDFSMIS)", "spleen (SDFSMIS)"]
    templates = {label: SegmentTemplate.of(segmentation, segments.GetNthSegmentID(label - 1)) for label in (1, 2)}
    results = find_results(volume, segmentation, templates)
    assert results == {label: segments.GetNthSegmentID(label + 2) for label in (1, 2)}
    painted = read_painting(volume, segmentation, [segments.GetNthSegmentID(number) for number in (0, 1)])
    painting = with_corrections(painted, read_results(volume, segmentation, results))
    assert {plane: one.known for plane, one in painting.corrections.items()} == {(0, 8): None}
    voxels = [int(held(segmentation, one, volume).sum()) for one in segments.GetSegmentIDs()]
    assert voxels == [34, 39, 299, 367, 356]
