"""ctkRangeWidget: a slider with two handles between two spin boxes."""

from __future__ import annotations

from typing import Any

from PySide6.QtCore import Property, QEvent, QRectF, QSize, Qt, Signal
from PySide6.QtGui import QPainter
from PySide6.QtWidgets import QDoubleSpinBox, QHBoxLayout, QSizePolicy, QWidget

from slicer_standin.widgets.kept import kept

HANDLE = 12  # pixels


def _of_boxes(kind: Any, getter: str, setter: str) -> Any:
    def write(widget: Any, value: Any) -> None:
        for box in widget._boxes:
            getattr(box, setter)(value)

    return Property(kind, lambda widget: getattr(widget._boxes[0], getter)(), write)


class ctkRangeWidget(QWidget):
    minimumValueChanged = Signal(float)
    maximumValueChanged = Signal(float)
    minimumValueIsChanging = Signal(float)
    maximumValueIsChanging = Signal(float)
    valuesChanged = Signal(float, float)
    rangeChanged = Signal(float, float)

    decimals = _of_boxes(int, "decimals", "setDecimals")
    singleStep = _of_boxes(float, "singleStep", "setSingleStep")
    prefix = _of_boxes(str, "prefix", "setPrefix")
    suffix = _of_boxes(str, "suffix", "setSuffix")
    tickInterval = kept(float, 0.0)
    autoSpinBoxWidth = kept(bool, True)
    spinBoxTextAlignment = kept(Qt.AlignmentFlag, Qt.AlignmentFlag.AlignLeft)
    spinBoxAlignment = kept(Qt.AlignmentFlag, Qt.AlignmentFlag.AlignVCenter)
    tracking = kept(bool, True)
    symmetricMoves = kept(bool, False)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._range, self._values = (0.0, 99.0), (0.0, 99.0)
        self._boxes = (QDoubleSpinBox(self), QDoubleSpinBox(self))
        self._bar = _Bar(self)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._boxes[0])
        layout.addWidget(self._bar, 1)
        layout.addWidget(self._boxes[1])
        self.setSizePolicy(QSizePolicy.Policy.Minimum, QSizePolicy.Policy.Fixed)
        self._show()
        self._boxes[0].valueChanged.connect(self._set_low)
        self._boxes[1].valueChanged.connect(self._set_high)

    def setRange(self, low: float, high: float) -> None:
        wanted = (float(low), max(float(low), float(high)))
        if wanted != self._range:
            self._range = wanted
            self.rangeChanged.emit(*wanted)
            self.setValues(*self._values)
            self._show()

    def setValues(self, low: float, high: float) -> None:
        """Brought into the range and into order."""
        first, last = sorted(min(max(float(value), self._range[0]), self._range[1]) for value in (low, high))
        before, self._values = self._values, (first, last)
        self._show()
        if before[0] != first:
            self.minimumValueChanged.emit(first)
        if before[1] != last:
            self.maximumValueChanged.emit(last)
        if before != self._values:
            self.valuesChanged.emit(first, last)

    def reset(self) -> None:
        self.setValues(0.0, 0.0)

    def _set_low(self, value: float) -> None:
        self.setValues(min(value, self._range[1]), max(value, self._values[1]))

    def _set_high(self, value: float) -> None:
        self.setValues(min(value, self._values[0]), max(value, self._range[0]))

    minimum = Property(
        float, lambda self: self._range[0], lambda self, low: self.setRange(low, max(low, self._range[1]))
    )
    maximum = Property(float, lambda self: self._range[1], lambda self, to: self.setRange(min(to, self._range[0]), to))
    minimumValue = Property(float, lambda self: self._values[0], _set_low)
    maximumValue = Property(float, lambda self: self._values[1], _set_high)

    def _show(self) -> None:
        for box, value in zip(self._boxes, self._values, strict=True):
            box.blockSignals(True)
            box.setRange(*self._range)
            box.setValue(value)
            box.blockSignals(False)
        span = self._range[1] - self._range[0]
        self._bar.shares = [(value - self._range[0]) / span if span else 0.0 for value in self._values]
        self._bar.update()


class _Bar(QWidget):
    """The slider as it looks; nobody drags it here."""

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self.shares = [0.0, 1.0]
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)

    def sizeHint(self) -> QSize:
        return QSize(84, 22)

    def paintEvent(self, event: QEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        palette, middle = self.palette(), self.height() / 2
        low, high = (HANDLE / 2 + share * (self.width() - HANDLE) for share in self.shares)
        painter.setPen(palette.mid().color())
        painter.setBrush(palette.midlight())
        painter.drawRoundedRect(QRectF(0, middle - 2, self.width(), 4), 2, 2)
        painter.setBrush(palette.highlight() if self.isEnabled() else palette.mid())
        painter.drawRect(QRectF(low, middle - 2, high - low, 4))
        painter.setBrush(palette.button())
        for position in (low, high):
            painter.drawRoundedRect(QRectF(position - HANDLE / 2, middle - 8, HANDLE, 16), 3, 3)
