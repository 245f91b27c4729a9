"""Ray: cohort runs, and the backend on Ray Serve, on a cluster of three nodes in this machine, some of which are lost.

The tests share the cluster and follow each other: what leaves a connection to it open comes after what needs none.
"""

from __future__ import annotations

import asyncio
import csv
import http.client
import json
import logging
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch

from certificates import self_signed
from cohort_examples import NodeWork, make_bad_input, make_square, wait_until
from SDFSMISLib import InputError, Segmenter, read_labelmap
from SDFSMISLib.cli.app import main
from SDFSMISLib.client import Client
from SDFSMISLib.client.errors import BackendBusy, TokenRefused
from SDFSMISLib.inference.remote import RemoteSegmenter
from SDFSMISLib.inference.segmentation import Segmentation
from SDFSMISLib.server.engine import Engine
from SDFSMISLib.server.settings import ServerLimits
from SDFSMISLib.server.store import MissingSlices
from SDFSMISLib.wire import PROTOCOL_HEADER, content_address, pack_array
from serving import Task, task, until
from small_scans import BrightPipeline, ball_scan, painted_on

if find_spec("ray") is None:
    pytest.skip("Ray is not here", allow_module_level=True)

from SDFSMISLib.cohort.ray_pool import Share, run_on_ray, share  # noqa: E402  (before Ray itself)
from SDFSMISLib.server.ray_serving import STORE_ACTOR, BackendReplica, RayStore, middlewares, plan_replicas, ray, serve  # noqa: E402

TESTING = Path(__file__).resolve().parent
ROOT = TESTING.parent
TOKEN = "a-token-of-more-than-16-letters"
SECONDS = 120.0  # that things may take on a slow machine
NODE = {"num_gpus": 0, "object_store_memory": 80 << 20}


class Nodes:
    """A cluster whose head takes no work, so that any node with some may be lost; the second of two comes back."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        head = {**NODE, "num_cpus": 0, "include_dashboard": False}
        self.cluster: Any = Cluster(initialize_head=True, head_node_args=head)
        self.cluster.add_node(**NODE, num_cpus=1)
        self.second: Any = None

    def with_second(self, **variables: str) -> None:
        if self.second is None:
            self.second = self.cluster.add_node(**NODE, num_cpus=1, env_vars=variables)

    def lose_second(self) -> None:
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.second = None


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(TESTING)]))  # of the nodes' workers
        for whose in ("REPLICA", "HANDLE"):  # else it takes ten seconds to see that there is much to do
            patch.setenv(f"RAY_SERVE_{whose}_AUTOSCALING_METRIC_PUSH_INTERVAL_S", "2")
        # The nodes of a real cluster have addresses of their own; here they have ports.
        patch.setenv("RAY_SERVE_WORKER_PROXY_HTTP_PORT", str(free_port()))
        made = Nodes()
        patch.setenv("RAY_ADDRESS", made.cluster.address)
        yield made
        made.cluster.shutdown()


# -- cohort runs -------------------------------------------------------------------------------------------------------


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


def test_without_ray_segment_says_what_to_install(tmp_path: Path) -> None:
    """Before anything is read."""
    code = (
        "import sys; sys.modules['ray'] = None; from SDFSMISLib.cli.app import main; "
        "sys.exit(main(['segment', '--support', 'none', '--mask', 'none', '--output', 'x', '--engine', 'ray']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=TESTING.parent, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == 'Error: The engine ray needs Ray, which is not here; run: pip install "sdfsmis[ray]"\n'


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


def test_what_keeps_workers_from_starting_stops_the_run(nodes: Nodes) -> None:
    with pytest.raises(InputError, match="no such model"):
        list(run_on_ray(range(4), make_bad_input))
    assert list(run_on_ray([3], make_square)) == [(0, 9)]


def test_the_command_on_a_cluster_does_what_it_does_here(
    nodes: Nodes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the built-in weights, truly loaded on each node; one scan cannot be read, and one node is lost meanwhile."""
    nodes.with_second()
    scan, labelmap = ball_scan((6, 32, 32))
    scan.write(tmp_path / "scan.nii.gz")
    painted_on(labelmap, 2).write(tmp_path / "painted.seg.nrrd")
    (tmp_path / "scans").mkdir()
    for side in (30, 31, 32):
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
    assert "4 scans on Ray." in captured.err and captured.err.splitlines()[-2] == "1 of 4 scans failed:"
    assert len(captured.out.splitlines()) == 3
    assert table(tmp_path / "ray") == table(tmp_path / "here")
    for side in (30, 31, 32):
        one, other = (read_labelmap(tmp_path / where / f"s{side}_seg.nii.gz").voxels for where in ("ray", "here"))
        np.testing.assert_array_equal(one, other)


