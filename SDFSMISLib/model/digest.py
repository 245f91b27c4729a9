"""The fingerprint of a pipeline's weights, for provenance: the same weights give the same digits."""

from __future__ import annotations

import hashlib

import torch
from diffusers import DiffusionPipeline

__all__ = ["weights_digest"]


def weights_digest(pipeline: DiffusionPipeline) -> str:
    """sha256 (hex) of every weight of every network, by name, in the type in which they were loaded."""
    digest = hashlib.sha256()
    networks = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    for name, network in sorted(networks.items()):
        for key, tensor in sorted(network.state_dict().items()):
            digest.update(f"{name}.{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
