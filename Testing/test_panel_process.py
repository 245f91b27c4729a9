"""The panel with the backend on this computer: a real process with the built-in weights, as the library answers."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("slicer")
pytest.importorskip("PySide6.QtWidgets", exc_type=ImportError)
pytest.importorskip("fastapi")

from slicer_standin import install

install()

from panel_examples import PaintedScene, dice, differ, kept_settings  # noqa: E402
from processes import until  # noqa: E402
from SDFSMISLib import Segmenter, SupportSet  # noqa: E402
from SDFSMISLib.images.volume import Volume  # noqa: E402
from SDFSMISLib.workbench import Workbench  # noqa: E402
from SDFSMISLib.workbench.local_backend import InstallationPaths, LocalBackendManager  # noqa: E402
from SDFSMISLib.workbench.views import BackendChoice, BackendKind  # noqa: E402
from small_scans import ball_scan  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
LYING = {
    "axial": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
    "coronal": (1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, -1.0, 0.0),
    "sagittal": (0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
    "oblique": (0.36, 0.48, -0.8, -0.8, 0.6, 0.0, 0.48, 0.64, 0.6),
}


@pytest.fixture(scope="module")
def computer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBackendManager]:
    requirements = ROOT / "SDFSMIS" / "Resources" / "requirements-backend.txt"
    folder = tmp_path_factory.mktemp("computer") / "environment"
    variables = {"startup": dict(os.environ)}
    made = LocalBackendManager(InstallationPaths(folder, ROOT / "SDFSMISLib", requirements, sys.executable, variables))
    yield made
    made.stop()


def noisy_ball(direction: tuple[float, ...]) -> tuple[Volume, np.ndarray]:
    scan, labelmap = ball_scan(shape=(10, 48, 44))
    noise = np.random.default_rng(0).normal(0, 5, scan.voxels.shape)
    geometry = replace(scan.geometry, direction=direction)
    return Volume((scan.voxels + noise).astype(np.int16), geometry), labelmap.voxels.astype(bool)


@pytest.mark.parametrize("direction", LYING.values(), ids=LYING)
def test_the_panel_gives_the_library_s_own_voxels(computer: LocalBackendManager, direction: tuple[float, ...]) -> None:
    scan, truth = noisy_ball(direction)
    panel = PaintedScene("", scan=scan, painted=())
    panel.truth = truth
    panel.paint(5)
    panel.workbench.close()
    panel.workbench = Workbench(kept_settings(), computer)
    panel.workbench.backend.choose(BackendChoice(BackendKind.LOCAL, python=sys.executable, device="cpu"))
    panel.workbench.support.select(panel.volume, panel.segmentation)
    panel.start()
    panel.drive(lambda: not panel.last_run.running, 90)
    assert not panel.last_run.failed, panel.last_run.text
    (result,) = panel.results().values()
    painted = np.zeros(truth.shape, dtype=np.uint8)
    painted[5] = truth[5]
    support = SupportSet.from_labelmap(scan, Volume(painted, scan.geometry))
    expected = Segmenter.from_pretrained("built-in", device="cpu").segment(scan, support).labelmap.voxels == 1
    assert differ(panel.held(result), expected) == 0
    others = np.arange(len(truth)) != 5
    assert dice(expected[others], truth[others]) > 0.7


def test_the_process_ends_with_the_panel(computer: LocalBackendManager) -> None:
    workbench = Workbench(kept_settings(), computer)
    workbench.backend.choose(BackendChoice(BackendKind.LOCAL, python=sys.executable, device="cpu"))
    workbench.backend.test()
    until(lambda: not workbench.step() and workbench.backend.view.state != "busy", 90)
    assert workbench.backend.view.state == "good" and "built-in" in workbench.backend.view.status, (
        workbench.backend.view
    )
    assert _backends()
    workbench.close()
    until(lambda: not _backends())


def _backends() -> set[int]:
    """IDs of the processes of this one that serve."""
    import psutil

    found = set()
    for process in psutil.Process().children(recursive=True):
        try:
            if "serve" in process.cmdline():
                found.add(process.pid)
        except psutil.Error:  # it has just ended
            pass
    return found
