"""`Segmenter`: the one way from painted slices to a segmented volume, for command line, server and Python alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from SDFSMISLib.errors import Cancelled
from SDFSMISLib.images.postprocess import Postprocessing
from SDFSMISLib.images.volume import Volume
from SDFSMISLib.inference.network_images import Region, Shot
from SDFSMISLib.inference.networks import LatentCache
from SDFSMISLib.inference.run import EarlierResults, Run
from SDFSMISLib.inference.segmentation import Segmentation, SegmentationBuilder, mismatch_warnings
from SDFSMISLib.model.loading import load_pipeline, weights_digest
from SDFSMISLib.model.pipeline import SDFSMISPipeline
from SDFSMISLib.options import BUILT_IN, RunOptions
from SDFSMISLib.slices import SliceResult, SliceStack
from SDFSMISLib.support import SupportSet


class Segmenter:
    """Segments volumes by painted slices.

    A segmenter holds networks only; runs share nothing else, so one may serve several threads in turn.
    """

    def __init__(self, pipeline: SDFSMISPipeline, name: str = "") -> None:
        """
        Args:
            pipeline: ready on its device.
            name: what to call the model in a result's provenance.
        """
        self.pipeline = pipeline
        self.name = name

    @classmethod
    def from_pretrained(cls, name_or_dir: str | Path = BUILT_IN, device: str = "auto") -> Segmenter:
        """A segmenter with weights.

        Args:
            name_or_dir: `built-in`, a pipeline folder, or a model hub's id.
            device: `auto` (the GPU where there is one), `cpu`, `cuda` or `cuda:N`.

        Raises:
            InputError: where the model or the device is not there, or the weights are damaged.
        """
        return cls(load_pipeline(name_or_dir, device), str(name_or_dir))

    @cached_property
    def weights(self) -> str:
        """The digest of the weights, sha256 (hex)."""
        return weights_digest(self.pipeline)

    @property
    def device(self) -> str:
        """Where it computes: `cpu`, `cuda:0`."""
        return str(self.pipeline.device)

    @torch.no_grad()
    def segment(
        self,
        query: Volume,
        support: SupportSet,
        options: RunOptions = RunOptions(),
        *,
        axis: int | None = None,
        slices: Sequence[int] | None = None,
        labels: Sequence[int] | None = None,
        postprocessing: Postprocessing | None = None,
        window: Literal["robust", "minmax"] = "robust",
        on_slice: Callable[[SliceResult], None] | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> Segmentation:
        """Segment `query` by `support`.

        Where slices of the query itself show the structure, they are the support, and `propagate` goes outwards from
        them. On another scan a search over all slices comes first, by registration for the built-in weights and by a
        pass of the networks for others; propagation starts at the slice that it finds. It does not pass a slice that
        was named and holds nothing.

        Args:
            query: the scan to segment.
            support: painted slices, of this scan or of others.
            options: strategy, region and threshold. With `independent` on another scan the built-in weights are handed
                the painted mask, which registration brings onto each slice and neighbouring slices agree on, unless
                `region` is `full`.
            axis: array axis along which to slice; None = that of the painted slices, or the one that is anatomically
                nearest.
            slices: slices to segment, from 0; None = all.
            labels: label values to segment; None = all of the support.
            postprocessing: what is done behind the threshold; None = nothing.
            window: `robust`, or `minmax`, the paper's: how the query's intensities become [-1, 1].
            on_slice: called after each slice of each label.
            cancel: asked after each slice; True stops the run with `Cancelled`, within one batch.

        Raises:
            InputError: where a slice is outside the scan, or the support lacks a label.
            Cancelled: where `cancel` said so.
        """
        support_slices = {label: support.for_label(label) for label in (support.labels if labels is None else labels)}
        content_hash = query.content_hash()
        run_axis = support.axis_on(query, content_hash) if axis is None else axis
        scan = SliceStack.of(query, run_axis, query.window(window), content_hash)
        run = self.run(scan, support, options, slices=slices, labels=labels)
        builder = SegmentationBuilder(query, scan, support_slices, support.names)
        for results in run.steps():
            for result in results:
                if isinstance(result, SliceResult):
                    builder.add(result.label, result.index, result.probability, result.certainty)
                    if on_slice is not None:
                        on_slice(result)
                    _ask(cancel)
            _ask(cancel)
        return builder.segmentation(options.threshold, postprocessing, mismatch_warnings(scan, run.support_slices))

    def run(
        self,
        scan: SliceStack,
        support: SupportSet,
        options: RunOptions,
        *,
        slices: Sequence[int] | None = None,
        labels: Sequence[int] | None = None,
        latents: LatentCache | None = None,
        earlier: EarlierResults | None = None,
    ) -> Run:
        """The same over a stack of slices, to be driven batch by batch (`Run.steps`) under `torch.no_grad()`; see
        `segment` and `Run`.

        Raises:
            InputError: where a slice is outside the scan, or the support lacks a label.
        """
        support_slices = {label: support.for_label(label) for label in (support.labels if labels is None else labels)}
        return Run(self.pipeline, scan, support_slices, options, slices, latents, earlier)

    @property
    def searches(self) -> bool:
        """Whether the networks search for a structure on another scan; if not, registration does."""
        return not self.pipeline.takes_neighbours

    def seconds_per_slice(self) -> float:
        """What one slice of one label costs here, measured on two passes with random input; for telling the time to
        expect."""
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


def _ask(cancel: Callable[[], bool] | None) -> None:
    if cancel is not None and cancel():
        raise Cancelled("The segmentation was cancelled.")
