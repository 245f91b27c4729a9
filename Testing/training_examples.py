"""Small scans, manifests and configurations to train with, and a training that is killed."""

from __future__ import annotations

import json
import multiprocessing
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from SDFSMISLib.images.volume import Geometry, SliceOrientation, Volume
from SDFSMISLib.training.checkpoint import Checkpoint
from SDFSMISLib.training.config import TrainingConfig
from SDFSMISLib.training.volumes import TrainingVolume

PLAIN = (SliceOrientation(False, False, False),) * 3


def scan_volume(name: str, shift: int) -> TrainingVolume:
    """A bright ball on a dark ground, with the ball as label 1."""
    z, y, x = np.mgrid[:24, :40, :40]
    ball = (z - 12) ** 2 + (y - 20 - shift) ** 2 + (x - 20) ** 2 < 64
    image = np.where(ball, 0.5, -0.5).astype(np.float16)
    return TrainingVolume(name, image, (ball.astype(np.uint16),), True, (2.0, 1.0, 1.0), (0, 1, 2), PLAIN, "balls")


def write_manifest(folder: Path) -> Path:
    """Two cases with labels: one for training, one for testing."""
    cases = []
    for name, split in (("first", "train"), ("second", "test")):
        volume = scan_volume(name, 0)
        geometry = Geometry(volume.image.shape, (1, 1, 2), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
        Volume((volume.image * 100).astype(np.float32), geometry).write(folder / f"{name}.nii.gz")
        Volume(volume.maps[0].astype(np.uint8), geometry).write(folder / f"{name}_labels.nii.gz")
        files = {"image": f"{name}.nii.gz", "labels": f"{name}_labels.nii.gz"}
        about = {"id": name, "group": "balls", "modality": "MR", "targets": {"ball": 1}, "split": split}
        cases.append(about | files)
    content = {"groups": {"balls": {"may_train_shipped_weights": True}}, "cases": cases}
    (folder / "cases.json").write_text(json.dumps(content))
    return folder / "cases.json"


def tiny_settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """Some steps on synthetic episodes, in a second or two."""
    settings = {
        "cases": "",
        "output": str(folder),
        "network": {"resolution": 32, "channels": [16, 16]},
        "autoencoder_steps": 2,
        "steps": 4,
        "batch": 1,
        "synthetic_count": 1,
        "save_every": 2,
        "workers": 0,
    }
    return settings | changes


def tiny_config(folder: Path, **changes: Any) -> TrainingConfig:
    return TrainingConfig(**tiny_settings(folder, **changes))


def kill_before_it_saves_again(checkpoint: Path, command: Callable[[list[str]], object], words: list[str]) -> None:
    """Runs a command in a process of its own, which is killed when steps behind this checkpoint are done and not saved.

    On Linux the process is a fork of this one, which need not import torch anew.
    """
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    reached, reports = context.Pipe(duplex=False)
    process = context.Process(target=_run_until_it_saves_again, args=(checkpoint, command, words, reports))
    process.start()
    reports.close()
    try:
        assert reached.poll(300), "it saved no checkpoint twice in five minutes"
        reached.recv()  # an EOFError if it ended before
    finally:
        process.kill()
        process.join()


def _run_until_it_saves_again(
    checkpoint: Path, command: Callable[[list[str]], object], words: list[str], reports: Connection
) -> None:
    save = Checkpoint.save

    def save_once(self: Checkpoint, *arguments: Any) -> None:
        if self.path == checkpoint and checkpoint.exists():
            reports.send("reached")
            threading.Event().wait()
        save(self, *arguments)

    Checkpoint.save = save_once  # type: ignore[method-assign]
    command(words)
