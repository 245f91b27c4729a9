"""qMRMLSliceWidget: a slice view under its bar."""

from __future__ import annotations

from typing import Any

from PySide6.QtCore import Property, QSignalBlocker, Signal
from PySide6.QtGui import QColor
from PySide6.QtWidgets import QHBoxLayout, QLabel, QSizePolicy, QVBoxLayout, QWidget

from slicer_standin.observing import Observation
from slicer_standin.widgets.mrml_widget import qMRMLWidget
from slicer_standin.widgets.slice_view import BAR_COLORS, qMRMLSliceView
from slicer_standin.widgets.slider_widget import qMRMLSliderWidget


class qMRMLSliceControllerWidget(qMRMLWidget):
    """The bar: the view's letter and its offset."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._logic: Any = None
        self._label, self._slider = QLabel(self), qMRMLSliderWidget(self)
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

    def sliceLogic(self) -> Any:
        return self._logic

    def mrmlSliceNode(self) -> Any:
        return self._logic.GetSliceNode()

    def mrmlSliceCompositeNode(self) -> Any:
        return self._logic.GetSliceCompositeNode()

    def sliceOffsetSlider(self) -> Any:
        return self._slider

    def setSliceOffsetValue(self, offset: float) -> None:
        self._logic.SetSliceOffset(offset)

    def fitSliceToBackground(self) -> None:
        self._logic.FitSliceToBackground()

    def _orientation(self) -> str:
        return self._logic.GetSliceNode().GetOrientation()

    def _set_orientation(self, name: str) -> None:
        self._logic.GetSliceNode().SetOrientation(name)

    def _name(self) -> str:
        return self._logic.GetSliceNode().GetLayoutName()

    sliceOrientation = Property(str, _orientation, _set_orientation)
    sliceViewName = Property(str, _name)

    def _show(self) -> None:
        bounds = [0.0] * 6
        self._logic.GetLowestVolumeSliceBounds(bounds)
        with QSignalBlocker(self._slider):
            if bounds[5] > bounds[4]:
                self._slider.minimum, self._slider.maximum = bounds[4], bounds[5]
            self._slider.value = self._logic.GetSliceOffset()


class qMRMLSliceWidget(qMRMLWidget):
    nodeAboutToBeEdited = Signal(object)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._controller, self._view = qMRMLSliceControllerWidget(self), qMRMLSliceView(self)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        layout.addWidget(self._controller)
        layout.addWidget(self._view, 1)

    def show_logic(self, logic: Any) -> None:
        self.setObjectName(f"qMRMLSliceWidget{logic.GetSliceNode().GetLayoutName()}")
        self._controller.show_logic(logic)
        self._view.show_logic(logic)

    def sliceController(self) -> Any:
        return self._controller

    def sliceView(self) -> Any:
        return self._view

    def sliceLogic(self) -> Any:
        return self._controller.sliceLogic()

    def mrmlSliceNode(self) -> Any:
        return self._controller.mrmlSliceNode()

    def mrmlSliceCompositeNode(self) -> Any:
        return self._controller.mrmlSliceCompositeNode()

    def imageDataConnection(self) -> Any:
        return self.sliceLogic().GetImageDataConnection()

    def fitSliceToBackground(self) -> None:
        self.sliceLogic().FitSliceToBackground()

    def sliceOffsetSlider(self) -> Any:
        return self._controller.sliceOffsetSlider()

    def _orientation(self) -> str:
        return self._controller.sliceOrientation

    def _set_orientation(self, name: str) -> None:
        self._controller.sliceOrientation = name

    def _name(self) -> str:
        return self._controller.sliceViewName

    sliceOrientation = Property(str, _orientation, _set_orientation)
    sliceViewName = Property(str, _name)
