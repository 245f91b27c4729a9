"""Piece: some voxels of a grid, where all others are zero."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

__all__ = ["Index", "Piece", "box_around"]

Index = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Piece:
    """Voxels ``(slices, height, width)`` of any dtype; ``start`` is the array index of the first one in the grid."""

    start: Index
    voxels: np.ndarray

    @classmethod
    def nothing(cls) -> Piece:
        """No voxel at all."""
        return cls((0, 0, 0), np.zeros((0, 0, 0), dtype=bool))

    @property
    def stop(self) -> Index:
        """The array index behind the last voxel."""
        k, j, i = (first + side for first, side in zip(self.start, self.voxels.shape, strict=True))
        return k, j, i

    def moved(self, shift: Index) -> Piece:
        """The same voxels at another place ``(slices, height, width)`` of the grid; a view."""
        k, j, i = (first + step for first, step in zip(self.start, shift, strict=True))
        return Piece((k, j, i), self.voxels)

    def cut(self, start: Index, stop: Index) -> np.ndarray:
        """The voxels from ``start`` to before ``stop``, zeros included; a copy."""
        shape = tuple(last - first for first, last in zip(start, stop, strict=True))
        region = np.zeros(shape, dtype=self.voxels.dtype)
        low, high = np.maximum(start, self.start), np.minimum(stop, self.stop)
        if (low < high).all():
            into = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))
            out_of = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, self.start, strict=True))
            region[into] = self.voxels[out_of]
        return region

    def trimmed(self) -> Piece:
        """The same without the zeros around it."""
        sides = []
        for axis in range(3):
            filled = np.flatnonzero(self.voxels.any(axis=tuple(other for other in range(3) if other != axis)))
            if not filled.size:
                return Piece((0, 0, 0), np.zeros((0, 0, 0), dtype=self.voxels.dtype))
            sides.append(slice(int(filled[0]), int(filled[-1]) + 1))
        k, j, i = (first + side.start for first, side in zip(self.start, sides, strict=True))
        return Piece((k, j, i), self.voxels[tuple(sides)])

    def only(self, axis: int, indices: Collection[int]) -> Piece:
        """The voxels of some slices along an array axis, without the zeros around them; a copy."""
        inside = [index - self.start[axis] for index in indices if self.start[axis] <= index < self.stop[axis]]
        if not inside:
            return Piece((0, 0, 0), np.zeros((0, 0, 0), dtype=self.voxels.dtype))
        first, along = min(inside), np.moveaxis(self.voxels, axis, 0)
        kept = np.zeros((max(inside) + 1 - first, *along.shape[1:]), dtype=along.dtype)
        for number in inside:
            kept[number - first] = along[number]
        start = list(self.start)
        start[axis] += first
        return Piece((start[0], start[1], start[2]), np.moveaxis(kept, 0, axis)).trimmed()

    def with_slices(self, axis: int, indices: Collection[int], other: Piece) -> Piece:
        """The same, but for some slices along an array axis, which are those of another piece; a copy."""
        start, stop = box_around(self, other.only(axis, indices))
        merged, theirs = self.cut(start, stop), other.cut(start, stop)
        inside = [index - start[axis] for index in indices if start[axis] <= index < stop[axis]]
        np.moveaxis(merged, axis, 0)[inside] = np.moveaxis(theirs, axis, 0)[inside]
        return Piece(start, merged).trimmed()

    def slices(self, axis: int) -> dict[int, np.ndarray]:
        """By index along an array axis: the part ``(rows, columns)`` of each slice that is not all zero; views."""
        along = np.moveaxis(self.voxels, axis, 0)
        return {self.start[axis] + number: part for number, part in enumerate(along) if part.any()}


def box_around(*pieces: Piece) -> tuple[Index, Index]:
    """Start and stop of the smallest box that holds all voxels of the pieces; three zeros each where there are none."""
    held = [piece for piece in pieces if piece.voxels.size]
    if not held:
        return (0, 0, 0), (0, 0, 0)
    k, j, i = np.min([piece.start for piece in held], axis=0).tolist()
    ends = np.max([piece.stop for piece in held], axis=0).tolist()
    return (k, j, i), (ends[0], ends[1], ends[2])
