"""What the panel's steps take on 3D Slicer's main thread: `python Testing/Benchmarks/main_thread.py [--slices 300]`.

A real MRML scene (slicer-core) holds a scan of int16, two organs 200 voxels across, each painted on one slice, and a
third segment over the whole scan, inside which editing is allowed, in a range of intensities. Runs on it are taken
through all that the panel does. Each step is timed by itself; the table gives medians and the longest. What runs in a
worker thread is timed as a whole, together with the longest time for which it held up the main thread.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from mrml_scene import MrmlScene
from SDFSMISLib.images.geometry import Geometry
from SDFSMISLib.images.planes import Plane
from SDFSMISLib.images.postprocess import Postprocessing
from SDFSMISLib.scene import (
    EditingRules,
    Painting,
    ResultWriter,
    Scan,
    ScanCache,
    SegmentTemplate,
    SequenceFrame,
    find_results,
    list_segments,
    matches_lattice,
    painting_stamp,
    read_painting,
    read_results,
    show_slice,
    shown_slice,
    with_corrections,
)
from SDFSMISLib.support import SupportSet

LIMIT = 50.0  # ms that a step on the main thread may take


class Clock:
    """The times of steps, ms, by name; those of Slicer's own work and of worker threads are kept apart."""

    def __init__(self) -> None:
        self.times: dict[tuple[str, str], list[float]] = {}
        self._within = 0.0  # of the step that goes on, what steps within it took

    def __call__(self, name: str, act: Callable[..., Any], *given: Any, whose: str = "ours") -> Any:
        """Times a step, without the steps within it."""
        outside, self._within = self._within, 0.0
        began = time.perf_counter()
        try:
            return act(*given)
        finally:
            taken = 1000 * (time.perf_counter() - began)
            self.times.setdefault((name, whose), []).append(taken - self._within)
            self._within = outside + taken

    def steps(self, name: str, generator: Iterator[Any]) -> None:
        """Times each step of a generator."""
        while self(name, next, generator, None) is not None:
            pass

    def in_worker(self, name: str, act: Callable[..., Any], *given: Any) -> Any:
        """Runs it in a thread, and looks how long this thread cannot go on meanwhile."""
        made: list[Any] = []
        worker = threading.Thread(target=lambda: made.append(act(*given)))
        stall = f"the longest that it holds up the main thread: {name}"
        worker.start()
        longest = 0.0
        began = last = time.perf_counter()
        while worker.is_alive():
            time.sleep(0.001)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
        self.times.setdefault((name, "worker"), []).append(1000 * (last - began))
        self.times.setdefault((stall, "ours"), []).append(1000 * longest)
        return made[0]

    def table(self) -> str:
        """Markdown, in the order in which steps came first."""
        lines = ["| step | whose | times | median ms | longest ms |", "| --- | --- | ---: | ---: | ---: |"]
        for (name, whose), times in self.times.items():
            lines.append(f"| {name} | {whose} | {len(times)} | {statistics.median(times):.1f} | {max(times):.1f} |")
        return "\n".join(lines)

    def too_long(self) -> list[str]:
        """Steps of ours that took longer than they may."""
        return [name for (name, whose), times in self.times.items() if whose == "ours" and max(times) > LIMIT]


