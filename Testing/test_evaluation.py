"""Manifest, protocols, metrics, means and the run, on small cases made here whose figures can be worked out by hand."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from SDFSMISLib.cohort.cases import load_case
from SDFSMISLib.errors import InputError
from SDFSMISLib.evaluation import (
    Row,
    Task,
    copy_support,
    evaluate,
    markdown_table,
    read_manifest,
    read_results,
    rich_table,
    segmenter_method,
    summarise,
)
from SDFSMISLib.evaluation.metrics import dice, score
from SDFSMISLib.evaluation.protocols import cross_volume, field, painted_slices, same_volume
from SDFSMISLib.images.volume import Geometry, Volume
from small_cases import COLUMN, CONE, THICK, ManifestMaker, boxes


@pytest.fixture
def maker(tmp_path: Path) -> ManifestMaker:
    return ManifestMaker(tmp_path)


@pytest.fixture
def two_groups(maker: ManifestMaker) -> Path:
    maker.add("a/1", boxes(COLUMN, CONE), {"column": 1, "cone": 2}, split="train")
    maker.add("a/2", boxes(COLUMN), {"column": 1, "cone": 2})  # names a target that it does not hold
    maker.add("a/3", boxes(CONE, COLUMN), {"column": 2, "cone": 1})  # other label values for the same targets
    maker.add("b/1", boxes(COLUMN), {"column": 1})
    return maker.write()


def test_the_dice_of_masks_made_by_hand() -> None:
    empty, left, right = (np.zeros((2, 3, 4), dtype=bool) for _ in range(3))
    left[..., :2], right[..., 1:3] = True, True
    assert dice(empty, empty) == 1.0
    assert dice(left, empty) == dice(empty, left) == 0.0
    assert dice(left, left) == 1.0
    assert dice(left, right) == 0.5  # 2 * 6 / (12 + 12)
    left[1] = False
    assert dice(left, right) == pytest.approx(2 * 3 / (6 + 12))  # voxels of all slices are one set, no mean of slices
    for wrong in (left[:1], left.astype(np.uint8)):
        with pytest.raises(ValueError, match="bool masks"):
            dice(wrong, right)


def test_only_the_judged_slices_count() -> None:
    reference = np.zeros((4, 3, 5), dtype=bool)
    reference[:, :, :2] = True
    prediction = reference.copy()
    prediction[:, :, 4] = True
    assert score(prediction, reference, (1, 1, 1), 2, [0, 1, 2, 3])["dice"] == 1.0
    assert score(prediction, reference, (1, 1, 1), 2, [3, 4])["dice"] == 0.0


@pytest.mark.parametrize(
    ("areas", "shots", "expected"),
    [
        ([0, 1, 3, 3, 2], 1, (2,)),  # of equal areas the first
        ([0, 1, 1, 1, 1, 1, 1, 0], 3, (2, 4, 6)),  # C = 6: places 1, 3, 5 of the slices 1 to 6
        ([1, 0, 1, 1, 0, 1, 1], 3, (0, 3, 6)),  # C = 5: places 0, 2, 4 of the slices that hold the target
        ([1] * 10, 3, (1, 5, 8)),
        ([0, 1, 1], 5, (1, 2)),  # no more than there are
    ],
)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_which_slices_are_painted(areas: list[int], shots: int, expected: tuple[int, ...], axis: int) -> None:
    planes = np.zeros((len(areas), 3, 4), dtype=bool)
    for plane, area in zip(planes, areas, strict=True):
        plane.ravel()[:area] = True
    assert painted_slices(np.moveaxis(planes, 0, axis), axis, shots) == expected


def test_painted_slices_are_the_literature_s() -> None:
    """The table of the public reference, where the project's data are at hand."""
    folder = os.environ.get("SDFSMIS_PARITY_DIR")
    table = Path(folder or "") / "episode_tables.json"
    if not folder or not table.exists():
        pytest.skip("SDFSMIS_PARITY_DIR names no folder with episode_tables.json")
    for shots, by_count in json.loads(table.read_text())["support_index"].items():
        for count, expected in by_count.items():
            if int(shots) > 1:
                mask = np.ones((int(count), 1, 1), dtype=bool)
                assert painted_slices(mask, 0, int(shots)) == tuple(sorted(set(expected)))


