"""Episodes across scans without labels: slices of two scans are matched by registration, supervoxels are warped along.

Matching: some slices of one scan are registered onto slices of the other, and the matching is the line (slice of one ->
slice of the other) along which registered slices correlate best. Scans of different anatomy correlate along no line and
are not paired.

An episode's query is the scan that has the supervoxel, with its exact mask; the painted slice is the matching slice of
the other scan with the mask warped onto it. So the answer is exact, and the painted mask as rough as a registration.
Networks with an input for it also get the mask warped back onto the query, as the segmenter gives it, with added
errors: a mask warped forth and back fits better than any painted one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from SDFSMISLib.inference.network_images import Shot
from SDFSMISLib.inference.registration import (
    AIR,
    SIDE,
    SIDES,
    PaintedBody,
    body_region,
    displacement,
    refine_by_histogram,
    warp,
)
from SDFSMISLib.training.config import TrainingConfig
from SDFSMISLib.training.episodes import MIN_NEXT_PIXELS, OTHER_SCAN_SHARE, Episode, EpisodeSampler
from SDFSMISLib.training.rendering import RandomDraws, imperfect
from SDFSMISLib.training.volumes import (
    BatchPlan,
    Crop,
    EpisodeBatch,
    MaskedSlice,
    SliceTarget,
    TrainingVolume,
)

MATCHING_SIDE = 64  # of the grid on which bodies are compared
PROBES = 8  # slices of the one scan, and twice as many of the other
MIN_CORRELATION = 0.65  # mean correlation along the line; abdomens reach 0.8 to 0.95, noise that is bent to fit 0.55
SCALES = tuple(np.round(np.arange(0.75, 1.3, 0.05), 2).tolist())  # of mm along the axis
OFFSETS = 48  # that are tried
MIN_SHARED = 4  # probes that lie within the other scan
MAX_PARTNERS = 3  # scans that each one is compared with


@dataclass(frozen=True)
class SliceMatching:
    """Slice ``i`` of one scan shows the level of slice ``offset + slope * i`` of another, which has ``count`` slices.

    ``likeness`` is the mean correlation of registered slices along that line, -1 to 1.

    >>> matching = SliceMatching(offset=2.0, slope=0.5, likeness=0.9, count=10)
    >>> matching.at(4), matching.at(40)
    (4, None)
    """

    offset: float
    slope: float
    likeness: float
    count: int

    def at(self, index: int) -> int | None:
        """The other scan's slice at the level of slice `index`; None if it lies outside."""
        there = round(self.offset + self.slope * index)
        return there if 0 <= there < self.count else None


ScanPairs = Mapping[tuple[str, str], SliceMatching]
"""(name of one scan, name of another) -> how their slices match."""


def match_scans(volumes: Sequence[TrainingVolume], report: Callable[[int], None] = lambda _: None) -> ScanPairs:
    """The matchings of scans with a few partners each, of the same group and plane.

    Args:
        volumes: scans, no synthetic ones.
        report: called before each scan with the number of scans done.
    """
    pairs: dict[tuple[str, str], SliceMatching] = {}
    for number, one in enumerate(volumes):
        report(number)
        others = [*volumes[number + 1 :], *volumes[:number]]
        for other in [other for other in others if _comparable(one, other)][:MAX_PARTNERS]:
            matching = match_slices(one, other)
            if matching is not None:
                pairs[one.name, other.name] = matching
    return pairs


def _comparable(one: TrainingVolume, other: TrainingVolume) -> bool:
    assert one.main is not None and other.main is not None, "synthetic volumes are not compared"
    return (one.group, one.main.plane) == (other.group, other.main.plane)


def match_slices(one: TrainingVolume, other: TrainingVolume) -> SliceMatching | None:
    """How slices of `one` and `other` along their main axes, of the same plane, match; None if they do not."""
    assert one.main is not None and other.main is not None, "synthetic volumes are not compared"
    axis, other_axis = one.main.number, other.main.number
    backwards = one.main.rising != other.main.rising
    mine = _probes(one, axis, PROBES)
    theirs = _probes(other, other_axis, 2 * PROBES)
    if min(len(mine), len(theirs)) < MIN_SHARED:
        return None
    scores = np.array([[_registered_correlation(a, b) for b in theirs.values()] for a in mine.values()])
    best: SliceMatching | None = None
    for offset, slope in _candidate_lines(one, other, axis, other_axis, backwards):
        matching = SliceMatching(offset, slope, 0.0, other.maps[0].shape[other_axis])
        likeness = _line_correlation(matching, np.array(list(mine)), np.array(list(theirs)), scores)
        if likeness > (best.likeness if best else MIN_CORRELATION):
            best = SliceMatching(offset, slope, likeness, matching.count)
    return best


