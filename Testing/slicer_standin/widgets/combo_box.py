"""ctkComboBox: a combo box with a text for the time when nothing is chosen."""

from __future__ import annotations

from PySide6.QtCore import Property, Qt
from PySide6.QtGui import QIcon
from PySide6.QtWidgets import QComboBox

from slicer_standin.widgets.kept import kept


class ctkComboBox(QComboBox):
    defaultIcon = kept(QIcon, QIcon())
    forceDefault = kept(bool, False)
    elideMode = kept(Qt.TextElideMode, Qt.TextElideMode.ElideNone)
    scrollWheelEffect = kept(int, 1)

    def _text(self) -> str:
        return self.placeholderText()

    def _set_text(self, text: str) -> None:
        self.setPlaceholderText(text)

    defaultText = Property(str, _text, _set_text)
