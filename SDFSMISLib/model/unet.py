"""The support-query U-Net (SQI, arXiv 2604.03134), and the bank of the support's keys and values."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ModelMixin, UNet2DConditionModel  # noqa: F401 (diffusers finds how to load a class by the bases its module shows)
from torch import nn

from SDFSMISLib.model.sqi import ConditionAttention, PassValues, SupportQueryAttention
from SDFSMISLib.slices import AHEAD

NEIGHBOUR_MASK_WEIGHT = 0.25  # initial weight of the neighbour's mask latent in the output
TIMESTEP = 1  # one step without noise: for segmentation the timestep is fixed


@dataclass(frozen=True)
class SupportBank:
    """All that queries need of the supports, as a value that is passed from call to call.

    B is 1 (one support set for all queries) or the number of queries (one support set each); S: shots; T = S x tokens;
    C: width of a layer; c: latent channels.

    Attributes:
        keys, values: of each self-attention, by layer name, (B, T, C).
        conditions: output of each cross-attention, by layer name, (B, 1, C).
        foreground, background: prototypes of each shot, (B, S, c).
        likeness: see `likeness_table`, (B, bins), of the painted shots; None for networks without a likeness input.

    Example:
        >>> layer, prototype = {"attn1": torch.zeros(1, 16, 8)}, torch.zeros(1, 1, 4)
        >>> bank = SupportBank(layer, layer, {"attn2": torch.zeros(1, 1, 8)}, prototype, prototype)
        >>> two_shots = bank.joined(bank)
        >>> two_shots.shots, tuple(two_shots.keys["attn1"].shape)
        (2, (1, 32, 8))
        >>> tuple(two_shots.rows([0, 0, 0]).keys["attn1"].shape)
        (3, 32, 8)
    """

    keys: dict[str, torch.Tensor]
    values: dict[str, torch.Tensor]
    conditions: dict[str, torch.Tensor]
    foreground: torch.Tensor
    background: torch.Tensor
    likeness: torch.Tensor | None = None

    @property
    def shots(self) -> int:
        """S, the number of shots."""
        return self.foreground.shape[1]

    def joined(self, other: SupportBank) -> SupportBank:
        """The bank with the shots of both; conditions and likeness are those of `self`."""
        return SupportBank(
            keys={name: torch.cat([x, other.keys[name]], dim=1) for name, x in self.keys.items()},
            values={name: torch.cat([x, other.values[name]], dim=1) for name, x in self.values.items()},
            conditions=self.conditions,
            foreground=torch.cat([self.foreground, other.foreground], dim=1),
            background=torch.cat([self.background, other.background], dim=1),
            likeness=self.likeness,
        )

    def rows(self, index: torch.Tensor | list[int]) -> SupportBank:
        """The bank with the rows of `index`, in this order; rows can repeat."""
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
    """Optional inputs of the query pass, for networks that have them; not part of the paper.

    Attributes:
        neighbour: (Q, 2c, h, w), image latent and mask latent of a finished neighbouring slice, registered onto the
            query.
        likeness: (Q, c, h, w), latent of the query's likeness to the painted structure (`SDFSMISLib.model.likeness`).
        known: (Q, c, h, w), latent of what is known of the query: 1 inside of the structure, -1 outside, 0 unknown.
        ahead: (Q, A * (c + 1), h, w), of each of the A = `AHEAD` slices that come next behind the query the latent (or
            c pixels of each position) and a channel of 1; all 0 for a slice that is not there.
    """

    neighbour: torch.Tensor | None = None
    likeness: torch.Tensor | None = None
    known: torch.Tensor | None = None
    ahead: torch.Tensor | None = None


class SupportQueryUNet(UNet2DConditionModel):
    """`UNet2DConditionModel` with a second input convolution, for the support pass.

    ``conv_in`` takes the query latent and the query prototype spread over space; ``conv_in_ref`` takes the support's
    image latent and mask latent. Each has 2c input channels, with c latent channels; `in_channels` is 2c.
    `encode_support` records the support's keys and values, `predict` attends to them (see `SupportQueryAttention`), at
    the fixed timestep `TIMESTEP`.

    Args:
        *args, **kwargs: those of `UNet2DConditionModel`.
        neighbour (`bool`, defaults to `False`): whether there is a third input convolution, ``conv_in_neighbour`` (2c
            channels), for image latent and mask latent of a finished neighbouring slice that was registered onto the
            query; its output is added to that of ``conv_in``. The mask latent also goes to the output, through
            ``conv_out_neighbour``, so the network only has to learn the correction. Not part of the paper: attention to
            the bank finds similar tissue, convolutions see its displacement.
        likeness (`bool`, defaults to `False`): whether there is a fourth input convolution, ``conv_in_likeness`` (c
            channels), for the latent of the query's likeness to the painted structure. Not part of the paper.
        known (`bool`, defaults to `False`): whether there is an input convolution ``conv_in_known`` (c channels), for
            what painted slices of other views tell of the query. Not part of the paper.
        ahead (`bool`, defaults to `False`): whether there is an input convolution ``conv_in_ahead`` (A * (c + 1)
            channels), for the slices that come next behind the query, so that a structure's end is seen before it is
            passed. Not part of the paper.

    Example:
        >>> from SDFSMISLib.model.built_in import Size, new_built_in
        >>> unet = new_built_in(size=Size(resolution=32, channels=(8, 16))).unet
        >>> conditions = unet.condition_constants(torch.zeros(1, 1, 64))
        >>> keys, values, _ = unet.encode_support(torch.randn(2, 32, 8, 8), conditions, shots=2)
        >>> prototypes = torch.zeros(1, 2, 16)
        >>> bank = SupportBank(keys, values, conditions, prototypes, prototypes)
        >>> tuple(unet.predict(torch.randn(3, 32, 8, 8), bank).shape)
        (3, 16, 8, 8)
    """

    def __init__(
        self,
        *args: Any,
        neighbour: bool = False,
        likeness: bool = False,
        known: bool = False,
        ahead: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.register_to_config(neighbour=neighbour, likeness=likeness, known=known, ahead=ahead)
        old = self.conv_in
        self.conv_in_ref = nn.Conv2d(old.in_channels, old.out_channels, old.kernel_size, padding=old.padding)
        if neighbour:
            self.conv_in_neighbour = _zero_convolution(old, old.in_channels)
            self.conv_out_neighbour = _scaled_identity(self.conv_out.out_channels)
        if likeness:
            self.conv_in_likeness = _zero_convolution(old, old.in_channels // 2)
        if known:
            self.conv_in_known = _zero_convolution(old, old.in_channels // 2)
        if ahead:
            self.conv_in_ahead = _zero_convolution(old, AHEAD * (old.in_channels // 2 + 1))
        self.set_attn_processor(
            {
                name: _processor_for(name.removesuffix(".processor"))
                for name in self.attn_processors  # keys as diffusers wants them back
            }
        )

    @classmethod
    def from_stable_diffusion(cls, unet: UNet2DConditionModel) -> SupportQueryUNet:
        """Adapt the U-Net of Stable Diffusion as in the paper: its ``conv_in`` (w, b) makes two, ``(0.5 * [w, w], b)``.

        Args:
            unet: a U-Net whose ``conv_in`` takes the c latent channels.
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
        """Output of every cross-attention for a condition token.

        Args:
            token: (B, 1, D), D the width of the cross-attention.

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
            sample: (B * S, 2c, h, w), image latent and mask latent of every shot, the shots of one support set side by
                side.
            conditions: see `condition_constants`, (1 or B, 1, C).
            shots: S.

        Returns:
            keys and values by layer, (B, S * N, C); and the output of the pass, (B * S, c, h, w), which is only used in
            tests.
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
            hints: optional inputs, for networks that have them.

        Returns:
            (Q, c, h, w), the v-prediction. It is the negative scaled mask latent, since beta is 1 throughout the noise
            schedule.
        """
        passing = PassValues(conditions=bank.conditions, bank_keys=bank.keys, bank_values=bank.values)
        hidden = self.conv_in(sample)
        if hints is not None and hints.neighbour is not None:
            hidden = hidden + self.conv_in_neighbour(hints.neighbour)
        if hints is not None and hints.likeness is not None:
            hidden = hidden + self.conv_in_likeness(hints.likeness)
        if hints is not None and hints.known is not None:
            hidden = hidden + self.conv_in_known(hints.known)
        if hints is not None and hints.ahead is not None:
            hidden = hidden + self.conv_in_ahead(hints.ahead)
        output = self._run(hidden, passing)
        if hints is not None and hints.neighbour is not None:
            mask = hints.neighbour[:, hints.neighbour.shape[1] // 2 :]
            output = output - self.conv_out_neighbour(mask)
        return output

    def denoise(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, conditions: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Plain denoising, for pre-training on images: without supports and prototype.

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
        """The U-Net after an input convolution, at `TIMESTEP` or at those of each row, (N,)."""
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
            size = skips[-1].shape[-2:] if skips else None  # odd sizes come back to what they were
            if getattr(block, "has_cross_attention", False):
                hidden = block(
                    hidden, mine, temb, encoder_hidden_states=None, cross_attention_kwargs=kwargs, upsample_size=size
                )
            else:
                hidden = block(hidden, mine, temb, upsample_size=size)
        return self.conv_out(self.conv_act(self.conv_norm_out(hidden)))


def _zero_convolution(like: nn.Conv2d, channels: int) -> nn.Conv2d:
    """A further input convolution of the shape of `like`, which adds nothing before training."""
    (height, width), padding = like.kernel_size, like.padding
    assert not isinstance(padding, str), "diffusers gives its convolutions numbers"
    made = nn.Conv2d(channels, like.out_channels, (height, width), padding=(padding[0], padding[1]), bias=False)
    nn.init.zeros_(made.weight)
    return made


def _scaled_identity(channels: int) -> nn.Conv2d:
    """A 1 x 1 convolution that starts as `NEIGHBOUR_MASK_WEIGHT` times the identity.

    The weight is less than 1, so that a loss on the mask is not saturated where the network has to contradict its
    input."""
    made = nn.Conv2d(channels, channels, 1, bias=False)
    nn.init.dirac_(made.weight)
    with torch.no_grad():
        made.weight *= NEIGHBOUR_MASK_WEIGHT
    return made


def _signature_with(*added: str) -> inspect.Signature:
    """The signature of `UNet2DConditionModel` with more switches; diffusers reads from it which keys of a config.json
    it passes on."""
    known = inspect.signature(UNet2DConditionModel.__init__)
    switches = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False) for name in added]
    return known.replace(parameters=[*known.parameters.values(), *switches])


SupportQueryUNet.__init__.__signature__ = _signature_with("neighbour", "likeness", "known", "ahead")  # type: ignore[attr-defined]


def _processor_for(layer: str) -> SupportQueryAttention | ConditionAttention:
    return SupportQueryAttention(layer) if layer.endswith("attn1") else ConditionAttention(layer)
