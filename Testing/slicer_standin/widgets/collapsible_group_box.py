"""ctkCollapsibleGroupBox: a group box that its check mark collapses."""

from __future__ import annotations

from typing import Any

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QGroupBox, QWidget

from slicer_standin.widgets.kept import kept


class ctkCollapsibleGroupBox(QGroupBox):
    collapsed = kept(bool, False, "_on_collapsed")
    collapsedHeight = kept(int, 14)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._hidden: dict[QWidget, bool] = {}
        self.setCheckable(True)
        self.toggled.connect(lambda checked: setattr(self, "collapsed", not checked))

    def _on_collapsed(self) -> None:
        self.setChecked(not self.collapsed)
        for child in self.findChildren(QWidget, options=Qt.FindChildOption.FindDirectChildrenOnly):
            if self.collapsed:
                self._hidden[child] = child.isHidden()
                child.hide()
            else:
                child.setHidden(self._hidden.get(child, False))
        self.setMaximumHeight(self.fontMetrics().height() + 8 if self.collapsed else 16777215)
