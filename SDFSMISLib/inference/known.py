"""What painted planes tell of other slices of their scan: lines where they cross them, and strokes on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from SDFSMISLib.slices import SliceStack, place_in_slice
from SDFSMISLib.support import SupportSlice


@dataclass(frozen=True, eq=False)
class KnownPixels:
    """What is known of one slice.

    Attributes:
        known: bool canonical (rows, columns).
        inside: bool canonical (rows, columns): the known pixels that show the structure.
    """

    known: np.ndarray
    inside: np.ndarray

    def apply(self, probability: np.ndarray) -> np.ndarray:
        """A probability, uint8 canonical (rows, columns), that agrees with what is known."""
        held = probability.copy()
        held[self.known] = 255 * self.inside[self.known].astype(np.uint8)
        return held


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
        >>> planes.on(1, 2).inside.astype(int).tolist()
        [[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
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
        known = np.zeros(self._scan.native_shape, dtype=bool)
        inside = np.zeros(self._scan.native_shape, dtype=bool)
        for painted in self._crossing.get(label, ()):
            across = place_in_slice(self._axis, painted.plane.axis)
            line = painted.mask(label).take(index, axis=across)
            known_line = np.ones_like(line) if painted.known is None else painted.known.take(index, axis=across)
            place = (slice(None),) * place_in_slice(painted.plane.axis, self._axis) + (painted.index,)
            inside[place] = np.where(known_line, line, inside[place])
            known[place] |= known_line
        for painted in strokes:
            assert painted.known is not None
            inside = np.where(painted.known, painted.mask(label), inside)
            known |= painted.known
        turn = self._scan.plane.orientation.apply
        return KnownPixels(turn(known), turn(inside))

    def shown_on(self, label: int) -> list[int]:
        """Sorted indices of the slices on which a crossing plane shows the label."""
        if label not in self._shown:
            shown = np.zeros(self._scan.count, dtype=bool)
            for painted in self._crossing.get(label, ()):
                shown |= painted.mask(label).any(axis=1 - place_in_slice(self._axis, painted.plane.axis))
            self._shown[label] = np.flatnonzero(shown).tolist()
        return self._shown[label]
