"""The self-test of the module: the whole path through the panel, as a user takes it, in a running 3D Slicer."""

from __future__ import annotations

import os
import time
import unittest
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import slicer

from SDFSMISLib.workbench.views import BackendChoice, BackendKind

__all__ = ["SelfTest"]

PYTHON, SERVER = "SDFSMIS_TEST_PYTHON", "SDFSMIS_TEST_SERVER"
PAINTED = 11  # the slice
LEAST_DICE = 0.8
TIMEOUT = 60.0  # seconds of one step; the first starts the backend


class SelfTest:
    """Uses the controls as a user does, and checks the scene.

    Args:
        case: its assertions are used.
        widget: the module's widget.
        backend: to segment with.
    """

    def __init__(self, case: unittest.TestCase, widget: Any, backend: BackendChoice) -> None:
        self._case, self._ui, self._workbench, self._backend = case, widget.ui, widget.panel.workbench, backend
        self._volume: Any = None
        self._truth = np.zeros(0, dtype=bool)

    @staticmethod
    def backend() -> BackendChoice:
        """The backend that environment variables name; without them the test is skipped."""
        python, server = os.environ.get(PYTHON, ""), os.environ.get(SERVER, "")
        if not (python or server):
            raise unittest.SkipTest(f"Name a backend: a Python with SDFSMIS as {PYTHON}, or an address as {SERVER}.")
        return BackendChoice(BackendKind.LOCAL if python else BackendKind.SERVER, url=server, python=python)

    def run(self) -> None:
        """Run all steps; a failure raises what unittest raises."""
        self._workbench.backend.choose(self._backend)
        self._load()
        self._paint()
        self._segment()
        self._review()
        self._correct()
        self._accept()
        self._close_scene()

    # -- the steps -----------------------------------------------------------------------------------------------------

    def _load(self) -> None:
        """Load a synthetic scan: an organ in a body, both with noise."""
        z, y, x = np.meshgrid(*(np.linspace(-1, 1, side) for side in (24, 72, 64)), indexing="ij")
        self._truth = (x - 0.1) ** 2 / 0.16 + (y + 0.15) ** 2 / 0.1 + z**2 / 0.4 < 1
        grey = 100.0 * (x**2 + y**2 < 0.9) + 120.0 * self._truth
        grey += np.random.default_rng(0).normal(0, 6, grey.shape)
        self._volume = slicer.util.addVolumeFromArray(grey.astype(np.int16), name="Self-test")
        self._volume.SetSpacing(1.5, 1.5, 3.0)
        slicer.util.setSliceViewerLayers(background=self._volume, fit=True)
        self._ui.scanSelector.setCurrentNode(self._volume)

    def _paint(self) -> None:
        segmentation = self._segmentation()
        segment = segmentation.GetSegmentation().AddEmptySegment("organ", "organ", (0.9, 0.5, 0.3))
        mask = np.zeros(self._truth.shape, dtype=np.uint8)
        mask[PAINTED] = self._truth[PAINTED]
        slicer.util.updateSegmentBinaryLabelmapFromArray(mask, segmentation, segment, self._volume)
        self._until(lambda: len(self._workbench.support.view.entries) == 1)
        self._case.assertTrue(self._ui.runButton.enabled, self._ui.runButton.toolTip)

    def _segment(self) -> None:
        self._ui.runButton.click()
        self._until(lambda: not self._workbench.run.view.running)
        self._case.assertFalse(self._workbench.run.view.failed, self._workbench.run.view.text)
        found = self._result()
        self._case.assertTrue(np.array_equal(found[PAINTED], self._truth[PAINTED]), "The painted slice has changed.")
        others = np.arange(len(found)) != PAINTED
        self._case.assertGreater(_dice(found[others], self._truth[others]), LEAST_DICE)

    def _review(self) -> None:
        before = self._result()
        for threshold, more in ((0.95, -1), (0.5, 0)):
            self._ui.thresholdSlider.value = threshold
            self._until(partial(self._has_threshold, threshold))
            self._case.assertEqual(int(np.sign(int(self._result().sum()) - int(before.sum()))), more)
        self._until(lambda: self._ui.suggestionButton.enabled)
        suggested = self._workbench.review.view.suggestion
        self._ui.suggestionButton.click()
        self._until(lambda: self._workbench.review.view.shown == suggested)

    def _correct(self) -> None:
        """What is corrected in the result is an example for the next run, and stays as it is."""
        before = self._result()
        wrong = before.copy()
        wrong[PAINTED + 4] = False
        wrong[PAINTED + 4, 20:30, 20:30] = True
        slicer.util.updateSegmentBinaryLabelmapFromArray(
            wrong.astype(np.uint8), self._segmentation(), self._result_id(), self._volume
        )
        self._until(lambda: any(entry.origin == "corrected" for entry in self._workbench.support.view.entries))
        self._ui.runButton.click()
        self._until(lambda: not self._workbench.run.view.running)
        self._case.assertFalse(self._workbench.run.view.failed, self._workbench.run.view.text)
        self._case.assertTrue(np.array_equal(self._result()[wrong != before], wrong[wrong != before]))

    def _accept(self) -> None:
        kept = self._result()
        self._ui.acceptButton.click()
        self._until(lambda: not self._workbench.review.view.results)
        self._case.assertTrue(np.array_equal(self._result(), kept))

    def _close_scene(self) -> None:
        """In the middle of a run."""
        self._ui.runButton.click()
        self._until(lambda: self._workbench.run.view.running)
        slicer.mrmlScene.Clear()
        self._until(lambda: not self._workbench.run.view.running)
        self._case.assertEqual(self._workbench.support.view.entries, ())

    # -- within --------------------------------------------------------------------------------------------------------

    def _has_threshold(self, threshold: float) -> bool:
        review = self._workbench.review.view
        return abs(review.threshold - threshold) < 1e-6 and not review.working

    def _segmentation(self) -> Any:
        return self._ui.segmentationSelector.currentNode()

    def _result_id(self) -> str:
        segmentation = self._segmentation().GetSegmentation()
        (found,) = [one for one in segmentation.GetSegmentIDs() if "SDFSMIS" in segmentation.GetSegment(one).GetName()]
        return str(found)

    def _result(self) -> np.ndarray:
        """bool (slices, height, width)"""
        array = slicer.util.arrayFromSegmentBinaryLabelmap(self._segmentation(), self._result_id(), self._volume)
        return array != 0

    def _until(self, condition: Callable[[], bool]) -> None:
        """Process events until something is true."""
        end = time.monotonic() + TIMEOUT
        while not condition():
            self._case.assertLess(
                time.monotonic(), end, f"It did not come: {self._workbench.run.view}, {self._workbench.backend.view}"
            )
            slicer.app.processEvents()
            time.sleep(0.01)


def _dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * float((one & other).sum()) / float(one.sum() + other.sum())
