"""The paper's augmentation of one slice of a pair: affine, elastic and gamma, as ADNet and its successors have it.

Its numbers are pixels of a 256 x 256 slice; on another grid they scale along.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

__all__ = ["GRID", "augmented"]

GRID = 256
ANGLE = SHEAR = 5.0  # degrees, either way
SHIFT = 5.0  # pixels, either way
SCALE = (0.9, 1.2)
ELASTIC_STRENGTH, ELASTIC_SMOOTHNESS = 10.0, 5.0  # alpha and sigma, pixels
GAMMA = (0.5, 1.5)


def augmented(rng: np.random.Generator, image: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """An image (R, R) in [-1, 1] and its mask (R, R), 0 or 1, moved and bent by the same fresh field; the image's
    contrast changed."""
    side = image.shape[-1]
    places = _affine(rng, side) + _elastic(rng, side)
    grid = ((places + 0.5) * (2 / side) - 1)[None].float()
    moved = F.grid_sample(image[None, None] + 1, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    target = F.grid_sample(mask[None, None], grid, mode="nearest", padding_mode="zeros", align_corners=False)
    levels = (moved[0, 0] / 2).clamp(0, 1) ** float(rng.uniform(*GAMMA))
    return 2 * levels - 1, target[0, 0]


def _affine(rng: np.random.Generator, side: int) -> torch.Tensor:
    """Where each pixel comes from, (side, side, 2): column and row."""
    angle, shear = np.deg2rad(rng.uniform(-ANGLE, ANGLE)), np.deg2rad(rng.uniform(-SHEAR, SHEAR))
    scale, shift = rng.uniform(*SCALE), rng.uniform(-SHIFT, SHIFT, 2) * side / GRID
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[1.0, np.tan(shear)], [0.0, 1.0]]) / scale
    centre = (side - 1) / 2
    rows, columns = np.mgrid[:side, :side] - centre
    return torch.from_numpy(np.stack([columns, rows], axis=-1) @ matrix.T + centre + shift)


def _elastic(rng: np.random.Generator, side: int) -> torch.Tensor:
    """Displacements (side, side, 2), pixels: smoothed noise (Simard et al., ICDAR 2003)."""
    scale = side / GRID
    noise = rng.uniform(-1, 1, (2, side, side))
    smooth = [ndimage.gaussian_filter(x, ELASTIC_SMOOTHNESS * scale, mode="constant") for x in noise]
    # Noise smoothed over fewer pixels keeps more of its height, hence the second power.
    return torch.from_numpy(np.stack(smooth, axis=-1) * ELASTIC_STRENGTH * scale**2)
