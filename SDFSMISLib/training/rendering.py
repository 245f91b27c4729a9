"""The pixels of episodes, a whole batch at once, on a CPU or a GPU.

Slices of many volumes are sampled by one gather. The look of a batch is drawn together: that of label volumes after
SynthSeg (Billot et al., MedIA 2023), a mean and a spread of grey for each label, texture, blur and low resolution; then
for scans too bias field, gamma, inversion and noise; and the contrast of a region as the segmenter spreads it.

On a GPU, or without OpenCV, neighbouring slices are registered in torch, by Lucas and Kanade (IJCAI 1981) from coarse
to fine with smoothing, in place of the product's dense inverse search. On 63 pairs of real slices about 5 mm apart, of
several groups of scans, warped masks had Dice 0.85 (dense inverse search 0.86, copied masks 0.78).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial

import numpy as np
import torch
import torch.nn.functional as F

from SDFSMISLib.errors import InputError
from SDFSMISLib.inference.network_images import AIR, LEAST_PIXELS, LEVELS, LIMIT, SHARE
from SDFSMISLib.inference.registration import displacement, warp
from SDFSMISLib.training.volumes import Crop, SliceTarget, TrainingVolume

PYRAMID_LEVELS = 4
STEPS = 3  # per level
WINDOW, SMOOTHING = 5, 5  # pixels of a level
DAMPING = 5e-3  # of squared grey levels per pixel: flat places follow their surroundings
LONGEST = 1.0  # pixels per step


def registered(moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    """`registration.displacement` of pairs (B, side, side): on a CPU the product's own, where it is not installed and
    on a GPU `displacements`."""
    if moving.device.type == "cpu" and _has_opencv():
        return torch.stack([displacement(*pair) for pair in zip(moving, fixed, strict=True)])
    return displacements(moving, fixed)


@cache
def _has_opencv() -> bool:
    try:
        import cv2  # noqa: F401
    except ImportError:  # on a machine that is for training alone
        return False
    return True


def displacements(moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    """Where in `moving` each pixel of `fixed` is found; see `registration.displacement`.

    Args:
        moving, fixed: (B, side, side) in [-1, 1], pairs of neighbouring slices.

    Returns:
        (B, side, side, 2) float32: pixels to go to the right and down.
    """
    pairs = torch.stack([moving, fixed], dim=1).float()
    sizes = [max(8, pairs.shape[-1] >> level) for level in reversed(range(PYRAMID_LEVELS))]
    found = torch.zeros(len(pairs), 2, sizes[0], sizes[0], device=pairs.device)
    for size in sizes:
        here = pairs if size == pairs.shape[-1] else F.interpolate(pairs, size=(size, size), mode="area")
        found = F.interpolate(found, size=(size, size), mode="bilinear", align_corners=False) * size / found.shape[-1]
        for _ in range(STEPS):
            found = _smoothed(found + _step(here[:, 0], here[:, 1], found), SMOOTHING)
    return found.permute(0, 2, 3, 1)


def _step(moving: torch.Tensor, fixed: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """How much further each window has to go, (B, 2, n, n), by the least squares of its grey levels."""
    warped = warp(moving, found.permute(0, 2, 3, 1))
    right, down = _slopes((warped + fixed) / 2)
    missing = warped - fixed
    products = torch.stack([right * right, right * down, down * down, right * missing, down * missing], dim=1)
    xx, xy, yy, xt, yt = _smoothed(products, WINDOW).unbind(1)
    xx, yy = xx + DAMPING, yy + DAMPING
    step = torch.stack([xy * yt - yy * xt, xy * xt - xx * yt], dim=1) / (xx * yy - xy * xy)[:, None]
    return step.clamp(-LONGEST, LONGEST)


def _slopes(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Central differences of images (B, n, n), to the right and down."""
    wide = F.pad(images[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    return (wide[:, 1:-1, 2:] - wide[:, 1:-1, :-2]) / 2, (wide[:, 2:, 1:-1] - wide[:, :-2, 1:-1]) / 2


def _smoothed(images: torch.Tensor, width: int) -> torch.Tensor:
    """Twice the mean of `width` pixels, close to a Gaussian."""
    for _ in range(2):
        images = F.avg_pool2d(images, width, 1, width // 2, count_include_pad=False)
    return images


MOST_LABELS = 256
ALIKE_SHARE = 0.3  # share of label images with a few grey levels only: shape alone tells neighbours apart
BLUR_REACH = 9  # pixels either way


class RandomDraws:
    """Random tensors on a device by one generator: `seed` says what comes."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        self.generator = torch.Generator(device).manual_seed(seed)

    def uniform(self, low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(shape, generator=self.generator, device=self.device)

    def normal(self, spread: float, *shape: int) -> torch.Tensor:
        return spread * torch.randn(shape, generator=self.generator, device=self.device)

    def chance(self, share: float, *shape: int) -> torch.Tensor:
        """bool; True in this share."""
        return torch.rand(shape, generator=self.generator, device=self.device) < share

    def below(self, most: int, *shape: int) -> torch.Tensor:
        """Integers from 0 to `most` - 1."""
        return torch.randint(most, shape, generator=self.generator, device=self.device)

    def field(self, spread: float, grain: int, count: int, side: int) -> torch.Tensor:
        """Smooth noise (count, side, side), of `grain` independent values across."""
        noise = self.normal(spread, count, 1, grain, grain)
        return F.interpolate(noise, size=(side, side), mode="bicubic", align_corners=False)[:, 0]


def render(draws: RandomDraws, labels: torch.Tensor, same_scan: bool) -> torch.Tensor:
    """Grey images (B, S, R, R), around [-1, 1], of label images (B, S, K, R, R) whose K parts of a thick slice are
    averaged.

    Args:
        labels: integers from 0, air, to `MOST_LABELS` - 1.
        same_scan: one grey level per label for all S images (up to a small change), else drawn anew for each.
    """
    batch, shown, _, side, _ = labels.shape
    scans = 1 if same_scan else shown
    levels, spreads = draws.uniform(-1, 1, batch, scans, MOST_LABELS), draws.uniform(0, 0.12, batch, 1, MOST_LABELS)
    dark = draws.chance(0.7, batch, scans)
    few = draws.uniform(-1, 1, batch, scans, 7).gather(
        2, draws.below(7, batch, scans, MOST_LABELS) % (3 + draws.below(5, batch, 1, 1))
    )
    levels = torch.where(draws.chance(ALIKE_SHARE, batch, 1, 1), few, levels)
    levels[..., 0] = torch.where(dark, -1.0, levels[..., 0])
    levels = levels + draws.normal(0.02, batch, shown, MOST_LABELS)
    flat = labels.long().flatten(2)
    grey = levels.gather(2, flat).view(labels.shape).mean(2)
    spread = spreads.expand(-1, shown, -1).gather(2, flat).view(labels.shape).mean(2)
    grain = int(draws.below(34, 1)) + 6
    texture = draws.field(1.0, grain, batch * shown, side).view(grey.shape) * draws.uniform(0, 0.25, batch, 1, 1, 1)
    grey = grey + spread * draws.normal(1.0, *grey.shape) + texture
    grey = blurred(grey.flatten(0, 1), draws.uniform(0.4, 1.2, batch).repeat_interleave(shown))
    if bool(draws.chance(0.25, 1)):  # low resolution, of the whole batch
        coarse = int(side / float(draws.uniform(1.3, 2.5, 1)))
        small = F.interpolate(grey[:, None], size=(coarse, coarse), mode="area")
        grey = F.interpolate(small, size=(side, side), mode="bilinear", align_corners=False)[:, 0]
    return grey.view(batch, shown, side, side)


def augment_intensity(draws: RandomDraws, images: torch.Tensor, same_scan: bool) -> torch.Tensor:
    """Images (B, S, R, R) with a look of their task and a little of each slice's own, in [-1, 1]."""
    batch, shown, side, _ = images.shape
    own = 0.15 if same_scan else 1.0
    fields = batch if same_scan else batch * shown
    bias = draws.field(1.0, 3, fields, side).view(batch, -1, side, side) * draws.normal(0.25, batch, 1, 1, 1).abs()
    noise = draws.normal(0.02, batch, 1, 1, 1).abs()
    inverted = draws.chance(0.2, batch, 1 if same_scan else shown, 1, 1)
    gamma, gain, offset = (
        (draws.normal(spread, batch, 1, 1, 1) if same_scan else 0) + draws.normal(own * spread, batch, shown, 1, 1)
        for spread in (0.35, 0.2, 0.12)
    )
    x = ((images + 1) / 2).clamp(0, 1) ** gamma.exp() * bias.exp()
    x = torch.where(inverted, 1 - x, x)
    x = (x - 0.5) * gain.exp() + 0.5 + offset + noise * draws.normal(1.0, *images.shape)
    return (2 * x - 1).clamp(-1, 1)


def blurred(images: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Images (N, R, R), each with a Gaussian of its own `sigma` (N,), pixels."""
    reach = min(BLUR_REACH, images.shape[-1] - 1)
    x = torch.arange(-reach, reach + 1, device=images.device, dtype=torch.float32)
    kernel = torch.exp(-(x**2) / (2 * sigma[:, None] ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True))[:, None, :]
    count = len(images)
    padded = F.pad(images[None], (reach,) * 4, mode="replicate")
    rows = F.conv2d(padded, kernel[..., None], groups=count)
    return F.conv2d(rows, kernel[:, :, None], groups=count)[0]


def equalizing_contrasts(images: torch.Tensor) -> torch.Tensor:
    """`Contrast.of` of each image (N, R, R): its `values`, (N, LEVELS + 1)."""
    flat = images.float().flatten(1)
    inside = (flat > AIR).float()
    places = ((flat + 1) * (LEVELS / 2)).long().clamp(0, LEVELS - 1)
    counts = torch.zeros(len(flat), LEVELS, device=flat.device).scatter_add_(1, places, inside)
    total = inside.sum(1, keepdim=True)
    limited = (counts / total.clamp(min=1)).clamp(max=LIMIT / LEVELS)
    limited = limited + (1 - limited.sum(1, keepdim=True)) / LEVELS
    levels = torch.linspace(-1, 1, LEVELS + 1, device=flat.device).expand(len(flat), -1)
    spread = (1 - SHARE) * levels + SHARE * (2 * F.pad(limited.cumsum(1), (1, 0)) - 1)
    return torch.where(total < LEAST_PIXELS, levels, spread)


def with_contrast(images: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Images (N, R, R) in [-1, 1], each with the contrast of its row of `values`."""
    place = (images.float().clamp(-1, 1).flatten(1) + 1) * (LEVELS / 2)
    lower = place.long().clamp(max=LEVELS - 1)
    low, high = values.gather(1, lower), values.gather(1, lower + 1)
    return torch.lerp(low, high, place - lower).clamp(-1, 1).view(images.shape)


def imperfect(draws: RandomDraws, masks: torch.Tensor) -> torch.Tensor:
    """Masks (B, R, R), 0 or 1, most with the errors of a prediction: wavy, eroded, dilated, shifted, leaking."""
    batch, side, _ = masks.shape
    soft = blurred(masks, draws.uniform(1.0, 5.0, batch))
    near = soft > 0.01
    wave = draws.field(1.0, int(draws.below(10, 1)) + 4, batch, side)
    wrong = ((soft + draws.uniform(0, 0.22, batch, 1, 1) * wave > draws.uniform(0.3, 0.7, batch, 1, 1)) & near).float()
    theta = torch.eye(2, 3, device=masks.device).repeat(batch, 1, 1)
    theta[:, :, 2] = draws.normal(1.2, batch, 2).round() * 2 / side
    grid = F.affine_grid(theta, [batch, 1, side, side], align_corners=False)
    wrong = F.grid_sample(wrong[:, None], grid, mode="nearest", align_corners=False)[:, 0]
    kept = draws.chance(0.2, batch) | (wrong.sum((1, 2)) < 4)
    return torch.where(kept[:, None, None], masks, wrong)


FINE = 1.4  # pixels of the grid that are larger than so many of the slice are averages of 2 x 2
PARTS = 3  # of a thick slice, at most, that are averaged
MOST_LABEL = 32767  # that the buffer holds

View = tuple[SliceTarget, Crop]
"""A slice, and the square of it that is seen."""


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
    >>> store.masks([(target, Crop((40.0, 40.0), half=20.0))], 32).shape
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

    def images(self, views: Sequence[View], side: int) -> torch.Tensor:
        """Intensities (N, side, side) in [-1, 1] of slices of scans; -1 outside of them."""
        parts = [_parts(target) for target, _ in views]
        flat = [(replace(target, index=z), crop) for (target, crop), zs in zip(views, parts, strict=True) for z in zs]
        seen = self._sampled(flat, side, self._levels, True, lambda levels, rows: levels + 1) - 1
        return torch.stack([part.mean(0) for part in seen.split([len(zs) for zs in parts])])

    def looks(self, views: Sequence[View], side: int) -> torch.Tensor:
        """The first map's labels (N, side, side) on slices of label volumes, integers; 0 outside."""
        views = [(replace(target, map_number=0), crop) for target, crop in views]
        return self._sampled(views, side, self._labels, False, lambda labels, rows: labels).long()

    def masks(self, views: Sequence[View], side: int) -> torch.Tensor:
        """The targets (N, side, side), 0 or 1."""
        most = max(len(target.values) for target, _ in views)
        values = [(*target.values, *(target.values[-1:] * (most - len(target.values)))) for target, _ in views]
        wanted = torch.tensor(values, device=self.device)

        def shown(labels: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            return (labels[..., None] == wanted[rows][:, None]).any(-1).float()

        return (self._sampled(views, side, self._labels, True, shown) > 0.5).float()

    def _sampled(
        self,
        views: Sequence[View],
        side: int,
        buffer: torch.Tensor,
        smooth: bool,
        value: Callable[..., torch.Tensor],
    ) -> torch.Tensor:
        """What `value` makes of voxels (N, P) of the views of rows (N,), interpolated where `smooth`, 0 outside of the
        slices: (N, side, side); means of 2 x 2 where the grid's pixels are much larger than the slice's.
        """
        found = torch.zeros(len(views), side, side, device=self.device)
        coarse = [smooth and 2 * crop.half / side > FINE * min(target.spacing) for target, crop in views]
        for fine, here in ((1, False), (2, True)):
            rows = [row for row, one in enumerate(coarse) if one == here]
            if rows:
                chosen, number = [views[row] for row in rows], torch.tensor(rows, device=self.device)
                points = _points([crop for _, crop in chosen], [target.spacing for target, _ in chosen], side * fine)
                seen = self._gathered(chosen, points.to(self.device), buffer, smooth, partial(value, rows=number))
                seen = seen.view(len(rows), 1, side * fine, side * fine)
                found[number] = (F.avg_pool2d(seen, fine) if fine > 1 else seen)[:, 0]
        return found

    def _gathered(
        self,
        views: Sequence[View],
        points: torch.Tensor,
        buffer: torch.Tensor,
        smooth: bool,
        value: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """Values (N, P) at points (N, P, 2), rows and columns of the slices."""
        layout = torch.tensor(
            [_layout(target, self._places[target.volume.name, self._number(buffer, target)]) for target, _ in views]
        ).to(self.device)
        start, steps, sizes = layout[:, :1], layout[:, None, 1:3], layout[:, None, 3:]

        def at(places: torch.Tensor) -> torch.Tensor:
            inside = ((places >= 0) & (places < sizes)).all(-1)
            index = start + (torch.minimum(places.clamp(min=0), sizes - 1) * steps).sum(-1)
            return value(buffer[index].float()) * inside

        if not smooth:
            return at(points.round().long())
        lower = points.floor()
        down, right = (points - lower).unbind(-1)
        corner, found = lower.long(), torch.zeros(points.shape[:2], device=self.device)
        for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
            weight = (down if row else 1 - down) * (right if column else 1 - right)
            found += weight * at(corner + torch.tensor([row, column], device=self.device))
        return found

    def _number(self, buffer: torch.Tensor, target: SliceTarget) -> int:
        return -1 if buffer is self._levels else target.map_number


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


def _points(crops: Sequence[Crop], spacings: Sequence[tuple[float, float]], side: int) -> torch.Tensor:
    """Where the pixels (side, side) of the crops lie in their slices: (N, side * side, 2), row and column."""
    line = (torch.arange(side) + 0.5) * (2 / side) - 1
    down, right = torch.meshgrid(line, line, indexing="ij")
    angle, half = (torch.tensor([getattr(crop, name) for crop in crops])[:, None, None] for name in ("angle", "half"))
    mirror = torch.tensor([-1.0 if crop.mirror else 1.0 for crop in crops])[:, None, None]
    cos, sin = angle.cos(), angle.sin()
    places = torch.stack([mirror * sin * right + cos * down, mirror * cos * right - sin * down], dim=-1)
    for row, crop in enumerate(crops):
        if crop.bend is not None:
            field = crop.bend.permute(0, 3, 1, 2)
            field = F.interpolate(field, size=(side, side), mode="bicubic", align_corners=True)[0]
            places[row] += field.permute(1, 2, 0).flip(-1)
    centres = torch.tensor([crop.centre for crop in crops])[:, None, None]
    return ((centres + half[..., None] * places) / torch.tensor(spacings)[:, None, None]).flatten(1, 2).float()
