"""Regions of a slice: which square of it fills the network's grid, and the way there and back.

All is in canonical orientation (see `SliceOrientation`). A region is made of whole pixels, so that nothing is resampled
twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

MARGIN = 2.0  # half sides of the structure's box
MARGIN_PIXELS = 4


@dataclass(frozen=True)
class Region:
    """A rectangle of whole pixels that is square in mm (up to a pixel); it may reach beyond the slice."""

    top: int
    left: int
    height: int
    width: int

    @classmethod
    def whole(cls, shape: tuple[int, int], spacing: tuple[float, float]) -> Region:
        """The smallest square around a slice of `shape` (rows, columns), `spacing` (row, column) in mm."""
        half = max(shape[0] * spacing[0], shape[1] * spacing[1]) / 2
        return cls._square((shape[0] * spacing[0] / 2, shape[1] * spacing[1] / 2), half, spacing)

    @classmethod
    def around(cls, mask: np.ndarray, spacing: tuple[float, float], margin: float = MARGIN) -> Region:
        """The square around a structure, `margin` times its half side and a few pixels more; all where `mask` is empty.

        The square may be larger than the slice: a structure then takes the same part of the grid whatever its size,
        which is what the networks have learned from.

        Args:
            mask: bool (rows, columns).
            spacing: (row, column) in mm.
        """
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not len(rows):
            return cls.whole(mask.shape, spacing)
        edges = [
            (rows[0] * spacing[0], (rows[-1] + 1) * spacing[0]),
            (columns[0] * spacing[1], (columns[-1] + 1) * spacing[1]),
        ]
        half = max(high - low for low, high in edges) / 2 * margin + MARGIN_PIXELS * max(spacing)
        return cls._square((sum(edges[0]) / 2, sum(edges[1]) / 2), half, spacing)

    @classmethod
    def _square(cls, centre: tuple[float, float], half: float, spacing: tuple[float, float]) -> Region:
        starts = [round((c - half) / s) for c, s in zip(centre, spacing, strict=True)]
        sides = [max(1, round(2 * half / s)) for s in spacing]
        return cls(starts[0], starts[1], sides[0], sides[1])

    def cut(self, image: np.ndarray, outside: float) -> np.ndarray:
        """The region's part of `image` (rows, columns) as float32 (height, width); `outside` beyond the slice."""
        part = np.full((self.height, self.width), outside, dtype=np.float32)
        here, there = self.overlap(image.shape)
        part[here] = image[there]
        return part

    def paste(self, part: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """The slice of `shape` that holds `part` (height, width) in this region, and 0 elsewhere."""
        full = np.zeros(shape, dtype=part.dtype)
        here, there = self.overlap(shape)
        full[there] = part[here]
        return full

    def to_grid(self, image: np.ndarray, side: int, outside: float) -> torch.Tensor:
        """The region of `image` on the network's grid, float32 (side, side); finer pixels are averaged."""
        part = torch.from_numpy(self.cut(image, outside))[None, None]
        return F.interpolate(part, size=(side, side), mode="bilinear", antialias=True, align_corners=False)[0, 0]

    def from_grid(self, values: torch.Tensor) -> np.ndarray:
        """Values (side, side) on the network's grid as this region's pixels, float32 (height, width), still soft."""
        size = (self.height, self.width)
        back = F.interpolate(
            values[None, None].float(), size=size, mode="bilinear", antialias=True, align_corners=False
        )
        return back[0, 0].cpu().numpy()

    def overlap(self, shape: tuple[int, ...]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Where the region and a slice of `shape` meet: in the region's pixels, and in the slice's."""
        here, there = [], []
        for start, side, full in zip((self.top, self.left), (self.height, self.width), shape, strict=True):
            low, high = max(start, 0), max(min(start + side, full), max(start, 0))
            there.append(slice(low, high))
            here.append(slice(low - start, high - start))
        return (here[0], here[1]), (there[0], there[1])
