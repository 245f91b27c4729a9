"""Wrapper: an object of Qt as PythonQt shows it to Python: properties are attributes, other members are methods.

A PySide6 object stays hidden behind each wrapper, so that code written for PythonQt runs unchanged and finds nothing
that PythonQt does not offer. As in PythonQt, wrapper classes do not inherit from each other:
``isinstance(qt.QLabel(), qt.QWidget)`` is false.
"""

from __future__ import annotations

import functools
import inspect
import threading
import types
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import shiboken6
from PySide6.QtCore import QObject

from slicer_standin import errors

_wrappers: weakref.WeakValueDictionary[int, Wrapper] = weakref.WeakValueDictionary()


class WrapperClass(type):
    """The class of a wrapper class: gives enumerations and static functions."""

    native: type | None

    def __setattr__(cls, name: str, value: Any) -> None:
        if not name.startswith("_") and "native" in cls.__dict__ and name not in cls.__dict__:
            raise AttributeError(f"{cls.__name__}: new attributes are not allowed on a class of Qt: {name}")
        super().__setattr__(name, value)


class Wrapper(metaclass=WrapperClass):
    """What every object of Qt has in PythonQt."""

    native: type | None = None
    _native: Any

    def __init__(self, *arguments: Any) -> None:
        from slicer_standin.shell import shell_class

        self._adopt(quietly(shell_class(type(self)), arguments))

    def _adopt(self, native: Any) -> None:
        object.__setattr__(self, "_native", native)
        if isinstance(native, QObject):
            _wrappers[id(native)] = self
        if isinstance(native, Shell):
            native.standin_wrapper = self  # an object of a Python class lives as long as Qt's object does

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        native = alive(self)
        if isinstance(native, QObject):
            if name.encode() in {bytes(key) for key in native.dynamicPropertyNames()}:
                return wrap(native.property(name))
            for child in native.children():
                if child.objectName() == name:
                    return wrap(child)
        raise AttributeError(f"{self.className()} has no attribute named '{name}'")

    def __setattr__(self, name: str, value: Any) -> None:
        member = _static_member(type(self), name)
        if isinstance(member, Member) or name.startswith("_") and not is_pure(type(self)):
            object.__setattr__(self, name, value)
            return
        native = self.__dict__.get("_native")
        if isinstance(native, QObject) and name.encode() in {bytes(key) for key in native.dynamicPropertyNames()}:
            native.setProperty(name, unwrap(value))
        elif is_pure(type(self)):
            raise AttributeError(f"'{name}' does not exist on {self.className()} and cannot be made there")
        else:
            object.__setattr__(self, name, value)

    def className(self) -> str:
        return native_class(type(self)).__name__ if is_pure(type(self)) else type(self).__name__

    def inherits(self, name: str) -> bool:
        return any(base.__name__ == name for base in type(alive(self)).__mro__)

    def delete(self) -> None:
        shiboken6.delete(alive(self))

    def __repr__(self) -> str:
        return f"{self.className()} ({self._native!r})"

    def __bool__(self) -> bool:
        return shiboken6.isValid(self._native)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Wrapper):
            return NotImplemented
        return bool(self._native == other._native)

    def __hash__(self) -> int:
        return hash(self._native)


class Member:
    """A name of a wrapper class."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __set__(self, wrapper: Wrapper, value: Any) -> None:
        raise AttributeError(f"'{self.name}' of {wrapper.className()} is not a property, it cannot be set")


class Call:
    """A method that was looked up, to call or to connect to."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.__name__, self._function = name, function

    def __call__(self, *arguments: Any) -> Any:
        return wrap(quietly(self._function, arguments))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Call) and self._function == other._function

    def __hash__(self) -> int:
        return hash(self._function)


class Shell:
    """A Qt class with the functions of a Python class that derives from it."""

    standin_overridden: frozenset[str] = frozenset()
    standin_wrapper: Wrapper


def alive(wrapper: Wrapper) -> Any:
    """The object behind a wrapper; Qt's objects belong to the main thread."""
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(f"{type(wrapper).__name__} is used outside the main thread, which crashes Slicer")
    native = wrapper.__dict__.get("_native")
    if native is None:
        raise ValueError(f"{type(wrapper).__name__}: the constructor of Qt's class was not called")
    if not shiboken6.isValid(native):
        raise ValueError(f"Trying to use a destroyed {type(wrapper).__name__} object")
    return native


def wrap(value: Any) -> Any:
    """What PythonQt hands out for a value of Qt."""
    if isinstance(value, QObject) and not isinstance(value, Shell):
        known = _wrappers.get(id(value))
        if known is not None and known._native is value:
            return known
    if isinstance(value, Shell):
        return value.standin_wrapper
    if isinstance(value, shiboken6.Shiboken.Object):
        return _new_wrapper(value)
    if isinstance(value, (list, tuple)):
        return tuple(wrap(item) for item in value)
    if isinstance(value, dict):
        return {key: wrap(item) for key, item in value.items()}
    return value


def unwrap(value: Any) -> Any:
    """What PySide6 wants for a value of Python."""
    if isinstance(value, Wrapper):
        return alive(value)
    if isinstance(value, WrapperClass):
        return value.native
    if isinstance(value, (types.FunctionType, types.MethodType, functools.partial)):
        return errors.guard(value)
    if isinstance(value, Call):
        return value._function
    if isinstance(value, (list, tuple)):
        return [unwrap(item) for item in value]
    if isinstance(value, dict):
        return {key: unwrap(item) for key, item in value.items()}
    if type(value).__module__ == "numpy" and not isinstance(value, (int, float)):
        raise TypeError(f"PythonQt takes plain Python numbers, not {type(value).__name__}")
    return value


def quietly(function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    """Calls PySide6, which warns of what Qt 6 still has and will not have for ever."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return function(*[unwrap(argument) for argument in arguments])


def is_pure(owner: type) -> bool:
    return "native" in owner.__dict__


def native_class(owner: type) -> type:
    return next(base.__dict__["native"] for base in owner.__mro__ if base.__dict__.get("native") is not None)


def _static_member(owner: type, name: str) -> Any:
    member = inspect.getattr_static(owner, name, None)
    return Member(name) if isinstance(member, property) else member


def _new_wrapper(native: Any) -> Wrapper:
    from slicer_standin.wrapper_classes import known_class, wrapper_class

    made = object.__new__(wrapper_class(known_class(native)))
    made._adopt(native)
    return made
