"""What the tests of the command line share: how a command ended, the usual command, and what a folder holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MIDDLE = 5  # the painted slice


@dataclass(frozen=True)
class Ran:
    """How a command line ended."""

    code: int
    out: str
    err: str


Run = Callable[..., Ran]


def segment(files: Path, *more: object) -> tuple[object, ...]:
    """The usual command line, and more."""
    usual = ("--support", files / "scan.nii.gz", "--mask", files / "painted.seg.nrrd")
    return ("segment", *usual, *more)


def seen(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
