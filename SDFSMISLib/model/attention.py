"""Attention processors of the support-query U-Net (SQI's information injection; paper section on SQI).

Both are stateless: what a pass needs or leaves behind travels in `PassValues`, which the caller hands in through
diffusers' `cross_attention_kwargs`. Two runs at once therefore cannot mix.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention


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
