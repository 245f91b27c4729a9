"""LoadedModule: a scripted module that was loaded from its file as Slicer loads it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import slicer

from slicer_standin.module_manager import qSlicerScriptedLoadableModule, qSlicerScriptedLoadableModuleWidget
from slicer_standin.wrapper import alive, wrap


class LoadedModule:
    """``module`` describes it, ``widget`` is its panel (made by :meth:`open`), ``parent`` the Qt widget of that."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = Path(path), Path(path).stem
        self.folder = str(self.path.parent)
        sys.path.insert(0, self.folder)
        self.python = _imported(self.path)
        self._description = qSlicerScriptedLoadableModule()
        self._description.name, self._description.path = self.name, str(self.path)
        self.module = getattr(self.python, self.name)(wrap(self._description))
        self._description.set_python(self.module, self._make)
        self.widget: Any = None
        self.parent: Any = None
        slicer.app.moduleManager()._native.add(self._description)
        setattr(slicer.modules, self.name.lower(), wrap(self._description))
        slicer.app.moduleManager().moduleLoaded.emit(self.name)

    def _make(self) -> qSlicerScriptedLoadableModuleWidget:
        native = qSlicerScriptedLoadableModuleWidget()
        native.moduleName = self.name
        native.setObjectName(f"{self.name}ModuleWidget")
        native.setMRMLScene(slicer.mrmlScene)
        self.parent = wrap(native)
        native.set_build(self._build)
        return native

    def _build(self) -> Any:
        self.python = sys.modules[self.name]
        self.widget = getattr(self.python, f"{self.name}Widget")(self.parent)
        self.widget.setup()
        setattr(slicer.modules, f"{self.name}Widget", self.widget)
        return self.widget

    def open(self) -> Any:
        """Makes the panel if there is none, enters it, and returns the Python widget."""
        self._description.widgetRepresentation()
        self.parent.show()
        alive(self.parent).enter()
        return self.widget

    def leave(self) -> None:
        alive(self.parent).exit()
        self.parent.hide()

    def close(self) -> None:
        """Unloads it: the widget's cleanup runs, its Qt widgets are destroyed."""
        if self.parent is not None and self.parent.isEntered:
            self.leave()
        slicer.app.moduleManager()._native.remove(self.name)
        if self.parent is not None:
            self.parent.delete()
        for name in (self.name.lower(), f"{self.name}Widget"):
            if hasattr(slicer.modules, name):
                delattr(slicer.modules, name)
        sys.modules.pop(self.name, None)
        sys.path.remove(self.folder)


def _imported(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
    return module
