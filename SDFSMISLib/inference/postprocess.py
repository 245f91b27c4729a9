"""From probabilities to a labelmap, and the clean-up a user can ask for.

Probabilities are uint8 arrays ``(slices, height, width)``, 255 meaning 1; memory beyond input and output is that of a
few slices, of one mask, or of the box around one structure. Everything but the threshold is off by default: what the
network said is what a user sees.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from SDFSMISLib.cleaning import (
    bounding_box,
    check_smoothing,
    largest_piece,
    resolve_labels,
    smooth_probabilities,
)
from SDFSMISLib.errors import InputError

__all__ = ["Postprocessing", "fill_holes", "largest_component", "resolve_labels", "smooth_probabilities"]

Component = Literal["off", "slice", "volume"]


@dataclass(frozen=True)
class Postprocessing:
    """What is done between the probabilities and the labelmap; all of it is off by default.

    ``smooth_mm`` is the standard deviation in mm of a Gaussian over the probabilities, ``fill_holes`` closes what is
    enclosed within a slice, ``keep_largest`` keeps one component of each label: of each slice or of the volume.
    """

    smooth_mm: float = 0.0
    fill_holes: bool = False
    keep_largest: Component = "off"

    def __post_init__(self) -> None:
        check_smoothing(self.smooth_mm)
        if self.keep_largest not in ("off", "slice", "volume"):
            raise InputError(f"keep_largest was {self.keep_largest!r}; 'off', 'slice' and 'volume' are accepted.")

    def labelmap(
        self,
        probabilities: Mapping[int, np.ndarray],
        threshold: float,
        spacing: tuple[float, float, float],
        axis: int = 0,
    ) -> np.ndarray:
        """The uint16 labelmap ``(slices, height, width)`` of the uint8 probabilities of each label.

        ``spacing`` is ``(x, y, z)`` in mm, ``axis`` the array axis along which a slice is meant. In this order:
        smoothing, threshold and conflicts (:func:`resolve_labels`), the largest component, holes. What a label loses to
        its largest component becomes background; a hole is filled only where no other label lies. The input stays as
        it is.
        """
        if self.smooth_mm > 0:
            probabilities = {
                label: smooth_probabilities(probability, self.smooth_mm, spacing)
                for label, probability in probabilities.items()
            }
        labels = resolve_labels(probabilities, threshold)
        for label in probabilities:
            if self.keep_largest != "off":
                mask = labels == label
                labels[mask & ~largest_component(mask, self.keep_largest, axis)] = 0
            if self.fill_holes:
                labels[fill_holes(labels == label, axis) & (labels == 0)] = label
        return labels


def largest_component(mask: np.ndarray, within: Literal["slice", "volume"] = "volume", axis: int = 0) -> np.ndarray:
    """The largest connected piece of a bool mask; an empty one stays empty.

    ``mask`` is one slice ``(rows, columns)``, or ``(slices, height, width)`` with ``within`` saying whether one piece
    is kept of every slice along ``axis`` or of the volume. Pixels that touch at a corner are connected (8 neighbours
    in a slice, 26 in a volume). Of equal pieces a slice keeps the one that OpenCV numbers first, as the method's
    authors do, and a volume the first in the order of its voxels.
    """
    if mask.ndim == 3 and within == "volume":
        return largest_piece(mask)
    box = bounding_box(mask)
    kept = np.zeros(mask.shape, dtype=bool)
    if box is None:
        return kept
    box = tuple(slice(side.start & ~1, side.stop) for side in box)  # OpenCV numbers pieces by blocks of 2 x 2 pixels
    for source, target in zip(_slices(mask[box], axis), _slices(kept[box], axis), strict=True):
        target[...] = _largest_in_slice(source)
    return kept


def fill_holes(mask: np.ndarray, axis: int = 0) -> np.ndarray:
    """A bool mask ``(slices, height, width)`` or ``(rows, columns)``, with what a slice along ``axis`` encloses filled.

    A hole is background from which no path over pixel edges leads out of the structure's box.
    """
    import cv2

    box = bounding_box(mask)
    filled = mask.copy()
    if box is None:
        return filled
    for piece in _slices(filled[box], axis):
        background = np.pad(~piece, 1, constant_values=True).astype(np.uint8)
        _, pieces = cv2.connectedComponents(background, connectivity=4)
        piece[...] = (pieces != pieces[0, 0])[1:-1, 1:-1]
    return filled


def _largest_in_slice(mask: np.ndarray) -> np.ndarray:
    import cv2

    pixels = np.ascontiguousarray(mask, dtype=np.uint8)
    count, pieces, statistics, _ = cv2.connectedComponentsWithStats(pixels, connectivity=8)
    if count <= 2:  # the background and one piece, or none
        return mask
    return pieces == 1 + int(np.argmax(statistics[1:, cv2.CC_STAT_AREA]))


def _slices(array: np.ndarray, axis: int) -> np.ndarray:
    """A view whose first axis counts slices: of a volume those along ``axis``, of one slice itself."""
    return array[None] if array.ndim == 2 else np.moveaxis(array, axis, 0)
