"""The `independent` strategy: each query slice alone against the support, as in the paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from SDFSMISLib.inference.contrast import Contrast
from SDFSMISLib.inference.region import Region
from SDFSMISLib.inference.scan import QueryScan
from SDFSMISLib.inference.shots import Shot, colour, painted_bank
from SDFSMISLib.model.pipeline import SDFSMISPipeline

OnProbability = Callable[[int, int, np.ndarray], None]  # label, slice, uint8 canonical (rows, columns)


def run_independent(
    pipeline: SDFSMISPipeline,
    scan: QueryScan,
    shots: Mapping[int, Sequence[Shot]],
    regions: Mapping[int, tuple[Region, Sequence[Region]]],
    indices: Sequence[int],
    batch_size: int,
    deliver: OnProbability,
    contrast: Contrast | None = None,
) -> None:
    """Segment slices `indices` of `scan` for every label.

    Args:
        shots: the painted slices of each label.
        regions: for each label the region of the query slices, and that of each shot. Labels that share a query region
            share the encoding of the image.
        deliver: called for every label and slice; may raise to stop the run.
        contrast: of all slices; None = each slice's own.
    """
    side = pipeline.config.resolution
    banks = {label: painted_bank(pipeline, shots[label], regions[label][1], side, contrast) for label in shots}
    for start in range(0, len(indices), batch_size):
        part = indices[start : start + batch_size]
        pictures = [scan.image(index) for index in part]
        seen: dict[Region, torch.Tensor] = {}
        latents: dict[Region, torch.Tensor] = {}
        for label, bank in banks.items():
            region = regions[label][0]
            if region not in latents:
                images = [region.to_grid(picture, side, -1.0) for picture in pictures]
                seen[region] = colour(torch.stack([(contrast or Contrast.of(image))(image) for image in images]))
                latents[region] = pipeline.encode_images(seen[region])
            maps = pipeline.segment(latents[region], bank, pipeline.hints(seen[region], bank)).mean(1)
            for index, values in zip(part, maps, strict=True):
                deliver(label, index, on_slice_grid(region, values, scan.shape))


def on_slice_grid(region: Region, values: torch.Tensor, shape: tuple[int, int]) -> np.ndarray:
    """Probabilities (side, side) of a region as uint8 on the whole canonical slice, 255 meaning 1."""
    return region.paste(np.rint(255 * region.from_grid(values)).astype(np.uint8), shape)
