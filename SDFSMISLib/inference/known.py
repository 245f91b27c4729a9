"""What painted planes tell of other slices of their scan: lines where they cross them, and strokes on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from SDFSMISLib.images.fusion import Error, spread_errors
from SDFSMISLib.slices import SlicePlane, SliceStack, place_in_slice
from SDFSMISLib.support import SupportSlice


@dataclass(frozen=True, eq=False)
class KnownPixels:
    """What is known of one slice.

    Attributes:
        lines: where planes of other axes cross it: axis (0 rows, 1 columns) and index of each line, and bool along it
            where it is known, and where it shows the structure.
        strokes: bool (rows, columns), native: where its own paint is known, and where it shows the structure.
        plane: of the slice.
        shape: (rows, columns) of the native slice.
    """

    lines: tuple[tuple[int, int, np.ndarray, np.ndarray], ...]
    strokes: tuple[tuple[np.ndarray, np.ndarray], ...]
    plane: SlicePlane
    shape: tuple[int, int]

    def map(self) -> np.ndarray:
        """float32 canonical (rows, columns): 1 inside of the structure, -1 outside, 0 where nothing is known."""
        told_of = np.zeros(self.shape, dtype=np.float32)
        for axis, index, told, shown in self.lines:
            np.moveaxis(told_of, axis, 0)[index][told] = 2 * shown[told] - 1.0
        for told, shown in self.strokes:
            told_of[told] = 2 * shown[told] - 1.0
        return self.plane.orientation.apply(told_of)

    @property
    def is_whole(self) -> bool:
        """Whether one of the lines is known from end to end."""
        return any(known.all() for _, _, known, _ in self.lines)

    def cut(self, mask: np.ndarray) -> float:
        """The longest of the lines through a mask, bool canonical (rows, columns), as a share of the longest one that
        is parallel to it; 0 if no line shows the structure."""
        drawn = self.plane.orientation.undo(mask)
        shares = [inside.sum() / max(drawn.sum(axis=1 - axis).max(), 1) for axis, _, _, inside in self.lines]
        return float(max(shares, default=0))

    def apply(self, probability: np.ndarray) -> np.ndarray:
        """A probability, uint8 canonical (rows, columns), that agrees with what is known, and is corrected around the
        lines (see `spread_errors`)."""
        values = self.plane.orientation.undo(probability).astype(np.float32) / 255
        errors = []
        for axis, index, known, inside in self.lines:
            error = np.where(known, inside - values.take(index, axis=axis), np.float32(0))
            errors.append(Error(axis, index, error, None if known.all() else known))
        spread_errors(values, errors, self.plane.spacing)
        for axis, index, known, inside in self.lines:
            np.moveaxis(values, axis, 0)[index][known] = inside[known]
        for known, inside in self.strokes:
            values[known] = inside[known]
        return self.plane.orientation.apply(np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8))


class KnownPlanes:
    """What the painted planes of a scan tell of the slices along one axis.

    A plane of another axis crosses each of the slices in a line. A partly known slice of the same axis (see
    `SupportSlice.known`) tells of its strokes. Where planes disagree, the later one counts.

    Args:
        scan: the slices.
        support: painted slices of each label, of any scan and axis.

    Example:
        >>> from SDFSMISLib import SupportSet, Volume
        >>> from SDFSMISLib.images.geometry import Geometry
        >>> grid = Geometry((4, 4, 4), (1.0, 1.0, 1.0), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
        >>> mask = np.zeros((4, 4, 4), dtype=np.uint8)
        >>> mask[1:3, 1:3, 2] = 1
        >>> scan = Volume(mask.astype(np.float32), grid)
        >>> support = SupportSet.from_labelmap(scan, Volume(mask, grid), axis=2, slices=[2])
        >>> planes = KnownPlanes(SliceStack.of(scan, axis=0), {1: support.for_label(1)})
        >>> planes.on(1, 2).apply(np.zeros((4, 4), dtype=np.uint8))[1].tolist()
        [209, 231, 255, 231]
        >>> planes.shown_on(1)
        [1, 2]
    """

    def __init__(self, scan: SliceStack, support: Mapping[int, Sequence[SupportSlice]]) -> None:
        self._scan = scan
        self._axis = scan.plane.axis
        self._shown: dict[int, list[int]] = {}
        of_scan = {
            label: [one for one in painted if one.plane.scan == scan.plane.scan] for label, painted in support.items()
        }
        self._crossing = {
            label: [one for one in painted if one.plane.axis != self._axis] for label, painted in of_scan.items()
        }
        self._strokes = {
            label: [one for one in painted if one.plane.axis == self._axis and one.known is not None]
            for label, painted in of_scan.items()
        }

    def on(self, label: int, index: int) -> KnownPixels | None:
        """What is known of a slice; None if nothing is."""
        strokes = [one for one in self._strokes.get(label, ()) if one.index == index]
        if not strokes and not self._crossing.get(label):
            return None
        lines = []
        for painted in self._crossing.get(label, ()):
            across = place_in_slice(self._axis, painted.plane.axis)
            inside = painted.mask(label).take(index, axis=across)
            known = np.ones_like(inside) if painted.known is None else painted.known.take(index, axis=across)
            lines.append((place_in_slice(painted.plane.axis, self._axis), painted.index, known, inside))
        drawn = [(one.known, one.mask(label)) for one in strokes if one.known is not None]
        return KnownPixels(tuple(lines), tuple(drawn), self._scan.plane, self._scan.native_shape)

    def shown_on(self, label: int) -> list[int]:
        """Sorted indices of the slices on which a crossing plane shows the label."""
        if label not in self._shown:
            shown = np.zeros(self._scan.count, dtype=bool)
            for painted in self._crossing.get(label, ()):
                shown |= painted.mask(label).any(axis=1 - place_in_slice(self._axis, painted.plane.axis))
            self._shown[label] = np.flatnonzero(shown).tolist()
        return self._shown[label]
