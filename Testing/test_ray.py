"""Ray: cohort runs, and the backend on Ray Serve, on a cluster of three nodes in this machine, some of which are lost.

The tests share the cluster and follow each other: what leaves a connection to it open comes after what needs none.
"""

from __future__ import annotations

import csv
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from certificates import self_signed
from cohort_examples import NodeWork, make_bad_input, make_square
from SDFSMISLib import InputError, Segmenter, read_labelmap
from SDFSMISLib.cli.app import main
from SDFSMISLib.client.errors import BackendBusy, TokenRefused
from SDFSMISLib.inference.remote import RemoteSegmenter
from SDFSMISLib.inference.segmentation import Segmentation
from SDFSMISLib.server.access import ListeningAddress
from SDFSMISLib.server.settings import ServeSettings
from SDFSMISLib.server.store import MissingSlices
from SDFSMISLib.wire import content_address, pack_array
from serving import Task, task
from small_scans import ball_scan, painted_on

if find_spec("ray") is None:
    pytest.skip("Ray is not here", allow_module_level=True)

from ray_examples import ENVIRONMENT, SECONDS, Nodes, OnRay, wait_for  # noqa: E402
from SDFSMISLib.cohort.ray_pool import run_on_ray  # noqa: E402
from SDFSMISLib.server.ray_serving import STORE_ACTOR, RayStore, ReplicaPlan, _ray_serve, ray, serve  # noqa: E402


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        made = Nodes()
        patch.setenv("RAY_ADDRESS", made.cluster.address)
        yield made
        made.cluster.shutdown()


# -- cohort runs -------------------------------------------------------------------------------------------------------


