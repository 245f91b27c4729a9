"""ctkCollapsibleButton: a button over a frame that it shows and hides."""

from __future__ import annotations

from typing import Any

from PySide6.QtCore import QChildEvent, QEvent, QPoint, QRect, QSize, Qt, Signal
from PySide6.QtWidgets import (
    QAbstractButton,
    QFrame,
    QSizePolicy,
    QStyle,
    QStyleOptionButton,
    QStyleOptionFrame,
    QStylePainter,
    QWidget,
)

from slicer_standin.widgets.kept import kept


class ctkCollapsibleButton(QAbstractButton):
    contentsCollapsed = Signal(bool)

    collapsed = kept(bool, False, "_on_collapsed")
    collapsedHeight = kept(int, 10)
    contentsFrameShape = kept(QFrame.Shape, QFrame.Shape.NoFrame)
    contentsFrameShadow = kept(QFrame.Shadow, QFrame.Shadow.Plain)
    contentsLineWidth = kept(int, 1)
    contentsMidLineWidth = kept(int, 0)
    buttonTextAlignment = kept(Qt.AlignmentFlag, Qt.AlignmentFlag.AlignLeft)
    indicatorAlignment = kept(Qt.AlignmentFlag, Qt.AlignmentFlag.AlignLeft)

    def __init__(self, *arguments: Any) -> None:
        """The text, if there is one, then the parent."""
        super().__init__(next((item for item in arguments if isinstance(item, QWidget)), None))
        self._hidden: dict[QWidget, bool] = {}
        self.setText(next((item for item in arguments if isinstance(item, str)), ""))
        self.setCheckable(True)
        self.setChecked(True)
        self.setSizePolicy(QSizePolicy.Policy.MinimumExpanding, QSizePolicy.Policy.Preferred)
        self.setContentsMargins(0, self._header(), 0, 0)
        self.toggled.connect(lambda checked: setattr(self, "collapsed", not checked))

    def _header(self) -> int:
        return self.fontMetrics().height() + 10

    def _on_collapsed(self) -> None:
        collapsed = bool(self.collapsed)
        self.setChecked(not collapsed)
        for child in self.findChildren(QWidget, options=Qt.FindChildOption.FindDirectChildrenOnly):
            self._show_child(child, collapsed)
        if not collapsed:
            self._hidden.clear()
        self.setSizePolicy(QSizePolicy.Policy.MinimumExpanding, self._vertical())
        self.setMaximumHeight(self._header() + 2 if collapsed else 16777215)
        self.updateGeometry()
        self.contentsCollapsed.emit(collapsed)

    def _vertical(self) -> QSizePolicy.Policy:
        return QSizePolicy.Policy.Fixed if self.collapsed else QSizePolicy.Policy.Preferred

    def _show_child(self, child: QWidget, collapsed: bool) -> None:
        """Hides a child and remembers whether it was hidden before, or shows it again."""
        if collapsed:
            self._hidden.setdefault(child, child.isHidden())
            child.hide()
        else:
            child.setHidden(self._hidden.get(child, child.isHidden()))

    def childEvent(self, event: QChildEvent) -> None:
        child = event.child()
        if event.type() == QEvent.Type.ChildPolished and isinstance(child, QWidget) and self.collapsed:
            self._show_child(child, True)
        super().childEvent(event)

    def minimumSizeHint(self) -> QSize:
        return self.sizeHint()

    def sizeHint(self) -> QSize:
        width = self.fontMetrics().horizontalAdvance(self.text()) + 40
        layout = self.layout()
        if self.collapsed or layout is None:
            return QSize(width, self._header() + 2)
        inside = layout.totalMinimumSize()
        return QSize(max(width, inside.width()), max(self._header() + 2, inside.height()))

    def hitButton(self, position: QPoint) -> bool:
        return position.y() < self._header()

    def paintEvent(self, event: QEvent) -> None:
        painter = QStylePainter(self)
        option = QStyleOptionButton()
        option.initFrom(self)
        option.rect = QRect(0, 0, self.width(), self._header())
        option.state |= QStyle.StateFlag.State_Sunken if self.isDown() else QStyle.StateFlag.State_Raised
        painter.drawControl(QStyle.ControlElement.CE_PushButtonBevel, option)
        arrow = QStyleOptionButton(option)
        arrow.rect = QRect(8, self._header() // 2 - 6, 12, 12)
        down = QStyle.PrimitiveElement.PE_IndicatorArrowDown
        painter.drawPrimitive(QStyle.PrimitiveElement.PE_IndicatorArrowRight if self.collapsed else down, arrow)
        text = option.rect.adjusted(26, 0, -4, 0)
        flags = Qt.AlignmentFlag.AlignVCenter | Qt.AlignmentFlag.AlignLeft | Qt.TextFlag.TextShowMnemonic
        painter.drawItemText(text, int(flags), self.palette(), self.isEnabled(), self.text(), self.foregroundRole())
        self._paint_frame(painter)

    def _paint_frame(self, painter: QStylePainter) -> None:
        if self.collapsed or self.contentsFrameShape == QFrame.Shape.NoFrame:
            return
        frame = QStyleOptionFrame()
        frame.initFrom(self)
        frame.rect = self.rect().adjusted(0, self._header(), 0, 0)
        frame.lineWidth = self.contentsLineWidth
        frame.frameShape = self.contentsFrameShape
        painter.drawControl(QStyle.ControlElement.CE_ShapedFrame, frame)
