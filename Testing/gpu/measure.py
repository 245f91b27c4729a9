"""What one GPU does with the trained pipelines: speed beside the official schedule, and too little memory.

::

    python Testing/gpu/measure.py --output OUT --seconds 230 [--weights weights.tar]

Each part runs in a process of its own, in this order, and OUT gets its JSON file as soon as it is done, so that one
that fails or takes too long costs none of the others:

- ``memory.json``: an example is segmented in one batch, then again with less memory than that batch takes. The
  segmenter has to halve its batch, and to find the same.
- ``bench-built-in.json``, ``bench-sd15.json``: `sdfsmis bench`, float32 and bfloat16, random weights.

``measured.json`` tells of each part whether it ended well, and how long it took.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from SDFSMISLib import Segmenter, SupportSet, Volume
from SDFSMISLib.images.files import write_text
from SDFSMISLib.images.geometry import Geometry
from SDFSMISLib.inference.networks import Networks, is_out_of_memory

SLICES, SIDE = 256, 192
MEMORY_SHARE = 0.5  # of what the whole batch needs beyond the weights


def example(slices: int = SLICES, side: int = SIDE) -> tuple[Volume, SupportSet]:
    """A bright ellipsoid in noise, painted on the middle slice."""
    z, y, x = np.mgrid[:slices, :side, :side]
    inside = ((z - slices / 2) / slices) ** 2 + ((y - side / 2) / side) ** 2 + ((x - side / 2) / side) ** 2 < 0.09
    noise = np.random.default_rng(0).normal(0, 10, inside.shape)
    geometry = Geometry(inside.shape, (1.0, 1.0, 1.0), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    scan = Volume((100 * inside + noise).astype(np.float32), geometry)
    return scan, SupportSet.from_labelmap(scan, Volume(inside.astype(np.uint8), geometry), slices=[slices // 2], axis=0)


def measure_memory(model: str, slices: int = SLICES, side: int = SIDE) -> dict[str, Any]:
    """A run whose batch does not fit beside one whose batch does.

    On a CPU, whose memory nobody limits here, there is the first run only.
    """
    segmenter = Segmenter.from_pretrained(model)
    device = torch.device(segmenter.device)
    scan, support = example(slices, side)
    refused: list[int] = []
    in_parts = Networks.in_parts

    def counted(self: Networks, rows: Any, work: Any, batch_rows: int = 1) -> Any:
        def watched(part: Any) -> Any:
            try:
                return work(part)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    refused.append(len(part))
                raise

        return in_parts(self, rows, watched, batch_rows)

    def run() -> tuple[np.ndarray, float]:
        began = time.monotonic()
        found = segmenter.segment(scan, support, "independent", batch_size=slices)
        return found.labelmap.voxels, time.monotonic() - began

    run()  # loads the libraries
    is_gpu = device.type == "cuda"
    taken = torch.cuda.memory_allocated(device) if is_gpu else 0
    if is_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    whole, seconds = run()
    report = {"device": str(device), "slices": slices, "voxels": int(whole.sum()), "seconds": seconds}
    if is_gpu:
        peak = torch.cuda.max_memory_allocated(device)
        allowed = taken + MEMORY_SHARE * (peak - taken)
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(allowed / total, device)
        Networks.in_parts = counted  # type: ignore[method-assign, assignment]
        halved, slower = run()
        report |= {
            "peak_mib": peak / (1 << 20),
            "allowed_mib": allowed / (1 << 20),
            "refused_batches": refused,
            "seconds_with_less": slower,
            "differing_voxels": int((whole != halved).sum()),
        }
    return report


def main(words: Sequence[str] | None = None) -> None:
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for what comes back")
    parser.add_argument("--weights", type=Path, help="the weights.tar of train.py; by default the built-in weights")
    parser.add_argument("--seconds", type=float, default=230.0, help="after which no further part is begun or goes on")
    parser.add_argument("--queries", type=int, default=32, help="slices that one support segments, in bench")
    parser.add_argument("--part", choices=["memory"], help=argparse.SUPPRESS)
    parser.add_argument("--slices", type=int, default=SLICES, help="of the example that is segmented")
    given = parser.parse_args(words)
    given.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="sdfsmis-weights-") as folder:
        model = "built-in"
        if given.weights:
            with tarfile.open(given.weights) as archive:
                archive.extraction_filter = getattr(tarfile, "data_filter", None)  # before Python 3.11.4 there is none
                archive.extractall(folder)
            model = str(Path(folder) / "pipeline")
        if given.part == "memory":
            report = measure_memory(model, given.slices)
            write_text(given.output / "memory.json", json.dumps(report, indent=1))
            return
        here, out = [sys.executable, str(Path(__file__).resolve())], str(given.output)
        weights = ["--weights", str(given.weights)] if given.weights else []
        bench = [sys.executable, "-m", "SDFSMISLib.cli", "bench", "--queries", str(given.queries)]
        parts = {"memory": [*here, "--part", "memory", "--output", out, "--slices", str(given.slices), *weights]}
        for size in ("built-in", "sd15"):
            parts[f"bench-{size}"] = [*bench, "--size", size, "--output", f"{out}/bench-{size}.json"]
        measured = {}
        for name, command in parts.items():
            start = time.monotonic()
            measured[name] = {"result": _run(command, given.seconds - (start - began))}
            measured[name]["seconds"] = round(time.monotonic() - start, 1)
            print(name, measured[name], flush=True)
            write_text(given.output / "measured.json", json.dumps(measured, indent=1))


def _run(command: Sequence[str], seconds: float) -> str:
    """``done``, or what went wrong."""
    if seconds <= 0:
        return "not begun: the time was up"
    try:
        code = subprocess.run(command, timeout=seconds).returncode
    except subprocess.TimeoutExpired:
        return "ended: the time was up"
    return "done" if code == 0 else f"failed with exit code {code}"


if __name__ == "__main__":
    main()
