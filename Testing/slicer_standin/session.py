"""Session: a scene with its logics, and slicer.app, slicer.modules and slicer.util on top of them."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import shiboken6
import slicer
from PySide6.QtWidgets import QApplication

from slicer_standin.application import qSlicerApplication
from slicer_standin.connections import connections
from slicer_standin.wrapper import wrap

NEWER = ("LazyImport",)  # of slicer.util, after 5.12


class Session:
    """``scene`` is what Slicer calls ``slicer.mrmlScene``; ``app`` is ``slicer.app``."""

    def __init__(self, folder: Path) -> None:
        self.scene = slicer.vtkMRMLScene()
        self.logic = slicer.vtkSlicerApplicationLogic()
        self.logic.SetMRMLScene(self.scene)
        self.logic.GetColorLogic().SetMRMLScene(self.scene)
        self.modules = self._modules()
        slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(self.scene, True)
        for kind in ("Selection", "Interaction", "Crosshair"):
            self._singleton(f"vtkMRML{kind}Node")
        slicer.mrmlScene = self.scene
        native = QApplication.instance() or qSlicerApplication(["Slicer"])
        if not isinstance(native, qSlicerApplication):
            raise RuntimeError("There is a QApplication already: install the stand-in before anything makes one")
        native.setStyle("Fusion")
        native.start(folder, self.scene, self.logic)
        self.app = wrap(native)

    def close(self) -> None:
        """Destroys the views and empties the scene; the QApplication lives as long as the process."""
        connections.forget(self.app._native)
        for native in self.app._native.ended():
            if shiboken6.isValid(native):
                shiboken6.delete(native)
        self.scene.Clear(1)

    def _modules(self) -> types.SimpleNamespace:
        """slicer.modules with the logics that Slicer itself brings."""
        logics = {}
        for name in ("Segmentations", "Volumes", "Sequences", "SubjectHierarchy", "Markups", "Colors"):
            names = (f"vtkSlicer{name}ModuleLogic", f"vtkSlicer{name}Logic")  # Slicer names them in two ways
            logic = next((one for one in (getattr(slicer, n, None) for n in names) if isinstance(one, type)), None)
            if logic is None and name != "Colors":
                continue
            logics[name] = made = logic() if name != "Colors" else self.logic.GetColorLogic()
            if name != "Colors":
                made.SetMRMLApplicationLogic(self.logic)
                made.SetMRMLScene(self.scene)
                self.logic.SetModuleLogic(name, made)
        return types.SimpleNamespace(**{name.lower(): BuiltInModule(name, logic) for name, logic in logics.items()})

    def _singleton(self, kind: str) -> Any:
        node = self.scene.CreateNodeByClass(kind)
        if node is None:
            return None
        node.UnRegister(None)
        node.SetSingletonTag("Singleton")
        return self.scene.AddNode(node)


class BuiltInModule:
    """A module of Slicer's own, of which only the logic is here."""

    def __init__(self, name: str, logic: Any) -> None:
        self.name, self._logic = name, logic

    def logic(self) -> Any:
        return self._logic
