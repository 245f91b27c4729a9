"""The folder of what belongs to one owner."""

from __future__ import annotations

from pathlib import Path

__all__ = ["owner_folder", "owner_of"]

EVERYBODY = "everybody"  # who comes in without a token, or with the only one


def owner_folder(folder: Path, owner: str) -> Path:
    """Where an owner's things are within a folder; owners are named as `Access` does."""
    return folder / (owner or EVERYBODY)


def owner_of(folder: Path) -> str:
    """Whose folder it is."""
    return "" if folder.name == EVERYBODY else folder.name
