"""Fixtures of the tests of the panel's widgets: the module on a stand-in for Slicer, with a workbench that records."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import slicer

import SDFSMISLib
from recording_workbench import RecordingWorkbench
from slicer_standin import install

MODULE = Path(__file__).parents[1] / "SDFSMIS" / "SDFSMIS.py"


@pytest.fixture(scope="module")
def standin() -> Iterator[Any]:
    _forget_panel()
    made = install()
    yield made
    made.uninstall()
    _forget_panel()


def _forget_panel() -> None:
    """The panel's modules hold on to the Qt that they were imported with."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "SDFSMISPanel"]:
        del sys.modules[name]


@dataclass
class Shown:
    """The module, opened as a user opens it, with a workbench that only records its calls."""

    standin: Any
    workbench: RecordingWorkbench
    module: Any

    @property
    def widget(self) -> Any:
        return self.module.widget

    @property
    def ui(self) -> Any:
        return self.widget.ui

    @property
    def panel(self) -> Any:
        return self.widget.panel

    def put(self, **views: Any) -> None:
        """Puts other views into the workbench, and waits until the panel shows them."""
        self.workbench.show(**views)
        self.settle()

    def settle(self) -> None:
        steps = self.workbench.stepped
        assert self.standin.process(5, until=lambda: self.workbench.stepped >= steps + 2)

    def seen(self, name: str) -> bool:
        """Whether a control would be seen, were the step that it belongs to open."""
        return not getattr(self.ui, name)._native.isHidden()

    def scan(self, name: str = "CTA abdomen") -> Any:
        return slicer.util.addVolumeFromArray(np.zeros((6, 5, 4), np.int16), name=name)


@pytest.fixture
def same_workbench() -> Iterator[None]:
    """A reload of the panel reads the workbench anew; other tests go on with the one that they have imported."""
    import SDFSMISLib.workbench as workbench

    before = {name: module for name, module in sys.modules.items() if name.startswith(workbench.__name__)}
    yield
    if sys.modules.get(workbench.__name__) is workbench:
        return
    for name in [name for name in sys.modules if name.startswith(workbench.__name__)]:
        del sys.modules[name]
    sys.modules.update(before)
    SDFSMISLib.workbench = workbench
    _forget_panel()  # it was read with the other one


@pytest.fixture
def shown(standin: Any, same_workbench: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shown]:
    workbench = RecordingWorkbench()
    paths = SimpleNamespace(make_workbench=lambda settings: workbench)
    monkeypatch.setitem(sys.modules, "SDFSMISPanel.slicer_paths", paths)
    slicer.app.userSettings().remove("SDFSMIS")
    module = standin.load_module(MODULE)
    module.open()
    made = Shown(standin, workbench, module)
    made.settle()
    yield made
    standin.unload(module)
    slicer.mrmlScene.Clear()
    standin.dialogs.clear()
    errors = list(standin.errors)
    standin.errors.clear()
    assert errors == []
