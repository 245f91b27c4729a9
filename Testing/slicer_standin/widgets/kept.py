"""Kept: a Qt property that keeps a value and tells its widget that it changed."""

from __future__ import annotations

from typing import Any

from PySide6.QtCore import Property


def kept(kind: Any, default: Any, then: str = "") -> Any:
    """A property of a type of Qt; ``then`` names the method that is called after each change."""
    values = f"_kept_{next(_numbers)}"

    def read(widget: Any) -> Any:
        return widget.__dict__.get(values, default)

    def write(widget: Any, value: Any) -> None:
        changed = value != read(widget)
        widget.__dict__[values] = value
        if changed and then:
            getattr(widget, then)()

    return Property(kind, read, write)


_numbers = iter(range(1_000_000))
