"""Training on one GPU that is at hand for some minutes: it ends by the clock, and leaves weights every minute.

::

    python Testing/gpu/train.py --volumes .gpu/volumes.npz --output OUT --seconds 560

What is trained, and on what, is a configuration, `built_in_next` by default, with the volumes of `pack.py`; here stands
only what a large GPU changes. OUT gets four files: ``weights.tar``, a pipeline folder of float16, new every minute;
``log.jsonl`` and ``episodes.png``, as `sdfsmis train` writes them; ``training.json``, what ran and how fast.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tarfile
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from pack import read_volumes

from SDFSMISLib.images.files import atomic_output, write_text
from SDFSMISLib.training.config import TrainingConfig
from SDFSMISLib.training.learner import EpisodeLearner
from SDFSMISLib.training.trainer import learn_only, new_optimizer, starting_pipeline, train
from SDFSMISLib.training.volumes import EpisodeBatch, PreviousSlices

GPU: dict[str, Any] = {
    "cases": "",  # the volumes come from the packed file
    "label_maps": "",
    "output": "",  # a folder for the time being
    "on_device": True,
    "precision": "bf16",
    "half": True,
    "warmup": 200,
    "workers": 14,
    "synthetic_count": 120,
    "write_every": 1.0,
    "picture_every": 500,
    "save_every": 1_000_000,  # a checkpoint is of no use on a machine that is gone
}
BATCHES = (32, 64, 96, 128, 192, 256)
LONGEST_STEP = 0.1  # seconds of a step of the largest batch that is taken: some 5000 steps in 8.5 minutes
PROBE_STEPS = 3
RATE, RATE_BATCH, RATE_POWER = 6e-4, 8, 0.25  # the rate of `built_in_next`; 1e-3 for 64, as in `built_in_gpu`
RESERVE = 6.0  # seconds at the end, for the last files
LEAST = 1.0  # seconds of training
LINE_EVERY = 10.0  # seconds


@dataclass
class Report:
    """``training.json``: what ran and how fast."""

    device: str
    torch: str = torch.__version__
    volumes: int = 0
    seconds_before: float = 0.0  # until training began
    probe: dict[int, float] = field(default_factory=dict)  # batch -> seconds of a step, without making episodes
    batch: int = 0
    rate: float = 0.0
    minutes: float = 0.0
    steps: int = 0
    seconds: float = 0.0  # of training until now
    steps_per_second: float = 0.0
    peak_memory_gib: float = 0.0
    last: dict[str, float] = field(default_factory=dict)  # line of the log


def fitting_batch(config: TrainingConfig, device: torch.device, report: Report) -> int:
    """The largest of `BATCHES` of which a step takes up to `LONGEST_STEP`, by trial."""
    for batch in BATCHES:
        try:
            report.probe[batch] = seconds = _step_seconds(config, batch, device)
        except torch.cuda.OutOfMemoryError:
            break
        print(f"a step of {batch} episodes takes {1000 * seconds:.0f} ms", flush=True)
        if seconds > LONGEST_STEP:
            break
    fitting = [batch for batch, seconds in report.probe.items() if seconds <= LONGEST_STEP]
    return max(fitting, default=BATCHES[0])


def _step_seconds(config: TrainingConfig, batch: int, device: torch.device) -> float:
    """Of a step on random episodes in which the neighbour's mask is predicted too, the longest kind."""
    pipeline = starting_pipeline(config).to(device)
    for network in (pipeline.vae, pipeline.unet):
        network.to(memory_format=torch.channels_last)
    learn_only(pipeline, config.learned)
    optimizer = new_optimizer(pipeline, config)
    learner = EpisodeLearner(pipeline, config)
    accelerator = Accelerator(mixed_precision=config.precision)
    model, ready = accelerator.prepare(learner, optimizer)
    side = pipeline.config.resolution
    slices, masks = torch.rand(2, batch, 4, side, side, device=device).unbind()
    masks, moves = (masks > 0.5).float(), torch.randn(batch, side, side, 2, device=device)
    before = PreviousSlices(slices[:, 2], masks[:, 2], moves, torch.ones(batch, dtype=torch.bool, device=device))
    episodes = EpisodeBatch(slices[:, :2], masks[:, :2], slices[:, 3], masks[:, 3], 1, moves, before)
    shortest = float("inf")
    for _ in range(2 + PROBE_STEPS):
        began = _now(device)
        accelerator.backward(model(episodes).loss)
        ready.step()
        ready.zero_grad(set_to_none=True)
        shortest = min(shortest, _now(device) - began)
    return shortest


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()


