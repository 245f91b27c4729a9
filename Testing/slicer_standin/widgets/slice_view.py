"""qMRMLSliceView: one slice of the scene, drawn by numpy from the real nodes."""

from __future__ import annotations

from typing import Any

import slicer
from PySide6.QtCore import QEvent, QRect, QSize, Qt, QTimer
from PySide6.QtGui import QColor, QImage, QMouseEvent, QPainter
from PySide6.QtWidgets import QSizePolicy, QWidget

from slicer_standin.observing import Observation
from slicer_standin.picture import slice_picture
from slicer_standin.widgets.kept import kept

BAR_COLORS = {"Red": "#f34a33", "Yellow": "#edd54c", "Green": "#6eb04b"}


class qMRMLSliceView(QWidget):
    """Draws when it is painted, so that nothing is computed while nobody looks."""

    highlighted = kept(bool, False)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._logic: Any = None
        self._rendering = True
        self.setMinimumSize(80, 80)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)

    def show_logic(self, logic: Any) -> None:
        self._logic = logic
        for node in (logic.GetSliceNode(), logic.GetSliceCompositeNode()):
            Observation(self, node, "ModifiedEvent", self.update)

    def mrmlScene(self) -> Any:
        return slicer.mrmlScene

    def mrmlSliceNode(self) -> Any:
        return self._logic.GetSliceNode()

    def scheduleRender(self) -> None:
        QTimer.singleShot(0, self.update)

    def forceRender(self) -> None:
        self.repaint()

    def setRenderEnabled(self, enabled: bool) -> None:
        self._rendering = enabled

    def renderEnabled(self) -> bool:
        return self._rendering

    def sizeHint(self) -> QSize:
        return QSize(320, 320)

    def resizeEvent(self, event: QEvent) -> None:
        super().resizeEvent(event)
        if self._logic is not None:
            self._logic.ResizeSliceNode(self.width(), self.height())

    def paintEvent(self, event: QEvent) -> None:
        painter = QPainter(self)
        painter.fillRect(self.rect(), QColor("black"))
        if self._logic is None:
            return
        picture = slice_picture(self._logic, self.width(), self.height())
        if picture is not None:
            rows, columns = picture.shape[:2]
            image = QImage(picture.tobytes(), columns, rows, 3 * columns, QImage.Format.Format_RGB888)
            painter.drawImage(QRect(0, 0, self.width(), self.height()), image)
        self._paint_texts(painter)

    def wheelEvent(self, event: QEvent) -> None:
        step = 1 if event.angleDelta().y() > 0 else -1
        spacing = self._logic.GetLowestVolumeSliceSpacing()[2] or 1.0
        self._logic.SetSliceOffset(self._logic.GetSliceOffset() + step * spacing)

    def mousePressEvent(self, event: QMouseEvent) -> None:
        self.setFocus(Qt.FocusReason.MouseFocusReason)

    def _paint_texts(self, painter: QPainter) -> None:
        node = self._logic.GetSliceNode()
        painter.setPen(QColor("#ddd"))
        volume = self._logic.GetBackgroundLayer().GetVolumeNode()
        text = f"{node.GetOrientation()}  {self._logic.GetSliceOffset():.1f} mm"
        painter.drawText(8, self.height() - 10, text)
        if volume is not None:
            painter.drawText(8, self.height() - 28, volume.GetName())
