"""Slicer places: where things are in a running 3D Slicer."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from SDFSMISLib.workbench.backend_choice import BackendAccess, Remembered
from SDFSMISLib.workbench.local_backend import LocalComputer, Places
from SDFSMISLib.workbench.logic import Logic

__all__ = ["make_logic", "slicer_places"]

FOLDER = "SDFSMIS-backend"


def slicer_places() -> Places:
    """The environment lies beside Slicer's settings: there it outlives updates of Slicer and of the extension."""
    import slicer

    import SDFSMISLib

    settings = Path(slicer.app.slicerUserSettingsFilePath).parent
    return Places(
        environment=settings / FOLDER,
        panel_library=Path(SDFSMISLib.__file__).resolve().parent,
        requirements=Path(__file__).resolve().parent.parent / "Resources" / "requirements-backend.txt",
        python=shutil.which("PythonSlicer") or sys.executable,
        variables={"startup": slicer.util.startupEnvironment(), "slicer": dict(os.environ)},
    )


def make_logic(remembered: Remembered) -> Logic:
    """The logic of a panel in a running Slicer."""
    return Logic(BackendAccess(remembered, LocalComputer(slicer_places())))
