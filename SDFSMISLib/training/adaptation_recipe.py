"""How weights learn from scans without labels, as a configuration of the trainer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from SDFSMISLib.model.pipeline import SDFSMISPipeline
from SDFSMISLib.training.config import TrainingConfig

__all__ = ["recipe"]

MOST_WORKERS = 8
COMMON: dict[str, Any] = {
    "cases": "",
    "mix": {"propagate": 0.5, "cross": 0.5},
    "across": "registration",
    "label_share": 0.7,
    "rollout": 0.4,
    "average": 0.99,
}
OURS: dict[str, Any] = {"synthetic_share": 0.2, "synthetic_count": 12, "batch": 8, "rate": 2e-4, "half": False}
LARGE: dict[str, Any] = {  # Stable Diffusion's size: as the paper trains
    "synthetic_share": 0.0,
    "synthetic_count": 1,
    "batch": 1,
    "accumulate": 4,
    "rate": 1e-5,
    "translator_rate": 5.0,
    "learned": ("unet", "translator"),
    "losses": {"latent": 1.0},
    "checkpointing": True,
}


def recipe(pipeline: SDFSMISPipeline, model: str, output: Path, device: torch.device, seed: int) -> TrainingConfig:
    """The configuration for weights of this kind, all but the number of steps; `output` holds the trainer's files."""
    ours = pipeline.vae.config.latent_channels == pipeline.latent_factor**2
    on_gpu = device.type == "cuda"
    settings = COMMON | (OURS if ours else LARGE)
    settings |= {"start": model, "output": str(output), "seed": seed, "workers": _workers(on_gpu)}
    return TrainingConfig(**settings, precision="bf16" if on_gpu else "no", save_every=1_000_000)


def _workers(on_gpu: bool) -> int:
    """Processes that make episodes; none where they cannot share the scans' memory, or would take the only core."""
    if not hasattr(os, "fork"):
        return 0
    return min(MOST_WORKERS, (os.cpu_count() or 1) - 1) if on_gpu else min(1, torch.get_num_threads() - 1)
