"""The `propagate` strategy: outwards from the painted slices, each finished slice joining the support of the next.

Networks that have an input for it (`SupportQueryUNet`, `neighbour`) also get the finished neighbour and its mask
registered onto the query: that is ours, not the paper's, and what keeps a network of a few million parameters on the
structure.

State: the painted slices, and of finished ones the last (a bound on memory). The region follows the structure. A lane
ends where the structure does; what lies behind stays empty. Between two painted slices a lane comes from either, and
each slice is the mean of both answers, the nearer lane counting more. Lanes (both directions, several labels) advance
together, as one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from SDFSMISLib.inference.contrast import Contrast
from SDFSMISLib.inference.independent import OnProbability, on_slice_grid
from SDFSMISLib.inference.region import Region
from SDFSMISLib.inference.registration import carried, displacement
from SDFSMISLib.inference.scan import QueryScan
from SDFSMISLib.inference.shots import Shot, colour, painted_bank
from SDFSMISLib.model.likeness import likeness
from SDFSMISLib.model.pipeline import SDFSMISPipeline
from SDFSMISLib.model.unet import SupportBank

NEAREST_PAINTED = 3  # painted slices that one lane looks at
END_PIXELS = 4  # a structure of fewer pixels on the network's grid has ended
LEAST_CONFIRMED = 0.3  # so has one of which less is confirmed than this share of what was on its own slice
STRIDE_MM = 3.0  # thin slices are asked for several at a time, so that errors are handed on less often
LONGEST_STRIDE = 10  # slices
CALIBRATION_LEVELS = tuple(np.round(np.arange(0.2, 0.81, 0.05), 2).tolist())


@dataclass(eq=False)
class Lane:
    """One front of the propagation.

    Attributes:
        label: label value.
        start: the slice that joins the support: where the lane leaves from, then the last on which it found something.
        mask: that slice's mask, bool canonical (rows, columns).
        soft: its probability, float32 0 to 1; None = the mask. It is what is registered onto the next slice: a border
            that is rounded to whole pixels on every slice drifts.
        path: slices to visit, in order.
        painted: the painted slices that it looks at.
        gap: slices from the painted one that it leaves to the painted one that lies ahead, which no empty slice keeps
            it from; None where none lies ahead.
        contrast: of the region around the slice that the lane left from first; all its slices are seen with it.
        confirmed: see `_confirmed`, of the slice that the lane left from first.
        shift: added to the log odds of all probabilities; without it masks that are a little small on every slice
            shrink to nothing over many.
    """

    label: int
    start: int
    mask: np.ndarray
    path: list[int]
    painted: list[Shot]
    gap: int | None
    contrast: Contrast = field(default_factory=Contrast.unchanged)
    confirmed: float = 0.0
    soft: np.ndarray | None = None
    shift: float = 0.0

    def __post_init__(self) -> None:
        self.first = self.start

    def share(self, index: int) -> float:
        """How much the answer on a slice counts beside that of the lane that comes from the other side."""
        return 1.0 if self.gap is None else 1 - abs(index - self.first) / self.gap

    @property
    def carried_along(self) -> np.ndarray:
        """What is registered onto the next slice, float32 canonical (rows, columns)."""
        return self.mask.astype(np.float32) if self.soft is None else self.soft


OnAnswer = Callable[[Lane, int, np.ndarray], None]
"""(lane, slice, probability as uint8 canonical)"""


@dataclass(frozen=True)
class _Answer:
    """For each lane the probabilities of the slices that were asked for, (slices, side, side), and how far they confirm
    what was to be expected; the region; and the mask on the grid that the lane came with."""

    maps: list[torch.Tensor]
    confirmed: list[list[float]]
    regions: list[Region]
    masks: list[torch.Tensor]


def lanes_from(
    label: int,
    starts: dict[int, np.ndarray],
    shots: dict[int, Shot],
    others: Sequence[Shot],
    wanted: Sequence[int],
    full_count: int,
) -> list[Lane]:
    """The lanes of one label. None goes past a slice of which the user has said that the structure is not there.

    Args:
        starts: masks, bool canonical, of the slices to start from.
        shots: painted slices of this scan by index; an empty mask says that the structure is not there.
        others: painted slices to look at where `shots` shows no structure.
        wanted: slices that are asked for; lanes go no further than these need.
        full_count: slices of the scan.
    """
    edges = sorted({*starts, *(index for index, shot in shots.items() if not shot.mask.any())})
    lanes = []
    for left, right in zip([-1, *edges], [*edges, full_count], strict=True):
        gap = right - left if left in starts and right in starts else None
        for start, way in ((left, range(left + 1, right)), (right, range(right - 1, left, -1))):
            if start in starts and (path := _as_far_as(way, wanted)):
                painted = looked_at(start, shots, others)
                lanes.append(Lane(label, start, starts[start], path, painted, gap))
    return lanes


def _as_far_as(way: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """A way up to the last slice of it that is wanted."""
    needed = [place for place, index in enumerate(way) if index in wanted]
    return list(way[: needed[-1] + 1]) if needed else []


def looked_at(start: int, shots: dict[int, Shot], others: Sequence[Shot]) -> list[Shot]:
    """The nearest painted slices; those of other scans, slices with the structure first, where none here shows it."""
    if any(shot.mask.any() for shot in shots.values()):
        near = sorted(shots, key=lambda index: abs(index - start))
        return [shots[index] for index in near[:NEAREST_PAINTED]]
    return sorted(others, key=lambda shot: not shot.mask.any())[:NEAREST_PAINTED]


def run_propagate(
    pipeline: SDFSMISPipeline,
    scan: QueryScan,
    lanes: Sequence[Lane],
    threshold: float,
    full: bool,
    batch_size: int,
    deliver: OnProbability,
    ask: Callable[[], None],
) -> None:
    """Run all lanes to their ends; slices behind an end are delivered empty.

    Args:
        threshold: probability above which a pixel belongs to the mask that joins the support.
        full: whole slices instead of regions that follow the structure.
        deliver: called for every label and slice, once; may raise to stop the run.
        ask: called before each batch of calibrations, and after each answer, also where one from the other side is
            waited for; may raise likewise.
    """
    keep = _blended(deliver, ask)
    side = pipeline.config.resolution
    if not full and pipeline.sees_contrast:
        for lane in lanes:
            region = Region.around(lane.mask, scan.spacing)
            lane.contrast = Contrast.of(region.to_grid(scan.image(lane.start), side, -1.0))
    banks = _lane_banks(pipeline, lanes, full, side)
    stride = min(max(1, round(STRIDE_MM / scan.thickness)), LONGEST_STRIDE, batch_size)
    together = max(1, batch_size // stride)
    for part in _batches(lanes, together):
        ask()
        _calibrate(pipeline, scan, part, banks, full, side)
    active = list(lanes)
    while active:
        for part in _batches(active, together):
            _advance(pipeline, scan, part, banks, threshold, full, side, stride, keep)
        active = [lane for lane in active if lane.path]


def _blended(deliver: OnProbability, ask: Callable[[], None]) -> OnAnswer:
    """Takes the answers of lanes, and delivers a slice when the lanes from both sides have answered."""
    waiting: dict[tuple[int, int], tuple[float, np.ndarray]] = {}

    def keep(lane: Lane, index: int, probability: np.ndarray) -> None:
        place = (lane.label, index)
        if lane.gap is not None and place not in waiting:
            waiting[place] = lane.share(index), probability
        else:
            if lane.gap is not None:
                share, other = waiting.pop(place)
                mean = share * other.astype(np.float32) + lane.share(index) * probability
                probability = np.rint(mean).astype(np.uint8)
            deliver(lane.label, index, probability)
        ask()

    return keep


def _batches(lanes: Sequence[Lane], size: int) -> Iterator[list[Lane]]:
    """Lanes that can go through the networks together: of one number of painted slices, `size` at most."""
    for shots in sorted({len(lane.painted) for lane in lanes}):
        equals = [lane for lane in lanes if len(lane.painted) == shots]
        for start in range(0, len(equals), size):
            yield equals[start : start + size]


def _calibrate(
    pipeline: SDFSMISPipeline,
    scan: QueryScan,
    lanes: Sequence[Lane],
    banks: dict[Lane, SupportBank],
    full: bool,
    side: int,
) -> None:
    """Set every lane's shift: the slice that it leaves from, asked for itself, should come out as it was given; unless
    what was given is a guess."""
    answer = _predicted(pipeline, scan, lanes, banks, [[lane.start] for lane in lanes], full, side)
    for lane, (predicted,), (confirmed,), mask in zip(lanes, answer.maps, answer.confirmed, answer.masks, strict=True):
        lane.confirmed = confirmed
        if lane.soft is not None:
            continue
        scores = {level: _dice(predicted > level, mask > 0.5) for level in CALIBRATION_LEVELS}
        level = max(scores, key=lambda one: (scores[one], -abs(one - 0.5)))  # of equals the one in the middle
        lane.shift = float(np.log((1 - level) / level))


def _advance(
    pipeline: SDFSMISPipeline,
    scan: QueryScan,
    lanes: Sequence[Lane],
    banks: dict[Lane, SupportBank],
    threshold: float,
    full: bool,
    side: int,
    stride: int,
    keep: OnAnswer,
) -> None:
    """`stride` slices further on every lane; a lane that ends is left without a path."""
    steps = [lane.path[:stride] for lane in lanes]
    answer = _predicted(pipeline, scan, lanes, banks, steps, full, side)
    for lane, step, region, maps, shares in zip(
        lanes, steps, answer.regions, answer.maps, answer.confirmed, strict=True
    ):
        for index, values, confirmed in zip(step, maps, shares, strict=True):
            shifted = _shifted(values, lane.shift)
            probability = on_slice_grid(region, shifted, scan.shape)
            mask = probability > 255 * threshold
            lane.path.pop(0)
            found = shifted > threshold
            has_ended = int(found.sum()) < END_PIXELS or confirmed < LEAST_CONFIRMED * lane.confirmed
            if has_ended or not mask.any():
                if lane.gap is None:
                    for behind in (index, *lane.path):
                        keep(lane, behind, np.zeros_like(probability))
                    lane.path.clear()
                    break
            keep(lane, index, probability)
            if mask.any():
                lane.start, lane.mask, lane.soft = index, mask, probability.astype(np.float32) / 255


def _predicted(
    pipeline: SDFSMISPipeline,
    scan: QueryScan,
    lanes: Sequence[Lane],
    banks: dict[Lane, SupportBank],
    steps: Sequence[Sequence[int]],
    full: bool,
    side: int,
) -> _Answer:
    """What the networks say of the slices `steps` of each lane."""
    regions = [scan.whole if full else Region.around(lane.mask, scan.spacing) for lane in lanes]
    pairs = list(zip(lanes, regions, strict=True))
    images, masks = zip(
        *(Shot(scan.image(lane.start), lane.mask, scan.spacing).on_grid(region, side) for lane, region in pairs),
        strict=True,
    )
    queries = [
        region.to_grid(scan.image(index), side, -1.0)
        for region, step in zip(regions, steps, strict=True)
        for index in step
    ]
    row = [number for number, step in enumerate(steps) for _ in step]
    if pipeline.takes_neighbours:
        moves = torch.stack([displacement(images[r], query) for r, query in zip(row, queries, strict=True)])
    seen_last = torch.stack([lane.contrast(image) for lane, image in zip(lanes, images, strict=True)])
    seen = colour(torch.stack([lanes[r].contrast(query) for r, query in zip(row, queries, strict=True)]))
    painted = _stacked([banks[lane] for lane in lanes])
    last = pipeline.encode_support(colour(seen_last)[:, None], torch.stack(masks)[:, None], painted.conditions)
    bank = painted.joined(last).rows(torch.tensor(row, device=pipeline.device))
    neighbours: tuple[torch.Tensor, ...] = ()
    if pipeline.takes_neighbours:
        soft = torch.stack([region.to_grid(lane.carried_along, side, 0.0) for lane, region in pairs])
        neighbours = colour(carried(seen_last[row], moves)), carried(soft[row], moves)
    hints = pipeline.hints(seen, bank, *neighbours)
    maps = pipeline.segment(pipeline.encode_images(seen), bank, hints).mean(1).cpu()
    confirmed = torch.ones(len(row))
    if neighbours and painted.likeness is not None:
        alike = likeness(seen[:, 0].to(painted.likeness.device), painted.likeness[row]).cpu()
        confirmed = _confirmed(maps, neighbours[1], alike)
    counts = [len(step) for step in steps]
    return _Answer(list(maps.split(counts)), [part.tolist() for part in confirmed.split(counts)], regions, list(masks))


def _confirmed(maps: torch.Tensor, carried_masks: torch.Tensor, alike: torch.Tensor) -> torch.Tensor:
    """How far what was to be expected is there, (Q,): the share of expected and found pixels that were found and look
    like the painted structure.

    A network that follows a structure over its end finds remnants of what registration brings, or what lies beside
    it. Likeness of what is found says little then, nor does that of what is brought where a structure changes quickly.

    Args:
        maps: probabilities (Q, side, side).
        carried_masks: what registration brings, soft (Q, side, side).
        alike: likeness (Q, side, side).
    """
    both = torch.maximum(maps, carried_masks).sum((1, 2))
    return (alike * maps).sum((1, 2)) / both.clamp(min=1e-6)


def _shifted(values: torch.Tensor, shift: float) -> torch.Tensor:
    """Probabilities with `shift` added to their log odds."""
    return torch.sigmoid(torch.logit(values.float(), eps=1e-4) + shift)


def _dice(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()).clamp(min=1))


def _lane_banks(pipeline: SDFSMISPipeline, lanes: Sequence[Lane], full: bool, side: int) -> dict[Lane, SupportBank]:
    """The painted slices' bank of every lane, each made once."""
    made: dict[tuple[int, ...], SupportBank] = {}
    banks = {}
    for lane in lanes:
        key = tuple(id(shot) for shot in lane.painted)
        if key not in made:
            regions = [shot.region(full) for shot in lane.painted]
            plain = full or not pipeline.sees_contrast
            made[key] = painted_bank(pipeline, lane.painted, regions, side, Contrast.unchanged() if plain else None)
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
        likeness=None if first.likeness is None else torch.cat([b.likeness for b in banks if b.likeness is not None]),
    )