def lose_second_after_a_result(nodes: Nodes, results: Path) -> None:
    wait_until(lambda: any(results.glob("*_seg.nii.gz")))
    nodes.lose_second()


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "cohort.csv").open(newline="", encoding="utf-8") as file:
        return [{**row, "seconds": "", "error": ""} for row in csv.DictReader(file)]


# -- the backend -------------------------------------------------------------------------------------------------------


class OnRay:
    """`sdfsmis serve --engine ray` on the cluster."""

    def __init__(self, cluster: Any, certificate: Path) -> None:
        self.cluster = cluster
        self.certificate = certificate
        options = ["--engine", "ray", "--port", "0", "--tls-cert", certificate, "--tls-key", certificate]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "SDFSMISLib.cli", "serve", *map(str, options)],
            cwd=ROOT,
            env={**os.environ, "SDFSMIS_TOKEN": TOKEN},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None and self.process.stderr is not None
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        self.url = json.loads(line)["url"]
        ray.init(log_to_driver=False, logging_level=logging.ERROR)

    def client(self, token: str = TOKEN, url: str = "") -> Client:
        return Client(url or self.url, token, ca_file=str(self.certificate))

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> http.client.HTTPResponse:
        context = ssl.create_default_context(cafile=str(self.certificate))
        connection = http.client.HTTPSConnection(urlsplit(self.url).netloc, timeout=SECONDS, context=context)
        connection.request(method, path, body, {"Authorization": f"Bearer {TOKEN}", **headers})
        return connection.getresponse()

    def counted(self, name: str) -> tuple[str, float]:
        """A figure of the replica that happens to answer, and what stands for that replica."""
        text = self.ask("GET", "/metrics").read().decode()
        figures = dict(re.findall(r"^(\S+) (\S+)$", text, re.MULTILINE))
        return figures["process_start_time_seconds"], float(figures.get(name, 0))

    def counted_by_both(self, name: str) -> dict[str, float]:
        """A figure of each of the two replicas."""
        figures: dict[str, float] = {}

        def are_there() -> bool:
            figures.update([self.counted(name)])
            return len(figures) == 2

        until(are_there, SECONDS)
        return figures

    def replicas(self) -> list[Any]:
        """The actors of those that run."""
        names = [one["name"] for one in ray.util.list_named_actors(all_namespaces=True)]
        return [ray.get_actor(name, "serve") for name in names if name.startswith("SERVE_REPLICA::")]

    def node_of_a_run(self) -> Any:
        """The node of a replica that is at a run."""
        for replica in self.replicas():
            if ray.get(replica.get_num_ongoing_requests.remote()):
                place = ray.get(replica.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id()))
                return next(node for node in self.cluster.worker_nodes if node.node_id == place)
        return None


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
    return task((8, 48, 48))


@pytest.fixture(scope="module")
def expected(asked: Task) -> Segmentation:
    torch.set_num_threads(1)
    return Segmenter.from_pretrained("built-in", "cpu").segment(asked.scan, asked.support)


def assert_same(one: Segmentation, other: Segmentation) -> None:
    np.testing.assert_array_equal(one.labelmap.voxels, other.labelmap.voxels)
    np.testing.assert_array_equal(one.probabilities[1], other.probabilities[1])
    np.testing.assert_array_equal(one.certainty[1], other.certainty[1])


