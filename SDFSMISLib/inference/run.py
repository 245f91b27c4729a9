"""A run: from painted slices and a stack of slices to probabilities, batch by batch.

A run is an iterator of results, so its caller can stop between two batches, or give the device to another run in
between. The results of a run that was cut off can be passed to a new run, which computes the rest; on a CPU the
outcome is bit for bit that of an uninterrupted run.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.inference.cross_scan import as_empty_batches, correct_masks, run_cross_scan, search_structure
from SDFSMISLib.inference.independent import SliceProbability, run_independent
from SDFSMISLib.inference.known import KnownPlanes
from SDFSMISLib.inference.network_images import Contrast, Region, Shot
from SDFSMISLib.inference.networks import LatentCache, Networks
from SDFSMISLib.inference.propagate import (
    EarlierProbability,
    PropagationStep,
    Track,
    nearest_painted,
    run_propagate,
    tracks_from,
)
from SDFSMISLib.inference.segmentation import certainty_of, presence_of
from SDFSMISLib.model.pipeline import SDFSMISPipeline
from SDFSMISLib.options import RunOptions
from SDFSMISLib.slices import AHEAD, SliceResult, SliceStack, needed_slices, propagation_stride
from SDFSMISLib.support import SupportSlice

SEARCH_MARGIN = 3.0  # half side of the second search pass's region, in half sides of the first pass's mask
SEARCH_REACH = 2  # slices on either side of the first pass's slice that the second pass covers
MAX_SHOTS = 12  # painted slices in the support of a pass without propagation


@dataclass(frozen=True, eq=False)
class TrackResult:
    """The probability of one track on one slice: lets a later run resume, and is not shown to users.

    Attributes:
        label: label value.
        axis: array axis of the slices.
        start: the painted slice that the track left.
        index: the slice.
        probability: uint8 (rows, columns), native, 255 meaning 1.
    """

    label: int
    axis: int
    start: int
    index: int
    probability: np.ndarray


@dataclass(frozen=True, eq=False)
class MatchResult:
    """The slices from which propagation starts on a scan without painted slices: lets a later run resume.

    Attributes:
        axis: array axis of the slices.
        starts: by label (slice, probability as uint8 (rows, columns), native); labels that were not found are absent.
    """

    axis: int
    starts: Mapping[int, tuple[int, np.ndarray]]


Result = SliceResult | TrackResult | MatchResult


@dataclass(eq=False)
class EarlierResults:
    """The results of a run that was cut off; all probabilities uint8 (rows, columns), native, 255 meaning 1.

    Attributes:
        slices: by (label, slice).
        tracks: by (label, slice that the track left, slice).
        starts: as in `MatchResult`; None if the earlier run ended before its search did.
    """

    slices: MutableMapping[tuple[int, int], np.ndarray] = field(default_factory=dict)
    tracks: MutableMapping[tuple[int, int, int], np.ndarray] = field(default_factory=dict)
    starts: Mapping[int, tuple[int, np.ndarray]] | None = None

    def add(self, result: Result) -> None:
        """Take one more result of that run."""
        if isinstance(result, SliceResult):
            self.slices[result.label, result.index] = result.probability
        elif isinstance(result, TrackResult):
            self.tracks[result.label, result.start, result.index] = result.probability
        else:
            self.starts = result.starts


@dataclass(eq=False)
class _LabelSupport:
    """A label's painted slices: those of this scan by index (`painted`), and its support (`shots`)."""

    painted: dict[int, Shot]
    shots: list[Shot]

    @property
    def starts(self) -> dict[int, np.ndarray]:
        """Masks, bool canonical, of the painted slices of this scan that show the label, by index."""
        return {index: shot.mask for index, shot in self.painted.items() if shot.mask.any()}


