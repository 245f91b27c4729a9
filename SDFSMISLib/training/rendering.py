"""The pixels of episodes, a whole batch at once, on a CPU or a GPU.

The look of a batch is drawn together: that of label volumes after SynthSeg (Billot et al., MedIA 2023), a mean and a
spread of grey for each label, texture, blur and low resolution; then for scans too bias field, gamma, inversion and
noise; and the contrast of a region as the segmenter spreads it.

On a GPU, or without OpenCV, neighbouring slices are registered in torch, by Lucas and Kanade (IJCAI 1981) from coarse
to fine with smoothing, in place of the product's dense inverse search. On 63 pairs of real slices about 5 mm apart, of
several groups of scans, warped masks had Dice 0.85 (dense inverse search 0.86, copied masks 0.78).
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F

from SDFSMISLib.inference.network_images import AIR, LEAST_PIXELS, LEVELS, LIMIT, SHARE
from SDFSMISLib.inference.registration import displacement, warp

PYRAMID_LEVELS = 4
STEPS = 3  # per level
WINDOW, SMOOTHING = 5, 5  # pixels of a level
DAMPING = 5e-3  # of squared grey levels per pixel: flat places follow their surroundings
LONGEST = 1.0  # pixels per step


def registered(moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    """`registration.displacement` of pairs (B, side, side): on a CPU the product's own, where it is not installed and
    on a GPU `displacements`."""
    if moving.device.type == "cpu" and _has_opencv():
        return torch.stack([displacement(*pair) for pair in zip(moving, fixed, strict=True)])
    return displacements(moving, fixed)


@cache
def _has_opencv() -> bool:
    try:
        import cv2  # noqa: F401
    except ImportError:  # on a machine that is for training alone
        return False
    return True


def displacements(moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    """Where in `moving` each pixel of `fixed` is found; see `registration.displacement`.

    Args:
        moving, fixed: (B, side, side) in [-1, 1], pairs of neighbouring slices.

    Returns:
        (B, side, side, 2) float32: pixels to go to the right and down.
    """
    pairs = torch.stack([moving, fixed], dim=1).float()
    sizes = [max(8, pairs.shape[-1] >> level) for level in reversed(range(PYRAMID_LEVELS))]
    found = torch.zeros(len(pairs), 2, sizes[0], sizes[0], device=pairs.device)
    for size in sizes:
        here = pairs if size == pairs.shape[-1] else F.interpolate(pairs, size=(size, size), mode="area")
        found = F.interpolate(found, size=(size, size), mode="bilinear", align_corners=False) * size / found.shape[-1]
        for _ in range(STEPS):
            found = _smoothed(found + _step(here[:, 0], here[:, 1], found), SMOOTHING)
    return found.permute(0, 2, 3, 1)


def _step(moving: torch.Tensor, fixed: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """How much further each window has to go, (B, 2, n, n), by the least squares of its grey levels."""
    warped = warp(moving, found.permute(0, 2, 3, 1))
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


MOST_LABELS = 256
ALIKE_SHARE = 0.3  # share of label images with a few grey levels only: shape alone tells neighbours apart
BLUR_REACH = 9  # pixels either way


class RandomDraws:
    """Random tensors on a device by one generator: `seed` says what comes."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        self.generator = torch.Generator(device).manual_seed(seed)
        self.numbers = np.random.default_rng(seed)

    def uniform(self, low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(shape, generator=self.generator, device=self.device)

    def normal(self, spread: float, *shape: int) -> torch.Tensor:
        return spread * torch.randn(shape, generator=self.generator, device=self.device)

    def chance(self, share: float, *shape: int) -> torch.Tensor:
        """bool; True in this share."""
        return torch.rand(shape, generator=self.generator, device=self.device) < share

    def below(self, most: int, *shape: int) -> torch.Tensor:
        """Integers from 0 to `most` - 1."""
        return torch.randint(most, shape, generator=self.generator, device=self.device)

    def number(self, low: float, high: float) -> float:
        """One number, drawn on the host, so that no device is waited for."""
        return float(self.numbers.uniform(low, high))

    def field(self, spread: float, grain: int, count: int, side: int) -> torch.Tensor:
        """Smooth noise (count, side, side), of `grain` independent values across."""
        noise = self.normal(spread, count, 1, grain, grain)
        return F.interpolate(noise, size=(side, side), mode="bicubic", align_corners=False)[:, 0]


def render(draws: RandomDraws, labels: torch.Tensor, same_scan: bool) -> torch.Tensor:
    """Grey images (B, S, R, R), around [-1, 1], of label images (B, S, K, R, R) whose K parts of a thick slice are
    averaged.

    Args:
        labels: integers from 0, air, to `MOST_LABELS` - 1.
        same_scan: one grey level per label for all S images (up to a small change), else drawn anew for each.
    """
    batch, shown, _, side, _ = labels.shape
    scans = 1 if same_scan else shown
    levels, spreads = draws.uniform(-1, 1, batch, scans, MOST_LABELS), draws.uniform(0, 0.12, batch, 1, MOST_LABELS)
    dark = draws.chance(0.7, batch, scans)
    few = draws.uniform(-1, 1, batch, scans, 7).gather(
        2, draws.below(7, batch, scans, MOST_LABELS) % (3 + draws.below(5, batch, 1, 1))
    )
    levels = torch.where(draws.chance(ALIKE_SHARE, batch, 1, 1), few, levels)
    levels[..., 0] = torch.where(dark, -1.0, levels[..., 0])
    levels = levels + draws.normal(0.02, batch, shown, MOST_LABELS)
    flat = labels.long().flatten(2)
    grey = levels.gather(2, flat).view(labels.shape).mean(2)
    spread = spreads.expand(-1, shown, -1).gather(2, flat).view(labels.shape).mean(2)
    grain = int(draws.number(6, 40))
    texture = draws.field(1.0, grain, batch * shown, side).view(grey.shape) * draws.uniform(0, 0.25, batch, 1, 1, 1)
    grey = grey + spread * draws.normal(1.0, *grey.shape) + texture
    grey = blurred(grey.flatten(0, 1), draws.uniform(0.4, 1.2, batch).repeat_interleave(shown))
    if draws.number(0, 1) < 0.25:  # low resolution, of the whole batch
        coarse = int(side / draws.number(1.3, 2.5))
        small = F.interpolate(grey[:, None], size=(coarse, coarse), mode="area")
        grey = F.interpolate(small, size=(side, side), mode="bilinear", align_corners=False)[:, 0]
    return grey.view(batch, shown, side, side)


def augment_intensity(draws: RandomDraws, images: torch.Tensor, same_scan: bool) -> torch.Tensor:
    """Images (B, S, R, R) with a look of their task and a little of each slice's own, in [-1, 1]."""
    batch, shown, side, _ = images.shape
    own = 0.15 if same_scan else 1.0
    fields = batch if same_scan else batch * shown
    bias = draws.field(1.0, 3, fields, side).view(batch, -1, side, side) * draws.normal(0.25, batch, 1, 1, 1).abs()
    noise = draws.normal(0.02, batch, 1, 1, 1).abs()
    inverted = draws.chance(0.2, batch, 1 if same_scan else shown, 1, 1)
    gamma, gain, offset = (
        (draws.normal(spread, batch, 1, 1, 1) if same_scan else 0) + draws.normal(own * spread, batch, shown, 1, 1)
        for spread in (0.35, 0.2, 0.12)
    )
    x = ((images + 1) / 2).clamp(0, 1) ** gamma.exp() * bias.exp()
    x = torch.where(inverted, 1 - x, x)
    x = (x - 0.5) * gain.exp() + 0.5 + offset + noise * draws.normal(1.0, *images.shape)
    return (2 * x - 1).clamp(-1, 1)


def blurred(images: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Images (N, R, R), each with a Gaussian of its own `sigma` (N,), pixels."""
    reach = min(BLUR_REACH, images.shape[-1] - 1)
    x = torch.arange(-reach, reach + 1, device=images.device, dtype=torch.float32)
    kernel = torch.exp(-(x**2) / (2 * sigma[:, None] ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True))[:, None, :]
    count = len(images)
    padded = F.pad(images[None], (reach,) * 4, mode="replicate")
    rows = F.conv2d(padded, kernel[..., None], groups=count)
    return F.conv2d(rows, kernel[:, :, None], groups=count)[0]


def equalizing_contrasts(images: torch.Tensor) -> torch.Tensor:
    """`Contrast.of` of each image (N, R, R): its `values`, (N, LEVELS + 1)."""
    flat = images.float().flatten(1)
    inside = (flat > AIR).float()
    places = ((flat + 1) * (LEVELS / 2)).long().clamp(0, LEVELS - 1)
    counts = torch.zeros(len(flat), LEVELS, device=flat.device).scatter_add_(1, places, inside)
    total = inside.sum(1, keepdim=True)
    limited = (counts / total.clamp(min=1)).clamp(max=LIMIT / LEVELS)
    limited = limited + (1 - limited.sum(1, keepdim=True)) / LEVELS
    levels = torch.linspace(-1, 1, LEVELS + 1, device=flat.device).expand(len(flat), -1)
    spread = (1 - SHARE) * levels + SHARE * (2 * F.pad(limited.cumsum(1), (1, 0)) - 1)
    return torch.where(total < LEAST_PIXELS, levels, spread)


def with_contrast(images: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Images (N, R, R) in [-1, 1], each with the contrast of its row of `values`."""
    place = (images.float().clamp(-1, 1).flatten(1) + 1) * (LEVELS / 2)
    lower = place.long().clamp(max=LEVELS - 1)
    low, high = values.gather(1, lower), values.gather(1, lower + 1)
    return torch.lerp(low, high, place - lower).clamp(-1, 1).view(images.shape)


def imperfect(draws: RandomDraws, masks: torch.Tensor) -> torch.Tensor:
    """Masks (B, R, R), 0 or 1, most with the errors of a prediction: wavy, eroded, dilated, shifted, leaking."""
    batch, side, _ = masks.shape
    soft = blurred(masks, draws.uniform(1.0, 5.0, batch))
    near = soft > 0.01
    wave = draws.field(1.0, int(draws.number(4, 14)), batch, side)
    wrong = ((soft + draws.uniform(0, 0.22, batch, 1, 1) * wave > draws.uniform(0.3, 0.7, batch, 1, 1)) & near).float()
    theta = torch.eye(2, 3, device=masks.device).repeat(batch, 1, 1)
    theta[:, :, 2] = draws.normal(1.2, batch, 2).round() * 2 / side
    grid = F.affine_grid(theta, [batch, 1, side, side], align_corners=False)
    wrong = F.grid_sample(wrong[:, None], grid, mode="nearest", align_corners=False)[:, 0]
    kept = draws.chance(0.2, batch) | (wrong.sum((1, 2)) < 4)
    return torch.where(kept[:, None, None], masks, wrong)
