"""`sdfsmis bench`: seconds and memory per query slice, beside the schedules of the official code, all in one run.

Every schedule runs in a process of its own, so that its peak memory is its own, and the schedules take turns, so that a
busy computer disturbs all alike. Weights are random, which changes neither time nor memory, and the same in all
processes, so that the masks can be compared. See Testing/Benchmarks/README.md for figures and what is measured how.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from SDFSMISLib import __version__
from SDFSMISLib.atomic import atomic_output
from SDFSMISLib.errors import InputError

if TYPE_CHECKING:
    import torch

    from SDFSMISLib.model import SDFSMISPipeline, SupportBank

__all__ = ["SIZES", "print_report", "run_bench"]

SIZES = {"built-in": 96, "sd15": 256}  # name -> side of the slices, pixels
NAIVE, CHUNK, OURS, OURS_HALF = "naive", "per chunk", "ours", "ours, bfloat16"
SCHEDULES = {
    NAIVE: "float32, one query at a time, the support encoded anew for each",
    CHUNK: "float32, support encoded once, images and masks of all queries through the autoencoder together, "
    "one U-Net pass per query: how the official code runs a chunk of slices",
    OURS: "float32, this package",
    OURS_HALF: "bfloat16, this package",
}
PARTS = ("VAE encode", "DINOv2", "U-Net, support", "U-Net, query", "VAE decode", "rest")
NAIVE_QUERIES = 4  # each costs the same, so that these tell what more of them would take
LEAST_SECONDS, MOST_REPEATS = 3.0, 20  # a short schedule is repeated this long, and the fastest repetition counts
LONG_PRODUCT = 0.1  # seconds of a matrix product that is large enough
THRESHOLD = 0.5
MIB = 1 << 20


@dataclass(frozen=True)
class Job:
    """What one process measures: `side` in pixels; `probabilities`, the .npy file that takes the result (Q, H, W)."""

    size: str
    schedule: str
    queries: int
    batch_size: int
    side: int
    device: str
    probabilities: str


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


# -- what is measured


def measure(job: Job) -> dict[str, Any]:
    """Run one job in this process.

    Returns:
        `seconds` and `parts` of the fastest repetition, each per slice; `repeats`; memory and `parameters`; for our own
        schedules `matrix_rate`.
    """
    import torch

    from SDFSMISLib.model.memory import keep_freed_memory

    ours = job.schedule in (OURS, OURS_HALF)
    if ours:
        keep_freed_memory()  # as the commands do
    device = torch.device(job.device)
    dtype = torch.bfloat16 if job.schedule == OURS_HALF else torch.float32
    pipeline = new_pipeline(job.size, job.side).to(device, dtype)
    if ours:
        pipeline.for_inference()
    else:
        _attend_in_full(pipeline)
    image, mask, slices = _inputs(job)
    run = {NAIVE: _naive, CHUNK: _per_chunk}.get(job.schedule, _ours)
    with torch.no_grad():
        loaded = _memory(device)[0]
        support_flop, query_flop = _flop(pipeline, image, mask, slices[:1])  # and the warming up
        best: tuple[float, dict[str, float]] | None = None
        began, repeats = time.perf_counter(), 0
        with _watch(pipeline, device) as parts:
            while best is None or (time.perf_counter() - began < LEAST_SECONDS and repeats < MOST_REPEATS):
                parts.clear()
                start = _now(device)
                probabilities = run(pipeline, image, mask, slices, job.batch_size)
                seconds = _now(device) - start
                repeats += 1
                if best is None or seconds < best[0]:
                    best = seconds, dict(parts)
        peak = _memory(device)[1]
    np.save(job.probabilities, probabilities.float().cpu().numpy())
    number = len(slices)
    seconds, spent = best[0] / number, {part: best[1].get(part, 0.0) / number for part in PARTS[:-1]}
    result: dict[str, Any] = {
        "seconds": seconds,
        "parts": spent | {PARTS[-1]: seconds - sum(spent.values())},
        "repeats": repeats,
        "queries": number,
        "peak": peak,
        "working": peak - loaded,
        "parameters": sum(x.numel() for part in pipeline.components.values() for x in part.parameters()),
    }
    if ours:
        flop = support_flop / number + query_flop
        fastest = _matrix_rate(device, dtype)
        result["matrix_rate"] = {
            "flop_per_slice": flop,
            "reached": flop / seconds,
            "measured": fastest,
            "share": flop / seconds / fastest,
        }
    return result


def new_pipeline(size: str, side: int, seed: int = 0) -> SDFSMISPipeline:
    """A pipeline of a size of `SIZES` with random weights, always the same ones."""
    if size == "built-in":
        from SDFSMISLib.model.built_in import new_built_in

        return new_built_in(seed)
    import torch
    from diffusers import AutoencoderKL
    from transformers import Dinov2Config, Dinov2Model

    from SDFSMISLib.model import SDFSMISPipeline, SupportQueryUNet, VisualToTextualTranslator

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            sample_size=side,
        )
        unet = SupportQueryUNet(  # the rest of Stable Diffusion 1.5's configuration is what diffusers assumes
            sample_size=side // 8,
            in_channels=8,
            out_channels=4,
            block_out_channels=(320, 640, 1280, 1280),
            cross_attention_dim=768,
            attention_head_dim=8,
        )
        image_encoder = Dinov2Model(Dinov2Config(image_size=224, patch_size=14))
        return SDFSMISPipeline(vae, unet, image_encoder, VisualToTextualTranslator(), resolution=side)


def _naive(
    pipeline: SDFSMISPipeline, image: torch.Tensor, mask: torch.Tensor, slices: torch.Tensor, _: int
) -> torch.Tensor:
    import torch

    maps = []
    for one in slices.split(1):
        bank = _official_bank(pipeline, image, mask)
        maps.append(pipeline.segment(pipeline.encode_images(one), bank))
    return torch.cat(maps).mean(1)


def _per_chunk(
    pipeline: SDFSMISPipeline, image: torch.Tensor, mask: torch.Tensor, slices: torch.Tensor, _: int
) -> torch.Tensor:
    import torch

    bank = _official_bank(pipeline, image, mask)
    latents = pipeline.encode_images(slices)
    predicted = torch.cat([pipeline.predict(one, bank) for one in latents.split(1)])
    return pipeline.decode(predicted).mean(1)


def _ours(
    pipeline: SDFSMISPipeline, image: torch.Tensor, mask: torch.Tensor, slices: torch.Tensor, batch_size: int
) -> torch.Tensor:
    return pipeline(image, mask, slices, batch_size).probabilities


class _TokenAttention:
    """Cross-attention as in the official code: query, key, value and softmax over its single token, in every pass.

    The token stands where `ConditionAttention` finds what it gives.
    """

    def __init__(self, layer: str) -> None:
        from diffusers.models.attention_processor import AttnProcessor2_0

        self.layer = layer
        self.attend = AttnProcessor2_0()

    def __call__(self, attn: Any, hidden_states: torch.Tensor, *_: Any, passing: Any = None, **__: Any) -> torch.Tensor:
        token = passing.conditions[self.layer]
        return self.attend(attn, hidden_states, token.expand(hidden_states.shape[0], -1, -1))


def _attend_in_full(pipeline: SDFSMISPipeline) -> None:
    pipeline.unet.set_attn_processor(
        {
            name: _TokenAttention(name.removesuffix(".processor")) if ".attn2." in name else processor
            for name, processor in pipeline.unet.attn_processors.items()
        }
    )


def _official_bank(pipeline: SDFSMISPipeline, image: torch.Tensor, mask: torch.Tensor) -> SupportBank:
    token = pipeline.condition_token(image[None], mask[None])
    layers = [name.removesuffix(".processor") for name in pipeline.unet.attn_processors if ".attn2." in name]
    return pipeline.encode_support(image[None], mask[None], dict.fromkeys(layers, token))


# -- how it is measured


@contextmanager
def _watch(pipeline: SDFSMISPipeline, device: torch.device) -> Iterator[dict[str, float]]:
    """Within it, the seconds spent in each part of the pipeline add up in the dictionary."""
    spent: dict[str, float] = {}
    places = [
        (pipeline.vae, "encode", PARTS[0]),
        (pipeline, "condition_token", PARTS[1]),
        (pipeline.unet, "encode_support", PARTS[2]),
        (pipeline.unet, "predict", PARTS[3]),
        (pipeline.vae, "decode", PARTS[4]),
    ]

    def timed(function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = _now(device)
            result = function(*args, **kwargs)
            spent[part] = spent.get(part, 0.0) + _now(device) - start
            return result

        return call

    for owner, name, part in places:
        setattr(owner, name, timed(getattr(owner, name), part))
    try:
        yield spent
    finally:
        for owner, name, _ in places:
            delattr(owner, name)


def _flop(pipeline: SDFSMISPipeline, image: torch.Tensor, mask: torch.Tensor, one: torch.Tensor) -> tuple[int, int]:
    """Floating-point operations of convolutions and matrix products: of the support, and of one query."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(query, key, value)

    on_cpu = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}  # which the counter does not know
    with FlopCounterMode(display=False, custom_mapping=on_cpu) as support:
        if any(isinstance(x, _TokenAttention) for x in pipeline.unet.attn_processors.values()):
            bank = _official_bank(pipeline, image, mask)
        else:
            bank = pipeline.encode_support(image[None], mask[None])
    with FlopCounterMode(display=False, custom_mapping=on_cpu) as query:
        pipeline.segment(pipeline.encode_images(one), bank)
    return support.get_total_flops(), query.get_total_flops()