def _probes(volume: TrainingVolume, axis: int, most: int) -> dict[int, torch.Tensor]:
    """Bodies (SIDE, SIDE) in [-1, 1] of slices that are spread evenly over those that show one, by slice."""
    assert volume.image is not None
    shown = np.flatnonzero((np.moveaxis(volume.image, axis, 0) > AIR).any(axis=(1, 2)))
    if not len(shown):
        return {}
    found = {}
    for index in np.unique(shown[np.linspace(0, len(shown) - 1, most + 2).round().astype(int)[1:-1]]).tolist():
        target = SliceTarget(volume, axis, index, 0, ())
        image = target.image().astype(np.float32)
        found[index] = body_region(image, target.spacing).to_grid(image, MATCHING_SIDE, -1.0)
    return found


def _registered_correlation(moving: torch.Tensor, fixed: torch.Tensor) -> float:
    """Correlation of a slice that was registered onto another, -1 to 1."""
    moved = warp(moving[None], displacement(moving, fixed)[None])[0]
    pair = torch.stack([moved.flatten(), fixed.flatten()])
    pair = pair - pair.mean(1, keepdim=True)
    norms = pair.norm(dim=1).clamp(min=1e-6)
    return float((pair[0] * pair[1]).sum() / (norms[0] * norms[1]))


def _candidate_lines(
    one: TrainingVolume, other: TrainingVolume, axis: int, other_axis: int, backwards: bool
) -> Iterator[tuple[float, float]]:
    """(offset, slope) of all lines that are tried: bodies of several lengths, at every height."""
    here, there = one.maps[0].shape[axis], other.maps[0].shape[other_axis]
    per_slice = one.spacing[axis] / other.spacing[other_axis] * (-1 if backwards else 1)
    for scale in SCALES:
        slope = per_slice * scale
        for centre in np.linspace(0, there - 1, min(there, OFFSETS)):
            yield float(centre - slope * (here - 1) / 2), float(slope)


def _line_correlation(matching: SliceMatching, mine: np.ndarray, theirs: np.ndarray, scores: np.ndarray) -> float:
    """Mean score of a line, at probes of the other scan's that lie on it or beside it; -1 where few do."""
    places = matching.offset + matching.slope * mine
    inside = (places >= 0) & (places <= matching.count - 1)
    if inside.sum() < MIN_SHARED:
        return -1.0
    seen = [np.interp(place, theirs, row) for place, row in zip(places[inside], scores[inside], strict=True)]
    return float(np.mean(seen))


OWN_SCAN_SHARE = (
    0.3  # share of episodes across scans in which the painted slice is of the scan itself, bent as if of another
)
BEND = 0.08  # of half a side
ANGLE_SPREAD = 0.1  # radians, of both slices together
FULL_SLICE = (0.85, 1.05)  # of half a slice's longer side
MAX_MISALIGNMENT = 0.06  # of half a side, by which warped masks are misplaced beyond the errors of registration
ERROR_SHARE = 0.5  # share of the warped masks that get the errors of a prediction
LEAST_WARPED_PIXELS = 24  # of a slice, that a mask takes after it was warped


