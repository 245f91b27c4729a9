"""From the probabilities of a run to its labels, and the clean-up that a user can choose.

Probabilities are uint8 arrays ``(slices, height, width)``, 255 meaning 1. Everything but the threshold is off by
default. Beyond input and output the memory is that of a few slices, of one mask, or of the box around one structure.

It needs numpy and scipy, which 3D Slicer ships, and OpenCV only for what is done within single slices. scipy releases
the interpreter's lock while it works, so cleaning in a thread does not block the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.images.labelmap import bounding_box

BLOCK_VOXELS = 1 << 23  # of a block that is smoothed at once: 32 MiB of float32
GAUSSIAN_REACH = 3.0  # standard deviations
LARGEST_LABEL = np.iinfo(np.uint16).max


Component = Literal["off", "slice", "volume"]


@dataclass(frozen=True)
class Postprocessing:
    """What is done between the probabilities and the labelmap; all of it is off by default.

    Args:
        smooth_mm: standard deviation in mm of a Gaussian over the probabilities; 0 = off.
        fill_holes: whether background that a label encloses within a slice gets that label.
        keep_largest: ``slice`` or ``volume`` keeps only the largest connected component of each label.

    Raises:
        InputError: for a value that is not accepted.

    >>> probability = np.zeros((1, 3, 6), dtype=np.uint8)
    >>> probability[0, :, :3], probability[0, 1, 5] = 200, 255
    >>> Postprocessing(keep_largest="volume").labelmap({7: probability}, 0.5, (1.0, 1.0, 1.0))[0].tolist()
    [[7, 7, 7, 0, 0, 0], [7, 7, 7, 0, 0, 0], [7, 7, 7, 0, 0, 0]]
    """

    smooth_mm: float = 0.0
    fill_holes: bool = False
    keep_largest: Component = "off"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.smooth_mm) and self.smooth_mm >= 0):
            raise InputError(f"A smoothing of {self.smooth_mm} mm was given; 0 (off) or more millimetres are accepted.")
        if self.keep_largest not in get_args(Component):
            raise InputError(f"keep_largest was {self.keep_largest!r}; 'off', 'slice' and 'volume' are accepted.")

    @property
    def is_off(self) -> bool:
        """Whether the labels follow from the threshold alone."""
        return self == Postprocessing()

    @property
    def reach_mm(self) -> float:
        """How far from a voxel above 0 the smoothing has an effect, in mm."""
        return GAUSSIAN_REACH * self.smooth_mm

    def labelmap(
        self,
        probabilities: Mapping[int, np.ndarray],
        threshold: float,
        spacing: tuple[float, float, float],
        axis: int = 0,
    ) -> np.ndarray:
        """The labelmap of the probabilities: smoothed, above the threshold, largest component, holes filled.

        A voxel that a label loses to its largest component becomes background; a hole is filled only where no other
        label lies.

        Args:
            probabilities: uint8 ``(slices, height, width)`` by label value; not changed.
            threshold: see `resolve_labels`.
            spacing: ``(x, y, z)`` in mm.
            axis: array axis along which slices are counted.

        Returns:
            label values, uint16 ``(slices, height, width)``.

        Raises:
            InputError: for a threshold that is not accepted.
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


def check_label_threshold(threshold: float) -> float:
    """The threshold itself, if labels can be made with it; 0 gives every voxel above 0 to a label.

    Raises:
        InputError: for one below 0 or of 1 or more.
    """
    if not 0 <= threshold < 1:
        raise InputError(f"The threshold {threshold} was given; a probability from 0 to below 1 is accepted.")
    return threshold


def resolve_labels(probabilities: Mapping[int, np.ndarray], threshold: float = 0.5) -> np.ndarray:
    """The labelmap in which each voxel has the most probable of the labels above the threshold, or 0.

    Args:
        probabilities: uint8 arrays of one shape, by label value from 1 to 65535; of equal ones the lowest value wins.
        threshold: probability from 0 to below 1. A voxel must be above it, so at 0 a voxel of probability 0 stays 0.

    Returns:
        label values, uint16, of that shape.

    Raises:
        InputError: for another threshold.
        ValueError: for other arrays or label values.
    """
    limit = math.floor(check_label_threshold(threshold) * 255 + 1e-9)  # byte > limit means byte / 255 > threshold
    if not probabilities:
        raise ValueError("No probabilities were given; at least one label is needed.")
    shapes = {probability.shape for probability in probabilities.values()}
    if len(shapes) > 1 or any(probability.dtype != np.uint8 for probability in probabilities.values()):
        raise ValueError(f"Probabilities must be uint8 arrays of one shape; the shapes {sorted(shapes)} were given.")
    if not all(1 <= label <= LARGEST_LABEL for label in probabilities):
        raise ValueError(f"The labels {sorted(probabilities)} were given; 1 to {LARGEST_LABEL} are accepted.")
    labels = np.zeros(shapes.pop(), dtype=np.uint16)
    for index in range(len(labels)):
        best = np.full(labels.shape[1:], limit, dtype=np.uint8)
        for label in sorted(probabilities):
            probability = probabilities[label][index]
            labels[index][probability > best] = label
            np.maximum(best, probability, out=best)
    return labels