def test_chunks_are_the_literature_s(maker: ManifestMaker) -> None:
    folder = os.environ.get("SDFSMIS_PARITY_DIR")
    table = Path(folder or "") / "episode_tables.json"
    if not folder or not table.exists():
        pytest.skip("SDFSMIS_PARITY_DIR names no folder with episode_tables.json")
    tables = json.loads(table.read_text())
    for count in (3, 4, 5, 7, 8, 10):
        for name in ("a/1", "a/2"):
            maker.add(
                f"{name}{count}", boxes((slice(1, 1 + count), slice(0, 8), slice(0, 8)), shape=(12, 16, 16)), {"t": 1}
            )
        case, other = read_manifest(maker.write()).cases[-2:]
        task = field(case, "t", (other,), load_case, 1)
        assert task is not None
        bounds = tables["chunk_bounds"][str(count)]
        assert [len(part.judged) for part in task.parts] == np.diff(bounds).tolist()
        painted = [part.support.slices[0].index - 1 for part in task.parts]
        assert painted == tables["support_index"]["3"][str(count)]


def test_same_volume_makes_the_task_of_the_protocol(two_groups: Path) -> None:
    case = read_manifest(two_groups).cases[0]
    task = same_volume(case, "cone", (), load_case, 1)
    assert task is not None
    assert (task.axis, task.label, task.painted) == (0, 2, (3,))
    assert task.judged == (0, 1, 2, 4, 5, 6, 7, 8, 9)  # slices without the target count
    assert task.support.labels == (2,) and task.support.names == {2: "cone"}  # the other target is not given away
    assert np.argwhere(task.reference).min(axis=0).tolist() == [3, 10, 9]
    assert same_volume(case, "column", (), load_case, 3).painted == (3, 5, 7)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("box", "makes_one"),
    [
        ((slice(2, 5), slice(0, 4), slice(0, 4)), False),  # 48 voxels on 3 slices
        ((slice(2, 5), slice(0, 17), slice(0, 1)), True),  # 51 voxels on 3 slices
        ((slice(2, 4), slice(0, 8), slice(0, 8)), False),  # 128 voxels on 2 slices
    ],
)
def test_targets_that_are_too_small_make_no_task(
    maker: ManifestMaker, box: tuple[slice, slice, slice], makes_one: bool
) -> None:
    maker.add("a/1", boxes(box, shape=(8, 20, 20)), {"target": 1})
    maker.add("a/2", boxes(COLUMN), {"target": 1})
    case, other = read_manifest(maker.write()).cases
    assert (same_volume(case, "target", (other,), load_case, 1) is not None) is makes_one
    assert (cross_volume(case, "target", (other,), load_case, 1) is not None) is makes_one
    assert same_volume(case, "unlisted", (), load_case, 1) is None


def test_the_axis_is_that_of_the_most_alike_spacings(maker: ManifestMaker) -> None:
    maker.add("a/1", boxes(COLUMN), {"target": 1}, spacing=(4.0, 1.0, 1.1))
    maker.add("a/2", boxes(COLUMN), {"target": 1}, spacing=(1.0, 1.0, 1.0))
    sagittal, tie = read_manifest(maker.write()).cases
    assert same_volume(sagittal, "target", (), load_case, 1).axis == 2  # type: ignore[union-attr]
    assert same_volume(tie, "target", (), load_case, 1).axis == 0  # type: ignore[union-attr]


