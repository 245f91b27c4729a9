"""The Visual-to-Textual Condition Translator (VTCT, arXiv 2604.03134): support features as a condition token."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from PIL import Image
from torch import nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class VisualToTextualTranslator(ModelMixin, ConfigMixin):
    """MLP from a mask-pooled image feature to the condition token, with the image encoder's preprocessing.

    The image encoder (DINOv2) sees the support images; the mean of its patch tokens under the mask, over all shots, is
    the feature f; the token E = MLP(f) takes the place of a text embedding in the U-Net's cross-attention. The MLP is
    ``num_hidden_layers + 1`` times Linear, LayerNorm, GELU, then Linear.

    Args:
        input_dim (`int`, defaults to 768): width of the image encoder's features.
        output_dim (`int`, defaults to 768): width of the U-Net's cross-attention.
        hidden_dim (`int`, defaults to 1536): width of the MLP.
        num_hidden_layers (`int`, defaults to 2): hidden layers of the MLP after the first.
        resize_edge (`int`, defaults to 256): the image's shortest edge is resized to this many pixels (bicubic, 8 bit).
        crop (`int`, defaults to 224): side of the centre crop that follows, pixels.
        image_mean, image_std (`tuple[float, ...]`, default to those of ImageNet): normalisation, per channel, of values
            in [0, 1].

    Example:
        >>> translator = VisualToTextualTranslator(input_dim=16, output_dim=8, hidden_dim=32)
        >>> tuple(translator(torch.zeros(2, 16)).shape)
        (2, 1, 8)
        >>> pixels = translator.encoder_pixels(translator.encoder_bytes(torch.zeros(1, 3, 64, 64)))
        >>> tuple(pixels.shape)
        (1, 3, 224, 224)
    """

    @register_to_config
    def __init__(
        self,
        input_dim: int = 768,
        output_dim: int = 768,
        hidden_dim: int = 1536,
        num_hidden_layers: int = 2,
        resize_edge: int = 256,
        crop: int = 224,
        image_mean: tuple[float, ...] = IMAGENET_MEAN,
        image_std: tuple[float, ...] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = input_dim
        for _ in range(num_hidden_layers + 1):
            layers += [nn.Linear(width, hidden_dim), nn.LayerNorm(hidden_dim), nn.GELU()]
            width = hidden_dim
        self.mlp = nn.Sequential(*layers, nn.Linear(width, output_dim))

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        """Condition tokens (B, 1, output_dim) of features (B, input_dim)."""
        return self.mlp(feature)[:, None]

    def encoder_bytes(self, images: torch.Tensor) -> torch.Tensor:
        """Images as the image encoder's own processor makes them: bytes, resized, cropped at the centre.

        Args:
            images: (N, 3, H, W) in [-1, 1]; converted to bytes by truncation, as in the official code.

        Returns:
            uint8 (N, 3, crop, crop).
        """
        levels = (255 * ((images.float() + 1) / 2)).clamp(0, 255).to(torch.uint8)
        height, width = levels.shape[-2:]
        edge, crop = self.config.resize_edge, self.config.crop
        if min(height, width) != edge:
            scale = edge / min(height, width)
            size = (int(width * scale), int(height * scale))
            levels = torch.stack([_resized(x, size) for x in levels.cpu()]).to(images.device)
        top, left = (levels.shape[-2] - crop) // 2, (levels.shape[-1] - crop) // 2
        return levels[..., top : top + crop, left : left + crop]

    def encoder_pixels(self, levels: torch.Tensor) -> torch.Tensor:
        """Normalised input of the image encoder, float32 (N, 3, h, w), of bytes (N, 3, h, w)."""
        mean, std = (
            torch.tensor(x, device=levels.device).view(3, 1, 1) for x in (self.config.image_mean, self.config.image_std)
        )
        return (levels.float() / 255 - mean) / std

    def patch_weights(self, masks: torch.Tensor, grid: int, official_details: bool) -> torch.Tensor:
        """Weights of the patches, by how much of the structure they show.

        The mask is cropped as the image is, averaged over the patches and binarised at 0.5. A structure that fills no
        patch by half would vanish; the shares themselves are its weights then.

        Args:
            masks: (N, H, W), 0 or 1.
            grid: patches per side.
            official_details: as in the official code: the mask is not cropped, and a small structure has no weight.

        Returns:
            (N, grid, grid), 0 to 1.
        """
        whole = masks[:, None].float()
        if official_details:
            soft = F.interpolate(whole, size=(grid, grid), mode="bilinear", align_corners=False)[:, 0]
            return (soft > 0.5).float()
        height, width = whole.shape[-2:]
        keep = self.config.crop / self.config.resize_edge * min(height, width)
        top, left = round((height - keep) / 2), round((width - keep) / 2)
        cropped = whole[..., top : height - top, left : width - left]
        share = F.adaptive_avg_pool2d(cropped, (grid, grid))[:, 0]
        hard = (share > 0.5).float()
        return torch.where(hard.any(-1).any(-1)[:, None, None], hard, share)


def pooled_feature(tokens: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean of patch tokens.

    Args:
        tokens: (N, 1 + grid * grid, D), the class token first, which is ignored.
        weights: (N, grid, grid).

    Returns:
        (N, D); zero if all weights are.
    """
    flat = weights.flatten(1)[..., None].to(tokens)
    return (tokens[:, 1:] * flat).sum(1) / (flat.sum(1) + 1e-6)


def resized_position_table(table: torch.Tensor, grid: int) -> torch.Tensor:
    """DINOv2's position table for another patch grid, as the released weights were trained with.

    Bicubic by the scale factor `(grid + 0.1) / old`, as in DINOv2 and the transformers version of the official code.
    Newer versions interpolate by size, which differs by a third of the table's norm.

    Args:
        table: (1, 1 + old * old, D), the class token's row first.
        grid: patches per side of the new table.

    Returns:
        (1, 1 + grid * grid, D).
    """
    old = round((table.shape[1] - 1) ** 0.5)
    if old == grid:
        return table
    patches = table[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2).float()
    factor = (grid + 0.1) / old
    patches = F.interpolate(patches, scale_factor=(factor, factor), mode="bicubic", align_corners=False)
    patches = patches[..., :grid, :grid].permute(0, 2, 3, 1).reshape(1, grid * grid, -1)
    return torch.cat([table[:, :1], patches.to(table)], dim=1)


def _resized(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    picture = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
    return torch.from_numpy(np.array(picture.resize(size, Image.Resampling.BICUBIC))).permute(2, 0, 1)
