"""Members: the names of a wrapper class, by what they are in Qt: methods, properties, signals."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

from PySide6.QtCore import Signal

from slicer_standin.connections import connections
from slicer_standin.wrapper import Call, Member, Shell, Wrapper, alive, unwrap, wrap


class Method(Member):
    """A method. Called by a class it is static; called by ``super()`` it is Qt's own."""

    def __init__(self, name: str, function: Any, static: bool) -> None:
        super().__init__(name)
        self._function, self.static = function, static

    def __get__(self, wrapper: Wrapper | None, owner: type) -> Any:
        if wrapper is None:
            return Call(self.name, self._function)
        native = alive(wrapper)
        if isinstance(native, Shell) and self.name in native.standin_overridden:
            return Call(self.name, functools.partial(self._function, native))
        return Call(self.name, getattr(native, self.name))


class Property(Member):
    """A property of Qt's meta-object; ``static`` is the function that shares its name, for the class itself."""

    def __init__(self, name: str, native: type, writable: bool, static: Any) -> None:
        super().__init__(name)
        self._writable, self._static = writable, static
        capital = name[0].upper() + name[1:]
        self._getter = next((key for key in (name, f"is{capital}") if is_method(native, key)), None)
        self._setter = f"set{capital}" if is_method(native, f"set{capital}") else None

    def __get__(self, wrapper: Wrapper | None, owner: type) -> Any:
        if wrapper is None:
            return Call(self.name, self._static) if self._static is not None else self
        native = alive(wrapper)
        if self._getter is not None and self._static is None:
            return wrap(getattr(native, self._getter)())
        return wrap(native.property(self.name))

    def __set__(self, wrapper: Wrapper, value: Any) -> None:
        native = alive(wrapper)
        if not self._writable:
            raise AttributeError(f"Property '{self.name}' of {wrapper.className()} is not writable")
        plain = unwrap(value)
        if self._setter is not None:
            getattr(native, self._setter)(plain)
        elif not native.setProperty(self.name, plain):
            raise AttributeError(f"Property '{self.name}' of {wrapper.className()} does not accept {value!r}")


class ListedProperty(Member):
    """A property of a class of Slicer or CTK."""

    def __get__(self, wrapper: Wrapper | None, owner: type) -> Any:
        return self if wrapper is None else wrap(getattr(alive(wrapper), self.name))

    def __set__(self, wrapper: Wrapper, value: Any) -> None:
        setattr(alive(wrapper), self.name, unwrap(value))


class ListedMethod(Member):
    """A method of a class of Slicer or CTK."""

    def __get__(self, wrapper: Wrapper | None, owner: type) -> Any:
        native = alive(wrapper) if wrapper is not None else owner.native
        function = getattr(native, self.name, None)
        if function is None and _is_setter(self.name):
            function = functools.partial(setattr, native, self.name[3].lower() + self.name[4:])
        if function is None:
            raise NotImplementedError(f"The stand-in lacks {owner.__name__}.{self.name}, which Slicer has")
        return Call(self.name, function)


class SignalMember(Member):
    """A signal: ``widget.clicked.connect(f)``."""

    def __get__(self, wrapper: Wrapper | None, owner: type) -> Any:
        return self if wrapper is None else BoundSignal(wrapper, self.name)


class BoundSignal:
    """A signal of an object."""

    def __init__(self, wrapper: Wrapper, name: str) -> None:
        self._wrapper, self._name = wrapper, name

    def connect(self, function: Any) -> bool:
        return connections.connect(alive(self._wrapper), self._signature(), python_call(function), function)

    def disconnect(self, function: Any = None) -> bool:
        return connections.disconnect(alive(self._wrapper), self._signature(), function)

    def emit(self, *arguments: Any) -> None:
        getattr(alive(self._wrapper), self._name).emit(*[unwrap(argument) for argument in arguments])

    __call__ = emit

    def _signature(self) -> str:
        return connections.default_signature(alive(self._wrapper), self._name)


def python_call(function: Any) -> Callable[..., Any]:
    """What is called with wrapped arguments: as many as the function takes, as PythonQt does."""
    if isinstance(function, BoundSignal):
        return function.emit
    if not callable(function):
        raise TypeError(f"connect: {function!r} cannot be called")
    count = _argument_count(function)
    return lambda *arguments: function(*[wrap(argument) for argument in arguments[:count]])


def is_method(native: type, name: str) -> bool:
    value = inspect.getattr_static(native, name, None)
    return value is not None and callable(getattr(native, name, None)) and type(value) is not Signal


def _argument_count(function: Any) -> int | None:
    plain = function.__func__ if isinstance(function, types.MethodType) else function
    if not isinstance(plain, types.FunctionType) or plain.__code__.co_flags & inspect.CO_VARARGS:
        return None
    return plain.__code__.co_argcount - (plain is not function)


def _is_setter(name: str) -> bool:
    return name.startswith("set") and len(name) > 3 and name[3].isupper()
