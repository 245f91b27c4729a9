"""Training volumes, single slices of them as the network sees them, and batches of episodes.

A volume is a real scan with labels and supervoxels, or a synthetic label volume that gets a random appearance each time
it is drawn. A slice with a target is sampled onto the network's R x R grid through a square crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from SDFSMISLib.cohort.cases import Case, load_case, read_manifest
from SDFSMISLib.errors import InputError
from SDFSMISLib.images.geometry import Geometry
from SDFSMISLib.images.volume import SliceOrientation
from SDFSMISLib.training.config import TrainingConfig
from SDFSMISLib.training.supervoxels import Felzenszwalb, Slic, Supervoxels, cached_supervoxels
from SDFSMISLib.training.synthesis import smooth_partition, synthetic_labels


@dataclass(frozen=True)
class Crop:
    """A square of a slice that the network sees: rotated, mirrored and deformed.

    Attributes:
        centre: (row, column) in mm. half: half of its side in mm.
        angle: rotation in radians. mirror: whether columns are flipped.
        bend: (1, n, n, 2) displacements in units of ``half``, interpolated to the grid; None: not deformed.
    """

    centre: tuple[float, float]
    half: float
    angle: float = 0.0
    mirror: bool = False
    bend: torch.Tensor | None = None  # (1, n, n, 2), in units of the half side


@dataclass(frozen=True)
class SliceTarget:
    """One slice of a volume with a target: the label ``values`` in map ``map_number`` of the volume.

    ``thick`` adjacent slices are averaged to one. Arrays are in the slice's canonical orientation.
    """

    volume: TrainingVolume
    axis: int
    index: int
    map_number: int
    values: tuple[int, ...]
    thick: int = 1  # slices that are averaged to one

    @property
    def spacing(self) -> tuple[float, float]:
        """(row, column) in mm, canonical."""
        rest = [self.volume.spacing[a] for a in range(3) if a != self.axis]
        return self.volume.orientations[self.axis].apply_spacing((rest[0], rest[1]))

    @property
    def is_supervoxel(self) -> bool:
        """Whether the target is a supervoxel rather than a label."""
        return self.volume.image is not None and self.map_number > 0

    def at(self, index: int) -> SliceTarget:
        return replace(self, index=index)

    def image(self) -> np.ndarray:
        """(rows, columns): intensities in [-1, 1], or the labels of a synthetic volume."""
        if self.volume.image is None:
            return self._canonical(self.volume.maps[0], self.index)
        if self.thick == 1:
            return self._canonical(self.volume.image, self.index)
        first = self.index - self.thick // 2
        last = min(first + self.thick, self.volume.image.shape[self.axis])
        parts = [self._canonical(self.volume.image, z).astype(np.float32) for z in range(max(first, 0), last)]
        return np.mean(parts, axis=0)

    def mask(self) -> np.ndarray:
        """The target: bool (rows, columns)."""
        labels = self._canonical(self.volume.maps[self.map_number], self.index)
        mask = labels == self.values[0]
        for value in self.values[1:]:  # one more at most; np.isin takes ten times as long
            mask |= labels == value
        return mask

    def _canonical(self, array: np.ndarray, index: int) -> np.ndarray:
        return np.ascontiguousarray(self.volume.orientations[self.axis].apply(np.take(array, index, axis=self.axis)))


@dataclass(frozen=True)
class MaskedSlice(SliceTarget):
    """A slice with a mask of its own, bool canonical (rows, columns)."""

    own_mask: np.ndarray | None = None

    def mask(self) -> np.ndarray:
        assert self.own_mask is not None
        return self.own_mask


def resampled(
    image: torch.Tensor, spacing: tuple[float, float], crop: Crop, resolution: int, mode: str = "bilinear"
) -> torch.Tensor:
    """An image (H, W) of ``spacing`` mm seen through a crop: (R, R), 0 outside of the image.

    Sampled twice as fine and averaged if the grid is much coarser than the image's pixels.
    """
    fine = 2 if mode == "bilinear" and 2 * crop.half / resolution > 1.4 * min(spacing) else 1
    size = resolution * fine
    cos, sin = np.cos(crop.angle) * crop.half, np.sin(crop.angle) * crop.half
    mirror = -1.0 if crop.mirror else 1.0
    height, width = image.shape
    across = 2 / (spacing[1] * width)  # from mm to grid_sample's -1 to 1
    down = 2 / (spacing[0] * height)
    theta = torch.tensor(
        [
            [[mirror * cos * across, -sin * across, (crop.centre[1] + spacing[1] / 2) * across - 1]],
            [[mirror * sin * down, cos * down, (crop.centre[0] + spacing[0] / 2) * down - 1]],
        ],
        dtype=torch.float32,
    ).view(1, 2, 3)
    grid = F.affine_grid(theta, [1, 1, size, size], align_corners=False)
    if crop.bend is not None:
        field = F.interpolate(crop.bend.permute(0, 3, 1, 2), size=(size, size), mode="bicubic", align_corners=True)
        grid = grid + field.permute(0, 2, 3, 1) * torch.tensor([crop.half * across, crop.half * down])
    found = F.grid_sample(image[None, None], grid, mode=mode, padding_mode="zeros", align_corners=False)
    return (F.avg_pool2d(found, fine) if fine > 1 else found)[0, 0]


MIN_PART_VOXELS = 200  # voxels
SPARSE = 0.35  # of a volume
MOST_LOOKS = 240  # grey levels of labels; further ones repeat


@dataclass(frozen=True)
class ScanAxis:
    """The axis along which a scan's slices are matched with another scan's.

    ``number`` in array order; ``plane`` of its slices, such as ``axial``; ``rising``: slices run towards left,
    posterior or superior.
    """

    number: int
    plane: str
    rising: bool


@dataclass(frozen=True)
class TrainingVolume:
    """One volume to draw episodes from.

    Attributes:
        image: (slices, height, width) float16 in [-1, 1]; None for a synthetic volume, whose appearance is drawn each
            time.
        maps: label volumes of targets, integers (slices, height, width), 0 = background; the labels first.
        labelled: whether ``maps[0]`` holds labels (of a person, or synthetic) rather than supervoxels.
        spacing: mm between voxels, array order.
        axes: along which slices are taken: all three of a nearly isotropic volume, else the one with thick slices.
        orientations: of the slices along each axis.
        group: volumes of one group show the same anatomy, with the same targets under the same label values.
        main: the axis along which the scan is matched with others; None for a synthetic volume.

    >>> volume = synthetic_volumes(1, seed=0)[0]
    >>> volume.maps[0].shape, volume.spacing, volume.image is None
    ((80, 80, 80), (1.0, 1.0, 1.0), True)
    """

    name: str
    image: np.ndarray | None
    maps: tuple[np.ndarray, ...]
    labelled: bool
    spacing: tuple[float, float, float]
    axes: tuple[int, ...]
    orientations: tuple[SliceOrientation, SliceOrientation, SliceOrientation]
    group: str
    main: ScanAxis | None = None

    @property
    def source(self) -> str:
        """Name of the manifest's group; volumes of one `group` also have the same targets."""
        return self.group.rsplit(" [", 1)[0]

    @property
    def main_axis(self) -> int:
        """Number of the axis along which a scan is compared with others."""
        assert self.main is not None, "synthetic volumes are not compared"
        return self.main.number