def test_cross_volume_takes_the_next_case_that_has_the_target(two_groups: Path) -> None:
    manifest = read_manifest(two_groups)
    tasks: dict[tuple[str, str], Task | None] = {
        (case.id, target): cross_volume(case, target, manifest.following(case), load_case, 1)
        for case in manifest.cases
        for target in case.targets
    }
    supports = {key: task.support_case.id if task else None for key, task in tasks.items()}
    assert supports == {
        ("a/1", "column"): "a/2",
        ("a/1", "cone"): "a/3",  # a/2 lists it, but holds none
        ("a/2", "column"): "a/3",
        ("a/2", "cone"): None,
        ("a/3", "column"): "a/1",  # round to the first, a training case
        ("a/3", "cone"): "a/1",
        ("b/1", "column"): None,  # alone in its group
    }
    task = tasks["a/1", "cone"]
    assert task is not None
    assert task.painted == () and task.judged == tuple(range(10))
    assert task.label == 1 and task.support.labels == (1,)  # the value in the support's labelmap
    assert task.reference.sum() == 75


def test_field_cuts_the_target_s_slices_into_chunks_with_a_support_each(two_groups: Path) -> None:
    manifest = read_manifest(two_groups)
    case = manifest.cases[2]  # column on slices 2 to 7
    task = field(case, "column", manifest.following(case), load_case, 1)
    assert task is not None and task.judged == (2, 3, 4, 5, 6, 7) and task.painted == ()
    assert [part.judged for part in task.parts] == [(2, 3), (4, 5), (6, 7)]
    assert [[piece.index for piece in part.support.slices] for part in task.parts] == [[3], [5], [7]]
    assert {part.support_case.id for part in task.parts} == {"a/1"} and {part.label for part in task.parts} == {1}
    with pytest.raises(InputError, match="3 shots were asked for; the protocol field takes 1"):
        field(case, "column", manifest.following(case), load_case, 3)


def test_in_field_each_chunk_is_done_by_itself(two_groups: Path) -> None:
    asked: list[tuple[int, ...]] = []

    def everywhere_but_there(task: Task) -> np.ndarray:
        asked.append(task.judged)
        mask = np.ones(task.reference.shape, dtype=bool)
        mask[list(task.judged)] = task.reference[list(task.judged)]
        return mask

    manifest = read_manifest(two_groups)
    (row, *_) = evaluate(manifest, "field", {"m": everywhere_but_there}, manifest.cases[2:3], metrics=("dice",))
    assert asked[-3:] == [(3,), (4,), (5,)]  # of the cone, the other target
    assert row.scores == {"dice": 1.0}  # what a chunk has outside its slices is dropped, the rest is not judged


def test_a_mispaired_task_shows_the_next_structure_of_the_scan(two_groups: Path) -> None:
    manifest = read_manifest(two_groups)
    first, second, third, alone = manifest.cases
    task = same_volume(first, "column", (), load_case, 1, mispaired=True)
    assert task is not None
    assert (task.target, task.shown, task.label, task.painted) == ("column", "cone", 2, (3,))
    assert task.reference.sum() == 96 and 3 not in task.judged  # judged by the column all the same
    task = cross_volume(third, "cone", manifest.following(third), load_case, 1, mispaired=True)
    assert task is not None and (task.shown, task.support_case.id) == ("column", "a/1")
    task = field(third, "cone", manifest.following(third), load_case, 1, mispaired=True)
    assert task is not None and [part.shown for part in task.parts] == ["column"] * 3
    assert same_volume(second, "column", (), load_case, 1, mispaired=True) is None  # its cone is not there
    assert same_volume(alone, "column", (), load_case, 1, mispaired=True) is None


def test_copy_takes_the_nearest_painted_slice_of_the_query(maker: ManifestMaker) -> None:
    labels = boxes((slice(0, 12), slice(2, 6), slice(2, 12)), shape=(12, 16, 16))
    labels[6:, 2:6, 7:] = 0  # 40 pixels at first, then 20
    maker.add("a/1", labels, {"target": 1})
    task = same_volume(read_manifest(maker.write()).cases[0], "target", (), load_case, 3)
    assert task is not None and task.painted == (2, 6, 10)
    mask = copy_support(task)
    assert mask.sum(axis=(1, 2)).tolist() == [40] * 5 + [20] * 7  # slice 4 is as near to 2 as to 6: the first


