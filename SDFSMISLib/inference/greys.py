"""A rough mask moved to where the grey levels of its slice say that the structure is.

Expectation and maximisation with the mask as prior (Van Leemput et al., "Automated model-based tissue classification of
MR images of the brain", IEEE TMI 1999), with histograms in place of normal distributions. Both histograms are the
slice's own, so that another scanner, or an organ of another brightness, does no harm.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from SDFSMISLib.inference.region import Region

__all__ = ["by_greys"]

REACH_MM = 4.0  # by which a border may be moved, about: sigma of the blurred mask that is the prior
WEIGHT = 0.5  # of the grey levels against the prior, since neighbouring pixels do not tell independently
ROUNDS = 4
BINS = 32
BIN_BLUR = 1.5  # bins
NOISE = 0.7  # pixels: sigma by which the image is blurred
EVIDENCE_BLUR = 1.0  # pixels: sigma by which is blurred what its grey levels tell
DOUBT = 1e-4  # added to frequencies
SURE = 1e-3  # a prior is never surer than that


def by_greys(image: np.ndarray, mask: np.ndarray, spacing: tuple[float, float]) -> np.ndarray:
    """The mask of a structure after a look at the grey levels around it; unchanged where it is empty.

    Args:
        image: float (rows, columns), of any range.
        mask: (rows, columns), 0 to 1; what is above 0.5 says where to look.
        spacing: (row, column) in mm.

    Returns:
        float32 (rows, columns), 0 to 1, zero outside the region around the mask.
    """
    if not (mask > 0.5).any():
        return mask.astype(np.float32)
    region = Region.around(mask > 0.5, spacing)
    _, here = region.overlap(image.shape)
    near = mask[here].astype(np.float32)
    prior = ndimage.gaussian_filter(near, [REACH_MM / one for one in spacing]).clip(SURE, 1 - SURE)
    odds = np.log(prior / (1 - prior))
    levels = _levels(ndimage.gaussian_filter(image[here].astype(np.float32), NOISE))
    for _ in range(ROUNDS):
        told = np.log(_frequencies(levels, near) / _frequencies(levels, 1 - near))[levels]
        near = 1 / (1 + np.exp(-(odds + WEIGHT * ndimage.gaussian_filter(told, EVIDENCE_BLUR))))
    found = np.zeros(mask.shape, dtype=np.float32)
    found[here] = near
    return found


def _levels(image: np.ndarray) -> np.ndarray:
    """Bins of grey levels, whole numbers from 0 to BINS - 1; what is beyond 1 in 100 at either end goes to the last."""
    low, high = np.percentile(image, [1, 99])
    return ((image - low) / max(high - low, 1e-3) * (BINS - 1)).clip(0, BINS - 1).round().astype(np.intp)


def _frequencies(levels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(BINS,): how frequent each level is, by weight."""
    counts = np.bincount(levels.ravel(), weights=weights.ravel(), minlength=BINS)
    counts = ndimage.gaussian_filter1d(counts, BIN_BLUR, mode="nearest")
    return counts / max(counts.sum(), DOUBT) + DOUBT
