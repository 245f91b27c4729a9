"""Appearance by domain randomisation for a whole batch at once, where the label images are: on the device.

What `synthesis` and `episodes` do to one image at a time, after SynthSeg (Billot et al., MedIA 2023): a grey level per
label with a spread of its own, texture, blur, low resolution, bias field, gamma, inversion and noise; and a region's
contrast, as `inference.contrast` has it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from SDFSMISLib.inference.network_images import AIR, LEAST_PIXELS, LEVELS, LIMIT, SHARE

__all__ = ["Draws", "blurred", "contrasts", "painted", "seen", "turned", "with_contrast", "with_errors"]

MOST_LABELS = 64
BLUR_REACH = 9  # pixels either way


class Draws:
    """Random tensors on a device by one generator: `seed` says what comes."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        self.generator = torch.Generator(device).manual_seed(seed)

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

    def field(self, spread: float, grain: int, count: int, side: int) -> torch.Tensor:
        """Smooth noise (count, side, side), of `grain` independent values across."""
        noise = self.normal(spread, count, 1, grain, grain)
        return F.interpolate(noise, size=(side, side), mode="bicubic", align_corners=False)[:, 0]


def painted(draws: Draws, labels: torch.Tensor, same_scan: bool) -> torch.Tensor:
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
    levels[..., 0] = torch.where(dark, -1.0, levels[..., 0])
    levels = levels + draws.normal(0.02, batch, shown, MOST_LABELS)
    flat = labels.long().flatten(2)
    grey = levels.gather(2, flat).view(labels.shape).mean(2)
    spread = spreads.expand(-1, shown, -1).gather(2, flat).view(labels.shape).mean(2)
    grain = int(draws.below(34, 1)) + 6
    texture = draws.field(1.0, grain, batch * shown, side).view(grey.shape) * draws.uniform(0, 0.25, batch, 1, 1, 1)
    grey = grey + spread * draws.normal(1.0, *grey.shape) + texture
    grey = blurred(grey.flatten(0, 1), draws.uniform(0.4, 1.2, batch).repeat_interleave(shown))
    if bool(draws.chance(0.25, 1)):  # low resolution, of the whole batch
        coarse = int(side / float(draws.uniform(1.3, 2.5, 1)))
        small = F.interpolate(grey[:, None], size=(coarse, coarse), mode="area")
        grey = F.interpolate(small, size=(side, side), mode="bilinear", align_corners=False)[:, 0]
    return grey.view(batch, shown, side, side)


def seen(draws: Draws, images: torch.Tensor, same_scan: bool) -> torch.Tensor:
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


def contrasts(images: torch.Tensor) -> torch.Tensor:
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


def with_errors(draws: Draws, masks: torch.Tensor) -> torch.Tensor:
    """Masks (B, R, R), 0 or 1, as a network would have left them; see `EpisodeSampler`."""
    batch, side, _ = masks.shape
    soft = blurred(masks, draws.uniform(1.0, 5.0, batch))
    near = soft > 0.01
    wave = draws.field(1.0, int(draws.below(10, 1)) + 4, batch, side)
    wrong = ((soft + draws.uniform(0, 0.22, batch, 1, 1) * wave > draws.uniform(0.3, 0.7, batch, 1, 1)) & near).float()
    theta = torch.eye(2, 3, device=masks.device).repeat(batch, 1, 1)
    theta[:, :, 2] = draws.normal(1.2, batch, 2).round() * 2 / side
    grid = F.affine_grid(theta, [batch, 1, side, side], align_corners=False)
    wrong = F.grid_sample(wrong[:, None], grid, mode="nearest", align_corners=False)[:, 0]
    kept = draws.chance(0.2, batch) | (wrong.sum((1, 2)) < 4)
    return torch.where(kept[:, None, None], masks, wrong)


def turned(draws: Draws, batch: int) -> torch.Tensor:
    """Rotations (B, 3, 3), evenly drawn: by unit quaternions."""
    w, x, y, z = F.normalize(draws.normal(1.0, batch, 4), dim=1).unbind(1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
