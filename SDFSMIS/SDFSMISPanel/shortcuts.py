"""Shortcuts: keys that work while the keyboard is in the panel, and nowhere else in Slicer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Shortcuts"]


class Shortcuts:
    """Ctrl+Return segments, Ctrl+L goes to the least certain slice.

    Nothing cancels a run by a key: Escape lets go of a tool of the segment editor, and a run may take minutes.
    """

    def __init__(self, panel: Any, start: Callable[[], None], go_to_least_certain: Callable[[], None]) -> None:
        import qt

        self._made = []
        for keys, action in (("Ctrl+Return", start), ("Ctrl+Enter", start), ("Ctrl+L", go_to_least_certain)):
            shortcut = qt.QShortcut(panel)
            shortcut.setKey(qt.QKeySequence(keys))
            shortcut.setContext(qt.Qt.WidgetWithChildrenShortcut)
            shortcut.connect("activated()", action)
            self._made.append(shortcut)

    def close(self) -> None:
        for shortcut in self._made:
            shortcut.setParent(None)
        self._made.clear()
