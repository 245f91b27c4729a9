"""Where a painted structure lies in a scan without painted slices: the painted slice is registered onto every slice.

The slice that then looks most like the painted one around the structure, and needed the least bending for it, is where
propagation starts, with the mask that came along as a first guess. What this finds was measured, beside other scores:
Resources/Documentation/model-card/experiments.md.

The `independent` strategy on a scan without painted slices, for networks that have an input for what registration
brings (`SupportQueryUNet`, `neighbour`): each slice is handed to them as its own finished neighbour, with the mask that
was brought onto it, to be corrected. What is alike there is told by that mask too, since on another scanner's images
grey levels of the painted slice mislead. Ours, not the paper's.
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

MIN_SCORE = 0.0  # a worse match is none


@dataclass(frozen=True, eq=False)
class StructureMatch:
    """A slice that shows the structure: its `index`, the `score` of the match (1 is perfect), and the `probability`,
    uint8 canonical (rows, columns), 255 meaning 1."""

    index: int
    score: float
    probability: np.ndarray


def search_structure(
    scan: SliceStack, shots: Sequence[Shot], indices: Sequence[int]
) -> Generator[None, None, StructureMatch | None]:
    """The best match of painted slices among slices `indices` of a scan; stops after each slice, to be asked on.

    Args:
        shots: painted slices of other scans; those on which nothing is painted are not looked for.

    Returns:
        None where no slice looks like a painted one.
    """
    painted = [PaintedBody.of(shot) for shot in shots if shot.mask.any()]
    best: StructureMatch | None = None
    for index in indices:
        image = scan.image(index)
        region = body_region(image, scan.spacing)
        seen = region.to_grid(image, SIDE, -1.0)
        for one in painted:
            score, mask = one.onto(seen)
            if score > (best.score if best else MIN_SCORE):
                best = StructureMatch(index, score, on_slice_grid(region, mask, scan.shape))
        yield
    return best


Item = TypeVar("Item")

MIN_WARPED = 0.5  # a slice on which no pixel is brought with more is empty


def run_cross_scan(
    networks: Networks,
    scan: SliceStack,
    label: int,
    shots: Sequence[Shot],
    indices: Sequence[int],
    finished: Collection[tuple[int, int]] = (),
) -> Generator[list[SliceProbability], None, None]:
    """Segment slices `indices` of `scan` for a label; hands out what each batch gives, nothing while it registers.

    Args:
        shots: the label's painted slices, all of other scans.
        known: (label, slice) that were answered before and are passed over. The others come out to the bit as they
            would without.
    """
    if all((label, index) in finished for index in indices):
        return
    masks = yield from as_empty_batches(warped_masks(scan, shots, indices))
    yield from _CrossScan(networks, scan, label, shots, masks).run(indices, finished)


def as_empty_batches(search: Generator[None, None, Item]) -> Generator[list[Any], None, Item]:
    """What a search returns; each of its stops is a batch that gave nothing."""
    while True:
        try:
            next(search)
        except StopIteration as end:
            return end.value
        yield []


@dataclass(eq=False)
class _CrossScan:
    """One label's slices, and what was brought onto them."""

    networks: Networks
    scan: SliceStack
    label: int
    shots: Sequence[Shot]
    masks: Mapping[int, np.ndarray]

    def run(self, indices: Sequence[int], finished: Collection[tuple[int, int]]) -> Iterator[list[SliceProbability]]:
        shown = [index for index in indices if index in self.masks and self.masks[index].max() > MIN_WARPED]
        nothing = np.zeros(self.scan.shape, dtype=np.uint8)
        rest = sorted({*indices} - {*shown})
        yield [(self.label, index, nothing) for index in rest if (self.label, index) not in finished]
        if not shown:
            return
        seen = nearest_painted(0, {}, self.shots)
        bank = encode_shots(self.networks.pipeline, seen, [one.region(False) for one in seen], self.networks.side)
        for start in range(0, len(shown), self.networks.batch_size):
            part = shown[start : start + self.networks.batch_size]
            missing = [index for index in part if (self.label, index) not in finished]
            if missing:
                # As in `run_independent`: a single image is rounded otherwise than one of several.
                padded = missing * 2 if len(missing) == 1 < len(part) else missing
                yield self.networks.in_parts(padded, partial(self._segmented, bank=bank))[: len(missing)]

    def _segmented(self, part: Sequence[int], bank: SupportBank) -> list[SliceProbability]:
        pipeline, scan, side = self.networks.pipeline, self.scan, self.networks.side
        regions = [Region.around(self.masks[i] > MIN_WARPED, scan.spacing) for i in part]
        views = list(zip(part, regions, strict=True))
        queries = [region.to_grid(scan.image(i), side, -1.0) for i, region in views]
        masks = torch.stack([region.to_grid(self.masks[i], side, 0.0) for i, region in views])
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
