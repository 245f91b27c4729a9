"""Painted planes of a labelmap: which slices, along which axes, a user has painted.

A labelmap says which voxels are painted, not in which view. A structure painted on one axial and one sagittal slice
leaves paint on every axial slice that the sagittal one crosses, a line on each; those slices were not painted. Here the
planes are told apart by the voxels that they alone explain.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from SDFSMISLib.images.labelmap import bounding_box

__all__ = ["Plane", "painted_planes"]

MIN_SINGLE = 0.3  # share of a plane's paint without painted neighbours on either side, of a plane painted by itself
MIN_CUT = 0.45  # area of a block's end slices, in areas of its largest one, that means painting and not anatomy
CUT_RATIO = 1.5  # by which that share must be above those on the other axes,
BLOCK_RATIO = 0.5  # or else the block's length on that axis, in shares of its lengths on the others
THIN = 0.25  # the longest row of painted slices on one axis, as a share of that on the next, that means single slices


class Plane(NamedTuple):
    """One slice of a volume: its array axis, 0 to 2, and its index, from 0."""

    axis: int
    index: int  # type: ignore[assignment]  # tuples have a method of that name, which planes do without


def painted_planes(mask: np.ndarray, default_axis: int) -> list[Plane]:
    """The planes that were painted, sorted; together they contain every painted voxel.

    Planes without painted neighbours are found first, those that explain most voxels before the others. The rest is
    adjacent slices, or a structure painted as a whole: slices of one axis, on which that block ends abruptly (as slices
    do, and anatomy does not), or on which it is by far the thinnest, or else `default_axis`.

    Args:
        mask: bool (slices, height, width), the painted voxels of one label.
        default_axis: axis of the slices if the paint does not tell.

    >>> mask = np.zeros((16, 16, 16), dtype=bool)
    >>> mask[8, 3:13, 3:13] = mask[3:13, 3:13, 5] = True  # an axial and a sagittal slice
    >>> painted_planes(mask, default_axis=0)
    [Plane(axis=0, index=8), Plane(axis=2, index=5)]
    """
    box = bounding_box(mask)
    if box is None:
        return []
    inside = mask[box]
    borders = [(side.start == 0, side.stop == full) for side, full in zip(box, mask.shape, strict=True)]
    planes = _single_planes(inside, default_axis)
    rest = inside.copy()
    for axis, index in planes:
        np.moveaxis(rest, axis, 0)[index] = False
    if rest.any():
        axis = _block_axis(rest, planes, borders, default_axis)
        block = {Plane(axis, int(index)) for index in np.flatnonzero(_areas(rest, axis))}
        planes = [*block, *(plane for plane in planes if _has_paint_outside(inside, plane, block))]
    return sorted({Plane(axis, index + box[axis].start) for axis, index in planes})


def _single_planes(mask: np.ndarray, default_axis: int) -> list[Plane]:
    """Planes that have no painted neighbours but for lines of crossing ones, in the order of what they explain; of
    those that explain as much, one of the default axis comes first."""
    single = [mask & ~_neighbours(mask, axis) for axis in range(3)]
    counts = [_areas(one, axis) for axis, one in enumerate(single)]
    allowed = [counts[axis] >= MIN_SINGLE * np.maximum(_areas(mask, axis), 1) for axis in range(3)]
    places = np.stack(np.nonzero(single[0] | single[1] | single[2]))
    marked = [one[tuple(places)] for one in single]
    planes: list[Plane] = []
    while True:
        best = [int(np.argmax(np.where(allowed[axis], counts[axis], 0))) for axis in range(3)]
        gains = [int(counts[axis][best[axis]]) if allowed[axis][best[axis]] else 0 for axis in range(3)]
        axis = max(range(3), key=lambda one: (gains[one], one == default_axis))
        if not gains[axis]:
            return planes
        planes.append(Plane(axis, best[axis]))
        on_plane = places[axis] == best[axis]
        for other in range(3):
            explained = places[other][on_plane & marked[other]]
            counts[other] = counts[other] - np.bincount(explained, minlength=len(counts[other]))
            marked[other] = marked[other][~on_plane]
        places = places[:, ~on_plane]


def _neighbours(mask: np.ndarray, axis: int) -> np.ndarray:
    """Bool of the same shape: whether one of the two neighbours along ``axis`` is in the mask."""
    moved = np.moveaxis(mask, axis, 0)
    found = np.zeros_like(moved)
    found[1:] |= moved[:-1]
    found[:-1] |= moved[1:]
    return np.moveaxis(found, 0, axis)


def _block_axis(mask: np.ndarray, removed: list[Plane], borders: list[tuple[bool, bool]], default_axis: int) -> int:
    """The axis along which slices of a block of paint were painted; the planes that were removed from it leave gaps."""
    cuts, lengths = [], []
    for axis in range(3):
        areas = _areas(mask, axis)
        for gap in sorted(index for other, index in removed if other == axis and 0 < index < len(areas) - 1):
            areas[gap] = min(areas[gap - 1], areas[gap + 1])
        edges = np.flatnonzero(np.diff(np.concatenate(([False], areas > 0, [False])).astype(np.int8)))
        starts, stops = edges[::2], edges[1::2] - 1
        lengths.append(int((stops - starts).max()) + 1)
        at_start, at_stop = borders[axis]  # where the scan ends, so does anatomy
        ends = [*areas[starts[1:] if at_start else starts], *areas[stops[:-1] if at_stop else stops]]
        cuts.append(min(ends, default=0) / areas.max())
    first, second, third = sorted(range(3), key=lambda axis: -cuts[axis])
    is_thinner = lengths[first] <= BLOCK_RATIO * min(lengths[second], lengths[third])
    if cuts[first] >= MIN_CUT and (cuts[first] >= CUT_RATIO * cuts[second] or is_thinner):
        return first
    shortest, following = sorted(lengths)[:2]
    if shortest < following and (shortest == 1 or shortest <= THIN * following):
        return lengths.index(shortest)
    return default_axis


def _has_paint_outside(mask: np.ndarray, plane: Plane, block: set[Plane]) -> bool:
    """Whether a plane explains voxels that the planes of a block do not."""
    paint = np.moveaxis(mask, plane.axis, 0)[plane.index].copy()
    others = [axis for axis in range(3) if axis != plane.axis]
    for axis, index in block:
        if axis == plane.axis:
            return plane not in block
        np.moveaxis(paint, others.index(axis), 0)[index] = False
    return bool(paint.any())


def _areas(mask: np.ndarray, axis: int) -> np.ndarray:
    """Voxels of the mask in each slice along an axis."""
    return np.count_nonzero(mask, axis=tuple(other for other in range(3) if other != axis))
