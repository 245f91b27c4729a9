"""The self-test that Slicer's own runner runs, on the stand-in: the whole path, with a real backend process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("slicer")
pytest.importorskip("PySide6.QtWidgets", exc_type=ImportError)
pytest.importorskip("fastapi")

from slicer_standin import install  # noqa: E402

MODULE = Path(__file__).resolve().parent.parent / "SDFSMIS" / "SDFSMIS.py"


def test_the_whole_path_through_the_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDFSMIS_TEST_PYTHON", sys.executable)
    standin = install()
    try:
        module = standin.load_module(MODULE)
        standin.main_window(module.parent)
        standin.run_self_test(module)
        standin.unload(module)
        assert not standin.errors and not standin.dialogs.shown
    finally:
        standin.uninstall()
