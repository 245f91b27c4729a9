"""How well weights carry held-out supervoxels from slice to slice, told by the code that segments scans.

Episodes ask for one slice beside a finished one. What becomes of a structure many slices away they do not tell: weights
that did better on episodes have been seen to do worse on scans.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from SDFSMISLib.inference import Segmenter
from SDFSMISLib.inference.run import Options
from SDFSMISLib.inference.segmentation import SliceResult
from SDFSMISLib.intensity import IntensityWindow
from SDFSMISLib.model.pipeline import SDFSMISPipeline
from SDFSMISLib.stack import SliceStack
from SDFSMISLib.support import SupportSet, SupportSlice
from SDFSMISLib.training.adaptation_scans import AdaptationScan
from SDFSMISLib.training.volumes import TrainingVolume

__all__ = ["Propagation"]

TASKS = 10
REACH = 6  # slices to either side of the painted one
BEHIND = 1  # slices behind either end of a supervoxel
LEAST_SLICES = 3  # that show a supervoxel
LEAST_PIXELS = 25  # of a slice that shows it
LEVELS = 255  # of a probability
SEEN = IntensityWindow(-1.0, 1.0)  # volumes for training are normalised already


@dataclass(frozen=True)
class _Task:
    """One supervoxel, painted on the slice where it is largest; `masks`, bool, are the wanted slices'."""

    stack: SliceStack
    support: SupportSet
    masks: dict[int, np.ndarray]


class Propagation:
    """The same supervoxels each time, so that two weights can be compared."""

    def __init__(self, scans: Sequence[AdaptationScan], held: Sequence[TrainingVolume], seed: int) -> None:
        """
        Args:
            scans: all of them. held: volumes of some, whose maps have the held-out supervoxels only.
        """
        about = {scan.content: scan for scan in scans}
        rng = np.random.default_rng(seed)
        found = [_tasks(about[volume.name], volume, rng) for volume in held]
        most = max(map(len, found), default=0)
        self.tasks = [tasks[place] for place in range(most) for tasks in found if place < len(tasks)][:TASKS]

    @torch.no_grad()
    def score(self, pipeline: SDFSMISPipeline, ask: Callable[[], None]) -> float:
        """Mean soft Dice of the supervoxels, 0 to 1, each over all of its wanted slices.

        Args:
            ask: called after each batch of slices; may raise.
        """
        segmenter = Segmenter(pipeline)
        return float(np.mean([_dice(segmenter, task, ask) for task in self.tasks]))


def _tasks(scan: AdaptationScan, volume: TrainingVolume, rng: np.random.Generator) -> list[_Task]:
    """The supervoxels of a volume in an order by chance, large ones and small ones in turn."""
    by_map = []
    for parts in (np.moveaxis(np.asarray(part), volume.main_axis, 0) for part in volume.maps):
        made = (_task(scan, volume, parts == value) for value in rng.permutation(np.unique(parts[parts > 0])))
        by_map.append(list(islice((task for task in made if task is not None), TASKS)))
    most = max(map(len, by_map))
    return [tasks[place] for place in range(most) for tasks in by_map if place < len(tasks)]


def _task(scan: AdaptationScan, volume: TrainingVolume, mask: np.ndarray) -> _Task | None:
    """The task of a mask (slices, rows, columns); None where too few slices show it."""
    areas = np.count_nonzero(mask, axis=(1, 2))
    shown = np.flatnonzero(areas >= LEAST_PIXELS)
    if len(shown) < LEAST_SLICES:
        return None
    painted = int(areas.argmax())
    first = max(0, painted - REACH, int(shown[0]) - BEHIND)
    last = min(len(mask) - 1, painted + REACH, int(shown[-1]) + BEHIND)
    wanted = {index: mask[index].copy() for index in range(first, last + 1) if index != painted}
    stack = _stack(scan, volume)
    piece = SupportSlice(
        image=np.asarray(stack.read(painted), dtype=np.float32),
        labels=mask[painted].astype(np.uint16),
        axis=stack.axis,
        index=painted,
        spacing=stack.native_spacing,
        thickness=stack.thickness,
        orientation=stack.orientation,
        window=stack.window,
        scan=stack.scan,
        plane=stack.plane,
    )
    return _Task(stack, SupportSet((piece,)), wanted)


def _stack(scan: AdaptationScan, volume: TrainingVolume) -> SliceStack:
    main, image = volume.main, volume.image
    assert main is not None and image is not None
    axis = main.number
    rest = [along for along in range(3) if along != axis]
    return SliceStack(
        read=lambda index: np.take(image, index, axis=axis).astype(np.float32),
        axis=axis,
        count=image.shape[axis],
        native_shape=(image.shape[rest[0]], image.shape[rest[1]]),
        native_spacing=(volume.spacing[rest[0]], volume.spacing[rest[1]]),
        thickness=volume.spacing[axis],
        orientation=volume.orientations[axis],
        plane=main.plane,
        window=SEEN,
        scan=volume.name,
    )


def _dice(segmenter: Segmenter, task: _Task, ask: Callable[[], None]) -> float:
    both = found = 0.0
    run = segmenter.run(task.stack, task.support, Options(), slices=sorted(task.masks), labels=[1])
    for results in run.steps():
        ask()
        for result in results:
            if isinstance(result, SliceResult):
                soft = result.probability / LEVELS
                both += float(soft[task.masks[result.index]].sum())
                found += float(soft.sum())
    return 2 * both / (found + sum(np.count_nonzero(mask) for mask in task.masks.values()))
