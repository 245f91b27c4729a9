"""Training volumes on a device, and what is to be seen of them, in numbers.

A process on the host chooses slices and squares of them; the device samples those of a whole batch by one gather.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from SDFSMISLib.errors import InputError
from SDFSMISLib.training.volumes import BatchPlan, Crop, EpisodeBatch, SliceTarget, TrainingVolume

FINE = 1.4  # pixels of the grid that are larger than so many of the slice are averages of 2 x 2
PARTS = 3  # of a thick slice, at most, that are averaged
MOST_LABEL = 32767  # that the buffer holds

View = tuple[SliceTarget, Crop]
"""A slice, and the square of it that is seen."""


Record = TypeVar("Record", bound="TensorRecord")


class TensorRecord:
    """A dataclass of tensors, and of others of its kind, that is moved as a whole.

    Processes get it through a pipe, by value: for many small tensors in shared memory, files would run out.
    """

    def changed(self: Record, change: Callable[[torch.Tensor], torch.Tensor]) -> Record:
        """With each of its tensors changed."""
        changed: dict[str, Any] = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, torch.Tensor):
                changed[field.name] = change(value)
            elif isinstance(value, TensorRecord):
                changed[field.name] = value.changed(change)
        return replace(self, **changed)  # type: ignore[type-var]

    def to(self: Record, device: torch.device) -> Record:
        return self.changed(lambda tensor: on_device(tensor, device))

    def pin_memory(self: Record) -> Record:
        """Where a GPU can read it while others are at work; a `DataLoader` calls it."""
        return self.changed(torch.Tensor.pin_memory)

    def __reduce__(self) -> tuple[Any, ...]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        arrays = {name: value.numpy() for name, value in values.items() if isinstance(value, torch.Tensor)}
        return _of_arrays, (type(self), arrays, {name: values[name] for name in values if name not in arrays})


def _of_arrays(kind: type[Record], arrays: dict[str, np.ndarray], others: dict[str, Any]) -> Record:
    return kind(**{name: torch.from_numpy(array) for name, array in arrays.items()}, **others)


@dataclass(frozen=True)
class Cuts(TensorRecord):
    """Squares of slices as numbers, by which a device samples them from a buffer of volumes: N of them.

    They are chosen by a process on the host, and so small that they are quickly sent to another.

    Attributes:
        layouts: int64 (N, 5): the first element of the slice in the buffer, the steps from row to row and from column
            to column, rows, columns.
        crops: float32 (N, 7): centre (row, column), half side, in mm; angle; -1 if mirrored, else 1; spacing.
        bends: float32 (N, n, n, 2), see `Crop`; None if no crop is bent.
        values: int64 (N, V): the target's labels.
        coarse: whether the grid's pixels are so large that they are means of 2 x 2, (N,) bool, on the host.
        parts: int64 (M, `PARTS`): the cuts whose mean is an image, the first one repeated at the end; None if each cut
            is an image.
        weights: float32 (M, `PARTS`), of these.
    """

    layouts: torch.Tensor
    crops: torch.Tensor
    bends: torch.Tensor | None
    values: torch.Tensor
    coarse: np.ndarray
    parts: torch.Tensor | None = None
    weights: torch.Tensor | None = None

    @classmethod
    def of(cls, views: Sequence[View], places: Sequence[int], side: int, parts: Sequence[int] = ()) -> Cuts:
        """Cuts of slices of volumes that begin at these places of a buffer, for a grid of `side` pixels.

        Args:
            parts: numbers of consecutive cuts that make one image each; none: each cut is an image.
        """
        most = max(len(target.values) for target, _ in views)
        values = [(*target.values, *(target.values[-1:] * (most - len(target.values)))) for target, _ in views]
        crops = [crop_numbers(*view) for view in views]
        bends = [crop.bend for _, crop in views if crop.bend is not None]
        bent = torch.zeros(len(views), *bends[0].shape[1:]) if bends else None
        for row, (_, crop) in enumerate(views):
            if bent is not None and crop.bend is not None:
                bent[row] = crop.bend[0]
        index = weights = None
        if max(parts, default=1) > 1:
            counts = np.array(parts)
            first, place = np.cumsum(counts) - counts, np.arange(PARTS)
            index = torch.from_numpy(first[:, None] + np.where(place < counts[:, None], place, 0))
            weights = torch.from_numpy(((place < counts[:, None]) / counts[:, None]).astype(np.float32))
        return cls(
            torch.tensor([_layout(target, place) for (target, _), place in zip(views, places, strict=True)]),
            torch.tensor(crops),
            bent,
            torch.tensor(values),
            np.array([_is_coarse(*view, side) for view in views]),
            index,
            weights,
        )


def crop_numbers(target: SliceTarget, crop: Crop) -> tuple[float, ...]:
    """A row of `Cuts.crops`."""
    return (*crop.centre, crop.half, crop.angle, -1.0 if crop.mirror else 1.0, *target.spacing)


@dataclass(frozen=True)
class DrawnBatch(TensorRecord):
    """B episodes of S views each as they were chosen, in numbers that a device makes the pixels of: small enough to be
    handed from one process to another. Tensors lie on the host.

    Attributes:
        seed: of what is drawn on the device.
        masks: of all views but the slices ahead. scans: of those of scans; looks: of those of label volumes.
        scan_rows: their views. look_rows: their episodes, of which all views are of label volumes.
        scenes: (B,), for each episode the one whose images it shows: its own, or that of the twin before it.
        contrast: (B, S), see `Episode`.
        held, is_exact, wanted, known, is_there: of `propagate` episodes, see `Episode`; ``known`` is (B, R, R) float16.
        mask_rows, own_masks: views with masks of their own, and these, (n, R, R).
        paper: a batch of the kind `paper`, whose pixels are made on the host; the rest is then None.
    """

    plan: BatchPlan
    seed: int = 0
    masks: Cuts | None = None
    scans: Cuts | None = None
    looks: Cuts | None = None
    scan_rows: torch.Tensor | None = None
    look_rows: torch.Tensor | None = None
    scenes: torch.Tensor | None = None
    contrast: torch.Tensor | None = None
    held: Cuts | None = None
    is_exact: torch.Tensor | None = None
    wanted: torch.Tensor | None = None
    known: torch.Tensor | None = None
    is_there: torch.Tensor | None = None
    mask_rows: torch.Tensor | None = None
    own_masks: torch.Tensor | None = None
    paper: EpisodeBatch | None = None


class VolumeStore:
    """Volumes on a device, of which the slices of a batch are cut together.

    Images and label maps lie side by side in one buffer each. `volumes` are those that were given, with arrays that, on
    a CPU, share the buffers' memory, so that the given ones can be let go.

    Args:
        volumes: with different names.
        device: where to keep them.

    Raises:
        InputError: for two volumes of one name, and for labels that are too large.

    >>> from SDFSMISLib.training.volumes import synthetic_volumes
    >>> store = VolumeStore(synthetic_volumes(1, seed=0), torch.device("cpu"))
    >>> target = SliceTarget(store.volumes[0], axis=0, index=40, map_number=1, values=(1,))
    >>> store.masks(store.mask_cuts([(target, Crop((40.0, 40.0), half=20.0))], 32), 32).shape
    torch.Size([1, 32, 32])
    """

    def __init__(self, volumes: Sequence[TrainingVolume], device: torch.device) -> None:
        self.device = device
        maps = [one for volume in volumes for one in volume.maps]
        images = [volume.image for volume in volumes if volume.image is not None]
        labels = torch.empty(sum(one.size for one in maps), dtype=torch.int16)
        levels = torch.empty(sum(one.size for one in images), dtype=torch.float16)
        self._places: dict[tuple[str, int], int] = {}
        self.volumes = []
        first = first_level = 0
        for volume in volumes:
            if (volume.name, 0) in self._places:
                raise InputError(f"Two volumes are named {volume.name!r}; scans and label maps need different ids.")
            kept = []
            for number, one in enumerate(volume.maps):
                part = labels[first : first + one.size].numpy().reshape(one.shape)
                if one.max() > MOST_LABEL:
                    raise InputError(
                        f"{volume.name!r} has the label {one.max()}; labels up to {MOST_LABEL} are accepted."
                    )
                part[:] = one
                kept.append(part)
                self._places[volume.name, number] = first
                first += one.size
            image = volume.image
            if image is not None:
                self._places[volume.name, -1] = first_level
                part = levels[first_level : first_level + image.size].numpy().reshape(image.shape)
                part[:] = image
                first_level, image = first_level + image.size, part
            self.volumes.append(replace(volume, image=image, maps=tuple(kept)))
        self._labels, self._levels = labels.to(device), levels.to(device)

    def labels(self, volume: TrainingVolume, number: int) -> torch.Tensor:
        """A map of one of the volumes, int16 (slices, height, width), on the device."""
        first, shape = self._places[volume.name, number], volume.maps[number].shape
        return self._labels[first : first + volume.maps[number].size].view(shape)

    # -- on the host: which elements of the buffers are needed

    def image_cuts(self, views: Sequence[View], side: int) -> Cuts:
        """Of slices of scans, with all parts of the thick ones."""
        parts = [_parts(target) for target, _ in views]
        flat = [(replace(target, index=z), crop) for (target, crop), zs in zip(views, parts, strict=True) for z in zs]
        places = [self._places[target.volume.name, -1] for target, _ in flat]
        return Cuts.of(flat, places, side, [len(zs) for zs in parts])

    def look_cuts(self, views: Sequence[View], side: int) -> Cuts:
        """Of the first maps of label volumes."""
        return Cuts.of(views, [self._places[target.volume.name, 0] for target, _ in views], side)

    def mask_cuts(self, views: Sequence[View], side: int) -> Cuts:
        """Of the maps of targets."""
        return Cuts.of(views, [self._places[target.volume.name, target.map_number] for target, _ in views], side)

    # -- on the device

    def images(self, cuts: Cuts, side: int) -> torch.Tensor:
        """Intensities (N, side, side) in [-1, 1] of slices of scans; -1 outside of them."""
        seen = self._sampled(cuts, side, self._levels, lambda levels, rows: levels + 1) - 1
        if cuts.parts is None or cuts.weights is None:
            return seen
        weights = cuts.weights[..., None, None]
        return torch.stack([weights[:, k] * seen[cuts.parts[:, k]] for k in range(PARTS)]).sum(0)

    def looks(self, cuts: Cuts, side: int) -> torch.Tensor:
        """Labels (N, side, side), integers; 0 outside."""
        points = points_of(cuts.crops, cuts.bends, side)
        labels, inside = self._voxels(cuts.layouts, points.round().long(), self._labels)
        return (labels * inside).long().view(-1, side, side)

    def masks(self, cuts: Cuts, side: int) -> torch.Tensor:
        """The targets (N, side, side), 0 or 1."""

        def shown(labels: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            return (labels[..., None] == cuts.values[rows][:, None]).any(-1).float()

        return (self._sampled(cuts, side, self._labels, shown) > 0.5).float()

    def _sampled(
        self, cuts: Cuts, side: int, buffer: torch.Tensor, value: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """What `value` makes of voxels (n, P) of the cuts in rows (n,), interpolated, 0 outside of the slices:
        (N, side, side)."""
        found = torch.zeros(len(cuts.coarse), side, side, device=self.device)
        for fine, chosen in ((1, ~cuts.coarse), (2, cuts.coarse)):
            if not chosen.any():
                continue
            rows = on_device(torch.from_numpy(np.flatnonzero(chosen)), self.device)
            bends = None if cuts.bends is None else cuts.bends[rows]
            points, layouts = points_of(cuts.crops[rows], bends, side * fine), cuts.layouts[rows]
            lower = points.floor()
            down, right = (points - lower).unbind(-1)
            corner, seen = lower.long(), torch.zeros(points.shape[:2], device=self.device)
            for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
                weight = (down if row else 1 - down) * (right if column else 1 - right)
                places = torch.stack([corner[..., 0] + row, corner[..., 1] + column], dim=-1)
                voxels, inside = self._voxels(layouts, places, buffer)
                seen += weight * value(voxels, rows) * inside
            seen = seen.view(len(rows), 1, side * fine, side * fine)
            found[rows] = (F.avg_pool2d(seen, fine) if fine > 1 else seen)[:, 0]
        return found

    @staticmethod
    def _voxels(layouts: torch.Tensor, places: torch.Tensor, buffer: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 (N, P) at places (N, P, 2), rows and columns, or at the nearest ones of the slice; and whether they
        lie inside."""
        start, steps, sizes = layouts[:, :1], layouts[:, None, 1:3], layouts[:, None, 3:]
        inside = ((places >= 0) & (places < sizes)).all(-1)
        index = start + (torch.minimum(places.clamp(min=0), sizes - 1) * steps).sum(-1)
        return buffer[index].float(), inside


