"""`Segmenter`: from painted slices to a segmented volume, for the command line, the server and Python alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from SDFSMISLib.errors import Cancelled
from SDFSMISLib.images.postprocess import Postprocessing
from SDFSMISLib.images.volume import Volume
from SDFSMISLib.inference.atlas import Prior
from SDFSMISLib.inference.network_images import Region, Shot
from SDFSMISLib.inference.networks import LatentCache
from SDFSMISLib.inference.run import EarlierResults
from SDFSMISLib.inference.segmentation import Segmentation, SegmentationBuilder
from SDFSMISLib.inference.volume_run import VolumeRun
from SDFSMISLib.model.loading import load_pipeline, weights_digest
from SDFSMISLib.model.pipeline import SDFSMISPipeline
from SDFSMISLib.options import BUILT_IN, RunOptions, Strategy
from SDFSMISLib.options import Region as RegionChoice
from SDFSMISLib.slices import SliceResult, SliceStack
from SDFSMISLib.support import SupportSet


class Segmenter:
    """Segments volumes from painted slices.

    A segmenter holds networks and no other state: several threads can use one in turn.

    Args:
        pipeline: the networks, on their device.
        name: of the model, for the provenance of results.

    Example:
        >>> from SDFSMISLib import SupportSet, Volume
        >>> from SDFSMISLib.images.geometry import Geometry
        >>> z, y, x = np.indices((5, 32, 32))
        >>> sphere = (3 * (z - 2)) ** 2 + (y - 16) ** 2 + (x - 16) ** 2 < 64
        >>> geometry = Geometry((5, 32, 32), (1.0, 1.0, 3.0), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
        >>> scan = Volume((100 * sphere + 20).astype(np.float32), geometry)
        >>> labelmap = Volume(sphere.astype(np.uint8), geometry)
        >>> segmenter = Segmenter.from_pretrained("built-in", device="cpu")
        >>> segmentation = segmenter.segment(scan, SupportSet.from_labelmap(scan, labelmap, slices=[2]))
        >>> segmentation.labelmap.voxels.shape, segmentation.painted
        ((5, 32, 32), (2,))
        >>> found = segmentation.labelmap.voxels == 1
        >>> bool(2 * (found & sphere).sum() / (found.sum() + sphere.sum()) > 0.8)
        True
    """

    def __init__(self, pipeline: SDFSMISPipeline, name: str = "") -> None:
        self.pipeline = pipeline
        self.name = name

    @classmethod
    def from_pretrained(cls, name_or_dir: str | Path = BUILT_IN, device: str = "auto") -> Segmenter:
        """A segmenter with trained weights.

        Args:
            name_or_dir: ``built-in``, a pipeline folder, or an id on a model hub (``owner/name``).
            device: ``auto`` (the GPU if there is one, else the CPU), ``cpu``, ``cuda`` or ``cuda:N``.

        Raises:
            InputError: if the model or the device does not exist, or the weights are damaged.
        """
        return cls(load_pipeline(name_or_dir, device).for_inference(), str(name_or_dir))

    @cached_property
    def weights(self) -> str:
        """sha256 (hex) of the weights, see `weights_digest`."""
        return weights_digest(self.pipeline)

    @property
    def device(self) -> str:
        """Name of the device, such as ``cpu`` or ``cuda:0``."""
        return str(self.pipeline.device)

    @torch.no_grad()
    def segment(
        self,
        query: Volume,
        support: SupportSet,
        strategy: Strategy = "propagate",
        *,
        axis: int | None = None,
        slices: Sequence[int] | None = None,
        labels: Sequence[int] | None = None,
        prior: Prior | None = None,
        region: RegionChoice = "auto",
        threshold: float = 0.5,
        batch_size: int = 8,
        postprocessing: Postprocessing | None = None,
        window: Literal["robust", "minmax"] = "robust",
        on_slice: Callable[[SliceResult], None] | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> Segmentation:
        """Segment `query` from `support`.

        If support slices of the query itself show the structure, they alone are the support, and ``propagate`` goes
        outwards from them, along every axis on which there are some; what is found along several axes is fused
        (see `SDFSMISLib.images.fusion`). On another scan a search over all slices comes first: by registration with the
        built-in weights, by a pass of the networks with others; propagation starts at the slice that it finds.
        Propagation does not pass a slice that the support marks as empty.

        Args:
            query: the scan to segment.
            support: painted slices, of this scan or of others.
            strategy: ``propagate`` goes outwards from the painted slices; ``independent`` segments each slice alone,
                as in the paper (arXiv 2604.03134). On another scan the built-in weights then also get the painted
                masks, which registration warps onto each slice, unless the region is ``full``.
            axis: array axis along which to slice, 0 to 2, and no other; None = those of the painted slices, on another
                scan the anatomically nearest.
            slices: indices of the slices to segment along that axis or the main one (`SupportSet.axes_on`), from 0;
                None = all.
            labels: label values to segment; None = all of the support and the prior.
            prior: where finished scans let expect structures (see `SDFSMISLib.inference.atlas.prior_of`). The networks
                correct it along all axes; slices of the query that show a structure overrule it.
            region, threshold, batch_size: see `RunOptions`, which checks them.
            postprocessing: applied after the threshold; None = none.
            window: intensities that become [-1, 1]: ``robust`` (percentiles of the scan) or ``minmax`` (the paper's).
            on_slice: called after each finished slice of each label, previews included (`SliceResult.stage`).
            cancel: called after each slice; returns True to stop the run, within one batch.

        Returns:
            labelmap and probabilities on the grid of `query`.

        Raises:
            InputError: if a slice is outside the scan, or the support lacks a label.
            Cancelled: if `cancel` returned True.
        """
        content_hash = query.content_hash()
        axes = (axis,) if axis is not None else self._axes(query, support, content_hash, prior)
        stacks = SliceStack.along(query, axes, query.window(window), content_hash)
        options = RunOptions(strategy, region, threshold, batch_size)
        run = self.run(stacks, support, options, slices=slices, labels=labels, prior=prior)
        names = {**(prior.support.names if prior else {}), **{k: name for k, name in support.names.items() if name}}
        builder = SegmentationBuilder(query, run.scan, run.support, names)
        for results in run.steps():
            for result in results:
                if isinstance(result, SliceResult):
                    if result.stage == "final":
                        builder.add(result.label, result.index, result.probability, result.certainty)
                    if on_slice is not None:
                        on_slice(result)
                    _raise_if(cancel)
            _raise_if(cancel)
        return builder.segmentation(options.threshold, postprocessing, run.warnings)

    def run(
        self,
        stacks: Mapping[int, SliceStack],
        support: SupportSet,
        options: RunOptions,
        *,
        slices: Sequence[int] | None = None,
        labels: Sequence[int] | None = None,
        latents: LatentCache | None = None,
        earlier: Mapping[int, EarlierResults] | None = None,
        prior: Prior | None = None,
    ) -> VolumeRun:
        """A run that the caller drives batch by batch, by `VolumeRun.steps` under ``torch.no_grad()``.

        Args:
            support, options, slices, labels, prior: as in `segment`.
            stacks, latents, earlier: see `VolumeRun`.

        Raises:
            InputError: if a slice is outside the scan, or the support lacks a label.
        """
        if prior is None:
            chosen = support.labels if labels is None else labels
            support_slices = {label: support.for_label(label) for label in chosen}
            return VolumeRun(self.pipeline, stacks, support_slices, options, slices, latents, earlier)
        shown = prior.support.labels
        support_slices = {}
        for label in sorted({*support.labels, *shown}) if labels is None else labels:
            # A slice tells that a structure is not there only of those that were painted.
            painted = support.for_label(label) if label in support.labels or label not in shown else ()
            support_slices[label] = (*painted, *(prior.support.for_label(label) if label in shown else ()))
        priors = prior.probabilities
        return VolumeRun(self.pipeline, stacks, support_slices, options, slices, latents, earlier, priors)

    @staticmethod
    def _axes(query: Volume, support: SupportSet, content_hash: str, prior: Prior | None) -> tuple[int, ...]:
        """The axes along which to segment, the main one first; with a prior all of them."""
        if prior is None:
            return support.axes_on(query, content_hash)
        is_painted = any(one.plane.scan == content_hash for one in support.slices)
        first = support.axes_on(query, content_hash) if is_painted else (query.geometry.default_axis(),)
        return (*first, *(other for other in range(3) if other not in first))

    @property
    def searches(self) -> bool:
        """Whether the networks search for a structure on another scan; if not, registration does."""
        return not self.pipeline.takes_neighbours

    def seconds_per_slice(self) -> float:
        """Seconds for one slice of one label on this device, measured on random input (the second of two passes)."""
        side = self.pipeline.config.resolution
        random = np.random.default_rng(0)
        image = random.uniform(-1, 1, (side, side)).astype(np.float32)
        mask = np.zeros((side, side), dtype=bool)
        mask[side // 3 : side // 2, side // 3 : side // 2] = True
        shot = Shot(image, mask, (1.0, 1.0))
        spent = []
        with torch.no_grad():
            for _ in range(2):
                began = time.monotonic()
                images, masks = shot.on_grid(Region.whole(mask.shape, (1.0, 1.0)), side)
                pair = images[None, None, None].expand(1, 1, 3, side, side)
                bank = self.pipeline.encode_support(pair, masks[None, None])
                self.pipeline.segment(self.pipeline.encode_images(pair[0]), bank).cpu()  # waits for the GPU
                spent.append(time.monotonic() - began)
        return spent[-1]


def _raise_if(cancel: Callable[[], bool] | None) -> None:
    if cancel is not None and cancel():
        raise Cancelled("The segmentation was cancelled.")
