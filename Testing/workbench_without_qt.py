"""A whole session of the workbench with a server, where Qt, Slicer's application and torch cannot be imported.

    python Testing/workbench_without_qt.py ADDRESS

Run by ``test_workbench_without_qt.py``; prints how many voxels of the structure the accepted result has.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

BLOCKED = (
    "PySide6",
    "PythonQt",
    "ctk",
    "qt",
    "slicer.app",
    "slicer.i18n",
    "diffusers",
    "torch",
    "transformers",
)
sys.modules.update(dict.fromkeys(BLOCKED))

import numpy as np  # noqa: E402

import SDFSMISLib.workbench  # noqa: E402
from mrml_scene import MrmlScene, held  # noqa: E402
from SDFSMISLib.images.volume import Geometry  # noqa: E402
from SDFSMISLib.workbench import Workbench  # noqa: E402
from SDFSMISLib.workbench.local_backend import InstallationPaths, LocalBackendManager  # noqa: E402
from SDFSMISLib.workbench.settings import Settings  # noqa: E402
from SDFSMISLib.workbench.views import BackendChoice, BackendKind, Editor, RunRequest  # noqa: E402

SHAPE, PAINTED = (6, 40, 40), 2
NOWHERE = InstallationPaths(Path("nowhere"), Path("nowhere"), Path("nowhere"), sys.executable, {})


class Store(dict[str, str]):
    """What a QSettings is to the workbench."""

    def value(self, name: str, default: str) -> str:
        return self.get(name, default)

    setValue = dict.__setitem__  # noqa: N815 - Qt's name


def main(address: str) -> None:
    for module in pkgutil.iter_modules(SDFSMISLib.workbench.__path__, "SDFSMISLib.workbench."):
        importlib.import_module(module.name)
    structure = np.zeros(SHAPE, dtype=bool)
    structure[:, 10:20, 15:30] = True
    scene = MrmlScene()
    identity = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    geometry = Geometry(SHAPE, (1.0, 1.0, 2.0), (0.0, 0.0, 0.0), identity)
    volume = scene.volume(np.where(structure, 250, 0).astype(np.int16), geometry)
    segmentation = scene.segmentation(volume)
    editor = scene.editor(segmentation, volume)
    changes: list[None] = []
    workbench = Workbench(Settings(Store()), LocalBackendManager(NOWHERE))
    workbench.changed = lambda: changes.append(None)
    workbench.backend.choose(BackendChoice(BackendKind.SERVER, address))
    workbench.support.select(volume, segmentation)
    painted = np.zeros(SHAPE, dtype=bool)
    painted[PAINTED] = structure[PAINTED]
    editor.paint(editor.segment("box"), painted)
    workbench.step()
    assert [one.index for one in workbench.support.view.entries] == [PAINTED]
    workbench.run.start(RunRequest(), Editor(editor.node, editor.logic.SaveStateForUndo))
    drive(workbench, lambda: not workbench.run.view.running)
    assert not workbench.run.view.failed, workbench.run.view
    drive(workbench, lambda: workbench.review.view.suggestion != "")
    workbench.review.go_to_suggestion()
    workbench.review.accept()
    drive(workbench, lambda: not workbench.review.view.results)
    segments = segmentation.GetSegmentation()
    (result,) = [one for one in segments.GetSegmentIDs() if segments.GetSegment(one).GetName() == "box (SDFSMIS)"]
    workbench.close()
    assert changes
    print(int((held(segmentation, result, volume) & structure).sum()), "of", int(structure.sum()))


def drive(workbench: Workbench, until: Callable[[], bool]) -> None:
    """What a front end's timer does, until something is true."""
    end = time.monotonic() + 60
    while not until():
        assert time.monotonic() < end, workbench.run.view
        if not workbench.step():
            time.sleep(0.005)


if __name__ == "__main__":
    main(sys.argv[1])
