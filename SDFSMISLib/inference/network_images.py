"""Slices as the networks see them: the region that is shown, its contrast, and painted slices as a support bank.

All images are in canonical orientation (see `SDFSMISLib.slices.SliceOrientation`).
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

MARGIN = 2.0  # half side of a region, in half sides of the structure's bounding box
MARGIN_PIXELS = 4  # added to it on each side


@dataclass(frozen=True)
class Region:
    """The part of a slice that fills the networks' grid: a rectangle of whole pixels, square in mm up to a pixel.

    It may reach beyond the slice. It consists of whole pixels so that images are resampled only once.

    Attributes:
        top, left: index of its first row and column; negative if it begins outside the slice.
        height, width: numbers of rows and columns.

    Example:
        >>> import numpy as np
        >>> mask = np.zeros((64, 64), dtype=bool)
        >>> mask[20:30, 30:40] = True
        >>> region = Region.around(mask, spacing=(1.0, 1.0))
        >>> region
        Region(top=11, left=21, height=28, width=28)
        >>> grid = region.to_grid(mask.astype(np.float32), side=96, outside=0.0)
        >>> tuple(grid.shape)
        (96, 96)
        >>> bool(((region.paste(region.from_grid(grid), mask.shape) > 0.5) == mask).all())
        True
    """

    top: int
    left: int
    height: int
    width: int

    @classmethod
    def whole(cls, shape: tuple[int, int], spacing: tuple[float, float]) -> Region:
        """The smallest square around a slice of `shape` (rows, columns) and `spacing` (row, column) in mm."""
        half = max(shape[0] * spacing[0], shape[1] * spacing[1]) / 2
        return cls._square((shape[0] * spacing[0] / 2, shape[1] * spacing[1] / 2), half, spacing)

    @classmethod
    def around(cls, mask: np.ndarray, spacing: tuple[float, float], margin: float = MARGIN) -> Region:
        """The square around a structure; around the whole slice if `mask` is empty.

        The square may be larger than the slice. A structure then fills the same part of the grid whatever its size, as
        it did when the networks were trained.

        Args:
            mask: bool (rows, columns).
            spacing: (row, column) in mm.
            margin: half side of the square, in half sides of the structure's bounding box; `MARGIN_PIXELS` are added.
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
        """The region of `image` (rows, columns), float32 (height, width); pixels beyond the slice are `outside`."""
        part = np.full((self.height, self.width), outside, dtype=np.float32)
        in_region, in_slice = self.overlap(image.shape)
        part[in_region] = image[in_slice]
        return part

    def paste(self, part: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """A slice of `shape` with `part` (height, width) in this region and 0 elsewhere, dtype of `part`."""
        full = np.zeros(shape, dtype=part.dtype)
        in_region, in_slice = self.overlap(shape)
        full[in_slice] = part[in_region]
        return full

    def to_grid(self, image: np.ndarray, side: int, outside: float) -> torch.Tensor:
        """The region of `image` (rows, columns) on the networks' grid, float32 (side, side), antialiased."""
        part = torch.from_numpy(self.cut(image, outside))[None, None]
        return F.interpolate(part, size=(side, side), mode="bilinear", antialias=True, align_corners=False)[0, 0]

    def from_grid(self, values: torch.Tensor) -> np.ndarray:
        """Values (side, side) on the networks' grid as pixels of this region, float32 (height, width)."""
        size = (self.height, self.width)
        back = F.interpolate(
            values[None, None].float(), size=size, mode="bilinear", antialias=True, align_corners=False
        )
        return back[0, 0].cpu().numpy()

    def overlap(self, shape: tuple[int, ...]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """The intersection with a slice of `shape`: (rows, columns) of the region, and (rows, columns) of the slice."""
        in_region, in_slice = [], []
        for start, side, full in zip((self.top, self.left), (self.height, self.width), shape, strict=True):
            low, high = max(start, 0), max(min(start + side, full), max(start, 0))
            in_slice.append(slice(low, high))
            in_region.append(slice(low - start, high - start))
        return (in_region[0], in_region[1]), (in_slice[0], in_slice[1])


def known_on_grid(sampled: torch.Tensor, pixels: float) -> torch.Tensor:
    """What is known of a slice (see `SDFSMISLib.model.unet.Hints`), sampled on the networks' grid: -1 to 1.

    A line one pixel wide fades where the grid is coarser than the slice, and is brought back to its strength.

    Args:
        sampled: (side, side), the slice's map on the grid.
        pixels: side of the region in the slice's pixels.
    """
    return (sampled * max(1.0, pixels / sampled.shape[-1])).clamp(-1, 1)


LEVELS = 64  # bins of the histogram
SHARE = 0.5  # weight of the equalised image against the image itself
AIR = -0.98  # darker pixels are outside the scan and not counted
LIMIT = 5.0  # of a bin, in shares of a uniform histogram
LEAST_PIXELS = 32  # a region with fewer pixels keeps its contrast


@dataclass(frozen=True, eq=False)
class Contrast:
    """A monotonic map of grey levels that spreads the frequent ones: limited histogram equalisation.

    In a window that holds air and bone, soft tissue takes few grey levels; the map keeps its differences visible to the
    networks. The result is half the equalised image, half the image itself, and no bin counts more than `LIMIT` times
    its share: full equalisation turns noise into structure (Pizer et al., "Adaptive histogram equalization and its
    variations", CVGIP 1987). The map is made from one slice and applied to all slices that are compared with it, so
    that a tissue keeps its grey level.

    Attributes:
        values: float32 (LEVELS + 1,), rising: the new grey levels of -1 to 1 in equal steps.

    Example:
        >>> image = torch.linspace(-0.2, 0.2, 64 * 64).reshape(64, 64)
        >>> contrast = Contrast.of(image)
        >>> spread = contrast(image)
        >>> bool(spread.max() - spread.min() > 2 * (image.max() - image.min()))
        True
        >>> torch.allclose(Contrast.unchanged()(image), image, atol=1e-6)
        True
    """

    values: torch.Tensor

    @classmethod
    def of(cls, image: torch.Tensor) -> Contrast:
        """The contrast for regions that look like `image` (height, width) in [-1, 1]."""
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
        """The identity."""
        return cls(torch.linspace(-1, 1, LEVELS + 1))

    @property
    def is_unchanged(self) -> bool:
        return torch.equal(self.values, torch.linspace(-1, 1, LEVELS + 1))

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Images with this contrast, float32 in [-1, 1], of images in [-1, 1] of any shape."""
        place = (images.float().clamp(-1, 1) + 1) * (LEVELS / 2)
        lower = place.long().clamp(max=LEVELS - 1)
        values = self.values.to(images.device)
        low, high = values[lower], values[lower + 1]
        return torch.lerp(low, high, place - lower).clamp(-1, 1)


@dataclass(frozen=True, eq=False)
class Shot:
    """A support slice: an image and the mask of one label, canonical.

    Attributes:
        image: float32 (rows, columns) in [-1, 1].
        mask: bool (rows, columns).
        spacing: (row, column) in mm.

    Example:
        >>> import numpy as np
        >>> mask = np.zeros((64, 64), dtype=bool)
        >>> mask[20:30, 30:40] = True
        >>> shot = Shot(np.where(mask, 0.5, -0.5).astype(np.float32), mask, (1.0, 1.0))
        >>> image, grid_mask = shot.on_grid(shot.region(full=False), side=96)
        >>> tuple(image.shape), sorted(grid_mask.unique().tolist())
        ((96, 96), [0.0, 1.0])
    """

    image: np.ndarray
    mask: np.ndarray
    spacing: tuple[float, float]

    @classmethod
    def of(cls, support_slice: SupportSlice, label: int, image: np.ndarray | None = None) -> Shot:
        """A label on a support slice; `image`: its canonical image, if the caller has it already."""
        image = support_slice.canonical_image() if image is None else image
        return cls(image, support_slice.canonical_mask(label), support_slice.plane.canonical_spacing)

    def region(self, full: bool) -> Region:
        """The region of this shot: the whole slice if `full`, else around its mask."""
        return Region.whole(self.mask.shape, self.spacing) if full else Region.around(self.mask, self.spacing)

    def on_grid(self, region: Region, side: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Image in [-1, 1] and mask, 0 or 1, float32 (side, side) each.

        A structure that is too fine for the grid is kept at the grid positions that it fills most.
        """
        mask = region.to_grid(self.mask.astype(np.float32), side, 0.0)
        return region.to_grid(self.image, side, -1.0), (mask > min(0.5, float(mask.max()) / 2)).float()


def as_rgb(images: torch.Tensor) -> torch.Tensor:
    """Grey images (..., H, W) with three equal channels, (..., 3, H, W), as the autoencoder takes them."""
    return images[..., None, :, :].expand(*images.shape[:-2], 3, *images.shape[-2:])


def encode_shots(
    pipeline: SDFSMISPipeline,
    shots: Sequence[Shot],
    regions: Sequence[Region],
    side: int,
    contrast: Contrast | None = None,
) -> SupportBank:
    """The support bank, one row, of painted slices.

    Args:
        shots: S painted slices.
        regions: the region of each.
        side: side of the networks' grid, pixels.
        contrast: of all of them; None = each slice's own.
    """
    images, masks = zip(*(shot.on_grid(region, side) for shot, region in zip(shots, regions, strict=True)), strict=True)
    seen = torch.stack([(contrast or Contrast.of(image))(image) for image in images])
    return pipeline.encode_support(as_rgb(seen)[None], torch.stack(masks)[None])
