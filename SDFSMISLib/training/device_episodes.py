"""Synthetic episodes made on the device, a whole batch at once, so that a GPU does not wait for the CPU.

The kinds of `episodes` on the label volumes of `synthesis`, cut along planes of any direction. Two differences: `cross`
shows the same labels with a stronger deformation and another appearance, since each synthetic anatomy exists once; and
neighbouring slices are registered in torch, by Lucas and Kanade (IJCAI 1981) from coarse to fine with smoothing, in
place of OpenCV's dense inverse search. On 63 pairs of real slices about 5 mm apart, of several groups of scans, warped
masks had Dice 0.85 (dense inverse search 0.86, copied masks 0.78).

Appearance is drawn for the whole batch, after SynthSeg (Billot et al., MedIA 2023): a mean and a spread per label,
texture, blur, low resolution, bias field, gamma, inversion, noise, and the contrast of a region.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from SDFSMISLib.inference.network_images import AIR, LEAST_PIXELS, LEVELS, LIMIT, SHARE
from SDFSMISLib.inference.registration import warp
from SDFSMISLib.training.config import TrainingConfig
from SDFSMISLib.training.episodes import BEYOND_END_SHARE, CONTRAST_SHARE
from SDFSMISLib.training.volumes import BatchPlan, EpisodeBatch, PreviousSlices, TrainingVolume

PYRAMID_LEVELS = 4
STEPS = 3  # per level
WINDOW, SMOOTHING = 5, 5  # pixels of a level
DAMPING = 5e-3  # of squared grey levels per pixel: flat places follow their surroundings
LONGEST = 1.0  # pixels per step


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


MOST_LABELS = 64
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
    """Masks (B, R, R), 0 or 1, as a network would have left them; see `EpisodeSampler`."""
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


def random_rotations(draws: RandomDraws, batch: int) -> torch.Tensor:
    """Rotations (B, 3, 3), evenly drawn: by unit quaternions."""
    w, x, y, z = F.normalize(draws.normal(1.0, batch, 4), dim=1).unbind(1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


POINTS = 32  # voxels of each target that a painted slice may go through
REACH = 40  # mm from the painted slice that are looked at
GRAIN = 40  # positions across a plane at which is looked where the target is
LONGEST_GAP = 10
PARTS = 3  # of a thick slice


@dataclass(frozen=True)
class Planes:
    """B stacks of parallel planes.

    Attributes:
        volumes: (B,) numbers. targets: (B,) values in the volumes' parts.
        origins: (B, 3) voxels. axes: (B, 3, 3), the normal, down and right.
        there: (B, 2 * REACH + 1, GRAIN, GRAIN) bool, where the target is on planes 1 mm apart.
    """

    volumes: torch.Tensor
    targets: torch.Tensor
    origins: torch.Tensor
    axes: torch.Tensor
    present: torch.Tensor


@dataclass(frozen=True)
class View:
    """Squares of planes: `heights` of the planes (B, S), `centres` (B, S, 2) and `halves` (B, S) in mm, `angles`
    (B, S), bent by `bend` (B, S, R, R, 2) in half sides."""

    heights: torch.Tensor
    centres: torch.Tensor
    halves: torch.Tensor
    angles: torch.Tensor
    bend: torch.Tensor


class DeviceEpisodes:
    """Draws batches of synthetic episodes; seed and number of a batch, and the kind of device, determine it."""

    def __init__(
        self, volumes: list[TrainingVolume], resolution: int, config: TrainingConfig, device: torch.device
    ) -> None:
        """
        Args:
            volumes: synthetic ones, cubes of one size, 1 mm.
            config: see `EpisodeSampler`.
        """
        self.resolution, self.config, self.device = resolution, config, device
        self.labels = torch.stack([torch.from_numpy(v.maps[0]) for v in volumes]).to(device)
        self.parts = torch.stack([torch.from_numpy(v.maps[1].astype(np.int16)) for v in volumes]).to(device)
        rng = np.random.default_rng(config.seed)
        table = [(n, value) for n, v in enumerate(volumes) for value in range(1, int(v.maps[1].max()) + 1)]
        points = []
        for number, value in table:
            places = np.flatnonzero(volumes[number].maps[1] == value)
            points.append(np.stack(np.unravel_index(rng.choice(places, POINTS), volumes[number].maps[1].shape), -1))
        self.table = torch.tensor(table, device=device)
        self.points = torch.from_numpy(np.stack(points)).float().to(device)

    @torch.no_grad()
    def batch(self, size: int, number: int, late: bool = False) -> EpisodeBatch:
        """Batch `number`; see `EpisodeSampler.batch`."""
        rng = np.random.default_rng([self.config.seed, number])
        plan = BatchPlan.drawn(rng, self.config, late)
        draws = RandomDraws(int(rng.integers(1 << 62)), self.device)
        planes = self._planes(draws, size)
        if plan.kind == "propagate":
            return self._propagate(draws, planes, plan)
        return self._independent(draws, planes, plan)

    # -- the kinds

    def _propagate(self, draws: RandomDraws, planes: Planes, plan: BatchPlan) -> EpisodeBatch:
        batch = len(planes.volumes)
        first = torch.zeros(batch, dtype=torch.long, device=self.device)
        gap, previous, query, end = _track(draws, planes)
        before = (previous - gap).clamp(min=0)
        lost = previous > end
        held = torch.where(lost, end, previous)
        shown = [first, *(_slices_with_target(draws, planes) for _ in range(plan.painted - 1))]
        angle = _angle(draws, batch)
        views = [self._around(draws, planes, h, angle + draws.normal(0.05, batch), (1.8, 2.3), 0.05) for h in shown]
        track = self._around(draws, planes, held, angle, (1.7, 2.4), 0.15)
        heights = torch.stack([before, previous, query, held], dim=1)
        views.append(_repeat(track, heights))
        view = _concatenated(views)
        thickness = gap * draws.uniform(0, 1, batch) * draws.chance(0.5, batch)
        plain = augment_intensity(draws, render(draws, self._labels(planes, view, thickness), True), True)[:, :-1]
        masks = self._masks(planes, view, planes.targets)
        images = self._with_contrasts(draws, plain, plan.painted)
        p = plan.painted
        held_mask = torch.where((previous == 0)[:, None, None], masks[:, -1], imperfect(draws, masks[:, -1]))
        moved = displacements(plain[:, p + 1], plain[:, p + 2])
        earlier = None
        if plan.rolled:
            wanted = (before != previous) & ~lost & (masks[:, p].sum((1, 2)) >= 6)
            earlier_displacements = displacements(plain[:, p], plain[:, p + 1])
            earlier = PreviousSlices(images[:, p], imperfect(draws, masks[:, p]), earlier_displacements, wanted)
        supports = torch.cat([images[:, :p], images[:, p + 1 : p + 2]], dim=1)
        support_masks = torch.cat([masks[:, :p], held_mask[:, None]], dim=1)
        return EpisodeBatch(supports, support_masks, images[:, p + 2], masks[:, p + 2], p, moved, earlier)

    def _independent(self, draws: RandomDraws, planes: Planes, plan: BatchPlan) -> EpisodeBatch:
        """Also `cross`, in which every slice has an appearance of its own."""
        same_scan, batch = plan.kind != "cross", len(planes.volumes)
        if plan.swapped:  # each plane stack twice; the second asks for another target on it
            rows = torch.arange(batch, device=self.device) // 2
            planes = Planes(*(getattr(planes, name)[rows] for name in Planes.__dataclass_fields__))
        heights = [torch.zeros(batch, dtype=torch.long, device=self.device)]
        heights += [_slices_with_target(draws, planes) for _ in range(plan.shots)]
        absent = _random_height(draws, ~planes.present.flatten(2).any(2))
        heights[-1] = torch.where(draws.chance(0.125, batch), absent, heights[-1])
        angle, whole = _angle(draws, batch), draws.chance(0.3 if same_scan else 0.5, batch)
        base = self._around(draws, planes, heights[0], angle, (1.6, 3.5), 0.25)
        side = self.labels.shape[-1] / 2
        base = replace(
            base, halves=torch.where(whole[:, None], side * draws.uniform(0.75, 1.05, batch, 1), base.halves)
        )
        view = self._jittered(draws, _repeat(base, torch.stack(heights, dim=1)), 1.0 if same_scan else 2.0)
        targets = planes.targets
        if plan.swapped:
            view = _first_of_pairs(view)
            targets = self._other_targets(draws, planes, view)
        labels = self._labels(planes, view, torch.zeros(batch, device=self.device))
        images = augment_intensity(draws, render(draws, labels, same_scan), same_scan)
        images = self._with_contrasts(draws, images, images.shape[1])
        if plan.swapped:
            images = images[torch.arange(batch, device=self.device) // 2 * 2]
        masks = self._masks(planes, view, targets)
        return EpisodeBatch(images[:, :-1], masks[:, :-1], images[:, -1], masks[:, -1], plan.shots)

    # -- choosing

    def _planes(self, draws: RandomDraws, batch: int) -> Planes:
        row = draws.below(len(self.table), batch)
        volumes, targets = self.table[row].unbind(1)
        origins = self.points[row, draws.below(POINTS, batch)]
        axes = random_rotations(draws, batch)
        heights = torch.arange(-REACH, REACH + 1, device=self.device).float()
        across = (torch.arange(GRAIN, device=self.device) + 0.5) * (2 * REACH / GRAIN) - REACH
        places = (
            origins[:, None, None, None]
            + heights[:, None, None, None] * axes[:, 0, None, None, None]
            + across[:, None, None] * axes[:, 1, None, None, None]
            + across[:, None] * axes[:, 2, None, None, None]
        )
        present = self._at(self.parts, volumes, places) == targets[:, None, None, None]
        present[:, REACH, GRAIN // 2, GRAIN // 2] = True  # the painted slice shows it, however small it is
        return Planes(volumes, targets, origins, axes, present)

    def _other_targets(self, draws: RandomDraws, planes: Planes, view: View) -> torch.Tensor:
        """(B,): of every second row another part that its first slice and its query both show, if there is one."""
        batch = len(planes.volumes)
        parts_seen = self._at(self.parts, planes.volumes, self._places(planes, view)).long()
        most = int(self.parts.max()) + 1
        counts = [
            torch.zeros(batch, most, device=self.device).scatter_add_(1, x, torch.ones_like(x, dtype=torch.float))
            for x in (parts_seen[:, 0].flatten(1), parts_seen[:, -1].flatten(1))
        ]
        both = (counts[0] >= 24) & (counts[1] >= 6)
        both[:, 0] = False
        both.scatter_(1, planes.targets[:, None], False)
        odd = torch.arange(batch, device=self.device) % 2 == 1
        found = (both.float() + 1e-9).multinomial(1, generator=draws.generator)[:, 0]
        return torch.where(odd & both.any(1), found, planes.targets)

    # -- frames

    def _around(
        self,
        draws: RandomDraws,
        planes: Planes,
        heights: torch.Tensor,
        angles: torch.Tensor,
        margin: tuple[float, float],
        jitter: float,
    ) -> View:
        """One view (S = 1) around the target on the planes at `heights` (B,)."""
        batch, step = len(heights), 2 * REACH / GRAIN
        present = planes.present[torch.arange(batch, device=self.device), heights + REACH]
        places = torch.arange(GRAIN, device=self.device)
        low, high = [], []
        for dim in (2, 1):  # rows, then columns, that show it
            line = present.any(dim)
            low.append(torch.where(line, places, GRAIN).amin(1))
            high.append(torch.where(line, places, -1).amax(1))
        first, last = torch.stack(low, dim=1), torch.stack(high, dim=1)
        half = (last - first + 1).amax(1).clamp(min=1) * step / 2
        half = half * draws.uniform(*margin, batch) + 4
        centre = ((first + last + 1) / 2 - GRAIN / 2) * step + draws.uniform(-jitter, jitter, batch, 2) * half[:, None]
        side = self.resolution
        bend = torch.zeros(batch, 1, side, side, 2, device=self.device)
        return View(heights[:, None], centre[:, None], half[:, None], angles[:, None], bend)

    def _jittered(self, draws: RandomDraws, view: View, amount: float) -> View:
        """Slightly different views, so that a mask cannot simply be copied."""
        batch, shown = view.heights.shape
        side = self.resolution
        bend = draws.field(0.03 * amount, 5, batch * shown * 2, side).view(batch, shown, 2, side, side)
        return replace(
            view,
            centres=view.centres + amount * draws.uniform(-0.08, 0.08, batch, shown, 2) * view.halves[..., None],
            halves=view.halves * draws.uniform(1 - 0.12 * amount, 1 + 0.14 * amount, batch, shown),
            angles=view.angles + draws.normal(0.08 * amount, batch, shown),
            bend=bend.permute(0, 1, 3, 4, 2),
        )

    # -- slices

    def _places(self, planes: Planes, view: View) -> torch.Tensor:
        """Voxel coordinates (B, S, R, R, 3) of the views' pixels."""
        line = (torch.arange(self.resolution, device=self.device) + 0.5) * (2 / self.resolution) - 1
        square = torch.stack(torch.meshgrid(line, line, indexing="ij"), dim=-1) + view.bend  # down, right
        cos, sin = view.angles.cos(), view.angles.sin()
        turn = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], dim=-2)
        mm = view.centres[:, :, None, None] + view.halves[:, :, None, None, None] * torch.einsum(
            "bsij,bsxyj->bsxyi", turn, square
        )
        plane = planes.origins[:, None] + view.heights[..., None] * planes.axes[:, None, 0]
        return plane[:, :, None, None] + torch.einsum("bsxyi,bij->bsxyj", mm, planes.axes[:, 1:])

    def _labels(self, planes: Planes, view: View, thickness: torch.Tensor) -> torch.Tensor:
        """Label images (B, S, K, R, R) of slices of a `thickness` (B,) in mm."""
        places = self._places(planes, view)
        if not bool(thickness.any()):
            return self._at(self.labels, planes.volumes, places)[:, :, None]
        offsets = (torch.arange(PARTS, device=self.device) - (PARTS - 1) / 2) / PARTS
        along = thickness[:, None, None] * offsets[:, None] * planes.axes[:, 0, None]  # (B, K, 3)
        return self._at(self.labels, planes.volumes, places[:, :, None] + along[:, None, :, None, None])

    def _masks(self, planes: Planes, view: View, targets: torch.Tensor) -> torch.Tensor:
        """(B, S, R, R), 0 or 1."""
        parts_seen = self._at(self.parts, planes.volumes, self._places(planes, view))
        return (parts_seen == targets[:, None, None, None]).float()

    def _at(self, values: torch.Tensor, volumes: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Values of the voxels nearest to `places` (B, ..., 3) of each row's volume; 0 outside."""
        side = values.shape[-1]
        index = places.round().long()
        inside = ((index >= 0) & (index < side)).all(-1)
        z, y, x = index.clamp(0, side - 1).unbind(-1)
        volume = volumes.view(-1, *(1,) * (z.ndim - 1))
        return torch.where(inside, values.flatten()[((volume * side + z) * side + y) * side + x], 0)

    def _with_contrasts(self, draws: RandomDraws, images: torch.Tensor, own: int) -> torch.Tensor:
        """Images (B, S, R, R) with the contrast of the first, the first `own` of them each with its own; most rows."""
        batch, shown, side, _ = images.shape
        values = equalizing_contrasts(images.flatten(0, 1)).view(batch, shown, -1)
        values = torch.cat([values[:, :own], values[:, :1].expand(-1, shown - own, -1)], dim=1)
        changed = with_contrast(images.flatten(0, 1), values.flatten(0, 1)).view(images.shape)
        return torch.where(draws.chance(CONTRAST_SHARE, batch, 1, 1, 1), changed, images)


def _track(draws: RandomDraws, planes: Planes) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(gap from slice to slice, the finished neighbour, the query, the structure's end), (B,) each, counted from the
    painted slice; some queries lie behind the end."""
    present = planes.present.flatten(2).any(2)
    batch, ahead = len(present), torch.arange(REACH + 1, device=present.device)
    end = torch.where(present[:, REACH:], ahead, 0).amax(1)
    most = (present.sum(1) / 8).clamp(1, LONGEST_GAP)
    gap = (1 + (most - 1) * draws.uniform(0, 1, batch)).round().long()
    gap = torch.where(draws.chance(0.2, batch), 1, gap)
    within = present[:, REACH:] & (ahead > 0) & (ahead <= 12 * gap[:, None])
    query = (within.float() + 1e-9 * (ahead == 1)).multinomial(1, generator=draws.generator)[:, 0]
    past = gap * torch.where(draws.chance(0.6, batch), 1, 6)
    behind = end + 1 + (past * draws.uniform(0, 1, batch)).long()
    query = torch.where(draws.chance(BEYOND_END_SHARE, batch) | ~within.any(1), behind, query)
    return gap, (query - gap).clamp(min=0), query, end


def _slices_with_target(draws: RandomDraws, planes: Planes) -> torch.Tensor:
    """Of each row the height (B,) of a plane that shows the target."""
    return _random_height(draws, planes.present.flatten(2).any(2))


def _random_height(draws: RandomDraws, possible: torch.Tensor) -> torch.Tensor:
    """Of each row of `possible` (B, 2 * REACH + 1) the height of one, (B,); any where none is."""
    return (possible.float() + 1e-9).multinomial(1, generator=draws.generator)[:, 0] - REACH


def _angle(draws: RandomDraws, batch: int) -> torch.Tensor:
    return torch.where(draws.chance(0.4, batch), draws.uniform(-np.pi, np.pi, batch), draws.normal(0.15, batch))


def _repeat(view: View, heights: torch.Tensor) -> View:
    """The square of a view (S = 1) on planes at `heights` (B, S)."""
    shown = heights.shape[1]
    rest = {name: getattr(view, name) for name in ("centres", "halves", "angles", "bend")}
    return View(heights, **{name: x.expand(-1, shown, *x.shape[2:]) for name, x in rest.items()})


def _concatenated(views: list[View]) -> View:
    names = View.__dataclass_fields__
    return View(**{name: torch.cat([getattr(view, name) for view in views], dim=1) for name in names})


def _first_of_pairs(view: View) -> View:
    """The view of every first row of two, for both."""
    rows = torch.arange(len(view.heights), device=view.heights.device) // 2 * 2
    return View(**{name: getattr(view, name)[rows] for name in View.__dataclass_fields__})
