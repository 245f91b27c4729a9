"""The papers' tables: our rows beside published ones, in three formats, from results made by hand."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmark_examples import ABDOMEN, ran
from SDFSMISLib.benchmark import FoldResult, Score, read_fold_results
from SDFSMISLib.benchmark.table import PUBLISHED, ablation_table, as_text, benchmark_tables, published_for
from SDFSMISLib.errors import InputError

TITLE = "Abd-MRI, Setting I: Dice, %"
ABOUT: dict[str, Any] = {
    "data": "chaos_t2",
    "trained_on": "chaos_t2",
    "setting": 1,
    "exclusion": "none",
    "protocol": "field",
    "shots": 1,
    "model": "paper",
    "without": [],
}


def run(both: int = 8, folds: Sequence[int] = range(5), **about: Any) -> list[FoldResult]:
    """Two scans of 10 voxels in each fold, of which ``both`` are found; and the fold's support scan, all of it."""
    results = []
    for fold in folds:
        scores = [
            Score(f"{fold}-{name}", organ, "s", 3, 10, 10, hit, True, query, 1.0)
            for organ in ABDOMEN.organs
            for name, hit, query in (("1", both, True), ("2", both, True), ("support", 10, False))
        ]
        results.append(FoldResult(Path("unused"), {**ABOUT, "fold": fold, **about}, scores))
    return results


def rows_of(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip().strip("*") for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_a_run_has_a_row_for_each_way_to_count() -> None:
    (table,) = benchmark_tables([run()], published=False).values()
    assert table.header == ["method", "tests and source", *ABDOMEN.organs, "mean"]
    assert [row[0] for row in table.rows] == ["paper"] * 3
    assert [row[-1] for row in table.rows] == ["86.67", "80.00", "80.00"]
    assert [row[1].partition(": ")[2] for row in table.rows] == [
        "every scan once",
        "the papers' queries",
        "the papers' queries, pooled",
    ]


def test_published_rows_stand_beside_ours_each_with_its_source() -> None:
    rows = rows_of(as_text(benchmark_tables([run()]), "markdown"))
    assert len(rows) == 3 + len(published_for("chaos_t2", 1, "chaos_t2"))
    by_method = {row[0]: row for row in rows}
    assert (
        by_method["SD-FSMIS (CVPR 2026)"][-1] == "83.16"
        and "not the paper itself" in by_method["SD-FSMIS (CVPR 2026)"][1]
    )
    assert by_method["FoB + SAM ViT-H (CVPR 2026)"][2:] == ["85.61", "88.18", "84.76", "79.31", "84.46"]
    assert by_method["SSL-ALPNet (ECCV 2020)"][2:] == ["–", "–", "–", "–", "78.84"]
    published = [float(row[-1]) for row in rows[3:]]
    assert published == sorted(published)


def test_every_published_row_has_a_source_and_organs_that_make_its_mean() -> None:
    for row in PUBLISHED:
        assert row.source and 0 < row.mean < 100
        if row.organs:
            assert sum(row.organs.values()) / len(row.organs) == pytest.approx(row.mean, abs=0.02), row
    keys = [(row.method, row.data, row.setting, row.trained_on) for row in PUBLISHED]
    assert len(set(keys)) == len(keys)


def test_settings_data_sets_and_cross_domain_runs_have_tables_of_their_own() -> None:
    runs = [run(), run(setting=2, exclusion="any"), run(data="sabs", trained_on="sabs"), run(trained_on="sabs")]
    tables = benchmark_tables(runs)
    assert list(tables) == [
        TITLE,
        "Abd-MRI, Setting II: Dice, %",
        "Abd-CT, Setting I: Dice, %",
        "Abd-CT to Abd-MRI, Setting I: Dice, %",
    ]
    assert [row[-1] for row in tables["Abd-CT to Abd-MRI, Setting I: Dice, %"].rows][-1] == "73.30"
    assert tables["Abd-MRI, Setting II: Dice, %"].rows[-1][-1] == "80.46"


def test_what_sets_a_run_apart_is_said_in_its_row() -> None:
    runs = [
        run(folds=(0, 2), trained_on="none", model="built-in"),
        run(protocol="official"),
        run(without=["vtct"], shots=5),
    ]
    (table,) = benchmark_tables(runs, published=False).values()
    told = {(row[0], row[1]) for row in table.rows}
    assert ("built-in", "ours: every scan once; fold 0, 2 only; weights as they are") in told
    assert ("paper", "ours: the papers' queries, pooled; official protocol") in told
    assert ("paper without vtct, 5 shots", "ours: every scan once") in told
    assert ("paper", "ours: every scan once; official protocol") not in told
    (literature,) = benchmark_tables([run(setting=2, exclusion="all")], published=False).values()
    assert literature.rows[0][1] == "ours: every scan once; only slices with all organs left out"


def test_shots_of_one_run_are_not_mixed() -> None:
    (table,) = benchmark_tables([[*run(8), *run(10, shots=5)]], published=False).values()
    assert [(row[0], row[-1]) for row in table.rows][::3] == [("paper", "86.67"), ("paper, 5 shots", "100.00")]


def test_csv_and_latex_hold_the_same_figures() -> None:
    tables = benchmark_tables([run()]) | benchmark_tables([run(data="cmr", trained_on="none")], published=False)
    read = list(csv.DictReader(io.StringIO(as_text(tables, "csv"))))
    assert read[0]["table"] == TITLE and read[0]["mean"] == "86.67" and read[0]["RV"] == ""
    assert read[3]["liver"] == ""  # a published row without organs
    latex = as_text(tables, "latex")
    assert latex.count(r"\begin{tabular}{llrrrrr}") == 1 and latex.count(r"\bottomrule") == 2
    assert r"86.67 \\" in latex and "Dice, %\n" in latex
    lines = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert all(line.count(" & ") in (6, 5) for line in lines)


def test_the_ablation_table_tells_the_difference() -> None:
    table = ablation_table([run(8), run(5, without=["vtct"])])
    assert [row[1] for row in table.rows] == ["all of it", "without vtct"]
    assert [row[-1] for row in table.rows] == ["", "-20.00"]
    with pytest.raises(InputError, match="compares runs of the same folds"):
        ablation_table([run(), run(folds=(0,))])


def test_the_command_reads_folders_and_writes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, result in enumerate(run()):
        result.path = tmp_path / "paper" / "results" / f"{number}.json"
        result.save()
    ran("table", "--results", tmp_path / "paper", "--format", "csv", "--output", tmp_path / "t.csv")
    assert capsys.readouterr().out == f"Wrote {tmp_path / 't.csv'}\n"
    assert (tmp_path / "t.csv").read_text(encoding="utf-8").count("\n") > 10
    ran("table", "--results", tmp_path / "paper", "--no-published")
    out = capsys.readouterr().out
    assert len(rows_of(out)) == 3 and "a fold's support scan with the next one" in out
    assert json.loads((tmp_path / "paper/results/0.json").read_text(encoding="utf-8"))["dice"]["own"]["mean"] < 1
    with pytest.raises(InputError, match="has no benchmark results; make some with: sdfsmis benchmark run"):
        read_fold_results(tmp_path)
