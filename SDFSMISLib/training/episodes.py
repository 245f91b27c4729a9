"""Episodes: a few painted slices, a query slice, and its true mask, on the network's grid.

Three kinds (notes on where they come from in each function): `propagate` (the painted slice and the last finished one
ask for the next), `independent` (painted slices anywhere in the scan), `cross` (the painted slice is of another scan).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from SDFSMISLib.training.synthesis import painted_appearance
from SDFSMISLib.training.volumes import TrainingVolume

LEAST_PIXELS = 24  # a target smaller than this on the painted slice is not asked for
LEAST_NEXT = 6  # on the slices that follow it may be smaller
BEYOND = 0.3  # share of propagate episodes whose query lies behind the structure's end


@dataclass(frozen=True)
class EpisodeBatch:
    """B episodes with S supports each on an R x R grid.

    Attributes:
        support_images: (B, S, R, R) in [-1, 1]. support_masks: (B, S, R, R), 0 or 1.
        query_images: (B, R, R). query_masks: (B, R, R), 0 or 1.
        painted: how many of the S supports are painted by hand: they give the condition token; the rest are finished
            slices.
    """

    support_images: torch.Tensor
    support_masks: torch.Tensor
    query_images: torch.Tensor
    query_masks: torch.Tensor
    painted: int


@dataclass(frozen=True)
class Frame:
    """A square of the slice plane: centre (row, column) and half side in mm, turned by `angle`, mirrored, bent by a
    field."""

    centre: tuple[float, float]
    half: float
    angle: float = 0.0
    mirror: bool = False
    bend: torch.Tensor | None = None  # (1, n, n, 2), in units of the half side


@dataclass(frozen=True)
class SliceKey:
    """One slice of one volume, with the target's label values in one of the volume's maps."""

    volume: TrainingVolume
    axis: int
    index: int
    map_number: int
    values: tuple[int, ...]

    @property
    def spacing(self) -> tuple[float, float]:
        rest = [self.volume.spacing[a] for a in range(3) if a != self.axis]
        return self.volume.orientations[self.axis].apply_spacing((rest[0], rest[1]))

    def at(self, index: int) -> SliceKey:
        return replace(self, index=index)

    def image(self) -> np.ndarray:
        source = self.volume.image if self.volume.image is not None else self.volume.maps[0]
        return self._canonical(source)

    def mask(self) -> np.ndarray:
        return np.isin(self._canonical(self.volume.maps[self.map_number]), self.values)

    def _canonical(self, array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(
            self.volume.orientations[self.axis].apply(np.take(array, self.index, axis=self.axis))
        )


class EpisodeSampler:
    """Draws batches of episodes; seed and number of a batch say what is in it, whatever was drawn before."""

    def __init__(
        self,
        volumes: list[TrainingVolume],
        resolution: int,
        seed: int,
        mix: dict[str, float],
        synthetic_share: float,
        label_share: float,
    ) -> None:
        """
        Args:
            mix: share of each kind: propagate, independent, cross.
            synthetic_share: share of episodes from synthetic volumes.
            label_share: share of episodes on real volumes that ask for a label rather than supervoxels.
        """
        self.resolution, self.mix = resolution, mix
        self.synthetic_share, self.label_share = synthetic_share, label_share
        self.seed = seed
        self.rng = np.random.default_rng(seed)
        self.real = [v for v in volumes if v.image is not None]
        self.synthetic = [v for v in volumes if v.image is None]
        self.families: dict[str, list[TrainingVolume]] = {}
        for volume in self.real:
            self.families.setdefault(volume.group, []).append(volume)
        self.shared_groups = [g for g, members in self.families.items() if len(members) > 1]
        sizes = np.sqrt([len(members) for members in self.families.values()])
        self._family_weights = sizes / sizes.sum() if len(sizes) else sizes
        self._counts: dict[tuple[str, int, int], np.ndarray] = {}

    def batch(self, size: int, number: int) -> EpisodeBatch:
        """Batch `number`: `size` episodes of one kind, with one number of shots."""
        self.rng = np.random.default_rng([self.seed, number])
        kinds = list(self.mix)
        weights = np.array([self.mix[k] for k in kinds])
        kind = kinds[int(self.rng.choice(len(kinds), p=weights / weights.sum()))]
        shots = int(self.rng.choice([1, 2, 3], p=[0.6, 0.25, 0.15]))
        painted = 1 if kind != "propagate" else int(self.rng.choice([1, 2], p=[0.8, 0.2]))
        episodes: list[tuple[torch.Tensor, ...]] = []
        while len(episodes) < size:
            if kind == "propagate":
                found = self._propagate(painted)
            elif kind == "independent" or not self.shared_groups:
                found = self._independent(shots)
            else:
                found = self._cross(shots)
            if found is not None:
                episodes.append(found)
        supports, masks, queries, answers = (torch.stack(x) for x in zip(*episodes, strict=True))
        return EpisodeBatch(supports, masks, queries, answers, painted if kind == "propagate" else supports.shape[1])

    # -- the three kinds

    def _propagate(self, painted: int) -> tuple[torch.Tensor, ...] | None:
        """The painted slice(s), the finished neighbour with the kind of errors a prediction has, and the next slice.

        Some queries (`BEYOND`) lie up to six slices behind the end of the structure, where the answer is empty although
        the finished neighbour claims to hold it.
        """
        first = self._target()
        present = self._present(first, LEAST_NEXT)
        reach = 12 if len(first.volume.axes) == 3 else 6
        step = 1 if self.rng.random() < 0.5 else -1
        ahead = [z for z in present if 0 < (z - first.index) * step <= reach]
        if not ahead:
            return None
        index = int(self.rng.choice(ahead))
        painted_mask = first.at(index - step).mask()
        if self.rng.random() < BEYOND:
            end = max(present, key=lambda z: z * step)
            index = end + step * int(self.rng.integers(1, 7))
            if not 0 <= index < first.volume.maps[0].shape[first.axis]:
                return None
            painted_mask = first.at(end).mask()  # what a lane that has missed the end carries along
        previous, query = first.at(index - step), first.at(index)
        if not painted_mask.any():
            return None
        turn, mirror = self._turn(), bool(self.rng.random() < 0.5)
        shown: list[tuple[SliceKey, Frame]] = []
        for number in range(painted):
            key = first if number == 0 else first.at(int(self.rng.choice(present)))
            frame = self._frame_around(key.mask(), key.spacing, (1.6, 2.8), 0.25)
            shown.append((key, replace(frame, angle=turn + self.rng.normal(0, 0.05), mirror=mirror)))
        frame = self._frame_around(painted_mask, previous.spacing, (1.5, 3.0), 0.25)
        frame = replace(frame, angle=turn, mirror=mirror)
        shown += [(previous, frame), (query, frame)]
        images, masks = self._rendered(shown, same_scan=True)
        carried = _sampled(torch.from_numpy(painted_mask.astype(np.float32)), previous.spacing, frame, self.resolution)
        masks[-2] = self._with_errors((carried > 0.5).float())
        return self._split(images, masks)

    def _independent(self, shots: int) -> tuple[torch.Tensor, ...] | None:
        """Painted slices and a query of the same scan, seen through one frame; one query in eight lacks the target."""
        first = self._target()
        present = self._present(first, LEAST_NEXT)
        if len(present) < 2:
            return None
        keys = [first] + [first.at(int(self.rng.choice(present))) for _ in range(shots - 1)]
        query = first.at(int(self.rng.choice(present)))
        if self.rng.random() < 0.125:
            absent = sorted(set(range(first.volume.maps[0].shape[first.axis])) - set(self._present(first, 1)))
            if absent:
                query = first.at(int(self.rng.choice(absent)))
        union = np.any([key.mask() for key in keys], axis=0)
        if self.rng.random() < 0.3:
            frame = self._whole_frame(union.shape, first.spacing)
        else:
            frame = self._frame_around(union, first.spacing, (1.6, 3.5), 0.25)
        turn, mirror = self._turn(), bool(self.rng.random() < 0.5)
        shown = [(key, self._shaken(replace(frame, angle=turn, mirror=mirror))) for key in [*keys, query]]
        images, masks = self._rendered(shown, same_scan=bool(self.rng.random() < 0.8))
        return self._split(images, masks)

    def _cross(self, shots: int) -> tuple[torch.Tensor, ...] | None:
        """Painted slices of one scan, a query of another scan of the same anatomy."""
        members = self.families[str(self.rng.choice(self.shared_groups))]
        a, b = self.rng.choice(len(members), 2, replace=False)
        first = self._target(members[a], labels=True)
        query = replace(first, volume=members[b])
        there = self._present(query, LEAST_NEXT)
        if not there or query.axis not in members[b].axes:
            return None
        query = query.at(int(self.rng.choice(there)))
        present = self._present(first, LEAST_NEXT)
        keys = [first] + [first.at(int(self.rng.choice(present))) for _ in range(shots - 1)]
        turn, mirror = self._turn() * 0.3, bool(self.rng.random() < 0.5)
        whole = self.rng.random() < 0.5
        shown = []
        for key in [*keys, query]:
            mask = key.mask()
            frame = (
                self._whole_frame(mask.shape, key.spacing)
                if whole
                else self._frame_around(mask, key.spacing, (2.0, 4.0), 0.3)
            )
            shown.append((key, self._shaken(replace(frame, angle=turn, mirror=mirror))))
        images, masks = self._rendered(shown, same_scan=True)
        return self._split(images, masks)

    # -- choosing

    def _target(self, volume: TrainingVolume | None = None, labels: bool = False) -> SliceKey:
        """A slice and a target on it: a label, a supervoxel, or now and then the union of two."""
        while True:
            chosen = volume
            if chosen is None:
                if self.synthetic and (not self.real or self.rng.random() < self.synthetic_share):
                    chosen = self.synthetic[int(self.rng.integers(len(self.synthetic)))]
                else:
                    family = self.families[str(self.rng.choice(list(self.families), p=self._family_weights))]
                    chosen = family[int(self.rng.integers(len(family)))]
            supervoxels = len(chosen.maps) > 1 and not labels and self.rng.random() > self.label_share
            number = int(self.rng.integers(1, len(chosen.maps))) if supervoxels else 0
            axis = int(self.rng.choice(chosen.axes))
            counts = self._slice_counts(chosen, number, axis)
            value = 1 + int(self.rng.choice(np.flatnonzero(counts[:, 1:].any(0))))
            values = [value]
            if self.rng.random() < 0.25:
                values.append(1 + int(self.rng.choice(np.flatnonzero(counts[:, 1:].any(0)))))
            area = counts[:, value]
            enough = np.flatnonzero(area >= max(LEAST_PIXELS, 0.5 * area.max() if self.rng.random() < 0.6 else 0))
            if len(enough):
                return SliceKey(chosen, axis, int(self.rng.choice(enough)), number, tuple(values))

    def _present(self, key: SliceKey, least: int) -> list[int]:
        counts = self._slice_counts(key.volume, key.map_number, key.axis)
        known = [v for v in key.values if v < counts.shape[1]]
        return [int(z) for z in np.flatnonzero(counts[:, known].sum(1) >= least)]

    def _slice_counts(self, volume: TrainingVolume, number: int, axis: int) -> np.ndarray:
        """Voxels of every label on every slice, (slices, labels)."""
        key = (volume.name, number, axis)
        if key not in self._counts:
            labels = (
                np.moveaxis(volume.maps[number], axis, 0).reshape(volume.maps[number].shape[axis], -1).astype(np.int64)
            )
            width = int(labels.max()) + 1
            offset = np.arange(labels.shape[0])[:, None] * width
            self._counts[key] = np.bincount((labels + offset).ravel(), minlength=labels.shape[0] * width).reshape(
                -1, width
            )
        return self._counts[key]

    # -- frames

    def _turn(self) -> float:
        return float(self.rng.uniform(-np.pi, np.pi) if self.rng.random() < 0.4 else self.rng.normal(0, 0.15))

    def _frame_around(
        self, mask: np.ndarray, spacing: tuple[float, float], margin: tuple[float, float], jitter: float
    ) -> Frame:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            return self._whole_frame(mask.shape, spacing)
        half = max((rows[-1] - rows[0] + 1) * spacing[0], (columns[-1] - columns[0] + 1) * spacing[1]) / 2
        half = half * self.rng.uniform(*margin) + 4 * max(spacing)
        centre = (
            (rows[0] + rows[-1]) / 2 * spacing[0] + self.rng.uniform(-jitter, jitter) * half,
            (columns[0] + columns[-1]) / 2 * spacing[1] + self.rng.uniform(-jitter, jitter) * half,
        )
        return Frame(centre, float(half))

    def _whole_frame(self, shape: tuple[int, int], spacing: tuple[float, float]) -> Frame:
        height, width = shape[0] * spacing[0], shape[1] * spacing[1]
        return Frame((height / 2, width / 2), float(max(height, width) / 2 * self.rng.uniform(0.75, 1.05)))

    def _shaken(self, frame: Frame) -> Frame:
        """A slightly different view, so that a mask cannot simply be copied."""
        shift = self.rng.uniform(-0.08, 0.08, 2) * frame.half
        bend = torch.from_numpy(self.rng.normal(0, 0.03, (1, 5, 5, 2)).astype(np.float32))
        return replace(
            frame,
            centre=(frame.centre[0] + shift[0], frame.centre[1] + shift[1]),
            half=frame.half * float(self.rng.uniform(0.88, 1.14)),
            angle=frame.angle + float(self.rng.normal(0, 0.08)),
            bend=bend,
        )

    # -- rendering

    def _rendered(
        self, shown: list[tuple[SliceKey, Frame]], same_scan: bool
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Images in [-1, 1] and masks, R x R each, with the task's look and a little of each slice's own."""
        masks = [
            _sampled(torch.from_numpy(k.mask().astype(np.float32)), k.spacing, f, self.resolution) for k, f in shown
        ]
        if shown[0][0].volume.image is None:
            labels = [
                _sampled(torch.from_numpy(k.image().astype(np.float32)), k.spacing, f, self.resolution, "nearest")
                for k, f in shown
            ]
            images = painted_appearance(self.rng, labels, same_scan)
        else:
            images = [
                _sampled(torch.from_numpy(k.image().astype(np.float32)) + 1, k.spacing, f, self.resolution) - 1
                for k, f in shown
            ]
        look = self._look()
        looks = [self._look(look, 0.15) if same_scan else self._look() for _ in images]
        return [self._seen(i, x) for i, x in zip(images, looks, strict=True)], [(m > 0.5).float() for m in masks]

    def _look(self, base: np.ndarray | None = None, amount: float = 1.0) -> np.ndarray:
        """Log gamma, log gain, offset, noise, inversion, bias: drawn anew, or near `base`."""
        drawn = amount * self.rng.normal(0, [0.35, 0.2, 0.12, 0.0, 0.0, 0.0])
        if base is None:
            drawn[3:] = abs(self.rng.normal(0, 0.03)), float(self.rng.random() < 0.2), abs(self.rng.normal(0, 0.25))
            return drawn
        return base + drawn

    def _seen(self, image: torch.Tensor, look: np.ndarray) -> torch.Tensor:
        gamma, gain, offset, noise, inverted, bias = look
        x = ((image + 1) / 2).clamp(0, 1) ** float(np.exp(gamma))
        if bias > 0.1:
            field = torch.from_numpy(self.rng.normal(0, bias, (1, 1, 3, 3)).astype(np.float32))
            x = x * F.interpolate(field, size=image.shape, mode="bicubic", align_corners=True)[0, 0].exp()
        if inverted > 0.5:
            x = 1 - x
        x = (x - 0.5) * float(np.exp(gain)) + 0.5 + float(offset)
        x = x + max(0.0, noise) * torch.from_numpy(self.rng.standard_normal(image.shape, dtype=np.float32))
        return (2 * x - 1).clamp(-1, 1)

    def _with_errors(self, mask: torch.Tensor) -> torch.Tensor:
        """A mask as a network would have left it: wavy, eroded, dilated, shifted, leaking; or as it is."""
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
        grain = int(self.rng.integers(4, 14))
        wave = torch.from_numpy(self.rng.normal(0, 1, (1, 1, grain, grain)).astype(np.float32))
        soft = soft + float(self.rng.uniform(0, 0.22)) * F.interpolate(wave, size=(size, size), mode="bicubic")
        wrong = (soft > float(self.rng.uniform(0.3, 0.7)))[0, 0].float()
        shift = [int(round(s)) for s in self.rng.normal(0, 1.2, 2)]
        wrong = torch.roll(wrong, shift, (0, 1))
        return wrong if wrong.sum() >= 4 else mask

    @staticmethod
    def _split(images: list[torch.Tensor], masks: list[torch.Tensor]) -> tuple[torch.Tensor, ...] | None:
        if masks[0].sum() < 8:
            return None
        return torch.stack(images[:-1]), torch.stack(masks[:-1]), images[-1], masks[-1]


