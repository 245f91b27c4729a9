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
from functools import partial

import numpy as np
import torch

from SDFSMISLib.inference.independent import Answered, on_slice_grid, slice_name
from SDFSMISLib.inference.network_images import Contrast, Region, Shot, colour, painted_bank
from SDFSMISLib.inference.networks import Networks
from SDFSMISLib.inference.registration import carried, displacement
from SDFSMISLib.model.likeness import likeness
from SDFSMISLib.model.pipeline import SDFSMISPipeline
from SDFSMISLib.model.unet import SupportBank
from SDFSMISLib.slices import SliceStack

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


KnownAnswer = Callable[[Lane, int], "np.ndarray | None"]
"""(lane, slice): the lane's own answer in an earlier run, uint8 canonical (rows, columns); None where it has none."""


@dataclass(eq=False)
class Step:
    """What one batch gave.

    Attributes:
        slices: finished, each label and slice once.
        answers: of lanes, by which a later run can go on in their place.
    """

    slices: list[Answered] = field(default_factory=list)
    answers: list[tuple[Lane, int, np.ndarray]] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class _Seen:
    """What the networks say of a slice: probabilities `values` (side, side) of its `region`, and how far they confirm
    what was to be expected (see `_confirmed`)."""

    values: torch.Tensor
    region: Region
    confirmed: float


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
    networks: Networks,
    scan: SliceStack,
    lanes: Sequence[Lane],
    threshold: float,
    full: bool,
    known: KnownAnswer = lambda lane, index: None,
) -> Iterator[Step]:
    """Run all lanes to their ends, a batch at a time; slices behind an end come out empty.

    Args:
        threshold: probability above which a pixel belongs to the mask that joins the support.
        full: whole slices instead of regions that follow the structure.
        known: answers of an earlier run of the same lanes that was cut off. They are not computed again, and the others
            come out to the bit as they would have: each batch is what it was.
    """
    yield from _Propagation(networks, scan, threshold, full, known).run(lanes)


