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
    return SDFSMISPipeline(vae, unet, image_encoder, translator, resolution=RESOLUTION)
