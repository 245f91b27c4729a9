"""How much each pixel of a query looks like the painted structure rather than what lies around it.

A pixel is described by its grey level and by the mean of its neighbourhood; how often such pixels are found inside and
outside the painted mask is counted in a joint histogram, and the share of the inside, both sides having equal weight,
is the pixel's likeness. It tells a network that a structure has ended: the tissue under its mask is another one.
Foreground and background histograms are those of GrabCut's forerunner (Boykov and Jolly, ICCV 2001).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

BINS = 24
NEIGHBOURHOOD = 9  # pixels of the network's grid
SMOOTHING = 1.0  # bins
DOUBT = 0.02  # of the largest frequency: what is found nowhere in the painted slice is not alike


def likeness_table(images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """What painted slices say of every joint bin.

    Args:
        images: (B, S, R, R) in [-1, 1]: B support sets of S painted slices.
        masks: (B, S, R, R), 0 or 1.

    Returns:
        (B, BINS ** 2) in [0, 1].
    """
    sets = len(images)
    places = _bins(images.flatten(0, 1)).reshape(sets, -1)  # (B, S * R * R)
    inside = _frequencies(places, masks.reshape(sets, -1).float())
    outside = _frequencies(places, 1 - masks.reshape(sets, -1).float())
    doubt = DOUBT * torch.maximum(inside, outside).amax(1, keepdim=True)
    return inside / (inside + outside + doubt)


def likeness(queries: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Likeness (Q, R, R) in [0, 1] of queries (Q, R, R) in [-1, 1], by one table or one for each."""
    places = _bins(queries)
    return table.expand(len(places), -1).gather(1, places).reshape(queries.shape)


def _bins(images: torch.Tensor) -> torch.Tensor:
    """Joint bin (N, R * R) of every pixel of images (N, R, R)."""
    images = images.float()
    around = F.avg_pool2d(images[:, None], NEIGHBOURHOOD, 1, NEIGHBOURHOOD // 2, count_include_pad=False)[:, 0]
    level, surrounding = (((x + 1) * (BINS / 2)).long().clamp(0, BINS - 1).flatten(1) for x in (images, around))
    return level * BINS + surrounding


def _frequencies(places: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Smoothed share of each joint bin, (Q, BINS ** 2), of pixels with bins and weights (Q, n)."""
    counts = torch.zeros(len(places), BINS * BINS, device=places.device).scatter_add_(1, places, weights)
    offsets = torch.arange(-2, 3, device=places.device, dtype=torch.float32)
    kernel = torch.exp(-(offsets**2) / (2 * SMOOTHING**2))
    kernel = kernel / kernel.sum()
    table = counts.reshape(-1, 1, BINS, BINS)
    table = F.conv2d(table, kernel.view(1, 1, 5, 1), padding=(2, 0))
    table = F.conv2d(table, kernel.view(1, 1, 1, 5), padding=(0, 2))
    return table.flatten(1) / table.flatten(1).sum(1, keepdim=True).clamp(min=1e-6)