def test_copy_from_another_scan_goes_by_anatomy_and_millimetres(maker: ManifestMaker) -> None:
    flipped = (-1, 0, 0, 0, 1, 0, 0, 0, 1)
    target = boxes((slice(2, 8), slice(4, 8), slice(2, 6)))
    maker.add("a/1", target, {"target": 1})
    maker.add("a/2", np.ascontiguousarray(target[:, :, ::-1]), {"target": 1}, direction=flipped)
    finer = np.repeat(np.repeat(target, 2, axis=1), 2, axis=2)
    maker.add("a/3", finer, {"target": 1}, spacing=(0.5, 0.5, 5.0))
    for query, support in ((0, 1), (1, 0), (0, 2), (2, 0)):
        cases = read_manifest(maker.folder / "cases.json" if query or support > 1 else maker.write()).cases
        task = cross_volume(cases[query], "target", (cases[support],), load_case, 1)
        assert task is not None
        np.testing.assert_array_equal(copy_support(task)[4], task.reference[4])


def test_copy_by_majority_of_several_slices_of_another_scan(maker: ManifestMaker) -> None:
    labels = boxes((slice(0, 6), slice(0, 8), slice(0, 8)))
    labels[:2, 4:8] = 0  # painted are slices 1 (half of it), 3 and 5
    maker.add("a/1", boxes(COLUMN), {"target": 1})
    maker.add("a/2", labels, {"target": 1})
    cases = read_manifest(maker.write()).cases
    task = cross_volume(cases[0], "target", (cases[1],), load_case, 3)
    assert task is not None
    expected = np.zeros((16, 16), dtype=bool)
    expected[:8, :8] = True
    assert (copy_support(task) == expected).all()


def test_a_segmenter_is_asked_for_the_task_s_axis_and_label() -> None:
    asked: dict[str, Any] = {}

    class Segmentation:
        labelmap = Volume(boxes(COLUMN, CONE), Geometry((10, 16, 16), THICK, (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1)))

    class Segmenter:
        def segment(self, query: Volume, support: object, **options: Any) -> Segmentation:
            asked.update(options, query=query, support=support)
            return Segmentation()

    class OneTask:
        query, support, axis, label, judged = "scan", "painted", 2, 2, (4, 5)

    mask = segmenter_method(Segmenter(), strategy="independent")(OneTask())  # type: ignore[arg-type]
    assert asked == {"query": "scan", "support": "painted", "axis": 2, "slices": (4, 5), "strategy": "independent"}
    assert mask is not None and mask.dtype == bool and mask.sum() == 75


def result(group: str, case: str, target: str, value: float, method: str = "m") -> Row:
    return Row("same-volume", 1, group, case, target, method, {"dice": value}, 2.0, 0, (3,), case, target, 5.0)


ROWS = [
    result("a", "a/1", "liver", 0.2),
    result("a", "a/2", "liver", 0.4),
    result("a", "a/3", "liver", 0.6),
    result("a", "a/1", "spleen", 1.0),
    result("b", "b/1", "liver", 0.5),
]


def test_means_go_over_cases_then_targets_then_groups() -> None:
    (summary,) = summarise(ROWS)
    assert summary.targets["a", "liver"].values["dice"] == pytest.approx(0.4)
    assert summary.groups["a"].values["dice"] == pytest.approx(0.7)  # of 0.4 and 1.0; over its rows it were 0.55
    assert summary.overall.values["dice"] == pytest.approx(0.6)  # of 0.7 and 0.5; over all rows it were 0.54
    assert (summary.targets["a", "liver"].tasks, summary.groups["a"].tasks, summary.overall.tasks) == (3, 4, 5)


def test_an_undefined_measure_is_left_out_and_counted() -> None:
    (summary,) = summarise([*ROWS, result("a", "a/4", "liver", math.nan), result("c", "c/1", "liver", math.nan)])
    assert summary.targets["a", "liver"].values["dice"] == pytest.approx(0.4)
    assert summary.groups["a"].undefined["dice"] == 1
    assert summary.overall.values["dice"] == pytest.approx(0.6) and summary.overall.undefined["dice"] == 2
    assert "| a | liver | 4 | 0.400 (1) |" in markdown_table([summary])
    with pytest.raises(InputError, match="'iou'; there are dice, nsd, hd95, seconds"):
        markdown_table([summary], "iou")


