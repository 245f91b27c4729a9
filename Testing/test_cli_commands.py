"""`sdfsmis convert`, `train` and `evaluate`: what they hand on, write and refuse."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cli_examples import Run
from SDFSMISLib import Volume, read_labelmap
from SDFSMISLib.inference import Segmenter

pytest_plugins = ["cli_fixtures"]
pytestmark = pytest.mark.usefixtures("bright_built_in")


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


def with_targets(manifest: Path, **targets: int) -> None:
    content = json.loads(manifest.read_text())
    for case in content["cases"]:
        case["targets"] = targets
    manifest.write_text(json.dumps(content))


def test_evaluate_measures_models_beside_baselines(run: Run, manifest: Path) -> None:
    with_targets(manifest, ball=1)
    ran = run(
        *evaluation(manifest, "--baselines", "copy,growcut", "registration", "--groups", "balls", "--split", "test")
    )
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


def test_evaluate_paints_along_several_axes_or_round_by_round(run: Run, manifest: Path) -> None:
    ran = run(*evaluation(manifest, "--directions", 3, "--model", "none", "--baselines", "growcut"))
    assert ran.code == 0 and "same-volume, 3 directions" in ran.out and "over the whole volume" in ran.out, ran.err
    ran = run(*evaluation(manifest, "--rounds", 2, "--painting", "suggested,worst", protocol="interactive"))
    assert ran.code == 0 and "of the gain of worst" in ran.out, ran.err
    with (manifest.parent / "results" / "results.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["protocol"] == "interactive"]
    assert [(row["painting"], row["target"], len(row["painted"].split())) for row in rows] == [
        *(("suggested", "ball", 1), ("suggested", "ball", 2), ("worst", "ball", 1), ("worst", "ball", 2)),
        *(("suggested", "cube", 1), ("suggested", "cube", 2), ("worst", "cube", 1)),
        ("worst", "cube", 1),  # it is right after one slice, so that there is nothing left to paint
    ]
    assert all(float(row["dice_whole"]) > 0.9 for row in rows)


def test_evaluate_takes_finished_scans_as_examples(run: Run, manifest: Path) -> None:
    """In place of painted slices or beside them; of another scan, so the second case gets one here."""
    ran = run(*evaluation(manifest, "--finished", 1, "--model", "none", "--baselines", "atlas"))
    assert ran.code == 2 and "Nothing was measured" in ran.err and "--finished" in ran.err
    content = json.loads(manifest.read_text())
    scan = Volume.read(manifest.parent / "two.nii.gz")
    Volume(scan.voxels + 1, scan.geometry).write(manifest.parent / "brighter.nii.gz")
    content["cases"][1]["image"] = "brighter.nii.gz"
    manifest.write_text(json.dumps(content))
    with_targets(manifest, ball=1)
    words = ("--finished", 1, "--examples-from", "train", "--baselines", "atlas,slices,copy")
    for protocol, title in (
        ("cross-volume", "cross-volume, 1 finished scan (train)"),
        ("same-volume", "same-volume, 1 painted slice, 1 finished scan (train)"),
    ):
        ran = run(*evaluation(manifest, *words, protocol=protocol))
        assert ran.code == 0 and title in " ".join(ran.out.split()), ran
    with (manifest.parent / "results" / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    methods = [re.sub("built-in [0-9a-f]+", "built-in", row["method"]) for row in rows]
    assert methods == ["built-in", "atlas", "copy", "built-in, slices"] * 2
    assert {(row["finished"], row["examples_from"], row["support_case"]) for row in rows} == {
        ("1", "train", "balls/two")
    }
    assert [row["painted"] for row in rows] == [""] * 4 + [rows[4]["painted"]] * 4 and rows[4]["painted"]
    dice = [(method, float(row["dice"])) for row, method in zip(rows, methods, strict=True)]
    assert min(value for method, value in dice if method in ("built-in", "atlas")) > 0.9, dice


def test_evaluate_runs_baselines_alone_and_says_what_it_left_out(run: Run, manifest: Path) -> None:
    words = ("--model", "none", "--baselines", "growcut", "copy", "--split", "test")
    ran = run(*evaluation(manifest, *words, protocol="cross-volume"))
    assert ran.code == 0 and "built-in" not in ran.out
    assert "growcut was left out: no task of the protocol cross-volume" in ran.out


def test_evaluate_that_measures_nothing_says_so(run: Run, manifest: Path) -> None:
    """With a baseline that needs two painted slices, and with targets that no label map shows."""
    ran = run(*evaluation(manifest, "--baselines", "fill-between", "--model", "none"))
    assert ran.code == 2 and "Nothing was measured: of the 1 cases chosen (balls/one)" in ran.err, ran
    with_targets(manifest, cyst=7)
    for protocol in ("same-volume", "interactive"):
        ran = run(*evaluation(manifest, protocol=protocol))
        assert ran.code == 2 and "Nothing was measured" in ran.err and ran.out == "", ran
    assert not (manifest.parent / "results" / "report.html").exists()


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
        (("--baselines", "copy,snake"), "no baseline 'snake'; there are copy, growcut, registration, fill-between"),
        (("--baselines", "slices"), "slices belongs to --finished"),
        (("--examples-from", "train"), "give --finished N too"),
        (("--protocol", "interactive", "--finished", 1), "interactive takes no --finished"),
        (("--protocol", "cross-volume", "--finished", 1, "--shots", 2), "2 shots and 1 finished scans"),
        (("--model", "none"), "nothing to measure"),
        (("--model", "none", "built-in"), "none, or models"),
        (("--model", "nowhere"), "nowhere"),
        (("--groups", "balls,cubes"), "no group 'cubes'"),
        (("--shots", 0), "--shots"),
        (("--shots", 3, "--protocol", "field", "--model", "none", "--baselines", "copy"), "3 shots.* field takes 1"),
        (("--protocol", "nested"), "nested"),
        (("--directions", 2, "--shots", 3), "3 shots and 2 directions"),
        (("--directions", 2, "--model", "none", "--baselines", "copy"), "copy takes painted slices of one direction"),
        (("--rounds", 3), "belong to --protocol interactive; same-volume takes neither"),
        (("--protocol", "interactive", "--shots", 3), "interactive takes none of --shots"),
        (("--protocol", "interactive", "--painting", "best"), "'best'; there are suggested, worst, even"),
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