def slice_axes(
    geometry: Geometry, shape: tuple[int, ...], spacing: tuple[float, float, float]
) -> tuple[tuple[int, ...], ScanAxis]:
    """The `axes` and the `main` of a scan whose voxels, perhaps averaged, have this shape and spacing, array order."""
    thick = int(np.argmax(spacing))
    isotropic = max(spacing) < 2.2 * min(spacing) and min(shape) >= 24
    number = geometry.default_axis() if isotropic else thick
    through = geometry.index_to_physical()[:3, 2 - number]
    rising = bool(through[np.argmax(np.abs(through))] > 0)
    return (0, 1, 2) if isotropic else (thick,), ScanAxis(number, geometry.plane(number), rising)


def load_training_volumes(manifest: Path, cache: Path, config: TrainingConfig) -> list[TrainingVolume]:
    """The training cases of a manifest (`cases.json`), with supervoxels kept in the folder `cache`.

    Args:
        manifest: file with `groups` and `cases`; only cases with `split: train` are read.
        config: `shippable` leaves out groups whose terms forbid weights that are passed on, `held_out` single cases;
            `window`, `supervoxels` and `supervoxel_size` say how images and these are made.
    """
    content = read_manifest(manifest)
    allowed = {name for name, group in content.groups.items() if group.may_train_shipped_weights}
    cases = [
        case
        for case in content.cases
        if case.split == "train" and (not config.shippable or case.group in allowed) and case.id not in config.held_out
    ]
    if not cases:
        raise InputError(
            f"{manifest} has no case with split 'train' that may be used; add some or train on synthetic ones."
        )
    return [_real_volume(case, cache, config) for case in cases]


