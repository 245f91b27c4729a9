"""Cleaning: from probabilities to labels, without what is too small or too rough.

Probabilities are uint8 arrays ``(slices, height, width)``, 255 meaning 1. It needs numpy and scipy, which 3D Slicer
ships; scipy lets go of the interpreter while it works, so a thread that cleans holds up no other one.

From probabilities to a labelmap, and the clean-up a user can ask for.

Probabilities are uint8 arrays ``(slices, height, width)``, 255 meaning 1; memory beyond input and output is that of a
few slices, of one mask, or of the box around one structure. Everything but the threshold is off by default: what the
network said is what a user sees.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from SDFSMISLib.errors import InputError

BLOCK_VOXELS = 1 << 23  # of a block that is smoothed at once: 32 MiB of float32
GAUSSIAN_REACH = 3.0  # standard deviations
LARGEST_LABEL = np.iinfo(np.uint16).max


@dataclass(frozen=True)
class Cleaning:
    """What is done between the probabilities of a run and its labels; off by default.

    ``smooth_mm`` is the standard deviation in mm of a Gaussian over the probabilities, ``keep_largest`` keeps the
    largest connected piece of each label. Raises :class:`InputError` for a smoothing that is none.
    """

    smooth_mm: float = 0.0
    keep_largest: bool = False

    def __post_init__(self) -> None:
        check_smoothing(self.smooth_mm)

    @property
    def is_off(self) -> bool:
        """Whether it does nothing but what the threshold does."""
        return self.smooth_mm == 0 and not self.keep_largest

    @property
    def reach_mm(self) -> float:
        """How far beyond all that is probable it may find something."""
        return GAUSSIAN_REACH * self.smooth_mm

    def labelmap(
        self, probabilities: Mapping[int, np.ndarray], threshold: float, spacing: tuple[float, float, float]
    ) -> np.ndarray:
        """The uint16 labelmap ``(slices, height, width)`` of the uint8 probabilities of each label.

        ``spacing`` is ``(x, y, z)`` in mm. In this order: smoothing, threshold and conflicts (:func:`resolve_labels`),
        the largest piece. What a label loses to its largest piece becomes background. The input stays as it is.
        """
        if self.smooth_mm > 0:
            probabilities = {
                label: smooth_probabilities(probability, self.smooth_mm, spacing)
                for label, probability in probabilities.items()
            }
        labels = resolve_labels(probabilities, threshold)
        for label in probabilities if self.keep_largest else ():
            mask = labels == label
            labels[mask & ~largest_piece(mask)] = 0
        return labels


def check_smoothing(smooth_mm: float) -> None:
    """Raises :class:`InputError` for a smoothing that is none."""
    if not (math.isfinite(smooth_mm) and smooth_mm >= 0):
        raise InputError(f"A smoothing of {smooth_mm} mm was given; 0 (off) or more millimetres are accepted.")


def resolve_labels(probabilities: Mapping[int, np.ndarray], threshold: float = 0.5) -> np.ndarray:
    """The uint16 labelmap: each voxel gets the most probable of the labels that are above the threshold, else 0.

    ``probabilities`` holds a uint8 array of one shape for each label value (1 to 65535); a tie goes to the lower value.
    ``threshold`` is a probability, 0 to 1 without 1; a voxel must be above it, so that at 0 a voxel of probability 0
    stays empty. Goes slice by slice. Raises :class:`InputError` for another threshold, ValueError for another array.
    """
    if not 0 <= threshold < 1:
        raise InputError(f"The threshold {threshold} was given; a probability from 0 to below 1 is accepted.")
    if not probabilities:
        raise ValueError("No probabilities were given; at least one label is needed.")
    shapes = {probability.shape for probability in probabilities.values()}
    if len(shapes) > 1 or any(probability.dtype != np.uint8 for probability in probabilities.values()):
        raise ValueError(f"Probabilities must be uint8 arrays of one shape; the shapes {sorted(shapes)} were given.")
    if not all(1 <= label <= LARGEST_LABEL for label in probabilities):
        raise ValueError(f"The labels {sorted(probabilities)} were given; 1 to {LARGEST_LABEL} are accepted.")
    limit = math.floor(threshold * 255 + 1e-9)  # byte > limit is the same as byte / 255 > threshold
    labels = np.zeros(shapes.pop(), dtype=np.uint16)
    for index in range(len(labels)):
        best = np.full(labels.shape[1:], limit, dtype=np.uint8)
        for label in sorted(probabilities):
            probability = probabilities[label][index]
            labels[index][probability > best] = label
            np.maximum(best, probability, out=best)
    return labels


def smooth_probabilities(probability: np.ndarray, sigma_mm: float, spacing: tuple[float, float, float]) -> np.ndarray:
    """A Gaussian of ``sigma_mm`` (standard deviation, mm) over uint8 probabilities ``(slices, height, width)``; uint8.

    ``spacing`` is ``(x, y, z)`` in mm, so thick slices mix less than the pixels within them, and not at all where they
    are far apart. It is the probabilities that are smoothed, not the mask, so that the border keeps its place below the
    size of a voxel; corners are rounded, and structures thinner than the Gaussian fade. At the scan's border the last
    voxel is repeated.
    """
    from scipy.ndimage import gaussian_filter

    sigma = tuple(sigma_mm / step for step in reversed(spacing))
    reach = tuple(int(GAUSSIAN_REACH * value + 0.5) for value in sigma)  # as gaussian_filter rounds it
    smooth = np.zeros_like(probability)
    box = bounding_box(probability)
    if box is None:
        return smooth
    box = tuple(
        slice(max(side.start - margin, 0), min(side.stop + margin, extent))
        for side, margin, extent in zip(box, reach, probability.shape, strict=True)
    )
    plane_voxels = (box[1].stop - box[1].start) * (box[2].stop - box[2].start)
    thickness = max(BLOCK_VOXELS // plane_voxels, 2 * reach[0], 1)
    for start in range(box[0].start, box[0].stop, thickness):
        stop = min(start + thickness, box[0].stop)
        low, high = max(start - reach[0], 0), min(stop + reach[0], len(probability))
        block = probability[low:high, box[1], box[2]].astype(np.float32)
        block = gaussian_filter(block, sigma, mode="nearest", truncate=GAUSSIAN_REACH)
        smooth[start:stop, box[1], box[2]] = np.rint(block[start - low : stop - low])
    return smooth


def largest_piece(mask: np.ndarray) -> np.ndarray:
    """The largest connected piece of a bool mask ``(slices, height, width)``; an empty one stays empty.

    Voxels that touch at a corner are connected (26 neighbours). Of equal pieces it is the first in the order of voxels.
    """
    from scipy.ndimage import label

    kept, box = np.zeros(mask.shape, dtype=bool), bounding_box(mask)
    if box is None:
        return kept
    inside = mask[box]
    pieces = np.empty(inside.shape, dtype=np.int32)
    count = label(inside, structure=np.ones((3, 3, 3), dtype=bool), output=pieces)
    sizes = np.zeros(count + 1, dtype=np.int64)
    for plane in pieces:  # counting all at once would take 8 bytes a voxel
        sizes += np.bincount(plane.ravel(), minlength=count + 1)
    kept[box] = pieces == 1 + int(np.argmax(sizes[1:]))
    return kept


def bounding_box(array: np.ndarray) -> tuple[slice, ...] | None:
    """The smallest box around all that is not zero; None where all is."""
    box = []
    for axis in range(array.ndim):
        filled = np.flatnonzero(array.any(axis=tuple(other for other in range(array.ndim) if other != axis)))
        if not filled.size:
            return None
        box.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return tuple(box)


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
