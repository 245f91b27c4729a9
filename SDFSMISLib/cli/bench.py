"""`sdfsmis bench`: seconds and memory per query slice, for our schedule and those of the official code.

Each schedule runs in a process of its own, so that its peak memory is its own, and the schedules take turns, so that
other load affects all alike. Weights are random, which changes neither time nor memory, and the same in all processes,
so that the masks can be compared. Figures are in Resources/Documentation/explanation/measurements.md.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from SDFSMISLib import __version__
from SDFSMISLib.cli.bench_schedules import CHUNK, NAIVE, OURS, OURS_HALF, PARTS, SCHEDULES, SIZES, Job
from SDFSMISLib.errors import InputError
from SDFSMISLib.images.files import write_text

THRESHOLD = 0.5


def run_bench(
    sizes: Sequence[str] = tuple(SIZES),
    queries: int = 16,
    resolution: int | None = None,
    device: str = "auto",
    output: Path | None = None,
    *,
    rounds: int = 1,
    batch_size: int = 8,
    on_stage: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Measure every schedule for every size.

    Args:
        sizes: of `SIZES`: `built-in`, and `sd15`, networks as large as Stable Diffusion 1.5 and DINOv2-base.
        queries: slices that one support segments.
        resolution: side of the slices, pixels; None = that of the size.
        device: as for `load_pipeline`.
        output: file that takes the report as JSON; None = none.
        rounds: how often each schedule has its turn; of all its repetitions the fastest counts.
        batch_size: queries per pass of our schedule.
        on_stage: called before each process with the number of those finished, of all, and what comes.

    Returns:
        the report, as JSON has it; `print_report` shows it. Under `sizes` one entry for each, with `schedules` by name:
        `seconds_per_slice`; `speed_up` over the naive schedule, and `speed_up_over_chunk`; `peak_memory_mib` of the
        process, or of the GPU's memory, and `working_memory_mib`, which leaves out what is there once the networks are
        loaded; `parts`, seconds per slice; `largest_difference` of a probability and `differing_pixels`, a share of all
        mask pixels, each the larger of the comparisons with the naive schedule and the one per chunk.

    Raises:
        InputError: unknown size or device; a number that is too small; too little memory; an output that cannot be
            written.
    """
    _check(sizes, queries, resolution, rounds, batch_size)
    from SDFSMISLib.model.loading import resolve_device

    target = resolve_device(device)
    schedules = [NAIVE, CHUNK, OURS] + ([OURS_HALF] if target.type == "cuda" else [])
    if output is not None:
        _write(output, {})  # what cannot be written is better known before than after
    report: dict[str, Any] = _environment(str(target)) | {"threshold": THRESHOLD, "rounds": rounds, "sizes": []}
    done, total = 0, len(sizes) * rounds * len(schedules)
    for size in sizes:
        side = resolution or SIZES[size]
        measured: dict[str, list[dict[str, Any]]] = {name: [] for name in schedules}
        with tempfile.TemporaryDirectory(prefix="sdfsmis-bench-") as folder:
            for _ in range(rounds):
                for name in schedules:
                    if on_stage is not None:
                        on_stage(done, total, f"{size}, {name}")
                    file = str(Path(folder) / f"{name}.npy")
                    job = Job(size, name, queries, batch_size, side, str(target), file)
                    measured[name].append(_in_process(job))
                    done += 1
            found = {name: np.load(Path(folder) / f"{name}.npy") for name in schedules}
        report["sizes"].append(
            {"size": size, "side": side, "queries": queries, "batch_size": batch_size} | _summary(measured, found)
        )
    if output is not None:
        _write(output, report)
    return report


