"""The `propagate` strategy: outwards from the painted slices, each finished slice joining the support of the next.

State: the painted slices, and of finished ones the last (a bound on memory). The region follows the structure. A lane
    ends where the structure does; what lies behind stays empty. Lanes (both directions, several labels) advance
    together, as one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from SDFSMISLib.inference.independent import OnProbability, on_slice_grid
from SDFSMISLib.inference.region import Region
from SDFSMISLib.inference.scan import QueryScan
from SDFSMISLib.inference.shots import Shot, colour, painted_bank
from SDFSMISLib.model.pipeline import SDFSMISPipeline
from SDFSMISLib.model.unet import SupportBank

NEAREST_PAINTED = 3  # painted slices that one lane looks at
END_PIXELS = 4  # a structure of fewer pixels on the network's grid has ended


@dataclass(eq=False)
class Lane:
    """One front of the propagation.

    Attributes:
        label: label value.
        start: slice that the lane leaves from. mask: its mask, bool canonical (rows, columns).
        path: slices to visit, in order.
        painted: the painted slices that it looks at.
        between: whether a painted slice lies ahead, so that an empty slice does not end the lane.
    """

    label: int
    start: int
    mask: np.ndarray
    path: list[int]
    painted: list[Shot]
    between: bool


def lanes_from(
    label: int,
    starts: dict[int, np.ndarray],
    shots: dict[int, Shot],
    others: Sequence[Shot],
    wanted: Sequence[int],
    full_count: int,
) -> list[Lane]:
    """The lanes of one label.

    Args:
        starts: masks, bool canonical, of the slices to start from.
        shots: painted slices of this scan by index. others: painted slices of other scans.
        wanted: slices that are asked for; lanes go no further than these need.
        full_count: slices of the scan.
    """
    order = sorted(starts)
    lanes = []
    for left, right in zip([None, *order], [*order, None], strict=True):
        if left is not None and right is not None:
            middle = (left + right) // 2
            ways = [(left, list(range(left + 1, middle + 1))), (right, list(range(right - 1, middle, -1)))]
        elif right is not None:
            ways = [(right, list(range(right - 1, min(wanted) - 1, -1)))]
        else:
            assert left is not None
            ways = [(left, list(range(left + 1, min(max(wanted) + 1, full_count))))]
        for start, path in ways:
            if path:
                near = sorted(shots, key=lambda index: abs(index - start))[:NEAREST_PAINTED]
                painted = [shots[index] for index in near] or list(others[:NEAREST_PAINTED])
                lanes.append(Lane(label, start, starts[start], path, painted, left is not None and right is not None))
    return lanes


def run_propagate(
    pipeline: SDFSMISPipeline,
    scan: QueryScan,
    lanes: Sequence[Lane],
    threshold: float,
    full: bool,
    batch_size: int,
    deliver: OnProbability,
) -> None:
    """Run all lanes to their ends; slices behind an end are delivered empty.

    Args:
        threshold: probability above which a pixel belongs to the mask that joins the support.
        full: whole slices instead of regions that follow the structure.
        deliver: called for every label and slice; may raise to stop the run.
    """
    side = pipeline.config.resolution
    banks = _lane_banks(pipeline, lanes, full, side)
    active = list(lanes)
    while active:
        finished: list[Lane] = []
        for shots in sorted({len(lane.painted) for lane in active}):
            equals = [lane for lane in active if len(lane.painted) == shots]
            for start in range(0, len(equals), batch_size):
                part = equals[start : start + batch_size]
                finished += _advance(pipeline, scan, part, banks, threshold, full, side, deliver)
        active = [lane for lane in active if lane not in finished]


def _advance(
    pipeline: SDFSMISPipeline,
    scan: QueryScan,
    lanes: Sequence[Lane],
    banks: dict[Lane, SupportBank],
    threshold: float,
    full: bool,
    side: int,
    deliver: OnProbability,
) -> list[Lane]:
    """One slice further on every lane; returns the lanes that have ended."""
    regions = [scan.whole if full else Region.around(lane.mask, scan.spacing) for lane in lanes]
    previous = [
        Shot(scan.image(lane.start), lane.mask, scan.spacing).on_grid(region, side)
        for lane, region in zip(lanes, regions, strict=True)
    ]
    queries = [
        region.to_grid(scan.image(lane.path[0]), side, -1.0) for lane, region in zip(lanes, regions, strict=True)
    ]
    painted = _stacked([banks[lane] for lane in lanes])
    last = pipeline.encode_support(
        colour(torch.stack([image for image, _ in previous]))[:, None],
        torch.stack([mask for _, mask in previous])[:, None],
        painted.conditions,
    )
    latents = pipeline.encode_images(colour(torch.stack(queries)))
    maps = pipeline.segment(latents, painted.joined(last)).mean(1)
    ended = []
    for lane, region, values in zip(lanes, regions, maps, strict=True):
        probability = on_slice_grid(region, values, scan.shape)
        mask = probability > 255 * threshold
        empty = int((values > threshold).sum()) < END_PIXELS or not mask.any()
        if empty and not lane.between:
            probability = np.zeros_like(probability)
        lane.start = lane.path.pop(0)
        deliver(lane.label, lane.start, probability)
        if empty and not lane.between:
            for index in lane.path:
                deliver(lane.label, index, np.zeros_like(probability))
            lane.path.clear()
        lane.mask = mask if mask.any() else lane.mask
        if not lane.path:
            ended.append(lane)
    return ended


def _lane_banks(pipeline: SDFSMISPipeline, lanes: Sequence[Lane], full: bool, side: int) -> dict[Lane, SupportBank]:
    """The painted slices' bank of every lane, each made once."""
    made: dict[tuple[int, ...], SupportBank] = {}
    banks = {}
    for lane in lanes:
        key = tuple(id(shot) for shot in lane.painted)
        if key not in made:
            made[key] = painted_bank(pipeline, lane.painted, [shot.region(full) for shot in lane.painted], side)
        banks[lane] = made[key]
    return banks


def _stacked(banks: Sequence[SupportBank]) -> SupportBank:
    """One bank with a row for each of several."""
    first = banks[0]
    return SupportBank(
        keys={name: torch.cat([bank.keys[name] for bank in banks]) for name in first.keys},
        values={name: torch.cat([bank.values[name] for bank in banks]) for name in first.values},
        conditions={name: torch.cat([bank.conditions[name] for bank in banks]) for name in first.conditions},
        foreground=torch.cat([bank.foreground for bank in banks]),
        background=torch.cat([bank.background for bank in banks]),
    )
