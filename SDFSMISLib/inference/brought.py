"""What was painted on other scans, brought onto the slices of a scan by registration: atlas registration, slice by
slice.

Bodies are registered on grids of several sides, and masks are averaged over these and over the painted slices, those
that fit better counting more: the fusion of several atlases (Iglesias and Sabuncu, "Multi-atlas segmentation of
biomedical images: a survey", Medical Image Analysis 2015). Neighbouring slices of the scan then come to an agreement,
and the grey levels that are found inside and outside move the border (`greys`). What each step is worth was measured:
Resources/MODEL_CARD.md.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from SDFSMISLib.inference.greys import by_greys
from SDFSMISLib.inference.region import Region
from SDFSMISLib.inference.registration import carried, displacement
from SDFSMISLib.inference.shots import Shot
from SDFSMISLib.slices import SliceStack

__all__ = ["SIDE", "Brought", "PaintedBody", "body", "brought_onto"]

SIDE = 128  # of the grid on which bodies are registered to be compared
SIDES = (96, 128, 160)  # of those whose results are averaged
FINEST = max(SIDES)
AIR = -0.9  # what is darker is not body
REACH = 8  # pixels of the grid around the structure that are compared
BENDING = 0.3  # weight of the mean squared gradient of the displacement, against the correlation
LEAST_PIXELS = 10
SHARPNESS = 10.0  # of the weights of painted slices: one whose score is lower by 0.1 counts a third
ROUNDS = 3  # of agreement: so many slices away lies the furthest that has a say


@dataclass(frozen=True, eq=False)
class Brought:
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
        image, mask = shot.on_grid(body(shot.image, shot.spacing), side)
        reach = REACH * side // SIDE
        return cls(image, mask, F.max_pool2d(mask[None], 2 * reach + 1, 1, reach)[0])

    def onto(self, seen: torch.Tensor) -> tuple[float, torch.Tensor]:
        """(score, mask) of this body registered onto another, `seen` (side, side).

        The score is the correlation around the structure, less what was bent for it: 1 is perfect; -1 where the
        structure is lost.
        """
        moves = displacement(self.image, seen)
        image, mask, near = carried(torch.stack([self.image, self.mask, self.near]), moves.expand(3, -1, -1, -1))
        if mask.sum() < LEAST_PIXELS:
            return -1.0, mask
        bending = moves.diff(dim=0).square().sum(-1)[self.near[1:] > 0.5].mean()
        return _correlation(image, seen, near) - BENDING * float(bending), mask


def body(image: np.ndarray, spacing: tuple[float, float]) -> Region:
    """The square around what is not air, of a canonical slice (rows, columns); all of it where nothing is."""
    return Region.around(image > AIR, spacing, 1.0)


def brought_onto(
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
    found: dict[int, Brought] = {}
    for index in indices if shown else ():
        found[index] = _brought(painted, scan.image(index), scan.spacing)
        yield
    yield from _agree(scan, found)
    masks = {}
    for index, one in found.items():
        masks[index] = by_greys(scan.image(index), one.on(scan.shape), scan.spacing).astype(np.float16)
        yield
    return masks


def _brought(painted: Mapping[int, Sequence[PaintedBody]], image: np.ndarray, spacing: tuple[float, float]) -> Brought:
    """By side of the grid the painted slices, on a slice."""
    region = body(image, spacing)
    masks = []
    for side, bodies in painted.items():
        seen = region.to_grid(image, side, -1.0)
        scores, carried_masks = zip(*(one.onto(seen) for one in bodies), strict=True)
        weights = torch.softmax(SHARPNESS * torch.tensor(scores), dim=0)
        masks.append(_finest((weights[:, None, None] * torch.stack(carried_masks)).sum(0)))
    return Brought(region, torch.stack(masks).mean(0))


def _finest(image: torch.Tensor) -> torch.Tensor:
    return F.interpolate(image[None, None], size=(FINEST, FINEST), mode="bilinear", align_corners=False)[0, 0]


def _agree(scan: SliceStack, found: dict[int, Brought]) -> Iterator[None]:
    """Puts in place of each mask the mean of itself and its neighbours', registered onto it; several times over."""
    neighbours = {i: [j for j in (i - 1, i + 1) if j in found] for i in found}
    moves: dict[tuple[int, int], torch.Tensor] = {}
    for i, beside in neighbours.items():
        region = found[i].region
        here = region.to_grid(scan.image(i), SIDE, -1.0)
        for j in beside:
            moves[j, i] = displacement(region.to_grid(scan.image(j), SIDE, -1.0), here)
        yield
    for _ in range(ROUNDS):
        masks = {}
        for i, beside in neighbours.items():
            masks[i] = _mean_of(found, i, beside, moves, scan.shape)
            yield
        for i, mask in masks.items():
            found[i] = replace(found[i], mask=mask)


def _mean_of(
    found: Mapping[int, Brought],
    index: int,
    beside: Sequence[int],
    moves: Mapping[tuple[int, int], torch.Tensor],
    shape: tuple[int, int],
) -> torch.Tensor:
    if not beside:
        return found[index].mask
    region = found[index].region
    theirs = torch.stack([region.to_grid(found[j].on(shape), SIDE, 0.0) for j in beside])
    moved = carried(theirs, torch.stack([moves[j, index] for j in beside]))
    return torch.stack([found[index].mask, *map(_finest, moved)]).mean(0)


def _correlation(one: torch.Tensor, other: torch.Tensor, weights: torch.Tensor) -> float:
    """Weighted correlation coefficient, -1 to 1; 0 where an image is flat."""
    weights = weights / weights.sum()
    one, other = one - (weights * one).sum(), other - (weights * other).sum()
    spread = ((weights * one.square()).sum() * (weights * other.square()).sum()).sqrt()
    return float((weights * one * other).sum() / spread.clamp(min=1e-6))
