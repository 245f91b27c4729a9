"""Connectors: a widget's value as a parameter's."""

from __future__ import annotations

import enum
import pathlib
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from slicer_standin.parameters.validators import Choice, Maximum, Minimum, WithinRange


@dataclass(frozen=True)
class Decimals:
    value: int


@dataclass(frozen=True)
class SingleStep:
    value: float


class GuiConnector(ABC):
    """The interface of connectors, for a module's own ones too."""

    def __init__(self) -> None:
        self._callback: Callable[[], None] | None = None

    @staticmethod
    def canRepresent(widget: Any, datatype: Any) -> bool:
        """Whether a module's own connector is for them; those below are chosen by the table."""
        return False

    @staticmethod
    def create(widget: Any, datatype: Any) -> GuiConnector | None:
        return None

    def onChanged(self, callback: Callable[[], None] | None) -> None:
        before, self._callback = self._callback, callback
        if callback is not None:
            self._connect()
        elif before is not None:
            self._disconnect()

    def changed(self) -> None:
        if self._callback is not None:
            self._callback()

    @abstractmethod
    def _connect(self) -> None: ...

    @abstractmethod
    def _disconnect(self) -> None: ...

    @abstractmethod
    def widget(self) -> Any: ...

    @abstractmethod
    def read(self) -> Any: ...

    @abstractmethod
    def write(self, value: Any) -> None: ...


@dataclass(frozen=True)
class Binding:
    """Which property of which widgets holds values of which types, and the signal that tells of a change."""

    kinds: tuple[type, ...]
    widgets: tuple[str, ...]
    attribute: str
    signal: str


BINDINGS = (
    Binding((bool,), ("QCheckBox",), "checked", "stateChanged(int)"),
    Binding((bool,), ("QPushButton", "ctkCheckablePushButton"), "checked", "toggled(bool)"),
    Binding((int,), ("QSlider", "QSpinBox"), "value", "valueChanged(int)"),
    Binding((int, float), ("QDoubleSpinBox", "ctkSliderWidget"), "value", "valueChanged(double)"),
    Binding((str,), ("QLineEdit",), "text", "textChanged(QString)"),
    Binding((str,), ("QLabel",), "text", ""),
    Binding((pathlib.Path,), ("ctkPathLineEdit",), "currentPath", "currentPathChanged(QString)"),
)

_registered: list[type[GuiConnector]] = []


def parameterNodeGuiConnector(kind: type[GuiConnector] | None = None) -> Any:
    """A class decorator that makes a module's own connector known."""

    def register(made: type[GuiConnector]) -> type[GuiConnector]:
        _registered.append(made)
        return made

    return register if kind is None else register(kind)


def connector_for(widget: Any, annotation: Any) -> GuiConnector:
    for own in _registered:
        if own.canRepresent(widget, annotation):
            return own.create(widget, annotation)
    plain, annotations = _split(annotation)
    name = widget.className()
    if name == "QComboBox":
        return ComboBoxConnector(widget, _choices(plain, annotations))
    if name == "qMRMLNodeComboBox":
        return NodeConnector(widget)
    if name == "QTextEdit" and plain is str:
        return TextEditConnector(widget)
    for binding in BINDINGS:
        if name in binding.widgets and plain in binding.kinds:
            return PropertyConnector(widget, plain, binding, annotations)
    raise RuntimeError(f"There is no connector between {name} and {annotation}")


class SignalConnector(GuiConnector):
    """A connector of one widget with one signal."""

    def __init__(self, widget: Any, signal: str) -> None:
        super().__init__()
        self._widget, self._signal = widget, signal

    def widget(self) -> Any:
        return self._widget

    def _connect(self) -> None:
        if self._signal:
            self._widget.connect(self._signal, self.changed)

    def _disconnect(self) -> None:
        if self._signal:
            self._widget.disconnect(self._signal, self.changed)


class PropertyConnector(SignalConnector):
    def __init__(self, widget: Any, kind: type, binding: Binding, annotations: list[Any]) -> None:
        super().__init__(widget, binding.signal)
        self._kind, self._attribute = kind, binding.attribute
        if binding.widgets[0] == "QPushButton":
            widget.checkable = True
        if binding.attribute == "value":
            self._set_range(annotations)

    def read(self) -> Any:
        return self._kind(getattr(self._widget, self._attribute))

    def write(self, value: Any) -> None:
        setattr(self._widget, self._attribute, str(value) if self._kind is pathlib.Path else value)

    def _set_range(self, annotations: list[Any]) -> None:
        bounds = [item for item in annotations if isinstance(item, (WithinRange, Minimum, Maximum))]
        low = next((item.minimum for item in bounds if hasattr(item, "minimum")), None)
        high = next((item.maximum for item in bounds if hasattr(item, "maximum")), None)
        if self._widget.className() in ("QSlider", "ctkSliderWidget") and None in (low, high):
            raise RuntimeError(f"A {self._widget.className()} needs a parameter with a range (WithinRange)")
        whole = self._widget.className() in ("QSlider", "QSpinBox")
        widest = (-(2**31), 2**31 - 1) if whole else (float("-inf"), float("inf"))
        self._widget.minimum = widest[0] if low is None else low
        self._widget.maximum = widest[1] if high is None else high
        for item in annotations:
            if isinstance(item, Decimals):
                self._widget.decimals = item.value
            if isinstance(item, SingleStep):
                self._widget.singleStep = item.value


class ComboBoxConnector(SignalConnector):
    def __init__(self, widget: Any, choices: list[tuple[str, Any]]) -> None:
        super().__init__(widget, "currentIndexChanged(int)")
        self._values = [value for _, value in choices]
        widget.clear()
        for text, _ in choices:
            widget.addItem(text)

    def read(self) -> Any:
        return self._values[self._widget.currentIndex]

    def write(self, value: Any) -> None:
        self._widget.currentIndex = self._values.index(value)


class NodeConnector(SignalConnector):
    def __init__(self, widget: Any) -> None:
        super().__init__(widget, "currentNodeChanged(vtkMRMLNode*)")

    def read(self) -> Any:
        return self._widget.currentNode()

    def write(self, value: Any) -> None:
        self._widget.setCurrentNode(value)


class TextEditConnector(SignalConnector):
    def __init__(self, widget: Any) -> None:
        super().__init__(widget, "textChanged()")

    def read(self) -> str:
        return self._widget.toPlainText()

    def write(self, value: str) -> None:
        if value != self._widget.toPlainText():
            self._widget.setPlainText(value)


def _split(annotation: Any) -> tuple[Any, list[Any]]:
    if typing.get_origin(annotation) is typing.Annotated:
        plain, *annotations = typing.get_args(annotation)
        return plain, annotations
    return annotation, []


def _choices(plain: Any, annotations: list[Any]) -> list[tuple[str, Any]]:
    if isinstance(plain, type) and issubclass(plain, enum.Enum):
        label = getattr(plain, "label", lambda member: member.name)
        return [(label(member), member) for member in plain]
    choice = next((item for item in annotations if isinstance(item, Choice)), None)
    if choice is None:
        raise RuntimeError("A QComboBox needs a parameter of an enumeration, or with a Choice")
    return [(str(value), value) for value in choice.choices]
