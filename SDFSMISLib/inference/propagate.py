"""The `propagate` strategy: outwards from the painted slices, each finished slice joining the support of the next one.

A `Track` is one front of the propagation: it leaves a painted slice in one direction and visits slice after slice. Its
support is the nearest painted slices (encoded once) and the last slice on which it found the structure. The region
follows the structure. A track ends where the structure ends; the slices behind stay empty. Between two painted slices
one track comes from either side, and each slice is the mean of both, weighted by distance; a shape that changes evenly
counts as evidence besides what the networks find. All tracks (both directions, several labels) advance together, in one
batch.

Networks with a neighbour input (`SupportQueryUNet`, ``neighbour=True``) also get the last finished slice and its mask,
registered onto the query. This is not part of the paper (arXiv 2604.03134, which segments each slice alone); it lets a
network of a few million parameters follow the structure. Those with an input for it (``ahead=True``) see the slices
that come next in a track's direction (`SDFSMISLib.slices.slices_ahead`), so that an end shows before it is passed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from SDFSMISLib.inference.independent import SliceProbability, on_slice_grid, slice_name
from SDFSMISLib.inference.known import KnownPlanes
from SDFSMISLib.inference.network_images import Contrast, Region, Shot, as_rgb, encode_shots, known_on_grid
from SDFSMISLib.inference.networks import Networks
from SDFSMISLib.inference.painted_shapes import Between, Taper
from SDFSMISLib.inference.registration import displacement, warp
from SDFSMISLib.model.likeness import likeness
from SDFSMISLib.model.pipeline import SDFSMISPipeline
from SDFSMISLib.model.unet import SupportBank
from SDFSMISLib.slices import SliceStack, propagation_stride, slices_ahead

NEAREST_PAINTED = 3  # painted slices in the support of a track
END_PIXELS = 4  # a structure with fewer pixels on the network's grid has ended
MIN_CONFIRMATION = 0.3  # it has also ended if the confirmation falls below this share of the start slice's
CUT_SHARE = 0.4  # length of a crossing plane's line through a mask, as a share of the longest, that tells where it ends
END_MARGIN_MM = 5.0  # how far a structure may go on behind the last slice on which crossing planes show it
CALIBRATION_LEVELS = tuple(np.round(np.arange(0.2, 0.81, 0.05), 2).tolist())


@dataclass(eq=False)
class Track:
    """One front of the propagation, from a painted slice in one direction.

    Attributes:
        label: label value.
        start: index of the slice that joins the support: the painted slice at first, later the last slice on which the
            track found the structure.
        mask: mask of that slice, bool canonical (rows, columns).
        path: indices of the slices to visit, in order.
        painted: the painted slices in its support, at most `NEAREST_PAINTED`.
        gap: distance, in slices, to the next painted slice ahead; None if there is none. With a gap the track goes on
            after an empty slice.
        contrast: contrast of all its slices, made from the region around the first `start`.
        confirmation: see `_confirmation`, of the first `start`.
        probability: probability of `start`, float32 canonical, 0 to 1; None = the mask. This is what is warped onto the
            next slice: a border that is rounded to whole pixels on every slice drifts.
        shift: added to the log odds of every probability, so that masks that come out a little too small on each slice
            do not vanish over many slices.
        behind: masks of the painted slices on the other side of the start, bool canonical, by index.
        ahead: mask of the next painted slice ahead, bool canonical; None if there is none.
        is_cut: whether a crossing plane goes through the middle of the first `mask`, and so tells where the structure
            ends.

    Example:
        >>> import numpy as np
        >>> mask = np.ones((2, 2), dtype=bool)
        >>> shot = Shot(np.zeros((2, 2), dtype=np.float32), mask, (1.0, 1.0))
        >>> tracks = tracks_from(1, {2: mask, 6: mask}, {2: shot, 6: shot}, [], requested=range(8), full_count=8)
        >>> [(track.start, track.path, track.gap) for track in tracks]
        [(2, [1, 0], None), (2, [3, 4, 5], 4), (6, [5, 4, 3], 4), (6, [7], None)]
        >>> [tracks[1].weight(index) for index in (3, 4, 5)]
        [0.75, 0.5, 0.25]
    """

    label: int
    start: int
    mask: np.ndarray
    path: list[int]
    painted: list[Shot]
    gap: int | None
    contrast: Contrast = field(default_factory=Contrast.unchanged)
    confirmation: float = 0.0
    probability: np.ndarray | None = None
    shift: float = 0.0
    behind: dict[int, np.ndarray] = field(default_factory=dict)
    ahead: np.ndarray | None = None
    is_cut: bool = False

    def __post_init__(self) -> None:
        self.first = self.start
        self.way = int(np.sign(self.path[0] - self.start)) if self.path else 0

    def weight(self, index: int) -> float:
        """Weight of this track's probability on slice `index`, 0 to 1; the track from the other side has the rest."""
        return 1.0 if self.gap is None else 1 - abs(index - self.first) / self.gap

    @property
    def mask_to_warp(self) -> np.ndarray:
        """The soft mask that is registered onto the next slice, float32 canonical (rows, columns), 0 to 1."""
        return self.mask.astype(np.float32) if self.probability is None else self.probability


