"""Errors: what went wrong in a slot, which Qt would only print."""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

collection: list[BaseException] = []


@contextmanager
def collected() -> Iterator[None]:
    """Keeps an exception for :attr:`Standin.errors`, and prints it."""
    try:
        yield
    except Exception as error:
        collection.append(error)
        traceback.print_exception(error, file=sys.stderr)


def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """For ``sys.excepthook``, which VTK calls with what an observer raises."""
    collection.append(error)
    traceback.print_exception(kind, error, trace, file=sys.stderr)


def guard(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, whose exceptions are collected."""

    @functools.wraps(function, assigned=())
    def guarded(*arguments: Any) -> Any:
        with collected():
            return function(*arguments)

    del guarded.__wrapped__  # PySide6 would ask it how many arguments it takes
    return guarded