def _sampled(
    image: torch.Tensor, spacing: tuple[float, float], frame: Frame, resolution: int, mode: str = "bilinear"
) -> torch.Tensor:
    """An image (H, W) through a frame, (R, R); zero outside; twice as fine and averaged where pixels get lost
    otherwise."""
    fine = 2 if mode == "bilinear" and 2 * frame.half / resolution > 1.4 * min(spacing) else 1
    size = resolution * fine
    cos, sin = np.cos(frame.angle) * frame.half, np.sin(frame.angle) * frame.half
    mirror = -1.0 if frame.mirror else 1.0
    height, width = image.shape
    across = 2 / (spacing[1] * width)  # from mm to grid_sample's -1 to 1
    down = 2 / (spacing[0] * height)
    theta = torch.tensor(
        [
            [[mirror * cos * across, -sin * across, (frame.centre[1] + spacing[1] / 2) * across - 1]],
            [[mirror * sin * down, cos * down, (frame.centre[0] + spacing[0] / 2) * down - 1]],
        ],
        dtype=torch.float32,
    ).view(1, 2, 3)
    grid = F.affine_grid(theta, [1, 1, size, size], align_corners=False)
    if frame.bend is not None:
        field = F.interpolate(frame.bend.permute(0, 3, 1, 2), size=(size, size), mode="bicubic", align_corners=True)
        grid = grid + field.permute(0, 2, 3, 1) * torch.tensor([frame.half * across, frame.half * down])
    found = F.grid_sample(image[None, None], grid, mode=mode, padding_mode="zeros", align_corners=False)
    return (F.avg_pool2d(found, fine) if fine > 1 else found)[0, 0]
