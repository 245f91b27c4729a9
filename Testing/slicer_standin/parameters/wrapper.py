"""parameterNodeWrapper: a class whose annotated attributes are kept in a parameter node."""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import Any

import slicer
import vtk

from slicer_standin.parameters.connectors import GuiConnector, connector_for
from slicer_standin.parameters.serializers import Default, serializer_for, validators_of

SlicerParameterNamePropertyName = "SlicerParameterName"
RESERVED = (
    "allParameters default isCached dataType getValue setValue connectGui connectParametersToGui disconnectGui "
    "StartModify EndModify AddObserver RemoveObserver Modified"
).split()


class Parameter:
    """One attribute: reads and writes the node, checks before it writes."""

    def __init__(self, name: str, annotation: Any, default: Any) -> None:
        kind, annotations = annotation, ()
        if typing.get_origin(annotation) is typing.Annotated:
            kind, *annotations = typing.get_args(annotation)
        self.name, self.annotation = name, annotation
        self._serializer = serializer_for(kind)
        self._validators = validators_of(annotations)
        given = next((item for item in annotations if isinstance(item, Default)), Default(self._serializer.default()))
        self.default = given if default is None else Default(default)
        if self.default.value is not None:
            self.check(self.default.value)

    def __get__(self, owner: Any, kind: type) -> Any:
        if owner is None:
            return self
        self.set_default(owner.parameterNode)
        return self._serializer.read(owner.parameterNode, self.name)

    def __set__(self, owner: Any, value: Any) -> None:
        self.check(value)
        self._serializer.write(owner.parameterNode, self.name, value)

    def check(self, value: Any) -> None:
        self._serializer.check(value)
        for validator in self._validators:
            validator.validate(value)

    def set_default(self, node: Any) -> None:
        if not self._serializer.is_in(node, self.name):
            self._serializer.write(node, self.name, self.default.value)


def parameterNodeWrapper(kind: type | None = None) -> Any:
    """A class decorator, with or without brackets."""
    return _wrapped if kind is None else _wrapped(kind)


def isParameterNodeWrapper(value: Any) -> bool:
    return hasattr(value, "_is_parameter_node_wrapper")


def _wrapped(kind: type) -> type:
    parameters = {}
    for name, annotation in typing.get_type_hints(kind, include_extras=True).items():
        if name in RESERVED:
            raise ValueError(f"A parameter cannot have the name {name}, which the parameter node wrapper uses")
        parameters[name] = Parameter(name, annotation, vars(kind).get(name))
        setattr(kind, name, parameters[name])
    for name, function in vars(_Behaviour).items():
        if not name.startswith("__") or name == "__init__":
            setattr(kind, name, function)
    kind.allParameters = parameters
    kind._is_parameter_node_wrapper = True
    return kind


class _Behaviour:
    """What each wrapped class gets."""

    allParameters: dict[str, Parameter]

    def __init__(self, parameterNode: Any) -> None:
        self.parameterNode = parameterNode
        self._guis: dict[int, tuple[dict[str, GuiConnector], int]] = {}
        self._next_tag = 0
        self._showing = False
        for parameter in self.allParameters.values():
            parameter.set_default(parameterNode)

    def default(self, name: str) -> Default:
        return self._parameter(name).default

    def isCached(self, name: str) -> bool:
        self._parameter(name)
        return False

    def dataType(self, name: str) -> Any:
        return self._parameter(name).annotation

    def getValue(self, name: str) -> Any:
        return getattr(self, self._parameter(name).name)

    def setValue(self, name: str, value: Any) -> None:
        setattr(self, self._parameter(name).name, value)

    def connectGui(self, gui: Any) -> int:
        """A widget, or what childWidgetVariables made of it; the widgets with the property SlicerParameterName."""
        import qt

        found = gui.findChildren(qt.QWidget) if hasattr(gui, "isWidgetType") else list(vars(gui).values())
        named = [(widget.property(SlicerParameterNamePropertyName), widget) for widget in found]
        return self.connectParametersToGui({name: widget for name, widget in named if name})

    def connectParametersToGui(self, mapping: dict[str, Any]) -> int:
        connectors = {name: _connector(widget, self.dataType(name)) for name, widget in mapping.items()}
        for name, connector in connectors.items():
            connector.write(self.getValue(name))
            connector.onChanged(self._taker(name, connector))
        observer = self.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: self._show())
        self._next_tag += 1
        self._guis[self._next_tag] = connectors, observer
        return self._next_tag

    def disconnectGui(self, guiTag: int) -> None:
        connectors, observer = self._guis.pop(guiTag, ({}, None))
        for connector in connectors.values():
            connector.onChanged(None)
        if observer is not None:
            self.RemoveObserver(observer)

    def StartModify(self) -> Any:
        return self.parameterNode.StartModify()

    def EndModify(self, before: Any) -> Any:
        return self.parameterNode.EndModify(before)

    def AddObserver(self, event: Any, callback: Callable[..., Any], priority: float = 0.0) -> int:
        return self.parameterNode.AddObserver(event, callback, priority)

    def RemoveObserver(self, tag: int) -> None:
        self.parameterNode.RemoveObserver(tag)

    def Modified(self) -> None:
        self.parameterNode.Modified()

    def _parameter(self, name: str) -> Parameter:
        if name not in self.allParameters:
            raise ValueError(f"There is no parameter {name}; there are {', '.join(self.allParameters)}")
        return self.allParameters[name]

    def _taker(self, name: str, connector: GuiConnector) -> Callable[[], None]:
        def take() -> None:
            if not self._showing:
                with slicer.util.NodeModify(self):
                    self.setValue(name, connector.read())

        return take

    def _show(self) -> None:
        if self._showing:
            return
        self._showing = True
        try:
            for connectors, _ in list(self._guis.values()):
                for name, connector in connectors.items():
                    connector.write(self.getValue(name))
        finally:
            self._showing = False


def _connector(widget: Any, annotation: Any) -> GuiConnector:
    return widget if isinstance(widget, GuiConnector) else connector_for(widget, annotation)
