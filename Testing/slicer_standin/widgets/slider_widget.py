"""ctkSliderWidget: a slider and a spin box of one number."""

from __future__ import annotations

from typing import Any

from PySide6.QtCore import Property, QSignalBlocker, Qt, Signal
from PySide6.QtWidgets import QDoubleSpinBox, QHBoxLayout, QSizePolicy, QSlider, QWidget

from slicer_standin.widgets.kept import kept

STEPS = 100_000  # positions of the slider, which has whole numbers only


def _of_box(kind: Any, getter: str, setter: str) -> Any:
    """A property that is the spin box's own."""

    def read(widget: Any) -> Any:
        return getattr(widget._box, getter)()

    def write(widget: Any, value: Any) -> None:
        getattr(widget._box, setter)(value)
        widget._place()

    return Property(kind, read, write)


class ctkSliderWidget(QWidget):
    valueChanged = Signal(float)
    valueIsChanging = Signal(float)
    decimalsChanged = Signal(int)

    decimals = _of_box(int, "decimals", "setDecimals")
    singleStep = _of_box(float, "singleStep", "setSingleStep")
    minimum = _of_box(float, "minimum", "setMinimum")
    maximum = _of_box(float, "maximum", "setMaximum")
    value = _of_box(float, "value", "setValue")
    prefix = _of_box(str, "prefix", "setPrefix")
    suffix = _of_box(str, "suffix", "setSuffix")
    pageStep = kept(float, 10.0)
    tickInterval = kept(float, 0.0)
    tickPosition = kept(QSlider.TickPosition, QSlider.TickPosition.NoTicks)
    synchronizeSiblings = kept(int, 1)
    spinBoxAlignment = kept(Qt.AlignmentFlag, Qt.AlignmentFlag.AlignVCenter)
    popupSlider = kept(bool, False)
    spinBoxVisible = kept(bool, True, "_on_spin_box_visible")
    invertedAppearance = kept(bool, False, "_on_inverted")
    invertedControls = kept(bool, False, "_on_inverted")
    tracking = kept(bool, True)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._slider = QSlider(Qt.Orientation.Horizontal, self)
        self._slider.setRange(0, STEPS)
        self._box = QDoubleSpinBox(self)
        self._box.setRange(0.0, 99.0)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._slider, 1)
        layout.addWidget(self._box)
        self.setSizePolicy(QSizePolicy.Policy.Minimum, QSizePolicy.Policy.Fixed)
        self._dragged_to: float | None = None
        self._slider.valueChanged.connect(self._on_slider)
        self._slider.sliderReleased.connect(self._on_released)
        self._box.valueChanged.connect(self._on_box)

    def reset(self) -> None:
        self._box.setValue(0.0)

    def _on_inverted(self) -> None:
        self._slider.setInvertedAppearance(self.invertedAppearance)
        self._slider.setInvertedControls(self.invertedControls)

    def _on_spin_box_visible(self) -> None:
        self._box.setVisible(self.spinBoxVisible)

    def _on_slider(self, position: int) -> None:
        value = self._box.minimum() + position / STEPS * (self._box.maximum() - self._box.minimum())
        self.valueIsChanging.emit(value)
        if self.tracking or not self._slider.isSliderDown():
            self._box.setValue(value)
        else:
            self._dragged_to = value

    def _on_released(self) -> None:
        if self._dragged_to is not None:
            value, self._dragged_to = self._dragged_to, None
            self._box.setValue(value)

    def _on_box(self, value: float) -> None:
        self._place()
        self.valueChanged.emit(value)

    def _place(self) -> None:
        span = self._box.maximum() - self._box.minimum()
        with QSignalBlocker(self._slider):
            self._slider.setValue(round((self._box.value() - self._box.minimum()) / span * STEPS) if span else 0)
