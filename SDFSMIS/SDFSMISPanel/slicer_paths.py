"""The workbench of a running 3D Slicer, with the paths of that installation."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from SDFSMISLib.workbench import Workbench
from SDFSMISLib.workbench.local_backend import InstallationPaths, LocalBackendManager
from SDFSMISLib.workbench.settings import Settings

__all__ = ["make_workbench", "slicer_paths"]

FOLDER = "SDFSMIS-backend"


def slicer_paths() -> InstallationPaths:
    """The environment lies beside Slicer's settings: there it outlives updates of Slicer and of the extension."""
    import slicer

    import SDFSMISLib

    settings = Path(slicer.app.slicerUserSettingsFilePath).parent
    return InstallationPaths(
        environment=settings / FOLDER,
        panel_library=Path(SDFSMISLib.__file__).resolve().parent,
        requirements=Path(__file__).resolve().parent.parent / "Resources" / "requirements-backend.txt",
        python=shutil.which("PythonSlicer") or sys.executable,
        variables={"startup": slicer.util.startupEnvironment(), "slicer": dict(os.environ)},
    )


def make_workbench(settings: Settings) -> Workbench:
    """The workbench of a panel in a running Slicer."""
    return Workbench(settings, LocalBackendManager(slicer_paths()))
