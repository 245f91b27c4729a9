"""The protocol interactive: which slices a simulated user paints, what is kept, and the figures made of it."""

from __future__ import annotations

import gc
import math
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from SDFSMISLib.errors import InputError
from SDFSMISLib.evaluation import (
    Curve,
    Manifest,
    Row,
    SegmenterMethod,
    Task,
    copy_support,
    curves,
    curves_table,
    evaluate_interactive,
    read_manifest,
    read_results,
    write_report,
)
from SDFSMISLib.evaluation.results import Prediction, prediction_path, predictions_in
from SDFSMISLib.images.planes import Plane
from SDFSMISLib.inference import Segmenter
from SDFSMISLib.model.built_in import Size, new_built_in
from small_cases import COLUMN, ManifestMaker, boxes


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """One column of 6 x 4 x 4 voxels, on the slices 2 to 7, rows 4 to 7 and columns 4 to 7."""
    maker = ManifestMaker(tmp_path)
    maker.add("a/1", boxes(COLUMN), {"column": 1})
    return read_manifest(maker.write())


def misses_the_last_rows(task: Task) -> np.ndarray:
    """All of the structure but its row 6 and three quarters of its row 7; and two voxels elsewhere."""
    mask = task.reference.copy()
    mask[:, 6] = False
    mask[:, 7, 5:] = False
    mask[:2, 0, 0] = True
    return mask


def test_the_worst_slices_are_painted_until_nothing_is_wrong(manifest: Manifest, tmp_path: Path) -> None:
    rows = evaluate_interactive(manifest, {"m": misses_the_last_rows}, rounds=5, paintings=["worst"], output=tmp_path)
    first, second, third, fourth, fifth = rows
    assert first.planes == (Plane(0, 2),)  # the largest along the slice axis, the first of equal ones
    assert second.planes == (Plane(0, 2), Plane(1, 6))  # 5 slices of 4 voxels are missing there
    assert third.planes == (Plane(0, 2), Plane(1, 6), Plane(1, 7)) and third.axis == 1  # where most slices are painted
    assert set(fourth.planes) == {*third.planes, Plane(1, 0)} and fourth.scores["dice_whole"] == 1.0
    assert fifth == replace(fourth, shots=5, seconds=0.0)  # nothing is left to paint
    missing = [5 * 4 + 5 * 3, 5 * 3, 0]
    for row, its in zip(rows, missing, strict=False):
        assert row.scores["dice_whole"] == pytest.approx(2 * (96 - its) / (2 * 96 - its + 2), abs=1e-6)
    assert [row.shots for row in rows] == [1, 2, 3, 4, 5] and {row.painting for row in rows} == {"worst"}
    assert [row.planes for row in read_results(tmp_path / "results.csv")] == [row.planes for row in rows]
    assert Prediction.load(prediction_path(tmp_path, third.key)).slices.tolist() == [*range(6), *range(8, 16)]


def test_even_slices_are_spread_anew_each_time(manifest: Manifest) -> None:
    rows = evaluate_interactive(manifest, {"m": misses_the_last_rows}, rounds=7, paintings=["even"])
    assert [row.painted for row in rows[:4]] == [(2,), (3, 6), (3, 5, 7), (2, 4, 5, 7)]
    assert len(rows) == 7 and rows[5].painted == rows[6].painted == (2, 3, 4, 5, 6, 7)  # it has no more
    assert {row.axis for row in rows} == {0}


def test_no_more_is_held_than_some_results_of_one_structure(tmp_path: Path) -> None:
    """Whatever the number of structures and rounds, so that a long run takes no more memory than a short one."""
    maker = ManifestMaker(tmp_path)
    for number in range(3):
        maker.add(f"a/{number}", boxes(COLUMN), {"column": 1})
    held: list[tuple[str, weakref.ref[np.ndarray]]] = []
    numbers = []

    def method(task: Task) -> np.ndarray:
        mask = misses_the_last_rows(task)
        living = [case for case, one in held if one() is not None]
        assert set(living) <= {task.case.id}
        numbers.append(len(living))
        held.append((task.case.id, weakref.ref(mask)))
        return mask

    gc.disable()  # what is let go of goes at once, not with the next collection
    try:
        evaluate_interactive(read_manifest(maker.write()), {"m": method}, rounds=6, paintings=["worst", "even"])
    finally:
        gc.enable()
    assert len(numbers) > 3 * 8 and max(numbers) <= 2, "the first, and the last"


def test_the_product_s_suggestion_is_painted_and_a_stopped_run_ends_as_one_that_was_not(
    manifest: Manifest, tmp_path: Path
) -> None:
    segmenter = Segmenter(new_built_in(seed=1, size=Size(resolution=32, channels=(8, 16))).for_inference())
    calls: list[Task] = []

    class Stopping(SegmenterMethod):
        def segmentation(self, task: Task):  # type: ignore[no-untyped-def]
            calls.append(task)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return super().segmentation(task)

    def measure(method: SegmenterMethod, output: Path) -> list[Row]:
        return evaluate_interactive(manifest, {"m": method}, rounds=2, paintings=["suggested"], output=output)

    at_once = measure(SegmenterMethod(segmenter), tmp_path / "at_once")
    assert [len(row.planes) for row in at_once] == [1, 2] and set(at_once[0].planes) < set(at_once[1].planes)
    with pytest.raises(KeyboardInterrupt):
        measure(Stopping(segmenter), tmp_path / "apart")
    assert len(read_results(tmp_path / "apart" / "results.csv")) == 1
    apart = measure(Stopping(segmenter), tmp_path / "apart")
    assert [replace(row, seconds=0) for row in apart] == [
        replace(row, seconds=0, scores={name: float(f"{value:.6g}") for name, value in row.scores.items()})
        if place == 0
        else replace(row, seconds=0)
        for place, row in enumerate(at_once)
    ]
    assert [task.planes for task in calls[2:]] == [at_once[0].planes, at_once[1].planes]
    its = predictions_in(tmp_path / "apart")(apart[1])
    assert len(its.certainty) == len(its.slices) and np.all((its.certainty >= 0) & (its.certainty <= 1))
    (curve,) = curves(apart, predictions_in(tmp_path / "apart"))
    assert -1 <= curve.certainty <= 1 and curve.tasks == 1


