"""The `independent` strategy: each query slice alone against the support, as in the paper (arXiv 2604.03134)."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch

from SDFSMISLib.inference.network_images import Contrast, Region, Shot, as_rgb, encode_shots
from SDFSMISLib.inference.networks import Networks
from SDFSMISLib.slices import SliceStack

SliceProbability = tuple[int, int, np.ndarray]
"""(label, slice, probability), the probability as uint8 canonical (rows, columns), 255 meaning 1."""


def run_independent(
    networks: Networks,
    scan: SliceStack,
    shots: Mapping[int, Sequence[Shot]],
    regions: Mapping[int, tuple[Region, Sequence[Region]]],
    indices: Sequence[int],
    contrast: Contrast | None = None,
    finished: Collection[tuple[int, int]] = (),
) -> Iterator[list[SliceProbability]]:
    """Segment slices `indices` of `scan` for every label; yields the results of each batch.

    Args:
        shots: the painted slices of each label.
        regions: for each label the region of the query slices, and that of each shot. Labels with the same query region
            share the encoding of the slices.
        contrast: of all slices; None = each slice's own.
        finished: (label, slice) of an earlier run, which are left out. The others come out bit by bit as they would
            without.
    """
    pipeline, side = networks.pipeline, networks.side
    banks = {label: encode_shots(pipeline, shots[label], regions[label][1], side, contrast) for label in shots}
    encoded: dict[tuple[Region, tuple[int, ...]], tuple[torch.Tensor, torch.Tensor]] = {}  # images, latents

    def encode(region: Region, part: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        key = (region, tuple(part))
        if key not in encoded:
            images = [region.to_grid(scan.image(index), side, -1.0) for index in part]
            contrasts = [contrast or Contrast.of(image) for image in images]
            seen = as_rgb(torch.stack([one(image) for one, image in zip(contrasts, images, strict=True)]))
            names = [slice_name(scan, index, region, one) for index, one in zip(part, contrasts, strict=True)]
            encoded[key] = seen, networks.encoded(seen, names)
        return encoded[key]

    def segment(label: int, part: Sequence[int]) -> list[SliceProbability]:
        region, bank = regions[label][0], banks[label]
        images, latents = encode(region, part)
        maps = pipeline.segment(latents, bank, pipeline.hints(images, bank)).mean(1)
        return [
            (label, index, on_slice_grid(region, values, scan.shape)) for index, values in zip(part, maps, strict=True)
        ]

    for start in range(0, len(indices), networks.batch_size):
        part = indices[start : start + networks.batch_size]
        for label in banks:
            missing = [index for index in part if (label, index) not in finished]
            if missing:
                yield networks.in_parts(missing, partial(segment, label), len(part))
        encoded.clear()


def slice_name(scan: SliceStack, index: int, region: Region, contrast: Contrast) -> tuple[str, Hashable] | None:
    """Key of a slice in a `LatentCache`: its identity, and how it is seen; None if slices have no identity."""
    if scan.identity is None:
        return None
    return scan.identity(index), (scan.plane.window, scan.plane.orientation, region, tuple(contrast.values.tolist()))


def on_slice_grid(region: Region, values: torch.Tensor, shape: tuple[int, int]) -> np.ndarray:
    """Probabilities (side, side) of a region on the whole canonical slice, uint8 (rows, columns), 255 meaning 1."""
    return region.paste(np.rint(255 * region.from_grid(values)).astype(np.uint8), shape)
