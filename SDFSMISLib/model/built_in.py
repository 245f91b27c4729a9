"""The `built-in` size and others of its kind: Stable Diffusion's classes, small enough for a CPU."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from transformers import Dinov2Config, Dinov2Model

from SDFSMISLib.errors import InputError
from SDFSMISLib.model.folding import GROUPS, fold_encoder
from SDFSMISLib.model.pipeline import SDFSMISPipeline
from SDFSMISLib.model.translator import VisualToTextualTranslator
from SDFSMISLib.model.unet import SupportQueryUNet

__all__ = ["Size", "new_built_in"]

AUTOENCODER_CHANNELS = {4: (16, 32, 32), 8: (16, 32, 128, 128)}  # by factor; the last twice as many as the latent's
HEADS = 4
CONDITION_WIDTH = 64
IMAGE_ENCODER_WIDTH = 96
PATCH = 8


@dataclass(frozen=True)
class Size:
    """The configuration of a network of this kind; the defaults are those of ``built-in``.

    Attributes:
        resolution: side of the networks' grid, pixels; a multiple of 8.
        factor: pixels per latent position along each side, 4 or 8; the latent has ``factor ** 2`` channels.
        channels: of the U-Net's levels, the finest first; multiples of 8.
        layers: residual blocks per level.
        neighbour, likeness, known, ahead: see `SupportQueryUNet`.

    Raises:
        InputError: for values that do not fit together.

    >>> Size(resolution=32, channels=(8, 16)).latent_channels
    16
    """

    resolution: int = 96
    factor: int = 4
    channels: tuple[int, ...] = (48, 96, 128)
    layers: int = 1
    neighbour: bool = True
    likeness: bool = True
    known: bool = True
    ahead: bool = False

    def __post_init__(self) -> None:
        if self.factor not in AUTOENCODER_CHANNELS:
            raise InputError(f"A network of factor {self.factor} was asked for; 4 and 8 are accepted.")
        step = math.lcm(self.factor, PATCH)
        if self.resolution <= 0 or self.resolution % step:
            raise InputError(f"A network of resolution {self.resolution} was asked for; give a multiple of {step}.")
        if len(self.channels) < 2 or any(width <= 0 or width % GROUPS for width in self.channels):
            raise InputError(
                f"A U-Net of channels {list(self.channels)} was asked for; give two or more multiples of {GROUPS}."
            )
        if self.layers < 1:
            raise InputError(f"A U-Net of {self.layers} layers per level was asked for; it takes 1 or more.")

    @property
    def latent_channels(self) -> int:
        """Channels of the latent: one for each pixel of a latent position."""
        return self.factor**2


def new_built_in(seed: int = 0, size: Size | None = None) -> SDFSMISPipeline:
    """A pipeline of a size, with random weights.

    Of the ``built-in`` size, the U-Net has 5.2 M parameters, the autoencoder 0.25 M, the image encoder 0.2 M.
    """
    size = size or Size()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = _autoencoder(size)
        unet = _unet(size)
        image_encoder = Dinov2Model(
            Dinov2Config(
                hidden_size=IMAGE_ENCODER_WIDTH,
                num_hidden_layers=2,
                num_attention_heads=HEADS,
                mlp_ratio=2,
                image_size=size.resolution,
                patch_size=PATCH,
            )
        )
        edge = size.resolution
        translator = VisualToTextualTranslator(
            IMAGE_ENCODER_WIDTH, CONDITION_WIDTH, 128, num_hidden_layers=1, resize_edge=edge, crop=edge
        )
    fold_encoder(vae)
    return SDFSMISPipeline(vae, unet, image_encoder, translator, resolution=size.resolution)


def _autoencoder(size: Size) -> AutoencoderKL:
    levels = len(AUTOENCODER_CHANNELS[size.factor])
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=AUTOENCODER_CHANNELS[size.factor],
        layers_per_block=1,
        latent_channels=size.latent_channels,
        norm_num_groups=GROUPS,
        sample_size=size.resolution,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def _unet(size: Size) -> SupportQueryUNet:
    lower = len(size.channels) - 1  # attention on all levels but the finest
    return SupportQueryUNet(
        sample_size=size.resolution // size.factor,
        in_channels=2 * size.latent_channels,
        out_channels=size.latent_channels,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * lower,
        up_block_types=("CrossAttnUpBlock2D",) * lower + ("UpBlock2D",),
        block_out_channels=size.channels,
        layers_per_block=size.layers,
        cross_attention_dim=CONDITION_WIDTH,
        attention_head_dim=HEADS,
        norm_num_groups=GROUPS,
        neighbour=size.neighbour,
        likeness=size.likeness,
        known=size.known,
        ahead=size.ahead,
    )