def test_a_run_gives_what_it_gives_without_a_backend(served: OnRay, asked: Task, expected: Segmentation) -> None:
    assert_same(RemoteSegmenter(served.client()).segment(asked.scan, asked.support), expected)


def test_several_clients_at_once_get_a_second_replica_and_the_same_results(
    served: OnRay, asked: Task, expected: Segmentation
) -> None:
    def work(_: int) -> None:
        while len(served.replicas()) < 2:
            assert_same(RemoteSegmenter(served.client()).segment(asked.scan, asked.support), expected)

    with ThreadPoolExecutor(4) as clients:
        list(clients.map(work, range(4), timeout=SECONDS))


def test_a_slice_that_one_replica_was_sent_is_seen_by_the_other(served: OnRay) -> None:
    array = np.arange(600, dtype=np.int16).reshape(20, 30)
    path = f"/slices/{content_address(array)}"
    assert served.ask("HEAD", path).status == 404
    assert served.ask("PUT", path, pack_array(array)).status == 201
    assert served.ask("PUT", path, pack_array(array)).status == 200
    found = 'sdfsmis_requests_total{method="HEAD",route="/slices/{address}",status="200"}'

    def both_have_found_it() -> bool:
        assert served.ask("HEAD", path).status == 200
        return all(served.counted_by_both(found).values())

    until(both_have_found_it, SECONDS)
    assert served.ask("DELETE", path).status == 204
    assert served.ask("HEAD", path).status == 404


def test_who_has_no_token_or_comes_from_elsewhere_is_refused(served: OnRay) -> None:
    with pytest.raises(TokenRefused):
        served.client("another-token-of-16-letters").capabilities()
    assert served.ask("GET", "/capabilities", Authorization="").status == 401
    assert served.ask("GET", "/capabilities", Origin="https://elsewhere.example").status == 403
    assert served.ask("GET", "/capabilities", Origin=served.url).status == 200


def test_each_node_with_a_replica_takes_requests(served: OnRay) -> None:
    url = f"https://127.0.0.1:{os.environ['RAY_SERVE_WORKER_PROXY_HTTP_PORT']}"
    assert served.client(url=url).capabilities().models[0].name == "built-in"


def test_closing_the_connection_ends_the_run(served: OnRay) -> None:
    long = task((200, 48, 48))
    before = served.counted_by_both("sdfsmis_slices_total")
    with served.client().segment(long.stack, long.support) as run:
        next(iter(run))
    until(lambda: sum(served.counted_by_both('sdfsmis_runs_total{outcome="cancelled"}').values()) == 1, SECONDS)
    after = served.counted_by_both("sdfsmis_slices_total")
    assert sum(after.values()) - sum(before.values()) < 100
    until(lambda: served.node_of_a_run() is None, SECONDS)


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
    with served.client().segment(asked.stack, asked.support) as run:
        next(iter(run))  # its slices are there
    ray.kill(ray.get_actor(*STORE_ACTOR), no_restart=False)
    assert_same(RemoteSegmenter(served.client()).segment(asked.scan, asked.support), expected)


def test_a_run_whose_node_is_lost_goes_on_in_another_replica(served: OnRay) -> None:
    long = task((80, 48, 48))
    expected = Segmenter.from_pretrained("built-in", "cpu").segment(long.scan, long.support)
    seen: list[int] = []

    def on_slice(result: Any) -> None:
        seen.append(result.finished)
        if len(seen) == 3:
            node = served.node_of_a_run()
            assert node is not None, "the run was over too soon"
            served.cluster.remove_node(node, allow_graceful=False)

    found = RemoteSegmenter(served.client(), patience=SECONDS).segment(long.scan, long.support, on_slice=on_slice)
    assert_same(found, expected)
    assert seen == list(range(1, len(seen) + 1)), "no slice came twice"


