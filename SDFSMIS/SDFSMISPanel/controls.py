"""Small parts of the panel: controls that tell why they are disabled, shortcuts, pixmaps of arrays, the question."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from slicer.i18n import tr as _

from SDFSMISLib.workbench.views import Question

if TYPE_CHECKING:
    from SDFSMISLib.workbench import Workbench


class Control:
    """A widget whose tooltip tells what it does, or why it cannot be used now.

    Attributes:
        widget: the widget itself.
    """

    def __init__(self, widget: Any) -> None:
        self.widget = widget
        self._purpose = widget.toolTip

    def allow(self, why_not: str = "") -> None:
        """Enable the widget, or disable it and tell why in its tooltip."""
        self.widget.enabled = not why_not
        self.widget.toolTip = why_not or self._purpose


def plane_names() -> dict[str, str]:
    """The anatomical planes in the user's language."""
    return {"axial": _("axial"), "coronal": _("coronal"), "sagittal": _("sagittal")}


def bring_into_sight(widget: Any) -> None:
    """Scroll to a widget of the panel."""
    parent = widget.parentWidget()
    while parent is not None:
        if parent.inherits("QScrollArea"):
            parent.ensureWidgetVisible(widget)
            return
        parent = parent.parentWidget()


class Shortcuts:
    """Keys that work while the panel has the keyboard: Ctrl+Return segments, Ctrl+L shows the slice where one more
    painted slice would help most, Ctrl+K says that a slice is right.

    No key cancels a run: Escape deselects a tool of the segment editor, and a run may take minutes.
    """

    def __init__(
        self,
        panel: Any,
        start: Callable[[], None],
        go_to_suggestion: Callable[[], None],
        say_right: Callable[[], None],
    ) -> None:
        import qt

        self._made = []
        for keys, action in (
            ("Ctrl+Return", start),
            ("Ctrl+Enter", start),
            ("Ctrl+L", go_to_suggestion),
            ("Ctrl+K", say_right),
        ):
            shortcut = qt.QShortcut(panel)
            shortcut.setKey(qt.QKeySequence(keys))
            shortcut.setContext(qt.Qt.WidgetWithChildrenShortcut)
            shortcut.connect("activated()", action)
            self._made.append(shortcut)

    def close(self) -> None:
        """Remove the shortcuts."""
        for shortcut in self._made:
            shortcut.setParent(None)
        self._made.clear()


COLOR_TYPES = {3: 2, 4: 6}  # values of a pixel -> PNG's colour type


def png(pixels: np.ndarray) -> bytes:
    """A PNG file of uint8 ``(rows, columns, 3)`` or ``(rows, columns, 4)``: red, green, blue, opacity."""
    rows, columns, values = pixels.shape
    lines = np.zeros((rows, 1 + columns * values), dtype=np.uint8)  # each line begins with its filter, 0 = none
    lines[:, 1:] = pixels.reshape(rows, -1)
    head = struct.pack(">IIBBBBB", columns, rows, 8, COLOR_TYPES[values], 0, 0, 0)
    body = zlib.compress(lines.tobytes(), 1)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def pixmap(pixels: np.ndarray) -> Any:
    """A QPixmap of an array as :func:`png` takes it; by way of a PNG, which every version of PythonQt can load."""
    import qt

    made = qt.QPixmap()
    made.loadFromData(qt.QByteArray(png(pixels)))
    return made


def square(color: tuple[float, float, float], side: int = 14) -> Any:
    """A QPixmap with a square in one colour: red, green, blue from 0 to 1."""
    return pixmap(np.broadcast_to(_bytes(color), (side, side, 3)))


def dot(color: tuple[float, float, float], side: int = 14) -> Any:
    """A transparent QPixmap with a disc in one colour: red, green, blue from 0 to 1."""
    place = np.arange(side) - (side - 1) / 2
    edge = side / 2 - np.hypot(place[:, None], place[None, :])
    pixels = np.empty((side, side, 4), dtype=np.uint8)
    pixels[..., :3] = _bytes(color)
    pixels[..., 3] = np.rint(255 * np.clip(edge, 0, 1))
    return pixmap(pixels)


def _bytes(color: tuple[float, float, float]) -> np.ndarray:
    return np.rint(255 * np.clip(color, 0, 1)).astype(np.uint8)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


class QuestionSection:
    """Shows the :class:`.Question` that waits for an answer, in the panel instead of a dialog."""

    def __init__(self, ui: Any, workbench: Workbench) -> None:
        self._ui, self._workbench = ui, workbench
        self._shown: Question | None = None
        ui.agreeButton.connect("clicked()", self._agree)
        ui.declineButton.connect("clicked()", self._decline)

    def show(self) -> None:
        """Show the question of the workbench, or hide the frame."""
        question = self._workbench.questions.view
        if question == self._shown:
            return
        self._shown, ui = question, self._ui
        ui.questionFrame.visible = question is not None
        if question is not None:
            ui.questionLabel.text = question.text
            ui.agreeButton.text, ui.declineButton.text = question.agree, question.decline
            bring_into_sight(ui.questionFrame)

    def _agree(self) -> None:
        self._answer(True)

    def _decline(self) -> None:
        self._answer(False)

    def _answer(self, agreed: bool) -> None:
        if self._shown is not None:
            self._workbench.questions.answer(self._shown.key, agreed)