class Example:
    """The scene, and what a model would say of it."""

    def __init__(self, slices: int, side: int, organ: int) -> None:
        import slicer

        self.scene = MrmlScene()
        geometry = Geometry((slices, side, side), (0.8, 0.8, 1.5), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
        rng = np.random.default_rng(0)
        voxels = np.stack([rng.normal(0, 40, (side, side)).astype(np.int16) for _ in range(slices)])
        self.node = self.scene.volume(voxels, geometry)
        self.segmentation = self.scene.segmentation(self.node)
        self.view = self.scene.view()
        self.editor = self.scene.editor(self.segmentation, self.node)
        self.editor.node.SetOverwriteMode(slicer.vtkMRMLSegmentEditorNode.OverwriteAllSegments)
        body = self.editor.segment("body", np.ones(geometry.shape, dtype=bool))
        self.middle, radius = slices // 2, organ / 2
        self.probabilities, self.ids = {}, []
        k, j, i = np.ogrid[:slices, :side, :side]
        for label, (name, center) in enumerate((("liver", side / 2 - radius), ("spleen", side / 2 + radius)), 1):
            places = (k - self.middle) ** 2, (j - side / 2) ** 2, (i - center) ** 2
            distance = sum(place / radius**2 for place in places)
            self.probabilities[label] = np.clip(255 * (1.5 - distance), 0, 255).astype(np.uint8)
            self.ids.append(self.editor.segment(name))
            self.editor.paint(self.ids[-1], distance[self.middle : self.middle + 1] < 1, (self.middle, 0, 0))
        self.editor.node.SetMaskMode(slicer.vtkMRMLSegmentationNode.EditAllowedInsideSingleSegment)
        self.editor.node.SetMaskSegmentID(body)
        self.editor.node.SourceVolumeIntensityMaskOn()
        self.editor.node.SetSourceVolumeIntensityMaskRange(-100, 100)

    def undo(self) -> None:
        self.editor.logic.SaveStateForUndo()


def prepared(clock: Clock, example: Example) -> tuple[Scan, Painting, SupportSet]:
    """What comes before a run: the scan is copied, the painting read, the support made."""
    node, segmentation, scans = example.node, example.segmentation, ScanCache()
    clock.steps("copy the scan, one step", scans.copy_steps(node))
    scan = clock("the scan, copied", scans.get, node)
    for _ in range(5):
        clock("list the segments", list_segments, segmentation)
        clock("the frame of a sequence", SequenceFrame.of, node)
        clock("has the painting changed?", painting_stamp, node, segmentation, example.ids)
        clock("does the segmentation fit the scan?", matches_lattice, node, segmentation)
        painting = clock("read the painting", read_painting, node, segmentation, example.ids)
        clock("axis and slices of the painting", slices_of, painting)
        clock("the slice shown in a view", shown_slice, example.view, node)
        clock("show a slice", show_slice, example.view, node, 0, example.middle)
        clock("rules of the segment editor", EditingRules.of, example.editor.node, node)
        template = clock("look of a segment", SegmentTemplate.of, segmentation, example.ids[0])
        clock("find the result of an earlier run", find_results, node, segmentation, {1: template})
    support = clock.in_worker("make the support set", painting.support, scan)
    return scan, painting, support


def slices_of(painting: Painting) -> tuple[Plane, ...]:
    return (*painting.painted,)


def run(clock: Clock, example: Example, scan: Scan, support: SupportSet, into: dict[int, str]) -> ResultWriter:
    """One run, from the first slice to the last."""
    templates = {label: SegmentTemplate.of(example.segmentation, one) for label, one in enumerate(example.ids, 1)}
    rules = EditingRules.of(example.editor.node, example.node)

    def save_undo() -> None:
        clock("save the state for undo", example.undo, whose="Slicer")

    def make() -> ResultWriter:
        return ResultWriter(
            example.node, example.segmentation, scan, support, 0, templates, into=into, rules=rules, save_undo=save_undo
        )

    writer = clock("make the writer", make)
    order = sorted(range(len(scan.voxels)), key=lambda index: abs(index - example.middle))
    for number, index in enumerate(order[1:]):
        for label, probability in example.probabilities.items():
            clock("take a slice", writer.add_slice, label, index, probability[index], index / len(order))
        if number % 4 == 0:
            clock("write a block during the run", writer.write_next, example.middle)
    written_by_steps(clock, "write a block at the end of the run", writer)
    clock("bring surfaces up to date; none is shown", writer.update_surface)
    return writer


def written_by_steps(clock: Clock, name: str, writer: ResultWriter) -> None:
    while clock(name, writer.write_next):
        pass


def reviewed(clock: Clock, writer: ResultWriter) -> None:
    """Thresholds and cleanings, as a user tries them out."""
    for threshold in (0.3, 0.8, 0.5):
        clock("another threshold", writer.set_threshold, threshold)
        written_by_steps(clock, "write a block of another threshold", writer)
    for cleaning in (Postprocessing(keep_largest="volume"), Postprocessing(2.0, keep_largest="volume"), None):
        clock("another cleaning", writer.set_cleaning, cleaning)
        if cleaning is not None:
            job = clock("what a cleaning needs", writer.cleaning_task)
            clock("take what was cleaned", writer.apply_cleaned, clock.in_worker("clean", job))
        written_by_steps(clock, "write a block of a cleaning", writer)
    for _ in range(5):
        clock("slices changed by hand; none was", lambda: writer.corrected)
        clock("what a suggestion needs", writer.doubts_task)
        clock("volume of a result", writer.volume_ml, 1)
    clock.in_worker("suggest a slice", writer.doubts_task())


def corrected(clock: Clock, example: Example, writer: ResultWriter, painting: Painting) -> None:
    """Strokes in a result, and the support of the next run."""
    results = {label: writer.segment_id(label) for label in example.probabilities}
    axial, sagittal = np.ones((1, 40, 40), dtype=bool), np.ones((60, 40, 1), dtype=bool)
    for stroke, index in ((axial, example.middle - 20), (axial, example.middle + 15), (sagittal, example.middle - 10)):
        clock("a stroke", example.editor.paint, results[1], stroke, (index, 200, 200), whose="Slicer")
        clock("slices changed by hand after a stroke", lambda: writer.corrected)
        clock("volume after a stroke", writer.volume_ml, 1)
        clock("another threshold after a stroke", writer.set_threshold, 0.4 if writer.threshold == 0.5 else 0.5)
        written_by_steps(clock, "write a block after a stroke", writer)
    clock("say that a slice is right", writer.know, Plane(1, 256))
    held = clock("read the results", read_results, example.node, example.segmentation, results)
    clock.in_worker("find the corrections", with_corrections, painting, held)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--organ", type=int, default=200, help="voxels across")
    options = parser.parse_args()
    clock, example = Clock(), Example(options.slices, options.side, options.organ)
    scan, painting, support = prepared(clock, example)
    first = run(clock, example, scan, support, {})
    reviewed(clock, first)
    corrected(clock, example, first, painting)
    results = {label: first.segment_id(label) for label in example.probabilities}
    second = run(clock, example, scan, support, results)
    clock.steps("discard, one step", second.discard_steps())
    third = run(clock, example, scan, support, results)
    clock.steps("accept, one step", third.accept_steps())
    clock("undo", example.editor.logic.Undo, whose="Slicer")
    print(clock.table())
    for name in clock.too_long():
        print(f"longer than {LIMIT:.0f} ms: {name}")


if __name__ == "__main__":
    main()
