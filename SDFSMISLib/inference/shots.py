"""Painted slices on the network's grid, and the bank they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from SDFSMISLib.inference.contrast import Contrast
from SDFSMISLib.inference.region import Region
from SDFSMISLib.model.pipeline import SDFSMISPipeline
from SDFSMISLib.model.unet import SupportBank
from SDFSMISLib.support import SupportSlice


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
        return cls(image, piece.canonical_mask(label), piece.orientation.apply_spacing(piece.spacing))

    def region(self, full: bool) -> Region:
        """The region that shows this shot: around its own mask, or the whole slice."""
        return Region.whole(self.mask.shape, self.spacing) if full else Region.around(self.mask, self.spacing)

    def on_grid(self, region: Region, side: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Image (side, side) in [-1, 1] and mask (side, side), 0 or 1; a structure too fine for the grid is kept where
        most of it is."""
        mask = region.to_grid(self.mask.astype(np.float32), side, 0.0)
        return region.to_grid(self.image, side, -1.0), (mask > min(0.5, float(mask.max()) / 2)).float()


def colour(images: torch.Tensor) -> torch.Tensor:
    """Grey images (..., H, W) as the autoencoder takes them: (..., 3, H, W), three equal channels."""
    return images[..., None, :, :].expand(*images.shape[:-2], 3, *images.shape[-2:])


def painted_bank(
    pipeline: SDFSMISPipeline,
    shots: Sequence[Shot],
    regions: Sequence[Region],
    side: int,
    contrast: Contrast | None = None,
) -> SupportBank:
    """The bank (one row) of painted slices, each seen through its region, with `contrast` or that of its own."""
    images, masks = zip(*(shot.on_grid(region, side) for shot, region in zip(shots, regions, strict=True)), strict=True)
    seen = torch.stack([(contrast or Contrast.of(image))(image) for image in images])
    return pipeline.encode_support(colour(seen)[None], torch.stack(masks)[None])