def test_bad_sessions_are_refused_and_others_left_out(manifest: Manifest) -> None:
    with pytest.raises(InputError, match="no way of painting 'all'; there are suggested, worst, even"):
        evaluate_interactive(manifest, {"m": misses_the_last_rows}, paintings=["all"])
    with pytest.raises(InputError, match="0 rounds"):
        evaluate_interactive(manifest, {"m": misses_the_last_rows}, rounds=0)
    with pytest.raises(InputError, match="copy takes painted slices of one direction only"):
        evaluate_interactive(manifest, {"copy": copy_support})
    assert evaluate_interactive(manifest, {"m": misses_the_last_rows}, paintings=["suggested"]) == []  # it has none


def session(case: str, painting: str, *dice: float, target: str = "liver") -> list[Row]:
    about = {"support_case": case, "shown": target, "ml": 5.0, "painting": painting}
    return [
        Row("interactive", place + 1, case[0], case, target, "m", {"dice_whole": value}, 1.0, 0, (), **about)
        for place, value in enumerate(dice)
    ]


SESSIONS = [
    *session("a/1", "suggested", 0.70, 0.80, 0.92),
    *session("a/2", "suggested", 0.50, 0.60, 0.594),
    *session("a/1", "suggested", 0.40, 0.95, 0.96, target="spleen"),
    *session("b/1", "suggested", 0.80, 0.796, 0.91),
    *session("b/2", "suggested", 0.80, 0.90),  # not complete
    *session("a/1", "worst", 0.60, 0.80, 1.0),
    *session("b/1", "worst", 0.80, 0.9, 1.0),
]


def test_curves_are_means_of_targets_and_groups() -> None:
    found = {(curve.painting, curve.group): curve for curve in curves(SESSIONS)}
    assert set(found) == {(painting, group) for painting in ("suggested", "worst") for group in ("a", "b", "")}
    a, b, every = (found["suggested", group] for group in ("a", "b", ""))
    assert a.dice == pytest.approx((0.5, 0.825, 0.8585)) and a.tasks == 3  # of liver 0.6, 0.7, 0.757 and of spleen
    assert b.dice == (0.80, 0.796, 0.91) and b.tasks == 1
    assert every.dice == pytest.approx((0.65, 0.8105, 0.88425)) and every.tasks == 4
    assert (a.needed, b.needed, every.needed) == (3, 3, 3) and a.reached == pytest.approx(2 / 3)
    assert (a.costly, b.costly, every.costly) == (pytest.approx(1 / 6), 0, pytest.approx(1 / 8))
    assert math.isnan(a.certainty)
    lines = curves_table(curves(SESSIONS)).markdown().splitlines()
    assert lines[0].startswith("| group | painted slices | tasks | 1 | 2 | 3 | of the gain of worst | slices for 0.90")
    assert lines[2] == "| a | suggested | 3 | 0.500 | 0.825 | 0.859 | – | 3 | 67 % | 17 % | – |"  # worst: of 1 task
    assert lines[4] == "| b | suggested | 1 | 0.800 | 0.796 | 0.910 | 55 % | 3 | 100 % | 0 % | – |"
    assert lines[-2].startswith("| **mean of groups** | **suggested** | **4** |")


def test_half_of_the_tasks_may_need_more_than_was_painted() -> None:
    (curve,) = curves([*session("a/1", "even", 0.5, 0.6), *session("a/2", "even", 0.5, 0.7)])
    assert math.isinf(curve.needed) and "| > 2 |" in curves_table([curve]).markdown()


def test_certainty_is_compared_with_the_slices_dice() -> None:
    both, found = np.array([1, 5, 9, 0, 0]), np.array([10, 10, 10, 10, 0])
    held = np.array([10, 10, 10, 0, 0])  # the last slice holds nothing and was given nothing: it does not count
    sure, unsure = np.array([0.2, 0.5, 0.9, 0.1, 0.0]), np.array([0.9, 0.5, 0.2, 1.0, 0.0])
    for certainty, expected in ((sure, 1.0), (unsure, -1.0), (np.zeros(0), math.nan)):
        its = Prediction(np.arange(5), np.zeros(5), found, held, both, certainty)
        (curve,) = curves(session("a/1", "even", 0.5), lambda row, its=its: its)
        assert isinstance(curve, Curve) and curve.certainty == pytest.approx(expected, nan_ok=True)


def test_the_report_has_one_section_with_curves_and_the_last_results(manifest: Manifest, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    evaluate_interactive(manifest, {"m": misses_the_last_rows}, rounds=2, output=folder)
    page = write_report(folder, manifest).read_text(encoding="utf-8")
    assert page.count("<h2>interactive</h2>") == 1 and page.count("<img") == 1 + 2  # worst and even
    assert len(list((folder / "pictures").iterdir())) == 3
    table = (folder / "tables.md").read_text(encoding="utf-8")
    assert "| a | worst | 1 | 0.767 | 0.905 |" in table and "| a | even | 1 | 0.767 | 0.819 |" in table