def test_a_mispaired_row_is_in_no_mean() -> None:
    (summary,) = summarise([*ROWS, replace(result("a", "a/1", "liver", 1.0), shown="spleen")])
    assert summary.targets["a", "liver"].values["dice"] == pytest.approx(0.4)


def test_the_tables_set_methods_beside_each_other() -> None:
    summaries = summarise([*ROWS, result("a", "a/1", "liver", 0.9, "other|one")])
    lines = markdown_table(summaries).splitlines()
    assert lines[0] == "| group | target | tasks | m | other\\|one |"
    assert lines[2] == "| a | liver | 3/1 | 0.400 | 0.900 |"
    assert lines[3] == "| a | spleen | 1 | 1.000 | – |"
    assert lines[-1] == "| **all** | **mean of groups** | **5/1** | **0.600** | **0.900** |"
    assert rich_table(summaries, title="Dice").row_count == len(lines) - 2


def test_a_run_scores_every_method_and_keeps_what_it_did(two_groups: Path, tmp_path: Path) -> None:
    manifest = read_manifest(two_groups)
    methods = {"copy": copy_support, "nothing": lambda task: np.zeros(task.reference.shape, dtype=bool)}
    steps: list[tuple[int, int, str]] = []
    rows = evaluate(
        manifest, "same-volume", methods, output=tmp_path / "out", progress=lambda *step: steps.append(step)
    )
    found = {(row.case, row.target, row.method): row.scores["dice"] for row in rows}
    assert len(found) == 2 * (7 - 1)  # a/2 has no cone
    assert found["a/1", "column", "copy"] == pytest.approx(2 * 5 * 16 / (9 * 16 + 5 * 16))  # 9 slices judged, 5 hold it
    assert found["a/1", "cone", "copy"] == pytest.approx(2 * 2 * 25 / (9 * 25 + 2 * 25))
    assert {value for (_, _, method), value in found.items() if method == "nothing"} == {0.0}
    assert steps[0][:2] == (0, 14) and steps[-1][:2] == (14, 14)
    assert [step[0] for step in steps] == sorted(step[0] for step in steps)

    kept = read_results(tmp_path / "out" / "results.csv")
    assert [row.key for row in kept] == [row.key for row in rows]
    assert kept[0].painted == (2,) and kept[0].support_case == kept[0].case == "a/1" and kept[0].shown == "column"
    assert kept[0].ml == pytest.approx(96 * 5 / 1000)
    undefined = [row for row in kept if row.method == "nothing"]
    assert all(math.isnan(row.scores["hd95"]) and math.isnan(row.scores["nsd"]) for row in undefined)
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [entry["case"] for entry in written] == [row.case for row in rows]
    assert written[0]["slices"] == [0, 1, *range(3, 10)] and written[0]["painted"] == [2]
    assert written[0]["found"] == [16] * 9 and written[0]["both"] == written[0]["held"] == [0, 0, *[16] * 5, 0, 0]
    assert written[1]["hd95"] is None and written[1]["dice"] == 0
    summary = {entry["method"]: entry for entry in json.loads((tmp_path / "out" / "summary.json").read_text())}
    assert summary["copy"]["groups"]["a"]["targets"]["cone"]["tasks"] == 2
    assert summary["nothing"]["undefined"] == {"dice": 0, "nsd": 6, "hd95": 6} and summary["nothing"]["hd95"] is None
    assert summary["copy"]["dice"] == pytest.approx(
        np.mean(
            [np.mean([found["a/1", "column", "copy"], found["a/1", "cone", "copy"]]), found["b/1", "column", "copy"]]
        ),
        abs=1e-6,
    )


