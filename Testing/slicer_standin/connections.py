"""Connections: signals to Python functions, by the signal's C++ signature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import shiboken6
from PySide6.QtCore import QMetaMethod, QMetaObject, QObject

from slicer_standin import errors
from slicer_standin.names import listed


@dataclass(frozen=True)
class Connection:
    signature: str
    function: Any
    slot: Callable[..., Any]


class Connections:
    """Which functions are connected to which signals of which objects; PythonQt too holds them."""

    def __init__(self) -> None:
        self._connections: dict[int, list[Connection]] = {}

    def connect(self, sender: QObject, signal: str, call: Callable[..., Any], function: Any) -> bool:
        """``call`` is called, ``function`` is what was given and will be named to disconnect."""
        signature = _checked(sender, signal)

        def slot(*arguments: Any) -> None:
            with errors.collected():
                call(*arguments)

        _native_signal(sender, signature).connect(slot)
        address = shiboken6.getCppPointer(sender)[0]
        if address not in self._connections:
            self._connections[address] = []
            sender.destroyed.connect(lambda: self._connections.pop(address, None))
        self._connections[address].append(Connection(signature, function, slot))
        return True

    def disconnect(self, sender: QObject, signal: str, function: Any = None) -> bool:
        """Whether there was a connection; without a function, all of that signal go."""
        signature = _checked(sender, signal)
        known = self._connections.get(shiboken6.getCppPointer(sender)[0], [])
        found = [c for c in known if c.signature == signature and (function is None or c.function == function)]
        for connection in found if function is None else found[:1]:
            _native_signal(sender, signature).disconnect(connection.slot)
            known.remove(connection)
        return bool(found)

    def forget(self, sender: QObject) -> None:
        """Disconnects all of an object that outlives a session."""
        for connection in self._connections.pop(shiboken6.getCppPointer(sender)[0], []):
            _native_signal(sender, connection.signature).disconnect(connection.slot)

    def count(self) -> int:
        return sum(map(len, self._connections.values()))

    def default_signature(self, sender: QObject, name: str) -> str:
        """The signature that a signal is meant by when only its name is given."""
        for signature in (*_listed_signatures(sender), *_qt_signatures(sender)):
            if signature.partition("(")[0] == name:
                return signature
        raise AttributeError(f"{type(sender).__name__} has no signal {name}")


def _checked(sender: QObject, signal: str) -> str:
    text = signal.decode() if isinstance(signal, bytes) else str(signal)
    normalized = QMetaObject.normalizedSignature(text.lstrip("2"))
    signature = normalized.decode() if isinstance(normalized, bytes) else bytes(normalized.data()).decode()
    if signature in _listed_signatures(sender) or signature in _qt_signatures(sender):
        return signature
    names = {known.partition("(")[0]: known for known in (*_qt_signatures(sender), *_listed_signatures(sender))}
    near = names.get(signature.partition("(")[0])
    hint = f", but {near}" if near else ""
    raise ValueError(f"{type(sender).__name__} has no signal {signature}{hint}")


def _listed_signatures(sender: QObject) -> list[str]:
    names = (listed().get(base.__name__) for base in type(sender).__mro__)
    return [signature for entry in names if entry is not None for signature in entry.signals]


def _qt_signatures(sender: QObject) -> list[str]:
    meta = sender.metaObject()
    methods = (meta.method(index) for index in range(meta.methodCount()))
    return [_text(m.methodSignature()) for m in methods if m.methodType() == QMetaMethod.MethodType.Signal]


def _text(signature: Any) -> str:
    return bytes(signature.data()).decode()


def _native_signal(sender: QObject, signature: str) -> Any:
    """PySide6's signal. One with several signatures is a dictionary of them there."""
    name, _, arguments = signature.partition("(")
    signal = getattr(sender, name)
    kinds = arguments.rstrip(")")
    if signature not in _qt_signatures(sender):
        kinds = ",".join("PyObject" if kind.endswith("*") else kind for kind in kinds.split(",") if kind)
    try:
        return signal[kinds] if kinds else signal[()] if _has_several(sender, name) else signal
    except (KeyError, IndexError, TypeError):
        return signal


def _has_several(sender: QObject, name: str) -> bool:
    return sum(signature.partition("(")[0] == name for signature in _qt_signatures(sender)) > 1


connections = Connections()
