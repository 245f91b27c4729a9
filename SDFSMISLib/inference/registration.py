"""Registration of slices: displacement fields, masks refined by histograms, painted masks warped onto another scan.

Everything works on 2D slices. `displacement` and `warp` take a mask from a finished slice to its neighbour.
`warped_masks` takes painted masks to every slice of another scan:

1. The body on the slice and on each painted slice is cut out and registered on grids of several sides.
2. The warped masks are averaged over grids and painted slices, weighted by the match (multi-atlas fusion, Iglesias and
   Sabuncu, "Multi-atlas segmentation of biomedical images: a survey", Medical Image Analysis 2015).
3. Each mask is averaged with those of the neighbouring slices, registered onto it, several times.
4. `refine_by_histogram` moves the borders to where the grey levels inside and outside the mask say they are.

The worth of each step was measured: Resources/Documentation/model-card/experiments.md.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from SDFSMISLib.inference.network_images import Region, Shot
from SDFSMISLib.slices import CroppedSlices, SliceStack

# Weight of the field's smoothness; OpenCV's default of 20 is for videos, which move less between images.
SMOOTHNESS = 10.0


def displacement(moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    """For each pixel of `fixed` the displacement to the same anatomy in `moving`.

    Dense inverse search (Kroeger et al., "Fast optical flow using dense inverse search", ECCV 2016) by OpenCV: two to
    three milliseconds on the networks' grid.

    Args:
        moving, fixed: (side, side) in [-1, 1], both of one scan; without `Contrast`, which helps the networks only.

    Returns:
        float32 (side, side, 2): pixels to the right, pixels down.

    Example:
        >>> rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
        >>> moving, fixed = (((rows - 32) ** 2 + (columns - x) ** 2 < 144).float() - 0.5 for x in (32, 36))
        >>> field = displacement(moving, fixed)
        >>> tuple(field.shape)
        (64, 64, 2)
        >>> bool((warp(moving[None], field[None])[0] - fixed).abs().mean() < (moving - fixed).abs().mean() / 3)
        True
    """
    import cv2  # here, so that training on a GPU, which registers in torch, does without it

    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flow.setFinestScale(0)  # the grid is coarse: its full resolution counts
    flow.setVariationalRefinementAlpha(SMOOTHNESS)
    found = flow.calc(_bytes(fixed), _bytes(moving), None)  # type: ignore[call-overload]
    return torch.from_numpy(np.ascontiguousarray(found, dtype=np.float32))


def warp(images: torch.Tensor, displacements: torch.Tensor) -> torch.Tensor:
    """Images (N, side, side) resampled by `displacements` (N, side, side, 2), float32; see `displacement`."""
    side = images.shape[-1]
    places = torch.arange(side, dtype=torch.float32, device=images.device)
    rows, columns = torch.meshgrid(places, places, indexing="ij")
    identity = torch.stack([columns, rows], dim=-1)  # grid_sample counts columns first
    grid = (identity + displacements.to(images.device) + 0.5) * (2 / side) - 1
    moved = F.grid_sample(images[:, None].float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return moved[:, 0]


def _bytes(image: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(((image.float().cpu().numpy() + 1) * 127.5).clip(0, 255).astype(np.uint8))


REACH_MM = 4.0  # sigma of the blurred mask that is the prior: about how far a border can move
WEIGHT = 0.5  # of the grey levels against the prior; below 1 since neighbouring pixels are not independent
EM_ROUNDS = 4
BINS = 32
BIN_BLUR = 1.5  # bins
NOISE = 0.7  # pixels: sigma by which the image is blurred
EVIDENCE_BLUR = 1.0  # pixels: sigma by which the log ratio of the frequencies is blurred
DOUBT = 1e-4  # added to frequencies
SURE = 1e-3  # the prior lies between this and 1 minus this


def refine_by_histogram(image: np.ndarray, mask: np.ndarray, spacing: tuple[float, float]) -> np.ndarray:
    """A rough mask moved to the border that the grey levels around it show; unchanged if it is empty.

    Expectation maximisation with the blurred mask as spatial prior (Van Leemput et al., "Automated model-based tissue
    classification of MR images of the brain", IEEE TMI 1999), with histograms instead of normal distributions. Both
    histograms, inside and outside, are those of this slice, so another scanner or an organ of another brightness does
    no harm. Per pixel, with prior p and grey level g,

        logit(mask) = logit(p) + WEIGHT * blur(log(inside[g] / outside[g]))

    Args:
        image: float (rows, columns) of any range.
        mask: (rows, columns), 0 to 1; pixels above 0.5 set the region that is refined.
        spacing: (row, column) in mm.

    Returns:
        float32 (rows, columns), 0 to 1; zero outside the region around the mask.

    Example:
        >>> rows, columns = np.mgrid[:64, :64]
        >>> truth, rough = ((rows - y) ** 2 + (columns - 32) ** 2 < 144 for y in (32, 35))
        >>> image = np.random.default_rng(0).normal(0, 0.1, truth.shape) + truth
        >>> refined = refine_by_histogram(image, rough.astype(np.float32), (1.0, 1.0)) > 0.5
        >>> bool((refined != truth).sum() < (rough != truth).sum() / 2)
        True
    """
    if not (mask > 0.5).any():
        return mask.astype(np.float32)
    region = Region.around(mask > 0.5, spacing)
    _, window = region.overlap(image.shape)
    near = mask[window].astype(np.float32)
    prior = ndimage.gaussian_filter(near, [REACH_MM / one for one in spacing]).clip(SURE, 1 - SURE)
    odds = np.log(prior / (1 - prior))
    bins = _grey_bins(ndimage.gaussian_filter(image[window].astype(np.float32), NOISE))
    for _ in range(EM_ROUNDS):
        evidence = np.log(_frequencies(bins, near) / _frequencies(bins, 1 - near))[bins]
        near = 1 / (1 + np.exp(-(odds + WEIGHT * ndimage.gaussian_filter(evidence, EVIDENCE_BLUR))))
    refined = np.zeros(mask.shape, dtype=np.float32)
    refined[window] = near
    return refined


def _grey_bins(image: np.ndarray) -> np.ndarray:
    """Histogram bin of each pixel, 0 to BINS - 1; the 1st and 99th percentile lie in the outermost bins."""
    low, high = np.percentile(image, [1, 99])
    return ((image - low) / max(high - low, 1e-3) * (BINS - 1)).clip(0, BINS - 1).round().astype(np.intp)


def _frequencies(bins: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted share of each bin, (BINS,), smoothed."""
    counts = np.bincount(bins.ravel(), weights=weights.ravel(), minlength=BINS)
    counts = ndimage.gaussian_filter1d(counts, BIN_BLUR, mode="nearest")
    return counts / max(counts.sum(), DOUBT) + DOUBT


SIDE = 128  # side of the grid on which bodies are compared
SIDES = (96, 128, 160)  # sides of the grids whose warped masks are averaged
FINEST = max(SIDES)
AIR = -0.9  # darker pixels are not body
REACH = 8  # pixels, on a grid of `SIDE`, around the structure that are compared
BENDING = 0.3  # weight of the mean squared gradient of the displacement, against the correlation
LEAST_PIXELS = 10  # a warped mask with fewer pixels is lost
SHARPNESS = 10.0  # of the weights of painted slices: a score lower by 0.1 counts a third
AGREEMENT_ROUNDS = 3  # of averaging with the neighbours: the number of slices over which masks influence each other


@dataclass(frozen=True, eq=False)
class WarpedMask:
    """A painted mask that was warped onto a slice of another scan.

    Attributes:
        region: the body on that slice, the square that `mask` fills.
        mask: float32 (FINEST, FINEST), 0 to 1.
    """

    region: Region
    mask: torch.Tensor

    def on_slice(self, shape: tuple[int, int]) -> np.ndarray:
        """The mask of a slice of `shape`, float32 canonical (rows, columns), 0 to 1."""
        return self.region.paste(self.region.from_grid(self.mask), shape)


@dataclass(frozen=True, eq=False)
class PaintedBody:
    """The body on a painted slice, on a grid, for registration onto slices of other scans.

    Attributes:
        image: float32 (side, side) in [-1, 1].
        mask: float32 (side, side), 0 or 1.
        near: float32 (side, side), 1 within `REACH` of the mask, where images are compared.
    """

    image: torch.Tensor
    mask: torch.Tensor
    near: torch.Tensor

    @classmethod
    def of(cls, shot: Shot, side: int = SIDE) -> PaintedBody:
        """The body on the slice of `shot`, on a grid of `side` pixels."""
        image, mask = shot.on_grid(body_region(shot.image, shot.spacing), side)
        reach = REACH * side // SIDE
        return cls(image, mask, F.max_pool2d(mask[None], 2 * reach + 1, 1, reach)[0])

    def register_to(self, fixed: torch.Tensor) -> tuple[float, torch.Tensor]:
        """(score, warped mask) of this body registered onto another one, `fixed`, (side, side) in [-1, 1].

        The score is the correlation of the images around the structure minus `BENDING` times the mean squared gradient
        of the displacement: 1 for identical images, -1 if less than `LEAST_PIXELS` of the mask are left.
        """
        moves = displacement(self.image, fixed)
        image, mask, near = warp(torch.stack([self.image, self.mask, self.near]), moves.expand(3, -1, -1, -1))
        if mask.sum() < LEAST_PIXELS:
            return -1.0, mask
        return _correlation(image, fixed, near) - BENDING * bending(moves, near), mask


def bending(moves: torch.Tensor, near: torch.Tensor) -> float:
    """The mean squared gradient of displacements (side, side, 2) along rows and columns, where `near` is above 0.5."""
    along_rows = moves.diff(dim=0).square().sum(-1)[near[1:] > 0.5]
    along_columns = moves.diff(dim=1).square().sum(-1)[near[:, 1:] > 0.5]
    return (
        (float(along_rows.mean()) + float(along_columns.mean())) / 2
        if min(map(len, (along_rows, along_columns)))
        else 0.0
    )


def body_region(image: np.ndarray, spacing: tuple[float, float]) -> Region:
    """The square around the body, all pixels that are not air, of a canonical slice (rows, columns)."""
    return Region.around(image > AIR, spacing, 1.0)


def warped_masks(
    scan: SliceStack, shots: Sequence[Shot], indices: Sequence[int]
) -> Generator[None, None, CroppedSlices]:
    """Painted masks of other scans, warped onto slices of a scan and fused.

    Yields None between slices, so that a caller can stop or do something else; see `Returns` for the value.

    Args:
        scan: the scan to warp onto.
        shots: painted slices of other scans; those with an empty mask are ignored.
        indices: slices of `scan`.

    Returns:
        By slice its mask, float16 canonical (rows, columns), 0 to 1; nothing if nothing is painted.
    """
    shown = [shot for shot in shots if shot.mask.any()]
    painted = {side: [PaintedBody.of(shot, side) for shot in shown] for side in SIDES}
    found: dict[int, WarpedMask] = {}
    for index in indices if shown else ():
        found[index] = _fused_mask(painted, scan.image(index), scan.spacing)
        yield
    yield from _average_with_neighbours(scan, found)
    masks = CroppedSlices(scan.shape, np.float16)
    for index, one in found.items():
        masks[index] = refine_by_histogram(scan.image(index), one.on_slice(scan.shape), scan.spacing).astype(np.float16)
        yield
    return masks


def _fused_mask(
    painted: Mapping[int, Sequence[PaintedBody]], image: np.ndarray, spacing: tuple[float, float]
) -> WarpedMask:
    """The masks of painted slices, given by side of the grid, warped onto a slice and averaged."""
    region = body_region(image, spacing)
    masks = []
    for side, bodies in painted.items():
        fixed = region.to_grid(image, side, -1.0)
        scores, warped = zip(*(one.register_to(fixed) for one in bodies), strict=True)
        weights = torch.softmax(SHARPNESS * torch.tensor(scores), dim=0)
        masks.append(_finest((weights[:, None, None] * torch.stack(warped)).sum(0)))
    return WarpedMask(region, torch.stack(masks).mean(0))


def _finest(image: torch.Tensor) -> torch.Tensor:
    return F.interpolate(image[None, None], size=(FINEST, FINEST), mode="bilinear", align_corners=False)[0, 0]


def _average_with_neighbours(scan: SliceStack, found: dict[int, WarpedMask]) -> Iterator[None]:
    """Replace each mask by the mean of itself and its neighbours', registered onto it, `AGREEMENT_ROUNDS` times."""
    neighbours = {i: [j for j in (i - 1, i + 1) if j in found] for i in found}
    moves: dict[tuple[int, int], torch.Tensor] = {}
    for i, beside in neighbours.items():
        region = found[i].region
        fixed = region.to_grid(scan.image(i), SIDE, -1.0)
        for j in beside:
            moves[j, i] = displacement(region.to_grid(scan.image(j), SIDE, -1.0), fixed)
        yield
    for _ in range(AGREEMENT_ROUNDS):
        masks = {}
        for i, beside in neighbours.items():
            masks[i] = _mean_with_neighbours(found, i, beside, moves, scan.shape)
            yield
        for i, mask in masks.items():
            found[i] = replace(found[i], mask=mask)


def _mean_with_neighbours(
    found: Mapping[int, WarpedMask],
    index: int,
    beside: Sequence[int],
    moves: Mapping[tuple[int, int], torch.Tensor],
    shape: tuple[int, int],
) -> torch.Tensor:
    if not beside:
        return found[index].mask
    region = found[index].region
    theirs = torch.stack([region.to_grid(found[j].on_slice(shape), SIDE, 0.0) for j in beside])
    moved = warp(theirs, torch.stack([moves[j, index] for j in beside]))
    return torch.stack([found[index].mask, *map(_finest, moved)]).mean(0)


def _correlation(one: torch.Tensor, other: torch.Tensor, weights: torch.Tensor) -> float:
    """Weighted correlation coefficient, -1 to 1; 0 if an image is flat."""
    weights = weights / weights.sum()
    one, other = one - (weights * one).sum(), other - (weights * other).sum()
    spread = ((weights * one.square()).sum() * (weights * other.square()).sum()).sqrt()
    return float((weights * one * other).sum() / spread.clamp(min=1e-6))