EarlierProbability = Callable[[Track, int], "np.ndarray | None"]
"""(track, slice): the track's probability from an earlier run, uint8 canonical (rows, columns); None if unknown."""


@dataclass(eq=False)
class PropagationStep:
    """The output of one batch.

    Attributes:
        slices: finished slices; each label and slice comes once in a run.
        probabilities: (track, slice, probability as uint8 canonical) for every slice of every track; a later run can
            resume from them.
    """

    slices: list[SliceProbability] = field(default_factory=list)
    probabilities: list[tuple[Track, int, np.ndarray]] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class _Prediction:
    """The networks' output on a slice: probabilities `values` (side, side) of its `region`, and their `confirmation`
    (see `_confirmation`)."""

    values: torch.Tensor
    region: Region
    confirmation: float


def tracks_from(
    label: int,
    starts: dict[int, np.ndarray],
    shots: dict[int, Shot],
    others: Sequence[Shot],
    requested: Sequence[int],
    full_count: int,
) -> list[Track]:
    """The tracks of one label. No track passes a slice that the user marked as not showing the structure.

    Args:
        starts: masks, bool canonical (rows, columns), of the slices to start from, by index.
        shots: painted slices of this scan by index; an empty mask says that the structure is absent there.
        others: painted slices of other scans, used if `shots` nowhere shows the structure.
        requested: indices of the slices to segment; tracks go no further than these need.
        full_count: number of slices of the scan.
    """
    edges = sorted({*starts, *(index for index, shot in shots.items() if not shot.mask.any())})
    tracks = []
    for left, right in zip([-1, *edges], [*edges, full_count], strict=True):
        gap = right - left if left in starts and right in starts else None
        for start, way in ((left, range(left + 1, right)), (right, range(right - 1, left, -1))):
            if start in starts and (path := _up_to_last(way, requested)):
                painted = nearest_painted(start, shots, others)
                side = np.sign(path[0] - start)
                absent = [side * index for index in edges if index not in starts and side * (start - index) > 0]
                nearest = max(absent, default=-full_count)  # what lies behind it is another part
                behind = {index: mask for index, mask in starts.items() if nearest < side * index < side * start}
                ahead = starts[left + right - start] if gap is not None else None
                tracks.append(Track(label, start, starts[start], path, painted, gap, behind=behind, ahead=ahead))
    return tracks


def _up_to_last(way: Sequence[int], requested: Sequence[int]) -> list[int]:
    """`way` up to its last slice that is requested; empty if none is."""
    needed = [place for place, index in enumerate(way) if index in requested]
    return list(way[: needed[-1] + 1]) if needed else []


