"""Stable Diffusion's U-Net with a second input convolution for supports and a bank of their keys and values (SQI)."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ModelMixin, UNet2DConditionModel  # noqa: F401 (diffusers finds how to load a class by the bases its module shows)
from torch import nn

from SDFSMISLib.model.sqi import ConditionAttention, PassValues, SupportQueryAttention

HANDED_ON = 0.25  # of a registered neighbour's mask latent, to begin with
TIMESTEP = 1  # one step without noise: for segmentation the timestep is fixed


@dataclass(frozen=True)
class SupportBank:
    """All that the queries need of the supports; a value, handed from call to call.

    B is 1 (one support set for all queries) or the number of queries (one support set each); S shots; T = S x tokens.

    Attributes:
        keys, values: by self-attention layer, (B, T, C).
        conditions: by cross-attention layer, (B, 1, C).
        foreground, background: prototypes of each shot, (B, S, c), c latent channels.
        likeness: see `likeness_table`, (B, bins), of the shots that were painted; None where the network does not ask.
    """

    keys: dict[str, torch.Tensor]
    values: dict[str, torch.Tensor]
    conditions: dict[str, torch.Tensor]
    foreground: torch.Tensor
    background: torch.Tensor
    likeness: torch.Tensor | None = None

    @property
    def shots(self) -> int:
        return self.foreground.shape[1]

    def joined(self, other: SupportBank) -> SupportBank:
        """The bank with the shots of both; condition and likeness stay those of `self`."""
        return SupportBank(
            keys={name: torch.cat([x, other.keys[name]], dim=1) for name, x in self.keys.items()},
            values={name: torch.cat([x, other.values[name]], dim=1) for name, x in self.values.items()},
            conditions=self.conditions,
            foreground=torch.cat([self.foreground, other.foreground], dim=1),
            background=torch.cat([self.background, other.background], dim=1),
            likeness=self.likeness,
        )

    def rows(self, index: torch.Tensor | list[int]) -> SupportBank:
        """The banks of some rows of the batch, in the order of `index`."""
        return SupportBank(
            keys={name: x[index] for name, x in self.keys.items()},
            values={name: x[index] for name, x in self.values.items()},
            conditions={name: x[index] for name, x in self.conditions.items()},
            foreground=self.foreground[index],
            background=self.background[index],
            likeness=None if self.likeness is None else self.likeness[index],
        )


@dataclass(frozen=True)
class Hints:
    """What else a network may be told of each query; ours, not the paper's. Each may be missing.

    Attributes:
        neighbour: (Q, 2c, h, w), image latent and mask latent of a finished neighbouring slice, registered onto it.
        likeness: (Q, c, h, w), latent of its likeness to the painted structure.
    """

    neighbour: torch.Tensor | None = None
    likeness: torch.Tensor | None = None


class SupportQueryUNet(UNet2DConditionModel):
    """`UNet2DConditionModel` with `conv_in_ref`, the input convolution of the support pass.

    Both input convolutions take twice the latent channels: `conv_in` the query latent and its prototype spread over
    space, `conv_in_ref` the support's image latent and mask latent. `in_channels` of the configuration is that doubled
    number.

    Args:
        neighbour: whether there is a third, `conv_in_neighbour`, for image latent and mask latent of a finished
            neighbouring slice that lies pixel on pixel with the query; its output is added to that of `conv_in`. Its
            mask latent also goes to the output, through `conv_out_neighbour`: what the network has to learn is the
            correction. Ours, not the paper's: attention to the bank finds what looks alike, convolutions see what has
            moved.
        likeness: whether there is a fourth, `conv_in_likeness`, for the latent of the query's likeness to the painted
            structure (see `likeness`), added likewise. Ours too.
    """

    def __init__(self, *args: Any, neighbour: bool = False, likeness: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_to_config(neighbour=neighbour, likeness=likeness)
        old = self.conv_in
        self.conv_in_ref = nn.Conv2d(old.in_channels, old.out_channels, old.kernel_size, padding=old.padding)
        if neighbour:
            self.conv_in_neighbour = _further_input(old, old.in_channels)
            self.conv_out_neighbour = _handed_on(self.conv_out.out_channels)
        if likeness:
            self.conv_in_likeness = _further_input(old, old.in_channels // 2)
        self.set_attn_processor(
            {
                name: _processor_for(name.removesuffix(".processor"))
                for name in self.attn_processors  # keys as diffusers wants them back
            }
        )

    @classmethod
    def from_stable_diffusion(cls, unet: UNet2DConditionModel) -> SupportQueryUNet:
        """Adapt a U-Net as the method does: both input convolutions start as `0.5 * [w, w]` with the old bias.

        Args:
            unet: a Stable Diffusion U-Net whose `conv_in` takes the latent channels once.
        """
        config = dict(unet.config)
        config["in_channels"] = 2 * unet.config.in_channels
        adapted = cls.from_config(config)
        state = unet.state_dict()
        doubled = 0.5 * torch.cat([state["conv_in.weight"]] * 2, dim=1)
        for name in ("conv_in", "conv_in_ref"):
            state[f"{name}.weight"], state[f"{name}.bias"] = doubled.clone(), state["conv_in.bias"].clone()
        adapted.load_state_dict(state)
        return adapted.to(unet.dtype) if adapted.dtype != unet.dtype else adapted

    def condition_constants(self, token: torch.Tensor) -> dict[str, torch.Tensor]:
        """Output of every cross-attention for one condition token.

        Args:
            token: (B, 1, D).

        Returns:
            by layer name, (B, 1, C).
        """
        constants = {}
        for name, module in self.named_modules():
            if name.endswith(".attn2"):
                constants[name] = module.to_out[1](module.to_out[0](module.to_v(token)))
        return constants

    def encode_support(
        self, sample: torch.Tensor, conditions: dict[str, torch.Tensor], shots: int
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor]:
        """The support pass.

        Args:
            sample: (B*S, 2c, h, w), image latent and mask latent of every shot, the shots of one task side by side.
            conditions: see `condition_constants`, (1 or B, 1, C).
            shots: S.

        Returns:
            keys and values by layer, (B, S*N, C); and the pass's output (B*S, c, h, w), which nothing uses further.
        """
        spread = {name: x if x.shape[0] == 1 else x.repeat_interleave(shots, dim=0) for name, x in conditions.items()}
        passing = PassValues(conditions=spread, record=True)
        output = self._run(self.conv_in_ref(sample), passing)
        keys, values = (
            {name: x.reshape(-1, shots * x.shape[1], x.shape[2]) for name, x in found.items()}
            for found in (passing.own_keys, passing.own_values)
        )
        return keys, values, output

    def predict(self, sample: torch.Tensor, bank: SupportBank, hints: Hints | None = None) -> torch.Tensor:
        """The query pass.

        Args:
            sample: (Q, 2c, h, w), query latent and query prototype spread over space.
            bank: with B = 1 or B = Q.
            hints: for networks that have inputs for them.

        Returns:
            (Q, c, h, w), the v-prediction; its negative is the scaled mask latent (the schedule's beta is 1
            throughout).
        """
        passing = PassValues(conditions=bank.conditions, bank_keys=bank.keys, bank_values=bank.values)
        hidden = self.conv_in(sample)
        if hints is not None and hints.neighbour is not None:
            hidden = hidden + self.conv_in_neighbour(hints.neighbour)
        if hints is not None and hints.likeness is not None:
            hidden = hidden + self.conv_in_likeness(hints.likeness)
        output = self._run(hidden, passing)
        if hints is not None and hints.neighbour is not None:
            mask = hints.neighbour[:, hints.neighbour.shape[1] // 2 :]
            output = output - self.conv_out_neighbour(mask)
        return output

    def denoise(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, conditions: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """What a diffusion model's U-Net does, for pre-training on images: no supports, no prototype.

        Args:
            noisy: (N, c, h, w), image latents with noise.
            timesteps: (N,) integers.
            conditions: see `condition_constants`, (1 or N, 1, C).

        Returns:
            (N, c, h, w), the v-prediction.
        """
        sample = torch.cat([noisy, torch.zeros_like(noisy)], dim=1)
        return self._run(self.conv_in(sample), PassValues(conditions), timesteps)

    def _run(self, hidden: torch.Tensor, passing: PassValues, timesteps: torch.Tensor | None = None) -> torch.Tensor:
        """All of the U-Net behind an input convolution, at the fixed timestep or at those of each row, (N,)."""
        if timesteps is None:
            embedded = self.get_time_embed(hidden[:1], TIMESTEP)  # (1, D): broadcasts over the batch
        else:
            embedded = self.get_time_embed(hidden, timesteps)
        temb = self.time_embedding(embedded)
        kwargs = {"passing": passing}
        skips: tuple[torch.Tensor, ...] = (hidden,)
        for block in self.down_blocks:
            if getattr(block, "has_cross_attention", False):
                hidden, more = block(hidden, temb, encoder_hidden_states=None, cross_attention_kwargs=kwargs)
            else:
                hidden, more = block(hidden, temb)
            skips += more
        hidden = self.mid_block(hidden, temb, encoder_hidden_states=None, cross_attention_kwargs=kwargs)
        for block in self.up_blocks:
            count = len(block.resnets)
            mine, skips = skips[-count:], skips[:-count]
            size = skips[-1].shape[-2:] if skips else None  # sizes that halving does not divide come back as they went
            if getattr(block, "has_cross_attention", False):
                hidden = block(
                    hidden, mine, temb, encoder_hidden_states=None, cross_attention_kwargs=kwargs, upsample_size=size
                )
            else:
                hidden = block(hidden, mine, temb, upsample_size=size)
        return self.conv_out(self.conv_act(self.conv_norm_out(hidden)))


def _further_input(like: nn.Conv2d, channels: int) -> nn.Conv2d:
    """An input convolution that adds nothing before it has learned."""
    (height, width), padding = like.kernel_size, like.padding
    assert not isinstance(padding, str), "diffusers gives its convolutions numbers"
    made = nn.Conv2d(channels, like.out_channels, (height, width), padding=(padding[0], padding[1]), bias=False)
    nn.init.zeros_(made.weight)
    return made


def _handed_on(channels: int) -> nn.Conv2d:
    """A convolution that hands on what it gets, before it has learned; weakened, so that a loss on the mask is not
    saturated where the network has to object."""
    made = nn.Conv2d(channels, channels, 1, bias=False)
    nn.init.dirac_(made.weight)
    with torch.no_grad():
        made.weight *= HANDED_ON
    return made


def _signature_with(*added: str) -> inspect.Signature:
    """That of `UNet2DConditionModel` and more switches: diffusers reads there which keys of a config.json are its
    own."""
    known = inspect.signature(UNet2DConditionModel.__init__)
    switches = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False) for name in added]
    return known.replace(parameters=[*known.parameters.values(), *switches])


SupportQueryUNet.__init__.__signature__ = _signature_with("neighbour", "likeness")  # type: ignore[attr-defined]


def _processor_for(layer: str) -> SupportQueryAttention | ConditionAttention:
    return SupportQueryAttention(layer) if layer.endswith("attn1") else ConditionAttention(layer)
