"""Scans without painted slices: where the structure is, and the `independent` strategy with warped masks.

`search_structure` registers the painted slices onto every slice of the scan. The slice that then looks most like a
painted one around the structure, and needed the least deformation, is where propagation starts, with the warped mask as
a first guess. Its accuracy, and that of other scores: Resources/Documentation/model-card/experiments.md.

`run_cross_scan` is the `independent` strategy of networks with a neighbour input (`SupportQueryUNet`,
``neighbour=True``): the networks correct the masks that registration warped onto each slice. `correct_masks` does that
with any masks, such as a prior by finished scans (`SDFSMISLib.inference.atlas`): each slice is its own neighbour, with
its mask, and the likeness comes from that mask too, since grey levels of another scanner mislead. All this is not in
the paper (arXiv 2604.03134).
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch

from SDFSMISLib.inference.independent import SliceProbability, on_slice_grid, slice_name
from SDFSMISLib.inference.network_images import Contrast, Region, Shot, as_rgb, encode_shots
from SDFSMISLib.inference.networks import Networks
from SDFSMISLib.inference.propagate import nearest_painted
from SDFSMISLib.inference.registration import SIDE, PaintedBody, body_region, warped_masks
from SDFSMISLib.model.unet import SupportBank
from SDFSMISLib.slices import SliceStack

MIN_SCORE = 0.0  # a match with a lower score is none
MIN_WARPED = 0.5  # a slice whose warped mask nowhere exceeds this comes out empty
Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class StructureMatch:
    """A slice that shows the structure.

    Attributes:
        index: the slice.
        score: of the match, see `PaintedBody.register_to`; 1 is perfect.
        probability: the warped mask, uint8 canonical (rows, columns), 255 meaning 1.
    """

    index: int
    score: float
    probability: np.ndarray


def search_structure(
    scan: SliceStack, shots: Sequence[Shot], indices: Sequence[int]
) -> Generator[None, None, StructureMatch | None]:
    """The best match of painted slices among slices `indices` of a scan; yields None after each slice.

    Args:
        shots: painted slices of other scans; those with an empty mask are ignored.

    Returns:
        None if no slice scores more than `MIN_SCORE`.
    """
    painted = [PaintedBody.of(shot) for shot in shots if shot.mask.any()]
    best: StructureMatch | None = None
    for index in indices:
        image = scan.image(index)
        region = body_region(image, scan.spacing)
        fixed = region.to_grid(image, SIDE, -1.0)
        for one in painted:
            score, mask = one.register_to(fixed)
            if score > (best.score if best else MIN_SCORE):
                best = StructureMatch(index, score, on_slice_grid(region, mask, scan.shape))
        yield
    return best


def run_cross_scan(
    networks: Networks,
    scan: SliceStack,
    label: int,
    shots: Sequence[Shot],
    indices: Sequence[int],
    finished: Collection[tuple[int, int]] = (),
) -> Generator[list[SliceProbability], None, None]:
    """Segment slices `indices` of `scan` for a label; yields the results of each batch, none while registering.

    Args:
        shots: the label's painted slices, all of other scans.
        finished: (label, slice) of an earlier run, which are left out. The others come out bit by bit as they would
            without.
    """
    if all((label, index) in finished for index in indices):
        return
    masks = yield from as_empty_batches(warped_masks(scan, shots, indices))
    yield from correct_masks(networks, scan, label, shots, masks, indices, finished)


def correct_masks(
    networks: Networks,
    scan: SliceStack,
    label: int,
    shots: Sequence[Shot],
    masks: Mapping[int, np.ndarray],
    indices: Sequence[int],
    finished: Collection[tuple[int, int]] = (),
) -> Iterator[list[SliceProbability]]:
    """`run_cross_scan` with given masks.

    Args:
        masks: by slice, canonical (rows, columns): float32, 0 to 1, or uint8 with 255 meaning 1. A slice without one,
            or whose mask nowhere exceeds `MIN_WARPED`, comes out empty.
    """
    return _CorrectedMasks(networks, scan, label, shots, masks).run(indices, finished)


def as_empty_batches(search: Generator[None, None, Item]) -> Generator[list[Any], None, Item]:
    """The return value of a search; each of its steps yields an empty batch."""
    while True:
        try:
            next(search)
        except StopIteration as end:
            return end.value
        yield []


@dataclass(eq=False)
class _CorrectedMasks:
    """One call of `correct_masks`."""

    networks: Networks
    scan: SliceStack
    label: int
    shots: Sequence[Shot]
    masks: Mapping[int, np.ndarray]

    def run(self, indices: Sequence[int], finished: Collection[tuple[int, int]]) -> Iterator[list[SliceProbability]]:
        shown = [index for index in indices if index in self.masks and self._mask(index).max() > MIN_WARPED]
        nothing = np.zeros(self.scan.shape, dtype=np.uint8)
        rest = sorted({*indices} - {*shown})
        yield [(self.label, index, nothing) for index in rest if (self.label, index) not in finished]
        if not shown:
            return
        painted = nearest_painted(0, {}, self.shots)
        regions = [shot.region(False) for shot in painted]
        bank = encode_shots(self.networks.pipeline, painted, regions, self.networks.side)
        for start in range(0, len(shown), self.networks.batch_size):
            part = shown[start : start + self.networks.batch_size]
            missing = [index for index in part if (self.label, index) not in finished]
            if missing:
                yield self.networks.in_parts(missing, partial(self._segmented, bank=bank), len(part))

    def _segmented(self, part: Sequence[int], bank: SupportBank) -> list[SliceProbability]:
        pipeline, scan, side = self.networks.pipeline, self.scan, self.networks.side
        given = [self._mask(i) for i in part]
        regions = [Region.around(mask > MIN_WARPED, scan.spacing) for mask in given]
        views = list(zip(part, regions, strict=True))
        queries = [region.to_grid(scan.image(i), side, -1.0) for i, region in views]
        masks = torch.stack([region.to_grid(mask, side, 0.0) for mask, region in zip(given, regions, strict=True)])
        contrasts = [Contrast.of(query) if pipeline.sees_contrast else Contrast.unchanged() for query in queries]
        seen = torch.stack([one(query) for one, query in zip(contrasts, queries, strict=True)])
        images, firm = as_rgb(seen), (masks > MIN_WARPED).float()[:, None]
        rows = bank.rows(torch.zeros(len(part), dtype=torch.long, device=pipeline.device))
        own = pipeline.encode_support(images[:, None], firm, rows.conditions)
        whole = replace(rows.joined(own), likeness=own.likeness)
        names = [slice_name(scan, i, region, one) for (i, region), one in zip(views, contrasts, strict=True)]
        hints = pipeline.hints(images, whole, images, masks)
        maps = pipeline.segment(self.networks.encoded(images, names), whole, hints).mean(1).cpu()
        return [
            (self.label, i, on_slice_grid(region, values, scan.shape))
            for (i, region), values in zip(views, maps, strict=True)
        ]

    def _mask(self, index: int) -> np.ndarray:
        """float32, 0 to 1."""
        mask = self.masks[index]
        return mask.astype(np.float32) / 255 if mask.dtype == np.uint8 else mask
