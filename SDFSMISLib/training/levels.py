"""Which slice of one scan shows the level of a slice of another scan, without any label.

A few slices of the one are registered onto slices of the other; levels are then taken to lie on a line, the one along
which what was registered looks most alike. Scans of other anatomies look alike along no line, and are no partners.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from SDFSMISLib.inference.registration import AIR, body, carried, displacement
from SDFSMISLib.training.slices import SliceKey
from SDFSMISLib.training.volumes import TrainingVolume

__all__ = ["Levels", "Pairs", "matched", "paired"]

SIDE = 64  # of the grid on which bodies are compared
PROBES = 8  # slices of the one scan, and twice as many of the other
LEAST_LIKENESS = 0.65  # mean correlation along the line; abdomens reach 0.8 to 0.95, noise that is bent to fit 0.55
SCALES = tuple(np.round(np.arange(0.75, 1.3, 0.05), 2).tolist())  # of mm along the axis
HEIGHTS = 48  # that are tried
LEAST_SHARED = 4  # probes that lie within the other scan
PARTNERS = 3  # scans that each one is compared with


@dataclass(frozen=True)
class Levels:
    """Slice `i` of one scan shows the level of slice `offset + slope * i` of another.

    Attributes:
        likeness: mean correlation of what was compared, -1 to 1.
        count: slices of the other scan.
    """

    offset: float
    slope: float
    likeness: float
    count: int

    def at(self, index: int) -> int | None:
        """The other scan's slice at the level of slice `index`; None where it lies outside."""
        there = round(self.offset + self.slope * index)
        return there if 0 <= there < self.count else None


Pairs = Mapping[tuple[str, str], Levels]
"""By the names of two scans how their slices belong together."""


def paired(volumes: Sequence[TrainingVolume], told: Callable[[int], None] = lambda _: None) -> Pairs:
    """Levels of scans and their partners, a few for each, of the same group and plane.

    Args:
        volumes: scans, no synthetic ones.
        told: called before each scan with the number of those that are done.
    """
    pairs: dict[tuple[str, str], Levels] = {}
    for number, one in enumerate(volumes):
        told(number)
        others = [*volumes[number + 1 :], *volumes[:number]]
        for other in [other for other in others if _is_like(one, other)][:PARTNERS]:
            levels = matched(one, other)
            if levels is not None:
                pairs[one.name, other.name] = levels
    return pairs


def _is_like(one: TrainingVolume, other: TrainingVolume) -> bool:
    assert one.main is not None and other.main is not None, "synthetic volumes are not compared"
    return (one.group, one.main.plane) == (other.group, other.main.plane)


def matched(one: TrainingVolume, other: TrainingVolume) -> Levels | None:
    """How slices of `one` and of `other` along their main axes, which lie in the same plane, belong together; None
    where they do not."""
    assert one.main is not None and other.main is not None, "synthetic volumes are not compared"
    axis, other_axis = one.main.number, other.main.number
    backwards = one.main.rising != other.main.rising
    mine = _probes(one, axis, PROBES)
    theirs = _probes(other, other_axis, 2 * PROBES)
    if min(len(mine), len(theirs)) < LEAST_SHARED:
        return None
    scores = np.array([[_score(a, b) for b in theirs.values()] for a in mine.values()])
    best: Levels | None = None
    for offset, slope in _lines(one, other, axis, other_axis, backwards):
        levels = Levels(offset, slope, 0.0, other.maps[0].shape[other_axis])
        likeness = _along(levels, np.array(list(mine)), np.array(list(theirs)), scores)
        if likeness > (best.likeness if best else LEAST_LIKENESS):
            best = Levels(offset, slope, likeness, levels.count)
    return best


def _probes(volume: TrainingVolume, axis: int, most: int) -> dict[int, torch.Tensor]:
    """Bodies (SIDE, SIDE) in [-1, 1] of slices that are spread evenly over those that show one, by slice."""
    assert volume.image is not None
    shown = np.flatnonzero((np.moveaxis(volume.image, axis, 0) > AIR).any(axis=(1, 2)))
    if not len(shown):
        return {}
    found = {}
    for index in np.unique(shown[np.linspace(0, len(shown) - 1, most + 2).round().astype(int)[1:-1]]).tolist():
        key = SliceKey(volume, axis, index, 0, ())
        image = key.image().astype(np.float32)
        found[index] = body(image, key.spacing).to_grid(image, SIDE, -1.0)
    return found


def _score(moving: torch.Tensor, fixed: torch.Tensor) -> float:
    """Correlation of a slice that was registered onto another, -1 to 1."""
    moved = carried(moving[None], displacement(moving, fixed)[None])[0]
    pair = torch.stack([moved.flatten(), fixed.flatten()])
    pair = pair - pair.mean(1, keepdim=True)
    norms = pair.norm(dim=1).clamp(min=1e-6)
    return float((pair[0] * pair[1]).sum() / (norms[0] * norms[1]))


def _lines(
    one: TrainingVolume, other: TrainingVolume, axis: int, other_axis: int, backwards: bool
) -> Iterator[tuple[float, float]]:
    """(offset, slope) of all lines that are tried: bodies of several lengths, at every height."""
    here, there = one.maps[0].shape[axis], other.maps[0].shape[other_axis]
    per_slice = one.spacing[axis] / other.spacing[other_axis] * (-1 if backwards else 1)
    for scale in SCALES:
        slope = per_slice * scale
        for centre in np.linspace(0, there - 1, min(there, HEIGHTS)):
            yield float(centre - slope * (here - 1) / 2), float(slope)


def _along(levels: Levels, mine: np.ndarray, theirs: np.ndarray, scores: np.ndarray) -> float:
    """Mean score of a line, at probes of the other scan's that lie on it or beside it; -1 where few do."""
    places = levels.offset + levels.slope * mine
    inside = (places >= 0) & (places <= levels.count - 1)
    if inside.sum() < LEAST_SHARED:
        return -1.0
    seen = [np.interp(place, theirs, row) for place, row in zip(places[inside], scores[inside], strict=True)]
    return float(np.mean(seen))