def _matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a matrix product: the best of several, of matrices that are as large as a
    device needs to show what it can; a processor takes minutes for a large one of a type that it does not know."""
    most, repeats = (8192, 20) if device.type == "cuda" else (2048, 5)
    side = 256
    while True:
        seconds = _product_seconds(side, repeats, device, dtype)
        if side >= most or seconds > LONG_PRODUCT:
            return 2 * side**3 / seconds
        side *= 2


def _product_seconds(side: int, repeats: int, device: torch.device, dtype: torch.dtype) -> float:
    """The shortest time of a product of two square matrices."""
    import torch

    left, right = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(repeats):
        start = _now(device)
        left @ right
        seconds.append(_now(device) - start)
    return min(seconds)


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        import torch

        getattr(torch, device.type).synchronize()
    return time.perf_counter()


def _memory(device: torch.device) -> tuple[float, float]:
    """What is taken now and the most that was, in MiB: of the GPU where it runs there, else of this process."""
    if device.type == "cuda":
        import torch

        return torch.cuda.memory_allocated(device) / MIB, torch.cuda.max_memory_allocated(device) / MIB
    import psutil

    taken = psutil.Process().memory_info()
    return taken.rss / MIB, max(taken.rss / MIB, _peak(taken))


def _peak(taken: Any) -> float:
    if sys.platform == "win32":
        return taken.peak_wset / MIB
    status = Path("/proc/self/status")
    if status.exists():  # unlike getrusage, it does not remember the size of the process that started this one
        return next(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (MIB if sys.platform == "darwin" else 1024)


def _inputs(job: Job) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Support image (1, 3, H, W) and mask (1, H, W), query slices (Q, 3, H, W): smooth noise with a disc."""
    import torch
    import torch.nn.functional as F

    side, number = job.side, min(job.queries, NAIVE_QUERIES) if job.schedule == NAIVE else job.queries
    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(1 + job.queries, 1, 12, 12, generator=random)
    smooth = F.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    disc = ((rows - 0.45 * side) ** 2 + (columns - 0.55 * side) ** 2 < (0.2 * side) ** 2).float()
    images = (2 * (0.6 * smooth + 0.4 * disc) - 1).expand(-1, 3, -1, -1)
    return images[:1], disc[None], images[1 : 1 + number]


# -- around it


def _check(sizes: Sequence[str], queries: int, resolution: int | None, rounds: int, batch_size: int) -> None:
    if unknown := sorted(set(sizes) - SIZES.keys()) or (["none"] if not sizes else []):
        raise InputError(f"The size {unknown[0]} was given; accepted are {' and '.join(SIZES)}.")
    for what, number in (("queries", queries), ("rounds", rounds), ("slices per batch", batch_size)):
        if number < 1:
            raise InputError(f"{number} {what} were asked for; 1 or more are accepted.")
    if resolution is not None and (resolution < 64 or resolution % 8):
        raise InputError(f"A resolution of {resolution} was given; a multiple of 8, 64 or more, is accepted.")


def _in_process(job: Job) -> dict[str, Any]:
    environment = dict(os.environ)
    here = str(Path(__file__).resolve().parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [here, environment.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "SDFSMISLib.bench"],
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
    with atomic_output(path, path.suffix) as temporary:
        temporary.write_text(json.dumps(report, indent=1), encoding="utf-8")


if __name__ == "__main__":
    print(json.dumps(measure(Job(**json.load(sys.stdin)))))