def test_the_command_on_a_cluster_does_what_it_does_here(
    nodes: Nodes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the built-in weights, truly loaded on a node; one scan cannot be read."""
    scan, labelmap = ball_scan((6, 32, 32))
    scan.write(tmp_path / "scan.nii.gz")
    painted_on(labelmap, 2).write(tmp_path / "painted.seg.nrrd")
    (tmp_path / "scans").mkdir()
    for side in (31, 32):
        ball_scan((6, side, 32))[0].write(tmp_path / "scans" / f"s{side}.nii.gz")
    (tmp_path / "scans" / "s20.nii.gz").write_bytes(b"no image")
    painted = ("--support", tmp_path / "scan.nii.gz", "--mask", tmp_path / "painted.seg.nrrd")
    words = ("segment", *painted, "--query", tmp_path / "scans", "--output")
    assert main([str(word) for word in (*words, tmp_path / "here")]) == 1
    capsys.readouterr()
    assert main([str(word) for word in (*words, tmp_path / "ray", "--engine", "ray")]) == 1
    captured = capsys.readouterr()
    assert "3 scans on Ray." in captured.err and captured.err.splitlines()[-2] == "1 of 3 scans failed:"
    assert len(captured.out.splitlines()) == 2
    assert table(tmp_path / "ray") == table(tmp_path / "here")
    for side in (31, 32):
        one, other = (read_labelmap(tmp_path / where / f"s{side}_seg.nii.gz").voxels for where in ("ray", "here"))
        np.testing.assert_array_equal(one, other)


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "cohort.csv").open(newline="", encoding="utf-8") as file:
        return [{**row, "seconds": "", "error": ""} for row in csv.DictReader(file)]


def test_what_keeps_workers_from_starting_stops_the_run(nodes: Nodes) -> None:
    with pytest.raises(InputError, match="no such model"):
        list(run_on_ray(range(4), make_bad_input))
    assert list(run_on_ray([3], make_square)) == [(0, 9)]


def test_jobs_of_a_lost_node_are_done_by_the_other(
    nodes: Nodes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """And a job that ends every worker is reported."""
    nodes.with_second(DOOMED="yes")
    results = {}
    with pytest.warns(UserWarning, match=r"A Ray worker was lost \(.*\); its scan is tried again"):
        for number, result in run_on_ray(range(8), NodeWork(tmp_path, deadly={3})):
            results[number] = result
            if nodes.second is not None and any(tmp_path.glob("doomed *")):
                nodes.lose_second()
    lost = results.pop(3)
    assert isinstance(lost, InputError)
    assert str(lost).startswith("The Ray worker that worked on it was lost 3 times (")
    assert results == {number: number**2 for number in (0, 1, 2, 4, 5, 6, 7)}
    assert (tmp_path / "tries 3").read_text() == "xxx"
    assert capfd.readouterr().out == ""  # where results go: nothing of Ray's own


# -- the backend -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnRay]:
    torch.set_num_threads(1)
    nodes.with_second(OMP_NUM_THREADS="2")  # which its replica is not to follow
    made = OnRay(nodes.cluster, self_signed(tmp_path_factory.mktemp("tls")))
    yield made
    made.process.kill()
    made.process.communicate()
    serve.shutdown()
    ray.shutdown()


@pytest.fixture(scope="module")
def asked() -> Task:
    return task((6, 40, 16), views=[(2, 9)])


@pytest.fixture(scope="module")
def long() -> Task:
    return task((48, 48, 48))


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    torch.set_num_threads(1)
    return Segmenter.from_pretrained("built-in", "cpu")


@pytest.fixture(scope="module")
def expected(segmenter: Segmenter, asked: Task) -> Segmentation:
    return segmenter.segment(asked.scan, asked.support)


def assert_same(one: Segmentation, other: Segmentation) -> None:
    np.testing.assert_array_equal(one.labelmap.voxels, other.labelmap.voxels)
    np.testing.assert_array_equal(one.probabilities[1], other.probabilities[1])
    np.testing.assert_array_equal(one.certainty[1], other.certainty[1])


def test_several_clients_at_once_get_a_second_replica_and_what_a_run_gives_without_a_backend(
    served: OnRay, asked: Task, expected: Segmentation
) -> None:
    def work(enough: threading.Event) -> None:
        while not enough.is_set():
            assert_same(RemoteSegmenter(served.client()).segment(asked.scan, asked.support), expected)

    def work_until(is_so: Callable[[], bool]) -> None:
        enough = threading.Event()
        with ThreadPoolExecutor(2) as clients:
            working = [clients.submit(work, enough) for _ in range(2)]
            try:
                wait_for(lambda: any(client.done() for client in working) or is_so())
            finally:
                enough.set()
        for client in working:
            client.result()

    assert len(served.replicas()) == 1
    work_until(lambda: len(served.replicas()) == 2)
    wait_for(lambda: served.ready_replicas() == 2)
    work_until(lambda: all(served.figures('sdfsmis_runs_total{outcome="done"}')))


def test_a_slice_that_one_replica_was_sent_is_seen_by_the_other(served: OnRay) -> None:
    array = np.arange(600, dtype=np.int16).reshape(20, 30)
    path = f"/slices/{content_address(array)}"
    assert served.ask("HEAD", path).status == 404
    assert served.ask("PUT", path, pack_array(array)).status == 201
    assert served.ask("PUT", path, pack_array(array)).status == 200
    assert served.ask_each("HEAD", path) == [(200, "")] * 2
    assert served.ask("DELETE", path).status == 204
    assert served.ask_each("HEAD", path) == [(404, "")] * 2


def test_who_has_no_token_or_comes_from_elsewhere_is_refused(served: OnRay) -> None:
    with pytest.raises(TokenRefused):
        served.client("another-token-of-16-letters").capabilities()
    assert served.ask("GET", "/capabilities", Authorization="").status == 401
    assert served.ask("GET", "/capabilities", Origin="https://elsewhere.example").status == 403
    assert served.ask("GET", "/capabilities", Origin=served.url).status == 200


def test_each_node_with_a_replica_takes_requests(served: OnRay) -> None:
    url = f"https://127.0.0.1:{ENVIRONMENT['RAY_SERVE_WORKER_PROXY_HTTP_PORT']}"
    assert served.client(url=url).capabilities().models[0].name == "built-in"


def test_a_second_one_on_the_same_cluster_is_refused(served: OnRay, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--engine", "ray", "--port", "0"]) == 2
    assert "serve shutdown" in capsys.readouterr().err


def test_replicas_hear_of_slices_that_another_one_deleted(served: OnRay) -> None:
    forgotten: list[tuple[str, str]] = []
    here, there = RayStore(lambda *key: forgotten.append(key)), RayStore(lambda *key: None)
    array = np.arange(70_000, dtype=np.int32).reshape(200, 350)
    for address in ("a", "b", "c"):
        assert here.put("owner", address, array)
    found = there.get("owner", ["a", "b", "c", "a"])
    assert list(found) == ["a", "b", "c"] and found["b"].dtype == np.int32
    np.testing.assert_array_equal(found["b"], array)
    assert not found["b"].flags.writeable
    here.get("owner", ["a", "b"])
    there.delete("owner", "a")
    there.delete("owner", "c")
    with pytest.raises(MissingSlices) as missing:
        here.get("owner", ["b", "c", "a"])
    assert missing.value.addresses == ["c", "a"]
    here.expire()
    assert forgotten == [("owner", "a")], "of c it has read nothing"
    assert here.bytes >= array.nbytes
    there.delete("owner", "b")


def test_where_the_store_is_lost_clients_send_again(served: OnRay, asked: Task, expected: Segmentation) -> None:
    sent = asked.scan.slice(0, 0)
    path = f"/slices/{content_address(sent)}"
    assert served.ask("PUT", path, pack_array(sent)).status in (200, 201)
    assert served.ask("HEAD", path).status == 200
    ray.kill(ray.get_actor(*STORE_ACTOR), no_restart=False)
    assert_same(RemoteSegmenter(served.client()).segment(asked.scan, asked.support), expected)


def test_closing_the_connection_ends_the_run(served: OnRay, long: Task) -> None:
    cancelled, segmented = 'sdfsmis_runs_total{outcome="cancelled"}', "sdfsmis_slices_total"
    before = {name: sum(served.figures(name)) for name in (cancelled, segmented)}
    with served.client().segment(long.stacks, long.support) as run:
        next(iter(run))
    wait_for(lambda: sum(served.figures(cancelled)) == before[cancelled] + 1)
    assert sum(served.figures(segmented)) - before[segmented] < len(long.scan.voxels)
    wait_for(lambda: served.node_of_a_run() is None)


def test_a_run_whose_node_is_lost_goes_on_in_another_replica(served: OnRay, segmenter: Segmenter, long: Task) -> None:
    seen: list[int] = []

    def on_slice(result: Any) -> None:
        seen.append(result.finished)
        if len(seen) == 3:
            node = served.node_of_a_run()
            assert node is not None, "the run was over too soon"
            served.cluster.remove_node(node, allow_graceful=False)

    found = RemoteSegmenter(served.client(), patience=SECONDS).segment(long.scan, long.support, on_slice=on_slice)
    assert_same(found, segmenter.segment(long.scan, long.support))
    assert seen == list(range(1, len(seen) + 1)), "no slice came twice"


def test_what_ray_serve_answers_by_itself_is_understood(served: OnRay) -> None:
    serve.delete("sdfsmis")
    with pytest.raises(BackendBusy):
        served.client().capabilities()


def test_what_keeps_replicas_from_starting_is_told(served: OnRay, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of the application that was deleted; so that no other Ray Serve has to start."""
    ended: list[bool] = []
    monkeypatch.setattr(serve, "shutdown", lambda: ended.append(True))
    monkeypatch.setattr("SDFSMISLib.server.ray_serving.MAX_STARTS", 1)  # a second would fail the same way
    settings = ServeSettings(port=0, model="no-such-model")
    address = ListeningAddress.open(settings)
    address.listener.close()
    with pytest.raises(InputError, match="^The model 'no-such-model' is unknown"):
        with _ray_serve(settings, address, ReplicaPlan(1, 0)):
            raise AssertionError("a replica has started")
    assert ended == [True]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT to send to another process")
def test_told_to_stop_it_ends_and_the_cluster_stays(served: OnRay) -> None:
    served.process.send_signal(signal.SIGINT)
    out, err = served.process.communicate(timeout=SECONDS)
    assert served.process.returncode == 0 and out == ""
    *notice, line = err.splitlines()
    assert "Ctrl+C" in line, err
    assert all(one.startswith("No replica has started yet") for one in notice), err  # on a slow computer
    assert any(node["Alive"] for node in ray.nodes())
    wait_for(lambda: not ray.util.list_named_actors(all_namespaces=True))
