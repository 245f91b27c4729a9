"""Ray without a cluster: the share of each worker and replica, what is refused, and answers that no replica gave."""

from __future__ import annotations

import asyncio
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from SDFSMISLib import InputError, Segmenter
from SDFSMISLib.cli.app import main
from SDFSMISLib.server.engine import Engine
from SDFSMISLib.server.settings import ServerLimits
from SDFSMISLib.wire import PROTOCOL, PROTOCOL_HEADER
from small_scans import BrightPipeline, ball_scan, painted_on

if find_spec("ray") is None:
    pytest.skip("Ray is not here", allow_module_level=True)

from SDFSMISLib.cohort.ray_pool import Share, share  # noqa: E402  (before Ray itself)
from SDFSMISLib.server.ray_serving import BackendReplica, middlewares, plan_replicas  # noqa: E402

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


def test_without_ray_the_commands_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is read."""
    monkeypatch.setitem(sys.modules, "ray", None)
    for module in ("SDFSMISLib.cohort.ray_pool", "SDFSMISLib.server.ray_serving"):
        monkeypatch.delitem(sys.modules, module)
        monkeypatch.delattr(module)
    assert main(["segment", "--support", "none", "--mask", "none", "--output", "x", "--engine", "ray"]) == 2
    said = 'Error: The engine ray needs Ray, which is not here; run: pip install "sdfsmis[ray]"\n'
    assert capsys.readouterr().err == said
    assert main(["serve", "--engine", "ray"]) == 2
    assert 'pip install "sdfsmis[serve,ray]"' in capsys.readouterr().err


# -- the backend -------------------------------------------------------------------------------------------------------


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
    assert start["status"] == 503 and b"retry-after" in headers
    assert headers[PROTOCOL_HEADER.lower().encode()] == str(PROTOCOL).encode()
    assert json.loads(body["body"])["error"]["code"] == "stopping"
