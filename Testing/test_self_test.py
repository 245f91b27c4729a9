"""The self-test that Slicer's own runner runs, on the stand-in: the whole path, with a real backend process."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

pytest.importorskip("slicer")
pytest.importorskip("PySide6.QtWidgets", exc_type=ImportError)
pytest.importorskip("fastapi")

from processes import until  # noqa: E402
from slicer_standin import install  # noqa: E402

MODULE = Path(__file__).resolve().parent.parent / "SDFSMIS" / "SDFSMIS.py"


def test_the_whole_path_through_the_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDFSMIS_TEST_PYTHON", sys.executable)
    standin = install()
    try:
        module = standin.load_module(MODULE)
        standin.main_window(module.parent)
        standin.run_self_test(module)
        workbench = module.widget.panel.workbench
        workbench.backend.test()
        standin.process(90, until=lambda: workbench.backend.view.state != "busy")
        assert workbench.backend.view.state == "good", workbench.backend.view
        assert "built-in" in workbench.backend.view.status
        assert backends()
        standin.unload(module)
        until(lambda: not backends())  # it ends with the panel
        assert not standin.errors and not standin.dialogs.shown
    finally:
        standin.uninstall()


def backends() -> set[int]:
    """Numbers of the processes of this one that serve."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        try:
            if "serve" in process.cmdline():
                found.add(process.pid)
        except psutil.Error:  # it has just ended
            pass
    return found
