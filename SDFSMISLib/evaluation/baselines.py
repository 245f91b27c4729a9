"""Methods: from a :class:`Task` to a bool mask on its query's grid; a segmenter, and baselines that need no model.

A method that does not apply to such a task gives None, and the task has no row of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from SDFSMISLib.evaluation.demons import register_outwards
from SDFSMISLib.evaluation.growcut import grow_from_seeds
from SDFSMISLib.evaluation.protocols import Task
from SDFSMISLib.support import SupportSlice

if TYPE_CHECKING:
    from SDFSMISLib.inference import Segmenter

__all__ = ["BASELINES", "Method", "copy_support", "run_method", "segmenter_method"]

Method = Callable[[Task], "np.ndarray | None"]


def run_method(method: Method, task: Task) -> np.ndarray | None:
    """The method's mask, part by part where the task has parts; None where it does not apply.

    Raises ValueError for a mask that is not bool on the query's grid.
    """
    if not task.parts:
        mask = method(task)
        if mask is not None and (mask.shape != task.reference.shape or mask.dtype != np.bool_):
            raise ValueError(
                f"A bool mask of {task.reference.shape} is needed; the method gave {mask.dtype} {mask.shape}."
            )
        return mask
    result = np.zeros(task.reference.shape, dtype=bool)
    for part in task.parts:
        mask = run_method(method, part)
        if mask is None:
            return None
        here = (slice(None),) * task.axis + (list(part.judged),)
        result[here] = mask[here]
    return result


def segmenter_method(segmenter: Segmenter, **options: Any) -> Method:
    """The method that asks a segmenter; ``options`` (strategy, region ...) go to its ``segment``."""

    def segment(task: Task) -> np.ndarray:
        segmentation = segmenter.segment(task.query, task.support, axis=task.axis, slices=task.judged, **options)
        return segmentation.labelmap.voxels == task.label

    return segment


def copy_support(task: Task) -> np.ndarray:
    """The support mask on every query slice: what a method must beat to have looked at the query at all.

    Of several painted slices of the query itself the nearest is copied, the first of two equally near; of several from
    another scan, where no slice is near, each pixel goes with the majority (half is enough). A mask from another scan
    is placed in the anatomical orientation, centre on centre, true to size in mm.
    """
    geometry = task.query.geometry
    orientation = geometry.slice_orientation(task.axis)
    spacing = orientation.apply_spacing(geometry.in_plane_spacing(task.axis))
    result = np.zeros(task.query.voxels.shape, dtype=bool)
    along = np.moveaxis(result, task.axis, 0)
    shape = orientation.apply(along[0]).shape
    pieces = task.support.for_label(task.label)
    copies = [orientation.undo(_centred(piece, task.label, shape, spacing)) for piece in pieces]
    if not task.painted:
        along[:] = 2 * np.sum(copies, axis=0) >= len(copies)
        return result
    for index in range(len(along)):
        along[index] = copies[int(np.argmin([abs(index - painted) for painted in task.painted]))]
    return result


def _centred(piece: SupportSlice, label: int, shape: tuple[int, ...], spacing: tuple[float, float]) -> np.ndarray:
    """A painted mask, canonical, on a slice of another shape and (row, column) spacing in mm, by nearest neighbour."""
    mask = piece.canonical_mask(label)
    own_spacing = piece.orientation.apply_spacing(piece.spacing)
    places = []
    for side, own_side, step, own_step in zip(shape, mask.shape, spacing, own_spacing, strict=True):
        millimetres = (np.arange(side) - (side - 1) / 2) * step
        places.append(np.floor(millimetres / own_step + (own_side - 1) / 2 + 0.5).astype(int))
    rows, columns = (np.clip(place, 0, own_side - 1) for place, own_side in zip(places, mask.shape, strict=True))
    inside = [place == clipped for place, clipped in zip(places, (rows, columns), strict=True)]
    return mask[np.ix_(rows, columns)] & np.outer(*inside)


BASELINES: Mapping[str, Method] = {"copy": copy_support, "growcut": grow_from_seeds, "registration": register_outwards}
"""Methods that need no model, by the name that the command line and the tables have for them."""
