"""Diagnostics: that a method that cheats is seen, and that the figures are those worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from SDFSMISLib.errors import InputError
from SDFSMISLib.evaluation import Diagnostics, Manifest, Task, copy_support, diagnose, evaluate, read_manifest
from SDFSMISLib.evaluation.diagnostics import Bin
from SDFSMISLib.evaluation.results import Prediction, predictions_in, read_mask
from SDFSMISLib.evaluation.tables import diagnostics_table
from small_cases import COLUMN, CONE, ManifestMaker, boxes


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Two cases, each with two structures; slices are 5 mm apart."""
    maker = ManifestMaker(tmp_path)
    for number in (1, 2):
        maker.add(f"a/{number}", boxes(COLUMN, CONE), {"column": 1, "cone": 2})
    return read_manifest(maker.write())


def knows_the_answer(task: Task) -> np.ndarray:
    """Gives the target whatever was painted."""
    return task.reference.copy()


def looks_at_the_support(task: Task) -> np.ndarray:
    """Gives the structure that was painted, on all slices that hold it."""
    side = {"column": COLUMN, "cone": CONE}[task.shown]
    mask = np.zeros(task.reference.shape, dtype=bool)
    mask[side] = True
    return mask


def diagnosed(manifest: Manifest, folder: Path, protocol: str = "same-volume") -> dict[str, Diagnostics]:
    methods = {"cheat": knows_the_answer, "honest": looks_at_the_support, "copy": copy_support}
    rows = evaluate(manifest, protocol, methods, output=folder, metrics=("dice",), mispaired=("cheat", "honest"))
    return {method: its for (_, method), its in diagnose(rows, predictions_in(folder)).items()}


@pytest.mark.parametrize("protocol", ["same-volume", "cross-volume", "field"])
def test_the_pairing_gap_tells_who_does_not_look(manifest: Manifest, tmp_path: Path, protocol: str) -> None:
    its = diagnosed(manifest, tmp_path / "out", protocol)
    assert (its["cheat"].pairing_gap, its["cheat"].pairing_tasks) == (0.0, 4)
    assert (its["honest"].pairing_gap, its["honest"].pairing_tasks) == (1.0, 4)
    assert math.isnan(its["copy"].pairing_gap) and its["copy"].pairing_tasks == 0


def test_false_positives_and_the_margin_over_copy(manifest: Manifest, tmp_path: Path) -> None:
    its = diagnosed(manifest, tmp_path / "out")
    assert (its["honest"].false_slices, its["honest"].false_voxels) == (0.0, 0.0)
    assert its["copy"].false_slices == 1.0
    assert its["copy"].false_voxels == pytest.approx((4 * 16 + 7 * 25) / 2)  # on the 4 and the 7 slices without it
    column, cone = 2 * 5 * 16 / (9 * 16 + 5 * 16), 2 * 2 * 25 / (9 * 25 + 2 * 25)
    assert its["honest"].margin == pytest.approx(1 - (column + cone) / 2)
    assert (its["copy"].margin, its["copy"].margin_tasks) == (0.0, 4)


def test_dice_by_size_and_by_distance(manifest: Manifest, tmp_path: Path) -> None:
    def half_of_it_beyond_5_mm(task: Task) -> np.ndarray:
        mask = task.reference.copy()
        mask[[index for index in range(10) if abs(index - task.painted[0]) > 1], ::2] = False
        return mask

    folder = tmp_path / "out"
    rows = evaluate(manifest, "same-volume", {"m": half_of_it_beyond_5_mm}, output=folder, metrics=("dice",))
    ((_, its),) = diagnose(rows, predictions_in(folder)).items()
    # column: 0.48 ml, painted is slice 2 of 2 to 7; cone: 0.375 ml, slice 3 of 3 to 5, its rows 10 to 14
    assert [(held.low, held.high, held.count) for held in its.by_size] == [(0, 1, 4)]
    near, far, farther = its.by_distance
    assert near == Bin(5, 10, 4, 1.0)
    assert far == Bin(10, 20, 6, pytest.approx((4 * 2 * 8 / 24 + 2 * 2 * 10 / 35) / 6))
    assert farther == Bin(20, 40, 4, pytest.approx(2 * 8 / 24))


def test_they_go_with_the_summary_and_into_a_table(manifest: Manifest, tmp_path: Path) -> None:
    its = diagnosed(manifest, tmp_path / "out")
    summary = {entry["method"]: entry for entry in json.loads((tmp_path / "out" / "summary.json").read_text())}
    assert summary["honest"]["diagnostics"]["pairing_gap"] == 1.0
    assert summary["honest"]["diagnostics"]["by_size"] == [{"low": 0, "high": 1, "count": 4, "dice": 1.0}]
    assert summary["copy"]["diagnostics"]["pairing_gap"] is None
    lines = diagnostics_table(its).markdown().splitlines()
    assert lines[0] == "|  | cheat | honest | copy |"
    assert lines[2] == "| pairing gap (Dice) | 0.000 (4) | 1.000 (4) | – |"


def test_a_mispaired_run_is_taken_up_again(manifest: Manifest, tmp_path: Path) -> None:
    calls: list[str] = []

    def counted(task: Task) -> np.ndarray:
        calls.append(task.shown)
        return looks_at_the_support(task)

    plain = evaluate(manifest, "same-volume", {"m": counted}, output=tmp_path, metrics=("dice",))
    assert calls == ["column", "cone"] * 2
    rows = evaluate(manifest, "same-volume", {"m": counted}, output=tmp_path, metrics=("dice",), mispaired=("m",))
    assert calls[4:] == ["cone", "column"] * 2  # only what was missing
    assert [row.key for row in rows if not row.mispaired] == [row.key for row in plain]
    evaluate(manifest, "same-volume", {"m": counted}, output=tmp_path, metrics=("dice",), mispaired=("m",))
    assert len(calls) == 8


def test_a_prediction_is_read_as_it_was_written(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).random((5, 6, 7)) > 0.5
    arrays = [np.arange(5, dtype=np.int32) for _ in range(4)]
    written = Prediction(arrays[0], np.full(5, np.nan, dtype=np.float32), *arrays[1:])
    written.save(tmp_path / "p.npz", mask)
    found, read = read_mask(tmp_path / "p.npz"), Prediction.load(tmp_path / "p.npz")
    assert (found == mask).all() and found.dtype == bool
    for name in ("slices", "distances", "found", "held", "both"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
    assert math.isnan(read.dice[0]) and read.dice[1] == 1.0


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04", b"nothing"])
def test_a_prediction_that_is_gone_or_damaged_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "p.npz"
    if content is not None:
        path.write_bytes(content)
    for read in (Prediction.load, read_mask):
        with pytest.raises(InputError, match=r"p\.npz .*another folder"):
            read(path)
