"""A stand-in for Slicer's Qt side, for tests and screenshots: Slicer's API on PySide6 and the real MRML scene.

``standin = install()`` makes ``import qt, ctk, slicer`` work as in Slicer's Python, offscreen, until ``uninstall()``.
It offers only names that Slicer, CTK and Qt 5.15 have, so that a misspelt call fails here too.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slicer_standin.standin import Standin

__all__ = ["install"]


if sys.version_info < (3, 12):
    # PySide6 gives back references that it did not take (to True at each emit). From Python 3.12 on these constants
    # have none to lose; before, the interpreter aborts at its end when they are used up.
    for constant in (True, False, None):
        ctypes.c_ssize_t.from_address(id(constant)).value += 1 << 40


def install() -> Standin:
    """Slicer for this process, with an empty scene."""
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    from slicer_standin.standin import Standin

    return Standin()
