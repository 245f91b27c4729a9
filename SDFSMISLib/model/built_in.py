"""The `built-in` size: the same classes as Stable Diffusion's, small enough for a CPU."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from transformers import Dinov2Config, Dinov2Model

from SDFSMISLib.model.pipeline import SDFSMISPipeline
from SDFSMISLib.model.translator import VisualToTextualTranslator
from SDFSMISLib.model.unet import SupportQueryUNet

RESOLUTION = 96
LATENT_CHANNELS = 16
AUTOENCODER_CHANNELS = (16, 32, 32)  # two halvings: a factor of 4, latents of 24 x 24
UNET_CHANNELS = (48, 96, 128)
CONDITION_WIDTH = 64
IMAGE_ENCODER_WIDTH = 96
PATCH = 8
FOLD_CONSTANT = 3.0
FOLD_OFFSET = 3.0


def new_built_in(seed: int = 0) -> SDFSMISPipeline:
    """The built-in configuration with random weights: 5.2 M (U-Net), 0.25 M (autoencoder), 0.2 M (image encoder)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        levels = len(AUTOENCODER_CHANNELS)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=AUTOENCODER_CHANNELS,
            layers_per_block=1,
            latent_channels=LATENT_CHANNELS,
            norm_num_groups=8,
            sample_size=RESOLUTION,
            scaling_factor=1.0,
            mid_block_add_attention=False,
        )
        lower = len(UNET_CHANNELS) - 1  # attention on all levels but the finest
        unet = SupportQueryUNet(
            sample_size=RESOLUTION // 2 ** (levels - 1),
            in_channels=2 * LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * lower,
            up_block_types=("CrossAttnUpBlock2D",) * lower + ("UpBlock2D",),
            block_out_channels=UNET_CHANNELS,
            layers_per_block=1,
            cross_attention_dim=CONDITION_WIDTH,
            attention_head_dim=4,
            norm_num_groups=8,
            neighbour=True,
            likeness=True,
        )
        image_encoder = Dinov2Model(
            Dinov2Config(
                hidden_size=IMAGE_ENCODER_WIDTH,
                num_hidden_layers=2,
                num_attention_heads=4,
                mlp_ratio=2,
                image_size=RESOLUTION,
                patch_size=PATCH,
            )
        )
        translator = VisualToTextualTranslator(
            IMAGE_ENCODER_WIDTH, CONDITION_WIDTH, 128, num_hidden_layers=1, resize_edge=RESOLUTION, crop=RESOLUTION
        )
    fold_encoder(vae)
    return SDFSMISPipeline(vae, unet, image_encoder, translator, resolution=RESOLUTION)


@torch.no_grad()
def fold_encoder(vae: AutoencoderKL) -> None:
    """Set the encoder so that a latent position holds the grey levels of its 4 x 4 pixels, one per channel.

    Sixteen channels for sixteen pixels: nothing of a grey image is lost, and there is nothing to learn; an encoder of
        this size trained for minutes blurs. Residual branches are set to zero, the two strided convolutions gather 2 x
        2 pixels each. The group normalisation before the last convolution would divide by each image's own contrast;
        constants in half of its channels keep that divisor nearly fixed, and an offset keeps SiLU where it is nearly
        straight. What remains is near to linear.
    """
    encoder = vae.encoder
    for module in encoder.modules():
        if isinstance(module, torch.nn.Conv2d):
            for parameter in module.parameters():
                parameter.zero_()
    encoder.conv_in.weight[0, :, 1, 1] = 1 / 3  # channel 0: grey
    first, second = (block.downsamplers[0].conv for block in encoder.down_blocks[:2])
    shortcut = encoder.down_blocks[1].resnets[0].conv_shortcut
    for tap in range(4):
        first.weight[tap, 0, tap // 2, tap % 2] = 1
        shortcut.weight[tap, tap, 0, 0] = 1
    pixel_channels = [
        4 * (index // 2) + index % 2 for index in range(LATENT_CHANNELS)
    ]  # groups of 4: two pixels, +C, -C
    for pixel, channel in enumerate(pixel_channels):
        tap = pixel % 4
        second.weight[channel, pixel // 4, tap // 2, tap % 2] = 1
        second.bias[channel - channel % 4 + 2 + channel % 2] = FOLD_CONSTANT * (1 if channel % 2 == 0 else -1)
    encoder.conv_norm_out.weight.fill_(1)
    encoder.conv_norm_out.bias.fill_(FOLD_OFFSET)
    for pixel, channel in enumerate(pixel_channels):
        encoder.conv_out.weight[pixel, channel, 1, 1] = 2
        encoder.conv_out.bias[pixel] = -2 * torch.nn.functional.silu(torch.tensor(FOLD_OFFSET))
    encoder.conv_out.bias[LATENT_CHANNELS:] = -12  # log variance: next to none
    vae.quant_conv.weight.zero_()
    vae.quant_conv.bias.zero_()
    for channel in range(2 * LATENT_CHANNELS):
        vae.quant_conv.weight[channel, channel, 0, 0] = 1


def unfolded(latents: torch.Tensor) -> torch.Tensor:
    """The grey levels (N, H, W), around [-1, 1], that `fold_encoder` has put into unscaled latents (N, 16, h, w)."""
    number, _, height, width = latents.shape
    taps = latents.reshape(number, 2, 2, 2, 2, height, width)  # fine row, fine column, coarse row, coarse column
    return taps.permute(0, 5, 3, 1, 6, 4, 2).reshape(number, 4 * height, 4 * width)


def folded(images: torch.Tensor) -> torch.Tensor:
    """The unscaled latents (N, 16, H/4, W/4) that `fold_encoder` aims at for grey levels (N, H, W) in [-1, 1]."""
    number, height, width = images.shape
    taps = images.reshape(number, height // 4, 2, 2, width // 4, 2, 2)
    return taps.permute(0, 3, 6, 2, 5, 1, 4).reshape(number, 16, height // 4, width // 4)
