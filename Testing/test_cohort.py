"""Cohort runs in this process and in several: what is lost is tried again, the rest goes on, and a table tells all."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest

from cohort_examples import (
    Work,
    make_bad_input,
    make_defect,
    make_nothing,
    make_places,
    make_square,
    wait_until,
)
from SDFSMISLib import InputError, Volume, read_labelmap
from SDFSMISLib.cli.app import main
from SDFSMISLib.cohort.job import WORKER_IMPORTS, CohortSettings, LabelResult, ScanJob, ScanResult
from SDFSMISLib.cohort.pool import START_METHOD, Finished, run_cohort
from SDFSMISLib.cohort.table import COLUMNS, NEW_COLUMNS, CohortTable
from SDFSMISLib.images.files import atomic_output
from SDFSMISLib.support import SupportSet
from small_scans import ball_scan, painted_on

TESTING = Path(__file__).resolve().parent
if START_METHOD == "forkserver":  # all workers here are forks of one process, which begins with the first test of any
    multiprocessing.set_forkserver_preload(list(WORKER_IMPORTS))
kills_itself = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")

# -- jobs of any kind --------------------------------------------------------------------------------------------------


def in_order(finished: list[Finished[int]]) -> list[int | InputError]:
    results = dict(finished)
    return [results[number] for number in range(len(finished))]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_every_job_is_done_once(workers: int) -> None:
    finished = list(run_cohort([3, 1, 2], make_square, workers=workers))
    assert in_order(finished) == [9, 1, 4]
    assert list(run_cohort([], make_square, workers=workers)) == []


def test_workers_know_their_number_and_stay_for_several_jobs() -> None:
    places = {place for _, place in run_cohort(range(40), make_places, workers=2) if isinstance(place, tuple)}
    assert {(place, of) for place, of, _ in places} <= {(0, 2), (1, 2)}
    assert len(places) <= 2 and os.getpid() not in {process for _, _, process in places}


@kills_itself
def test_a_job_that_ends_its_process_is_tried_once_more_and_reported(tmp_path: Path) -> None:
    finished = list(run_cohort(range(6), Work(tmp_path, deadly={1}, deadly_once={0, 4}), workers=2))
    first, lost, *others = in_order(finished)
    assert [first, *others] == [0, 4, 9, 16, 25]
    assert isinstance(lost, InputError)
    assert str(lost).startswith("The process that worked on it was ended 2 times; often the memory")


@pytest.mark.parametrize("workers", [1, 2])
def test_what_keeps_workers_from_starting_stops_the_run(workers: int) -> None:
    with pytest.raises(InputError, match="no such model"):
        list(run_cohort(range(4), make_bad_input, workers=workers))
    with pytest.raises((RuntimeError, ZeroDivisionError), match="by zero"):
        list(run_cohort(range(4), make_defect, workers=workers))


@kills_itself
def test_processes_that_end_while_they_start_stop_the_run() -> None:
    with pytest.raises(InputError, match="was ended while it started; often the memory"):
        list(run_cohort(range(4), make_nothing, workers=2))


def test_who_leaves_early_stops_the_workers(tmp_path: Path) -> None:
    run = run_cohort(range(3), Work(tmp_path, slow=True), workers=2)
    assert next(run) == (0, 0)
    wait_until(lambda: len(list(tmp_path.glob("begun *"))) > 1)
    run.close()
    begun, stopped = ({path.name.split()[1] for path in tmp_path.glob(f"{word} *")} for word in ("begun", "stopped"))
    assert stopped and begun == {"0", *stopped}


@kills_itself
def test_workers_do_not_outlive_the_process_that_started_them(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\n"
        f"sys.path.insert(0, {str(TESTING)!r})\n"
        "from cohort_examples import Work\n"
        "from SDFSMISLib.cohort.pool import run_cohort\n"
        "if __name__ == '__main__':\n"
        f"    list(run_cohort(range(3), Work(pathlib.Path({str(tmp_path)!r}), slow=True), workers=2))\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    process = subprocess.Popen([sys.executable, str(script)], cwd=TESTING.parent)
    wait_until(lambda: len(list(tmp_path.glob("begun *"))) == 3)
    process.kill()
    process.wait()
    wait_until(lambda: len(list(tmp_path.glob("stopped *"))) == 2)
    wait_until(lambda: not any(is_running(int(mark.read_text())) for mark in tmp_path.glob("begun *")))


def is_running(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# -- the table ---------------------------------------------------------------------------------------------------------


def job(folder: Path, name: str) -> ScanJob:
    return ScanJob(folder / "scans" / f"{name}.nii.gz", folder / "results" / f"{name}_seg.nii.gz")


def result(*labels: int) -> ScanResult:
    nan = float("nan")
    results = (LabelResult(label, f"näme, {label}", 1.5 * label, 10 * label, 0.9, nan) for label in labels)
    return ScanResult(tuple(results), seconds=2.04)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_table_has_the_finished_scans_in_the_order_of_the_run(tmp_path: Path) -> None:
    jobs = [job(tmp_path, name) for name in ("b", "a", "p1/c")]
    table = CohortTable(tmp_path / "results" / "cohort.csv", jobs)
    table.add(jobs[2], result(1))
    table.write()
    table.add(jobs[0], result(1, 3))
    table.add(jobs[1], ScanResult(error='It is "bad", truly.'))
    table.write()
    found = rows(table.path)
    assert [(row["result"], row["label"], row["status"]) for row in found] == [
        ("b_seg.nii.gz", "1", "done"),
        ("b_seg.nii.gz", "3", "done"),
        ("a_seg.nii.gz", "", "failed"),
        ("p1/c_seg.nii.gz", "1", "done"),
    ]
    assert found[1] == {
        "scan": str(jobs[0].query),
        "result": "b_seg.nii.gz",
        "status": "done",
        "label": "3",
        "name": "näme, 3",
        "volume_ml": "4.5",
        "voxels": "30",
        "certainty_mean": "0.9000",
        "certainty_min": "",
        "agreement": "",
        "look_first": "1",
        "seconds": "2.0",
        "error": "",
    }
    assert found[2]["error"] == 'It is "bad", truly.' and found[2]["scan"] == str(jobs[1].query)
    assert tuple(found[0]) == COLUMNS and os.listdir(table.path.parent) == ["cohort.csv"]


def test_rows_of_an_earlier_run_are_kept(tmp_path: Path) -> None:
    """Those of scans that are passed over, and those of scans that this run does not know."""
    a, b, c = (job(tmp_path, name) for name in "abc")
    earlier = CohortTable(tmp_path / "results" / "cohort.csv", [a, b, c])
    for one in (a, c):
        earlier.add(one, result(1))
    earlier.add(b, ScanResult(error="Bad."))
    earlier.write()
    before = rows(earlier.path)
    table = CohortTable(earlier.path, [b, a])
    table.keep(a)
    table.add(b, result(1))
    table.write()
    assert unranked(rows(table.path)[1:]) == unranked([before[0], before[2]])
    assert rows(table.path)[0]["status"] == "done"


def unranked(table: list[dict[str, str]]) -> list[dict[str, str]]:
    """Rows without the rank of their scan, which depends on the other scans."""
    return [{column: value for column, value in row.items() if column != "look_first"} for row in table]


def test_the_table_tells_which_result_to_look_at_first(tmp_path: Path) -> None:
    jobs = [job(tmp_path, name) for name in "abcd"]
    table = CohortTable(tmp_path / "results" / "cohort.csv", jobs)
    for one, certainty, agreement in zip(jobs, (0.9, 0.8, 0.9), (0.5, 0.9, 0.9), strict=False):
        label = LabelResult(1, "", 1.0, 9, certainty, certainty)
        table.add(one, ScanResult((label,), agreement=agreement))
    table.add(jobs[3], ScanResult(error="Bad."))
    table.write()
    assert [row["look_first"] for row in rows(table.path)] == ["1", "2", "3", ""]


def test_a_table_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    a, b = (job(tmp_path, name) for name in "ab")
    path = tmp_path / "results" / "cohort.csv"
    earlier = CohortTable(path, [a])
    earlier.add(a, result(1))
    earlier.write()
    lines = [",".join(row[column] for column in COLUMNS if column not in NEW_COLUMNS) for row in rows(path)]
    header = ",".join(column for column in COLUMNS if column not in NEW_COLUMNS)
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    CohortTable(path, [b]).write()
    assert [row["status"] for row in rows(path)] == ["done"]


def test_a_scan_without_earlier_rows_is_told_of_by_its_own_table(tmp_path: Path) -> None:
    known, unknown = job(tmp_path, "known"), job(tmp_path, "unknown")
    known.volumes.parent.mkdir()
    known.volumes.write_text("label,name,volume_ml,voxels\n2,liver,1.5,1500\n")
    table = CohortTable(tmp_path / "results" / "cohort.csv", [known, unknown])
    table.keep(known)
    table.keep(unknown)
    table.write()
    first, second = rows(table.path)
    assert (first["label"], first["name"], first["volume_ml"], first["voxels"]) == ("2", "liver", "1.5", "1500")
    assert (first["status"], first["seconds"], first["certainty_mean"]) == ("done", "", "")
    assert (second["result"], second["status"], second["label"]) == ("unknown_seg.nii.gz", "done", "")


@pytest.mark.parametrize("content", [b"scan,age\na,3\n", b"", b"\xff\xfe\x00", b"a" * 10])
def test_a_table_of_another_program_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "cohort.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match="name another folder"):
        CohortTable(path, [])
    assert path.read_bytes() == content


def test_a_failure_is_one_sentence() -> None:
    assert ScanResult.failed(InputError("Bad\n  input.")) == ScanResult(error="Bad input.")
    assert ScanResult.failed(MemoryError("12 GiB")).error.startswith("The memory does not suffice (12 GiB); ")
    try:
        raise ZeroDivisionError("by\nzero")
    except ZeroDivisionError as error:
        defect = ScanResult.failed(error)
    assert defect.error == "ZeroDivisionError: by zero" and "test_cohort.py" in defect.details


# -- the command -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A painted scan, and a folder of three others: the second one cannot be read."""
    scan, labelmap = ball_scan((6, 32, 32))
    scan.write(tmp_path / "scan.nii.gz")
    painted_on(labelmap, 2).write(tmp_path / "painted.seg.nrrd")
    (tmp_path / "scans").mkdir()
    for number, side in enumerate((30, 34)):
        ball_scan((6, side, 32))[0].write(tmp_path / "scans" / f"s{2 * number}.nii.gz")
    (tmp_path / "scans" / "s1.nii.gz").write_bytes(b"no image")
    return tmp_path


