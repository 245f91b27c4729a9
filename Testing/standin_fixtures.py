"""Fixtures of the tests of the stand-in for Slicer: a session of it, and a small module opened in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slicer_standin import install
from standin_example import write_example


@pytest.fixture
def standin() -> Iterator[Any]:
    made = install()
    yield made
    made.uninstall()


@pytest.fixture
def quiet(standin: Any) -> Iterator[Any]:
    """The stand-in, for a test in which no slot may fail."""
    yield standin
    assert standin.errors == []


@pytest.fixture
def example(quiet: Any, tmp_path: Path) -> Any:
    module = quiet.load_module(write_example(tmp_path))
    module.open()
    return module
