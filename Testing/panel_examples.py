"""The panel's logic on a real scene, with a real backend around a pipeline that finds what is bright."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mrml_scene import MrmlScene, SegmentEditor, held
from SDFSMISLib import Segmenter, SupportSet
from SDFSMISLib.images.volume import Volume
from SDFSMISLib.workbench.backend_choice import BackendAccess
from SDFSMISLib.workbench.logic import Logic
from SDFSMISLib.workbench.views import BackendChoice, BackendKind, Editor, RunRequest
from small_scans import BrightPipeline, ball_scan


class Kept:
    """What is remembered, in memory."""

    def __init__(self, agreed: Sequence[str] = ()) -> None:
        self._hosts: list[str] = []
        self._agreed = list(agreed)

    def hosts(self) -> tuple[str, ...]:
        return tuple(self._hosts)

    def keep_host(self, url: str) -> None:
        self._hosts = [url, *(known for known in self._hosts if known != url)]

    def agreed_hosts(self) -> tuple[str, ...]:
        return tuple(self._agreed)

    def keep_agreed(self, hosts: Sequence[str]) -> None:
        self._agreed = list(hosts)


class NoComputer:
    """This computer, where nothing is installed and nothing can be."""

    folder = Path("nowhere")

    def is_ready(self, choice: BackendChoice) -> bool:
        return False

    def is_there(self) -> bool:
        return False

    def status(self, choice: BackendChoice) -> tuple[str, str]:
        return "Nothing is installed.", "unknown"

    def has_changed(self) -> bool:
        return False

    def client(self, choice: Any, say: Any, cancel: Any) -> Any:
        raise AssertionError("it was asked to start, though nothing is installed")

    def install(self, options: Any, again: bool, report: Any, cancel: Any) -> str:
        raise AssertionError("it was installed, though nobody agreed")

    def remove(self) -> str:
        raise AssertionError("it was removed, though nothing is there")

    def stop(self) -> None:
        pass


class PaintedScene:
    """A scene with a ball painted on one slice, a view, the segment editor, and the logic."""

    def __init__(
        self,
        url: str,
        *,
        scan: Volume | None = None,
        axis: int = 0,
        painted: Sequence[int] = (6,),
        kept: Kept | None = None,
        above_scan: np.ndarray | None = None,
        above_segmentation: np.ndarray | None = None,
    ) -> None:
        """
        Args:
            above_scan, above_segmentation: 4 × 4 of transforms that scan and segmentation stand under; the same object
                makes it the same transform.
        """
        ball, labelmap = ball_scan()
        self.scene = MrmlScene()
        self.truth = labelmap.voxels.astype(bool)
        self.scan = scan if scan is not None else ball
        self.axis, self.painted = axis, list(painted)
        self.volume = self.scene.scan(self.scan, "CT")
        self.segmentation = self.scene.segmentation(self.volume, "Painted")
        transforms: dict[int, str] = {}
        for node, matrix in ((self.volume, above_scan), (self.segmentation, above_segmentation)):
            if matrix is not None:
                known = transforms.setdefault(id(matrix), "") or self.scene.transform(matrix).GetID()
                transforms[id(matrix)] = known
                node.SetAndObserveTransformNodeID(known)
        self.editor: SegmentEditor = self.scene.editor(self.segmentation, self.volume)
        self.segment = self.editor.segment("ball")
        for index in painted:
            self.paint(index, axis)
        self.view = self.scene.view("Red")
        self.view.SetMappedInLayout(1)
        self.logic = Logic(BackendAccess(kept or Kept(), NoComputer()))
        self.logic.choose_backend(BackendChoice(BackendKind.SERVER, url))
        self.logic.select(self.volume, self.segmentation)

    def answer(self) -> np.ndarray:
        """What the library finds for what was painted at first."""
        mask = np.zeros_like(self.truth)
        place = (slice(None),) * self.axis + (self.painted,)
        mask[place] = self.truth[place]
        return answer(self.scan, mask, self.axis)

    def paint(self, index: int, axis: int = 0, segment: str | None = None) -> None:
        """Paints the ball as it is on a slice."""
        mask = np.zeros_like(self.truth)
        place = (slice(None),) * axis + (index,)
        mask[place] = self.truth[place]
        self.editor.paint(segment or self.segment, mask)

    def undo(self) -> None:
        self.editor.logic.Undo()

    def run(self, request: RunRequest | None = None) -> None:
        """A run, to its end."""
        self.start(request)
        self.drive(lambda: not self.logic.run.running)

    def start(self, request: RunRequest | None = None) -> None:
        self.logic.start(request or RunRequest(), Editor(self.editor.node, self.editor.logic.SaveStateForUndo))

    def drive(self, until: Callable[[], bool], seconds: float = 20.0) -> None:
        """What the panel's timer does, until something is true."""
        end = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < end, f"it did not come: {self.logic.run}, {self.logic.backend}"
            if not self.logic.step():
                time.sleep(0.005)

    def rest(self) -> None:
        """Until nothing is left to be written."""
        self.logic.step()
        self.drive(lambda: not self.logic.step() and not self.logic.review.working)

    def results(self, segmentation: Any = None) -> dict[str, str]:
        """IDs of the results by name."""
        node = (segmentation or self.segmentation).GetSegmentation()
        names = {node.GetSegment(one).GetName(): one for one in node.GetSegmentIDs()}
        return {name: one for name, one in names.items() if "(SDFSMIS" in name}

    def held(self, segment_id: str, segmentation: Any = None, volume: Any = None) -> np.ndarray:
        return held(segmentation or self.segmentation, segment_id, volume or self.volume)


def answer(scan: Volume, painted: np.ndarray, axis: int = 0) -> np.ndarray:
    """What the library itself finds for a painted mask, bool of the whole scan: the panel's result is the same."""
    labelmap = Volume(painted.astype(np.uint8), scan.geometry)
    support = SupportSet.from_labelmap(scan, labelmap, axis=axis)
    return Segmenter(BrightPipeline(), "bright").segment(scan, support).labelmap.voxels == 1


def differ(one: np.ndarray, other: np.ndarray) -> int:
    """In how many voxels two masks differ."""
    assert one.shape == other.shape
    return int(np.count_nonzero(one != other))


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|) of two masks."""
    return 2 * float((one & other).sum()) / float(one.sum() + other.sum())
