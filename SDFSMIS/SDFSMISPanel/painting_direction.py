"""Painting direction: along which axis single slices are painted, and whether some lie across others."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from slicer.i18n import tr as _

from SDFSMISLib.scene import Painting

__all__ = ["painted_axes", "two_directions"]

FEW = 0.25  # planes painted along an axis, as a share of those along the next, that make a painting of few slices
ALMOST_ALL = 0.98  # of the painted voxels, that lie in two planes which cross


def two_directions(painting: Painting) -> str:
    """What is wrong where slices of more than one direction are painted, and what to do; "" where nothing is."""
    by_axis: dict[int, list[str]] = {}
    for label, name in painting.names.items():
        for axis in painted_axes(painting.labels.voxels == label):
            by_axis.setdefault(axis, []).append(name)
    if len(by_axis) < 2:
        return ""
    return _(
        "Slices of two directions are painted ({places}). Paint all in one direction, or untick a structure."
    ).format(places=_listed(painting, by_axis))


def painted_axes(mask: np.ndarray) -> tuple[int, ...]:
    """The axes along which a bool mask ``(slices, height, width)`` is painted: one where a few slices are, two where a
    slice lies across another, none where a whole structure is painted, or nothing."""
    counts = [mask.sum(axis=tuple(other for other in range(3) if other != axis)) for axis in range(3)]
    total = int(counts[0].sum())
    if total == 0:
        return ()
    planes = [int(np.count_nonzero(count)) for count in counts]
    order = np.argsort(planes, kind="stable").tolist()
    if planes[order[0]] <= max(1, FEW * planes[order[1]]):
        return (order[0],)
    for one in range(3):
        for other in range(one + 1, 3):
            first, second = int(counts[one].argmax()), int(counts[other].argmax())
            both = np.take(np.take(mask, [first], axis=one), [second], axis=other).sum()
            covered = int(counts[one][first]) + int(counts[other][second]) - int(both)
            if covered >= ALMOST_ALL * total:
                return one, other
    return ()


def _listed(painting: Painting, by_axis: Mapping[int, list[str]]) -> str:
    return "; ".join(f"{painting.geometry.plane(axis)}: {', '.join(names)}" for axis, names in sorted(by_axis.items()))