def synthetic_volumes(count: int, seed: int) -> list[TrainingVolume]:
    """`count` synthetic label volumes, isotropic at 1 mm: the labels, which give the appearance, and their connected
    parts, of which targets are made."""
    rng = np.random.default_rng(seed)
    plain = SliceOrientation(False, False, False)
    made = []
    for number in range(count):
        labels = synthetic_labels(rng)
        maps = (labels, _connected_parts(labels))
        name = f"synthetic_{number}"
        made.append(TrainingVolume(name, None, maps, True, (1.0, 1.0, 1.0), (0, 1, 2), (plain,) * 3, "synthetic"))
    return made


def label_volumes(manifest: Path, config: TrainingConfig) -> list[TrainingVolume]:
    """The label volumes of a manifest of label maps, whose appearance is drawn each time (see `random_appearance`).

    Where labels fill less than `SPARSE` of a volume, what surrounds them is divided at random, since a body is not of
    one grey.

    Args:
        manifest: as `read_manifest` takes it, cases without image and split.
        config: `shippable` leaves out groups whose terms forbid weights that are passed on, `held_out` single ones;
            `seed`.

    Raises:
        InputError: for a label volume without labels.
    """
    content = read_manifest(manifest, label_maps=True)
    rng = np.random.default_rng(config.seed)
    made = []
    for case in content.cases:
        allowed = content.groups[case.group].may_train_shipped_weights or not config.shippable
        if not allowed or case.split != "train" or case.id in config.held_out:
            continue
        scan = load_case(case).labelmap
        codes = np.flatnonzero(np.bincount(scan.voxels.ravel())[1:]) + 1
        if not len(codes):
            raise InputError(f"{case.labels} is empty; leave {case.id!r} out of the label maps, or correct it.")
        numbers = np.zeros(codes.max() + 1, dtype=np.uint8 if len(codes) < 256 else np.uint16)
        numbers[codes] = 1 + np.arange(len(codes))
        labels = numbers[scan.voxels]
        looks = np.where(labels > 0, 1 + labels % MOST_LOOKS, 0).astype(np.uint8)
        if (labels > 0).mean() < SPARSE:
            around = smooth_partition(rng, labels.shape, int(rng.integers(4, 9)), int(rng.integers(4, 9)))
            looks = np.where(labels > 0, looks, 1 + MOST_LOOKS + around)
        along = scan.geometry.axis_spacing
        spacing = (along(0), along(1), along(2))
        axes, _ = slice_axes(scan.geometry, labels.shape, spacing)
        turns = tuple(scan.geometry.slice_orientation(axis) for axis in range(3))
        made.append(TrainingVolume(case.id, None, (looks, labels), True, spacing, axes, turns, case.group))  # type: ignore[arg-type]
    return made


def _connected_parts(labels: np.ndarray) -> np.ndarray:
    """Every connected part of every label under a number of its own, uint16; small ones are 0."""
    parts = np.zeros(labels.shape, dtype=np.uint16)
    count = 0
    for value in np.unique(labels[labels > 0]):
        found, number = ndimage.label(labels == value)
        sizes = np.bincount(found.ravel(), minlength=number + 1)
        kept = [part for part in range(1, number + 1) if sizes[part] >= MIN_PART_VOXELS]
        for part in kept:
            count += 1
            parts[found == part] = count
    return parts


