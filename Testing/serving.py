"""A backend for tests: the real application on a real socket, in this process, around any pipeline."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import uvicorn

from processes import until
from SDFSMISLib import Segmenter, SupportSet, Volume
from SDFSMISLib.client import Client
from SDFSMISLib.server.app import make_app
from SDFSMISLib.server.engine import Engine
from SDFSMISLib.server.settings import ServerLimits
from SDFSMISLib.server.store import MemoryStore
from SDFSMISLib.slices import SliceStack
from SDFSMISLib.wire import (
    PROTOCOL,
    content_address,
    pack_array,
    query_fields,
    read_record,
    support_fields,
    support_image_for_wire,
)
from small_scans import BrightPipeline, ball_scan, painted_on


@dataclass
class Backend:
    """A running one."""

    port: int
    engine: Engine
    store: MemoryStore
    token: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, token: str | None = None) -> Client:
        return Client(self.url, token or self.token, timeout=20)

    def ask(
        self, method: str, path: str, body: bytes | Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (lower case) and body of the answer; a body that is no bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        given = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        if body is not None and not isinstance(body, bytes):
            body, given["Content-Type"] = json.dumps(body).encode(), "application/json"
        connection.request(method, path, body, given | (headers or {}))
        response = connection.getresponse()
        answer = response.read()
        connection.close()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, answer

    def put(self, array: np.ndarray, **headers: str) -> str:
        """Send a slice; its address."""
        address = content_address(array)
        status, _, answer = self.ask("PUT", f"/slices/{address}", pack_array(array), headers)
        assert status in (200, 201), answer
        return address


@contextmanager
def running(
    pipeline: Any = None,
    limits: ServerLimits | None = None,
    tokens: Sequence[str] = (),
    segmenter: Segmenter | None = None,
) -> Iterator[Backend]:
    """A backend around a pipeline (None: one that finds what is bright), stopped behind the block."""
    engine = Engine(segmenter or Segmenter(pipeline or BrightPipeline(), "bright"), limits or ServerLimits())
    store = MemoryStore(engine.limits.store_bytes, engine.limits.store_seconds, engine.forget_slice)
    config = uvicorn.Config(make_app(engine, store, tokens), port=0, log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Backend(port, engine, store, tokens[0] if tokens else None)
    finally:
        server.should_exit = True
        engine.scheduler.stop()
        thread.join(20)
        assert not thread.is_alive(), "the backend does not end"


@dataclass(frozen=True)
class Task:
    """A scan, its painted slices and the whole truth."""

    scan: Volume
    support: SupportSet
    truth: Volume

    @property
    def stacks(self) -> dict[int, SliceStack]:
        return SliceStack.along(self.scan, self.support.axes_on(self.scan, self.scan.content_hash()))


def task(
    shape: tuple[int, int, int] = (12, 40, 40),
    painted: Sequence[int] | None = None,
    seed: int = 0,
    views: Sequence[tuple[int, int]] = (),
) -> Task:
    """A ball in a body with a little noise, another for each seed; painted in its middle, and on slices (axis, index)
    of other views."""
    scan, truth = ball_scan(shape)
    noise = np.random.default_rng(seed).integers(-3, 4, shape)
    scan = Volume((scan.voxels + noise).astype(np.int16), scan.geometry)
    planes = [*((0, index) for index in ([shape[0] // 2] if painted is None else painted)), *views]
    sets = [SupportSet.from_labelmap(scan, painted_on(truth, k, axis=axis), 1, axis=axis) for axis, k in planes]
    return Task(scan, SupportSet(tuple(one.slices[0] for one in sets), sets[0].names), truth)


def request_of(backend: Backend, asked: Task, **changes: Any) -> dict[str, Any]:
    """The request that the task makes, all its slices sent, but for those that the backend cuts from others."""
    addresses = {index: backend.put(asked.scan.slice(0, index)) for index in range(len(asked.scan.voxels))}
    support = []
    for piece in asked.support.slices:
        is_cut = piece.plane.axis > 0
        own = asked.scan.slice(piece.plane.axis, piece.index)
        address = None if is_cut else backend.put(support_image_for_wire(piece, own))
        support.append(support_fields(piece, [1], address))
    request = {"protocol": PROTOCOL, "query": query_fields(asked.stacks, addresses), "support": support, "labels": [1]}
    return {**request, **changes}


def records(answer: bytes) -> list[dict[str, Any]]:
    return [read_record(line) for line in answer.splitlines(keepends=True)]


def segmented(client: Client, asked: Task, **options: Any) -> dict[int, np.ndarray]:
    with client.segment(asked.stacks, asked.support, **options) as run:
        return {one.index: one.probability for one in run if one.stage == "final"}


def is_right(found: dict[int, np.ndarray], asked: Task) -> bool:
    """Whether the ball was found on all slices but the painted one."""
    truth = asked.truth.voxels > 0
    open_slices = set(range(len(truth))) - {piece.index for piece in asked.support.slices if piece.plane.axis == 0}
    ours = np.stack([found[index] > 127 for index in sorted(open_slices)])
    theirs = truth[sorted(open_slices)]
    return set(found) == open_slices and 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()) > 0.95