def test_what_ray_serve_answers_by_itself_is_understood(served: OnRay) -> None:
    serve.delete("sdfsmis")
    with pytest.raises(BackendBusy):
        served.client().capabilities()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT to send to another process")
def test_told_to_stop_it_ends_and_the_cluster_stays(
    served: OnRay, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    served.process.send_signal(signal.SIGINT)
    out, err = served.process.communicate(timeout=SECONDS)
    assert served.process.returncode == 0 and out == ""
    *notice, line = err.splitlines()
    assert "Ctrl+C" in line, err
    assert all(one.startswith("No replica has started yet") for one in notice), err  # on a slow computer
    assert any(node["Alive"] for node in ray.nodes())
    until(lambda: not ray.util.list_named_actors(all_namespaces=True), SECONDS)
    monkeypatch.setattr("SDFSMISLib.server.ray_serving.MAX_STARTS", 1)  # a second one would fail the same way
    assert main(["serve", "--engine", "ray", "--port", "0", "--model", "no-such-model"]) == 2
    *notice, why = capsys.readouterr().err.splitlines()
    assert why.startswith("Error: The model 'no-such-model' is unknown"), why
    assert all(line.startswith("No replica has started yet") for line in notice), notice


# -- the backend without a cluster -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "device", "expected"),
    [
        ([(8, 0)], "auto", (8, 0, "cpu")),
        ([(8, 0), (0, 0), (4, 0)], "cpu", (12, 0, "cpu")),
        ([(16, 2), (8, 0), (32, 4)], "auto", (6, 1, "cuda")),
        ([(16, 2)], "cuda", (2, 1, "cuda")),
        ([(16, 2)], "cpu", (16, 0, "cpu")),
        ([(1, 2)], "auto", (1, 1, "cuda")),
    ],
)
def test_replicas_fit_the_cluster(nodes: list[tuple[int, int]], device: str, expected: tuple[int, int, str]) -> None:
    found = plan_replicas(nodes, device)
    assert (found.replicas, found.gpus, found.device) == expected


@pytest.mark.parametrize(
    ("nodes", "device", "said"),
    [
        ([(8, 0)], "cuda", "no node"),
        ([(8, 1)], "cuda:0", "cuda:0"),
        ([(0, 0)], "auto", "processors"),
        ([], "cpu", "ray start"),
    ],
)
def test_a_cluster_without_room_is_refused(nodes: list[tuple[int, int]], device: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        plan_replicas(nodes, device)


def test_a_replica_whose_device_is_lost_or_whose_thread_has_ended_is_ill() -> None:
    engine = Engine(Segmenter(BrightPipeline(), "bright"), ServerLimits())
    replica = SimpleNamespace(engine=engine)  # one of Ray Serve's own would have to be awaited in its end
    BackendReplica.check_health(replica)
    engine.record_error(RuntimeError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        BackendReplica.check_health(replica)
    engine.device_error = None
    engine.scheduler.stop()
    with pytest.raises(RuntimeError, match="thread"):
        BackendReplica.check_health(replica)


def test_without_ray_serve_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "SDFSMISLib.server.ray_serving", raising=False)
    assert main(["serve", "--engine", "ray"]) == 2
    assert 'pip install "sdfsmis[serve,ray]"' in capsys.readouterr().err


@pytest.mark.parametrize("begins", [True, False])
def test_an_answer_that_no_replica_gave_becomes_one_that_says_to_come_again(begins: bool) -> None:
    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        if begins:
            await send({"type": "http.response.start", "status": 404, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"not found"})

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)

    (middleware,) = middlewares()
    asyncio.run(middleware.cls(proxy)({"type": "http", "path": "/capabilities"}, receive, send))
    start, body = messages
    headers = dict(start["headers"])
    assert start["status"] == 503 and headers[PROTOCOL_HEADER.lower().encode()] == b"1" and b"retry-after" in headers
    assert json.loads(body["body"])["error"]["code"] == "stopping"
