"""The workbench is free of Qt, of Slicer's application and of torch: any front end can use it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("slicer")

from small_backend import SmallBackend

HERE = Path(__file__).resolve().parent


def test_a_structure_is_painted_found_reviewed_and_accepted_without_qt_and_torch() -> None:
    with SmallBackend().serve() as address:
        done = subprocess.run(
            [sys.executable, "workbench_without_qt.py", address], cwd=HERE, capture_output=True, text=True, timeout=120
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "900 of 900\n"
