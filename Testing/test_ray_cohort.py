"""Cohort runs on Ray: a cluster of two nodes in this machine, of which one is lost in the middle."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cohort_examples import NodeWork, make_bad_input, make_square, wait_until
from SDFSMISLib import InputError, read_labelmap
from SDFSMISLib.cli import main
from small_scans import ball_scan, painted_on

if find_spec("ray") is None:
    pytest.skip("Ray is not here", allow_module_level=True)

from SDFSMISLib.cohort.ray_pool import Share, run_on_ray, share  # noqa: E402

TESTING = Path(__file__).resolve().parent
NODE = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 << 20}


class TwoNodes:
    """A cluster whose second node may be lost, and comes back."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster: Any = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        self.second: Any = None

    def with_second(self, **variables: str) -> None:
        if self.second is None:
            self.second = self.cluster.add_node(**NODE, env_vars=variables)

    def lose_second(self) -> None:
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.second = None


@pytest.fixture(scope="module")
def nodes() -> Iterator[TwoNodes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTING.parent), str(TESTING)]))  # of the nodes' workers
        two = TwoNodes()
        patch.setenv("RAY_ADDRESS", two.cluster.address)
        yield two
        two.cluster.shutdown()


def test_jobs_of_a_lost_node_are_done_by_the_other(
    nodes: TwoNodes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """And a job that ends every worker is reported."""
    nodes.with_second(DOOMED="yes")
    results = {}
    with pytest.warns(UserWarning, match=r"A Ray worker was lost \(.*\); its scan is tried again"):
        for finished in run_on_ray(range(8), NodeWork(tmp_path, deadly={3})):
            results[finished.number] = finished.result, finished.error
            if nodes.second is not None and any(tmp_path.glob("doomed *")):
                nodes.lose_second()
    lost = results.pop(3)
    assert lost[0] is None and lost[1].startswith("The Ray worker that worked on it was lost 3 times (")
    assert results == {number: (number**2, "") for number in (0, 1, 2, 4, 5, 6, 7)}
    assert (tmp_path / "tries 3").read_text() == "xxx"
    assert capfd.readouterr().out == ""  # where results go: nothing of Ray's own


def test_what_keeps_workers_from_starting_stops_the_run(nodes: TwoNodes) -> None:
    with pytest.raises(InputError, match="no such model"):
        list(run_on_ray(range(4), make_bad_input))
    assert [finished.result for finished in run_on_ray([3], make_square)] == [9]


def test_the_command_on_a_cluster_does_what_it_does_here(
    nodes: TwoNodes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the built-in weights, truly loaded on each node; one scan cannot be read, and one node is lost meanwhile."""
    nodes.with_second()
    scan, labelmap = ball_scan((6, 32, 32))
    scan.write(tmp_path / "scan.nii.gz")
    painted_on(labelmap, 2).write(tmp_path / "painted.seg.nrrd")
    (tmp_path / "scans").mkdir()
    for side in (30, 31, 32, 33):
        ball_scan((6, side, 32))[0].write(tmp_path / "scans" / f"s{side}.nii.gz")
    (tmp_path / "scans" / "s20.nii.gz").write_bytes(b"no image")
    painted = ("--support", tmp_path / "scan.nii.gz", "--mask", tmp_path / "painted.seg.nrrd")
    words = ("segment", *painted, "--query", tmp_path / "scans", "--output")
    assert main([str(word) for word in (*words, tmp_path / "here")]) == 1
    capsys.readouterr()
    loss = threading.Thread(target=lose_second_after_a_result, args=(nodes, tmp_path / "ray"))
    loss.start()
    assert main([str(word) for word in (*words, tmp_path / "ray", "--engine", "ray")]) == 1
    loss.join()
    captured = capsys.readouterr()
    assert "5 scans on Ray." in captured.err and captured.err.splitlines()[-2] == "1 of 5 scans failed:"
    assert len(captured.out.splitlines()) == 4
    assert table(tmp_path / "ray") == table(tmp_path / "here")
    for side in (30, 31, 32, 33):
        one, other = (read_labelmap(tmp_path / where / f"s{side}_seg.nii.gz").voxels for where in ("ray", "here"))
        np.testing.assert_array_equal(one, other)


def lose_second_after_a_result(nodes: TwoNodes, results: Path) -> None:
    wait_until(lambda: any(results.glob("*_seg.nii.gz")))
    nodes.lose_second()


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "cohort.csv").open(newline="", encoding="utf-8") as file:
        return [{**row, "seconds": "", "error": ""} for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    ("nodes_have", "workers", "gpus", "expected"),
    [
        ([(8, 0)], None, True, (1, 8, 0)),
        ([(8, 0), (8, 0)], None, True, (2, 8, 0)),
        ([(0, 0), (8, 0), (4, 0)], None, True, (2, 4, 0)),
        ([(8, 0), (4, 0)], 3, True, (3, 4, 0)),
        ([(8, 0)], 3, True, (3, 2, 0)),
        ([(2, 0)], 5, True, (5, 1, 0)),
        ([(16, 2), (32, 4), (8, 0)], None, True, (6, 8, 1)),
        ([(16, 2)], 1, True, (1, 8, 1)),
        ([(16, 2)], 9, True, (2, 8, 1)),
        ([(16, 2)], None, False, (1, 16, 0)),
        ([(0, 0)], None, True, (1, 1, 0)),
        ([], None, True, (1, 1, 0)),
    ],
)
def test_workers_fit_the_cluster(
    nodes_have: list[tuple[int, int]], workers: int | None, gpus: bool, expected: tuple[int, int, int]
) -> None:
    assert share(nodes_have, workers, gpus) == Share(*expected)


def refusal(tmp_path: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """Runs the command with the engine ray, which must be refused with one sentence; the sentence."""
    scan, labelmap = ball_scan((6, 32, 32))
    scan.write(tmp_path / "scan.nii.gz")
    painted_on(labelmap, 2).write(tmp_path / "painted.nii.gz")
    painted = ("--support", str(tmp_path / "scan.nii.gz"), "--mask", str(tmp_path / "painted.nii.gz"))
    assert main(["segment", *painted, "--output", str(tmp_path / "results.nii.gz"), "--engine", "ray", *more]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and not (tmp_path / "results.nii.gz").exists()
    return captured.err.splitlines()[-1]


def test_a_cluster_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    sentence = refusal(tmp_path, capsys)
    assert sentence.startswith("Error: Cannot reach the Ray cluster 127.0.0.1:1 (") and "ray start --head" in sentence


def test_a_gpu_is_not_named_on_ray(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "use auto, cuda or cpu in place of cuda:1" in refusal(tmp_path, capsys, "--device", "cuda:1")


def test_without_ray_the_command_says_what_to_install(tmp_path: Path) -> None:
    """Before anything is read."""
    code = (
        "import sys; sys.modules['ray'] = None; from SDFSMISLib.cli import main; "
        "sys.exit(main(['segment', '--support', 'none', '--mask', 'none', '--output', 'x', '--engine', 'ray']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=TESTING.parent, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == 'Error: The engine ray needs Ray, which is not here; run: pip install "sdfsmis[ray]"\n'
