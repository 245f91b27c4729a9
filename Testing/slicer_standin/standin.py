"""Standin: what a test does with the stand-in for Slicer."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import shiboken6
import slicer
from PySide6.QtCore import QEventLoop, QTimer
from PySide6.QtWidgets import QApplication

from slicer_standin import errors, i18n, parameter_node, scripted_module, widgets
from slicer_standin.connections import connections
from slicer_standin.dialogs import dialogs
from slicer_standin.loaded_module import LoadedModule
from slicer_standin.main_window import qSlicerMainWindow, qSlicerModuleSelectorToolBar
from slicer_standin.module_manager import (
    qSlicerModuleFactoryManager,
    qSlicerModuleManager,
    qSlicerScriptedLoadableModule,
    qSlicerScriptedLoadableModuleWidget,
)
from slicer_standin.qt_module import qt_module
from slicer_standin.sample_data import sample_data_module
from slicer_standin.session import NEWER, Session
from slicer_standin.util import replaced
from slicer_standin.wrapper import alive, wrap
from slicer_standin.wrapper_classes import register, wrapper_class

MISSING = object()


class Standin:
    """Slicer for Python code in this process, until :meth:`uninstall`.

    ``errors`` is every exception of a slot, ``dialogs`` what the user was asked and what is answered.
    """

    def __init__(self) -> None:
        self.errors = errors.collection
        self.dialogs = dialogs
        self.modules: list[LoadedModule] = []
        self._window: Any = None
        self._before: list[tuple[Any, str, Any]] = []
        self._folder = Path(tempfile.mkdtemp(prefix="slicer-standin-"))
        self.errors.clear()
        self.dialogs.clear()
        self._register()
        self.session = Session(self._folder)
        self._install()

    @property
    def connections(self) -> int:
        """How many functions are connected to signals of objects that are alive."""
        return connections.count()

    def load_module(self, path: Path | str) -> LoadedModule:
        """Loads a module's file; its panel is made by ``open()``."""
        module = LoadedModule(Path(path))
        self.modules.append(module)
        return module

    def unload(self, module: LoadedModule) -> None:
        module.close()
        self.modules.remove(module)

    def run_self_test(self, module: LoadedModule) -> None:
        """Runs the module's test class in the application's window; what it raises is raised."""
        self.main_window()
        module.module.runTest(msec=0)

    def close_scene(self) -> None:
        """What File > Close Scene does."""
        slicer.mrmlScene.Clear(0)
        self.process()

    def start(self) -> None:
        """Says that the application has started up."""
        self.session.app.startupCompleted.emit()

    def quit(self) -> None:
        """Says that the application is about to quit."""
        self.session.app.aboutToQuit.emit()

    def process(self, seconds: float = 0.0, until: Callable[[], Any] | None = None) -> bool:
        """Runs the event loop for so long, or until a condition holds; whether it held."""
        end = time.monotonic() + seconds
        loop = QEventLoop()
        while True:
            QApplication.processEvents()
            if until is not None and until():
                return True
            if time.monotonic() >= end:
                return until is None
            QTimer.singleShot(5, loop.quit)
            loop.exec()

    def main_window(self, panel: Any = None) -> Any:
        """The application's window, with a module's ``parent`` widget in its panel."""
        if self._window is None:
            self._window = qSlicerMainWindow(alive(self.session.app.layoutManager()).viewport())
        if panel is not None:
            self._window.show_panel(panel)
        self._window.show()
        self.process(0.05)
        return wrap(self._window)

    def screenshot(self, widget: Any, path: Path | str) -> Path:
        """A picture of a widget as it looks now."""
        self.process(0.05)
        native = alive(widget) if hasattr(widget, "_native") else widget
        assert native.grab().save(str(path))
        return Path(path)

    def show_volume(self, volume: Any) -> None:
        """In all slice views, as after loading."""
        slicer.util.setSliceViewerLayers(background=volume, fit=True)
        self.process()

    def paint(self, segmentation: Any, segment_id: str, volume: Any, mask: np.ndarray, start: Any = (0, 0, 0)) -> None:
        """One stroke: adds a mask, whose first voxel lies at ``start`` (k, j, i) of the volume's grid."""
        from mrml_scene import SegmentEditor

        scene = types.SimpleNamespace(node=slicer.mrmlScene)
        editor = SegmentEditor(scene, segmentation, volume)
        editor.paint(segment_id, mask, start)
        slicer.mrmlScene.RemoveNode(editor.node)

    def uninstall(self) -> None:
        """Takes the stand-in away; what ``slicer`` had before comes back."""
        for module in list(self.modules):
            self.unload(module)
        if self._window is not None:
            self._window.close()
            shiboken6.delete(self._window)
        self.session.close()
        for owner, name, value in reversed(self._before):
            if isinstance(owner, dict):
                owner.pop(name) if value is MISSING else owner.update({name: value})
            elif value is MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, value)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _register(self) -> None:
        from slicer_standin.application import qSlicerApplication
        from slicer_standin.layout_manager import qSlicerLayoutManager

        own = (qSlicerApplication, qSlicerLayoutManager, qSlicerModuleManager, qSlicerScriptedLoadableModule)
        own += (qSlicerScriptedLoadableModuleWidget, qSlicerMainWindow, qSlicerModuleSelectorToolBar)
        own += (qSlicerModuleFactoryManager,)
        for native in (*widgets.ALL, *own):
            register(native)
        self._classes = [*widgets.ALL, *own]

    def _install(self) -> None:
        ctk = types.ModuleType("ctk")
        for native in self._classes:
            name = native.__name__
            if name.startswith("ctk"):
                setattr(ctk, name, wrapper_class(native))
            else:
                self._set(slicer, name, wrapper_class(native))
        self._set(slicer, "app", self.session.app)
        self._set(slicer, "modules", self.session.modules)
        self._set(slicer, "mrmlScene", self.session.scene)
        self._set(slicer, "selfTests", {})
        self._set(sys, "excepthook", errors.hook)
        for name, value in replaced().items():
            self._set(slicer.util, name, value)
        for name in NEWER:
            self._forget(slicer.util, name)
        python = {"qt": qt_module(), "ctk": ctk, "SampleData": sample_data_module()}
        python["slicer.i18n"] = i18n.i18n_module()
        python["slicer.ScriptedLoadableModule"] = scripted_module
        python["slicer.parameterNodeWrapper"] = parameter_node.parameter_node_module()
        for name, module in python.items():
            self._set(sys.modules, name, module)
            if name.startswith("slicer."):
                self._set(slicer, name.partition(".")[2], module)

    def _set(self, owner: Any, name: str, value: Any) -> None:
        before = owner.get(name, MISSING) if isinstance(owner, dict) else getattr(owner, name, MISSING)
        self._before.append((owner, name, before))
        if isinstance(owner, dict):
            owner[name] = value
        else:
            setattr(owner, name, value)

    def _forget(self, owner: Any, name: str) -> None:
        if hasattr(owner, name):
            self._before.append((owner, name, getattr(owner, name)))
            delattr(owner, name)
