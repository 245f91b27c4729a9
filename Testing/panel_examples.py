"""The workbench on a real scene, with a real backend around a pipeline that finds what is bright."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mrml_scene import MrmlScene, SegmentEditor, held
from SDFSMISLib import Segmenter, SupportSet
from SDFSMISLib.images.planes import Plane
from SDFSMISLib.images.volume import Volume
from SDFSMISLib.workbench import Workbench
from SDFSMISLib.workbench.settings import Settings
from SDFSMISLib.workbench.slice_views import show_plane
from SDFSMISLib.workbench.views import (
    BackendChoice,
    BackendKind,
    Editor,
    RunRequest,
    RunView,
    SupportSliceView,
)
from small_scans import BrightPipeline, ball_scan


def kept_settings(agreed: Sequence[str] = ()) -> Settings:
    """Settings in memory, with hosts that the user has agreed to."""

    class Store(dict[str, str]):
        def value(self, name: str, default: str) -> str:
            return self.get(name, default)

        setValue = dict.__setitem__  # noqa: N815 - Qt's name

    settings = Settings(Store())
    settings.keep_agreed(agreed)
    return settings


class NoLocalBackend:
    """The backend on this computer, where nothing is installed and nothing can be."""

    folder = Path("nowhere")

    def is_ready(self, choice: BackendChoice) -> bool:
        return False

    def exists(self) -> bool:
        return False

    def status(self, choice: BackendChoice) -> tuple[str, str]:
        return "Nothing is installed.", "unknown"

    def has_changed(self) -> bool:
        return False

    def client(self, choice: Any, on_status: Any, cancel: Any) -> Any:
        raise AssertionError("it was asked to start, though nothing is installed")

    def install(self, options: Any, again: bool, report: Any, cancel: Any) -> str:
        raise AssertionError("it was installed, though nobody agreed")

    def remove(self) -> str:
        raise AssertionError("it was removed, though nothing is there")

    def stop(self) -> None:
        pass


class PaintedScene:
    """A scene with a ball painted on one slice, a view, the segment editor, and the workbench."""

    def __init__(
        self,
        url: str,
        *,
        scan: Volume | None = None,
        axis: int = 0,
        painted: Sequence[int] = (6,),
        kept: Settings | None = None,
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
        self.workbench = Workbench(kept or kept_settings(), NoLocalBackend())
        self.workbench.backend.choose(BackendChoice(BackendKind.SERVER, url))
        self.workbench.support.select(self.volume, self.segmentation)

    @property
    def last_run(self) -> RunView:
        """The run in progress, or the last one."""
        return self.workbench.run.view

    @property
    def entries(self) -> tuple[SupportSliceView, ...]:
        """The support set, as the panel lists it."""
        return self.workbench.support.view.entries

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

    def show_view(self, name: str) -> None:
        """Add a view to the layout."""
        self.scene.view(name).SetMappedInLayout(1)

    def show(self, axis: int, index: int) -> None:
        """Show a slice in a view, which is turned if it must."""
        show_plane(self.volume, Plane(axis, index))

    def undo(self) -> None:
        self.editor.logic.Undo()

    def run(self, request: RunRequest | None = None) -> None:
        """A run, to its end."""
        self.start(request)
        self.drive(lambda: not self.workbench.run.view.running)

    def start(self, request: RunRequest | None = None) -> None:
        self.workbench.run.start(request or RunRequest(), Editor(self.editor.node, self.editor.logic.SaveStateForUndo))

    def drive(self, until: Callable[[], bool], seconds: float = 20.0) -> None:
        """What the panel's timer does, until something is true."""
        end = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < end, f"it did not come: {self.workbench.run.view}, {self.workbench.backend.view}"
            if not self.workbench.step():
                time.sleep(0.005)

    def rest(self) -> None:
        """Until nothing is left to be written."""
        self.workbench.step()
        self.drive(lambda: not self.workbench.step() and not self.workbench.review.view.working)

    def results(self, segmentation: Any = None) -> dict[str, str]:
        """IDs of the results by name."""
        node = (segmentation or self.segmentation).GetSegmentation()
        names = {node.GetSegment(one).GetName(): one for one in node.GetSegmentIDs()}
        return {name: one for name, one in names.items() if "(SDFSMIS" in name}

    def held(self, segment_id: str, segmentation: Any = None, volume: Any = None) -> np.ndarray:
        return held(segmentation or self.segmentation, segment_id, volume or self.volume)


def answer(scan: Volume, painted: np.ndarray, axis: int | Literal["auto"] = 0) -> np.ndarray:
    """What the library itself finds for a painted mask, bool of the whole scan: the panel's result is the same."""
    labelmap = Volume(painted.astype(np.uint8), scan.geometry)
    support = SupportSet.from_labelmap(scan, labelmap, axis=axis)
    return Segmenter(BrightPipeline(), "bright").segment(scan, support).labelmap.voxels == 1


def only(results: dict[str, str]) -> str:
    """The ID of the only result."""
    (segment_id,) = results.values()
    return segment_id


def differ(one: np.ndarray, other: np.ndarray) -> int:
    """In how many voxels two masks differ."""
    assert one.shape == other.shape
    return int(np.count_nonzero(one != other))


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|) of two masks."""
    return 2 * float((one & other).sum()) / float(one.sum() + other.sum())
