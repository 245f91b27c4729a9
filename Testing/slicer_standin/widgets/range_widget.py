"""ctkRangeWidget: a slider with two handles between two spin boxes."""

from __future__ import annotations

from typing import Any

from PySide6.QtCore import Property, Qt, Signal
from PySide6.QtWidgets import QDoubleSpinBox, QHBoxLayout, QSizePolicy, QWidget

from slicer_standin.widgets.kept import kept
from slicer_standin.widgets.range_slider import ctkDoubleRangeSlider


def _of_slider(name: str) -> Any:
    return Property(float, lambda widget: getattr(widget._slider, name), lambda widget, value: widget._set(name, value))


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
    minimum = _of_slider("minimum")
    maximum = _of_slider("maximum")
    minimumValue = _of_slider("minimumValue")
    maximumValue = _of_slider("maximumValue")
    tickInterval = kept(float, 0.0)
    autoSpinBoxWidth = kept(bool, True)
    spinBoxTextAlignment = kept(Qt.AlignmentFlag, Qt.AlignmentFlag.AlignLeft)
    spinBoxAlignment = kept(Qt.AlignmentFlag, Qt.AlignmentFlag.AlignVCenter)
    tracking = kept(bool, True)
    symmetricMoves = kept(bool, False)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._boxes = (QDoubleSpinBox(self), QDoubleSpinBox(self))
        self._slider = ctkDoubleRangeSlider(Qt.Orientation.Horizontal, self)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._boxes[0])
        layout.addWidget(self._slider, 1)
        layout.addWidget(self._boxes[1])
        self.setSizePolicy(QSizePolicy.Policy.Minimum, QSizePolicy.Policy.Fixed)
        self._show()
        for signal in ("minimumValueChanged", "maximumValueChanged", "valuesChanged", "rangeChanged"):
            getattr(self._slider, signal).connect(self._show)
            getattr(self._slider, signal).connect(getattr(self, signal))
        self._boxes[0].valueChanged.connect(lambda value: self._set("minimumValue", value))
        self._boxes[1].valueChanged.connect(lambda value: self._set("maximumValue", value))

    def setRange(self, low: float, high: float) -> None:
        self._slider.setRange(low, high)

    def setValues(self, low: float, high: float) -> None:
        self._slider.setValues(low, high)

    def reset(self) -> None:
        self.setValues(0.0, 0.0)

    def _set(self, name: str, value: float) -> None:
        setattr(self._slider, name, value)
        self._show()

    def _show(self, *_: float) -> None:
        values = (self._slider.minimumValue, self._slider.maximumValue)
        for box, value in zip(self._boxes, values, strict=True):
            box.blockSignals(True)
            box.setRange(self._slider.minimum, self._slider.maximum)
            box.setValue(value)
            box.blockSignals(False)


class qMRMLRangeWidget(ctkRangeWidget):
    quantity = kept(str, "")
    unitAwareProperties = kept(int, 0)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._scene: Any = None

    def mrmlScene(self) -> Any:
        return self._scene

    def setMRMLScene(self, scene: Any) -> None:
        self._scene = scene