class UnlabelledSampler(EpisodeSampler):
    """`EpisodeSampler` whose `cross` episodes need no labels."""

    def __init__(
        self,
        volumes: list[TrainingVolume],
        resolution: int,
        config: TrainingConfig,
        pairs: ScanPairs,
        takes_warped_masks: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        """
        Args:
            volumes: scans with maps of supervoxels, where the first map may be labels; synthetic ones too.
            pairs: how slices of scans match; see `match_scans`.
            takes_warped_masks: whether the networks have an input for warped masks.
        """
        super().__init__(volumes, resolution, config, device)
        self.takes_warped_masks = takes_warped_masks
        scans = {volume.name: volume for volume in self.real}
        self.partners: dict[str, list[tuple[TrainingVolume, SliceMatching]]] = {}
        for (one, other), matching in pairs.items():
            if one in scans and other in scans:
                self.partners.setdefault(one, []).append((scans[other], matching))
        self.shared_groups = [volume.group for volume in self.real][:1]

    def _cross(self, shots: int, swapped: bool) -> list[Episode]:
        """One painted slice of another scan, and a query near its level."""
        query = self._query()
        present = self._slices_with_target(query, MIN_NEXT_PIXELS)
        partners = self.partners.get(query.volume.name, [])
        reach = max(1, len(present) // 3)
        painted = query.at(int(self.rng.choice([z for z in present if abs(z - query.index) <= reach])))
        is_own = True
        if partners and self.rng.random() >= OWN_SCAN_SHARE:
            partner, matching = partners[int(self.rng.integers(len(partners)))]
            found = self._warped_slice(painted, partner, matching)
            if found is None:
                return []
            painted, is_own = found, False
        return (
            self._warped_episode(painted, query)
            if self.takes_warped_masks
            else self._painted_episode(painted, query, is_own)
        )

    def _painted_episode(self, painted: SliceTarget, query: SliceTarget, is_own: bool) -> list[Episode]:
        """Whole slices, as the segmenter sees a scan on which nothing is painted; one that `is_own` is bent as if it
        were another's."""
        bend = torch.from_numpy(self.rng.normal(0, BEND, (1, 5, 5, 2)).astype(np.float32)) if is_own else None
        turn = self.rng.normal(0, ANGLE_SPREAD)
        shown = []
        for target in (painted, query):
            crop = self._jittered(replace(self._full_slice_crop(target), angle=turn))
            shown.append((target, replace(crop, bend=bend) if bend is not None and target is painted else crop))
        return self._episodes_of(shown, False)

    def _warped_episode(self, painted: SliceTarget, query: SliceTarget) -> list[Episode]:
        """The painted slice, the query with the mask warped onto it, and the query; see
        `inference.cross_scan`."""
        image = query.image().astype(np.float32)
        region, side = body_region(image, query.spacing), int(self.rng.choice(SIDES))
        shot = Shot(painted.image().astype(np.float32), painted.mask(), painted.spacing)
        mask = region.from_grid(PaintedBody.of(shot, side).register_to(region.to_grid(image, side, -1.0))[1])
        found = refine_by_histogram(image, region.paste(mask, image.shape), query.spacing) > 0.5
        if found.sum() < LEAST_WARPED_PIXELS:
            return []
        warped = MaskedSlice(query.volume, query.axis, query.index, query.map_number, query.values, own_mask=found)
        turn, mirror = self._random_angle() * 0.3, bool(self.rng.random() < 0.5)
        first = self._crop_around(painted.mask(), painted.spacing, (1.8, 2.3), 0.05)
        crop = replace(self._crop_around(found, query.spacing, (1.7, 2.4), 0.15), angle=turn, mirror=mirror)
        bend = torch.from_numpy(
            self.rng.normal(0, self.rng.uniform(0, MAX_MISALIGNMENT), (1, 5, 5, 2)).astype(np.float32)
        )
        first = replace(first, angle=turn + self.rng.normal(0, 0.05), mirror=mirror)
        if not self._shows_enough((painted, first)):
            return []
        return [Episode(((painted, first), (warped, replace(crop, bend=bend)), (query, crop)), (0, 2, 2))]

    def _without_neighbour(
        self, draws: RandomDraws, plan: BatchPlan, images: torch.Tensor, masks: torch.Tensor
    ) -> EpisodeBatch:
        """Across scans the query stands for its own neighbour, with the mask warped onto it, to which errors are
        added."""
        if not (plan.kind == "cross" and self.takes_warped_masks):
            return super()._without_neighbour(draws, plan, images, masks)
        wrong = draws.chance(ERROR_SHARE, len(masks), 1, 1)
        masks[:, 1] = torch.where(wrong, imperfect(draws, masks[:, 1]), masks[:, 1])
        images[:, 1] = images[:, 2]
        still = torch.zeros(*images[:, 2].shape, 2, device=images.device)
        return EpisodeBatch(images[:, :2], masks[:, :2], images[:, 2], masks[:, 2], 1, still, warped=True)

    def _full_slice_crop(self, target: SliceTarget) -> Crop:
        rows, columns = target.mask().shape
        height, width = rows * target.spacing[0], columns * target.spacing[1]
        return Crop((height / 2, width / 2), float(max(height, width) / 2 * self.rng.uniform(*FULL_SLICE)))

    def _other_scan_support(self, target: SliceTarget) -> SliceTarget | None:
        """Now and then the other scan's slice, as in labelled scans, where the same number would mean the same."""
        partners = self.partners.get(target.volume.name, [])
        if not partners or target.axis != target.volume.main_axis or self.rng.random() > OTHER_SCAN_SHARE:
            return None
        partner, matching = partners[int(self.rng.integers(len(partners)))]
        return self._warped_slice(target, partner, matching)

    def _query(self) -> SliceTarget:
        volume = self.real[int(self.rng.integers(len(self.real)))]
        axis = volume.main_axis
        while True:
            target = self._target(volume)
            if target.axis == axis:
                return target

    def _warped_slice(
        self, target: SliceTarget, partner: TrainingVolume, matching: SliceMatching
    ) -> MaskedSlice | None:
        """The partner's slice that shows the level of `target`, with the warped mask; None outside of it."""
        index = matching.at(target.index)
        if index is None:
            return None
        there = replace(target, volume=partner, axis=partner.main_axis, index=index)
        image, seen = target.image().astype(np.float32), there.image().astype(np.float32)
        if not (seen > AIR).any():
            return None
        region, other = body_region(image, target.spacing), body_region(seen, there.spacing)
        moving, fixed = region.to_grid(image, SIDE, -1.0), other.to_grid(seen, SIDE, -1.0)
        mask = region.to_grid(target.mask().astype(np.float32), SIDE, 0.0)
        moved = warp(mask[None], displacement(moving, fixed)[None])[0]
        found = other.paste(other.from_grid(moved), seen.shape) > 0.5
        if found.sum() < LEAST_WARPED_PIXELS:
            return None
        return MaskedSlice(partner, there.axis, index, target.map_number, target.values, own_mask=found)
