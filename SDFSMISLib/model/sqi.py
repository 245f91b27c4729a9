"""Query enhancement (QE, part of SQI): prototypes of the support's latents find the query's own.

Attention processors of the support-query U-Net (SQI's information injection; paper section on SQI).

Both are stateless: what a pass needs or leaves behind travels in `PassValues`, which the caller hands in through
diffusers' `cross_attention_kwargs`. Two runs at once therefore cannot mix.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention

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


@dataclass
class PassValues:
    """What travels with one U-Net pass.

    Attributes:
        conditions: output of each cross-attention, by layer name, (1 or B, 1, C). With a single condition token the
            softmax over tokens is 1, so this output does not depend on the image and is computed once per run.
        bank_keys, bank_values: support keys and values of each self-attention, by layer name, (1 or B, T, C); T = shots
            x tokens. Empty in the support pass.
        own_keys, own_values: filled by the pass where `record` is set: this pass's own keys and values, (B, N, C).
        record: whether the pass leaves its keys and values behind (the support pass does).
    """

    conditions: dict[str, torch.Tensor]
    bank_keys: dict[str, torch.Tensor] = field(default_factory=dict)
    bank_values: dict[str, torch.Tensor] = field(default_factory=dict)
    own_keys: dict[str, torch.Tensor] = field(default_factory=dict)
    own_values: dict[str, torch.Tensor] = field(default_factory=dict)
    record: bool = False


class SupportQueryAttention:
    """Self-attention over the query's own tokens and all tokens of all shots.

    `softmax(q [k; K_1; ...; K_S]^T / sqrt(d)) [v; V_1; ...; V_S]`: no mask and no positional term, so the order of the
    concatenation has no effect, and queries may be batched as each sees the whole bank.
    """

    def __init__(self, layer: str) -> None:
        self.layer = layer

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        passing: PassValues | None = None,
    ) -> torch.Tensor:
        batch, tokens, _ = hidden_states.shape
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        if passing is not None and passing.record:
            passing.own_keys.setdefault(self.layer, key)  # a checkpointed pass comes by again when gradients are made
            passing.own_values.setdefault(self.layer, value)
        if passing is not None and passing.bank_keys:
            key = torch.cat([key, passing.bank_keys[self.layer].expand(batch, -1, -1)], dim=1)
            value = torch.cat([value, passing.bank_values[self.layer].expand(batch, -1, -1)], dim=1)
        query, key, value = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (query, key, value))
        mixed = F.scaled_dot_product_attention(query, key, value)  # (B, heads, N, d)
        mixed = mixed.transpose(1, 2).reshape(batch, tokens, -1)
        return attn.to_out[1](attn.to_out[0](mixed))


class ConditionAttention:
    """Cross-attention to the single condition token: a constant of the run, (1 or B, 1, C), added to every position."""

    def __init__(self, layer: str) -> None:
        self.layer = layer

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        passing: PassValues | None = None,
    ) -> torch.Tensor:
        assert passing is not None, "the support-query U-Net is run through its own methods"
        return passing.conditions[self.layer]