class _Blend:
    """Takes the answers of lanes, and hands a slice on when the lanes from both sides have answered."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[int, int], tuple[float, np.ndarray]] = {}

    def take(self, step: Step, lane: Lane, index: int, probability: np.ndarray) -> None:
        """Put an answer into `step`, and the slice too if it is finished by it."""
        step.answers.append((lane, index, probability))
        if lane.gap is None:
            step.slices.append((lane.label, index, probability))
            return
        place = (lane.label, index)
        if place not in self._waiting:
            self._waiting[place] = lane.share(index), probability
            return
        share, other = self._waiting.pop(place)
        mean = share * other.astype(np.float32) + lane.share(index) * probability
        step.slices.append((lane.label, index, np.rint(mean).astype(np.uint8)))


@dataclass(eq=False)
class _Propagation:
    """One call of `run_propagate`."""

    networks: Networks
    scan: SliceStack
    threshold: float
    full: bool
    known: KnownAnswer
    banks: dict[Lane, SupportBank] = field(default_factory=dict)
    blend: _Blend = field(default_factory=_Blend)

    def run(self, lanes: Sequence[Lane]) -> Iterator[Step]:
        side, size = self.networks.side, self.networks.batch_size
        if not self.full and self.networks.pipeline.sees_contrast:
            for lane in lanes:
                region = Region.around(lane.mask, self.scan.spacing)
                lane.contrast = Contrast.of(region.to_grid(self.scan.image(lane.start), side, -1.0))
        self.banks = _lane_banks(self.networks.pipeline, lanes, self.full, side)
        stride = min(max(1, round(STRIDE_MM / self.scan.plane.thickness)), LONGEST_STRIDE, size)
        together = max(1, size // stride)
        for part in _batches(lanes, together):
            self._calibrate(part)
            yield Step()
        active = list(lanes)
        while active:
            for part in _batches(active, together):
                yield self._advance(part, stride)
            active = [lane for lane in active if lane.path]

    def _calibrate(self, lanes: Sequence[Lane]) -> None:
        """Set every lane's shift: the slice that it leaves from, asked for itself, should come out as it was given;
        unless what was given is a guess."""
        rows = [(lane, lane.start) for lane in lanes]
        for lane, seen in zip(lanes, self._asked(rows, len(rows), len(lanes)), strict=True):
            lane.confirmed = seen.confirmed
            if lane.soft is not None:
                continue
            mask = self._shot(lane).on_grid(seen.region, self.networks.side)[1] > 0.5
            scores = {level: _dice(seen.values > level, mask) for level in CALIBRATION_LEVELS}
            level = max(scores, key=lambda one: (scores[one], -abs(one - 0.5)))  # of equals the one in the middle
            lane.shift = float(np.log((1 - level) / level))

    def _advance(self, lanes: Sequence[Lane], stride: int) -> Step:
        """`stride` slices further on every lane; a lane that ends is left without a path."""
        steps = {lane: lane.path[:stride] for lane in lanes}
        rows = [(lane, index) for lane, indices in steps.items() for index in self._missing(lane, indices)]
        answers = self._asked(rows, sum(map(len, steps.values())), len(lanes))
        seen = {(lane, index): answer for (lane, index), answer in zip(rows, answers, strict=True)}
        done = Step()
        for lane, indices in steps.items():
            for index in indices:
                probability, has_ended = self._answer(lane, index, seen.get((lane, index)))
                lane.path.pop(0)
                if has_ended and lane.gap is None:
                    for behind in (index, *lane.path):
                        self.blend.take(done, lane, behind, np.zeros_like(probability))
                    lane.path.clear()
                    break
                self.blend.take(done, lane, index, probability)
                mask = self._mask(probability)
                if mask.any():
                    lane.start, lane.mask, lane.soft = index, mask, probability.astype(np.float32) / 255
        return done

    def _answer(self, lane: Lane, index: int, seen: _Seen | None) -> tuple[np.ndarray, bool]:
        """The probability of a slice, uint8 canonical, and whether the structure has ended there."""
        if seen is None:
            known = self.known(lane, index)
            assert known is not None, "all that is not known was asked for"
            return known, not self._mask(known).any()
        shifted = _shifted(seen.values, lane.shift)
        probability = on_slice_grid(seen.region, shifted, self.scan.shape)
        few = int((shifted > self.threshold).sum()) < END_PIXELS
        unlike = seen.confirmed < LEAST_CONFIRMED * lane.confirmed
        return probability, few or unlike or not self._mask(probability).any()

    def _missing(self, lane: Lane, indices: Sequence[int]) -> list[int]:
        """Those of the next slices of a lane that have to be computed: not what is known, and none behind its end."""
        missing = []
        for index in indices:
            known = self.known(lane, index)
            if known is None:
                missing.append(index)
            elif lane.gap is None and not self._mask(known).any():
                break
        return missing

    def _asked(self, rows: Sequence[tuple[Lane, int]], of_rows: int, of_lanes: int) -> list[_Seen]:
        """What the networks say of slices, each as the next of its lane.

        Args:
            rows: (lane, slice), those of a lane side by side.
            of_rows, of_lanes: how many rows and lanes the whole batch has, where some of it is known. A single row
                goes through the CPU's libraries by another way than one of several, and is rounded otherwise; so one
                that is left of several is asked for twice.
        """
        padded = list(rows) * 2 if len(rows) == 1 < of_rows else rows
        return self.networks.in_parts(padded, partial(self._predicted, several=of_lanes > 1))[: len(rows)]

    def _predicted(self, rows: Sequence[tuple[Lane, int]], several: bool) -> list[_Seen]:
        """As `_asked`, in one pass; `several` lanes are in the whole batch."""
        pipeline, scan, side = self.networks.pipeline, self.scan, self.networks.side
        lanes = list(dict.fromkeys(lane for lane, _ in rows))
        row = [lanes.index(lane) for lane, _ in rows]
        if len(lanes) == 1 and several:
            lanes = lanes * 2
        regions = [self._region(lane) for lane in lanes]
        images, masks = zip(
            *(self._shot(lane).on_grid(region, side) for lane, region in zip(lanes, regions, strict=True)), strict=True
        )
        queries = [regions[r].to_grid(scan.image(index), side, -1.0) for r, (_, index) in zip(row, rows, strict=True)]
        if pipeline.takes_neighbours:
            moves = torch.stack([displacement(images[r], query) for r, query in zip(row, queries, strict=True)])
        seen_last = torch.stack([lane.contrast(image) for lane, image in zip(lanes, images, strict=True)])
        seen = colour(torch.stack([lanes[r].contrast(query) for r, query in zip(row, queries, strict=True)]))
        painted = _stacked([self.banks[lane] for lane in lanes])
        last = pipeline.encode_support(colour(seen_last)[:, None], torch.stack(masks)[:, None], painted.conditions)
        bank = painted.joined(last).rows(torch.tensor(row, device=pipeline.device))
        neighbours: tuple[torch.Tensor, ...] = ()
        if pipeline.takes_neighbours:
            brought = [regions[r].to_grid(lanes[r].carried_along, side, 0.0) for r in row]
            neighbours = colour(carried(seen_last[row], moves)), carried(torch.stack(brought), moves)
        names = [slice_name(scan, index, regions[r], lane.contrast) for r, (lane, index) in zip(row, rows, strict=True)]
        latents = self.networks.encoded(seen, names)
        maps = pipeline.segment(latents, bank, pipeline.hints(seen, bank, *neighbours)).mean(1).cpu()
        confirmed = torch.ones(len(row))
        if neighbours and painted.likeness is not None:
            alike = likeness(seen[:, 0].to(painted.likeness.device), painted.likeness[row]).cpu()
            confirmed = _confirmed(maps, neighbours[1], alike)
        return [_Seen(maps[n], regions[r], float(confirmed[n])) for n, r in enumerate(row)]

    def _region(self, lane: Lane) -> Region:
        """What of a slice the networks see."""
        shape, spacing = self.scan.shape, self.scan.spacing
        return Region.whole(shape, spacing) if self.full else Region.around(lane.mask, spacing)

    def _shot(self, lane: Lane) -> Shot:
        """The last finished slice of a lane, with its mask."""
        return Shot(self.scan.image(lane.start), lane.mask, self.scan.spacing)

    def _mask(self, probability: np.ndarray) -> np.ndarray:
        return probability > 255 * self.threshold


def _batches(lanes: Sequence[Lane], size: int) -> Iterator[list[Lane]]:
    """Lanes that can go through the networks together: of one number of painted slices, `size` at most."""
    for shots in sorted({len(lane.painted) for lane in lanes}):
        equals = [lane for lane in lanes if len(lane.painted) == shots]
        for start in range(0, len(equals), size):
            yield equals[start : start + size]


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