def _real_volume(case: Case, cache: Path, config: TrainingConfig) -> TrainingVolume:
    labelled = load_case(case)
    scan, labels = labelled.scan, labelled.labelmap.voxels
    labels = np.where(np.isin(labels, list(case.targets.values())), labels, 0).astype(np.uint16)
    if not labels.any():
        raise InputError(f"{case.labels} holds none of the targets of {case.id!r}; leave the case out, or correct it.")
    image = scan.window(config.window).normalize(scan.voxels).astype(np.float16)
    along = scan.geometry.axis_spacing
    spacing = (along(0), along(1), along(2))
    axes, main = slice_axes(scan.geometry, image.shape, spacing)
    kinds: Sequence[Supervoxels] = [Slic(100), Slic(400)]
    if config.supervoxels == "felzenszwalb":
        kinds = [Felzenszwalb(config.supervoxel_size)]
    parts = (cached_supervoxels(kind, image, spacing, cache, case.id) for kind in kinds)
    maps = (labels, labels) if config.supervoxels == "labels" else (labels, *parts)
    return TrainingVolume(
        name=case.id,
        image=image,
        maps=maps,
        labelled=True,
        spacing=spacing,
        axes=axes,
        orientations=tuple(scan.geometry.slice_orientation(axis) for axis in range(3)),  # type: ignore[arg-type]
        group=f"{case.group} {sorted(case.targets.items())}",
        main=main,
    )


SHOTS = {1: 0.45, 2: 0.2, 3: 0.15, 4: 0.1, 5: 0.1}  # how often so many slices are painted


SAME_SCANNER_SHARE = 0.8  # share of batches whose slices have the look of one scanner


@dataclass(frozen=True)
class EpisodeBatch:
    """B episodes with S supports each on an R x R grid.

    Attributes:
        support_images: (B, S, R, R) in [-1, 1]. support_masks: (B, S, R, R), 0 or 1.
        query_images: (B, R, R). query_masks: (B, R, R), 0 or 1.
        painted: how many of the S supports are painted by hand: they give the condition token; the last of the others
            is the query's finished neighbour.
        displacements: (B, R, R, 2), see `registration.displacement`: from the last support to the query. None if no
            support is a finished neighbour.
        before: slices from which the network predicts the last support's mask; None: it keeps the one it has.
        warped: whether the last support is the query itself, with a mask warped from another scan.
        known: (B, R, R), what painted slices of other views tell of the queries: 1 inside, -1 outside, 0 unknown.
            None: nothing.
        ahead: (B, A, R, R), the slices that come next behind the queries, of `propagate` episodes. None: none.
        is_there: bool (B, A), which of `ahead` the networks are shown; the others are behind the end of the scan, or
            left out. None like `ahead`.
    """

    support_images: torch.Tensor
    support_masks: torch.Tensor
    query_images: torch.Tensor
    query_masks: torch.Tensor
    painted: int
    displacements: torch.Tensor | None = None
    before: PreviousSlices | None = None
    warped: bool = False
    known: torch.Tensor | None = None
    ahead: torch.Tensor | None = None
    is_there: torch.Tensor | None = None


@dataclass(frozen=True)
class PreviousSlices:
    """The slices before the last supports of B episodes, from which a network may predict those supports' masks.

    Attributes:
        images: (B, R, R). masks: (B, R, R), 0 or 1. displacements: (B, R, R, 2), from here to the last support.
        wanted: bool (B,); False: the last support's mask stays as it is.
        ahead, is_there: as in `EpisodeBatch`, of the last supports.
    """

    images: torch.Tensor
    masks: torch.Tensor
    displacements: torch.Tensor
    wanted: torch.Tensor
    ahead: torch.Tensor | None = None
    is_there: torch.Tensor | None = None


@dataclass(frozen=True)
class BatchPlan:
    """What all episodes of a batch have in common; see `EpisodeSampler`."""

    kind: str
    shots: int
    painted: int
    rolled: bool
    swapped: bool
    same_scan: bool

    @classmethod
    def drawn(cls, rng: np.random.Generator, config: TrainingConfig, late: bool) -> BatchPlan:
        """A random plan by the shares of the configuration."""
        kinds: list[str] = list(config.mix)
        weights = np.array(list(config.mix.values()))
        kind = kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]
        shots = int(rng.choice(list(SHOTS), p=list(SHOTS.values())))
        painted = 1 if kind != "propagate" else int(rng.choice([1, 2], p=[0.8, 0.2]))
        rolled = bool(kind == "propagate" and rng.random() < config.rollout)
        swapped = bool(late and rng.random() < config.swapped)
        same_scan = kind == "propagate" or bool(rng.random() < SAME_SCANNER_SHARE)
        return cls(kind, shots, painted, rolled, swapped, same_scan)
