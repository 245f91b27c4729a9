"""A run: from painted slices and a stack of slices to probabilities, batch by batch.

A run is an iterator, so that whoever drives it may stop between two batches, or give the device to another run. What it
has handed out can be handed to a later run, which goes on from there and gives, on a CPU to the bit, what the first
would have given.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.inference.cross_scan import find_structure, run_transfer, without_results
from SDFSMISLib.inference.independent import Answered, run_independent
from SDFSMISLib.inference.network_images import Contrast, Region, Shot
from SDFSMISLib.inference.networks import LatentCache, Networks
from SDFSMISLib.inference.propagate import Lane, lanes_from, looked_at, run_propagate
from SDFSMISLib.inference.segmentation import certainty_of, presence_of
from SDFSMISLib.model.pipeline import SDFSMISPipeline
from SDFSMISLib.options import RunOptions
from SDFSMISLib.slices import SliceResult, SliceStack, needed_slices
from SDFSMISLib.support import SupportSlice

FOUND_MARGIN = 3.0  # half sides of the box around what the first pass over full slices found
FOUND_REACH = 2  # slices to either side of it that are looked at again, through that box
MOST_SHOTS = 12  # painted slices that a pass without propagation looks at


@dataclass(frozen=True, eq=False)
class LaneResult:
    """What a lane says of a slice, for a run that goes on in its place; not a result to show.

    Attributes:
        start: the slice that the lane left from.
        probability: uint8 (rows, columns), native, 255 meaning 1.
    """

    label: int
    start: int
    index: int
    probability: np.ndarray


@dataclass(frozen=True, eq=False)
class FoundResult:
    """Where propagation starts on a scan without painted slices, for a run that goes on: by label (slice, probability
    as uint8 native); labels that were not found are absent."""

    starts: Mapping[int, tuple[int, np.ndarray]]


Result = SliceResult | LaneResult | FoundResult


@dataclass(eq=False)
class Finished:
    """What an earlier run has handed out; all uint8 (rows, columns), native, 255 meaning 1.

    Attributes:
        slices: by (label, slice).
        lanes: by (label, slice that the lane left from, slice).
        found: as in `FoundResult`; None where it was not handed out yet.
    """

    slices: MutableMapping[tuple[int, int], np.ndarray] = field(default_factory=dict)
    lanes: MutableMapping[tuple[int, int, int], np.ndarray] = field(default_factory=dict)
    found: Mapping[int, tuple[int, np.ndarray]] | None = None

    def add(self, result: Result) -> None:
        if isinstance(result, SliceResult):
            self.slices[result.label, result.index] = result.probability
        elif isinstance(result, LaneResult):
            self.lanes[result.label, result.start, result.index] = result.probability
        else:
            self.found = result.starts


@dataclass(eq=False)
class _Label:
    """What is known of a label before the run: slices `painted` on this scan, by index, and the `shots` that are its
    support."""

    painted: dict[int, Shot]
    shots: list[Shot]

    @property
    def starts(self) -> dict[int, np.ndarray]:
        """The painted slices of this scan that show the label, by index: their masks, bool canonical."""
        return {index: shot.mask for index, shot in self.painted.items() if shot.mask.any()}


class Run:
    """One run.

    Args:
        scan: the slices to segment.
        support: painted slices of each label, of this scan or of others. Where slices of this scan show the label they
            alone are its support.
        slices: slices that are asked for, from 0; None = all. Painted ones of this scan are not answered.
        latents: where encoded slices are kept for later runs.
        finished: of an earlier run with the same arguments that was cut off.

    Raises:
        InputError: where a slice is outside the scan, or nothing is painted.
    """

    def __init__(
        self,
        pipeline: SDFSMISPipeline,
        scan: SliceStack,
        support: Mapping[int, Sequence[SupportSlice]],
        options: RunOptions,
        slices: Sequence[int] | None = None,
        latents: LatentCache | None = None,
        finished: Finished | None = None,
    ) -> None:
        if not support:
            raise InputError("The support set has nothing painted; paint the structure on at least one slice.")
        self.scan = scan
        self.options = options
        self.wanted = scan.wanted(slices)
        self.pieces: list[SupportSlice] = []
        """the painted slices that are looked at"""
        self._wanted_set = set(self.wanted)
        self._networks = Networks(pipeline, options.batch_size, latents)
        self._finished = finished or Finished()
        self._images: dict[int, np.ndarray] = {}
        self._labels = {label: self._label(label, pieces) for label, pieces in support.items()}
        self.total = sum(len(self._open(label)) for label in self._labels)
        self._known = set(self._finished.slices)
        self.done = sum((label, index) in self._known for label in self._labels for index in self._open(label))

    @property
    def painted(self) -> tuple[int, ...]:
        """The slices of this scan that are painted, sorted."""
        return tuple(sorted({index for label in self._labels.values() for index in label.painted}))

    def needed(self) -> list[int]:
        """The slices that will be read, sorted."""
        open_labels = [label for label in self._labels if self._open(label)]
        if not open_labels:
            return []
        starts = [self._labels[label].starts for label in open_labels]
        painted = {index for one in starts for index in one} if all(starts) else set()
        return needed_slices(self.options.strategy, self.scan.count, self.wanted, painted)

    def steps(self) -> Generator[list[Result], None, None]:
        """The results of each batch; an empty list where one gave none yet."""
        return self._independent() if self.options.strategy == "independent" else self._propagate()

    def _label(self, label: int, pieces: Sequence[SupportSlice]) -> _Label:
        here = [piece for piece in pieces if piece.plane.has_slices_of(self.scan.plane)]
        used = _evenly(here if any(piece.mask(label).any() for piece in here) else pieces)
        self.pieces += used
        shots = {id(piece): Shot.of(piece, label, self._image(piece)) for piece in [*here, *used]}
        return _Label({piece.index: shots[id(piece)] for piece in here}, [shots[id(piece)] for piece in used])

    def _image(self, piece: SupportSlice) -> np.ndarray:
        """The canonical image of a painted slice, one for all its labels."""
        if id(piece) not in self._images:
            self._images[id(piece)] = piece.canonical_image()
        return self._images[id(piece)]

    def _open(self, label: int) -> list[int]:
        return [index for index in self.wanted if index not in self._labels[label].painted]

    def _independent(self) -> Generator[list[Result], None, None]:
        """All open slices of all labels, each alone."""
        brings = self._networks.pipeline.takes_neighbours and self.options.region != "full"
        away = {label: self._labels[label].shots for label in self._labels if brings and not self._labels[label].starts}
        for label, shots in away.items():
            for answers in run_transfer(self._networks, self.scan, label, shots, self._open(label), self._known):
                yield self._results(answers)
        here = {label: self._open(label) for label in self._labels if label not in away}
        for indices, labels in self._together(here):
            for answers in self._alone(labels, indices, known=self._known):
                yield self._results(answers)

    def _propagate(self) -> Generator[list[Result], None, None]:
        """Outwards from the painted slices; where none is painted, from one that a search finds."""
        labels = [label for label in self._labels if self._open(label)]
        found = yield from self._found([label for label in labels if not self._labels[label].starts])
        lanes: list[Lane] = []
        for label in labels:
            mine = self._labels[label]
            starts = mine.starts or found.get(label, {})
            ways = lanes_from(label, starts, mine.painted, mine.shots, self._open(label), self.scan.count)
            lanes += ways
            reached = {*starts, *(index for lane in ways for index in lane.path)}
            nothing = np.zeros(self.scan.shape, dtype=np.uint8)
            yield self._results([(label, index, nothing) for index in self._open(label) if index not in reached])
        yield from self._along(lanes)

    def _along(self, lanes: list[Lane]) -> Iterator[list[Result]]:
        """All lanes to their ends, from where an earlier run has left them."""
        if all((lane.label, i) in self._known for lane in lanes for i in lane.path if i in self._wanted_set):
            return
        options, known = self.options, self._known_answer
        for step in run_propagate(self._networks, self.scan, lanes, options.threshold, options.region == "full", known):
            results = self._results(step.slices)
            for lane, index, probability in step.answers:
                is_told = lane.gap is None and index in self._wanted_set  # as a finished slice
                if not is_told and (lane.label, lane.first, index) not in self._finished.lanes:
                    results.append(LaneResult(lane.label, lane.first, index, self._native(probability)))
            yield results

    def _known_answer(self, lane: Lane, index: int) -> np.ndarray | None:
        """What a lane has answered in an earlier run: of one that comes alone the finished slice is its answer."""
        finished = self._finished
        answer = finished.lanes.get((lane.label, lane.first, index))
        if answer is None and lane.gap is None:
            answer = finished.slices.get((lane.label, index))
        return None if answer is None else self.scan.plane.orientation.apply(answer)

    def _results(self, answers: Sequence[Answered]) -> list[Result]:
        """Finished slices as results; those that are not wanted, or were told before, are left out."""
        results: list[Result] = []
        for label, index, probability in answers:
            if index not in self._wanted_set or (label, index) in self._known:
                continue
            self.done += 1
            native = self._native(probability)
            sure = certainty_of(probability)
            results.append(SliceResult(label, self.scan.plane.axis, index, native, sure, self.done, self.total))
        return results

    def _native(self, probability: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(self.scan.plane.orientation.undo(probability))

    # -- a scan without painted slices

    def _found(self, labels: Sequence[int]) -> Generator[list[Result], None, dict[int, dict[int, np.ndarray]]]:
        """For each label that is seen somewhere a slice that shows it, with the mask. Slices that are named and hold
        nothing are left out."""
        if not labels:
            return {}
        turn = self.scan.plane.orientation
        if self._finished.found is None:
            unknown = {label: self._unpainted(label) for label in labels}
            search = (
                self._found_by_registration if self._networks.pipeline.takes_neighbours else self._found_by_networks
            )
            found = yield from search(unknown)
            yield [FoundResult({label: (index, self._native(soft)) for label, (index, soft) in found.items()})]
        else:
            before = self._finished.found
            found = {label: (before[label][0], turn.apply(before[label][1])) for label in labels if label in before}
        yield self._results([(label, index, soft) for label, (index, soft) in found.items()])
        return {label: {index: self._mask(soft)} for label, (index, soft) in found.items()}

    def _unpainted(self, label: int) -> list[int]:
        return [index for index in range(self.scan.count) if index not in self._labels[label].painted]

    def _found_by_registration(
        self, unknown: dict[int, list[int]]
    ) -> Generator[list[Result], None, dict[int, tuple[int, np.ndarray]]]:
        """The slice that looks most like a painted one, with what the networks make of the mask that came along; for
        networks that take what was registered."""
        lanes: list[Lane] = []
        for label, indices in unknown.items():
            search = find_structure(self.scan, self._labels[label].shots, indices)
            match = yield from without_results(search)
            if match is not None:
                mask, soft = match.probability > 127, match.probability.astype(np.float32) / 255
                painted = looked_at(match.index, {}, self._labels[label].shots)
                lanes.append(Lane(label, match.index, mask, [match.index], painted, gap=None, soft=soft))
        seen: dict[int, tuple[int, np.ndarray]] = {}
        options = self.options
        for step in run_propagate(self._networks, self.scan, lanes, options.threshold, options.region == "full"):
            seen |= {label: (index, soft) for label, index, soft in step.slices if self._mask(soft).any()}
            yield []
        return seen

    def _found_by_networks(
        self, unknown: dict[int, list[int]]
    ) -> Generator[list[Result], None, dict[int, tuple[int, np.ndarray]]]:
        """The most certain slice of a pass over full slices, then one around what that found."""
        best: dict[int, tuple[float, int, np.ndarray]] = {}  # presence, slice, probability

        def keep(answers: Sequence[Answered]) -> None:
            for label, index, probability in answers:
                presence = presence_of(probability, self.options.threshold)
                if presence > (best[label][0] if label in best else 0):
                    best[label] = presence, index, probability

        for indices, labels in self._together(unknown):
            for answers in self._alone(labels, indices, full=True):
                keep(answers)
                yield []
        if self.options.region != "full":
            for label, (_, first, probability) in list(best.items()):
                del best[label]
                region = Region.around(self._mask(probability), self.scan.spacing, FOUND_MARGIN)
                near = [index for index in unknown[label] if abs(index - first) <= FOUND_REACH]
                for answers in self._alone([label], near, region=region):
                    keep(answers)
                    yield []
        return {label: (index, probability) for label, (_, index, probability) in best.items()}

    def _together(self, slices: dict[int, list[int]]) -> Iterator[tuple[Sequence[int], list[int]]]:
        """The labels that want the same `slices`, so that one pass gives them all."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for label, indices in slices.items():
            groups.setdefault(tuple(indices), []).append(label)
        yield from groups.items()

    def _alone(
        self,
        labels: Sequence[int],
        indices: Sequence[int],
        full: bool = False,
        region: Region | None = None,
        known: Collection[tuple[int, int]] = (),
    ) -> Iterator[list[Answered]]:
        """An `independent` pass over `indices`."""
        plain = self.options.region == "full"
        shots = {label: self._labels[label].shots for label in labels}
        regions: dict[int, tuple[Region, list[Region]]] = {}
        for label, mine in shots.items():
            if region is not None:
                regions[label] = (region, [shot.region(False) for shot in mine])
            elif plain or full or not self._labels[label].starts:
                whole = Region.whole(self.scan.shape, self.scan.spacing)
                regions[label] = (whole, [shot.region(True) for shot in mine])
            else:
                around = Region.around(np.any([shot.mask for shot in mine], axis=0), self.scan.spacing)
                regions[label] = (around, [around] * len(mine))
        contrast = Contrast.unchanged() if plain or not self._networks.pipeline.sees_contrast else None
        return run_independent(self._networks, self.scan, shots, regions, indices, contrast, known)

    def _mask(self, probability: np.ndarray) -> np.ndarray:
        return probability > 255 * self.options.threshold


def _evenly(pieces: Sequence[SupportSlice]) -> list[SupportSlice]:
    """At most `MOST_SHOTS` of the painted slices, spread evenly: the time of each query grows with their number."""
    if len(pieces) <= MOST_SHOTS:
        return list(pieces)
    places = np.linspace(0, len(pieces) - 1, MOST_SHOTS).round().astype(int)
    return [pieces[place] for place in places]