@pytest.fixture
def cohort(files: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Runs the command over the folder of scans, with more options."""

    def run(*more: object) -> Ran:
        capsys.readouterr()
        usual = ("--support", files / "scan.nii.gz", "--mask", files / "painted.seg.nrrd")
        query = () if "--query" in more else ("--query", files / "scans")
        code = main([str(word) for word in ("segment", *usual, *query, *more)])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


def status(path: Path) -> dict[str, str]:
    return {row["result"].removesuffix("_seg.nii.gz"): row["status"] for row in rows(path)}


def test_a_cohort_by_two_processes_is_that_of_one(cohort: Callable[..., Ran], files: Path) -> None:
    """With the built-in weights, truly loaded in each; what a worker warns of is told."""
    scan = Volume.read(files / "scans" / "s2.nii.gz")
    broken = scan.voxels.astype(np.float32)
    broken[0, 0, :3] = np.nan
    Volume(broken, scan.geometry).write(files / "scans" / "s2.mha")
    (files / "scans" / "s2.nii.gz").unlink()
    alone = cohort("--output", files / "alone", "--probabilities", files / "alone", "--model", "built-in")
    ran = cohort("--output", files / "both", "--probabilities", files / "both", "--jobs", 2)
    for one, folder in ((alone, files / "alone"), (ran, files / "both")):
        assert one.code == 1, one.err
        assert status(folder / "cohort.csv") == {"s0": "done", "s1": "failed", "s2": "done"}
        assert "s2.mha holds 3 voxels of NaN or infinity" in one.err
        assert one.err.splitlines()[-2] == "1 of 3 scans failed:" and "s1.nii.gz: Cannot read" in one.err
        assert sum("_seg.nii.gz (label 1 (ball)" in line for line in one.out.splitlines()) == 2
    assert "3 scans by 2 processes." in ran.err
    assert set(os.listdir(files / "both")) == set(os.listdir(files / "alone"))
    for name in ("s0", "s2"):
        for ending in ("seg", "probability"):
            pair = [Volume.read(files / folder / f"{name}_{ending}.nii.gz").voxels for folder in ("alone", "both")]
            np.testing.assert_array_equal(*pair)
        provenance = [json.loads((files / folder / f"{name}_seg.json").read_text()) for folder in ("alone", "both")]
        assert len({fields["sdfsmis_weights_sha256"] for fields in provenance}) == 1
    without = [{**row, "seconds": "", "error": ""} for row in rows(files / "both" / "cohort.csv")]
    assert without == [{**row, "seconds": "", "error": ""} for row in rows(files / "alone" / "cohort.csv")]


def test_what_goes_to_workers_means_the_same_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The support set by value, and no path that depends on the folder."""
    scan, labelmap = ball_scan((6, 32, 32))
    support = SupportSet.from_labelmap(scan, painted_on(labelmap, 2))
    settings, sent, _ = pickle.loads(pickle.dumps((CohortSettings(), support, (1,))))
    assert sent.digest() == support.digest() and sent.names == support.names and settings == CohortSettings()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    assert [CohortSettings(model=model).absolute().model for model in ("model", "built-in", "a/b")] == [
        str(tmp_path / "model"),
        "built-in",
        "a/b",
    ]
    given = ScanJob(Path("a.nii"), Path("r/a.nii"), Path("p/a.nii"))
    assert given.absolute() == ScanJob(tmp_path / "a.nii", tmp_path / "r" / "a.nii", tmp_path / "p" / "a.nii")


@pytest.fixture
def bright(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the built-in weights, in this process: a stand-in that finds what is bright."""
    from small_scans import BrightPipeline

    monkeypatch.setattr("SDFSMISLib.inference.segmenter.load_pipeline", lambda *_: BrightPipeline())


def test_a_cohort_that_was_stopped_goes_on(cohort: Callable[..., Ran], files: Path, bright: None) -> None:
    results = files / "results"
    assert cohort("--output", results).code == 1
    before = rows(results / "cohort.csv")
    shutil.copy(files / "scan.nii.gz", files / "scans" / "s1.nii.gz")  # mended
    ran = cohort("--output", results, "--skip-existing")
    assert ran.code == 0 and "2 of 3 results exist and are skipped." in ran.err
    after = rows(results / "cohort.csv")
    assert status(results / "cohort.csv") == {"s0": "done", "s1": "done", "s2": "done"}
    assert unranked([after[0], after[2]]) == unranked([before[0], before[2]])
    (results / "cohort.csv").unlink()
    ran = cohort("--output", results, "--skip-existing")
    assert ran.code == 0 and ran.out == ""
    kept = ("result", "label", "name", "volume_ml", "voxels")
    assert [[row[key] for key in kept] for row in rows(results / "cohort.csv")] == [
        [row[key] for key in kept] for row in after
    ]


def test_the_table_of_a_cohort_is_a_list_of_scans(cohort: Callable[..., Ran], files: Path, bright: None) -> None:
    cohort("--output", files / "one")
    ran = cohort("--query", files / "one" / "cohort.csv", "--output", files / "two")
    assert ran.code == 1 and status(files / "two" / "cohort.csv") == status(files / "one" / "cohort.csv")


def test_scans_of_the_same_name_go_into_folders(cohort: Callable[..., Ran], files: Path, bright: None) -> None:
    scans = [files / "scan.nii.gz", files / "p2" / "scan.nii.gz"]
    scans[1].parent.mkdir()
    shutil.copy(scans[0], scans[1])
    ran = cohort("--query", *scans, "--output", files / "results")
    assert ran.code == 0, ran.err
    assert status(files / "results" / "cohort.csv") == {"scan": "done", "p2/scan": "done"}
    assert read_labelmap(files / "results" / "p2" / "scan_seg.nii.gz").voxels.any()
    assert (files / "results" / "p2" / "scan_seg_volumes.csv").is_file()


def test_a_defect_in_a_cohort_is_reported_with_its_traceback(
    cohort: Callable[..., Ran], files: Path, bright: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(files))
    segment = "SDFSMISLib.inference.segmenter.Segmenter.segment"
    monkeypatch.setattr(segment, lambda *_, **__: 1 // 0)
    ran = cohort("--output", files / "results")
    assert ran.code == 1 and "3 of 3 scans failed:" in ran.err and "Traceback" not in ran.err
    (log,) = files.glob("sdfsmis-*.log")
    assert f"Details in {log}." in ran.err and log.read_text().count("Traceback") == 2
    assert set(os.listdir(files / "results")) == {"cohort.csv"}


def test_a_table_that_cannot_be_written_for_a_while_does_not_stop_the_run(
    cohort: Callable[..., Ran], files: Path, bright: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one that is open in a spreadsheet."""
    times: list[Path] = []

    def sometimes(path: Path, extension: str):  # noqa: ANN202
        times.append(path)
        if len(times) < 3:
            raise InputError(f"Cannot write {path}.")
        return atomic_output(path, extension)

    monkeypatch.setattr("SDFSMISLib.cohort.table.atomic_output", sometimes)
    ran = cohort("--output", files / "results")
    assert ran.code == 1 and ran.err.count("Warning: Cannot write") == 1
    assert status(files / "results" / "cohort.csv") == {"s0": "done", "s1": "failed", "s2": "done"}
    monkeypatch.setattr("SDFSMISLib.cohort.table.atomic_output", lambda path, _: times.clear() or sometimes(path, ""))
    ran = cohort("--output", files / "results")
    assert ran.code == 2 and ran.err.splitlines()[-1].startswith("Error: Cannot write")


def test_a_dry_run_of_a_cohort_writes_nothing(cohort: Callable[..., Ran], files: Path, bright: None) -> None:
    ran = cohort("--output", files / "results", "--jobs", 4, "--dry-run")
    assert ran.code == 1 and "s1.nii.gz: Cannot read" in ran.err
    assert len(ran.out.splitlines()) == 2 and not (files / "results").exists()


def test_cohorts_that_are_refused(cohort: Callable[..., Ran], files: Path) -> None:
    """Before the model is loaded, with one sentence, and nothing written."""
    (files / "empty").mkdir()
    (files / "list.txt").write_text("scans/s0.nii.gz\nscans/s9.nii.gz\n")
    (files / "other").mkdir()
    (files / "other" / "cohort.csv").write_text("age\n3\n")
    results = files / "results"
    refusals: list[tuple[tuple[object, ...], str]] = [
        (("--query", files / "empty", "--output", results), "holds no scan"),
        (("--query", files / "list.txt", "--output", results), "on line 2"),
        (("--output", files / "scans"), "be taken for scans next time"),
        (("--output", results / "r.nii.gz"), "name a folder"),
        (("--output", files / "other"), "of another program"),
        (("--output", results, "--jobs", 0), "--jobs 0 was given; 1 or more"),
        (("--output", results, "--model", "nowhere"), "'nowhere' is unknown"),
        (("--output", results, "--engine", "dask"), "'dask' is not one of 'process', 'ray'"),
    ]
    before = sorted(files.rglob("*"))
    for words, sentence in refusals:
        ran = cohort(*words)
        assert ran.code == 2 and sentence in ran.err.splitlines()[-1], ran
        assert ran.err.count("Error: ") == 1 and ran.out == "" and sorted(files.rglob("*")) == before


@kills_itself
def test_ctrl_c_leaves_nothing_half_written(files: Path) -> None:
    """It reaches the command and its workers, while they start."""
    words = ("segment", "--support", "scan.nii.gz", "--mask", "painted.seg.nrrd", "--query", "scans", "--jobs", "2")
    command = [sys.executable, "-m", "SDFSMISLib.cli", *words, "--output", "results"]
    path = os.pathsep.join([str(TESTING.parent), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        command,
        cwd=files,
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stderr is not None
    while "by 2 processes" not in process.stderr.readline():
        pass
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == "Interrupted; nothing half-written was left.\n"
    assert not (files / "results").exists()
