"""The workbench: what a front end does without widgets. 3D Slicer's panel and other front ends share it.

It knows the MRML scene and a backend's client, and neither Qt nor 3D Slicer's application: settings, folders and the
translation of texts are handed in. :class:`.Workbench` is loaded when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from SDFSMISLib.workbench.workbench import Workbench

__all__ = ["Workbench"]


def __getattr__(name: str) -> object:
    if name != "Workbench":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from SDFSMISLib.workbench.workbench import Workbench

    return Workbench
