"""The schedules that `sdfsmis bench` compares, and the program that measures one of them.

The program reads a `Job` from standard input and prints seconds of each part, floating-point operations and memory,
both as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from SDFSMISLib.model import SDFSMISPipeline, SupportBank

PARTS = ("VAE encode", "DINOv2", "U-Net, support", "U-Net, query", "VAE decode", "rest")
LONG_PRODUCT = 0.1  # seconds of a matrix product that is large enough
MIB = 1 << 20


@contextmanager
def watch(pipeline: SDFSMISPipeline, device: torch.device) -> Iterator[dict[str, float]]:
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
            start = now(device)
            result = function(*args, **kwargs)
            spent[part] = spent.get(part, 0.0) + now(device) - start
            return result

        return call

    for owner, name, part in places:
        setattr(owner, name, timed(getattr(owner, name), part))
    try:
        yield spent
    finally:
        for owner, name, _ in places:
            delattr(owner, name)


def flop(pipeline: SDFSMISPipeline, encode_support: Callable[[], SupportBank], one: torch.Tensor) -> tuple[int, int]:
    """Floating-point operations of convolutions and matrix products: of the support, and of one query (1, 3, H, W)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(query, key, value)

    on_cpu = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}  # which the counter does not know
    with FlopCounterMode(display=False, custom_mapping=on_cpu) as support:
        bank = encode_support()
    with FlopCounterMode(display=False, custom_mapping=on_cpu) as query:
        pipeline.segment(pipeline.encode_images(one), bank)
    return support.get_total_flops(), query.get_total_flops()


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
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
        start = now(device)
        left @ right
        seconds.append(now(device) - start)
    return min(seconds)


def now(device: torch.device) -> float:
    if device.type != "cpu":
        import torch

        getattr(torch, device.type).synchronize()
    return time.perf_counter()


def memory(device: torch.device) -> tuple[float, float]:
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


SIZES = {"built-in": 96, "sd15": 256}  # name -> side of the slices, pixels
NAIVE, CHUNK, OURS, OURS_HALF = "naive", "per chunk", "ours", "ours, bfloat16"
SCHEDULES = {
    NAIVE: "float32, one query at a time, the support encoded anew for each",
    CHUNK: "float32, support encoded once, images and masks of all queries through the autoencoder together, "
    "one U-Net pass per query: how the official code runs a chunk of slices",
    OURS: "float32, this package",
    OURS_HALF: "bfloat16, this package",
}
NAIVE_QUERIES = 4  # each costs the same, so that these tell what more of them would take
LEAST_SECONDS, MOST_REPEATS = 3.0, 20  # a short schedule is repeated this long, and the fastest repetition counts


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
        loaded = memory(device)[0]
        encode = pipeline.encode_support if ours else partial(_official_bank, pipeline)
        support_flop, query_flop = flop(pipeline, partial(encode, image[None], mask[None]), slices[:1])  # and warms up
        best: tuple[float, dict[str, float]] | None = None
        began, repeats = time.perf_counter(), 0
        with watch(pipeline, device) as parts:
            while best is None or (time.perf_counter() - began < LEAST_SECONDS and repeats < MOST_REPEATS):
                parts.clear()
                start = now(device)
                probabilities = run(pipeline, image, mask, slices, job.batch_size)
                seconds = now(device) - start
                repeats += 1
                if best is None or seconds < best[0]:
                    best = seconds, dict(parts)
        peak = memory(device)[1]
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
        work = support_flop / number + query_flop
        fastest = matrix_rate(device, dtype)
        result["matrix_rate"] = {
            "flop_per_slice": work,
            "reached": work / seconds,
            "measured": fastest,
            "share": work / seconds / fastest,
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
        bank = _official_bank(pipeline, image[None], mask[None])
        maps.append(pipeline.segment(pipeline.encode_images(one), bank))
    return torch.cat(maps).mean(1)


def _per_chunk(
    pipeline: SDFSMISPipeline, image: torch.Tensor, mask: torch.Tensor, slices: torch.Tensor, _: int
) -> torch.Tensor:
    import torch

    bank = _official_bank(pipeline, image[None], mask[None])
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


def _official_bank(pipeline: SDFSMISPipeline, images: torch.Tensor, masks: torch.Tensor) -> SupportBank:
    """Of support images (1, 1, 3, H, W) and masks (1, 1, H, W)."""
    token = pipeline.condition_token(images, masks)
    layers = [name.removesuffix(".processor") for name in pipeline.unet.attn_processors if ".attn2." in name]
    return pipeline.encode_support(images, masks, dict.fromkeys(layers, token))


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


if __name__ == "__main__":
    print(json.dumps(measure(Job(**json.load(sys.stdin)))))
