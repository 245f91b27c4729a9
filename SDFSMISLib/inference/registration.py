"""From a finished slice to its neighbour: dense registration, so that the network need only correct what it brings.

Dense inverse search (Kroeger et al., "Fast optical flow using dense inverse search", ECCV 2016), as OpenCV has it: on
the network's grid it takes two to three milliseconds. What was measured for its settings is in
Resources/Documentation/model-card/experiments.md.

A rough mask moved to where the grey levels of its slice say that the structure is.

Expectation and maximisation with the mask as prior (Van Leemput et al., "Automated model-based tissue classification of
MR images of the brain", IEEE TMI 1999), with histograms in place of normal distributions. Both histograms are the
slice's own, so that another scanner, or an organ of another brightness, does no harm.

What was painted on other scans, brought onto the slices of a scan by registration: atlas registration, slice by
slice.

Bodies are registered on grids of several sides, and masks are averaged over these and over the painted slices, those
that fit better counting more: the fusion of several atlases (Iglesias and Sabuncu, "Multi-atlas segmentation of
biomedical images: a survey", Medical Image Analysis 2015). Neighbouring slices of the scan then come to an agreement,
and the grey levels that are found inside and outside move the border (`greys`). What each step is worth was measured:
Resources/Documentation/model-card/experiments.md.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from SDFSMISLib.inference.network_images import Region, Shot
from SDFSMISLib.slices import SliceStack

SMOOTHNESS = (
    10.0  # weight of the field's smoothness; OpenCV's own 20 is for videos, which move less from image to image
)


def displacement(moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    """Where in `moving` each pixel of `fixed` is found.

    Args:
        moving, fixed: (side, side) in [-1, 1], of one scan, as they are: a region's contrast helps the network, not
            the registration.

    Returns:
        (side, side, 2) float32: pixels to go to the right and down.
    """
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flow.setFinestScale(0)  # the grid is coarse: nothing may be left out
    flow.setVariationalRefinementAlpha(SMOOTHNESS)
    found = flow.calc(_bytes(fixed), _bytes(moving), None)  # type: ignore[call-overload]
    return torch.from_numpy(np.ascontiguousarray(found, dtype=np.float32))


def warp(images: torch.Tensor, displacements: torch.Tensor) -> torch.Tensor:
    """Images (N, side, side) as the slices look like to which `displacements` (N, side, side, 2) belong."""
    side = images.shape[-1]
    places = torch.arange(side, dtype=torch.float32, device=images.device)
    rows, columns = torch.meshgrid(places, places, indexing="ij")
    here = torch.stack([columns, rows], dim=-1)  # grid_sample counts columns first
    grid = (here + displacements.to(images.device) + 0.5) * (2 / side) - 1
    moved = F.grid_sample(images[:, None].float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return moved[:, 0]


def _bytes(image: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(((image.float().cpu().numpy() + 1) * 127.5).clip(0, 255).astype(np.uint8))


REACH_MM = 4.0  # by which a border may be moved, about: sigma of the blurred mask that is the prior
WEIGHT = 0.5  # of the grey levels against the prior, since neighbouring pixels do not tell independently
EM_ROUNDS = 4
BINS = 32
BIN_BLUR = 1.5  # bins
NOISE = 0.7  # pixels: sigma by which the image is blurred
EVIDENCE_BLUR = 1.0  # pixels: sigma by which is blurred what its grey levels tell
DOUBT = 1e-4  # added to frequencies
SURE = 1e-3  # a prior is never surer than that


def refine_by_histogram(image: np.ndarray, mask: np.ndarray, spacing: tuple[float, float]) -> np.ndarray:
    """The mask of a structure after a look at the grey levels around it; unchanged where it is empty.

    Args:
        image: float (rows, columns), of any range.
        mask: (rows, columns), 0 to 1; what is above 0.5 says where to look.
        spacing: (row, column) in mm.

    Returns:
        float32 (rows, columns), 0 to 1, zero outside the region around the mask.
    """
    if not (mask > 0.5).any():
        return mask.astype(np.float32)
    region = Region.around(mask > 0.5, spacing)
    _, here = region.overlap(image.shape)
    near = mask[here].astype(np.float32)
    prior = ndimage.gaussian_filter(near, [REACH_MM / one for one in spacing]).clip(SURE, 1 - SURE)
    odds = np.log(prior / (1 - prior))
    levels = _levels(ndimage.gaussian_filter(image[here].astype(np.float32), NOISE))
    for _ in range(EM_ROUNDS):
        told = np.log(_frequencies(levels, near) / _frequencies(levels, 1 - near))[levels]
        near = 1 / (1 + np.exp(-(odds + WEIGHT * ndimage.gaussian_filter(told, EVIDENCE_BLUR))))
    found = np.zeros(mask.shape, dtype=np.float32)
    found[here] = near
    return found


def _levels(image: np.ndarray) -> np.ndarray:
    """Bins of grey levels, whole numbers from 0 to BINS - 1; what is beyond 1 in 100 at either end goes to the last."""
    low, high = np.percentile(image, [1, 99])
    return ((image - low) / max(high - low, 1e-3) * (BINS - 1)).clip(0, BINS - 1).round().astype(np.intp)


def _frequencies(levels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(BINS,): how frequent each level is, by weight."""
    counts = np.bincount(levels.ravel(), weights=weights.ravel(), minlength=BINS)
    counts = ndimage.gaussian_filter1d(counts, BIN_BLUR, mode="nearest")
    return counts / max(counts.sum(), DOUBT) + DOUBT


