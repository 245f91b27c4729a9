"""Names: what Slicer's, CTK's and Qt 5.15's classes offer to Python; a name that is not here is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class ClassNames:
    """What a class of Slicer or CTK adds to its base class. Signals have their C++ signatures, normalized."""

    base: str
    properties: frozenset[str]
    methods: frozenset[str]
    signals: tuple[str, ...]
    constants: dict[str, int]


@cache
def listed() -> dict[str, ClassNames]:
    """The classes of ``names.json``, by name."""
    entries = json.loads((FOLDER / "names.json").read_text())
    return {name: _class_names(entry) for name, entry in entries.items()}


@cache
def too_new(native: type) -> frozenset[str]:
    """Names of a PySide6 class that Qt 5.15 does not have."""
    table = _too_new_table()["names"]
    return frozenset(name for base in native.__mro__ for name in table.get(base.__name__, ()))


@cache
def too_new_classes() -> frozenset[str]:
    """Classes of PySide6 that Qt 5.15 does not have."""
    return frozenset(_too_new_table()["classes"])


@cache
def _too_new_table() -> dict[str, Any]:
    return json.loads((FOLDER / "too_new.json").read_text())


def _class_names(entry: dict[str, Any]) -> ClassNames:
    return ClassNames(
        base=entry["base"],
        properties=frozenset(entry.get("properties", ())),
        methods=frozenset(entry.get("methods", ())),
        signals=tuple(entry.get("signals", ())),
        constants=entry.get("constants", {}),
    )
