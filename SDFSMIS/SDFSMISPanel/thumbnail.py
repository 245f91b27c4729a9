"""Thumbnails: a slice in grey with what is painted on it, small enough for a list."""

from __future__ import annotations

import numpy as np

from SDFSMISLib.images.geometry import SliceOrientation
from SDFSMISLib.images.intensity import IntensityWindow

__all__ = ["SIDE", "thumbnail"]

SIDE = 64  # pixels, of the longer side
TINT = 0.5  # share of the colour where something is painted


def thumbnail(
    image: np.ndarray,
    labels: np.ndarray,
    colors: dict[int, tuple[float, float, float]],
    spacing: tuple[float, float],
    orientation: SliceOrientation,
    plane: str,
    window: IntensityWindow | None = None,
) -> np.ndarray:
    """uint8 (rows, columns, 3) as views show it, with square pixels, at most ``SIDE`` a side.

    Args:
        image, labels: (rows, columns) as the scan has them; label values, 0 where nothing is painted.
        colors: red, green, blue from 0 to 1 of each label.
        spacing: (row, column) in mm, as the scan has them.
        orientation: of the slice; plane: axial, coronal or sagittal.
        window: of grey values; None = from the 1st to the 99th percentile of the slice.
    """
    image, labels = orientation.apply(image), orientation.apply(labels)
    rows, columns = _sampled(image.shape, orientation.apply_spacing(spacing))
    image, labels = image[np.ix_(rows, columns)].astype(np.float32), labels[np.ix_(rows, columns)]
    if window is not None:
        low, high = window.low, window.high
    else:
        low, high = np.percentile(image, (1, 99))
    grey = np.clip((image - low) / max(float(high) - float(low), 1e-6), 0, 1)
    picture = np.repeat(grey[..., None], 3, axis=2)
    for label, color in colors.items():
        painted = labels == label
        picture[painted] = (1 - TINT) * picture[painted] + TINT * np.asarray(color)
    upright = picture if plane == "axial" else picture[::-1]  # canonical rows go upwards there, a picture's downwards
    return np.rint(upright * 255).astype(np.uint8)


def _sampled(shape: tuple[int, ...], spacing: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns to take, so that pixels are square and the longer side has ``SIDE`` of them."""
    height, width = shape[0] * spacing[0], shape[1] * spacing[1]
    pixel = max(height, width) / SIDE
    rows, columns = (max(1, round(length / pixel)) for length in (height, width))
    return (
        ((np.arange(rows) + 0.5) * shape[0] / rows).astype(int),
        ((np.arange(columns) + 0.5) * shape[1] / columns).astype(int),
    )
