"""Query enhancement (QE, part of SQI): prototypes of the support's latents find the query's own."""

from __future__ import annotations

import torch
import torch.nn.functional as F

FOREGROUND_CONFIDENCE = 0.7
BACKGROUND_CONFIDENCE = 0.6
TOP_K_SHARE = 0.1875  # of the latent width, as the official code has it: 6 of 32


def support_prototypes(latents: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Masked averages of support latents.

    Args:
        latents: (N, c, h, w).
        masks: (N, H, W), 0 to 1; resized to h x w bilinearly with aligned corners, and left soft.

    Returns:
        foreground and background prototypes, (N, c) each.
    """
    soft = F.interpolate(masks[:, None].to(latents), size=latents.shape[-2:], mode="bilinear", align_corners=True)
    return _weighted_mean(latents, soft), _weighted_mean(latents, 1 - soft)


def query_probabilities(latents: torch.Tensor, foreground: torch.Tensor, background: torch.Tensor) -> torch.Tensor:
    """Softmax of the cosine similarities of every query position to both support prototypes, without temperature.

    Args:
        latents: (Q, c, h, w).
        foreground, background: (1 or Q, S, c), one pair per shot; their means over the shots are used.

    Returns:
        (Q, 2, h, w): background, foreground.
    """
    means = torch.stack([background.mean(1), foreground.mean(1)], dim=1)  # (1 or Q, 2, c)
    similarity = F.cosine_similarity(latents[:, None].float(), means[..., None, None].float(), dim=2, eps=1e-8)
    return similarity.softmax(dim=1)


def query_prototypes(latents: torch.Tensor, probabilities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Foreground and background prototypes of each query, (Q, c) each.

    The mean over the positions that are confident enough, else over the k most probable; k follows the latent *width*
    (the official code's k is 0 below width 6 and gives NaN; here it is at least 1).
    """
    background = _confident_mean(latents, probabilities[:, 0], BACKGROUND_CONFIDENCE)
    foreground = _confident_mean(latents, probabilities[:, 1], FOREGROUND_CONFIDENCE)
    return foreground, background


def _confident_mean(latents: torch.Tensor, probability: torch.Tensor, level: float) -> torch.Tensor:
    k = max(1, int(TOP_K_SHARE * latents.shape[-1]))
    flat = probability.flatten(1)  # (Q, N)
    confident = flat > level
    top = torch.zeros_like(confident).scatter(1, flat.topk(k, dim=1).indices, True)
    chosen = torch.where(confident.any(dim=1, keepdim=True), confident, top).to(latents)
    return torch.einsum("qcn,qn->qc", latents.flatten(2), chosen) / chosen.sum(1, keepdim=True)


def _weighted_mean(latents: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return (latents * weights).sum((-2, -1)) / (weights.sum((-2, -1)) + 1e-6)
