"""qMRMLCheckableNodeComboBox: chooses several nodes of the scene by check boxes."""

from __future__ import annotations

from typing import Any

from PySide6.QtCore import QEvent, QModelIndex, QObject, Qt, Signal
from PySide6.QtGui import QStandardItem
from PySide6.QtWidgets import QComboBox, QStyle, QStyleOptionComboBox, QStylePainter, QWidget

from slicer_standin.widgets.node_combo_box import qMRMLNodeComboBox


class qMRMLCheckableNodeComboBox(qMRMLNodeComboBox):
    checkedNodesChanged = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        self._checked: list[str] = []
        self._fixed: list[str] = []
        super().__init__(parent)
        self._box.view().viewport().installEventFilter(self)

    def _make_box(self) -> QComboBox:
        return _CheckedBox(self)

    def checkedNodes(self) -> list[Any]:
        return [node for node in self._listed if node.GetID() in self._checked]

    def uncheckedNodes(self) -> list[Any]:
        return [node for node in self._listed if node.GetID() not in self._checked]

    def allChecked(self) -> bool:
        return not self.uncheckedNodes()

    def noneChecked(self) -> bool:
        return not self.checkedNodes()

    def checkState(self, node: Any) -> Qt.CheckState:
        checked = node is not None and node.GetID() in self._checked
        return Qt.CheckState.Checked if checked else Qt.CheckState.Unchecked

    def setCheckState(self, node: Any, state: Any) -> None:
        if node not in self._listed or self.checkState(node) == Qt.CheckState(state):
            return
        if Qt.CheckState(state) == Qt.CheckState.Checked:
            self._checked.append(node.GetID())
        else:
            self._checked.remove(node.GetID())
        self._show()
        self.checkedNodesChanged.emit()

    def setUserCheckable(self, node: Any, checkable: bool) -> None:
        self._fixed = [key for key in self._fixed if key != node.GetID()] + ([] if checkable else [node.GetID()])
        self._show()

    def check(self, node: Any) -> None:
        self.setCheckState(node, Qt.CheckState.Checked)

    def uncheck(self, node: Any) -> None:
        self.setCheckState(node, Qt.CheckState.Unchecked)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """A click in the open list checks a node and leaves the list open."""
        if event.type() == QEvent.Type.MouseButtonRelease:
            index = self._box.view().indexAt(event.position().toPoint())
            if index.isValid() and index.row() < len(self._listed):
                self._toggle(index)
                return True
        return super().eventFilter(watched, event)

    def _toggle(self, index: QModelIndex) -> None:
        node = self._listed[index.row()]
        if node.GetID() not in self._fixed:
            checked = self.checkState(node) == Qt.CheckState.Checked
            self.setCheckState(node, Qt.CheckState.Unchecked if checked else Qt.CheckState.Checked)

    def _refresh(self) -> None:
        super()._refresh()
        gone = [key for key in self._checked if key not in {node.GetID() for node in self._listed}]
        if gone:
            self._checked = [key for key in self._checked if key not in gone]
            self._show()
            self.checkedNodesChanged.emit()

    def _show(self) -> None:
        super()._show()
        offset = int(self.noneEnabled)
        for row, node in enumerate(self._listed):
            item: QStandardItem = self._box.model().item(row + offset)
            item.setCheckState(self.checkState(node))
        names = ", ".join(node.GetName() for node in self.checkedNodes())
        self._box.shown = names or "None"
        self._box.update()


class _CheckedBox(QComboBox):
    """A combo box that shows the names of what is checked."""

    shown = ""

    def paintEvent(self, event: QEvent) -> None:
        painter = QStylePainter(self)
        option = QStyleOptionComboBox()
        self.initStyleOption(option)
        option.currentText = self.shown
        painter.drawComplexControl(QStyle.ComplexControl.CC_ComboBox, option)
        painter.drawControl(QStyle.ControlElement.CE_ComboBoxLabel, option)
