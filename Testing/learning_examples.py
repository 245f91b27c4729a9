"""Scans to learn from, models that were learned, and stand-ins for the process that learns."""

from __future__ import annotations

import http.client
import json
import sys
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from SDFSMISLib import Volume
from SDFSMISLib.model.built_in import Size, new_built_in
from SDFSMISLib.model.digest import weights_digest
from SDFSMISLib.protocol import read_record
from SDFSMISLib.server.learning_folder import marked
from SDFSMISLib.server.models import LearnedModel, Lesson, Outcome
from SDFSMISLib.server.owners import owner_folder
from SDFSMISLib.volume import Geometry
from serving import Backend

SIDE = 32  # of the square on which the small weights see, pixels

# Programs that take the place of the process that learns, see `child_program`.
LEARNING_PARTS = """
outcome = {"weights_sha256": "ab" * 32, "resolution": 32, "improved": True, "before": 0.5, "after": 0.625, "steps": 8,
    "seconds": 1.5, "scans": len(asked["scans"]), "skipped": ["scan 12 is too small"]}
def finish():
    with open(asked["folder"] + "/learned.json", "w") as file:
        json.dump(outcome, file)
    print(json.dumps({"type": "done"}), flush=True)
def tell(done, text):
    print(json.dumps({"type": "progress", "done": done, "total": 9, "text": text}), flush=True)
"""
LEARNS = LEARNING_PARTS + "tell(3, 'Learning')\ntime.sleep(0.3)\nfinish()\n"


def small_weights(folder: Path, seed: int = 1) -> Path:
    """A pipeline folder with weights of the built-in kind, small and random."""
    new_built_in(seed, Size(resolution=SIDE, channels=(16, 16))).save_pretrained(folder)
    return folder


def body_scan(seed: int = 0) -> Volume:
    """Organs that begin and end in a body, int16 (16, 48, 48)."""
    z, y, x = np.mgrid[:16, :48, :48].astype(float)
    voxels = np.where(((y - 24) / 20) ** 2 + ((x - 24) / 22) ** 2 < 1, 300.0, 0.0)
    for level, row, column, reach, wide in (
        (4, 18, 15, 4, 7),
        (10, 30, 33, 4, 7),
        (8, 29, 16, 3, 6),
        (12, 16, 30, 4, 6),
    ):
        organ = ((z - level) / reach) ** 2 + ((y - row) / wide) ** 2 + ((x - column) / wide) ** 2 < 1
        voxels[organ] += 120 + 90 * level
    voxels += np.random.default_rng(seed).normal(0, 2, voxels.shape)
    geometry = Geometry(voxels.shape, (1.5, 1.25, 5.0), (-30.5, 12.25, 0.1), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    return Volume(voxels.astype(np.int16), geometry)


def scan_request(backend: Backend, scan: Volume, **changes: Any) -> dict[str, Any]:
    """The request that puts a scan together, all its slices sent."""
    grid = scan.geometry
    return {
        "protocol": 1,
        "shape": list(grid.shape),
        "spacing": list(grid.spacing),
        "origin": list(grid.origin),
        "direction": list(grid.direction),
        "slices": [backend.put(plane) for plane in scan.voxels],
    } | changes


def send_scan(backend: Backend, scan: Volume) -> str:
    """Its content hash, under which the backend has it."""
    content = scan.content_hash()
    status, _, answer = backend.ask("PUT", f"/scans/{content}", scan_request(backend, scan))
    assert status in (200, 201), answer
    return content


def lesson_request(scans: list[str], **changes: Any) -> dict[str, Any]:
    return {"protocol": 1, "name": "liver of us", "scans": scans, "minutes": 0.03} | changes


def learned(backend: Backend, request: dict[str, Any], **headers: str) -> list[dict[str, Any]]:
    """All records of an adaptation."""
    status, _, answer = backend.ask("POST", "/adaptations", request, headers)
    assert status == 200, answer
    return [read_record(line) for line in answer.splitlines(keepends=True)]


def refused(backend: Backend, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
    """Status and code of a refusal, which is one sentence."""
    status, _, answer = backend.ask(method, path, body, headers)
    error = json.loads(answer)["error"]
    assert error["message"].endswith(".") and "\n" not in error["message"] and len(error["message"]) < 900
    return status, error["code"]


class Listening:
    """An adaptation whose records are read one by one."""

    def __init__(self, backend: Backend, request: dict[str, Any]) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", backend.port, timeout=30)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {backend.token}"}
        self._connection.request("POST", "/adaptations", json.dumps(request).encode(), headers)
        self._response = self._connection.getresponse()
        assert self._response.status == 200, self._response.read()

    def until(self, kind: str) -> dict[str, Any]:
        """The next record of a type."""
        while (line := self._response.readline()) != b"":
            record = read_record(line)
            if record["type"] == kind:
                return record
        raise AssertionError(f"the stream ended without {kind}")

    def leave(self) -> None:
        self._response.close()
        self._connection.close()


def finished_model(folder: Path, name: str, owner: str = "", seed: int = 2, **changes: Any) -> LearnedModel:
    """A model that was learned before the backend starts, with `folder` for its adaptations."""
    lesson = Lesson(**{"name": name, "scans": ("0" * 64,), "minutes": 1.0, "weights": "1" * 64} | changes)
    model = unfinished_model(folder, lesson, owner)
    pipeline = new_built_in(seed, Size(resolution=SIDE, channels=(16, 16)))
    pipeline.save_pretrained(model.pipeline)
    model.finish(Outcome(weights_digest(pipeline), SIDE, True, 0.5, 0.625, 30, 61.5, 1, ("scan 0000 is too small",)))
    return model


def unfinished_model(folder: Path, lesson: Lesson, owner: str = "") -> LearnedModel:
    """A model of which nothing was learned before the backend starts, with `folder` for its adaptations."""
    return LearnedModel.made(owner_folder(marked(folder) / "models", owner) / uuid.uuid4().hex, lesson)


def models_of(backend: Backend, **headers: str) -> list[tuple[str, bool]]:
    """Name of each model, and whether it was learned."""
    told = json.loads(backend.ask("GET", "/capabilities", headers=headers)[2])
    return [(model["name"], model["learned"]) for model in told["models"]]


def model_path(name: str) -> str:
    return f"/models/{quote(name, safe='')}"


def child_program(folder: Path, text: str) -> tuple[str, ...]:
    """A command that takes the place of the process that learns; `text` is Python, which has its request as `asked`."""
    path = folder / "child.py"
    path.write_text("import json, sys, time\nasked = json.loads(sys.stdin.readline())\n" + text, encoding="utf-8")
    return (sys.executable, str(path))


def small_child() -> tuple[str, ...]:
    """The real process, on few examples."""
    return (sys.executable, str(Path(__file__).with_name("small_learning_child.py")))
