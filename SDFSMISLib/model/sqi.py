"""Support-Query Interaction (SQI, arXiv 2604.03134): support information injection and query enhancement.

Support information injection (SII): attention processors of the support-query U-Net; query tokens attend to the keys
and values of the support. They are stateless. What a pass of the U-Net reads and records travels in `PassValues`,
which the caller passes through diffusers' ``cross_attention_kwargs``, so two runs at once cannot mix.

Query enhancement (QE): the support's prototypes find the query's own prototype in its latent.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention

FOREGROUND_CONFIDENCE = 0.7
BACKGROUND_CONFIDENCE = 0.6
TOP_K_SHARE = 0.1875  # of the latent width, as in the official code: 6 of 32


def support_prototypes(latents: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Masked averages of support latents z with the resized mask m: ``sum(m z) / sum(m)``, and the same with 1 - m.

    Args:
        latents: (N, c, h, w).
        masks: (N, H, W), 0 to 1; resized to h x w bilinearly with aligned corners, and not binarised.

    Returns:
        foreground and background prototypes, (N, c) each.

    Example:
        >>> latents = torch.tensor([[[[1.0, 1.0], [3.0, 3.0]]]])
        >>> foreground, background = support_prototypes(latents, torch.tensor([[[0.0, 0.0], [1.0, 1.0]]]))
        >>> round(foreground.item(), 3), round(background.item(), 3)
        (3.0, 1.0)
    """
    soft = F.interpolate(masks[:, None].to(latents), size=latents.shape[-2:], mode="bilinear", align_corners=True)
    return _weighted_mean(latents, soft), _weighted_mean(latents, 1 - soft)


def query_probabilities(latents: torch.Tensor, foreground: torch.Tensor, background: torch.Tensor) -> torch.Tensor:
    """Softmax over the cosine similarities of every query position to the two support prototypes, without temperature.

    Args:
        latents: (Q, c, h, w).
        foreground, background: prototypes (1 or Q, S, c), one pair per shot; their means over the S shots are used.

    Returns:
        (Q, 2, h, w), 0 to 1: background, foreground. With two cosines in [-1, 1] none exceeds 0.88.
    """
    means = torch.stack([background.mean(1), foreground.mean(1)], dim=1)  # (1 or Q, 2, c)
    similarity = F.cosine_similarity(latents[:, None].float(), means[..., None, None].float(), dim=2, eps=1e-8)
    return similarity.softmax(dim=1)


def query_prototypes(latents: torch.Tensor, probabilities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Foreground and background prototypes of each query: the mean latent over its confident positions.

    Confident are foreground probabilities above `FOREGROUND_CONFIDENCE` and background probabilities above
    `BACKGROUND_CONFIDENCE`. Without any, the k most probable positions are used, k = max(1, int(`TOP_K_SHARE` * w)).
    (The official code's k is 0 for w < 6, which gives NaN.)

    Args:
        latents: (Q, c, h, w).
        probabilities: (Q, 2, h, w), from `query_probabilities`.

    Returns:
        foreground and background prototypes, (Q, c) each.
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
    """What one pass of the U-Net reads and records. C: width of a layer; N: its tokens per image.

    Attributes:
        conditions: output of each cross-attention, by layer name, (1 or B, 1, C). With a single condition token the
            softmax over tokens is 1, so the output does not depend on the image.
        bank_keys, bank_values: support keys and values of each self-attention, by layer name, (1 or B, T, C), T = shots
            times N. Empty in the support pass.
        own_keys, own_values: filled by the pass if `record` is set: its own keys and values, (B, N, C).
        record: whether the pass records its keys and values; the support pass does.
    """

    conditions: dict[str, torch.Tensor]
    bank_keys: dict[str, torch.Tensor] = field(default_factory=dict)
    bank_values: dict[str, torch.Tensor] = field(default_factory=dict)
    own_keys: dict[str, torch.Tensor] = field(default_factory=dict)
    own_values: dict[str, torch.Tensor] = field(default_factory=dict)
    record: bool = False


class SupportQueryAttention:
    """Self-attention of the query over its own tokens and all tokens of all S shots (SII).

    With the query's q, k, v and the support's keys K_s and values V_s of the same layer,

        softmax(q [k; K_1; ...; K_S]^T / sqrt(d)) [v; V_1; ...; V_S],   d = channels per head.

    There is no mask and no positional term, so the order of the shots has no effect, and queries can be batched since
    each attends to the whole bank. (The paper writes SII as a cross-attention after the self-attention; its code has
    this one attention.)

    Args:
        layer: name of the attention layer, the key in `PassValues`.

    Example:
        >>> attention = Attention(query_dim=8, heads=2, dim_head=4)
        >>> bank = {"layer": torch.randn(1, 6, 8)}
        >>> passing = PassValues(conditions={}, bank_keys=bank, bank_values=bank)
        >>> tuple(SupportQueryAttention("layer")(attention, torch.randn(3, 4, 8), passing=passing).shape)
        (3, 4, 8)
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
        """(B, N, C) of `hidden_states` (B, N, C); the other arguments are diffusers' and unused but `passing`."""
        batch, tokens, _ = hidden_states.shape
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        if passing is not None and passing.record:
            passing.own_keys.setdefault(self.layer, key)  # gradient checkpointing runs a pass twice
            passing.own_values.setdefault(self.layer, value)
        if passing is not None and passing.bank_keys:
            key = torch.cat([key, passing.bank_keys[self.layer].expand(batch, -1, -1)], dim=1)
            value = torch.cat([value, passing.bank_values[self.layer].expand(batch, -1, -1)], dim=1)
        query, key, value = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (query, key, value))
        mixed = F.scaled_dot_product_attention(query, key, value)  # (B, heads, N, d)
        mixed = mixed.transpose(1, 2).reshape(batch, tokens, -1)
        return attn.to_out[1](attn.to_out[0](mixed))


class ConditionAttention:
    """Cross-attention to the single condition token: the constant of `PassValues.conditions`, (1 or B, 1, C), at every
    position.

    Args:
        layer: name of the attention layer.
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
        assert passing is not None, "the support-query U-Net is run through its own methods"
        return passing.conditions[self.layer]
