"""Denoising pre-training: the U-Net learns what images look like before it learns to segment them.

What Stable Diffusion's U-Net brings along for the paper, in small: v-prediction (Salimans and Ho, ICLR 2022) of image
latents with the noise of its schedule, on slices of which no label is used.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from torch import nn

from SDFSMISLib.inference.network_images import colour
from SDFSMISLib.model.pipeline import SDFSMISPipeline

__all__ = ["Denoiser", "begin_supports_alike"]


class Denoiser(nn.Module):
    """The U-Net of a pipeline as a module whose output is the loss of denoising."""

    def __init__(self, pipeline: SDFSMISPipeline) -> None:
        super().__init__()
        self.pipeline, self.unet = pipeline, pipeline.unet
        self.schedule = DDPMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction"
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The loss of slices (N, R, R) in [-1, 1]; noise and timesteps are drawn here.

        The condition is that of an all-zero token: there is no mask yet that could give one.
        """
        with torch.no_grad():
            latents = self.pipeline.encode_images(colour(images.to(self.pipeline.device))).float()
            noise = torch.randn(latents.shape, device=latents.device)
            steps = self.schedule.config.num_train_timesteps
            timesteps = torch.randint(steps, latents.shape[:1], device=latents.device)
            noisy = self.schedule.add_noise(latents, noise, timesteps)
            wanted = self.schedule.get_velocity(latents, noise, timesteps)
        token = torch.zeros(1, 1, self.unet.config.cross_attention_dim, device=latents.device)
        found = self.unet.denoise(noisy.to(self.unet.dtype), timesteps, self.unet.condition_constants(token))
        return F.mse_loss(found.float(), wanted)


def begin_supports_alike(pipeline: SDFSMISPipeline) -> None:
    """Let the support pass begin with what the input convolution has learned of images, as the method does when it
    takes over Stable Diffusion's."""
    pipeline.unet.conv_in_ref.load_state_dict(pipeline.unet.conv_in.state_dict())
