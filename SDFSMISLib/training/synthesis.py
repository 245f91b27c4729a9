"""Random images and augmentation: synthetic label volumes, random appearance, and the paper's augmentation of a slice.

Shapes of the volumes: the index of the largest of several smooth random fields, as SynthMorph's ``sm-shapes`` (Hoffmann
et al., IEEE TMI 2022), with ellipsoids and tubes on top, inside a body. Appearance: one grey level per label and view,
texture and blur, after SynthSeg (Billot et al., MedIA 2023). The augmentation (affine, elastic, gamma) is that of ADNet
and its successors; its parameters are pixels of a 256 x 256 slice and scale with the grid.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

GRID = 256
ANGLE = SHEAR = 5.0  # degrees, either way
SHIFT = 5.0  # pixels, either way
SCALE = (0.9, 1.2)
ELASTIC_STRENGTH, ELASTIC_SMOOTHNESS = 10.0, 5.0  # alpha and sigma, pixels
GAMMA = (0.5, 1.5)


def augment(rng: np.random.Generator, image: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
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


def synthetic_labels(rng: np.random.Generator, side: int = 80) -> np.ndarray:
    """A random label volume (side, side, side), uint8; 0 is air."""
    fields = int(rng.integers(4, 10))
    scale = int(rng.integers(3, 8))
    labels = smooth_partition(rng, (side,) * 3, fields, scale) + 1
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, side, dtype=np.float32)] * 3, indexing="ij"))
    wobble = _smooth_noise(rng, side, 5)
    for number in range(int(rng.integers(4, 14))):
        centre = rng.uniform(-0.7, 0.7, (3, 1, 1, 1)).astype(np.float32)
        if rng.random() < 0.25:  # a tube along a curved line
            axis = int(rng.integers(3))
            bend = rng.uniform(-0.3, 0.3, 3).astype(np.float32)
            centre = centre + bend[:, None, None, None] * np.sin(2 * grid[axis] + rng.uniform(0, 6))
            radii = rng.uniform(0.05, 0.15, (3, 1, 1, 1)).astype(np.float32)
            radii[axis] = 2.0
        else:
            radii = rng.uniform(0.1, 0.45, (3, 1, 1, 1)).astype(np.float32)
        distance = np.sqrt((((grid - centre) / radii) ** 2).sum(0))
        labels[distance + 0.3 * wobble < 1] = fields + 1 + number
    if rng.random() < 0.7:
        labels[np.sqrt(((grid / rng.uniform(0.7, 1.1, (3, 1, 1, 1))) ** 2).sum(0)) + 0.15 * wobble > 1] = 0
    return labels


def smooth_partition(rng: np.random.Generator, shape: tuple[int, ...], parts: int, scale: int) -> np.ndarray:
    """A volume divided into smooth parts, uint8 from 0; `scale`: grid points of the random fields along each side."""
    noise = torch.from_numpy(rng.standard_normal((1, parts, scale, scale, scale), dtype=np.float32))
    smooth = F.interpolate(noise, size=shape, mode="trilinear", align_corners=False)[0]
    return smooth.argmax(0).numpy().astype(np.uint8)


def _smooth_noise(rng: np.random.Generator, side: int, scale: int) -> np.ndarray:
    noise = torch.from_numpy(rng.standard_normal((1, 1, scale, scale, scale), dtype=np.float32))
    return F.interpolate(noise, size=(side,) * 3, mode="trilinear", align_corners=False)[0, 0].numpy()
