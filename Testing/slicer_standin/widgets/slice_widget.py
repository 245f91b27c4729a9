"""qMRMLSliceWidget: a slice view under its bar."""

from __future__ import annotations

from typing import Any

from PySide6.QtCore import QSignalBlocker
from PySide6.QtGui import QColor
from PySide6.QtWidgets import QHBoxLayout, QLabel, QSizePolicy, QVBoxLayout, QWidget

from slicer_standin.observing import Observation
from slicer_standin.widgets.mrml_widget import qMRMLWidget
from slicer_standin.widgets.slice_view import BAR_COLORS, qMRMLSliceView
from slicer_standin.widgets.slider_widget import ctkSliderWidget


class qMRMLSliceWidget(qMRMLWidget):
    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._bar, self._view = _Bar(self), qMRMLSliceView(self)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        layout.addWidget(self._bar)
        layout.addWidget(self._view, 1)

    def show_logic(self, logic: Any) -> None:
        self._logic = logic
        self.setObjectName(f"qMRMLSliceWidget{logic.GetSliceNode().GetLayoutName()}")
        self._bar.show_logic(logic)
        self._view.show_logic(logic)

    def sliceView(self) -> Any:
        return self._view

    def sliceLogic(self) -> Any:
        return self._logic

    def mrmlSliceNode(self) -> Any:
        return self._logic.GetSliceNode()


class _Bar(QWidget):
    """The view's letter and its offset."""

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self._logic: Any = None
        self._label, self._slider = QLabel(self), ctkSliderWidget(self)
        self._slider.suffix = " mm"
        layout = QHBoxLayout(self)
        layout.setContentsMargins(4, 2, 4, 2)
        layout.addWidget(self._label)
        layout.addWidget(self._slider, 1)
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)
        self.setAutoFillBackground(True)
        self._slider.valueChanged.connect(lambda value: self._logic.SetSliceOffset(value))

    def show_logic(self, logic: Any) -> None:
        self._logic = logic
        name = logic.GetSliceNode().GetLayoutName()
        self._label.setText(f" {name[:1]} ")
        palette = self.palette()
        palette.setColor(self.backgroundRole(), QColor(BAR_COLORS.get(name, "#888")))
        self.setPalette(palette)
        for node in (logic.GetSliceNode(), logic.GetSliceCompositeNode()):
            Observation(self, node, "ModifiedEvent", self._show)

    def _show(self) -> None:
        bounds = [0.0] * 6
        self._logic.GetLowestVolumeSliceBounds(bounds)
        with QSignalBlocker(self._slider):
            if bounds[5] > bounds[4]:
                self._slider.minimum, self._slider.maximum = bounds[4], bounds[5]
            self._slider.value = self._logic.GetSliceOffset()
