"""Examples for tests of the MRML side: a scan with painted segments, a run on it, and what it must give."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import settings

from mrml_scene import MrmlScene, held
from SDFSMISLib.images.planes import Plane
from SDFSMISLib.images.postprocess import Postprocessing
from SDFSMISLib.images.volume import Geometry
from SDFSMISLib.inference.segmentation import SegmentationBuilder
from SDFSMISLib.scene import (
    Painting,
    ResultWriter,
    ScanCache,
    SegmentTemplate,
    find_results,
    read_painting,
    read_results,
    with_corrections,
)
from SDFSMISLib.slices import SliceStack
from SDFSMISLib.support import SupportSet
from volume_examples import IDENTITY, random_direction

few = settings(deadline=None, max_examples=30)


Index = tuple[int, int, int]


def rigid(rng: np.random.Generator) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(random_direction(rng), (3, 3))
    matrix[:3, 3] = rng.uniform(-50, 50, 3)
    return matrix


def random_masks(rng: np.random.Generator, shape: Index, count: int, axis: int | None = None) -> list[np.ndarray]:
    """Bool masks that do not overlap and are not empty; painted on one slice along an axis if one is given."""
    labels = rng.integers(0, count + 1, shape)
    labels.flat[rng.permutation(labels.size)[:count]] = np.arange(1, count + 1)
    if axis is not None:
        along = np.moveaxis(labels, axis, 0)
        index = int(rng.integers(len(along)))
        along[index].flat[:count] = np.arange(1, count + 1)
        along[np.arange(len(along)) != index] = 0
    return [labels == label for label in range(1, count + 1)]


def grown(mask: np.ndarray) -> np.ndarray:
    return np.where(mask, np.uint8(255), np.uint8(0))


def other_lattice(geometry: Geometry, kind: str) -> Geometry:
    """A grid that holds other voxels of the same place: half the size, its axes in another order, a part, or more."""
    axes = np.reshape(geometry.direction, (3, 3))
    if kind == "turned":
        (i, j, k), (slices, height, width) = geometry.spacing, geometry.shape
        direction = tuple(axes[:, [2, 0, 1]].ravel())
        return Geometry((height, width, slices), (k, i, j), geometry.origin, direction)
    if kind == "finer":
        spacing = np.array(geometry.spacing) / 2
        origin = np.array(geometry.origin) - axes @ (spacing / 2)
        return Geometry(tuple(2 * side for side in geometry.shape), tuple(spacing), tuple(origin), geometry.direction)
    first, shape = (1, tuple(side - 1 for side in geometry.shape)) if kind == "cropped" else (-1, geometry.shape)
    origin = (geometry.index_to_physical() @ [first, first, first, 1])[:3]
    return replace(geometry, shape=shape, origin=tuple(origin))


SHAPE = (9, 10, 11)


class Bench:
    """A scan with the segments "liver" and "spleen", each painted on one slice along an axis, and a bystander."""

    def __init__(self, geometry: Geometry | None = None, axis: int = 0, seed: int = 0, labels: int = 2) -> None:
        rng = np.random.default_rng(seed)
        self.axis, self.scene = axis, MrmlScene()
        self.geometry = geometry or Geometry(SHAPE, (0.8, 0.9, 2.0), (-10, 20, 30), random_direction(rng))
        self.node = self.scene.volume(rng.integers(0, 1000, self.geometry.shape).astype(np.int16), self.geometry)
        self.segmentation = self.scene.segmentation(self.node)
        self.editor = self.scene.editor(self.segmentation, self.node)
        self.painted = [rng.random(self.geometry.shape) < 0.3 for _ in range(labels)]
        for number, mask in enumerate(self.painted):
            along = np.moveaxis(mask, axis, 0)
            index = (2 + 3 * number) % len(along)
            along[np.arange(len(along)) != index] = False
            along[index].flat[number] = True
            mask &= ~np.any([np.zeros_like(mask), *self.painted[:number]], axis=0)
        names, colors = ("liver", "spleen"), ((0.8, 0.2, 0.1), (0.2, 0.3, 0.9))
        self.ids = [self.editor.segment(*one) for one in zip(names, self.painted, colors, strict=False)]
        self.bystander = rng.random(self.geometry.shape) < 0.3
        self.other = self.editor.segment("other", self.bystander)
        self.scan = ScanCache().get(self.node)
        self.probabilities = {
            label: rng.integers(0, 256, self.geometry.shape, dtype=np.uint8) for label in range(1, labels + 1)
        }

    @property
    def segments(self) -> Any:
        return self.segmentation.GetSegmentation()

    def painting(self) -> Painting:
        return read_painting(self.node, self.segmentation, self.ids)

    def corrected(self, results: dict[int, str]) -> Painting:
        """The painting with what was corrected in results of a run, by label."""
        return with_corrections(self.painting(), read_results(self.node, self.segmentation, results))

    @property
    def templates(self) -> dict[int, SegmentTemplate]:
        return {label: SegmentTemplate.of(self.segmentation, one) for label, one in enumerate(self.ids, 1)}

    def found(self, segmentation: Any = None, node: Any = None) -> dict[int, str]:
        """The results of earlier runs, by label."""
        return find_results(node or self.node, segmentation or self.segmentation, self.templates)

    def support(self) -> SupportSet:
        painting = self.painting()
        return painting.support(self.scan, [Plane(self.axis, index) for index in painting.labels.slices(self.axis)])

    def writer(self, **options: Any) -> ResultWriter:
        support = options.pop("support", None) or self.support()
        options.setdefault("save_undo", self.editor.logic.SaveStateForUndo)
        return ResultWriter(self.node, self.segmentation, self.scan, support, self.axis, self.templates, **options)

    def slice(self, label: int, index: int) -> np.ndarray:
        return np.moveaxis(self.probabilities[label], self.axis, 0)[index]

    def whole(self, support: SupportSet, label: int) -> set[int]:
        """The slices that no run computes."""
        known = [one for one in support.for_label(label) if one.known is None]
        return {one.index for one in known if one.plane.axis == self.axis}

    def run(self, writer: ResultWriter, seed: int = 0, support: SupportSet | None = None) -> None:
        """Hands out the slices in any order, those that are not painted, some written in between."""
        rng, support = np.random.default_rng(seed), support or self.support()
        records = [
            (label, index)
            for label in self.probabilities
            for index in range(self.geometry.shape[self.axis])
            if index not in self.whole(support, label)
        ]
        for label, index in rng.permutation(records).tolist():
            writer.add_slice(label, index, self.slice(label, index), (label * 100 + index) / 1000)
            if rng.random() < 0.2:
                writer.write_next(int(rng.integers(20)))

    def finished(self, **options: Any) -> ResultWriter:
        """A run, to its end."""
        writer = self.writer(**options)
        self.run(writer, support=options.get("support"))
        finish(writer)
        return writer

    def expected(
        self, threshold: float = 0.5, cleaning: Postprocessing | None = None, support: SupportSet | None = None
    ) -> np.ndarray:
        """The labelmap that the command line gives for the same run."""
        support = support or self.support()
        stack = SliceStack.of(self.scan, self.axis)
        pieces = {label: support.for_label(label) for label in self.probabilities}
        builder = SegmentationBuilder(self.scan, stack, pieces, support.names)
        for label in self.probabilities:
            for index in set(range(stack.count)) - self.whole(support, label):
                builder.add(label, index, self.slice(label, index), 1.0)
        return builder.segmentation(threshold, cleaning).labelmap.voxels

    def held(self, writer: ResultWriter) -> np.ndarray:
        """The labelmap of the results in the scene."""
        results = {label: writer.segment_id(label) for label in self.probabilities}
        return self.labels({label: result for label, result in results.items() if result is not None})

    def labels(self, segment_ids: dict[int, str]) -> np.ndarray:
        """The labelmap of segments in the scene, which do not overlap."""
        labels = np.zeros(self.geometry.shape, dtype=np.uint16)
        for label, segment_id in segment_ids.items():
            mask = held(self.segmentation, segment_id, self.node)
            assert not labels[mask].any()
            labels[mask] = label
        return labels

    def near(self, changed: np.ndarray, axis: int = 0) -> np.ndarray:
        """Bool of the whole grid: what is known after strokes on slices along an axis changed these voxels."""
        near = np.zeros(self.geometry.shape, dtype=bool)
        for voxel in np.argwhere(changed):
            reach = [0 if other == axis else int(5.0 / self.geometry.axis_spacing(other)) for other in range(3)]
            near[tuple(slice(max(v - r, 0), v + r + 1) for v, r in zip(voxel, reach, strict=True))] = True
        return near

    def held_masks(self, writer: ResultWriter) -> np.ndarray:
        """Bool (labels, slices, height, width) of the results in the scene."""
        return np.array([held(self.segmentation, writer.segment_id(label), self.node) for label in self.probabilities])

    def state(self) -> dict[str, tuple[str, np.ndarray]]:
        """All segments by ID: name and voxels."""
        return {
            one: (self.segments.GetSegment(one).GetName(), held(self.segmentation, one, self.node))
            for one in self.segments.GetSegmentIDs()
        }


def write_all(writer: ResultWriter) -> None:
    """Writes all pending slices, cleaned if cleaning is on, as the workbench does step by step."""
    while writer.write_next():
        pass
    if writer.cleaning_due:
        writer.apply_cleaned(writer.cleaning_task()())
        write_all(writer)


def finish(writer: ResultWriter) -> None:
    """Ends a run."""
    write_all(writer)
    writer.update_surface()


def accept(writer: ResultWriter) -> None:
    for _ in writer.accept_steps():
        pass


def discard(writer: ResultWriter) -> None:
    for _ in writer.discard_steps():
        pass


def same_state(one: dict[str, tuple[str, np.ndarray]], other: dict[str, tuple[str, np.ndarray]]) -> bool:
    return one.keys() == other.keys() and all(
        one[key][0] == other[key][0] and np.array_equal(one[key][1], other[key][1]) for key in one
    )


def two_balls() -> Bench:
    """One structure in two pieces, the smaller one around the painted slice 2, the other from slice 6."""
    bench = Bench(Geometry((12, 20, 20), (1, 1.5, 2), (0, 0, 0), IDENTITY), labels=1)
    bench.editor.erase(bench.ids[0], bench.painted[0])
    bench.editor.paint(bench.ids[0], np.ones((1, 4, 4), dtype=bool), (2, 4, 4))
    bench.probabilities[1][:] = 0
    bench.probabilities[1][1:4, 4:8, 4:8] = 200
    bench.probabilities[1][6:11, 10:16, 10:16] = 220
    return bench


def one_slice(axis: int, index: int, mask: np.ndarray) -> tuple[np.ndarray, Index]:
    """A mask (rows, columns) of a slice, and where it starts in the grid."""
    start = [0, 0, 0]
    start[axis] = index
    return np.expand_dims(mask, axis), (start[0], start[1], start[2])


TURN = rigid(np.random.default_rng(0))


def put_under(node: Any, transform_node: Any) -> None:
    node.SetAndObserveTransformNodeID(transform_node.GetID())