class Output:
    """The files that come back, each whole at any moment.

    Args:
        folder: that takes them.
        work: folder of the run.
    """

    def __init__(self, folder: Path, work: Path, report: Report) -> None:
        self.folder, self.work, self.report = folder, work, report
        folder.mkdir(parents=True, exist_ok=True)

    def keep(self, pipeline: Path) -> None:
        """A pipeline folder as ``weights.tar``, and the log until now."""
        with atomic_output(self.folder / "weights.tar", ".tar") as part, tarfile.open(part, "w") as archive:
            archive.add(pipeline, "pipeline")
        self.write_report()

    def write_report(self) -> None:
        log = self.work / "log.jsonl"
        if log.exists():
            shutil.copy(log, self.folder / "log.jsonl")
            self.report.last = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])
        for picture in sorted((self.work / "pictures").glob("*.png"))[-1:]:
            shutil.copy(picture, self.folder / "episodes.png")
        if torch.cuda.is_available():
            self.report.peak_memory_gib = torch.cuda.max_memory_allocated() / (1 << 30)
        write_text(self.folder / "training.json", json.dumps(asdict(self.report), indent=1))


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--volumes", type=Path, required=True, help="the file that pack.py made")
    parser.add_argument("--output", type=Path, required=True, help="folder for what comes back")
    parser.add_argument("--seconds", type=float, default=560.0, help="of this program, from its start to its end")
    parser.add_argument("--config", type=Path, default=Path("built_in_next"), help="as in sdfsmis train")
    parser.add_argument("--changes", default="{}", help="values of the configuration, as JSON")
    given = parser.parse_args(words)

    began = psutil.Process().create_time()  # loading the libraries takes its time too
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    report = Report(torch.cuda.get_device_name() if device.type == "cuda" else "cpu")
    scans = read_volumes(given.volumes)
    report.volumes = len(scans)
    print(f"{report.volumes} volumes on {report.device} after {time.time() - began:.0f} s", flush=True)
    changes = json.loads(given.changes)
    with tempfile.TemporaryDirectory(prefix="sdfsmis-training-") as work:
        settings = GPU | {"output": work} | changes
        config = TrainingConfig.read(given.config, **settings)
        report.batch = changes.get("batch") or fitting_batch(config, device, report)
        report.rate = changes.get("rate") or RATE * (report.batch / RATE_BATCH) ** RATE_POWER
        report.seconds_before = time.time() - began
        report.minutes = max(given.seconds - RESERVE - report.seconds_before, LEAST) / 60
        config = TrainingConfig.read(
            given.config,
            **settings | {"batch": report.batch, "rate": report.rate, "minutes": report.minutes},
        )
        output = Output(given.output, Path(work), report)
        last_line = time.monotonic()

        def progress(done: int, total: int, text: str) -> None:
            nonlocal last_line
            report.steps, report.seconds = report.steps + 1, done
            report.steps_per_second = report.steps / max(done, 1)
            if time.monotonic() - last_line > LINE_EVERY:
                last_line = time.monotonic()
                print(f"{done} of {total} s, step {report.steps}: {text}", flush=True)

        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()  # without those of the trial of batches
        train(config, progress, scans=scans, written=output.keep)
    print(json.dumps(asdict(report)), flush=True)


if __name__ == "__main__":
    main()
