"""A run over a whole scan: along every axis on which slices were painted, then fused in 3D."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.inference.networks import LatentCache
from SDFSMISLib.inference.run import EarlierResults, Result, Run
from SDFSMISLib.inference.segmentation import AxisFusion, certainty_of, mismatch_warnings
from SDFSMISLib.model.pipeline import SDFSMISPipeline
from SDFSMISLib.options import RunOptions
from SDFSMISLib.slices import SliceResult, SliceStack
from SDFSMISLib.support import SupportSlice


class VolumeRun:
    """One run over a scan that was painted on slices of one, two or three axes.

    One `Run` an axis follows the labels that were painted on it. Results that are not final by themselves (see
    `AxisFusion`) come as previews; the fusion of all axes follows as final results on the slices of the main axis.

    Args:
        pipeline: the networks.
        stacks: the slices of the scan along each axis of the run, by axis; the first is the main one.
        support: painted slices of each label, of this scan or of others.
        options: strategy, region, threshold, batch size.
        slices: indices of the slices to segment along the main axis, from 0; None = all.
        latents: cache of encoded slices, shared with later runs.
        earlier: by axis, results of an earlier run with the same arguments that was cut off.
        priors: by label, uint8 on the scan's grid, 255 meaning 1, where finished scans let expect it (see
            `SDFSMISLib.inference.atlas`).

    Attributes:
        scan: the slices along the main axis.
        support: as given.
        requested: sorted indices of the slices to segment along the main axis.
        runs: the run of each axis, by axis.
        done, total: numbers of finished and of all slices of all axes; labels are counted one by one, fused slices not.

    Raises:
        InputError: if a slice is outside the scan, or nothing is painted.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from SDFSMISLib import SupportSet, Volume
        >>> from SDFSMISLib.images.geometry import Geometry
        >>> from SDFSMISLib.model.built_in import Size, new_built_in
        >>> geometry = Geometry((8, 16, 16), (1.0, 1.0, 1.0), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
        >>> mask = np.zeros((8, 16, 16), dtype=np.uint8)
        >>> mask[4, 4:12, 4:12] = mask[2:6, 4:12, 8] = 1  # an axial and a sagittal slice
        >>> scan = Volume(100 * mask.astype(np.float32), geometry)
        >>> support = SupportSet.from_labelmap(scan, Volume(mask, geometry))
        >>> pipeline = new_built_in(size=Size(resolution=32, channels=(8, 16)))  # random weights
        >>> stacks = {axis: SliceStack.of(scan, axis) for axis in support.axes_on(scan, scan.content_hash())}
        >>> run = VolumeRun(pipeline, stacks, {1: support.for_label(1)}, RunOptions())
        >>> with torch.no_grad():
        ...     slices = [one for results in run.steps() for one in results if isinstance(one, SliceResult)]
        >>> [(axis, stage, sum((one.axis, one.stage) == (axis, stage) for one in slices))
        ...     for axis, stage in [(0, "preview"), (2, "preview"), (0, "final")]]
        [(0, 'preview', 7), (2, 'preview', 15), (0, 'final', 7)]
    """

    def __init__(
        self,
        pipeline: SDFSMISPipeline,
        stacks: Mapping[int, SliceStack],
        support: Mapping[int, Sequence[SupportSlice]],
        options: RunOptions,
        slices: Sequence[int] | None = None,
        latents: LatentCache | None = None,
        earlier: Mapping[int, EarlierResults] | None = None,
        priors: Mapping[int, np.ndarray] | None = None,
    ) -> None:
        if not support:
            raise InputError("The support set has nothing painted; paint the structure on at least one slice.")
        self.scan = next(iter(stacks.values()))
        self.support = support
        self.options = options
        self.requested = self.scan.wanted(slices)
        self._fusion = AxisFusion(self.scan, list(stacks), support, priors)
        self.runs: dict[int, Run] = {}
        for axis, stack in stacks.items():
            labels = self._fusion.labels(axis)
            if labels:
                chosen = slices if axis == self.axis else None
                known = (earlier or {}).get(axis)
                self.runs[axis] = Run(pipeline, stack, labels, options, chosen, latents, known, priors)

    @property
    def axis(self) -> int:
        """The main axis, along which the final results come."""
        return self.scan.plane.axis

    @property
    def axes(self) -> Mapping[int, tuple[int, ...]]:
        """The axes along which each label is followed, by label."""
        return self._fusion.axes

    @property
    def fused(self) -> Sequence[int]:
        """The labels whose slices come as previews, and then fused; those of other labels are final at once."""
        return self._fusion.fused

    @property
    def fusion_bytes(self) -> int:
        """The most memory that fusing takes."""
        return self._fusion.bytes

    def needed(self) -> list[int]:
        """Sorted indices of the slices along the main axis whose image the run reads, or cuts other slices from."""
        main = self.runs.get(self.axis)
        return main.needed() if main is not None and len(self.runs) == 1 else list(range(self.scan.count))

    @property
    def total(self) -> int:
        return sum(run.total for run in self.runs.values())

    @property
    def done(self) -> int:
        return sum(run.done for run in self.runs.values())

    @property
    def warnings(self) -> list[str]:
        """See `mismatch_warnings`."""
        found = [mismatch_warnings(run.scan, run.support_slices) for run in self.runs.values()]
        return list(dict.fromkeys(chain.from_iterable(found)))

    def steps(self) -> Generator[list[Result], None, None]:
        """The results of each batch; an empty list if a batch finished no slice, and after each part of a fusion."""
        for axis, run in self.runs.items():
            for (label, index), probability in run.earlier_slices.items():
                self._fusion.add(SliceResult(label, axis, index, probability, 1.0, run.done, run.total))
            before = self.done - run.done
            for results in run.steps():
                yield [self._counted(result, before) for result in results]
        for label in self._fusion.fused:
            for batch in self._fusion.final(label, self.requested, self.options.batch_size):
                yield [
                    SliceResult(label, self.axis, index, probability, certainty_of(probability), self.done, self.total)
                    for index, probability in batch
                ]

    def _counted(self, result: Result, before: int) -> Result:
        """A result of one axis as one of the whole run, in which `before` slices were done along the other axes."""
        if not isinstance(result, SliceResult):
            return result
        return replace(self._fusion.add(result), finished=before + result.finished, total=self.total)
