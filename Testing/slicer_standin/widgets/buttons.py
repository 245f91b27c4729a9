"""Buttons and texts of CTK that look as Qt's own do."""

from __future__ import annotations

from PySide6.QtCore import Property, QSize, Qt
from PySide6.QtGui import QIcon
from PySide6.QtWidgets import QLineEdit, QPushButton, QTextBrowser, QToolButton

from slicer_standin.widgets.kept import kept


class ctkPushButton(QPushButton):
    buttonTextAlignment = kept(Qt.AlignmentFlag, Qt.AlignmentFlag.AlignCenter)
    iconAlignment = kept(Qt.AlignmentFlag, Qt.AlignmentFlag.AlignLeft)
    elideMode = kept(Qt.TextElideMode, Qt.TextElideMode.ElideNone)


class ctkMenuButton(QPushButton):
    showMenuOnlyWhenPressed = kept(bool, False)


class ctkSearchBox(QLineEdit):
    showSearchIcon = kept(bool, True)
    alwaysShowClearIcon = kept(bool, False)
    searchIcon = kept(QIcon, QIcon())
    clearIcon = kept(QIcon, QIcon())

    def _text(self) -> str:
        return super().placeholderText()

    def _set_text(self, text: str) -> None:
        super().setPlaceholderText(text)

    placeholderText = Property(str, _text, _set_text)


class ctkFittedTextBrowser(QTextBrowser):
    collapsed = kept(bool, True, "updateGeometry")
    collapsible = kept(bool, False)
    collapsibleText = kept(str, "")
    showMoreText = kept(str, "More...")
    showLessText = kept(str, "Less...")
    hideDetailsText = kept(str, "Hide details")
    showDetailsText = kept(str, "Show details...")

    def sizeHint(self) -> QSize:
        document = self.document().clone()
        document.setTextWidth(self.viewport().width())
        return QSize(super().sizeHint().width(), int(document.size().height()) + 4)


class ctkExpandButton(QToolButton):
    mirrorOnExpand = kept(bool, False)
    orientation = kept(Qt.Orientation, Qt.Orientation.Horizontal)
