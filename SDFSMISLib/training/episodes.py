"""Episodes: a few painted slices, a query slice and its true mask, on the network's grid.

Four kinds: `propagate` (from the painted slice and the last finished one to the next), `independent` (painted slices
anywhere in the scan), `cross` (the painted slice is of another scan), and `paper` (two adjacent slices and a
supervoxel, as SD-FSMIS trains).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from SDFSMISLib.errors import InputError
from SDFSMISLib.images.labelmap import bounding_box
from SDFSMISLib.inference.network_images import Region, known_on_grid
from SDFSMISLib.slices import AHEAD, propagation_stride, slices_ahead
from SDFSMISLib.training.config import TrainingConfig
from SDFSMISLib.training.rendering import (
    RandomDraws,
    augment_intensity,
    equalizing_contrasts,
    imperfect,
    registered,
    render,
    with_contrast,
)
from SDFSMISLib.training.synthesis import GRID, augment
from SDFSMISLib.training.volume_store import DrawnBatch, View, VolumeStore, pixels_on_grid, slice_counts
from SDFSMISLib.training.volumes import (
    BatchPlan,
    Crop,
    EpisodeBatch,
    MaskedSlice,
    PreviousSlices,
    SliceTarget,
    TrainingVolume,
    resampled,
)

LEAST_PIXELS = 5  # of a target on the painted slice, at least: a spinal cord in coarse CT has a dozen
MIN_NEXT_PIXELS = 3  # on the slices that follow
BEYOND_END_SHARE = 0.35  # share of propagate episodes whose query lies behind the structure's end
OTHER_SCAN_SHARE = 0.15  # share of propagate episodes on labels whose painted slices are of another scan
MIN_PAINTED_PIXELS = 8  # of the grid, that a painted target takes
MIN_EARLIER_PIXELS = 6  # of the grid, that a slice shows from which the next mask is predicted
UNION_SHARE = 0.1  # share of targets that are made of two
OTHER_AXES_SHARE = 0.25  # share of targets of scans with thick slices that are seen on slices across these
TWO_LINES_SHARE = 0.4  # share of queries with known lines that have two
PART_OF_LINE_SHARE = 0.2  # share of lines that are known in part
MISSING_SHARE = 0.25  # share of lines drawn anywhere in the view, not through the structure
LONGEST_GAP = 10.0  # mm from the finished neighbour to the query; thick slices lie so far apart
FAMILY_POWER = 0.25  # a group of many similar scans is drawn more often than a single one, but not in proportion
MAX_TRIES = 10_000  # of a batch
MIN_PAPER_SHARE = 200 / GRID**2  # of the slice, that a supervoxel takes on one of the two at least
CONTRAST_SHARE = 0.9  # share of episodes seen with a region's contrast, as by the segmenter's region `auto`


@dataclass(frozen=True)
class Episode:
    """One episode as it is chosen, before its pixels are sampled.

    Attributes:
        views: the painted slices; in `propagate` then the slice before the finished neighbour, the neighbour, and the
            query, and the slices ahead of the query, and of the neighbour, if these are shown; else the query last.
        held: the neighbour with the mask that the track hands on; None: no finished neighbour.
        contrast: for each view the one whose contrast it gets.
        is_exact: whether the handed-on mask is the painted one, without errors.
        wanted: whether the neighbour's mask may be predicted from the slice before.
        known: (R, R), see `EpisodeBatch`.
        is_there: which of the slices ahead the networks are shown.
        is_twin: whether it shows the images of the episode before it, and asks for another target.
    """

    views: tuple[View, ...]
    contrast: tuple[int, ...]
    held: View | None = None
    is_exact: bool = False
    wanted: bool = False
    known: torch.Tensor | None = None
    is_there: tuple[bool, ...] = ()
    is_twin: bool = False


class EpisodeSampler:
    """Draws batches of episodes; seed and number of a batch determine it, whatever was drawn before.

    Args:
        volumes: to draw from; synthetic ones have no image.
        device: on which pixels are made, where the volumes lie too.
        resolution: R, side of the network's grid in pixels.
        config: ``seed``; ``mix``, the share of each kind; ``synthetic_share``, of episodes from synthetic volumes;
            ``label_share``, of those on real volumes whose target is a label rather than a supervoxel; ``rollout``, of
            `propagate` batches with what comes ``before``; ``swapped``, see `batch`; ``known``, of `propagate` queries
            on which painted slices of other views tell the mask along one or two lines; ``ahead``, of `propagate`
            episodes that show the slices that come next.

    Raises:
        InputError: if the mix has `paper` episodes and no volume is a scan.

    >>> from SDFSMISLib.training.volumes import synthetic_volumes
    >>> config = TrainingConfig(cases="", output="run", mix={"independent": 1.0})
    >>> batch = EpisodeSampler(synthetic_volumes(1, seed=0), 32, config).batch(size=2, number=0)
    >>> batch.query_images.shape, batch.support_masks.shape[0]
    (torch.Size([2, 32, 32]), 2)
    """

    def __init__(
        self,
        volumes: Sequence[TrainingVolume],
        resolution: int,
        config: TrainingConfig,
        device: torch.device | str = "cpu",
    ) -> None:
        self.resolution, self.config, self.seed = resolution, config, config.seed
        self.store = VolumeStore(volumes, torch.device(device))
        volumes = self.store.volumes
        self.synthetic_share, self.label_share = config.synthetic_share, config.label_share
        self.rng = np.random.default_rng(config.seed)
        self.real = [v for v in volumes if v.image is not None]
        self.synthetic = [v for v in volumes if v.image is None]
        self.families: dict[str, list[TrainingVolume]] = {}
        for volume in self.real:
            self.families.setdefault(volume.group, []).append(volume)
        self.shared_groups = [g for g, members in self.families.items() if len(members) > 1]
        wanted = {name: config.group_weights.get(few[0].source, 1.0) for name, few in self.families.items()}
        sizes = np.array([len(members) ** FAMILY_POWER * wanted[name] for name, members in self.families.items()])
        if self.real and not sizes.any():
            raise InputError("group_weights is 0 for every group of scans; leave one above 0.")
        self._family_weights = sizes / sizes.sum() if len(sizes) else sizes
        self.shared_groups = [name for name in self.shared_groups if wanted[name]]
        shared = np.array([wanted[name] for name in self.shared_groups])
        self._shared_weights = shared / shared.sum() if len(shared) else shared
        if config.mix.get("paper") and not self.real:
            raise InputError("Episodes of the kind 'paper' are made of scans; name a manifest of them as 'cases'.")
        self._counts: dict[tuple[str, int, int], np.ndarray] = {}

    def batch(self, size: int, number: int, late: bool = False) -> EpisodeBatch:
        """Batch ``number``: ``size`` episodes of one kind with one number of shots.

        Args:
            late: near the end of a training, a share ``swapped`` of the batches without finished neighbours has pairs
                of episodes with two targets on the same slices, so that only the painted masks tell which one is meant
                (label-unpaired context, LUC, arXiv 2610.10335).

        Raises:
            InputError: if no or too few episodes show their target well enough.
        """
        return self.rendered(self.drawn(size, number, late))

    def drawn(self, size: int, number: int, late: bool = False) -> DrawnBatch:
        """The part of `batch` that chooses, on the host; a process that does nothing else needs no GPU."""
        self.rng = np.random.default_rng([self.seed, number])
        plan = BatchPlan.drawn(self.rng, self.config, late)
        if plan.kind == "cross" and not self.shared_groups:
            plan = replace(plan, kind="independent")
        episodes: list[Episode] = []
        papers: list[tuple[torch.Tensor, ...]] = []
        for _ in range(MAX_TRIES):
            if plan.kind == "paper":
                papers += self._paper()
            else:
                episodes += self._of_kind(plan)
            if len(episodes) + len(papers) >= size:
                break
        else:
            raise InputError(
                f"Of {MAX_TRIES} episodes of the kind {plan.kind!r} that were drawn, {len(episodes) + len(papers)} "
                "show their target well enough; take scans with larger targets, or another mix."
            )
        if papers:
            supports, masks, queries, answers = (torch.stack(x) for x in zip(*papers[:size], strict=True))
            return DrawnBatch(plan, paper=EpisodeBatch(supports, masks, queries, answers, painted=1))
        return self._in_numbers(episodes[:size], plan)

    def _of_kind(self, plan: BatchPlan) -> list[Episode]:
        """One episode of this kind, or two twins; none if what was drawn shows too little."""
        if plan.kind == "propagate":
            return self._propagate(plan.painted, plan.rolled)
        return (
            self._independent(plan.shots, plan.swapped)
            if plan.kind == "independent"
            else self._cross(plan.shots, plan.swapped)
        )

    def _in_numbers(self, episodes: Sequence[Episode], plan: BatchPlan) -> DrawnBatch:
        side, views = self.resolution, [view for one in episodes for view in one.views]
        scans = [row for row, (target, _) in enumerate(views) if target.volume.image is not None]
        drawn = [row for row, one in enumerate(episodes) if one.views[0][0].volume.image is None]
        shown = [view for row in drawn for view in episodes[row].views]
        last = plan.painted + 3 if plan.kind == "propagate" else None  # no masks of the slices ahead
        masked = [view for one in episodes for view in one.views[:last]]
        own = [row for row, (target, _) in enumerate(masked) if isinstance(target, MaskedSlice)]
        held = [one.held for one in episodes if one.held is not None]
        known = [one.known for one in episodes if one.known is not None]
        return DrawnBatch(
            plan,
            seed=int(self.rng.integers(1 << 62)),
            masks=self.store.mask_cuts(masked, side),
            scans=self.store.image_cuts([views[row] for row in scans], side) if scans else None,
            looks=self.store.look_cuts(shown, side) if drawn else None,
            scan_rows=torch.tensor(scans),
            look_rows=torch.tensor(drawn),
            scenes=torch.tensor([row - 1 if one.is_twin and row else row for row, one in enumerate(episodes)]),
            contrast=torch.tensor([one.contrast for one in episodes]),
            held=self.store.mask_cuts(held, side) if held else None,
            is_exact=torch.tensor([one.is_exact for one in episodes]),
            wanted=torch.tensor([one.wanted for one in episodes]),
            known=torch.stack(known).half() if known else None,
            is_there=torch.tensor([one.is_there for one in episodes]) if episodes[0].is_there else None,
            mask_rows=torch.tensor(own) if own else None,
            own_masks=torch.stack([self._on_grid(*masked[row]) for row in own]).float() if own else None,
        )

    def rendered(self, drawn: DrawnBatch) -> EpisodeBatch:
        """The part of `batch` that makes the pixels, on the device."""
        if drawn.paper is not None:
            return drawn.paper
        on = drawn.to(self.store.device)
        assert on.masks and on.scenes is not None and on.contrast is not None
        draws, plan, episodes = RandomDraws(on.seed, self.store.device), on.plan, len(on.scenes)
        plain = self._images(draws, on)
        values = equalizing_contrasts(plain.flatten(0, 1)).unflatten(0, plain.shape[:2])
        values = values.gather(1, on.contrast[..., None].expand_as(values))
        images = with_contrast(plain.flatten(0, 1), values.flatten(0, 1)).view(plain.shape)
        images = torch.where(draws.chance(CONTRAST_SHARE, episodes, 1, 1, 1)[on.scenes], images, plain)
        masks = self.store.masks(on.masks, self.resolution)
        if on.mask_rows is not None and on.own_masks is not None:
            masks[on.mask_rows] = on.own_masks
        masks = masks.unflatten(0, (episodes, -1))
        if plan.kind != "propagate":
            return self._without_neighbour(draws, plan, images, masks)
        assert on.held and on.is_exact is not None and on.wanted is not None and on.known is not None
        p, before = plan.painted, None
        ahead = self._ahead_of(images[:, masks.shape[1] :], on.is_there)
        held = self.store.masks(on.held, self.resolution)
        held = torch.where(on.is_exact[:, None, None], held, imperfect(draws, held))
        moved = registered(plain[:, p + 1], plain[:, p + 2])
        if plan.rolled:
            wanted = on.wanted & (masks[:, p].sum((1, 2)) >= MIN_EARLIER_PIXELS)
            there = registered(plain[:, p], plain[:, p + 1])
            before = PreviousSlices(images[:, p], imperfect(draws, masks[:, p]), there, wanted, *ahead[1])
        supports = torch.cat([images[:, :p], images[:, p + 1 : p + 2]], dim=1)
        support_masks = torch.cat([masks[:, :p], held[:, None]], dim=1)
        known = on.known.float()
        return EpisodeBatch(
            supports,
            support_masks,
            images[:, p + 2],
            masks[:, p + 2],
            p,
            moved,
            before,
            known=known,
            ahead=ahead[0][0],
            is_there=ahead[0][1],
        )

    @staticmethod
    def _ahead_of(
        images: torch.Tensor, is_there: torch.Tensor | None
    ) -> list[tuple[torch.Tensor | None, torch.Tensor | None]]:
        """The slices ahead of the queries, then those of the neighbours: (B, A, R, R) of all such images (B, n, R, R),
        and whether they are there, (B, A); None if no slices ahead are shown."""
        if is_there is None:
            return [(None, None), (None, None)]
        return list(zip(images.split(AHEAD, dim=1), is_there.split(AHEAD, dim=1), strict=True))

    def _without_neighbour(
        self, draws: RandomDraws, plan: BatchPlan, images: torch.Tensor, masks: torch.Tensor
    ) -> EpisodeBatch:
        """The batch of images and masks (B, S + 1, R, R), the query last."""
        return EpisodeBatch(images[:, :-1], masks[:, :-1], images[:, -1], masks[:, -1], images.shape[1] - 1)

    def _images(self, draws: RandomDraws, on: DrawnBatch) -> torch.Tensor:
        """Images (B, S, R, R) in [-1, 1]; intensities change for the task, and a little for each slice."""
        side, same_scan = self.resolution, on.plan.same_scan
        assert on.contrast is not None and on.scenes is not None
        images = torch.zeros(*on.contrast.shape, side, side, device=self.store.device)
        if on.scans:
            images.flatten(0, 1)[on.scan_rows] = self.store.images(on.scans, side)
        if on.looks:
            labels = self.store.looks(on.looks, side)
            images[on.look_rows] = render(draws, labels.view(-1, images.shape[1], 1, side, side), same_scan)
        return augment_intensity(draws, images, same_scan)[on.scenes]

    # -- the four kinds

    def _propagate(self, painted: int, rolled: bool) -> list[Episode]:
        """The painted slice(s), the finished neighbour with the kind of errors a prediction has, and the next slice.

        Some queries (`BEYOND_END_SHARE`) lie behind the end of the structure: the answer is empty although the finished
        neighbour holds it, or claims to.
        """
        first = self._target()
        present = self._slices_with_target(first, MIN_NEXT_PIXELS)
        way = 1 if self.rng.random() < 0.5 else -1
        gap = self._gap(first, present)
        first = replace(first, thick=int(self.rng.integers(1, gap + 1)) if self.rng.random() < 0.5 else 1)
        ahead = [z for z in present if 0 < (z - first.index) * way <= 12 * gap]
        if not ahead:
            return []
        end = max(present, key=lambda z: z * way)
        index = int(self.rng.choice(ahead))
        beyond = (
            self.rng.random() < BEYOND_END_SHARE and not first.is_supervoxel
        )  # whose end nothing in the image shows
        if beyond:
            index = end + way * int(self.rng.integers(1, 1 + (gap if self.rng.random() < 0.6 else 6 * gap)))
            if not 0 <= index < first.volume.maps[0].shape[first.axis]:
                return []
        back = min(gap, abs(index - first.index))
        previous, query = first.at(index - way * back), first.at(index)
        lost = (previous.index - end) * way > 0  # a track that has missed the end keeps the mask from there
        held = first.at(end) if lost else previous
        neighbour_mask = held.mask()
        if not neighbour_mask.any():
            return []
        turn, mirror = self._random_angle(), bool(self.rng.random() < 0.5)
        shown: list[View] = []
        foreign = self._other_scan_support(first)
        for number in range(painted):
            target = first if number == 0 else first.at(int(self.rng.choice(present)))
            target = foreign or target
            crop = self._crop_around(target.mask(), target.spacing, (1.8, 2.3), 0.05)
            shown.append((target, replace(crop, angle=turn + self.rng.normal(0, 0.05), mirror=mirror)))
        crop = self._crop_around(neighbour_mask, previous.spacing, (1.7, 2.4), 0.15)
        crop = replace(crop, angle=turn, mirror=mirror)
        is_first = previous.index == first.index and foreign is None
        before = previous if is_first or lost else self._slice_before(first, previous, gap)
        shown += [(before, crop), (previous, crop), (query, crop)]
        if not self._shows_enough(shown[0]):
            return []
        known = self._known(query, crop, held)
        is_there: list[bool] = []
        if self.config.ahead:
            is_shown = bool(self.rng.random() < self.config.ahead)
            stride = max(gap, propagation_stride(first.volume.spacing[first.axis]))
            for target in (query, previous) if rolled else (query,):
                count = first.volume.maps[0].shape[first.axis]
                places = slices_ahead(target.index, way, stride, count)
                shown += [(target if place is None else target.at(place), crop) for place in places]
                is_there += [is_shown and place is not None for place in places]
        source = 0 if foreign is None else painted
        return [
            Episode(
                views=tuple(shown),
                contrast=(*range(painted), *(source,) * (len(shown) - painted)),
                held=(held, crop),
                is_exact=is_first,
                wanted=before.index != previous.index,
                known=known,
                is_there=tuple(is_there),
            )
        ]

    def _known(self, query: SliceTarget, crop: Crop, near: SliceTarget) -> torch.Tensor:
        """What painted slices of other views tell of a query: (R, R), 1 inside, -1 outside, 0 unknown.

        Such a slice crosses the query in a row or a column. Most go through the structure as it is on `near`.
        """
        if self.rng.random() >= self.config.known:
            return torch.zeros(self.resolution, self.resolution)
        truth = query.mask()
        told = np.zeros(truth.shape, dtype=np.float32)
        ways = self.rng.permutation(2)[: 2 if self.rng.random() < TWO_LINES_SHARE else 1]
        for way in ways:
            crossed = np.flatnonzero(near.mask().any(axis=1 - way))
            if self.rng.random() < MISSING_SHARE:
                reach = crop.half / query.spacing[way]
                middle = crop.centre[way] / query.spacing[way]
                low, high = max(0, int(middle - reach)), min(truth.shape[way], int(middle + reach) + 1)
                crossed = np.arange(low, max(high, low + 1)).clip(0, truth.shape[way] - 1)
            place = int(self.rng.choice(crossed))
            length = truth.shape[1 - way]
            first, last = 0, length
            if self.rng.random() < PART_OF_LINE_SHARE:
                first, last = np.sort(self.rng.integers(0, length + 1, 2))
            line = np.moveaxis(told, way, 0)[place]
            line[first:last] = 2.0 * np.moveaxis(truth, way, 0)[place, first:last] - 1
        seen = resampled(torch.from_numpy(told), query.spacing, crop, self.resolution)
        return known_on_grid(seen, 2 * crop.half / min(query.spacing))

    def _other_scan_support(self, target: SliceTarget) -> SliceTarget | None:
        """Sometimes a slice of another scan of the same anatomy that shows the labelled target well: what a track that
        begins on a scan without painted slices looks at.
        """
        members = [v for v in self.families.get(target.volume.group, []) if v.name != target.volume.name]
        if target.map_number or not members or self.rng.random() > OTHER_SCAN_SHARE:
            return None
        other = replace(target, volume=members[int(self.rng.integers(len(members)))])
        counts = self._slice_counts(other.volume, 0, other.axis)
        areas = counts[:, [value for value in target.values if value < counts.shape[1]]].sum(1)
        good = np.flatnonzero(areas >= max(LEAST_PIXELS, 0.5 * areas.max()))
        return other.at(int(self.rng.choice(good))) if len(good) else None

    def _gap(self, target: SliceTarget, present: list[int]) -> int:
        """Slices from one to the next of a track: one, or as many as a thick slice has, up to `LONGEST_GAP`."""
        thickness = target.volume.spacing[target.axis]
        most = min(LONGEST_GAP / thickness, len(present) / 8)
        if most < 2 or self.rng.random() < 0.2:
            return 1
        return int(round(self.rng.uniform(1, most)))

    def _slice_before(self, first: SliceTarget, previous: SliceTarget, gap: int) -> SliceTarget:
        """The track's slice before `previous`: a gap nearer to the painted slice `first`, but not past it."""
        away = previous.index - first.index
        return first.at(previous.index - int(np.sign(away)) * min(gap, abs(away)))

    def _independent(self, shots: int, swapped: bool) -> list[Episode]:
        """Painted slices and a query of the same scan, seen through one frame; one query in eight lacks the target."""
        first = self._target()
        present = self._slices_with_target(first, MIN_NEXT_PIXELS)
        if len(present) < 2:
            return []
        targets = [first] + [first.at(int(self.rng.choice(present))) for _ in range(shots - 1)]
        query = first.at(int(self.rng.choice(present)))
        if self.rng.random() < 0.125:
            absent = sorted(
                set(range(first.volume.maps[0].shape[first.axis])) - set(self._slices_with_target(first, 1))
            )
            if absent:
                query = first.at(int(self.rng.choice(absent)))
        union = np.any([target.mask() for target in targets], axis=0)
        if self.rng.random() < 0.3:
            crop = self._full_crop(union.shape, first.spacing)
        else:
            crop = self._crop_around(union, first.spacing, (1.6, 3.5), 0.25)
        turn, mirror = self._random_angle(), bool(self.rng.random() < 0.5)
        shown = [(target, self._jittered(replace(crop, angle=turn, mirror=mirror))) for target in [*targets, query]]
        return self._episodes_of(shown, swapped)

    def _cross(self, shots: int, swapped: bool) -> list[Episode]:
        """Painted slices of one scan, a query of another scan of the same anatomy."""
        members = self.families[str(self.rng.choice(self.shared_groups, p=self._shared_weights))]
        a, b = self.rng.choice(len(members), 2, replace=False)
        first = self._target(members[a], labels=True)
        query = replace(first, volume=members[b])
        there = self._slices_with_target(query, MIN_NEXT_PIXELS)
        if not there or query.axis not in members[b].axes:
            return []
        query = query.at(int(self.rng.choice(there)))
        present = self._slices_with_target(first, MIN_NEXT_PIXELS)
        targets = [first] + [first.at(int(self.rng.choice(present))) for _ in range(shots - 1)]
        turn, mirror = self._random_angle() * 0.3, bool(self.rng.random() < 0.5)
        whole = self.rng.random() < 0.5
        shown = []
        for target in [*targets, query]:
            mask = target.mask()
            crop = (
                self._full_crop(mask.shape, target.spacing)
                if whole
                else self._crop_around(mask, target.spacing, (2.0, 4.0), 0.3)
            )
            shown.append((target, self._jittered(replace(crop, angle=turn, mirror=mirror))))
        return self._episodes_of(shown, swapped)

    def _paper(self) -> list[tuple[torch.Tensor, ...]]:
        """Two adjacent slices of one scan with a supervoxel, in either order, one of them augmented.

        Whole slices as they are, as in the official code; unlike there, a support always shows the supervoxel.
        """
        volume = self.real[int(self.rng.integers(len(self.real)))]
        number, axis = int(self.rng.integers(1, len(volume.maps))), int(self.rng.choice(volume.axes))
        counts = self._slice_counts(volume, number, axis)
        value = 1 + int(self.rng.choice(np.flatnonzero(counts[:, 1:].any(0))))
        first = SliceTarget(volume, axis, 0, number, (value,))
        area = counts[:, value]
        region = Region.whole(first.mask().shape, first.spacing)
        pairs = np.flatnonzero(np.maximum(area[:-1], area[1:]) >= MIN_PAPER_SHARE * region.height * region.width)
        if not len(pairs):
            return []
        lower = int(self.rng.choice(pairs))
        order = (lower, lower + 1) if self.rng.random() < 0.5 else (lower + 1, lower)
        targets = [first.at(index) for index in order]
        images = [region.to_grid(target.image().astype(np.float32), self.resolution, -1.0) for target in targets]
        masks = [
            (region.to_grid(target.mask().astype(np.float32), self.resolution, 0.0) > 0.5).float() for target in targets
        ]
        changed = int(self.rng.integers(2))
        images[changed], masks[changed] = augment(self.rng, images[changed], masks[changed])
        if masks[0].sum() < MIN_PAINTED_PIXELS:
            return []
        return [(images[0][None], masks[0][None], images[1], masks[1])]

    def _episodes_of(self, shown: Sequence[View], swapped: bool) -> list[Episode]:
        """The episode of these slices, the query last; `swapped`: and one that asks for another target on them."""
        if not self._shows_enough(shown[0]):
            return []
        own = tuple(range(len(shown)))
        episodes = [Episode(tuple(shown), own)]
        others = self._other_targets(shown[0][0], shown[-1][0]) if swapped else []
        if others:
            values = (int(self.rng.choice(others)),)
            twin = tuple((replace(target, values=values), crop) for target, crop in shown)
            if self._shows_enough(twin[0]):
                episodes.append(Episode(twin, own, is_twin=True))
        return episodes

    def _shows_enough(self, view: View) -> bool:
        """Whether a painted target takes enough of the grid."""
        some = pixels_on_grid(*view, self.resolution, step=3)  # which is mostly enough to tell
        return (
            max(some, pixels_on_grid(*view, self.resolution) if some < MIN_PAINTED_PIXELS else 0) >= MIN_PAINTED_PIXELS
        )

    def _on_grid(self, target: SliceTarget, crop: Crop) -> torch.Tensor:
        """The target's mask on the grid, bool (R, R), by itself."""
        mask = torch.from_numpy(target.mask().astype(np.float32))
        return resampled(mask, target.spacing, crop, self.resolution) > 0.5

    # -- choosing

    def _other_targets(self, target: SliceTarget, query: SliceTarget) -> list[int]:
        """Other targets of the same map that a painted slice and the query both show."""
        support_counts, query_counts = (
            self._slice_counts(k.volume, k.map_number, k.axis)[k.index] for k in (target, query)
        )
        width = min(len(support_counts), len(query_counts))
        both = (support_counts[:width] >= LEAST_PIXELS) & (query_counts[:width] >= MIN_NEXT_PIXELS)
        return [int(value) for value in np.flatnonzero(both) if value and value not in target.values]

    def _target(self, volume: TrainingVolume | None = None, labels: bool = False) -> SliceTarget:
        """A slice and a target on it: a label, a supervoxel, or now and then the union of two."""
        for _ in range(MAX_TRIES):
            chosen = volume
            if chosen is None:
                if self.synthetic and (not self.real or self.rng.random() < self.synthetic_share):
                    chosen = self.synthetic[int(self.rng.integers(len(self.synthetic)))]
                else:
                    family = self.families[str(self.rng.choice(list(self.families), p=self._family_weights))]
                    chosen = family[int(self.rng.integers(len(family)))]
            supervoxels = len(chosen.maps) > 1 and not labels and self.rng.random() > self.label_share
            number = int(self.rng.integers(1, len(chosen.maps))) if supervoxels or chosen.image is None else 0
            axes = chosen.axes
            if len(axes) == 1 and not labels and self.rng.random() < OTHER_AXES_SHARE:
                axes = (0, 1, 2)
            axis = int(self.rng.choice(axes))
            counts = self._slice_counts(chosen, number, axis)
            value = 1 + int(self.rng.choice(np.flatnonzero(counts[:, 1:].any(0))))
            values = [value]
            if self.rng.random() < UNION_SHARE:
                values.append(1 + int(self.rng.choice(np.flatnonzero(counts[:, 1:].any(0)))))
            area = counts[:, value]
            enough = np.flatnonzero(area >= max(LEAST_PIXELS, (0.5 if self.rng.random() < 0.6 else 0.1) * area.max()))
            if len(enough):
                return SliceTarget(chosen, axis, int(self.rng.choice(enough)), number, tuple(values))
        raise InputError(
            f"No target of {LEAST_PIXELS} pixels on a slice was found in {MAX_TRIES} tries, last in "
            f"{chosen.name if chosen else 'no scan'}; take scans with larger targets, or another mix."
        )

    def _slices_with_target(self, target: SliceTarget, least: int) -> list[int]:
        counts = self._slice_counts(target.volume, target.map_number, target.axis)
        known = [v for v in target.values if v < counts.shape[1]]
        return [int(z) for z in np.flatnonzero(counts[:, known].sum(1) >= least)]

    def count_slices(self) -> None:
        """Count all labels on the device, which is fast on a GPU, before other processes draw from copies."""
        for volume in self.store.volumes:
            for number in range(len(volume.maps)):
                labels = self.store.labels(volume, number)
                for axis in range(3):
                    self._counts[volume.name, number, axis] = slice_counts(labels, axis)

    def _slice_counts(self, volume: TrainingVolume, number: int, axis: int) -> np.ndarray:
        """Voxels of every label on every slice: integers (slices, labels)."""
        key = (volume.name, number, axis)
        if key not in self._counts:
            self._counts[key] = slice_counts(torch.from_numpy(volume.maps[number]), axis)
        return self._counts[key]

    # -- crops

    def _random_angle(self) -> float:
        return float(self.rng.uniform(-np.pi, np.pi) if self.rng.random() < 0.4 else self.rng.normal(0, 0.15))

    def _crop_around(
        self, mask: np.ndarray, spacing: tuple[float, float], margin: tuple[float, float], jitter: float
    ) -> Crop:
        box = bounding_box(mask)
        if box is None:
            return self._full_crop(mask.shape, spacing)
        half = max((side.stop - side.start) * step for side, step in zip(box, spacing, strict=True)) / 2
        half = half * self.rng.uniform(*margin) + 4 * max(spacing)
        row, column = (
            (side.start + side.stop - 1) / 2 * step + self.rng.uniform(-jitter, jitter) * half
            for side, step in zip(box, spacing, strict=True)
        )
        return Crop((row, column), float(half))

    def _full_crop(self, shape: tuple[int, int], spacing: tuple[float, float]) -> Crop:
        height, width = shape[0] * spacing[0], shape[1] * spacing[1]
        return Crop((height / 2, width / 2), float(max(height, width) / 2 * self.rng.uniform(0.75, 1.05)))

    def _jittered(self, crop: Crop) -> Crop:
        """A slightly different view, so that a mask cannot simply be copied."""
        shift = self.rng.uniform(-0.08, 0.08, 2) * crop.half
        bend = torch.from_numpy(self.rng.normal(0, 0.03, (1, 5, 5, 2)).astype(np.float32))
        return replace(
            crop,
            centre=(crop.centre[0] + shift[0], crop.centre[1] + shift[1]),
            half=crop.half * float(self.rng.uniform(0.88, 1.14)),
            angle=crop.angle + float(self.rng.normal(0, 0.08)),
            bend=bend,
        )
