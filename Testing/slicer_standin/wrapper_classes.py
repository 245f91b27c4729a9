"""Wrapper classes: made of a class of PySide6, or of a stand-in's class and what ``names.json`` lists of it."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any

from PySide6.QtCore import QMetaObject, QObject, Signal

from slicer_standin.connections import connections
from slicer_standin.members import ListedMethod, ListedProperty, Method, Property, SignalMember, python_call
from slicer_standin.names import ClassNames, listed, too_new
from slicer_standin.wrapper import Wrapper, WrapperClass, alive, unwrap, wrap

_classes: dict[type, type] = {}
_natives: dict[str, type] = {}  # classes of Slicer and CTK, by name


def wrapper_class(native: type) -> type:
    """The class that stands for a class of PySide6, or for one of Slicer or CTK."""
    if native not in _classes:
        members = _listed_members(native) if native.__name__ in listed() else _qt_members(native)
        _classes[native] = WrapperClass(native.__name__, (Wrapper,), members | {"native": native})
    return _classes[native]


def register(native: type) -> None:
    """Makes a class known that stands for the one of that name in ``names.json``."""
    _natives[native.__name__] = native


def registered(name: str) -> type | None:
    return _natives.get(name)


class QObjectMembers:
    """What PythonQt adds to every QObject."""

    def connect(self, signal: str, *target: Any) -> bool:
        """``connect(signal, function)`` or ``connect(signal, receiver, slot)``."""
        if len(target) == 2:
            name = str(target[1]).partition("(")[0]
            return self.connect(signal, getattr(target[0], name))
        (function,) = target
        native = alive(self)
        return connections.connect(native, signal, python_call(function), function)

    def disconnect(self, signal: str, function: Any = None) -> bool:
        return connections.disconnect(alive(self), signal, function)

    def findChild(self, kind: Any, name: str = "") -> Any:
        return next(iter(QObjectMembers.findChildren(self, kind, name)), None)

    def findChildren(self, kind: Any, name: str = "") -> tuple[Any, ...]:
        wanted = kind if isinstance(kind, str) else kind.native.__name__
        children = alive(self).findChildren(QObject)
        return tuple(wrap(child) for child in children if _fits(child, wanted, name))

    def tr(self, text: str) -> str:
        return text

    @property
    def name(self) -> str:
        return alive(self).objectName()

    @name.setter
    def name(self, value: str) -> None:
        alive(self).setObjectName(value)


def known_class(native: Any) -> type:
    """The most derived class of an object that has a wrapper class."""
    return next(base for base in type(native).__mro__ if _is_known(base))


def _is_known(native: type) -> bool:
    if native.__module__.startswith("PySide6"):
        return True
    return _natives.get(native.__name__) is native


def _fits(child: QObject, kind: str, name: str) -> bool:
    return any(base.__name__ == kind for base in type(child).__mro__) and name in ("", child.objectName())


def _qt_members(native: type) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name in dir(native):
        if name.startswith("_") or name in too_new(native):
            continue
        value = inspect.getattr_static(native, name)
        if type(value) is Signal:
            members[name] = SignalMember(name)
        elif isinstance(value, type):
            members |= _nested(name, value)
        elif callable(getattr(native, name)):
            members[name] = Method(name, getattr(native, name), _is_static(value))
        else:
            members[name] = value
    members |= _meta_members(native, members)
    if issubclass(native, QObject):
        members |= {name: value for name, value in vars(QObjectMembers).items() if not name.startswith("__")}
    else:
        members |= _operators(native)
    if "exec" in members:
        members["exec_"] = Method("exec", native.exec, False)
    return members


def _is_static(value: Any) -> bool:
    return isinstance(value, (staticmethod, types.BuiltinFunctionType))


def _nested(name: str, value: type) -> dict[str, Any]:
    """An enumeration and its values, or a class inside a class."""
    if hasattr(value, "__members__"):
        return dict(value.__members__) | {name: value}
    return {name: value}


def _meta_members(native: type, members: dict[str, Any]) -> dict[str, Any]:
    meta: QMetaObject | None = getattr(native, "staticMetaObject", None)
    if meta is None or not issubclass(native, QObject):
        return {}
    found: dict[str, Any] = {}
    for index in range(meta.propertyCount()):
        row = meta.property(index)
        name = row.name()
        if name in too_new(native):
            continue
        member = members.get(name)
        static = getattr(native, name) if isinstance(member, Method) and member.static else None
        found[name] = Property(name, native, row.isWritable(), static)
    return found


def _listed_members(native: type) -> dict[str, Any]:
    names: ClassNames = listed()[native.__name__]
    base = _natives.get(names.base) or next(kind for kind in native.__mro__ if kind.__name__ == names.base)
    members = {key: value for key, value in wrapper_class(base).__dict__.items() if not key.startswith("__")}
    members |= {name: ListedProperty(name) for name in names.properties}
    members |= {name: ListedMethod(name) for name in names.methods}
    members |= {name: SignalMember(name) for name in (signature.partition("(")[0] for signature in names.signals)}
    return members | dict(names.constants)


def _operators(native: type) -> dict[str, Any]:
    """Arithmetic, comparison and items of a value."""
    wanted = (
        "add sub mul truediv and or xor invert neg radd rsub rmul lt le gt ge len getitem contains int iter".split()
    )
    return {f"__{key}__": _operator(f"__{key}__") for key in wanted if hasattr(native, f"__{key}__")}


def _operator(name: str) -> Callable[..., Any]:
    def operate(self: Wrapper, *arguments: Any) -> Any:
        return wrap(getattr(alive(self), name)(*[unwrap(argument) for argument in arguments]))

    return operate
