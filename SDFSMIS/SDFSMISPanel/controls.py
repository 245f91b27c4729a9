"""Control: a widget whose tooltip says what it does, or why it cannot be used now.

Shortcuts: keys that work while the keyboard is in the panel, and nowhere else in Slicer.

Pictures: arrays made into what Qt shows, by way of a PNG, which Slicer's Python can hand to Qt on every version.

The question: what the user is asked, shown in the panel and not in a dialog.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from SDFSMISLib.workbench.views import Question

if TYPE_CHECKING:
    from SDFSMISLib.workbench import Workbench


class Control:
    """Wraps a widget of the panel. The tooltip that it has then says what it does.

    Attributes:
        widget: the widget itself.
    """

    def __init__(self, widget: Any) -> None:
        self.widget = widget
        self._purpose = widget.toolTip

    def allow(self, why_not: str = "") -> None:
        """Lets it be used, or says in its tooltip why it cannot be."""
        self.widget.enabled = not why_not
        self.widget.toolTip = why_not or self._purpose


def bring_into_sight(widget: Any) -> None:
    """Moves the scroll area that the panel lies in, if it lies in one."""
    parent = widget.parentWidget()
    while parent is not None:
        if parent.inherits("QScrollArea"):
            parent.ensureWidgetVisible(widget)
            return
        parent = parent.parentWidget()


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
    """A QPixmap of what :func:`png` takes."""
    import qt

    made = qt.QPixmap()
    made.loadFromData(qt.QByteArray(png(pixels)))
    return made


def square(color: tuple[float, float, float], side: int = 14) -> Any:
    """A QPixmap in one colour: red, green, blue from 0 to 1."""
    return pixmap(np.broadcast_to(_bytes(color), (side, side, 3)))


def dot(color: tuple[float, float, float], side: int = 14) -> Any:
    """A QPixmap with a disc in one colour, red, green, blue from 0 to 1, on nothing."""
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
    """Shows the :class:`.views.Question` that waits for an answer, with its two buttons."""

    def __init__(self, ui: Any, workbench: Workbench) -> None:
        self._ui, self._workbench = ui, workbench
        self._shown: Question | None = None
        ui.agreeButton.connect("clicked()", self._agree)
        ui.declineButton.connect("clicked()", self._decline)

    def show(self) -> None:
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
