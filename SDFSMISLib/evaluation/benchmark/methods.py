"""How a model answers a test: by the segmenter, or in the official code's way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from SDFSMISLib.evaluation.baselines import Method, segmenter_method
from SDFSMISLib.evaluation.benchmark.tasks import Protocol, Window
from SDFSMISLib.evaluation.protocols import Task

if TYPE_CHECKING:
    import torch

    from SDFSMISLib.images.volume import SliceOrientation
    from SDFSMISLib.inference import Segmenter
    from SDFSMISLib.model.pipeline import SDFSMISPipeline

__all__ = ["method_of", "official_method"]


def method_of(segmenter: Segmenter, protocol: Protocol, window: Window) -> Method:
    """The method for a protocol. With `field` the strategy `independent`, threshold 0.5 and nothing behind it: each
    slice alone, save that painted masks which are brought along for networks of our own kind are agreed upon between
    neighbouring slices of a chunk.

    ``window`` is that of the training. `minmax`, the paper's, goes with whole slices as they are; `robust`, ours, with
    the region and contrast that networks of our own kind have learned from.
    """
    if protocol == "official":
        return official_method(segmenter.pipeline)
    region = "full" if window == "minmax" else "auto"
    return segmenter_method(segmenter, strategy="independent", window=window, region=region)


def official_method(pipeline: SDFSMISPipeline) -> Method:
    """The official code's way: nearest-neighbour resize, min-max of the whole resized scan, a threshold of a quarter of
    the chunk's maximum, the largest component of each slice."""

    def segment(task: Task) -> np.ndarray:
        import torch

        from SDFSMISLib.inference.network_images import colour
        from SDFSMISLib.inference.official import map_bytes, official_masks

        side = pipeline.config.resolution
        orientation = task.query.geometry.slice_orientation(task.axis)
        queries = [_query_image(task, index, orientation, side) for index in task.judged]
        pieces = task.support.for_label(task.label)
        images = torch.stack([_nearest(piece.canonical_image(), side) for piece in pieces])
        masks = torch.stack([_nearest(piece.canonical_mask(task.label).astype(np.float32), side) for piece in pieces])
        maps = pipeline(colour(images), masks, colour(torch.stack(queries))).maps
        found = official_masks(map_bytes(maps.cpu().numpy())).masks
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
