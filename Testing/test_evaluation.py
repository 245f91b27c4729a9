"""The run of an evaluation and its means, on small cases made here whose figures can be worked out by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from SDFSMISLib.cohort.cases import load_case
from SDFSMISLib.errors import InputError
from SDFSMISLib.evaluation import (
    BASELINES,
    Row,
    SegmenterMethod,
    Task,
    copy_support,
    evaluate,
    markdown_table,
    read_manifest,
    read_results,
    rich_table,
    summarise,
)
from SDFSMISLib.evaluation.protocols import same_volume
from SDFSMISLib.evaluation.results import Prediction, prediction_path
from SDFSMISLib.images.planes import Plane
from SDFSMISLib.images.volume import Geometry, Volume
from small_cases import COLUMN, CONE, THICK, boxes, write_two_groups


@pytest.fixture
def two_groups(tmp_path: Path) -> Path:
    return write_two_groups(tmp_path)


def result(group: str, case: str, target: str, value: float, method: str = "m") -> Row:
    planes = (Plane(0, 3),)
    return Row("same-volume", 1, group, case, target, method, {"dice": value}, 2.0, 0, planes, case, target, 5.0)


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
    with pytest.raises(InputError, match="'iou'; there are dice, nsd, hd95, dice_whole, seconds"):
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
    assert kept[0].planes == (Plane(0, 2),) and kept[0].support_case == "a/1" and kept[0].shown == "column"
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


def test_slices_of_several_directions_are_judged_beside_them_and_as_a_whole(two_groups: Path, tmp_path: Path) -> None:
    """The column has 6 x 4 x 4 voxels in 10 x 16 x 16: painted are slices 2, 4 and 4 of the three axes."""
    manifest = read_manifest(two_groups)
    methods = {"nothing": lambda task: np.zeros(task.reference.shape, dtype=bool), "all": lambda task: task.reference}
    cases = manifest.cases[3:]
    for directions, painted, judged in ((2, "2 1:4", 5 * 3 * 4), (3, "2 1:4 2:4", 5 * 3 * 3)):
        nothing, everything = evaluate(
            manifest, "same-volume", methods, cases, output=tmp_path, metrics=("dice",), directions=directions
        )
        assert everything.scores == {"dice": 1.0, "dice_whole": 1.0} and nothing.scores["dice"] == 0
        kept = 96 - judged  # voxels on painted slices
        assert nothing.scores["dice_whole"] == pytest.approx(2 * kept / (kept + 96))
        assert nothing.planes == tuple(Plane(axis, index) for axis, index in enumerate((2, 4, 4)[:directions]))
        its = Prediction.load(prediction_path(tmp_path, everything.key))
        assert its.held.sum() == its.both.sum() == judged and its.slices.tolist() == [0, 1, *range(3, 10)]
        row = read_results(tmp_path / "results.csv")[-1]
        assert (row.directions, row.planes) == (directions, everything.planes)
        assert f",{painted}," in (tmp_path / "results.csv").read_text().splitlines()[-1]
    assert [entry["directions"] for entry in json.loads((tmp_path / "summary.json").read_text())] == [2, 2, 3, 3]
    for name in ("copy", "registration", "fill-between"):
        with pytest.raises(InputError, match=f"{name} takes painted slices of one direction only"):
            evaluate(manifest, "same-volume", {name: BASELINES[name]}, cases, directions=2)


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
    assert {tuple(row.scores) for row in rows} == {("dice", "dice_whole")}
    assert [row.scores for row in read_results(tmp_path / "results.csv")] == [
        {name: pytest.approx(value, rel=1e-5) for name, value in row.scores.items()} for row in rows
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


def test_a_segmenter_is_asked_for_the_task_s_axis_and_label(two_groups: Path) -> None:
    asked: dict[str, Any] = {}

    class Segmentation:
        labelmap = Volume(boxes(COLUMN, CONE), Geometry((10, 16, 16), THICK, (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1)))

    class Segmenter:
        def segment(self, query: Volume, support: object, **options: Any) -> Segmentation:
            asked.clear()
            asked.update(options, query=query, support=support)
            return Segmentation()

    method = SegmenterMethod(Segmenter(), strategy="independent")  # type: ignore[arg-type]
    case = read_manifest(two_groups).cases[0]
    task, crossed = (same_volume(case, "cone", (), load_case, 1, directions=directions) for directions in (1, 2))
    assert task is not None and crossed is not None
    mask = method(task)
    given = {"query": task.query, "support": task.support, "strategy": "independent"}
    assert asked == {**given, "axis": 0, "slices": (0, 1, 2, *range(4, 10))}
    assert mask.dtype == bool and mask.sum() == 75
    method(crossed)  # along all axes that were painted, as users get it
    assert asked == {**given, "query": crossed.query, "support": crossed.support}
