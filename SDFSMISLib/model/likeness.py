"""How much each pixel of a query looks like the painted structure rather than its surroundings.

A pixel is described by its grey level and the mean of its neighbourhood. Joint histograms of both are counted inside
(f) and outside (b) the painted masks, each with sum 1; the likeness of a pixel in bin i is f_i / (f_i + b_i). It
tells a network that a structure has ended: the tissue under its mask is another one. Such foreground and background
histograms are those of Boykov and Jolly (ICCV 2001). Not part of the paper (arXiv 2604.03134).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

BINS = 24
NEIGHBOURHOOD = 9  # pixels of the network's grid
SMOOTHING = 1.0  # bins
DOUBT = 0.02  # of the largest frequency, added to the denominator: grey levels never seen are not alike


def likeness_table(images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The likeness of every joint bin, from painted slices.

    Args:
        images: (B, S, R, R) in [-1, 1]: B support sets of S painted slices.
        masks: (B, S, R, R), 0 or 1.

    Returns:
        (B, BINS ** 2), 0 to 1.

    Example:
        >>> image = torch.full((1, 1, 32, 32), -0.5)
        >>> image[..., 8:24, 8:24] = 0.5
        >>> alike = likeness(image[0], likeness_table(image, (image > 0).float()))
        >>> bool(alike[0, 16, 16] > 0.9), bool(alike[0, 0, 0] < 0.1)
        (True, True)
    """
    sets = len(images)
    places = _bins(images.flatten(0, 1)).reshape(sets, -1)  # (B, S * R * R)
    inside = _frequencies(places, masks.reshape(sets, -1).float())
    outside = _frequencies(places, 1 - masks.reshape(sets, -1).float())
    doubt = DOUBT * torch.maximum(inside, outside).amax(1, keepdim=True)
    return inside / (inside + outside + doubt)


def likeness(queries: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Likeness (Q, R, R), 0 to 1, of queries (Q, R, R) in [-1, 1], by a `table` (1 or Q, BINS ** 2)."""
    places = _bins(queries)
    return table.expand(len(places), -1).gather(1, places).reshape(queries.shape)


def _bins(images: torch.Tensor) -> torch.Tensor:
    """Joint bin (N, R * R) of every pixel of images (N, R, R)."""
    images = images.float()
    around = F.avg_pool2d(images[:, None], NEIGHBOURHOOD, 1, NEIGHBOURHOOD // 2, count_include_pad=False)[:, 0]
    level, surrounding = (((x + 1) * (BINS / 2)).long().clamp(0, BINS - 1).flatten(1) for x in (images, around))
    return level * BINS + surrounding


def _frequencies(places: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Smoothed share of each joint bin, (N, BINS ** 2), of n pixels with bins `places` and `weights`, (N, n) each."""
    counts = torch.zeros(len(places), BINS * BINS, device=places.device).scatter_add_(1, places, weights)
    offsets = torch.arange(-2, 3, device=places.device, dtype=torch.float32)
    kernel = torch.exp(-(offsets**2) / (2 * SMOOTHING**2))
    kernel = kernel / kernel.sum()
    table = counts.reshape(-1, 1, BINS, BINS)
    table = F.conv2d(table, kernel.view(1, 1, 5, 1), padding=(2, 0))
    table = F.conv2d(table, kernel.view(1, 1, 1, 5), padding=(0, 2))
    return table.flatten(1) / table.flatten(1).sum(1, keepdim=True).clamp(min=1e-6)