def test_a_run_is_taken_up_where_it_was_left(two_groups: Path, tmp_path: Path) -> None:
    manifest = read_manifest(two_groups)
    calls: list[str] = []

    def counted(task: Task) -> np.ndarray:
        calls.append(task.case.id)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return copy_support(task)

    with pytest.raises(KeyboardInterrupt):
        evaluate(manifest, "same-volume", {"copy": counted}, output=tmp_path)
    with (tmp_path / "results.csv").open("a") as file:
        file.write("same-volume,1,a,a/3,col")  # as a process leaves it that is killed while it writes
    rows = evaluate(manifest, "same-volume", {"copy": counted}, output=tmp_path)
    assert len(calls) == 3 + 4 and len(rows) == 6
    assert len(read_results(tmp_path / "results.csv")) == 6
    again = evaluate(manifest, "same-volume", {"copy": counted}, output=tmp_path)
    assert len(calls) == 7 and [row.key for row in again] == [row.key for row in rows]
    evaluate(manifest, "same-volume", {"copy": counted}, shots=3, output=tmp_path)  # other work, the same folder
    assert len(calls) == 13 and len(json.loads((tmp_path / "summary.json").read_text())) == 2


def test_a_method_that_does_not_apply_has_no_row(two_groups: Path, tmp_path: Path) -> None:
    manifest = read_manifest(two_groups)
    methods = {"never": lambda task: None, "copy": copy_support}
    for protocol in ("same-volume", "field"):
        rows = evaluate(manifest, protocol, methods, manifest.cases[2:3], output=tmp_path)
        assert {row.method for row in rows} == {"copy"}


def test_dice_alone_needs_no_surfaces(two_groups: Path, tmp_path: Path) -> None:
    manifest = read_manifest(two_groups)
    rows = evaluate(manifest, "same-volume", {"copy": copy_support}, output=tmp_path, metrics=("dice",))
    assert {tuple(row.scores) for row in rows} == {("dice",)}
    assert [row.scores for row in read_results(tmp_path / "results.csv")] == [
        {"dice": pytest.approx(row.scores["dice"], rel=1e-5)} for row in rows
    ]
    (summary,) = json.loads((tmp_path / "summary.json").read_text())
    assert summary["hd95"] is None and summary["undefined"]["hd95"] == 0
    with pytest.raises(InputError, match="no metric 'iou'"):
        evaluate(manifest, "same-volume", {"copy": copy_support}, metrics=("iou",))


def test_bad_runs_are_refused(two_groups: Path, tmp_path: Path) -> None:
    manifest = read_manifest(two_groups)
    with pytest.raises(InputError, match="same-volume, cross-volume"):
        evaluate(manifest, "same-volum", {"copy": copy_support})
    with pytest.raises(InputError, match="0 shots"):
        evaluate(manifest, "same-volume", {"copy": copy_support}, shots=0)
    with pytest.raises(ValueError, match="bool mask"):
        evaluate(manifest, "same-volume", {"soft": lambda task: np.zeros(task.reference.shape)})
    (tmp_path / "results.csv").write_text("case,dice\na/1,0.5\n")
    with pytest.raises(InputError, match="other columns"):
        evaluate(manifest, "same-volume", {"copy": copy_support}, output=tmp_path)
    assert (tmp_path / "results.csv").read_text() == "case,dice\na/1,0.5\n"  # a foreign file is left alone


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


def test_copy_on_the_benchmark_s_first_eight_scans_is_as_published_with_the_data() -> None:
    folder = os.environ.get("SDFSMIS_DATA_DIR")
    if not folder or not (Path(folder) / "cases.json").exists():
        pytest.skip("SDFSMIS_DATA_DIR names no folder with cases.json and the real volumes")
    manifest = read_manifest(Path(folder) / "cases.json")
    first = manifest.select(["chaos_t2"])[:8]
    rows = evaluate(manifest, "same-volume", {"copy": copy_support}, first, metrics=("dice",))
    (summary,) = summarise(rows)
    expected = {"liver": 0.440, "right kidney": 0.367, "left kidney": 0.371, "spleen": 0.318}
    for target, value in expected.items():
        assert summary.targets["chaos_t2", target].values["dice"] == pytest.approx(value, abs=6e-4)
    assert summary.overall.values["dice"] == pytest.approx(0.374, abs=6e-4)
