"""What several painted slices of one axis tell of a structure's shape: between them, and behind the outermost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import center_of_mass, distance_transform_edt, shift

from SDFSMISLib.images.labelmap import bounding_box
from SDFSMISLib.slices import SliceStack

if TYPE_CHECKING:
    from SDFSMISLib.inference.propagate import Track

TAPER = 2.0  # how much faster than between painted slices a structure may shrink behind the last one
TAPER_GAP_MM = 5.0  # least distance of the painted slices that tell it
THIN = 0.5  # depth of a mask, as a share of a disc's of the same area, below which it is a sheet
FORETOLD = 0.8  # share of a sheet's last painted mask that the painted slices behind it must have told in the same way
DOUBT_MM = 1.0  # between painted slices, distance from the expected border at which the log odds are 1: this,
DOUBT_SIZE = 0.02  # a share of the structure's size,
DOUBT_CHANGE = 0.4  # and, farthest from both slices, half this share of the change from one to the other
MOST_LOG_ODDS = 9.0  # that the expected border gives
EXPECTED_WEIGHT = 0.3  # of these log odds, in those of the networks, while a track has the structure
LOST_SHARE = 0.5  # area, as a share of the expected one, below which a track has lost the structure,
FAINT = 0.02  # if any probability is above this; else the structure is absent there


@dataclass(frozen=True, eq=False)
class Taper:
    """How far a structure can reach behind the outermost of several painted slices, by how it shrinks towards it.

    The signed distance from its border, which changes from slice to slice, goes on to change behind the last painted
    slice: where it falls, `TAPER` times as fast, since a ball shrinks the faster the nearer its end is. This holds for
    compact structures. It does not for a thin sheet that moves from slice to slice: there the two painted slices behind
    the last one have to foretell that one's mask.

    Attributes:
        border: distance from the border on the last painted slice, mm, above 0 inside; float32 canonical (rows,
            columns).
        change: of it, in mm a slice. A fall of one pixel in the whole gap counts as an error of painting.
    """

    border: np.ndarray
    change: np.ndarray

    @classmethod
    def of(cls, track: Track, scan: SliceStack) -> Taper | None:
        """None for a track towards another painted slice, and unless two slices were painted behind its start, one of
        them at least `TAPER_GAP_MM` away, that foretell most of the start's mask if this is a sheet: two slices alone
        may lie on either side of a waist."""
        gaps = {abs(track.first - index): mask for index, mask in track.behind.items()}
        if track.gap is not None or len(gaps) < 2 or max(gaps) * scan.plane.thickness < TAPER_GAP_MM:
            return None
        near, far, *_ = sorted(gaps)
        gap = min(gap for gap in gaps if gap * scan.plane.thickness >= TAPER_GAP_MM)
        border = _border_distance(track.mask, scan.spacing)
        borders = {one: _border_distance(gaps[one], scan.spacing) for one in {near, far, gap}}
        area = np.count_nonzero(track.mask)
        if border.max() < THIN * math.sqrt(area * math.prod(scan.spacing) / math.pi):
            foretold = borders[near] + (borders[near] - borders[far]) * near / (far - near) > 0
            if np.count_nonzero(foretold & track.mask) < FORETOLD * area:
                return None
        change = border - borders[gap]
        return cls(border, np.where(change < 0, np.minimum(TAPER * change + min(scan.spacing), 0), change) / gap)

    def reaches(self, distance: int) -> np.ndarray:
        """Where the structure can be, so many slices behind the last painted one: bool canonical (rows, columns)."""
        return self.border + self.change * distance > 0


@dataclass(frozen=True, eq=False)
class Between:
    """Where a structure is likely to be between two painted slices, if its shape changes evenly.

    The signed distance from its border is interpolated. If the two masks are more alike when moved onto each other, no
    farther than the slices are apart, the shape in between moves too: the structure runs obliquely.

    Attributes:
        box: the part of the slices where the structure can be: around both masks, as far as its size and half the
            distance of the painted slices reach.
        borders: distance from the border on the painted slices, mm, above 0 inside; float32 canonical (rows, columns),
            of the box.
        move: from the first mask to the second, (rows, columns), in whole pixels: a line one pixel wide stays one.
        size: of the structure, mm.
        likeness: Dice coefficient of the two masks, moved onto each other, 0 to 1.
    """

    box: tuple[slice, ...]
    borders: tuple[np.ndarray, np.ndarray]
    move: tuple[int, int]
    size: float
    likeness: float

    @classmethod
    def of(cls, track: Track, scan: SliceStack) -> Between | None:
        """None for a track that leads to no painted slice, and if the masks share nothing: they may be two parts."""
        if track.gap is None or track.ahead is None:
            return None
        masks = track.mask, track.ahead
        size = math.sqrt(max(np.count_nonzero(mask) for mask in masks) * math.prod(scan.spacing))
        extent = bounding_box(masks[0] | masks[1])
        assert extent is not None, "both masks show the structure"
        distance = track.gap * scan.plane.thickness
        margins = [math.ceil((size + distance / 2) / pixel) for pixel in scan.spacing]
        box = tuple(slice(max(one.start - more, 0), one.stop + more) for one, more in zip(extent, margins, strict=True))
        first, second = (_border_distance(mask[box], scan.spacing) for mask in masks)
        rows, columns = (
            np.rint(np.subtract(center_of_mass(track.ahead), center_of_mass(track.mask))).astype(int).tolist()
        )
        still, moved = (_overlap(_moved(first, way) > 0, second > 0) for way in ((0, 0), (rows, columns)))
        is_oblique = moved > still and math.hypot(rows * scan.spacing[0], columns * scan.spacing[1]) <= distance
        move, likeness = ((rows, columns), moved) if is_oblique else ((0, 0), still)
        return cls(box, (first, second), move, size, likeness) if likeness else None

    def combine(self, probability: np.ndarray, share: float, threshold: float) -> np.ndarray:
        """A probability, uint8 canonical (rows, columns), and where the structure is expected, as one probability.

        If the networks find much less of the structure than expected, they have lost it, and do not count; if they find
        no trace of it, it is absent.

        Args:
            share: of the way from the first painted slice to the second, 0 to 1.
            threshold: see `run_propagate`.
        """
        values = probability[self.box].astype(np.float32) / 255
        way = round(share * self.move[0]), round(share * self.move[1])
        first = _moved(self.borders[0], way)
        second = _moved(self.borders[1], (way[0] - self.move[0], way[1] - self.move[1]))
        border = (1 - share) * first + share * second
        doubt = DOUBT_MM + DOUBT_SIZE * self.size + DOUBT_CHANGE * min(share, 1 - share) * abs(first - second)
        there = border > -doubt
        if there.any() and values[there].max() < FAINT:
            return np.zeros_like(probability)
        # Masks that are little alike leave it open where the structure is, not where it is not.
        expected = np.clip(border / doubt, -MOST_LOG_ODDS, MOST_LOG_ODDS) * np.where(border > 0, self.likeness, 1)
        found = np.log((values + 0.01) / (1.01 - values))
        is_lost = np.count_nonzero(values[there] > threshold) < LOST_SHARE * np.count_nonzero(border > 0)
        log_odds = expected if is_lost else found + EXPECTED_WEIGHT * expected
        combined = np.zeros_like(probability)
        combined[self.box] = np.rint(255 / (1 + np.exp(-log_odds)))
        return combined


def _moved(values: np.ndarray, move: tuple[int, int]) -> np.ndarray:
    return values if move == (0, 0) else shift(values, move, order=0, mode="nearest")


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / max(one.sum() + other.sum(), 1))


def _border_distance(mask: np.ndarray, spacing: tuple[float, float]) -> np.ndarray:
    """float32 (rows, columns): distance from the border of a mask that shows something, mm; below 0 outside."""
    inside, outside = distance_transform_edt(mask, spacing), distance_transform_edt(~mask, spacing)
    return (inside - outside).astype(np.float32)
