"""The `built-in` size and others of its kind: Stable Diffusion's classes, small enough for a CPU."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from transformers import Dinov2Config, Dinov2Model

from SDFSMISLib.errors import InputError
from SDFSMISLib.model.pipeline import SDFSMISPipeline
from SDFSMISLib.model.translator import VisualToTextualTranslator
from SDFSMISLib.model.unet import SupportQueryUNet

__all__ = ["Size", "fold_encoder", "folded", "new_built_in", "unfolded"]

AUTOENCODER_CHANNELS = {4: (16, 32, 32), 8: (16, 32, 128, 128)}  # by factor; the last twice as many as the latent's
GROUPS = 8  # of channels that are normalised together
HEADS = 4
CONDITION_WIDTH = 64
IMAGE_ENCODER_WIDTH = 96
PATCH = 8
FOLD_CONSTANT = 3.0
FOLD_OFFSET = 3.0


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


@torch.no_grad()
def fold_encoder(vae: AutoencoderKL) -> None:
    """Set the encoder's weights such that a latent position holds the grey levels of its pixels, one per channel.

    With as many channels as pixels (16 for 4 x 4, 64 for 8 x 8) nothing of a grey image is lost and nothing has to be
    trained; an encoder of this size that was trained for minutes blurs. Residual branches are zero; each strided
    convolution gathers 2 x 2 pixels. The group normalisation before the last convolution would divide by the contrast
    of each image: constants in half of its channels keep that divisor nearly fixed. An offset keeps SiLU in its nearly
    linear range, so the encoder as a whole is almost linear.

    Args:
        vae: changed in place.
    """
    encoder, latents = vae.encoder, vae.config.latent_channels
    for module in encoder.modules():
        if isinstance(module, torch.nn.Conv2d):
            for parameter in module.parameters():
                parameter.zero_()
    encoder.conv_in.weight[0, :, 1, 1] = 1 / 3  # channel 0: grey
    halvings = [block.downsamplers[0].conv for block in encoder.down_blocks[:-1]]
    places = _pixel_channels(latents, halvings[-1].out_channels)
    for level, halving in enumerate(halvings):
        shortcut = encoder.down_blocks[level].resnets[0].conv_shortcut
        for pixel in range(4**level):
            if shortcut is not None:
                shortcut.weight[pixel, pixel, 0, 0] = 1
            for tap in range(4):
                made = 4 * pixel + tap
                halving.weight[places[made] if halving is halvings[-1] else made, pixel, tap // 2, tap % 2] = 1
    constants = sorted(set(range(halvings[-1].out_channels)) - set(places))
    for number, channel in enumerate(constants):
        halvings[-1].bias[channel] = FOLD_CONSTANT * (1 if number % 2 == 0 else -1)
    encoder.conv_norm_out.weight.fill_(1)
    encoder.conv_norm_out.bias.fill_(FOLD_OFFSET)
    for pixel, channel in enumerate(places):
        encoder.conv_out.weight[pixel, channel, 1, 1] = 2
        encoder.conv_out.bias[pixel] = -2 * torch.nn.functional.silu(torch.tensor(FOLD_OFFSET))
    encoder.conv_out.bias[latents:] = -12  # log variance: almost none
    vae.quant_conv.weight.zero_()
    vae.quant_conv.bias.zero_()
    for channel in range(2 * latents):
        vae.quant_conv.weight[channel, channel, 0, 0] = 1


def _pixel_channels(pixels: int, channels: int) -> list[int]:
    """The channel of each pixel: the first half of each group; constants, +C and -C in turn, take the second."""
    group = channels // GROUPS
    mine = group // 2
    assert mine * GROUPS == pixels, "half of the channels hold pixels"
    return [group * (pixel // mine) + pixel % mine for pixel in range(pixels)]


def unfolded(latents: torch.Tensor) -> torch.Tensor:
    """The grey levels that `fold_encoder` put into latents, the inverse of `folded`.

    Args:
        latents: (N, f * f, h, w), unscaled, f = 4 or 8.

    Returns:
        (N, f * h, f * w), around [-1, 1].

    >>> images = torch.rand(2, 8, 12)
    >>> torch.equal(unfolded(folded(images, factor=4)), images)
    True
    """
    number, channels, height, width = latents.shape
    halvings = round(math.log2(channels) / 2)
    # A tap is (row, column) of 2 x 2; the finest halving's comes first.
    taps = latents.reshape(number, *(2, 2) * halvings, height, width)
    rows, columns = (list(range(first + 2 * (halvings - 1), 0, -2)) for first in (1, 2))
    order = (0, 1 + 2 * halvings, *rows, 2 + 2 * halvings, *columns)
    return taps.permute(order).reshape(number, height << halvings, width << halvings)


def folded(images: torch.Tensor, factor: int = 4) -> torch.Tensor:
    """The latents that `fold_encoder` aims at: the pixels of each f x f square as channels.

    Args:
        images: (N, H, W) in [-1, 1].
        factor: f, a power of two that divides H and W.

    Returns:
        (N, f * f, H / f, W / f), unscaled.
    """
    number, height, width = images.shape
    halvings = factor.bit_length() - 1
    taps = images.reshape(number, height // factor, *(2,) * halvings, width // factor, *(2,) * halvings)
    finest_first = [(1 + halvings - level, 2 + 2 * halvings - level) for level in range(halvings)]
    order = (0, *(dim for pair in finest_first for dim in pair), 1, 2 + halvings)
    return taps.permute(order).reshape(number, factor**2, height // factor, width // factor)
