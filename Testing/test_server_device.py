"""The backend with a device that is busy, small or broken: each client gets its turn, or its error."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from processes import until
from SDFSMISLib.model.unet import Hints, SupportBank
from SDFSMISLib.options import RunOptions
from SDFSMISLib.server.settings import ServerLimits
from serving import Backend, is_right, records, request_of, running, segmented, task
from small_scans import BrightPipeline


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class Gated(BrightPipeline):
    """A pipeline whose passes the test lets through one by one; it counts those that have begun."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.begun, self.is_open = threading.Semaphore(0), 0, True

    def segment(self, latents: torch.Tensor, bank: SupportBank, hints: Hints | None = None) -> torch.Tensor:
        self.begun += 1
        if not self.is_open:
            assert self.gate.acquire(timeout=20)
        return super().segment(latents, bank, hints)

    def shut(self) -> None:
        self.is_open, self.begun = False, 0


@pytest.fixture
def gated() -> Iterator[tuple[Backend, Gated]]:
    pipeline = Gated()
    with running(pipeline, ServerLimits(queue=2)) as backend:
        pipeline.shut()
        yield backend, pipeline
        pipeline.is_open = True
        for _ in range(1000):
            pipeline.gate.release()


def begun(backend: Backend, request: dict[str, Any]) -> socket.socket:
    """A segmentation that was asked for and whose stream has begun; closing the socket leaves it."""
    body = json.dumps(request).encode()
    raw = socket.create_connection(("127.0.0.1", backend.port), timeout=10)
    raw.sendall(b"POST /segmentations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
    raw.sendall(b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert b"200 OK" in raw.recv(1 << 16)
    return raw


def test_a_client_that_vanishes_frees_the_device_within_a_batch(gated: tuple[Backend, Gated]) -> None:
    backend, pipeline = gated
    raw = begun(backend, request_of(backend, task((40, 40, 40))))
    until(lambda: pipeline.begun == 1)
    raw.close()
    until(lambda: next(iter([backend.engine.scheduler._on_device])).is_cancelled)
    pipeline.gate.release()
    until(lambda: backend.engine.scheduler.active_runs == 0)
    assert pipeline.begun == 1


def test_a_full_queue_says_when_to_come_again(gated: tuple[Backend, Gated]) -> None:
    backend, _ = gated
    request = request_of(backend, task())
    held = [begun(backend, request) for _ in range(2)]
    status, headers, answer = backend.ask("POST", "/segmentations", request)
    assert (status, json.loads(answer)["error"]["code"]) == (503, "queue_full")
    assert 1 <= int(headers["retry-after"]) <= 60
    for raw in held:
        raw.close()


def test_runs_do_not_hold_more_memory_than_is_accepted() -> None:
    asked = task()
    with running(limits=ServerLimits(reserved_bytes=asked.scan.voxels.nbytes + 6400)) as backend:
        request = request_of(backend, asked)
        assert records(backend.ask("POST", "/segmentations", request)[2])[-1]["type"] == "end"
        assert records(backend.ask("POST", "/segmentations", request)[2])[-1]["type"] == "end"
        for larger in (task((14, 40, 40)), task(views=[(2, 22)])):  # the second is fused
            status, _, answer = backend.ask("POST", "/segmentations", request_of(backend, larger))
            assert (status, json.loads(answer)["error"]["code"]) == (413, "too_large")


def test_a_small_request_is_not_stuck_behind_a_large_one_of_several_views(gated: tuple[Backend, Gated]) -> None:
    backend, pipeline = gated
    large = begun(backend, request_of(backend, task((200, 24, 24), views=[(1, 9), (2, 13)])))
    until(lambda: pipeline.begun == 1)
    small = task((5, 40, 40), seed=3)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(segmented, backend.client(), small)
        until(lambda: backend.engine.scheduler.active_runs == 2)
        for _ in range(10):
            pipeline.gate.release()
        assert len(answer.result(20)) == 4
    assert backend.engine.scheduler.active_runs == 1
    large.close()


def test_a_client_that_does_not_read_does_not_hold_the_device() -> None:
    limits = ServerLimits(unsent_bytes=1 << 16, stall_seconds=1.0)
    with running(limits=limits) as backend:
        lazy = begun(backend, request_of(backend, task((120, 160, 160))))
        other = task(seed=4)
        assert is_right(segmented(backend.client(), other), other)
        until(lambda: backend.engine.scheduler.active_runs == 0)
        lazy.close()


class Poisoned(BrightPipeline):
    """A pipeline that fails on bright images of one size, by the error it is given."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error, self.is_poisoned = error, False

    def segment(self, latents: torch.Tensor, bank: SupportBank, hints: Hints | None = None) -> torch.Tensor:
        if self.is_poisoned:
            raise self.error
        return super().segment(latents, bank, hints)


@pytest.mark.parametrize(
    ("error", "code"),
    [(ValueError("no such thing"), "failed"), (torch.cuda.OutOfMemoryError("CUDA out of memory"), "out_of_memory")],
)
def test_a_poisoned_request_gets_its_error_and_the_next_one_works(error: Exception, code: str) -> None:
    pipeline, asked = Poisoned(error), task()
    with running(pipeline) as backend:
        request = request_of(backend, asked)
        pipeline.is_poisoned = True
        last = records(backend.ask("POST", "/segmentations", request)[2])[-1]
        assert (last["type"], last["code"]) == ("error", code) and "no such thing" not in last["message"]
        pipeline.is_poisoned = False
        assert is_right(segmented(backend.client(), asked), asked)


def test_a_device_that_failed_for_good_is_told_and_refuses_more() -> None:
    pipeline = Poisoned(RuntimeError("CUDA error: an illegal memory access was encountered"))
    with running(pipeline) as backend:
        request = request_of(backend, task())
        pipeline.is_poisoned = True
        last = records(backend.ask("POST", "/segmentations", request)[2])[-1]
        assert (last["type"], last["code"]) == ("error", "stopping")
        status, _, answer = backend.ask("GET", "/healthz")
        assert (status, json.loads(answer)["status"]) == (503, "device lost")


class Crowded(BrightPipeline):
    """A device that holds two queries at a time."""

    def segment(self, latents: torch.Tensor, bank: SupportBank, hints: Hints | None = None) -> torch.Tensor:
        if len(latents) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return super().segment(latents, bank, hints)


def test_a_device_out_of_memory_gets_less_at_a_time() -> None:
    asked = task((20, 40, 40))
    with running(Crowded()) as backend:
        assert is_right(segmented(backend.client(), asked, options=RunOptions("independent")), asked)


def test_runs_are_told_that_the_backend_stops_and_new_ones_are_refused(gated: tuple[Backend, Gated]) -> None:
    backend, pipeline = gated
    request = request_of(backend, task())
    raw = begun(backend, request)
    until(lambda: pipeline.begun == 1)
    backend.engine.scheduler.stop(0.0)
    status, headers, answer = backend.ask("POST", "/segmentations", request)
    assert (status, json.loads(answer)["error"]["code"]) == (503, "stopping") and "retry-after" in headers
    pipeline.gate.release()
    told = b""
    while b'"code":"stopping"' not in told:
        told += raw.recv(1 << 16)
    raw.close()
    assert backend.ask("GET", "/healthz")[0] == 503
