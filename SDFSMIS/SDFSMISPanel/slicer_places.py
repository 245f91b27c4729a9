"""Slicer places: where things are in a running 3D Slicer."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from SDFSMISLib.workbench.local_backend import Places

__all__ = ["slicer_places"]

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
