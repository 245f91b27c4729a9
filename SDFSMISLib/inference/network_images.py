"""Regions of a slice: which square of it fills the network's grid, and the way there and back.

All is in canonical orientation (see `SliceOrientation`). A region is made of whole pixels, so that nothing is resampled
twice.

Contrast of a region: grey levels that are frequent there are spread, so that soft tissue in a window of bone and
air keeps differences that a network can see.

Half histogram equalisation, half as it was, and no level counts more than `LIMIT` times its share: fully equalised
images turn noise into structure (Pizer et al., "Adaptive histogram equalization and its variations", CVGIP 1987). The
map is made from one slice and holds for all slices that are compared with it, so that a tissue keeps its grey level.

Painted slices on the network's grid, and the bank they make.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from SDFSMISLib.images.labelmap import bounding_box
from SDFSMISLib.model.pipeline import SDFSMISPipeline
from SDFSMISLib.model.unet import SupportBank
from SDFSMISLib.support import SupportSlice

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
        box = bounding_box(mask)
        if box is None:
            return cls.whole(mask.shape, spacing)
        edges = [(side.start * step, side.stop * step) for side, step in zip(box, spacing, strict=True)]
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


@dataclass(frozen=True, eq=False)
class Shot:
    """A slice with its mask, canonical: `image` float32 (rows, columns) in [-1, 1], `mask` bool, `spacing` in mm."""

    image: np.ndarray
    mask: np.ndarray
    spacing: tuple[float, float]

    @classmethod
    def of(cls, piece: SupportSlice, label: int, image: np.ndarray | None = None) -> Shot:
        """A painted slice of a label; `image`, where it is there already, is the piece's canonical one."""
        image = piece.canonical_image() if image is None else image
        return cls(image, piece.canonical_mask(label), piece.plane.canonical_spacing)

    def region(self, full: bool) -> Region:
        """The region that shows this shot: around its own mask, or the whole slice."""
        return Region.whole(self.mask.shape, self.spacing) if full else Region.around(self.mask, self.spacing)

    def on_grid(self, region: Region, side: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Image (side, side) in [-1, 1] and mask (side, side), 0 or 1; a structure too fine for the grid is kept where
        most of it is."""
        mask = region.to_grid(self.mask.astype(np.float32), side, 0.0)
        return region.to_grid(self.image, side, -1.0), (mask > min(0.5, float(mask.max()) / 2)).float()


def as_rgb(images: torch.Tensor) -> torch.Tensor:
    """Grey images (..., H, W) as the autoencoder takes them: (..., 3, H, W), three equal channels."""
    return images[..., None, :, :].expand(*images.shape[:-2], 3, *images.shape[-2:])


def encode_shots(
    pipeline: SDFSMISPipeline,
    shots: Sequence[Shot],
    regions: Sequence[Region],
    side: int,
    contrast: Contrast | None = None,
) -> SupportBank:
    """The bank (one row) of painted slices, each seen through its region, with `contrast` or that of its own."""
    images, masks = zip(*(shot.on_grid(region, side) for shot, region in zip(shots, regions, strict=True)), strict=True)
    seen = torch.stack([(contrast or Contrast.of(image))(image) for image in images])
    return pipeline.encode_support(as_rgb(seen)[None], torch.stack(masks)[None])
