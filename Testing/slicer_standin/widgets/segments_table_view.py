"""qMRMLSegmentsTableView: the segments of a segmentation with their colours."""

from __future__ import annotations

from typing import Any

from PySide6.QtCore import QItemSelection, Qt, Signal
from PySide6.QtGui import QColor, QPixmap
from PySide6.QtWidgets import QAbstractItemView, QHeaderView, QTableWidget, QTableWidgetItem, QVBoxLayout, QWidget

from slicer_standin.observing import Observation

EVENTS = ("SegmentAdded", "SegmentRemoved", "SegmentModified", "SegmentsOrderModified")


class qMRMLSegmentsTableView(QWidget):
    selectionChanged = Signal(QItemSelection, QItemSelection)
    segmentsFilterModified = Signal()
    segmentsChanged = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._node: Any = None
        self._observed: list[Observation] = []
        self._hidden: list[str] = []
        self._table = QTableWidget(0, 3, self)
        self._table.setHorizontalHeaderLabels(["\N{BLACK CIRCLE}", "Color", "Name"])
        self._table.verticalHeader().hide()
        self._table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self._table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self._table.setEditTriggers(QAbstractItemView.EditTrigger.DoubleClicked)
        for column, width in enumerate((28, 48)):
            self._table.setColumnWidth(column, width)
        self._table.horizontalHeader().setSectionResizeMode(2, QHeaderView.ResizeMode.Stretch)
        self._table.verticalHeader().setDefaultSectionSize(24)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._table)
        self._table.selectionModel().selectionChanged.connect(self.selectionChanged)
        self._table.itemChanged.connect(self._on_item)

    def segmentationNode(self) -> Any:
        return self._node

    def setSegmentationNode(self, node: Any) -> None:
        for observation in self._observed:
            observation.close()
        self._observed = []
        self._node = node
        if node is not None:
            segmentation = node.GetSegmentation()
            kinds = [getattr(segmentation, event) for event in EVENTS]
            self._observed = [Observation(self, segmentation, kind, self._on_segments) for kind in kinds]
        self.refresh()

    def setMRMLScene(self, scene: Any) -> None:
        """The segmentation node says all that is shown."""

    def displayedSegmentIDs(self) -> list[str]:
        if self._node is None:
            return []
        ids = list(self._node.GetSegmentation().GetSegmentIDs())
        return [segment_id for segment_id in ids if segment_id not in self._hidden]

    def setHideSegments(self, ids: list[str]) -> None:
        self._hidden = list(ids)
        self.refresh()

    def hideSegments(self) -> list[str]:
        return list(self._hidden)

    def selectedSegmentIDs(self) -> list[str]:
        rows = sorted({index.row() for index in self._table.selectedIndexes()})
        return [self._table.item(row, 2).data(Qt.ItemDataRole.UserRole) for row in rows]

    def setSelectedSegmentIDs(self, ids: list[str]) -> None:
        self._table.clearSelection()
        for row in range(self._table.rowCount()):
            if self._table.item(row, 2).data(Qt.ItemDataRole.UserRole) in ids:
                self._table.selectRow(row)

    def clearSelection(self) -> None:
        self._table.clearSelection()

    def setSelectionMode(self, mode: QAbstractItemView.SelectionMode) -> None:
        self._table.setSelectionMode(mode)

    def setHeaderVisible(self, visible: bool) -> None:
        self._table.horizontalHeader().setVisible(visible)

    def _on_segments(self) -> None:
        self.refresh()
        self.segmentsChanged.emit()

    def refresh(self) -> None:
        selected, ids = self.selectedSegmentIDs(), self.displayedSegmentIDs()
        self._table.blockSignals(True)
        self._table.setRowCount(len(ids))
        for row, segment_id in enumerate(ids):
            self._fill(row, segment_id)
        self._table.blockSignals(False)
        if self.selectedSegmentIDs() != selected:
            self.setSelectedSegmentIDs(selected)

    def _fill(self, row: int, segment_id: str) -> None:
        segment = self._node.GetSegmentation().GetSegment(segment_id)
        display = self._node.GetDisplayNode()
        shown = display is None or display.GetSegmentVisibility(segment_id)
        swatch = QPixmap(36, 14)
        swatch.fill(QColor.fromRgbF(*segment.GetColor()))
        color, eye, name = QTableWidgetItem(), QTableWidgetItem(), QTableWidgetItem(segment.GetName())
        color.setData(Qt.ItemDataRole.DecorationRole, swatch)
        eye.setCheckState(Qt.CheckState.Checked if shown else Qt.CheckState.Unchecked)
        name.setData(Qt.ItemDataRole.UserRole, segment_id)
        for column, item in enumerate((eye, color, name)):
            self._table.setItem(row, column, item)

    def _on_item(self, item: QTableWidgetItem) -> None:
        segment_id = self._table.item(item.row(), 2).data(Qt.ItemDataRole.UserRole)
        if item.column() == 2:
            self._node.GetSegmentation().GetSegment(segment_id).SetName(item.text())
        elif item.column() == 0 and self._node.GetDisplayNode() is not None:
            shown = item.checkState() == Qt.CheckState.Checked
            self._node.GetDisplayNode().SetSegmentVisibility(segment_id, shown)
