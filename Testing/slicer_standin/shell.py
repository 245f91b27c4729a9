"""Shells: what is constructed for a Python class that derives from a class of Qt, so that Qt calls its functions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from slicer_standin import errors
from slicer_standin.members import is_method
from slicer_standin.wrapper import Shell, Wrapper, WrapperClass, is_pure, native_class, unwrap, wrap


@functools.cache
def shell_class(owner: type) -> type:
    """The class to construct: PySide6's, or one that calls the functions of a Python class."""
    native = native_class(owner)
    if is_pure(owner):
        return native
    own = _own_functions(owner, native)
    members = {name: _forward(name, native) for name in own}
    return type(native.__name__, (Shell, native), members | {"standin_overridden": frozenset(own)})


def _own_functions(owner: type, native: type) -> Sequence[str]:
    bases = [base for base in owner.__mro__ if base is not Wrapper and isinstance(base, WrapperClass)]
    names = {name for base in bases if not is_pure(base) for name in vars(base) if not name.startswith("_")}
    return sorted(name for name in names if is_method(native, name))


def _forward(name: str, native: type) -> Callable[..., Any]:
    def forward(self: Any, *arguments: Any) -> Any:
        function = getattr(self.standin_wrapper, name)
        with errors.collected():
            return unwrap(function(*[wrap(argument) for argument in arguments]))
        return getattr(native, name)(self, *arguments)

    return forward