def print_report(report: dict[str, Any]) -> None:
    """The report as tables on standard output."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=max(Console().width, 100), highlight=False)
    console.print(
        f"sdfsmis {report['version']}, torch {report['torch']}, {report['threads']} threads, {report['device_name']}"
    )
    for entry in report["sizes"]:
        runs = entry["schedules"]
        table = Table(
            title=f"{entry['size']}: {entry['parameters'] / 1e6:.1f} M parameters, {entry['side']} x {entry['side']}, "
            f"{entry['queries']} query slices, 1 support slice",
            title_justify="left",
        )
        table.add_column("schedule")
        for heading in ("s / slice", "speed-up", "peak MiB", "working MiB", "largest difference", "pixels differ"):
            table.add_column(heading, justify="right")
        for name, run in runs.items():
            table.add_row(
                name,
                f"{run['seconds_per_slice']:.4g}",
                f"{run['speed_up']:.2f} x",
                f"{run['peak_memory_mib']:.0f}",
                f"{run['working_memory_mib']:.0f}",
                f"{run['largest_difference']:.1e}",
                f"{100 * run['differing_pixels']:.3g} %",
            )
        console.print(table)
        where = Table(title="Where the time goes, ms per slice", title_justify="left")
        where.add_column("part")
        for name in runs:
            where.add_column(name, justify="right")
        ours = [name for name in runs if name.startswith(OURS)]
        for name in ours:
            where.add_column("share" if len(ours) == 1 else f"share of {name}", justify="right")
        for part in PARTS:
            shares = [100 * runs[name]["parts"][part] / runs[name]["seconds_per_slice"] for name in ours]
            row = [f"{1000 * run['parts'][part]:.1f}" for run in runs.values()] + [f"{share:.0f} %" for share in shares]
            where.add_row(part, *row)
        console.print(where)
        for name in ours:
            rate = runs[name]["matrix_rate"]
            console.print(
                f"{name}: {rate['flop_per_slice'] / 1e9:.4g} GFLOP per slice, {rate['reached'] / 1e12:.3g} TFLOP/s; a "
                f"large matrix product reaches {rate['measured'] / 1e12:.3g} here: {100 * rate['share']:.0f} % of it."
            )
        share = f"{100 * entry['mask_share']:.0f} % of all pixels (random weights)"
        console.print(f"Masks: probability above {report['threshold']}, {share}.\n")
    for name in dict.fromkeys(name for entry in report["sizes"] for name in entry["schedules"]):
        console.print(f"{name}: {SCHEDULES[name]}")


def _check(sizes: Sequence[str], queries: int, resolution: int | None, rounds: int, batch_size: int) -> None:
    if unknown := sorted(set(sizes) - SIZES.keys()) or (["none"] if not sizes else []):
        raise InputError(f"The size {unknown[0]} was given; accepted are {' and '.join(SIZES)}.")
    for what, number in (("queries", queries), ("rounds", rounds), ("slices per batch", batch_size)):
        if number < 1:
            raise InputError(f"{number} {what} were given; 1 or more are accepted.")
    if resolution is not None and (resolution < 64 or resolution % 8):
        raise InputError(f"A resolution of {resolution} was given; a multiple of 8, 64 or more, is accepted.")


def _in_process(job: Job) -> dict[str, Any]:
    environment = dict(os.environ)
    root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "SDFSMISLib.cli.bench_schedules"],
        input=json.dumps(asdict(job)),
        capture_output=True,
        text=True,
        env=environment,
    )
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    if done.returncode in (-9, 137) or "out of memory" in last or "OutOfMemoryError" in last or "MemoryError" in last:
        raise InputError(
            f"The memory did not suffice for {job.size}, {job.schedule}; ask for fewer queries, another size or device."
        )
    raise RuntimeError(f"measuring {job.size}, {job.schedule}, failed: {last}")


def _summary(measured: dict[str, list[dict[str, Any]]], found: dict[str, np.ndarray]) -> dict[str, Any]:
    """One size's part of the report: each schedule's fastest turn, and how far its result is from the references."""
    fastest = {name: min(turns, key=lambda turn: turn["seconds"]) for name, turns in measured.items()}
    schedules = {}
    for name, best in fastest.items():
        difference, differing = 0.0, 0.0
        for reference in (found[NAIVE], found[CHUNK]):
            number = min(len(reference), len(found[name]))
            one, other = reference[:number], found[name][:number]
            difference = max(difference, float(np.abs(one - other).max()))
            differing = max(differing, float(((one > THRESHOLD) != (other > THRESHOLD)).mean()))
        schedules[name] = {
            "seconds_per_slice": best["seconds"],
            "speed_up": fastest[NAIVE]["seconds"] / best["seconds"],
            "speed_up_over_chunk": fastest[CHUNK]["seconds"] / best["seconds"],
            "peak_memory_mib": max(turn["peak"] for turn in measured[name]),
            "working_memory_mib": max(turn["working"] for turn in measured[name]),
            "parts": best["parts"],
            "queries": best["queries"],
            "repeats": [turn["repeats"] for turn in measured[name]],
            "seconds_of_all_turns": [turn["seconds"] for turn in measured[name]],
            "largest_difference": difference,
            "differing_pixels": differing,
        } | ({"matrix_rate": best["matrix_rate"]} if "matrix_rate" in best else {})
    return {
        "parameters": fastest[OURS]["parameters"],
        "mask_share": float((found[CHUNK] > THRESHOLD).mean()),
        "schedules": schedules,
    }


def _environment(device: str) -> dict[str, Any]:
    import torch

    return {
        "version": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "device": device,
        "device_name": torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor(),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _write(path: Path, report: dict[str, Any]) -> None:
    write_text(path, json.dumps(report, indent=1))
