"""ctkDoubleRangeSlider: a slider with two handles."""

from __future__ import annotations

from typing import Any

from PySide6.QtCore import Property, QEvent, QRectF, QSize, Qt, Signal
from PySide6.QtGui import QMouseEvent, QPainter
from PySide6.QtWidgets import QSizePolicy, QWidget

from slicer_standin.widgets.kept import kept

HANDLE = 12  # pixels


class ctkDoubleRangeSlider(QWidget):
    minimumValueChanged = Signal(float)
    maximumValueChanged = Signal(float)
    valuesChanged = Signal(float, float)
    minimumPositionChanged = Signal(float)
    maximumPositionChanged = Signal(float)
    positionsChanged = Signal(float, float)
    sliderPressed = Signal()
    sliderReleased = Signal()
    rangeChanged = Signal(float, float)

    singleStep = kept(float, 1.0)
    tracking = kept(bool, True)
    orientation = kept(Qt.Orientation, Qt.Orientation.Vertical, "_on_orientation")
    tickInterval = kept(float, 0.0)
    symmetricMoves = kept(bool, False)

    def __init__(self, *arguments: Any) -> None:
        """The orientation, if it is given, then the parent."""
        super().__init__(next((item for item in arguments if isinstance(item, QWidget)), None))
        self._range, self._values = (0.0, 99.0), (0.0, 99.0)
        self._grabbed: int | None = None
        self.orientation = next((item for item in arguments if isinstance(item, Qt.Orientation)), self.orientation)
        self._on_orientation()

    def setRange(self, low: float, high: float) -> None:
        wanted = (float(low), max(float(low), float(high)))
        if wanted != self._range:
            self._range = wanted
            self.rangeChanged.emit(*wanted)
            self.setValues(*self._values)
            self.update()

    def setValues(self, low: float, high: float) -> None:
        """Brought into the range and into order."""
        first, last = sorted(min(max(float(value), self._range[0]), self._range[1]) for value in (low, high))
        before, self._values = self._values, (first, last)
        if before == self._values:
            return
        self.update()
        if before[0] != first:
            self.minimumValueChanged.emit(first)
        if before[1] != last:
            self.maximumValueChanged.emit(last)
        self.valuesChanged.emit(first, last)
        self.positionsChanged.emit(first, last)

    setPositions = setValues

    def _low(self) -> float:
        return self._values[0]

    def _set_low(self, value: float) -> None:
        self.setValues(min(value, self._range[1]), max(value, self._values[1]))

    def _high(self) -> float:
        return self._values[1]

    def _set_high(self, value: float) -> None:
        self.setValues(min(value, self._values[0]), max(value, self._range[0]))

    def _minimum(self) -> float:
        return self._range[0]

    def _set_minimum(self, value: float) -> None:
        self.setRange(value, max(value, self._range[1]))

    def _maximum(self) -> float:
        return self._range[1]

    def _set_maximum(self, value: float) -> None:
        self.setRange(min(value, self._range[0]), value)

    minimum = Property(float, _minimum, _set_minimum)
    maximum = Property(float, _maximum, _set_maximum)
    minimumValue = Property(float, _low, _set_low)
    maximumValue = Property(float, _high, _set_high)
    minimumPosition = Property(float, _low, _set_low)
    maximumPosition = Property(float, _high, _set_high)

    def sizeHint(self) -> QSize:
        return QSize(84, 22) if self._horizontal() else QSize(22, 84)

    def paintEvent(self, event: QEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        palette, middle = self.palette(), self._across() / 2
        painter.setPen(palette.mid().color())
        painter.setBrush(palette.midlight())
        painter.drawRoundedRect(self._box(0, self._along(), middle - 2, 4), 2, 2)
        low, high = (self._pixel(value) for value in self._values)
        painter.setBrush(palette.highlight() if self.isEnabled() else palette.mid())
        painter.drawRect(self._box(low, high - low, middle - 2, 4))
        painter.setBrush(palette.button())
        for position in (low, high):
            painter.drawRoundedRect(self._box(position - HANDLE / 2, HANDLE, middle - 8, 16), 3, 3)

    def mousePressEvent(self, event: QMouseEvent) -> None:
        place = self._place(event)
        near = [abs(self._pixel(value) - place) for value in self._values]
        self._grabbed = int(near[1] < near[0] or near[0] == near[1] and place > self._pixel(self._values[1]))
        self.sliderPressed.emit()

    def mouseMoveEvent(self, event: QMouseEvent) -> None:
        if self._grabbed is None:
            return
        value = self._value(self._place(event))
        low, high = self._values
        self.setValues(min(value, high) if self._grabbed == 0 else low, max(value, low) if self._grabbed else high)

    def mouseReleaseEvent(self, event: QMouseEvent) -> None:
        self._grabbed = None
        self.sliderReleased.emit()

    def _on_orientation(self) -> None:
        policies = (QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setSizePolicy(*(policies if self._horizontal() else policies[::-1]))

    def _horizontal(self) -> bool:
        return self.orientation == Qt.Orientation.Horizontal

    def _along(self) -> int:
        return self.width() if self._horizontal() else self.height()

    def _across(self) -> int:
        return self.height() if self._horizontal() else self.width()

    def _box(self, start: float, length: float, across: float, thickness: float) -> QRectF:
        if self._horizontal():
            return QRectF(start, across, length, thickness)
        return QRectF(across, self.height() - start - length, thickness, length)

    def _pixel(self, value: float) -> float:
        span = self._range[1] - self._range[0]
        share = (value - self._range[0]) / span if span else 0.0
        return HANDLE / 2 + share * (self._along() - HANDLE)

    def _value(self, pixel: float) -> float:
        share = (pixel - HANDLE / 2) / max(1, self._along() - HANDLE)
        return self._range[0] + share * (self._range[1] - self._range[0])

    def _place(self, event: QMouseEvent) -> float:
        point = event.position()
        return point.x() if self._horizontal() else self.height() - point.y()
