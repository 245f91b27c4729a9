"""Contrast of a region: grey levels that are frequent there are spread, so that soft tissue in a window of bone and
air keeps differences that a network can see.

Half histogram equalisation, half as it was, and no level counts more than `LIMIT` times its share: fully equalised
images turn noise into structure (Pizer et al., "Adaptive histogram equalization and its variations", CVGIP 1987). The
map is made from one slice and holds for all slices that are compared with it, so that a tissue keeps its grey level.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

LEVELS = 64
SHARE = 0.5  # of the equalised image
AIR = -0.98  # what is as dark as outside the scan does not count
LIMIT = 5.0
LEAST_PIXELS = 32


@dataclass(frozen=True, eq=False)
class Contrast:
    """A map of grey levels. `values`: (LEVELS + 1), the new levels of -1 to 1 in equal steps; rising."""

    values: torch.Tensor

    @classmethod
    def of(cls, image: torch.Tensor) -> Contrast:
        """The contrast for a region that looks like `image` (height, width) in [-1, 1]."""
        levels = torch.linspace(-1, 1, LEVELS + 1)
        inside = image.float().cpu().flatten()
        inside = inside[inside > AIR]
        if len(inside) < LEAST_PIXELS:
            return cls(levels)
        share = torch.histc(inside, LEVELS, min=-1, max=1) / len(inside)
        limited = share.clamp(max=LIMIT / LEVELS)
        limited = limited + (1 - limited.sum()) / LEVELS
        below = torch.cat([torch.zeros(1), limited.cumsum(0)])
        return cls((1 - SHARE) * levels + SHARE * (2 * below - 1))

    @classmethod
    def unchanged(cls) -> Contrast:
        return cls(torch.linspace(-1, 1, LEVELS + 1))

    @property
    def is_unchanged(self) -> bool:
        return torch.equal(self.values, torch.linspace(-1, 1, LEVELS + 1))

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Images in [-1, 1], any shape, with this contrast, in [-1, 1]."""
        place = (images.float().clamp(-1, 1) + 1) * (LEVELS / 2)
        lower = place.long().clamp(max=LEVELS - 1)
        values = self.values.to(images.device)
        low, high = values[lower], values[lower + 1]
        return torch.lerp(low, high, place - lower).clamp(-1, 1)