def nearest_painted(start: int, shots: dict[int, Shot], others: Sequence[Shot]) -> list[Shot]:
    """At most `NEAREST_PAINTED` painted slices: those of this scan nearest to slice `start`; if none of this scan shows
    the structure, those of other scans, with the structure first."""
    if any(shot.mask.any() for shot in shots.values()):
        near = sorted(shots, key=lambda index: abs(index - start))
        return [shots[index] for index in near[:NEAREST_PAINTED]]
    return sorted(others, key=lambda shot: not shot.mask.any())[:NEAREST_PAINTED]


def run_propagate(
    networks: Networks,
    scan: SliceStack,
    tracks: Sequence[Track],
    threshold: float,
    full: bool,
    earlier: EarlierProbability = lambda track, index: None,
    known: KnownPlanes | None = None,
) -> Iterator[PropagationStep]:
    """Run all tracks to their ends, one batch at a time; slices behind the end of a track come out empty.

    Args:
        threshold: probability, 0 to 1, above which a pixel belongs to the mask that joins the support.
        full: whole slices instead of regions that follow the structure.
        earlier: probabilities from an earlier run of the same tracks that was cut off. They are not computed again, and
            the others come out bit by bit as they would have, since every batch keeps its composition.
        known: what painted planes tell of the slices; they agree with it, and tracks end by it.
    """
    yield from _Propagation(networks, scan, threshold, full, earlier, known).run(tracks)


class _Blend:
    """Collects the probabilities of tracks, and finishes a slice when the tracks from both sides have reached it."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[int, int], tuple[float, np.ndarray]] = {}

    def add(self, step: PropagationStep, track: Track, index: int, probability: np.ndarray) -> None:
        """Put a track's probability into `step`, and the finished slice too if this completes it."""
        step.probabilities.append((track, index, probability))
        if track.gap is None:
            step.slices.append((track.label, index, probability))
            return
        key = (track.label, index)
        if key not in self._waiting:
            self._waiting[key] = track.weight(index), probability
            return
        weight, other = self._waiting.pop(key)
        mean = weight * other.astype(np.float32) + track.weight(index) * probability
        step.slices.append((track.label, index, np.rint(mean).astype(np.uint8)))


