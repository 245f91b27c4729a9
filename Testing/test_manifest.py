"""The manifest of an evaluation: cases are chosen from it, and a malformed one is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from SDFSMISLib.cohort.cases import load_case
from SDFSMISLib.errors import InputError
from SDFSMISLib.evaluation import read_manifest
from small_cases import COLUMN, CONE, ManifestMaker, boxes, write_two_groups


@pytest.fixture
def two_groups(tmp_path: Path) -> Path:
    return write_two_groups(tmp_path)


def test_cases_are_chosen_by_group_and_split(two_groups: Path) -> None:
    manifest = read_manifest(two_groups)
    assert manifest.groups["a"].may_train_shipped_weights and manifest.cases[0].modality == "CT"
    assert [case.id for case in manifest.select()] == ["a/1", "a/2", "a/3", "b/1"]
    assert [case.id for case in manifest.select(split="test")] == ["a/2", "a/3", "b/1"]
    assert [case.id for case in manifest.select(["b"])] == ["b/1"]
    with pytest.raises(InputError, match="'c'.*a, b"):
        manifest.select(["c"])
    with pytest.raises(InputError, match="no case"):
        manifest.select(["b"], "train")


def test_a_target_of_several_labels_is_one_structure(tmp_path: Path) -> None:
    maker = ManifestMaker(tmp_path)
    other = (slice(0, 2), slice(0, 5), slice(0, 5))
    maker.add("a/1", boxes(COLUMN, CONE, other), {"both": [3, 1], "cone": 2})  # type: ignore[dict-item]
    (case,) = read_manifest(maker.write()).cases
    assert dict(case.targets) == {"both": 3, "cone": 2}
    assert (case.labels_of("both"), case.labels_of("cone")) == ([3, 1], 2)  # as the manifest has them
    labelled = load_case(case)
    assert labelled.mask("both").sum() == 6 * 16 + 2 * 25 and labelled.mask("cone").sum() == 75
    assert labelled.support("both", [4]).slices[0].mask(3).sum() == 16


def broken(content: dict[str, Any], change: str) -> Any:
    case = content["cases"][0]
    match change:
        case "no groups":
            del content["groups"]
        case "no cases":
            content["cases"] = []
        case "cases no list":
            content["cases"] = {}
        case "case no object":
            content["cases"][0] = "a/1"
        case "no image":
            del case["image"]
        case "image gone":
            case["image"] = "gone.nii.gz"
        case "unknown group":
            case["group"] = "z"
        case "split":
            case["split"] = "validation"
        case "label":
            case["targets"]["column"] = "1"
        case "label 0":
            case["targets"]["column"] = 0
        case "empty list":
            case["targets"]["column"] = []
        case "list of texts":
            case["targets"]["column"] = [1, "2"]
        case "in two lists":
            case["targets"] = {"column": [1, 3], "cone": [2, 3]}
        case "alone and in a list":
            case["targets"] = {"column": [1, 3], "cone": 1}
        case "twice":
            content["cases"].append(case)
        case "list":
            return [content]
    return content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no groups", "no field 'groups'"),
        ("no cases", "lists no cases"),
        ("cases no list", "JSON list"),
        ("case no object", "Case 0.*JSON object"),
        ("no image", "'a/1'.*no field 'image'"),
        ("image gone", "'a/1'.*gone.nii.gz"),
        ("unknown group", "'z'.*a, b"),
        ("split", "'validation'.*train"),
        ("label", "'column' the label '1'"),
        ("label 0", "'column' the label 0"),
        ("empty list", r"'column' the label \[\]; a whole number from 1, or a list"),
        ("list of texts", "'column' the label"),
        ("in two lists", "gives the label 3 twice"),
        ("alone and in a list", "gives the label 1 twice"),
        ("twice", "two cases.*'a/1'"),
        ("list", "JSON object"),
    ],
)
def test_a_malformed_manifest_is_refused_with_the_place(two_groups: Path, change: str, message: str) -> None:
    content = broken(json.loads(two_groups.read_text()), change)
    two_groups.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        read_manifest(two_groups)


def test_a_manifest_that_is_missing_or_no_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Cannot read"):
        read_manifest(tmp_path / "cases.json")
    (tmp_path / "cases.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        read_manifest(tmp_path / "cases.json")
    (tmp_path / "cases.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not JSON"):
        read_manifest(tmp_path / "cases.json")
