"""Where a painted structure lies in a scan without painted slices: the painted slice is registered onto every slice.

The slice that then looks most like the painted one around the structure, and needed the least bending for it, is where
propagation starts, with the mask that came along as a first guess. Atlas registration of one slice, in short; some
milliseconds a slice. What it finds was measured, beside other scores: Resources/MODEL_CARD.md.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from SDFSMISLib.inference.independent import on_slice_grid
from SDFSMISLib.inference.region import Region
from SDFSMISLib.inference.registration import carried, displacement
from SDFSMISLib.inference.shots import Shot
from SDFSMISLib.stack import SliceStack

SIDE = 128  # of the grid on which bodies are registered
AIR = -0.9  # what is darker is not body
REACH = 8  # pixels around the structure that are compared
BENDING = 0.3  # weight of the mean squared gradient of the displacement, against the correlation
LEAST_PIXELS = 10
LEAST_SCORE = 0.0  # a worse match is none


@dataclass(frozen=True, eq=False)
class Found:
    """A slice that shows the structure: its `index`, the `score` of the match (1 is perfect), and the `probability`,
    uint8 canonical (rows, columns), 255 meaning 1."""

    index: int
    score: float
    probability: np.ndarray


def find_structure(
    scan: SliceStack, shots: Sequence[Shot], indices: Sequence[int]
) -> Generator[None, None, Found | None]:
    """The best match of painted slices among slices `indices` of a scan; stops after each slice, to be asked on.

    Args:
        shots: painted slices of other scans; those on which nothing is painted are not looked for.

    Returns:
        None where no slice looks like a painted one.
    """
    patterns = [_Pattern.of(shot) for shot in shots if shot.mask.any()]
    best: Found | None = None
    for index in indices:
        image = scan.image(index)
        region = _body(image, scan.spacing)
        seen = region.to_grid(image, SIDE, -1.0)
        for pattern in patterns:
            score, mask = pattern.match(seen)
            if score > (best.score if best else LEAST_SCORE):
                best = Found(index, score, on_slice_grid(region, mask, scan.shape))
        yield
    return best


@dataclass(frozen=True, eq=False)
class _Pattern:
    """A painted slice's body on the grid: `image` in [-1, 1], `mask`, and what is `near` it, (SIDE, SIDE) each."""

    image: torch.Tensor
    mask: torch.Tensor
    near: torch.Tensor

    @classmethod
    def of(cls, shot: Shot) -> _Pattern:
        image, mask = shot.on_grid(_body(shot.image, shot.spacing), SIDE)
        return cls(image, mask, F.max_pool2d(mask[None], 2 * REACH + 1, 1, REACH)[0])

    def match(self, seen: torch.Tensor) -> tuple[float, torch.Tensor]:
        """(score, carried mask) of this pattern registered onto a slice's body `seen` (SIDE, SIDE)."""
        moves = displacement(self.image, seen)
        image, mask, near = carried(torch.stack([self.image, self.mask, self.near]), moves.expand(3, -1, -1, -1))
        if mask.sum() < LEAST_PIXELS:
            return -1.0, mask
        bending = moves.diff(dim=0).square().sum(-1)[self.near[1:] > 0.5].mean()
        return _correlation(image, seen, near) - BENDING * float(bending), mask


def _body(image: np.ndarray, spacing: tuple[float, float]) -> Region:
    """The square around what is not air; all of a slice where nothing is."""
    return Region.around(image > AIR, spacing, 1.0)


def _correlation(one: torch.Tensor, other: torch.Tensor, weights: torch.Tensor) -> float:
    """Weighted correlation coefficient, -1 to 1; 0 where an image is flat."""
    weights = weights / weights.sum()
    one, other = one - (weights * one).sum(), other - (weights * other).sum()
    spread = ((weights * one.square()).sum() * (weights * other.square()).sum()).sqrt()
    return float((weights * one * other).sum() / spread.clamp(min=1e-6))