class Run:
    """One run: segments a stack of slices for every label of a support.

    Args:
        pipeline: the networks.
        scan: the slices to segment.
        support: painted slices of each label, of this scan or of others. If slices of this scan show the label, they
            alone are its support.
        options: strategy, region, threshold, batch size.
        slices: indices of the slices to segment, from 0; None = all. Painted slices of this scan give no result.
        latents: cache of encoded slices, shared with later runs.
        earlier: results of an earlier run with the same arguments that was cut off; they are not computed again.
        priors: by label, uint8 on the scan's grid, 255 meaning 1, where finished scans let expect it (see
            `SDFSMISLib.inference.atlas`): if no slice of this scan shows the label, networks with a neighbour input
            correct that, and others look at the slices on which it is expected.

    Attributes:
        requested: sorted indices of the slices to segment.
        support_slices: the painted slices in use.
        done, total: numbers of finished and of all slices; labels are counted one by one.

    Raises:
        InputError: if a slice is outside the scan, or nothing is painted.

    Example:
        >>> import torch
        >>> from SDFSMISLib import SupportSet, Volume
        >>> from SDFSMISLib.images.geometry import Geometry
        >>> from SDFSMISLib.model.built_in import Size, new_built_in
        >>> geometry = Geometry((3, 16, 16), (1.0, 1.0, 2.0), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
        >>> mask = np.zeros((3, 16, 16), dtype=np.uint8)
        >>> mask[1, 4:12, 4:12] = 1
        >>> scan = Volume(100 * mask.astype(np.float32), geometry)
        >>> support = SupportSet.from_labelmap(scan, Volume(mask, geometry))
        >>> pipeline = new_built_in(size=Size(resolution=32, channels=(8, 16)))  # random weights
        >>> run = Run(pipeline, SliceStack.of(scan, 0), {1: support.for_label(1)}, RunOptions("independent"))
        >>> run.requested, run.painted, run.total
        ([0, 1, 2], (1,), 2)
        >>> with torch.no_grad():
        ...     [(result.index, result.probability.shape) for results in run.steps() for result in results]
        [(0, (16, 16)), (2, (16, 16))]
    """

    def __init__(
        self,
        pipeline: SDFSMISPipeline,
        scan: SliceStack,
        support: Mapping[int, Sequence[SupportSlice]],
        options: RunOptions,
        slices: Sequence[int] | None = None,
        latents: LatentCache | None = None,
        earlier: EarlierResults | None = None,
        priors: Mapping[int, np.ndarray] | None = None,
    ) -> None:
        if not support:
            raise InputError("The support set has nothing painted; paint the structure on at least one slice.")
        self.scan = scan
        self._priors = priors or {}
        self.options = options
        self.requested = scan.wanted(slices)
        self.support_slices: list[SupportSlice] = []
        self._requested_set = set(self.requested)
        self._networks = Networks(pipeline, options.batch_size, latents)
        self._earlier = earlier or EarlierResults()
        self._images: dict[int, np.ndarray] = {}
        self._labels = {label: self._label_support(label, painted) for label, painted in support.items()}
        self._known_planes = KnownPlanes(scan, support)
        self._finished = set(self._earlier.slices)
        to_segment = [(label, index) for label in self._labels for index in self._to_segment(label)]
        self.total = len(to_segment)
        self.done = sum(place in self._finished for place in to_segment)

    @property
    def painted(self) -> tuple[int, ...]:
        """Sorted indices of the painted slices of this scan."""
        return tuple(sorted({index for label in self._labels.values() for index in label.painted}))

    @property
    def earlier_slices(self) -> Mapping[tuple[int, int], np.ndarray]:
        """Slices that an earlier run gave, by (label, slice); see `EarlierResults`."""
        return self._earlier.slices

    def needed(self) -> list[int]:
        """Sorted indices of the slices whose image the run reads."""
        labels = [label for label in self._labels if self._to_segment(label)]
        if not labels:
            return []
        starts = [self._labels[label].starts for label in labels]
        painted = {index for one in starts for index in one} if all(starts) else set()
        ahead = AHEAD * propagation_stride(self.scan.plane.thickness) if self._networks.pipeline.takes_ahead else 0
        return needed_slices(self.options.strategy, self.scan.count, self.requested, painted, ahead)

    def steps(self) -> Generator[list[Result], None, None]:
        """The results of each batch; an empty list if a batch finished no slice."""
        corrected = [label for label in self._priors if label in self._labels and not self._labels[label].starts]
        for label in corrected:
            yield from self._corrected(label)
        others = [label for label in self._labels if label not in corrected]
        if others:
            yield from self._independent(others) if self.options.strategy == "independent" else self._propagate(others)

    def _corrected(self, label: int) -> Iterator[list[Result]]:
        """The slices of a label that has a prior: empty where that shows nothing."""
        along = np.moveaxis(self._priors[label], self.scan.plane.axis, 0)
        masks = {index: self.scan.plane.orientation.apply(along[index]) for index in self._to_segment(label)}
        if self._networks.pipeline.takes_neighbours:
            shots = self._labels[label].shots
            batches = correct_masks(self._networks, self.scan, label, shots, masks, list(masks), self._finished)
        else:
            shown = [index for index, mask in masks.items() if self._mask(mask).any()]
            nothing = np.zeros(self.scan.shape, dtype=np.uint8)
            yield self._results([(label, index, nothing) for index in masks if index not in shown])
            around = np.any([self._mask(masks[index]) for index in shown], axis=0) if shown else nothing
            region = Region.around(around, self.scan.spacing) if self.options.region != "full" else None
            batches = self._independent_pass([label], shown, region=region, finished=self._finished)
        for batch in batches:
            yield self._results(batch)

    def _label_support(self, label: int, support: Sequence[SupportSlice]) -> _LabelSupport:
        whole = [one for one in support if one.known is None]
        if not any(one.mask(label).any() for one in whole):
            raise InputError(
                f"No painted slice with label {label} is known as a whole, only in part; say of one that all of it is "
                "right."
            )
        own = [one for one in whole if one.plane.has_slices_of(self.scan.plane)]
        alike = [one for one in whole if one.plane.name == self.scan.plane.name]
        used = next(found for found in (own, alike, whole) if any(one.mask(label).any() for one in found))
        used = _evenly_spaced(used)
        self.support_slices += used
        shots = {id(one): Shot.of(one, label, self._image(one)) for one in [*own, *used]}
        return _LabelSupport({one.index: shots[id(one)] for one in own}, [shots[id(one)] for one in used])

    def _image(self, painted: SupportSlice) -> np.ndarray:
        """The canonical image of a painted slice; its labels share one."""
        if id(painted) not in self._images:
            self._images[id(painted)] = painted.canonical_image()
        return self._images[id(painted)]

    def _to_segment(self, label: int) -> list[int]:
        return [index for index in self.requested if index not in self._labels[label].painted]

    def _independent(self, chosen: Sequence[int]) -> Generator[list[Result], None, None]:
        """Every slice of these labels alone."""
        warps_masks = self._networks.pipeline.takes_neighbours and self.options.region != "full"
        cross_scan = [label for label in chosen if warps_masks and not self._labels[label].starts]
        for label in cross_scan:
            shots, own = self._labels[label].shots, self._to_segment(label)
            for batch in run_cross_scan(self._networks, self.scan, label, shots, own, self._finished):
                yield self._results(batch)
        slices = {label: self._to_segment(label) for label in chosen if label not in cross_scan}
        for indices, labels in _grouped_by_slices(slices):
            for batch in self._independent_pass(labels, indices, finished=self._finished):
                yield self._results(batch)

    def _propagate(self, chosen: Sequence[int]) -> Generator[list[Result], None, None]:
        """Outwards from the painted slices; on a scan without any, from a slice that a search finds."""
        labels = [label for label in chosen if self._to_segment(label)]
        found = yield from self._search([label for label in labels if not self._labels[label].starts])
        tracks: list[Track] = []
        for label in labels:
            support, indices = self._labels[label], self._to_segment(label)
            starts = support.starts or found.get(label, {})
            own = tracks_from(label, starts, support.painted, support.shots, indices, self.scan.count)
            tracks += own
            reached = {*starts, *(index for track in own for index in track.path)}
            nothing = np.zeros(self.scan.shape, dtype=np.uint8)
            yield self._results([(label, index, nothing) for index in indices if index not in reached])
        yield from self._run_tracks(tracks)

    def _run_tracks(self, tracks: list[Track]) -> Iterator[list[Result]]:
        """All tracks to their ends, from where an earlier run has left them."""
        if all((track.label, i) in self._finished for track in tracks for i in track.path if i in self._requested_set):
            return
        for step in self._track_steps(tracks, self._earlier_probability):
            results = self._results(step.slices)
            for track, index, probability in step.probabilities:
                is_slice_result = track.gap is None and index in self._requested_set
                if not is_slice_result and (track.label, track.first, index) not in self._earlier.tracks:
                    native = self._native(probability)
                    results.append(TrackResult(track.label, self.scan.plane.axis, track.first, index, native))
            yield results

    def _track_steps(
        self, tracks: list[Track], earlier: EarlierProbability = lambda track, index: None
    ) -> Iterator[PropagationStep]:
        threshold, full = self.options.threshold, self.options.region == "full"
        return run_propagate(self._networks, self.scan, tracks, threshold, full, earlier, self._known_planes)

    def _earlier_probability(self, track: Track, index: int) -> np.ndarray | None:
        """A track's probability in the earlier run; for a track without a counterpart that of the finished slice."""
        probability = self._earlier.tracks.get((track.label, track.first, index))
        if probability is None and track.gap is None:
            probability = self._earlier.slices.get((track.label, index))
        return None if probability is None else self.scan.plane.orientation.apply(probability)

    def _results(self, batch: Sequence[SliceProbability]) -> list[Result]:
        """Finished slices as results, without those that are not requested or came in the earlier run."""
        results: list[Result] = []
        for label, index, probability in batch:
            if index not in self._requested_set or (label, index) in self._finished:
                continue
            self.done += 1
            native, certainty = self._native(probability), certainty_of(probability)
            results.append(SliceResult(label, self.scan.plane.axis, index, native, certainty, self.done, self.total))
        return results

    def _native(self, probability: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(self.scan.plane.orientation.undo(probability))

    # -- a scan without painted slices

    def _search(self, labels: Sequence[int]) -> Generator[list[Result], None, dict[int, dict[int, np.ndarray]]]:
        """By label a slice that shows it, and the mask on it, bool canonical; without labels that are found nowhere.

        Slices that the user marked as empty are not searched."""
        if not labels:
            return {}
        orientation, earlier = self.scan.plane.orientation, self._earlier.starts
        if earlier is None:
            slices = {label: self._unpainted(label) for label in labels}
            by_registration = self._networks.pipeline.takes_neighbours
            search = self._search_by_registration if by_registration else self._search_by_networks
            found = yield from search(slices)
            starts = {label: (index, self._native(values)) for label, (index, values) in found.items()}
            yield [MatchResult(self.scan.plane.axis, starts)]
        else:
            found = {
                label: (earlier[label][0], orientation.apply(earlier[label][1])) for label in labels if label in earlier
            }
        yield self._results([(label, index, probability) for label, (index, probability) in found.items()])
        return {label: {index: self._mask(probability)} for label, (index, probability) in found.items()}

    def _unpainted(self, label: int) -> list[int]:
        return [index for index in range(self.scan.count) if index not in self._labels[label].painted]

    def _search_by_registration(
        self, slices: dict[int, list[int]]
    ) -> Generator[list[Result], None, dict[int, tuple[int, np.ndarray]]]:
        """By label the slice that looks most like a painted one, and its probability, which the networks predict from
        the warped mask; for networks with a neighbour input."""
        tracks: list[Track] = []
        for label, indices in slices.items():
            shots = self._labels[label].shots
            match = yield from as_empty_batches(search_structure(self.scan, shots, indices))
            if match is not None:
                mask, values = match.probability > 127, match.probability.astype(np.float32) / 255
                painted = nearest_painted(match.index, {}, shots)
                tracks.append(Track(label, match.index, mask, [match.index], painted, gap=None, probability=values))
        found: dict[int, tuple[int, np.ndarray]] = {}
        for step in self._track_steps(tracks):
            found |= {label: (index, values) for label, index, values in step.slices if self._mask(values).any()}
            yield []
        return found

    def _search_by_networks(
        self, slices: dict[int, list[int]]
    ) -> Generator[list[Result], None, dict[int, tuple[int, np.ndarray]]]:
        """By label the slice with the highest `presence_of`, and its probability: a pass over full slices first, then
        one over the region around the best slice's mask."""
        best: dict[int, tuple[float, int, np.ndarray]] = {}  # presence, slice, probability

        def keep_best(batch: Sequence[SliceProbability]) -> None:
            for label, index, probability in batch:
                presence = presence_of(probability, self.options.threshold)
                if presence > (best[label][0] if label in best else 0):
                    best[label] = presence, index, probability

        for indices, labels in _grouped_by_slices(slices):
            for batch in self._independent_pass(labels, indices, full=True):
                keep_best(batch)
                yield []
        if self.options.region != "full":
            for label, (_, first, probability) in list(best.items()):
                del best[label]
                region = Region.around(self._mask(probability), self.scan.spacing, SEARCH_MARGIN)
                near = [index for index in slices[label] if abs(index - first) <= SEARCH_REACH]
                for batch in self._independent_pass([label], near, region=region):
                    keep_best(batch)
                    yield []
        return {label: (index, probability) for label, (_, index, probability) in best.items()}

    def _independent_pass(
        self,
        labels: Sequence[int],
        indices: Sequence[int],
        full: bool = False,
        region: Region | None = None,
        finished: Collection[tuple[int, int]] = (),
    ) -> Iterator[list[SliceProbability]]:
        """Each of `indices` alone, seen through `region`; if None, whole (`full`) or around the painted masks."""
        plain = self.options.region == "full"
        shots = {label: self._labels[label].shots for label in labels}
        regions: dict[int, tuple[Region, list[Region]]] = {}
        for label, own in shots.items():
            if region is not None:
                regions[label] = (region, [shot.region(False) for shot in own])
            elif plain or full or not self._labels[label].starts:
                whole = Region.whole(self.scan.shape, self.scan.spacing)
                regions[label] = (whole, [shot.region(True) for shot in own])
            else:
                around = Region.around(np.any([shot.mask for shot in own], axis=0), self.scan.spacing)
                regions[label] = (around, [around] * len(own))
        contrast = Contrast.unchanged() if plain or not self._networks.pipeline.sees_contrast else None
        return run_independent(self._networks, self.scan, shots, regions, indices, contrast, finished)

    def _mask(self, probability: np.ndarray) -> np.ndarray:
        return probability > 255 * self.options.threshold


def _grouped_by_slices(slices: Mapping[int, list[int]]) -> Iterator[tuple[Sequence[int], list[int]]]:
    """(slices, labels): the labels with the same slices together, so that one pass segments them all."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for label, indices in slices.items():
        groups.setdefault(tuple(indices), []).append(label)
    yield from groups.items()


def _evenly_spaced(support: Sequence[SupportSlice]) -> list[SupportSlice]:
    """At most `MAX_SHOTS` painted slices, spread evenly: the time per query grows with their number."""
    if len(support) <= MAX_SHOTS:
        return list(support)
    places = np.linspace(0, len(support) - 1, MAX_SHOTS).round().astype(int)
    return [support[place] for place in places]
