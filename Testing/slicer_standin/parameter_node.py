"""slicer.parameterNodeWrapper: typed attributes that are kept in a node of the scene.

The part that the panel uses: text, numbers, bool, enumerations and nodes, and the validator WithinRange. Values, node
references, defaults, caching and refusals are those of Slicer's own pure-Python files; there is no connectGui.
"""

from __future__ import annotations

import enum
import types
import typing
import weakref
from typing import Any

import slicer
import vtk

RESERVED = ("allParameters", "parameterNode", "StartModify", "EndModify", "AddObserver", "RemoveObserver", "Modified")


def parameter_node_module() -> types.ModuleType:
    module = types.ModuleType("slicer.parameterNodeWrapper")
    module.parameterNodeWrapper, module.WithinRange = parameterNodeWrapper, WithinRange
    return module


class WithinRange:
    """Validator: refuses a number outside [minimum, maximum]."""

    def __init__(self, minimum: float, maximum: float) -> None:
        self.minimum, self.maximum = minimum, maximum

    def validate(self, value: Any) -> None:
        if not self.minimum <= value <= self.maximum:
            raise ValueError(f"Value must be within range [{self.minimum}, {self.maximum}], is {value}")


class TextSerializer:
    """Keeps a str, int or float as text."""

    optional = False

    def __init__(self, kind: type) -> None:
        self.kind = kind
        self.accepted: Any = (int, float) if kind is float else kind  # bool counts as int, as in Python

    def default(self) -> Any:
        return self.kind()

    def check(self, value: Any) -> None:
        if value is None and not self.optional:
            raise ValueError("Value must not be None")
        if value is not None and not isinstance(value, self.accepted):
            raise TypeError(f"Value must be of type '{self.accepted}', is type '{type(value)}' value '{value}'")

    def write(self, node: Any, name: str, value: Any) -> None:
        node.SetParameter(name, str(value))

    def read(self, node: Any, name: str) -> Any:
        return self.kind(node.GetParameter(name))


class BoolSerializer(TextSerializer):
    def read(self, node: Any, name: str) -> bool:
        return node.GetParameter(name) == "True"


class EnumSerializer(TextSerializer):
    """Keeps an enumeration's member by its name."""

    def default(self) -> Any:
        return next(iter(self.kind))

    def write(self, node: Any, name: str, value: Any) -> None:
        node.SetParameter(name, value.name)

    def read(self, node: Any, name: str) -> Any:
        key = node.GetParameter(name)
        if key not in self.kind.__members__:
            raise ValueError(f"Found {key!r} in parameter node but it is not a name in {self.kind!r}")
        return self.kind[key]


class NodeSerializer(TextSerializer):
    """Keeps a reference to a node; an empty parameter of the same name says that it was set, if only to None."""

    optional = True

    def default(self) -> None:
        return None

    def write(self, node: Any, name: str, value: Any) -> None:
        node.SetParameter(name, "")
        node.SetNodeReferenceID(name, value.GetID() if value is not None else None)

    def read(self, node: Any, name: str) -> Any:
        return node.GetNodeReference(name)


def serializer_for(kind: type) -> TextSerializer:
    if kind is bool:
        return BoolSerializer(kind)
    if kind in (str, int, float):
        return TextSerializer(kind)
    if issubclass(kind, enum.Enum):
        return EnumSerializer(kind)
    if issubclass(kind, slicer.vtkMRMLNode):
        return NodeSerializer(kind)
    raise NotImplementedError(f"The stand-in lacks parameters of type {kind}")


class Parameter:
    """One attribute of the class: its serializer, validators and default."""

    def __init__(self, name: str, annotation: Any, default: Any) -> None:
        kind, *annotations = typing.get_args(annotation) if hasattr(annotation, "__metadata__") else (annotation,)
        self.name, self.validators = name, annotations
        self.serializer = serializer_for(kind)
        self.default = self.serializer.default() if default is None else default

    def __get__(self, owner: Any, kind: type) -> Any:
        return self if owner is None else owner._values[self.name].value

    def __set__(self, owner: Any, value: Any) -> None:
        owner._values[self.name].write(value)


class CachedValue:
    """A parameter's value in one node: read when the node is modified, not each time it is asked for."""

    def __init__(self, parameter: Parameter, node: Any) -> None:
        self._parameter, self._node, self._writing = parameter, node, False
        if not node.HasParameter(parameter.name):
            self._store(parameter.default)
        self.value = self._stored()
        here = weakref.ref(self)  # the observer does not keep this object alive
        self._tag = node.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: here()._on_modified())

    def __del__(self) -> None:
        if hasattr(self, "_tag"):
            self._node.RemoveObserver(self._tag)

    def write(self, value: Any) -> None:
        """The value is there before any observer of the node is called."""
        self._writing = True
        try:
            with slicer.util.NodeModify(self._node):
                self._store(value)
                self.value = self._stored()
        finally:
            self._writing = False

    def _store(self, value: Any) -> None:
        self._parameter.serializer.check(value)
        for validator in self._parameter.validators:
            validator.validate(value)
        self._parameter.serializer.write(self._node, self._parameter.name, value)

    def _stored(self) -> Any:
        if not self._node.HasParameter(self._parameter.name):
            self._store(self._parameter.default)
        return self._parameter.serializer.read(self._node, self._parameter.name)

    def _on_modified(self) -> None:
        if not self._writing:
            self.value = self._stored()


def parameterNodeWrapper(kind: type) -> type:
    """Class decorator: the annotated attributes become parameters, and the class is made with a parameter node."""
    taken = [name for name in RESERVED if hasattr(kind, name)]
    if taken:
        raise ValueError(f"Cannot use reserved name '{taken[0]}' in a parameterNodeWrapper")
    hints = typing.get_type_hints(kind, include_extras=True)
    parameters = {name: Parameter(name, hint, vars(kind).get(name)) for name, hint in hints.items()}

    def __init__(self: Any, parameterNode: Any) -> None:
        self.parameterNode = parameterNode
        self._values = {name: CachedValue(parameter, parameterNode) for name, parameter in parameters.items()}

    for name, parameter in parameters.items():
        setattr(kind, name, parameter)
    kind.__init__, kind.allParameters = __init__, parameters
    kind.StartModify = lambda self: self.parameterNode.StartModify()
    kind.EndModify = lambda self, before: self.parameterNode.EndModify(before)
    kind.AddObserver = lambda self, *arguments: self.parameterNode.AddObserver(*arguments)
    kind.RemoveObserver = lambda self, tag: self.parameterNode.RemoveObserver(tag)
    kind.Modified = lambda self: self.parameterNode.Modified()
    return kind
