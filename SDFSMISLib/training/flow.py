"""Dense registration of many small images at once, in torch: what stands in for `inference.registration` where episodes
are made on the device, so that a GPU need not wait for OpenCV.

Lucas and Kanade (IJCAI 1981) from coarse to fine, in windows, each step followed by smoothing: fields of the kind that
dense inverse search finds. On 63 pairs of real slices some 5 mm apart, of several groups of scans, the carried mask had
Dice 0.85, with dense inverse search 0.86, and 0.78 where it was just copied.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from SDFSMISLib.inference.registration import carried

__all__ = ["displacements"]

LEVELS = 4
STEPS = 3  # per level
WINDOW, SMOOTHING = 5, 5  # pixels of a level
DAMPING = 5e-3  # of squared grey levels per pixel: flat places take over what is around them
LONGEST = 1.0  # pixels per step


def displacements(moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    """Where in `moving` each pixel of `fixed` is found; see `registration.displacement`.

    Args:
        moving, fixed: (B, side, side) in [-1, 1], pairs of neighbouring slices.

    Returns:
        (B, side, side, 2) float32: pixels to go to the right and down.
    """
    pairs = torch.stack([moving, fixed], dim=1).float()
    sizes = [max(8, pairs.shape[-1] >> level) for level in reversed(range(LEVELS))]
    found = torch.zeros(len(pairs), 2, sizes[0], sizes[0], device=pairs.device)
    for size in sizes:
        here = pairs if size == pairs.shape[-1] else F.interpolate(pairs, size=(size, size), mode="area")
        found = F.interpolate(found, size=(size, size), mode="bilinear", align_corners=False) * size / found.shape[-1]
        for _ in range(STEPS):
            found = _smoothed(found + _step(here[:, 0], here[:, 1], found), SMOOTHING)
    return found.permute(0, 2, 3, 1)


def _step(moving: torch.Tensor, fixed: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """How much further each window has to go, (B, 2, n, n), by the least squares of its grey levels."""
    warped = carried(moving, found.permute(0, 2, 3, 1))
    right, down = _slopes((warped + fixed) / 2)
    missing = warped - fixed
    products = torch.stack([right * right, right * down, down * down, right * missing, down * missing], dim=1)
    xx, xy, yy, xt, yt = _smoothed(products, WINDOW).unbind(1)
    xx, yy = xx + DAMPING, yy + DAMPING
    step = torch.stack([xy * yt - yy * xt, xy * xt - xx * yt], dim=1) / (xx * yy - xy * xy)[:, None]
    return step.clamp(-LONGEST, LONGEST)


def _slopes(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Central differences of images (B, n, n), to the right and down."""
    wide = F.pad(images[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    return (wide[:, 1:-1, 2:] - wide[:, 1:-1, :-2]) / 2, (wide[:, 2:, 1:-1] - wide[:, :-2, 1:-1]) / 2


def _smoothed(images: torch.Tensor, width: int) -> torch.Tensor:
    """Twice the mean of `width` pixels, close to a Gaussian."""
    for _ in range(2):
        images = F.avg_pool2d(images, width, 1, width // 2, count_include_pad=False)
    return images
