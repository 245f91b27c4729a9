"""How well a mask agrees with its reference.

A metric takes two bool masks of one shape ``(slices, height, width)`` and the voxel spacing ``(z, y, x)`` in mm in the
masks' own axis order; NaN means "not defined here": such a task is left out of that metric's mean, and counted. Both
masks empty: Dice 1, surface distances not defined; one empty: Dice 0, surface distances not defined.

The surface metrics are MONAI's, which `pip install "sdfsmis[evaluate]"` brings and which takes seconds to import.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.images.labelmap import bounding_box

__all__ = ["METRICS", "Metric", "check_metrics", "dice", "hausdorff_95", "score", "surface_dice"]

Spacing = tuple[float, float, float]
Metric = Callable[[np.ndarray, np.ndarray, Spacing], float]
TOLERANCE = 2.0  # mm: surfaces nearer than that count as the same


def dice(prediction: np.ndarray, reference: np.ndarray) -> float:
    """Dice coefficient, 2 |A ∩ B| / (|A| + |B|), 0 to 1, of two bool masks of one shape as one set of voxels.

    Both masks empty: 1; one empty: 0.

    >>> dice(np.array([True, True, False]), np.array([True, False, False]))
    0.6666666666666666
    """
    _check_masks(prediction, reference)
    both, found, held = (int(np.count_nonzero(mask)) for mask in (prediction & reference, prediction, reference))
    return dice_of_counts(both, found, held)


def dice_of_counts(both: int, found: int, held: int) -> float:
    """Dice of masks of ``found`` and ``held`` voxels that share ``both`` of them; 1 if neither has any."""
    return 2 * both / (found + held) if found + held else 1.0


def surface_dice(
    prediction: np.ndarray, reference: np.ndarray, spacing: Spacing, tolerance: float = TOLERANCE
) -> float:
    """Normalized surface Dice, 0 to 1: the share of both surfaces' area that lies within ``tolerance`` mm of the other.

    Surface elements are weighted by their area in mm² (Nikolov et al., arXiv 1809.04430), so thick slices do not count
    more than thin ones. NaN if a mask is empty. Raises :class:`InputError` if MONAI is missing.
    """
    pair = _around_both(prediction, reference)
    if pair is None:
        return math.nan
    return _of_monai(
        "compute_surface_dice", pair, spacing, class_thresholds=[tolerance], include_background=True, use_subvoxels=True
    )


def hausdorff_95(prediction: np.ndarray, reference: np.ndarray, spacing: Spacing) -> float:
    """95 % Hausdorff distance in mm: the larger of the two directions' 95th percentiles over border voxels.

    NaN if a mask is empty. Raises :class:`InputError` if MONAI is missing.
    """
    pair = _around_both(prediction, reference)
    if pair is None:
        return math.nan
    return _of_monai("compute_hausdorff_distance", pair, spacing, include_background=True, percentile=95)


METRICS: Mapping[str, Metric] = {
    "dice": lambda prediction, reference, spacing: dice(prediction, reference),
    "nsd": surface_dice,
    "hd95": hausdorff_95,
}
"""Name, as it heads a column of the results -> metric. The first is the one that tables show."""


def score(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: Spacing,
    indices: Sequence[Sequence[int] | np.ndarray],
    metrics: Iterable[str] = METRICS,
) -> dict[str, float]:
    """The named metrics over the voxels with these ``indices`` on the three axes; ``spacing`` is ``(z, y, x)`` in mm.

    If slices are left out, their neighbours lie beside each other, in both masks alike.

    >>> mask = np.ones((4, 2, 2), dtype=bool)
    >>> score(mask, mask, (5.0, 1.0, 1.0), [[0, 1, 3], [0, 1], [0, 1]], metrics=["dice"])
    {'dice': 1.0}
    """
    ours, theirs = (mask[np.ix_(*indices)] for mask in (prediction, reference))
    return {name: METRICS[name](ours, theirs, spacing) for name in metrics}


def check_metrics(names: Sequence[str]) -> None:
    """Raises :class:`InputError` for an unknown metric, and where MONAI is needed and missing: before a long run."""
    for name in names:
        if name not in METRICS:
            raise InputError(f"There is no metric {name!r}; there are {', '.join(METRICS)}.")
    if set(names) - {"dice"}:
        _monai()


def _check_masks(prediction: np.ndarray, reference: np.ndarray) -> None:
    if prediction.shape != reference.shape or prediction.dtype != np.bool_ or reference.dtype != np.bool_:
        raise ValueError(
            f"Two bool masks of one shape are needed; {prediction.dtype} {prediction.shape} and {reference.dtype} "
            f"{reference.shape} were given."
        )


def _around_both(prediction: np.ndarray, reference: np.ndarray) -> list[np.ndarray] | None:
    """Both masks in the box around what either holds and one voxel more, so that a large scan costs no more than its
    structure, and a structure at the scan's edge has a surface there; None if one is empty."""
    _check_masks(prediction, reference)
    if not (prediction.any() and reference.any()):
        return None
    box = bounding_box(prediction | reference)
    assert box is not None
    return [np.pad(mask[box], 1) for mask in (prediction, reference)]


def _of_monai(name: str, masks: Sequence[np.ndarray], spacing: Spacing, **options: Any) -> float:
    """The value of a MONAI metric for two masks."""
    import torch

    function = getattr(_monai(), name)
    prediction, reference = (torch.from_numpy(mask)[None, None] for mask in masks)  # (batch, class, ...)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI 1.6 calls itself in a way that is on its way out
        return float(function(prediction, reference, spacing=list(spacing), **options))


def _monai() -> Any:
    try:
        import monai.metrics
    except ImportError as error:
        raise InputError('Surface metrics need MONAI; install it with: pip install "sdfsmis[evaluate]"') from error
    return monai.metrics
