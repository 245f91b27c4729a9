"""Other processes in tests: programs that are scripts, and whether something has happened there."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

posix = pytest.mark.skipif(os.name == "nt", reason="needs programs that are scripts")


def until(is_so: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for something that happens in another thread or process."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def script(folder: Path, text: str) -> str:
    """A program that takes the place of Python."""
    program = folder / f"program{len(list(folder.glob('program*')))}"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    return str(program)


def is_running(number: int) -> bool:
    """Whether a process of that number is there."""
    if os.name == "nt":
        return False  # to ask this way would end it there
    try:
        os.kill(number, 0)
    except OSError:
        return False
    state = Path(f"/proc/{number}/stat")
    return not (state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z")  # one that nobody buries