SIDE = 128  # of the grid on which bodies are registered to be compared
SIDES = (96, 128, 160)  # of those whose results are averaged
FINEST = max(SIDES)
AIR = -0.9  # what is darker is not body
REACH = 8  # pixels of the grid around the structure that are compared
BENDING = 0.3  # weight of the mean squared gradient of the displacement, against the correlation
LEAST_PIXELS = 10
SHARPNESS = 10.0  # of the weights of painted slices: one whose score is lower by 0.1 counts a third
AGREEMENT_ROUNDS = 3  # of agreement: so many slices away lies the furthest that has a say


@dataclass(frozen=True, eq=False)
class WarpedMask:
    """A painted mask as it comes onto a slice of another scan.

    Attributes:
        region: the body on that slice, the square that the mask fills.
        mask: (FINEST, FINEST), 0 to 1.
    """

    region: Region
    mask: torch.Tensor

    def on(self, shape: tuple[int, int]) -> np.ndarray:
        """The mask, float32 canonical (rows, columns), 0 to 1."""
        return self.region.paste(self.region.from_grid(self.mask), shape)


@dataclass(frozen=True, eq=False)
class PaintedBody:
    """A painted slice's body on a grid: `image` in [-1, 1], `mask`, and what is `near` it, (side, side) each."""

    image: torch.Tensor
    mask: torch.Tensor
    near: torch.Tensor

    @classmethod
    def of(cls, shot: Shot, side: int = SIDE) -> PaintedBody:
        image, mask = shot.on_grid(body_region(shot.image, shot.spacing), side)
        reach = REACH * side // SIDE
        return cls(image, mask, F.max_pool2d(mask[None], 2 * reach + 1, 1, reach)[0])

    def onto(self, seen: torch.Tensor) -> tuple[float, torch.Tensor]:
        """(score, mask) of this body registered onto another, `seen` (side, side).

        The score is the correlation around the structure, less what was bent for it: 1 is perfect; -1 where the
        structure is lost.
        """
        moves = displacement(self.image, seen)
        image, mask, near = warp(torch.stack([self.image, self.mask, self.near]), moves.expand(3, -1, -1, -1))
        if mask.sum() < LEAST_PIXELS:
            return -1.0, mask
        bending = moves.diff(dim=0).square().sum(-1)[self.near[1:] > 0.5].mean()
        return _correlation(image, seen, near) - BENDING * float(bending), mask


def body_region(image: np.ndarray, spacing: tuple[float, float]) -> Region:
    """The square around what is not air, of a canonical slice (rows, columns); all of it where nothing is."""
    return Region.around(image > AIR, spacing, 1.0)


def warped_masks(
    scan: SliceStack, shots: Sequence[Shot], indices: Sequence[int]
) -> Generator[None, None, dict[int, np.ndarray]]:
    """Painted masks of other scans on each of the slices `indices` of a scan; stops after each, to be asked on.

    Args:
        shots: of which those on which nothing is painted are left out.

    Returns:
        By slice its mask, float16 canonical (rows, columns), 0 to 1; empty where nothing is painted.
    """
    shown = [shot for shot in shots if shot.mask.any()]
    painted = {side: [PaintedBody.of(shot, side) for shot in shown] for side in SIDES}
    found: dict[int, WarpedMask] = {}
    for index in indices if shown else ():
        found[index] = _fused_mask(painted, scan.image(index), scan.spacing)
        yield
    yield from _agree_with_neighbours(scan, found)
    masks = {}
    for index, one in found.items():
        masks[index] = refine_by_histogram(scan.image(index), one.on(scan.shape), scan.spacing).astype(np.float16)
        yield
    return masks


def _fused_mask(
    painted: Mapping[int, Sequence[PaintedBody]], image: np.ndarray, spacing: tuple[float, float]
) -> WarpedMask:
    """By side of the grid the painted slices, on a slice."""
    region = body_region(image, spacing)
    masks = []
    for side, bodies in painted.items():
        seen = region.to_grid(image, side, -1.0)
        scores, warped_masks = zip(*(one.onto(seen) for one in bodies), strict=True)
        weights = torch.softmax(SHARPNESS * torch.tensor(scores), dim=0)
        masks.append(_finest((weights[:, None, None] * torch.stack(warped_masks)).sum(0)))
    return WarpedMask(region, torch.stack(masks).mean(0))


def _finest(image: torch.Tensor) -> torch.Tensor:
    return F.interpolate(image[None, None], size=(FINEST, FINEST), mode="bilinear", align_corners=False)[0, 0]


def _agree_with_neighbours(scan: SliceStack, found: dict[int, WarpedMask]) -> Iterator[None]:
    """Puts in place of each mask the mean of itself and its neighbours', registered onto it; several times over."""
    neighbours = {i: [j for j in (i - 1, i + 1) if j in found] for i in found}
    moves: dict[tuple[int, int], torch.Tensor] = {}
    for i, beside in neighbours.items():
        region = found[i].region
        here = region.to_grid(scan.image(i), SIDE, -1.0)
        for j in beside:
            moves[j, i] = displacement(region.to_grid(scan.image(j), SIDE, -1.0), here)
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
    theirs = torch.stack([region.to_grid(found[j].on(shape), SIDE, 0.0) for j in beside])
    moved = warp(theirs, torch.stack([moves[j, index] for j in beside]))
    return torch.stack([found[index].mask, *map(_finest, moved)]).mean(0)


def _correlation(one: torch.Tensor, other: torch.Tensor, weights: torch.Tensor) -> float:
    """Weighted correlation coefficient, -1 to 1; 0 where an image is flat."""
    weights = weights / weights.sum()
    one, other = one - (weights * one).sum(), other - (weights * other).sum()
    spread = ((weights * one.square()).sum() * (weights * other.square()).sum()).sqrt()
    return float((weights * one * other).sum() / spread.clamp(min=1e-6))
