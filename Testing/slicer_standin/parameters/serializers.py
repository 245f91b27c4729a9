"""Serializers: how a value of a type is kept as text or as a reference in a node."""

from __future__ import annotations

import enum
import pathlib
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from slicer_standin.parameters.validators import NotNone, Validator


@dataclass(frozen=True)
class Default:
    """The value of a parameter that was never set."""

    value: Any


class Serializer:
    """Text of a plain value."""

    def __init__(self, kind: type) -> None:
        self.kind = kind

    def default(self) -> Any:
        return self.kind()

    def check(self, value: Any) -> None:
        accepted = (int, float) if self.kind is float else self.kind
        if not isinstance(value, accepted) or isinstance(value, bool) and self.kind is not bool:
            raise TypeError(f"The value must be of type {self.kind.__name__}, not {type(value).__name__}")

    def encode(self, value: Any) -> str:
        return str(value)

    def decode(self, text: str) -> Any:
        return self.kind(text)

    def is_in(self, node: Any, name: str) -> bool:
        return node.HasParameter(name)

    def write(self, node: Any, name: str, value: Any) -> None:
        node.SetParameter(name, self.encode(value))

    def read(self, node: Any, name: str) -> Any:
        return self.decode(node.GetParameter(name))


class BoolSerializer(Serializer):
    def decode(self, text: str) -> bool:
        return text == "True"


class EnumSerializer(Serializer):
    """Kept by name."""

    def default(self) -> Any:
        return next(iter(self.kind))

    def encode(self, value: Any) -> str:
        return value.name

    def decode(self, text: str) -> Any:
        return self.kind[text]


class ListSerializer(Serializer):
    """A list of plain values, kept one by one under numbered names; handed out as a copy."""

    def __init__(self, item: Serializer) -> None:
        super().__init__(list)
        self._item = item

    def check(self, value: Any) -> None:
        super().check(value)
        for item in value:
            self._item.check(item)

    def encode(self, value: Any) -> str:
        return repr([self._item.encode(item) for item in value])

    def decode(self, text: str) -> list[Any]:
        import ast

        return [self._item.decode(item) for item in ast.literal_eval(text)]


class NodeSerializer(Serializer):
    """A reference to a node of the scene, which is None once the node is gone."""

    def default(self) -> None:
        return None

    def check(self, value: Any) -> None:
        if value is not None and not isinstance(value, self.kind):
            raise TypeError(f"The value must be a {self.kind.__name__}, not {type(value).__name__}")

    def is_in(self, node: Any, name: str) -> bool:
        return node.GetNodeReferenceID(name) is not None or node.HasParameter(name)

    def write(self, node: Any, name: str, value: Any) -> None:
        node.SetNodeReferenceID(name, value.GetID() if value is not None else None)

    def read(self, node: Any, name: str) -> Any:
        return node.GetNodeReference(name)


def serializer_for(kind: Any) -> Serializer:
    """The serializer of a plain type, an enumeration, a node class, or a list of one of them."""
    import slicer

    if typing.get_origin(kind) in (list,):
        (item,) = typing.get_args(kind)
        return ListSerializer(serializer_for(item))
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    if kind is bool:
        return BoolSerializer(bool)
    if kind in (str, int, float):
        return Serializer(kind)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return EnumSerializer(kind)
    if isinstance(kind, type) and issubclass(kind, pathlib.PurePath):
        return Serializer(kind)
    if isinstance(kind, type) and issubclass(kind, slicer.vtkMRMLNode):
        return NodeSerializer(kind)
    raise TypeError(f"A parameter cannot be of type {kind}")


def validators_of(annotations: Iterable[Any]) -> list[Validator]:
    """Classes count as their instances: ``Annotated[str, NotNone]``."""
    made = [item() if item is NotNone else item for item in annotations]
    return [item for item in made if isinstance(item, Validator)]
