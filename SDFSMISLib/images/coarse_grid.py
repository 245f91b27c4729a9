"""A coarse grid along the patient's axes, on which finished scans are stored and registered (`SDFSMISLib.examples`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from SDFSMISLib.images.geometry import Geometry
from SDFSMISLib.images.labelmap import label_boxes
from SDFSMISLib.images.volume import SAME_VOXELS, Volume

__all__ = ["CoarseGrid", "coarse_scan", "turn"]

MOST_VOXELS = 1_500_000  # of a new example; a scan with more is stored on a coarser grid
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
EQUAL_SHARES = 1e-3  # shares of a voxel that differ by less count as equal
DITHER = (0.8191725134, 0.6710436067, 0.5497004779)  # multiples of them, modulo 1, are spread evenly in space


def coarse_scan(scan: Volume) -> tuple[np.ndarray, Geometry]:
    """The grey values of a scan on a grid of at most `MOST_VOXELS` along the patient's axes, and that grid.

    Returns:
        uint8 (slices, height, width), 0 and 255 at the ends of the scan's window; and the geometry, in LPS orientation.
    """
    order, flips, turned = scan.geometry.nearest_to_lps()
    grid = CoarseGrid.of(turned)
    grey = grid.mean(scan.window().normalize, turn(scan.voxels, order, flips))
    return np.rint((grey + 1) * np.float32(127.5)).astype(np.uint8), grid.target


@dataclass(frozen=True)
class CoarseGrid:
    """How a scan that is stored in the orientation nearest to LPS comes onto the grid of an example.

    First its own voxels are joined along its own axes, then, if it lies obliquely, those are resampled.

    Attributes:
        source: geometry of the scan.
        coarse: of the joined voxels, along the scan's axes.
        target: of the example.
    """

    source: Geometry
    coarse: Geometry
    target: Geometry

    @classmethod
    def of(cls, source: Geometry) -> CoarseGrid:
        straight = replace(source, direction=IDENTITY)
        if source.displacement(straight) <= SAME_VOXELS:
            source = straight
        spacing = _finest_spacing(source)
        return cls(source, _coarsened(source, spacing), _boxed(source, spacing))

    @property
    def oblique(self) -> bool:
        return self.source.direction != IDENTITY

    def mean(self, normalize: Callable[[np.ndarray], np.ndarray], voxels: np.ndarray) -> np.ndarray:
        """The mean over each voxel of the target, float32: -1 outside the scan.

        ``normalize`` gives float32 in [-1, 1] of a plane of ``voxels`` (slices, height, width).
        """
        weights = self._weights()
        return self._resampled(_weighted_sum(voxels, normalize, weights), outside=-1)

    def labels(self, voxels: np.ndarray) -> np.ndarray:
        """The labels (slices, height, width) on the target."""
        if self.target == self.source:
            return np.ascontiguousarray(voxels)
        found = np.zeros(self.target.shape, voxels.dtype)
        k, j, i = np.ogrid[tuple(map(slice, found.shape))]
        dither = (k * DITHER[0] + j * DITHER[1] + i * DITHER[2]) % 1
        ratio = math.prod(self.source.spacing) / math.prod(self.target.spacing)
        weights, boxes = self._weights(), label_boxes(voxels)
        sizes = np.sum([np.bincount(plane.ravel(), minlength=max(boxes) + 1) for plane in voxels], axis=0)
        for label in sorted(boxes, key=lambda one: (sizes[one], one)):
            box = tuple(slice(int(begin), int(end) + 1) for begin, end in reversed(boxes[label]))
            inside = [weight[:, side] for weight, side in zip(weights, box, strict=True)]
            share = self._resampled(_weighted_sum(voxels[box] == label, np.float32, inside), outside=0)
            free = np.flatnonzero((share > 0) & (found == 0))
            count = min(max(round(sizes[label] * ratio), 1), len(free))
            if count:  # equal shares, as along a thin vessel, are taken evenly in space
                rank = share.ravel()[free] + EQUAL_SHARES * dither.ravel()[free]
                found.ravel()[free[np.argpartition(-rank, count - 1)[:count]]] = label
        return found

    def _weights(self) -> list[np.ndarray]:
        return [_overlaps(fine, few) for fine, few in zip(self.source.shape, self.coarse.shape, strict=True)]

    def _resampled(self, coarse: np.ndarray, outside: float) -> np.ndarray:
        """The joined voxels on the target, linearly; ``outside`` where the scan has none."""
        if not self.oblique:
            return coarse
        import SimpleITK

        image = SimpleITK.GetImageFromArray(coarse)
        image.SetSpacing(self.coarse.spacing)
        image.SetOrigin(self.coarse.origin)
        image.SetDirection(self.coarse.direction)
        target, still = self.target, SimpleITK.Transform(3, SimpleITK.sitkIdentity)
        resampled = SimpleITK.Resample(
            image, target.shape[::-1], still, SimpleITK.sitkLinear, target.origin, target.spacing, IDENTITY, outside
        )
        return SimpleITK.GetArrayFromImage(resampled)


def _finest_spacing(source: Geometry) -> float:
    """The least spacing, mm, that all axes must have for an example to be small enough; 0 if the scan's own will do."""

    def fits(spacing: float) -> bool:
        return math.prod(_boxed(source, spacing).shape) <= MOST_VOXELS

    if fits(0):
        return 0
    low, high = 0.0, (math.prod(source.shape) * math.prod(source.spacing) / MOST_VOXELS) ** (1 / 3)
    while not fits(high):
        low, high = high, 1.25 * high
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _coarsened(grid: Geometry, spacing: float) -> Geometry:
    """The same box in voxels of at least ``spacing`` mm along each axis; the finest that fill it evenly."""
    sides = [
        max(int(side * min(step / spacing, 1) + 1e-6), 1) if spacing else side
        for side, step in zip(grid.shape, reversed(grid.spacing), strict=True)
    ]
    if tuple(sides) == grid.shape:
        return grid
    steps = [step * fine / few for step, fine, few in zip(grid.spacing, grid.shape[::-1], sides[::-1], strict=True)]
    first = [(fine / few - 1) / 2 for fine, few in zip(grid.shape[::-1], sides[::-1], strict=True)]
    origin = (grid.index_to_physical() @ [*first, 1])[:3]
    return Geometry((sides[0], sides[1], sides[2]), (steps[0], steps[1], steps[2]), tuple(origin), grid.direction)


