"""The tests of a fold, and the methods that answer them.

Two protocols. ``field``, the literature's: the query's slices that hold the organ are cut into three chunks, and each
is segmented from painted slices in the same third of the organ in the support scan. ``official``, the official code of
SD-FSMIS: all painted slices serve every chunk. Both tell a method where the organ begins and ends.

The official code also thresholds at a quarter of the maximum of a whole chunk (so a chunk without the structure still
gets a mask, and the result on one slice depends on the others) and keeps one component per slice: `official_masks`. The
default of this package is one absolute threshold for every voxel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from SDFSMISLib.benchmark.data_sets import Fold
from SDFSMISLib.cohort.cases import Case, LabelledScan
from SDFSMISLib.errors import InputError
from SDFSMISLib.evaluation.baselines import Method, SegmenterMethod
from SDFSMISLib.evaluation.protocols import CHUNKS, Task, chunked_task, slices_with, spread_slices
from SDFSMISLib.images.postprocess import largest_component
from SDFSMISLib.support import SupportSet

if TYPE_CHECKING:
    import torch

    from SDFSMISLib.images.intensity import IntensityWindow
    from SDFSMISLib.images.volume import SliceOrientation
    from SDFSMISLib.inference import Segmenter
    from SDFSMISLib.model.pipeline import SDFSMISPipeline


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


def to_bytes(maps: np.ndarray) -> np.ndarray:
    """Bytes of maps in [0, 1], of any shape, by truncation as the official code stores them."""
    return (np.asarray(maps, dtype=np.float32) * 255).astype(np.uint8)


def official_masks(levels: np.ndarray) -> OfficialMasks:
    """Masks of one chunk of slices.

    Args:
        levels: (slices, channels, height, width) uint8, see `to_bytes`.

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


Protocol = Literal["field", "official"]
Window = Literal["robust", "minmax"]
PROTOCOLS: tuple[Protocol, ...] = ("field", "official")


def query_cases(fold: Fold, protocol: Protocol) -> tuple[Case, ...]:
    """The fold's queries: with `field` every scan, the support too; with `official` all but the support."""
    return tuple(case for case in fold.cases if protocol == "field" or case.id != fold.support.id)


def fold_task(
    fold: Fold,
    case: Case,
    organ: str,
    load: Callable[[Case], LabelledScan],
    shots: int,
    protocol: Protocol,
    window: Window = "robust",
) -> Task | None:
    """The test of one organ of one scan, a part for each chunk; None if query or support lacks the organ.

    ``window`` says how the painted slices' intensities become [-1, 1]. Raises :class:`InputError` for fewer shots than
    1, and where query and support are sliced along different axes.
    """
    query, supporting = load(case), load(fold.support_for(case))
    holding = slices_with(supporting.mask(organ), supporting.axis)
    if not (holding and query.mask(organ).any()):
        return None
    task = chunked_task(query, organ, supporting, organ, painted_for_chunks(holding, shots, protocol))
    return task if window == "robust" else _with_window(task, supporting.scan.window(window))


def painted_for_chunks(holding: Sequence[int], shots: int, protocol: Protocol) -> list[tuple[int, ...]]:
    """The slices of the support scan, of those ``holding`` the organ, that are painted for each of the three chunks.

    `field`: ``shots`` slices spread evenly over each third, so one shot is the slices at 1/6, 1/2 and 5/6. `official`:
    the same slices for every chunk: those three, or with more shots than one so many spread over the whole organ. A
    thin organ gives fewer.
    """
    if shots < 1:
        raise InputError(f"{shots} shots were asked for; at least 1 painted slice is needed.")
    if protocol == "official":
        spread = spread_slices(holding, CHUNKS if shots == 1 else shots)
        return [tuple(dict.fromkeys(spread))] * CHUNKS
    spread = spread_slices(holding, CHUNKS * shots)
    return [tuple(dict.fromkeys(spread[place * shots : (place + 1) * shots])) for place in range(CHUNKS)]


def _with_window(task: Task, window: IntensityWindow) -> Task:
    """The task with another intensity window of all painted slices."""
    slices = tuple(
        replace(support_slice, plane=replace(support_slice.plane, window=window))
        for support_slice in task.support.slices
    )
    parts = tuple(_with_window(part, window) for part in task.parts)
    return replace(task, support=SupportSet(slices, task.support.names), parts=parts)


def protocol_method(segmenter: Segmenter, protocol: Protocol, window: Window) -> Method:
    """The method for a protocol. With `field` the strategy `independent`, threshold 0.5 and no post-processing: each
    slice alone, but masks warped onto a chunk, for networks of our own kind, are averaged over neighbouring slices.

    ``window`` is that of the training. `minmax`, the paper's, goes with whole slices as they are; `robust`, ours, with
    the region and contrast that networks of our own kind have learned from.
    """
    if protocol == "official":
        return official_method(segmenter.pipeline)
    region = "full" if window == "minmax" else "auto"
    return SegmenterMethod(segmenter, strategy="independent", region=region, window=window)


def official_method(pipeline: SDFSMISPipeline) -> Method:
    """The official code's way: nearest-neighbour resize, min-max of the whole resized scan, a threshold of a quarter of
    the chunk's maximum, the largest component of each slice."""

    def segment(task: Task) -> np.ndarray:
        import torch

        from SDFSMISLib.inference.network_images import as_rgb

        side = pipeline.config.resolution
        orientation = task.query.geometry.slice_orientation(task.axis)
        queries = [_query_image(task, index, orientation, side) for index in task.judged]
        support_slices = task.support.for_label(task.label)
        images = torch.stack([_nearest(support_slice.canonical_image(), side) for support_slice in support_slices])
        masks = torch.stack(
            [
                _nearest(support_slice.canonical_mask(task.label).astype(np.float32), side)
                for support_slice in support_slices
            ]
        )
        maps = pipeline(as_rgb(images), masks, as_rgb(torch.stack(queries))).maps
        found = official_masks(to_bytes(maps.cpu().numpy())).masks
        return _on_query(task, found, orientation)

    return segment


def _query_image(task: Task, index: int, orientation: SliceOrientation, side: int) -> torch.Tensor:
    window = task.query.window("minmax")
    return _nearest(window.normalize(orientation.apply(task.query.slice(task.axis, index))), side)


def _nearest(image: np.ndarray, side: int) -> torch.Tensor:
    """A slice (rows, columns) on the network's grid, (side, side), by nearest neighbour; not made square before."""
    import torch
    import torch.nn.functional as F

    values = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))
    return F.interpolate(values[None, None], size=(side, side), mode="nearest")[0, 0]


def _on_query(task: Task, found: np.ndarray, orientation: SliceOrientation) -> np.ndarray:
    """Masks (slices, side, side) of the judged slices on the query's grid, bool, by nearest neighbour."""
    import torch
    import torch.nn.functional as F

    mask = np.zeros(task.reference.shape, dtype=bool)
    along = np.moveaxis(mask, task.axis, 0)
    shape = orientation.apply(along[0]).shape
    back = F.interpolate(torch.from_numpy(found.astype(np.float32))[:, None], size=shape, mode="nearest")[:, 0] > 0.5
    for index, plane in zip(task.judged, back.numpy(), strict=True):
        along[index] = orientation.undo(plane)
    return mask