def _is_coarse(target: SliceTarget, crop: Crop, side: int) -> bool:
    return 2 * crop.half / side > FINE * min(target.spacing)


def pixels_on_grid(target: SliceTarget, crop: Crop, side: int, step: int = 1) -> int:
    """How many pixels of the grid `VolumeStore.masks` sets for one view, of every `step`-th in each direction.

    It needs the host only.
    """
    mask = np.pad(target.mask(), 1)
    fine = 2 if _is_coarse(target, crop, side) else 1
    chosen = np.arange(side * fine).reshape(side, fine)[step // 2 :: step]
    numbers = torch.tensor([crop_numbers(target, crop)])
    points = points_of(numbers, crop.bend, side * fine, torch.from_numpy(chosen.ravel()))[0].numpy() + 1
    lower = np.floor(points)
    down, right = (points - lower).T
    row, column = lower.astype(np.intp).T
    row, column = row.clip(0, mask.shape[0] - 2), column.clip(0, mask.shape[1] - 2)
    inside = ((points > 0) & (points < np.array(mask.shape) - 1)).all(1)
    upper, under = ((1 - right) * mask[row + k, column] + right * mask[row + k, column + 1] for k in (0, 1))
    seen = ((1 - down) * upper + down * under) * inside
    return int(np.count_nonzero(seen.reshape(*chosen.shape, *chosen.shape).mean((1, 3)) > 0.5))


def slice_counts(labels: torch.Tensor, axis: int) -> np.ndarray:
    """Voxels of every label on every slice along an axis, int32 (slices, labels), of labels (slices, height, width)."""
    planes = labels.movedim(axis, 0).flatten(1).long()
    width = int(planes.max()) + 1
    rows = torch.arange(len(planes), device=labels.device)[:, None]
    counts = torch.bincount((planes + rows * width).flatten(), minlength=len(planes) * width)
    return counts.view(-1, width).int().cpu().numpy()


def on_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host on a device, which a GPU does not stop for."""
    if device.type != "cuda":
        return tensor.to(device)
    return (tensor if tensor.is_pinned() else tensor.pin_memory()).to(device, non_blocking=True)


def _parts(target: SliceTarget) -> list[int]:
    """The slices that make a thick one, all or `PARTS` of them."""
    first = max(target.index - target.thick // 2, 0)
    last = min(target.index - target.thick // 2 + target.thick, target.volume.maps[0].shape[target.axis]) - 1
    return np.unique(np.linspace(first, last, min(target.thick, PARTS)).round().astype(int)).tolist()


def _layout(target: SliceTarget, place: int) -> tuple[int, int, int, int, int]:
    """(first element of a slice, steps from row to row and from column to column, rows, columns), in its volume's
    buffer, of which the volume begins at `place`."""
    shape, axis, turn = target.volume.maps[0].shape, target.axis, target.volume.orientations[target.axis]
    steps = (shape[1] * shape[2], shape[2], 1)
    place += target.index * steps[axis]
    (down, rows), (right, columns) = ((steps[a], shape[a]) for a in range(3) if a != axis)
    if turn.transpose:
        (down, rows), (right, columns) = (right, columns), (down, rows)
    if turn.flip_rows:
        place, down = place + (rows - 1) * down, -down
    if turn.flip_columns:
        place, right = place + (columns - 1) * right, -right
    return place, down, right, rows, columns


def points_of(
    crops: torch.Tensor, bends: torch.Tensor | None, side: int, chosen: torch.Tensor | None = None
) -> torch.Tensor:
    """Where the pixels (side, side) of crops (N, 7) lie in their slices: float32 (N, side * side, 2), row and column;
    see `Cuts`. Of `chosen` rows and columns, if some are."""
    chosen = torch.arange(side, device=crops.device) if chosen is None else chosen
    line = (chosen + 0.5) * (2 / side) - 1
    down, right = line[:, None], line[None, :]
    centre, (half, angle, mirror), spacing = crops[:, :2], crops[:, 2:5, None, None].unbind(1), crops[:, 5:]
    cos, sin = angle.cos(), angle.sin()
    places = torch.stack([mirror * sin * right + cos * down, mirror * cos * right - sin * down], dim=-1)
    if bends is not None:
        spread = _spread(bends.shape[1], side, crops.device)[chosen]
        places = places + torch.einsum("sn,bnmc,tm->bstc", spread, bends, spread).flip(-1)
    places = (centre[:, None, None] + half[..., None] * places) / spacing[:, None, None]
    return places.flatten(1, 2)


@cache
def _spread(points: int, side: int, device: torch.device) -> torch.Tensor:
    """(side, points): the weights of bicubic interpolation from so many points across to a grid."""
    weights = F.interpolate(torch.eye(points)[None, None], size=(side, points), mode="bicubic", align_corners=True)
    return weights[0, 0].to(device)