def restore_painted(plane: np.ndarray, label: int, painted: np.ndarray, known: np.ndarray | None = None) -> None:
    """Give a label the pixels that were painted, and no others, in one slice of a labelmap; in place.

    Args:
        plane: label values (rows, columns).
        painted: bool (rows, columns).
        known: bool (rows, columns): where this counts; None = everywhere.
    """
    removed, added = (plane == label) & ~painted, painted
    plane[removed if known is None else removed & known] = 0
    plane[added if known is None else added & known] = label


def smooth_probabilities(probability: np.ndarray, sigma_mm: float, spacing: tuple[float, float, float]) -> np.ndarray:
    """Probabilities under a Gaussian; in and out uint8 ``(slices, height, width)``.

    Probabilities are smoothed and not masks, so that a straight border keeps its place to less than a voxel. Corners
    become round, and structures thinner than the Gaussian fade. At the scan's border the last voxel is repeated.

    Args:
        sigma_mm: standard deviation in mm.
        spacing: ``(x, y, z)`` in mm; so thick slices mix less than the pixels within them.
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


def largest_component(mask: np.ndarray, within: Literal["slice", "volume"] = "volume", axis: int = 0) -> np.ndarray:
    """The largest connected component of a bool mask; of an empty mask an empty one.

    Pixels that touch at a corner are connected (8 neighbours in a slice, 26 in a volume). Of equally large components
    a slice keeps the one that OpenCV numbers first, as the official SD-FSMIS code does, and a volume the first in the
    order of its voxels.

    Args:
        mask: one slice ``(rows, columns)``, or ``(slices, height, width)``.
        within: of a volume, whether one component is kept in every slice along ``axis``, or in all.
    """
    if mask.ndim == 3 and within == "volume":
        return _largest_in_volume(mask)
    box = bounding_box(mask)
    kept = np.zeros(mask.shape, dtype=bool)
    if box is None:
        return kept
    box = tuple(slice(side.start & ~1, side.stop) for side in box)  # OpenCV numbers them by blocks of 2 x 2 pixels
    for source, target in zip(_slices(mask[box], axis), _slices(kept[box], axis), strict=True):
        target[...] = _largest_in_slice(source)
    return kept


def fill_holes(mask: np.ndarray, axis: int = 0) -> np.ndarray:
    """A bool mask ``(slices, height, width)`` or ``(rows, columns)`` without holes in its slices along ``axis``.

    A hole is background from which no path over pixel edges leads out of the structure's bounding box.
    """
    import cv2

    box = bounding_box(mask)
    filled = mask.copy()
    if box is None:
        return filled
    for plane in _slices(filled[box], axis):
        background = np.pad(~plane, 1, constant_values=True).astype(np.uint8)
        _, components = cv2.connectedComponents(background, connectivity=4)
        plane[...] = (components != components[0, 0])[1:-1, 1:-1]
    return filled


def _largest_in_volume(mask: np.ndarray) -> np.ndarray:
    from scipy.ndimage import label

    kept, box = np.zeros(mask.shape, dtype=bool), bounding_box(mask)
    if box is None:
        return kept
    inside = mask[box]
    components = np.empty(inside.shape, dtype=np.int32)
    count = label(inside, structure=np.ones((3, 3, 3), dtype=bool), output=components)
    sizes = np.zeros(count + 1, dtype=np.int64)
    for plane in components:  # counting all at once would take 8 bytes a voxel
        sizes += np.bincount(plane.ravel(), minlength=count + 1)
    kept[box] = components == 1 + int(np.argmax(sizes[1:]))
    return kept


def _largest_in_slice(mask: np.ndarray) -> np.ndarray:
    import cv2

    pixels = np.ascontiguousarray(mask, dtype=np.uint8)
    count, components, statistics, _ = cv2.connectedComponentsWithStats(pixels, connectivity=8)
    if count <= 2:  # the background and at most one component
        return mask
    return components == 1 + int(np.argmax(statistics[1:, cv2.CC_STAT_AREA]))


def _slices(array: np.ndarray, axis: int) -> np.ndarray:
    """A view whose first axis counts slices: of a volume those along ``axis``, of one slice itself."""
    return array[None] if array.ndim == 2 else np.moveaxis(array, axis, 0)
