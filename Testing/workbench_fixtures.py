"""Fixtures of the tests of the workbench: a painted scene, and a real backend that finds what is bright."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from panel_examples import PaintedScene
from serving import Backend, running


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    with running() as one:
        yield one


@pytest.fixture
def panel(backend: Backend) -> Iterator[PaintedScene]:
    made = PaintedScene(backend.url)
    yield made
    made.workbench.close()
