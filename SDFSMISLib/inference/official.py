"""The official code's way from decoded maps to masks, an option for comparing with published numbers.

It thresholds at a quarter of the maximum of a whole chunk of slices, so that a chunk without the structure still
yields some, and one slice's result depends on which others it was run with; then it keeps one component of each slice.
The default of this package is an absolute threshold for each voxel instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from SDFSMISLib.images.postprocess import largest_component

__all__ = ["SHARE_OF_MAXIMUM", "OfficialMasks", "map_bytes", "official_masks"]

SHARE_OF_MAXIMUM = 0.25


@dataclass(frozen=True)
class OfficialMasks:
    """Masks of one chunk.

    Attributes:
        threshold: on a scale of 0 to 1, float32.
        before_components: (slices, height, width) bool: the mean over the channels is strictly above the threshold.
        masks: (slices, height, width) bool: the largest component of each slice; of equals the one OpenCV labels first.
    """

    threshold: np.float32
    before_components: np.ndarray
    masks: np.ndarray


def map_bytes(maps: np.ndarray) -> np.ndarray:
    """Bytes of maps in [0, 1], of any shape, by truncation as the official code stores them."""
    return (np.asarray(maps, dtype=np.float32) * 255).astype(np.uint8)


def official_masks(levels: np.ndarray) -> OfficialMasks:
    """Masks of one chunk of slices.

    Args:
        levels: (slices, channels, height, width) uint8, see `map_bytes`.

    Raises:
        ValueError: where ``levels`` has another shape or type.
    """
    if levels.ndim != 4 or levels.dtype != np.uint8:
        raise ValueError(
            f"levels has shape {levels.shape} and type {levels.dtype}; expected (slices, channels, height, width), "
            "uint8"
        )
    maps = levels.astype(np.float32) / np.float32(255)
    threshold = maps.max(initial=0) * np.float32(SHARE_OF_MAXIMUM)
    before = maps.mean(axis=1) > threshold
    return OfficialMasks(threshold, before, largest_component(before, within="slice"))
