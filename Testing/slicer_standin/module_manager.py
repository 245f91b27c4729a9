"""qSlicerModuleManager: the modules that are loaded, and the object that Slicer has for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PySide6.QtCore import QObject, Signal
from PySide6.QtGui import QIcon
from PySide6.QtWidgets import QVBoxLayout, QWidget

from slicer_standin import errors
from slicer_standin.widgets.kept import kept
from slicer_standin.widgets.mrml_widget import qMRMLWidget


class qSlicerScriptedLoadableModuleWidget(qMRMLWidget):
    """What a scripted module's widget is built into: its ``parent``."""

    moduleName = kept(str, "")
    isEntered = kept(bool, False)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._python: Any = None
        self._build: Callable[[], Any] = lambda: None
        QVBoxLayout(self)

    def set_build(self, build: Callable[[], Any]) -> None:
        """What makes the Python widget, and fills this one by its ``setup``."""
        self._build = build
        self.reload()

    def reload(self) -> None:
        """A new Python widget of what the module's file says now; a module that is entered is not entered again."""
        self._python = self._build()

    def self(self) -> Any:
        return self._python

    def enter(self) -> None:
        self.isEntered = True
        with errors.collected():
            getattr(self._python, "enter", lambda: None)()

    def exit(self) -> None:
        self.isEntered = False
        with errors.collected():
            getattr(self._python, "exit", lambda: None)()


class qSlicerScriptedLoadableModule(QObject):
    """What a scripted module describes itself to: its ``parent``, and ``slicer.modules.<name>``."""

    name = kept(str, "")
    title = kept(str, "")
    path = kept(str, "")
    helpText = kept(str, "")
    acknowledgementText = kept(str, "")
    categories = kept("QStringList", [])
    contributors = kept("QStringList", [])
    dependencies = kept("QStringList", [])
    associatedNodeTypes = kept("QStringList", [])
    icon = kept(QIcon, QIcon())
    index = kept(int, -1)
    hidden = kept(bool, False)
    widgetRepresentationCreationEnabled = kept(bool, True)

    def __init__(self) -> None:
        super().__init__()
        self._widget: qSlicerScriptedLoadableModuleWidget | None = None
        self._python: Any = None
        self._make: Any = None
        self._logic: Any = None

    def set_python(self, module: Any, make: Any) -> None:
        """The Python module object, and what makes its widget in a given parent."""
        self._python, self._make = module, make

    def set_logic(self, logic: Any) -> None:
        self._logic = logic

    def self(self) -> Any:
        return self._python

    def logic(self) -> Any:
        return self._logic

    def widgetRepresentation(self) -> Any:
        if self._widget is None and self._make is not None:
            self._widget = self._make()
        return self._widget

    def createNewWidgetRepresentation(self) -> Any:
        return self._make()

    def forget_widget(self) -> None:
        self._widget = None

    def isHidden(self) -> bool:
        return self.hidden


class qSlicerModuleFactoryManager(QObject):
    """Answers for its parent, the module manager; it loads nothing."""

    modulesLoaded = Signal("QStringList")
    moduleLoaded = Signal(str)
    moduleAboutToBeUnloaded = Signal(str)
    moduleUnloaded = Signal(str)

    def isLoaded(self, name: str) -> bool:
        return name in self.parent().modulesNames()

    isRegistered = isLoaded

    def loadedModuleNames(self) -> list[str]:
        return self.parent().modulesNames()

    registeredModuleNames = instantiatedModuleNames = loadedModuleNames


class qSlicerModuleManager(QObject):
    moduleLoaded = Signal(str)
    moduleAboutToBeUnloaded = Signal(str)
    moduleUnloaded = Signal(str)
    modulesInstantiated = Signal("QStringList")

    def __init__(self) -> None:
        super().__init__()
        self._modules: dict[str, qSlicerScriptedLoadableModule] = {}
        self._factory = qSlicerModuleFactoryManager(self)

    def add(self, module: qSlicerScriptedLoadableModule) -> None:
        self._modules[module.name] = module

    def remove(self, name: str) -> None:
        self.moduleAboutToBeUnloaded.emit(name)
        del self._modules[name]
        self.moduleUnloaded.emit(name)

    def module(self, name: str) -> Any:
        return self._modules.get(name)

    def modulesNames(self) -> list[str]:
        return list(self._modules)

    def isRegistered(self, name: str) -> bool:
        return name in self._modules

    def factoryManager(self) -> Any:
        return self._factory
