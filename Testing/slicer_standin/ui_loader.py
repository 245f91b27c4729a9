"""QUiLoader: loads a .ui file with the widgets of Slicer and CTK, and refuses what they do not have."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any
from xml.etree import ElementTree

from PySide6 import QtUiTools, QtWidgets
from PySide6.QtCore import Property, QBuffer, QByteArray, QIODevice, QObject
from PySide6.QtWidgets import QWidget

from slicer_standin.connections import connections
from slicer_standin.names import too_new
from slicer_standin.wrapper_classes import registered, wrapper_class


class QUiLoader(QtUiTools.QUiLoader):
    """Connections of the file are made here, since their signatures name classes that Qt's loader does not know."""

    def createWidget(self, name: str, parent: QWidget | None = None, objectName: str = "") -> QWidget:
        own = registered(name)
        if own is not None:
            widget = own(parent)
            widget.setObjectName(objectName)
            return widget
        if name.startswith(("ctk", "qMRML", "qSlicer")):
            raise NotImplementedError(f"The stand-in lacks {name}")
        return super().createWidget(name, parent, objectName)

    def load(self, device: QIODevice, parent: QWidget | None = None) -> QWidget:
        tree = ElementTree.fromstring(bytes(device.readAll().data()))
        for widget in tree.iter("widget"):
            _check_properties(widget)
        links = [_link(entry) for entry in tree.iter("connection")]
        for part in tree.findall("connections"):
            tree.remove(part)
        buffer = QBuffer()
        buffer.setData(QByteArray(ElementTree.tostring(tree)))
        buffer.open(QIODevice.OpenModeFlag.ReadOnly)
        made = super().load(buffer, parent)
        if made is None:
            raise RuntimeError(f"The .ui file cannot be loaded: {self.errorString()}")
        for link in links:
            link.make(made)
        return made


@dataclass(frozen=True)
class _Link:
    sender: str
    signal: str
    receiver: str
    slot: str

    def make(self, root: QWidget) -> None:
        sender, receiver = _child(root, self.sender), _child(root, self.receiver)
        name, _, kinds = self.slot.partition("(")
        kind = wrapper_class(type(receiver) if registered(type(receiver).__name__) else _qt_class(type(receiver)))
        if not hasattr(kind, name):
            raise ValueError(f".ui: {type(receiver).__name__} has no slot {self.slot}")
        count = len([part for part in kinds.rstrip(")").split(",") if part])
        slot = getattr(receiver, name)
        connections.connect(sender, self.signal, lambda *values: slot(*values[:count]), self)


def _link(entry: ElementTree.Element) -> _Link:
    return _Link(*(entry.findtext(key) or "" for key in ("sender", "signal", "receiver", "slot")))


def _child(root: QWidget, name: str) -> Any:
    found = root if root.objectName() == name else root.findChild(QObject, name)
    if found is None:
        raise ValueError(f".ui: a connection names {name}, which is not there")
    return found


def _qt_class(native: type) -> type:
    return next(base for base in native.__mro__ if base.__module__.startswith("PySide6"))


@cache
def _property_names(native: type) -> frozenset[str]:
    """What a .ui file may set: properties of Qt's class and of ours, and what only the loader knows."""
    meta = _qt_class(native).staticMetaObject
    names = {meta.property(index).name() for index in range(meta.propertyCount())} - too_new(native)
    own = {name for kind in native.__mro__ for name, value in vars(kind).items() if isinstance(value, Property)}
    return frozenset(names | own | {"buddy", "geometry"})


def _check_properties(widget: ElementTree.Element) -> None:
    """Qt's loader would make a dynamic property of a misspelt one."""
    kind = widget.get("class", "")
    native = registered(kind) or getattr(QtWidgets, kind, None)
    if native is None:
        return
    known = _property_names(native)
    for entry in widget.findall("property"):
        name = entry.get("name", "")
        if entry.get("stdset") != "0" and name not in known:
            raise ValueError(f".ui: {kind} has no property {name}")
