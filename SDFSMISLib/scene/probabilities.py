"""Probabilities of one structure, slice by slice, packed: a few kilobytes a slice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from SDFSMISLib.wire import pack_array, unpack_array

__all__ = ["Box", "Probabilities"]

Box = tuple[int, int, int, int]  # rows from, to before; columns from, to before


class Probabilities:
    """uint8 slices ``(rows, columns)``, 255 meaning 1, by index; only the box around what is not zero is kept.

    Args:
        shape: (rows, columns) of a slice.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape
        self._packed: dict[int, tuple[Box, bytes]] = {}

    def __contains__(self, index: int) -> bool:
        return index in self._packed

    def __iter__(self) -> Iterator[int]:
        return iter(self._packed)

    def copy(self) -> Probabilities:
        """The same slices; what is put into one later is not in the other."""
        made = Probabilities(self.shape)
        made._packed = dict(self._packed)
        return made

    def put(self, index: int, probability: np.ndarray) -> None:
        """Keeps a slice; raises ValueError for one of another shape or type."""
        if probability.shape != self.shape or probability.dtype != np.uint8:
            raise ValueError(f"{probability.dtype} {probability.shape} was given; uint8 {self.shape} is a slice.")
        rows, columns = np.flatnonzero(probability.any(axis=1)), np.flatnonzero(probability.any(axis=0))
        if not rows.size:
            self._packed[index] = (0, 0, 0, 0), b""
            return
        box = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
        self._packed[index] = box, pack_array(probability[box[0] : box[1], box[2] : box[3]])

    def box(self, indices: Iterable[int]) -> Box | None:
        """The box around all that is not zero in some slices; None where there is nothing."""
        boxes = [box for index in indices if index in self._packed and any(box := self._packed[index][0])]
        if not boxes:
            return None
        return min(b[0] for b in boxes), max(b[1] for b in boxes), min(b[2] for b in boxes), max(b[3] for b in boxes)

    def region(self, index: int, box: Box) -> np.ndarray:
        """A slice inside a box that holds all of it that is not zero; zeros where there is no such slice."""
        region = np.zeros((box[1] - box[0], box[3] - box[2]), dtype=np.uint8)
        (top, bottom, left, right), packed = self._packed.get(index, ((0, 0, 0, 0), b""))
        if packed:
            part = unpack_array(packed, (bottom - top) * (right - left))
            region[top - box[0] : bottom - box[0], left - box[2] : right - box[2]] = part
        return region
