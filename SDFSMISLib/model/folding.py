"""Latents that hold the pixels themselves: each square of f x f pixels becomes a position with f * f channels."""

from __future__ import annotations

import math

import torch
from diffusers import AutoencoderKL

__all__ = ["fold_encoder", "folded", "unfolded"]

GROUPS = 8  # of an autoencoder's channels that are normalised together
FOLD_CONSTANT = 3.0
FOLD_OFFSET = 3.0


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