@dataclass(eq=False)
class _Propagation:
    """One call of `run_propagate`."""

    networks: Networks
    scan: SliceStack
    threshold: float
    full: bool
    earlier: EarlierProbability
    known: KnownPlanes | None
    banks: dict[Track, SupportBank] = field(default_factory=dict)
    blend: _Blend = field(default_factory=_Blend)
    digests: dict[int, bytes] = field(default_factory=dict)
    tapers: dict[Track, Taper] = field(default_factory=dict)
    between: dict[Track, Between] = field(default_factory=dict)

    def run(self, tracks: Sequence[Track]) -> Iterator[PropagationStep]:
        side, size = self.networks.side, self.networks.batch_size
        if not self.full and self.networks.pipeline.sees_contrast:
            for track in tracks:
                region = Region.around(track.mask, self.scan.spacing)
                track.contrast = Contrast.of(region.to_grid(self.scan.image(track.start), side, -1.0))
        for track in tracks:
            taper = Taper.of(track, self.scan)
            if taper is not None:
                self.tapers[track] = taper
            between = Between.of(track, self.scan)
            if between is not None:
                self.between[track] = between
            lines = self.known.on(track.label, track.first) if self.known is not None else None
            track.is_cut = lines is not None and lines.cut(track.mask) >= CUT_SHARE
        self.banks = _track_banks(self.networks.pipeline, tracks, self.full, side)
        stride = propagation_stride(self.scan.plane.thickness)
        tracks_per_batch = max(1, size // stride)
        for batch in _batches(tracks, tracks_per_batch):
            self._calibrate(batch)
            yield PropagationStep()
        active = list(tracks)
        while active:
            for batch in _batches(active, tracks_per_batch):
                yield self._advance(batch, stride)
            active = [track for track in active if track.path]

    def _calibrate(self, tracks: Sequence[Track]) -> None:
        """Set the shift of every track such that its start slice, predicted like any other, comes out as painted.

        A start slice whose mask is only a first guess (`Track.probability`) calibrates nothing."""
        rows = [(track, track.start) for track in tracks]
        for track, prediction in zip(tracks, self._predict(rows, len(rows), len(tracks)), strict=True):
            track.confirmation = prediction.confirmation
            if track.probability is not None:
                continue
            mask = self._shot(track).on_grid(prediction.region, self.networks.side)[1] > 0.5
            scores = {level: _dice(prediction.values > level, mask) for level in CALIBRATION_LEVELS}
            level = max(scores, key=lambda one: (scores[one], -abs(one - 0.5)))  # of equal scores the one nearest 0.5
            track.shift = float(np.log((1 - level) / level))

    def _advance(self, tracks: Sequence[Track], stride: int) -> PropagationStep:
        """`stride` slices further on every track; the path of a track that ends is cleared."""
        ahead = {track: track.path[:stride] for track in tracks}
        rows = [(track, index) for track, indices in ahead.items() for index in self._missing(track, indices)]
        predictions = self._predict(rows, sum(map(len, ahead.values())), len(tracks))
        predicted = {(track, index): one for (track, index), one in zip(rows, predictions, strict=True)}
        step = PropagationStep()
        for track, indices in ahead.items():
            for index in indices:
                probability, state, has_ended = self._probability(track, index, predicted.get((track, index)))
                track.path.pop(0)
                if track.gap is None and self._ends(track, index, has_ended):
                    for behind in (index, *track.path):
                        self.blend.add(step, track, behind, np.zeros_like(probability))
                    track.path.clear()
                    break
                self.blend.add(step, track, index, probability)
                mask = self._mask(state)
                if mask.any():
                    track.start, track.mask, track.probability = index, mask, state.astype(np.float32) / 255
        return step

    def _probability(
        self, track: Track, index: int, prediction: _Prediction | None
    ) -> tuple[np.ndarray, np.ndarray, bool]:
        """The probability of a slice, uint8 canonical, the same where it agrees with what is known of the slice, and
        whether the structure has ended there.

        The track goes on with the second. The first is what was found: its error on the lines of crossing planes tells
        how far to trust the axis (see `SDFSMISLib.images.fusion`)."""
        lines = self.known.on(track.label, index) if self.known is not None else None
        if prediction is None:
            probability = self.earlier(track, index)
            assert probability is not None, "every slice without an earlier probability was predicted"
            has_ended = False
        else:
            shifted = _shifted(prediction.values, track.shift)
            probability = on_slice_grid(prediction.region, shifted, self.scan.shape)
            is_small = int((shifted > self.threshold).sum()) < END_PIXELS
            if track in self.tapers:
                probability = np.where(self.tapers[track].reaches(abs(index - track.first)), probability, np.uint8(0))
            if track in self.between:
                probability = self.between[track].combine(probability, 1 - track.weight(index), self.threshold)
            has_ended = is_small or prediction.confirmation < MIN_CONFIRMATION * track.confirmation
            if lines is not None and track.is_cut and lines.is_whole:
                has_ended |= self._is_behind(track, index)
        state = probability if lines is None else lines.apply(probability)
        return probability, state, has_ended or not (self._mask(probability).any() and self._mask(state).any())

    def _ends(self, track: Track, index: int, has_ended: bool) -> bool:
        """Whether a track ends where it seems to: not if crossing planes show the structure there or further ahead."""
        return has_ended and not any(distance >= 0 for distance in self._shown_ahead(track, index))

    def _is_behind(self, track: Track, index: int) -> bool:
        """Whether a slice is over `END_MARGIN_MM` behind the last one on which crossing planes show the structure."""
        ahead = self._shown_ahead(track, index)
        return bool(ahead) and -max(ahead) * self.scan.plane.thickness > END_MARGIN_MM

    def _shown_ahead(self, track: Track, index: int) -> list[int]:
        """How many slices ahead of `index` (negative: behind) are those of a track's way on which crossing planes show
        the structure."""
        shown = self.known.shown_on(track.label) if self.known is not None else []
        sign = 1 if index > track.first else -1
        return [sign * (other - index) for other in shown if sign * (other - track.first) >= 0]

    def _missing(self, track: Track, indices: Sequence[int]) -> list[int]:
        """The next slices of a track that have to be computed: without an earlier probability, and not behind its
        end."""
        missing = []
        for index in indices:
            if self.earlier(track, index) is None:
                missing.append(index)
            elif track.gap is None and self._ends(track, index, self._probability(track, index, None)[2]):
                break
        return missing

    def _predict(self, rows: Sequence[tuple[Track, int]], batch_rows: int, batch_tracks: int) -> list[_Prediction]:
        """Predictions of slices, each as the next one of its track.

        Args:
            rows: (track, slice), those of one track side by side.
            batch_rows, batch_tracks: numbers of rows and tracks of the whole batch, including those whose earlier
                probability is known.
        """
        names = [self._prediction_name(track, index) for track, index in rows]
        found = [self._known_prediction(track, name) for (track, _), name in zip(rows, names, strict=True)]
        missing = [number for number, one in enumerate(found) if one is None]
        if missing:
            passes = partial(self._predict_pass, several=batch_tracks > 1)
            made = self.networks.in_parts([rows[number] for number in missing], passes, batch_rows)
            for number, prediction in zip(missing, made, strict=True):
                found[number] = prediction
                self._keep(names[number], prediction)
        return [one for one in found if one is not None]

    def _prediction_name(self, track: Track, index: int) -> tuple[str, Hashable] | None:
        """Key of a prediction in the `LatentCache`, of all that it depends on; None if slices have no identity."""
        scan, region = self.scan, self._region(track)
        name = slice_name(scan, index, region, track.contrast)
        if name is None or scan.identity is None or self.networks.latents is None:
            return None
        digest = hashlib.sha256(scan.identity(track.start).encode())
        shots = b"".join(self._shot_digest(shot) for shot in track.painted)
        known = b""
        if self.networks.pipeline.takes_known:
            known = self._known_map(track, index, region).numpy().tobytes()
        ahead = b""
        if self.networks.pipeline.takes_ahead:
            shown = self._ahead(track, index)
            ahead = repr([None if place is None else scan.identity(place) for place in shown]).encode()
        for part in (track.mask_to_warp.tobytes(), np.packbits(track.mask).tobytes(), shots, known, ahead):
            digest.update(part)
        return name[0], ("prediction", self.full, name[1], digest.digest())

    def _shot_digest(self, shot: Shot) -> bytes:
        if id(shot) not in self.digests:
            content = shot.image.tobytes() + np.packbits(shot.mask).tobytes() + repr(shot.spacing).encode()
            self.digests[id(shot)] = hashlib.sha256(content).digest()
        return self.digests[id(shot)]

    def _known_prediction(self, track: Track, name: tuple[str, Hashable] | None) -> _Prediction | None:
        """The prediction of an earlier run with the same inputs, such as that before a stroke somewhere else."""
        kept = (
            self.networks.latents.prediction(*name) if name is not None and self.networks.latents is not None else None
        )
        if kept is None:
            return None
        side = self.networks.side
        return _Prediction(kept[:-1].reshape(side, side), self._region(track), float(kept[-1]))

    def _keep(self, name: tuple[str, Hashable] | None, prediction: _Prediction) -> None:
        if name is not None and self.networks.latents is not None:
            both = torch.cat([prediction.values.float().flatten(), torch.tensor([prediction.confirmation])])
            self.networks.latents.put(*name, both)

    def _predict_pass(self, rows: Sequence[tuple[Track, int]], several: bool) -> list[_Prediction]:
        """As `_predict`, in one pass; `several`: whether the whole batch has more than one track."""
        pipeline, scan, side = self.networks.pipeline, self.scan, self.networks.side
        tracks = list(dict.fromkeys(track for track, _ in rows))
        row = [tracks.index(track) for track, _ in rows]
        if len(tracks) == 1 and several:
            tracks = tracks * 2
        regions = [self._region(track) for track in tracks]
        shots = [self._shot(track).on_grid(region, side) for track, region in zip(tracks, regions, strict=True)]
        images, masks = zip(*shots, strict=True)
        queries = [regions[r].to_grid(scan.image(index), side, -1.0) for r, (_, index) in zip(row, rows, strict=True)]
        if pipeline.takes_neighbours:
            moves = torch.stack([displacement(images[r], query) for r, query in zip(row, queries, strict=True)])
        last = torch.stack([track.contrast(image) for track, image in zip(tracks, images, strict=True)])
        seen = as_rgb(torch.stack([tracks[r].contrast(query) for r, query in zip(row, queries, strict=True)]))
        painted = _stacked([self.banks[track] for track in tracks])
        last_bank = pipeline.encode_support(as_rgb(last)[:, None], torch.stack(masks)[:, None], painted.conditions)
        bank = painted.joined(last_bank).rows(torch.tensor(row, device=pipeline.device))
        neighbours, neighbour_masks, known, ahead, is_there = None, None, None, None, None
        if pipeline.takes_neighbours:
            to_warp = torch.stack([regions[r].to_grid(tracks[r].mask_to_warp, side, 0.0) for r in row])
            neighbours, neighbour_masks = as_rgb(warp(last[row], moves)), warp(to_warp, moves)
        names = [slice_name(scan, index, regions[r], one.contrast) for r, (one, index) in zip(row, rows, strict=True)]
        latents = self.networks.encoded(seen, names)
        if pipeline.takes_known:
            known = torch.stack([self._known_map(*one, regions[r]) for r, one in zip(row, rows, strict=True)])
        if pipeline.takes_ahead:
            ahead, is_there = self._seen_ahead(rows, [regions[r] for r in row])
        hints = pipeline.hints(seen, bank, neighbours, neighbour_masks, known, ahead, is_there)
        maps = pipeline.segment(latents, bank, hints).mean(1).cpu()
        confirmations = torch.ones(len(row))
        if neighbour_masks is not None and painted.likeness is not None:
            alike = likeness(seen[:, 0].to(painted.likeness.device), painted.likeness[row]).cpu()
            confirmations = _confirmation(maps, neighbour_masks, alike)
        return [_Prediction(maps[n], regions[r], float(confirmations[n])) for n, r in enumerate(row)]

    def _known_map(self, track: Track, index: int, region: Region) -> torch.Tensor:
        """What is known of a track's slice, (side, side): 1 inside of the structure, -1 outside, 0 unknown."""
        side, lines = self.networks.side, self.known.on(track.label, index) if self.known is not None else None
        if lines is None:
            return torch.zeros(side, side)
        return known_on_grid(region.to_grid(lines.map(), side, 0.0), max(region.height, region.width))

    def _ahead(self, track: Track, index: int) -> list[int | None]:
        """The slices that the networks see ahead of a track's slice; None for one that is not there."""
        return slices_ahead(index, track.way, propagation_stride(self.scan.plane.thickness), self.scan.count)

    def _seen_ahead(
        self, rows: Sequence[tuple[Track, int]], regions: Sequence[Region]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The slices ahead of each row, (Q, A, side, side), seen as the row is, and whether they are there, (Q, A)."""
        side = self.networks.side
        images, is_there = [], []
        for (track, index), region in zip(rows, regions, strict=True):
            places = self._ahead(track, index)
            seen = [
                torch.zeros(side, side)
                if place is None
                else track.contrast(region.to_grid(self.scan.image(place), side, -1.0))
                for place in places
            ]
            images.append(torch.stack(seen))
            is_there.append([place is not None for place in places])
        return torch.stack(images), torch.tensor(is_there)

    def _region(self, track: Track) -> Region:
        """The part of a track's next slices that the networks see."""
        shape, spacing = self.scan.shape, self.scan.spacing
        return Region.whole(shape, spacing) if self.full else Region.around(track.mask, spacing)

    def _shot(self, track: Track) -> Shot:
        """The last slice on which a track found the structure, with its mask."""
        return Shot(self.scan.image(track.start), track.mask, self.scan.spacing)

    def _mask(self, probability: np.ndarray) -> np.ndarray:
        return probability > 255 * self.threshold


def _batches(tracks: Sequence[Track], size: int) -> Iterator[list[Track]]:
    """Tracks that can go through the networks together: with equally many painted slices, at most `size`."""
    for shots in sorted({len(track.painted) for track in tracks}):
        equals = [track for track in tracks if len(track.painted) == shots]
        for start in range(0, len(equals), size):
            yield equals[start : start + size]


def _confirmation(maps: torch.Tensor, warped: torch.Tensor, alike: torch.Tensor) -> torch.Tensor:
    """How far the images confirm the expected structure, (Q,), 0 to 1: of the pixels in the warped mask or in the
    prediction, the share that is predicted and looks like the painted structure.

    A network that follows a structure beyond its end predicts remnants of the warped mask, or the tissue beside it. The
    likeness of the prediction alone says little then; that of the warped mask says little if the structure changes
    quickly.

    Args:
        maps: probabilities (Q, side, side).
        warped: soft masks that registration warped onto the queries, (Q, side, side).
        alike: likeness to the painted structure, (Q, side, side), see `SDFSMISLib.model.likeness`.
    """
    both = torch.maximum(maps, warped).sum((1, 2))
    return (alike * maps).sum((1, 2)) / both.clamp(min=1e-6)


def _shifted(values: torch.Tensor, shift: float) -> torch.Tensor:
    """Probabilities with `shift` added to their log odds."""
    return torch.sigmoid(torch.logit(values.float(), eps=1e-4) + shift)


def _dice(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()).clamp(min=1))


def _track_banks(pipeline: SDFSMISPipeline, tracks: Sequence[Track], full: bool, side: int) -> dict[Track, SupportBank]:
    """The bank of every track's painted slices; tracks with the same painted slices share one."""
    made: dict[tuple[int, ...], SupportBank] = {}
    banks = {}
    for track in tracks:
        key = tuple(id(shot) for shot in track.painted)
        if key not in made:
            regions = [shot.region(full) for shot in track.painted]
            plain = full or not pipeline.sees_contrast
            made[key] = encode_shots(pipeline, track.painted, regions, side, Contrast.unchanged() if plain else None)
        banks[track] = made[key]
    return banks


def _stacked(banks: Sequence[SupportBank]) -> SupportBank:
    """Banks of one row each as one bank, a row each."""
    first = banks[0]
    return SupportBank(
        keys={name: torch.cat([bank.keys[name] for bank in banks]) for name in first.keys},
        values={name: torch.cat([bank.values[name] for bank in banks]) for name in first.values},
        conditions={name: torch.cat([bank.conditions[name] for bank in banks]) for name in first.conditions},
        foreground=torch.cat([bank.foreground for bank in banks]),
        background=torch.cat([bank.background for bank in banks]),
        likeness=None if first.likeness is None else torch.cat([b.likeness for b in banks if b.likeness is not None]),
    )
