"""What is measured of a run of the networks: seconds of each part, floating-point operations, memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from SDFSMISLib.model import SDFSMISPipeline, SupportBank

__all__ = ["PARTS", "flop", "matrix_rate", "memory", "now", "watch"]

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