def _boxed(grid: Geometry, spacing: float) -> Geometry:
    """The grid along the patient's axes that contains another one, in voxels of at least ``spacing`` mm.

    An axis between two of the scan's has a spacing between theirs.
    """
    if grid.direction == IDENTITY:
        return _coarsened(grid, spacing)
    axes, steps = np.reshape(grid.direction, (3, 3)), np.asarray(grid.spacing)
    extent = np.abs(axes) @ (steps * grid.shape[::-1])
    own = 1 / np.sqrt(((axes / steps) ** 2).sum(axis=1))
    sides = np.maximum((extent / np.maximum(own, spacing) + 1e-6).astype(int), 1)
    origin = grid.corners().mean(axis=0) - extent / 2 + extent / sides / 2
    return Geometry(tuple(sides[::-1]), tuple(extent / sides), tuple(origin), IDENTITY)


def _overlaps(fine: int, coarse: int) -> np.ndarray:
    """float32 (coarse, fine): which share of each coarse voxel each fine one fills, along one axis.

    >>> (_overlaps(3, 2) * 3).round().tolist()
    [[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]]
    """
    edges = np.arange(coarse + 1) * fine / coarse
    begin, end = np.maximum.outer(edges[:-1], np.arange(fine)), np.minimum.outer(edges[1:], np.arange(fine) + 1)
    return (np.maximum(end - begin, 0) * coarse / fine).astype(np.float32)


def _weighted_sum(
    voxels: np.ndarray, values: Callable[[np.ndarray], np.ndarray], weights: Sequence[np.ndarray]
) -> np.ndarray:
    """float32: the sums of ``values`` of the planes of ``voxels``, with the weights (new, old) of each axis."""
    along, rows, columns = weights
    total = np.zeros((len(along), len(rows), len(columns)), np.float32)
    for index, plane in enumerate(voxels):
        reduced = rows @ values(np.ascontiguousarray(plane)) @ columns.T
        for new in np.flatnonzero(along[:, index]):
            total[new] += along[new, index] * reduced
    return total


def turn(voxels: np.ndarray, order: Sequence[int], flips: Sequence[bool]) -> np.ndarray:
    """The voxels in the orientation that :meth:`.Geometry.nearest_to_lps` tells; a view."""
    return voxels.transpose(order)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
