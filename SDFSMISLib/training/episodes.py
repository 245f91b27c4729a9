"""Episodes: a few painted slices, a query slice and its true mask, on the network's grid.

Four kinds: `propagate` (from the painted slice and the last finished one to the next), `independent` (painted slices
anywhere in the scan), `cross` (the painted slice is of another scan), and `paper` (two adjacent slices and a
supervoxel, as SD-FSMIS trains).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from SDFSMISLib.errors import InputError
from SDFSMISLib.images.labelmap import bounding_box
from SDFSMISLib.inference.network_images import Contrast, Region, known_on_grid
from SDFSMISLib.inference.registration import displacement
from SDFSMISLib.training.config import TrainingConfig
from SDFSMISLib.training.synthesis import GRID, augment, random_appearance
from SDFSMISLib.training.volumes import (
    BatchPlan,
    Crop,
    EpisodeBatch,
    PreviousSlices,
    SliceTarget,
    TrainingVolume,
    resampled,
)

LEAST_PIXELS = 5  # of a target on the painted slice, at least: a spinal cord in coarse CT has six
MIN_NEXT_PIXELS = 3  # on the slices that follow
BEYOND_END_SHARE = 0.35  # share of propagate episodes whose query lies behind the structure's end
OTHER_SCAN_SHARE = 0.15  # share of propagate episodes on labels whose painted slices are of another scan
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


class EpisodeSampler:
    """Draws batches of episodes; seed and number of a batch determine it, whatever was drawn before.

    Args:
        volumes: to draw from; synthetic ones have no image.
        resolution: R, side of the network's grid in pixels.
        config: ``seed``; ``mix``, the share of each kind; ``synthetic_share``, of episodes from synthetic volumes;
            ``label_share``, of those on real volumes whose target is a label rather than a supervoxel; ``rollout``, of
            `propagate` batches with what comes ``before``; ``swapped``, see `batch`; ``known``, of `propagate` queries
            on which painted slices of other views tell the mask along one or two lines.

    Raises:
        InputError: if the mix has `paper` episodes and no volume is a scan.

    >>> from SDFSMISLib.training.volumes import synthetic_volumes
    >>> config = TrainingConfig(cases="", output="run", mix={"independent": 1.0})
    >>> batch = EpisodeSampler(synthetic_volumes(1, seed=0), 32, config).batch(size=2, number=0)
    >>> batch.query_images.shape, batch.support_masks.shape[0]
    (torch.Size([2, 32, 32]), 2)
    """

    def __init__(self, volumes: list[TrainingVolume], resolution: int, config: TrainingConfig) -> None:
        self.resolution, self.config, self.seed = resolution, config, config.seed
        self.synthetic_share, self.label_share = config.synthetic_share, config.label_share
        self.rng = np.random.default_rng(config.seed)
        self.real = [v for v in volumes if v.image is not None]
        self.synthetic = [v for v in volumes if v.image is None]
        self.families: dict[str, list[TrainingVolume]] = {}
        for volume in self.real:
            self.families.setdefault(volume.group, []).append(volume)
        self.shared_groups = [g for g, members in self.families.items() if len(members) > 1]
        wanted = [config.group_weights.get(name.split(" ")[0], 1.0) for name in self.families]
        sizes = np.array([len(members) for members in self.families.values()]) ** FAMILY_POWER * wanted
        self._family_weights = sizes / sizes.sum() if len(sizes) else sizes
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
        self.rng = np.random.default_rng([self.seed, number])
        plan = BatchPlan.drawn(self.rng, self.config, late)
        kind, shots, painted, swapped = plan.kind, plan.shots, plan.painted, plan.swapped
        episodes: list[tuple[torch.Tensor, ...]] = []
        tries = 0
        while len(episodes) < size:
            tries += 1
            if tries > MAX_TRIES:
                raise InputError(
                    f"Of {tries - 1} episodes of the kind {kind!r} that were drawn, {len(episodes)} show their target "
                    "well enough; take scans with larger targets, or another mix."
                )
            if kind == "propagate":
                found = self._propagate(painted, plan.rolled)
                episodes += [found] if found is not None else []
            elif kind == "paper":
                episodes += self._paper()
            elif kind == "independent" or not self.shared_groups:
                episodes += self._independent(shots, swapped)
            else:
                episodes += self._cross(shots, swapped)
        supports, masks, queries, answers, *more = (torch.stack(x) for x in zip(*episodes[:size], strict=True))
        if not more:
            return EpisodeBatch(supports, masks, queries, answers, supports.shape[1])
        moved, *more = more
        known, more = (more[0], more[1:]) if kind == "propagate" else (None, more)
        before = PreviousSlices(*more) if plan.rolled else None
        return EpisodeBatch(supports, masks, queries, answers, painted, moved, before, kind != "propagate", known)

    # -- the four kinds

    def _propagate(self, painted: int, rolled: bool) -> tuple[torch.Tensor, ...] | None:
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
            return None
        end = max(present, key=lambda z: z * way)
        index = int(self.rng.choice(ahead))
        beyond = (
            self.rng.random() < BEYOND_END_SHARE and not first.is_supervoxel
        )  # whose end nothing in the image shows
        if beyond:
            index = end + way * int(self.rng.integers(1, 1 + (gap if self.rng.random() < 0.6 else 6 * gap)))
            if not 0 <= index < first.volume.maps[0].shape[first.axis]:
                return None
        back = min(gap, abs(index - first.index))
        previous, query = first.at(index - way * back), first.at(index)
        lost = (previous.index - end) * way > 0  # a track that has missed the end keeps the mask from there
        held = first.at(end) if lost else previous
        neighbour_mask = held.mask()
        if not neighbour_mask.any():
            return None
        turn, mirror = self._random_angle(), bool(self.rng.random() < 0.5)
        shown: list[tuple[SliceTarget, Crop]] = []
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
        images, masks = self._render(shown, same_scan=True)
        plain, contrast = images, self._contrast(images[0 if foreign is None else painted])
        images = [self._own_contrast(contrast, image) for image in images[:painted]] + [
            contrast(x) for x in images[painted:]
        ]
        soft = resampled(torch.from_numpy(neighbour_mask.astype(np.float32)), held.spacing, crop, self.resolution)
        exact = (soft > 0.5).float()
        masks[-2] = exact if is_first else self._imperfect(exact)
        moved = displacement(plain[-2], plain[-1])
        earlier: tuple[torch.Tensor, ...] = ()
        if rolled:
            wanted = before.index != previous.index and bool(masks[painted].sum() >= MIN_NEXT_PIXELS)
            there = displacement(plain[painted], plain[-2]) if wanted else torch.zeros_like(moved)
            earlier = (images[painted], self._imperfect(masks[painted]), there, torch.tensor(wanted))
        del images[painted], masks[painted]
        split = self._split(images, masks)
        return None if split is None else (*split, moved, self._known(query, crop, held), *earlier)

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

    def _contrast(self, image: torch.Tensor) -> Contrast:
        return Contrast.of(image) if self.rng.random() < CONTRAST_SHARE else Contrast.unchanged()

    @staticmethod
    def _own_contrast(contrast: Contrast, image: torch.Tensor) -> torch.Tensor:
        """The image with its own contrast, unless none is changed in this episode."""
        return Contrast.of(image)(image) if not contrast.is_unchanged else image

    def _independent(self, shots: int, swapped: bool) -> list[tuple[torch.Tensor, ...]]:
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
        return self._episodes_of(shown, bool(self.rng.random() < 0.8), swapped)

    def _cross(self, shots: int, swapped: bool) -> list[tuple[torch.Tensor, ...]]:
        """Painted slices of one scan, a query of another scan of the same anatomy."""
        members = self.families[str(self.rng.choice(self.shared_groups))]
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
        return self._episodes_of(shown, True, swapped)

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
        split = self._split(images, masks)
        return [] if split is None else [split]

    def _episodes_of(
        self, shown: list[tuple[SliceTarget, Crop]], same_scan: bool, swapped: bool
    ) -> list[tuple[torch.Tensor, ...]]:
        """The episode of these slices, the query last; `swapped`: and one that asks for another target on them."""
        images, masks = self._render(shown, same_scan)
        contrast = self._contrast(images[0])
        images = [self._own_contrast(contrast, image) for image in images]
        episodes = [self._split(images, masks)]
        others = self._other_targets(shown[0][0], shown[-1][0]) if swapped else []
        if others:
            values = (int(self.rng.choice(others)),)
            episodes.append(self._split(images, self._masks([(replace(k, values=values), f) for k, f in shown])))
        return [episode for episode in episodes if episode is not None]

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

    def _slice_counts(self, volume: TrainingVolume, number: int, axis: int) -> np.ndarray:
        """Voxels of every label on every slice: integers (slices, labels)."""
        key = (volume.name, number, axis)
        if key not in self._counts:
            planes = np.moveaxis(volume.maps[number], axis, 0)
            labels = planes.reshape(len(planes), -1).astype(np.int64)
            width = int(labels.max()) + 1
            offset = np.arange(len(planes))[:, None] * width
            counts = np.bincount((labels + offset).ravel(), minlength=len(planes) * width)
            self._counts[key] = counts.reshape(-1, width)
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

    # -- rendering

    def _render(
        self, shown: list[tuple[SliceTarget, Crop]], same_scan: bool
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Images in [-1, 1] and masks, R x R each; intensities change for the task, and a little for each slice."""
        if shown[0][0].volume.image is None:
            labels = [
                resampled(torch.from_numpy(k.image().astype(np.float32)), k.spacing, f, self.resolution, "nearest")
                for k, f in shown
            ]
            images = random_appearance(self.rng, labels, same_scan)
        else:
            images = [
                resampled(torch.from_numpy(k.image().astype(np.float32)) + 1, k.spacing, f, self.resolution) - 1
                for k, f in shown
            ]
        look = self._intensity_parameters()
        looks = [self._intensity_parameters(look, 0.15) if same_scan else self._intensity_parameters() for _ in images]
        fields = [
            self._bias_field(look) if same_scan else self._bias_field(mine)
            for mine in looks[: 1 if same_scan else None]
        ]
        fields *= len(images) if same_scan else 1
        seen = [self._with_intensity(i, x, f) for i, x, f in zip(images, looks, fields, strict=True)]
        return seen, self._masks(shown)

    def _masks(self, shown: list[tuple[SliceTarget, Crop]]) -> list[torch.Tensor]:
        """The targets' masks (R, R), 0 or 1."""
        found = [
            resampled(torch.from_numpy(k.mask().astype(np.float32)), k.spacing, f, self.resolution) for k, f in shown
        ]
        return [(mask > 0.5).float() for mask in found]

    def _bias_field(self, look: np.ndarray) -> torch.Tensor:
        """A coil's uneven sensitivity, (R, R), around 1."""
        if look[5] < 0.1:
            return torch.ones(self.resolution, self.resolution)
        field = torch.from_numpy(self.rng.normal(0, look[5], (1, 1, 3, 3)).astype(np.float32))
        size = (self.resolution, self.resolution)
        return F.interpolate(field, size=size, mode="bicubic", align_corners=True)[0, 0].exp()

    def _intensity_parameters(self, base: np.ndarray | None = None, amount: float = 1.0) -> np.ndarray:
        """Log gamma, log gain, offset, noise, inversion, bias: drawn anew, or near `base`."""
        drawn = amount * self.rng.normal(0, [0.35, 0.2, 0.12, 0.0, 0.0, 0.0])
        if base is None:
            drawn[3:] = abs(self.rng.normal(0, 0.02)), float(self.rng.random() < 0.2), abs(self.rng.normal(0, 0.25))
            return drawn
        return base + drawn

    def _with_intensity(self, image: torch.Tensor, look: np.ndarray, field: torch.Tensor) -> torch.Tensor:
        gamma, gain, offset, noise, inverted, _ = look
        x = ((image + 1) / 2).clamp(0, 1) ** float(np.exp(gamma)) * field
        if inverted > 0.5:
            x = 1 - x
        x = (x - 0.5) * float(np.exp(gain)) + 0.5 + float(offset)
        x = x + max(0.0, noise) * torch.from_numpy(self.rng.standard_normal(image.shape, dtype=np.float32))
        return (2 * x - 1).clamp(-1, 1)

    def _imperfect(self, mask: torch.Tensor) -> torch.Tensor:
        """A mask (R, R) with the errors of a prediction: wavy, eroded, dilated, shifted, leaking; or unchanged."""
        if self.rng.random() < 0.2:
            return mask
        size = mask.shape[-1]
        sigma = float(self.rng.uniform(1.0, 5.0))
        radius = int(2 * sigma) + 1
        x = torch.arange(-radius, radius + 1, dtype=torch.float32)
        kernel = torch.exp(-(x**2) / (2 * sigma**2))
        kernel = kernel / kernel.sum()
        soft = F.conv2d(mask[None, None], kernel.view(1, 1, -1, 1), padding=(radius, 0))
        soft = F.conv2d(soft, kernel.view(1, 1, 1, -1), padding=(0, radius))
        near = soft
        grain = int(self.rng.integers(4, 14))
        wave = torch.from_numpy(self.rng.normal(0, 1, (1, 1, grain, grain)).astype(np.float32))
        soft = soft + float(self.rng.uniform(0, 0.22)) * F.interpolate(wave, size=(size, size), mode="bicubic")
        wrong = ((soft > float(self.rng.uniform(0.3, 0.7))) & (near > 0.01))[0, 0].float()
        down, right = (int(round(s)) for s in self.rng.normal(0, 1.2, 2))
        wrong = F.pad(wrong, (max(right, 0), max(-right, 0), max(down, 0), max(-down, 0)))
        wrong = wrong[max(-down, 0) :, max(-right, 0) :][:size, :size]
        return wrong if wrong.sum() >= 4 else mask

    @staticmethod
    def _split(images: list[torch.Tensor], masks: list[torch.Tensor]) -> tuple[torch.Tensor, ...] | None:
        if masks[0].sum() < 8:
            return None
        return torch.stack(images[:-1]), torch.stack(masks[:-1]), images[-1], masks[-1]
