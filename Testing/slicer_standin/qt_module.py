"""The module ``qt``: all classes of Qt in one namespace, as PythonQt shows them."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

from PySide6 import QtCore, QtGui, QtNetwork, QtSvg, QtUiTools, QtWidgets
from PySide6.QtWidgets import QFileDialog, QMessageBox

from slicer_standin.dialogs import dialogs
from slicer_standin.members import Method
from slicer_standin.names import too_new_classes
from slicer_standin.ui_loader import QUiLoader
from slicer_standin.wrapper import Call, unwrap, wrap
from slicer_standin.wrapper_classes import wrapper_class

SOURCES = (QtCore, QtWidgets, QtGui, QtSvg, QtUiTools, QtNetwork)


class QtModule(types.ModuleType):
    """Classes are made when they are first asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = None if name in too_new_classes() else _find(name)
        if found is None:
            raise AttributeError(f"module 'qt' has no attribute '{name}'")
        setattr(self, name, found)
        return found


def qt_module() -> types.ModuleType:
    """The module, with dialogs that are answered by ``standin.dialogs`` instead of by a user."""
    module = QtModule("qt")
    for owner, kinds in _asking().items():
        kind = wrapper_class(owner)
        for name, function in kinds.items():
            type.__setattr__(kind, name, _Static(name, function))
    type.__setattr__(wrapper_class(QtWidgets.QDialog), "exec_", _ModalMember("exec"))
    for owner in (QtWidgets.QDialog, QMessageBox, QFileDialog, QtWidgets.QProgressDialog, QtWidgets.QInputDialog):
        for name in ("exec", "exec_"):
            type.__setattr__(wrapper_class(owner), name, _ModalMember(name))
    return module


class _Static(Method):
    """A static function of a class of Qt that asks the user."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        super().__init__(name, function, static=True)

    def __get__(self, wrapper: Any, owner: type) -> Any:
        return Call(self.name, self._function)


class _ModalMember(Method):
    """``exec``: shows the dialog, has it answered, and comes back at once."""

    def __init__(self, name: str) -> None:
        super().__init__(name, None, static=False)

    def __get__(self, wrapper: Any, owner: type) -> Any:
        return Call(self.name, lambda: _answered(unwrap(wrapper)))


def _answered(dialog: Any) -> Any:
    text = dialog.text() if hasattr(dialog, "text") else dialog.windowTitle()
    dialog.show()
    answer = dialogs.ask(f"{type(dialog).__name__}.exec", text, default=1)
    dialog.hide()
    if not isinstance(dialog, QMessageBox):
        dialog.setResult(int(answer))
    return answer


def _asking() -> dict[type, dict[str, Callable[..., Any]]]:
    buttons = QMessageBox.StandardButton
    files = ("getOpenFileName", "getSaveFileName", "getExistingDirectory")
    boxes = {"information": buttons.Ok, "warning": buttons.Ok, "critical": buttons.Ok, "question": buttons.Yes}
    return {
        QFileDialog: {name: _file_question(name, "") for name in files} | {"getOpenFileNames": _file_question("", [])},
        QMessageBox: {name: _box_question(name, default) for name, default in boxes.items()},
        QtWidgets.QInputDialog: {"getText": _text_question},
    }


def _file_question(name: str, default: Any) -> Callable[..., Any]:
    kind = name or "getOpenFileNames"
    return lambda parent=None, title="", *rest: dialogs.ask(kind, title, default)


def _box_question(name: str, default: Any) -> Callable[..., Any]:
    return lambda parent, title, text, *rest: dialogs.ask(name, text, default)


def _text_question(parent: Any, title: str, label: str, *rest: Any) -> str:
    return dialogs.ask("getText", label, default="")


def _find(name: str) -> Any:
    if name == "QUiLoader":
        return wrapper_class(QUiLoader)
    for source in SOURCES:
        value = getattr(source, name, None)
        if isinstance(value, type):
            return wrapper_class(value) if value.__module__.startswith("PySide6") else value
        if value is not None and name.startswith("q"):
            return lambda *arguments: wrap(value(*[unwrap(argument) for argument in arguments]))
    return None
