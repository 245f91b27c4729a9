"""qSlicerLayoutManager: the slice views of the application."""

from __future__ import annotations

from typing import Any

import slicer
import vtk
from PySide6.QtCore import QObject, Signal
from PySide6.QtWidgets import QFrame, QGridLayout, QWidget

from slicer_standin.widgets.kept import kept
from slicer_standin.widgets.slice_widget import qMRMLSliceWidget

PLACES = (0, 0), (1, 1), (1, 0)  # of Slicer's four-up layout, whose 3D view is empty here
VIEWS = {"Red": "Axial", "Yellow": "Sagittal", "Green": "Coronal"}


class qSlicerLayoutManager(QObject):
    layoutChanged = Signal(int)
    activeMRMLThreeDViewNodeChanged = Signal(object)
    nodeAboutToBeEdited = Signal(object)

    enabled = kept(bool, True)
    layout = kept(int, 2, "_on_layout")
    threeDViewCount = kept(int, 0)
    plotViewCount = kept(int, 0)
    tableViewCount = kept(int, 0)

    def __init__(self, scene: Any, application_logic: Any) -> None:
        super().__init__()
        self._scene = scene
        self._paused = 0
        self._viewport = QWidget()
        self._logics = vtk.vtkCollection()
        self._widgets: dict[str, qMRMLSliceWidget] = {}
        application_logic.SetSliceLogics(self._logics)
        for name, orientation in VIEWS.items():
            self._add_view(name, orientation, application_logic)
        grid = QGridLayout(self._viewport)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.setSpacing(2)
        for widget, place in zip(self._widgets.values(), PLACES, strict=True):
            grid.addWidget(widget, *place)
        empty = QFrame(self._viewport)
        empty.setStyleSheet("background: qlineargradient(x1:0, y1:0, x2:0, y2:1, stop:0 #7a80ba, stop:1 #c1c3e8)")
        grid.addWidget(empty, 0, 1)

    def _add_view(self, name: str, orientation: str, application_logic: Any) -> None:
        logic = slicer.vtkMRMLSliceLogic()
        logic.SetMRMLApplicationLogic(application_logic)
        logic.SetMRMLScene(self._scene)
        node = logic.AddSliceNode(name)
        node.SetOrientation(orientation)
        node.SetMappedInLayout(1)
        self._logics.AddItem(logic)
        widget = qMRMLSliceWidget(self._viewport)
        widget.show_logic(logic)
        self._widgets[name] = widget

    def mrmlScene(self) -> Any:
        return self._scene

    def viewport(self) -> QWidget:
        return self._viewport

    def sliceViewNames(self) -> list[str]:
        return list(self._widgets)

    def sliceWidget(self, name: str) -> Any:
        return self._widgets.get(name)

    def viewWidget(self, node: Any) -> Any:
        return next((widget for widget in self._widgets.values() if widget.mrmlSliceNode() is node), None)

    def mrmlSliceLogics(self) -> Any:
        return self._logics

    def resetSliceViews(self) -> None:
        for widget in self._widgets.values():
            widget.sliceLogic().FitSliceToBackground()

    def resetThreeDViews(self) -> None:
        """There is no 3D view here."""

    def setRenderPaused(self, paused: bool) -> None:
        self._paused = max(0, self._paused + (1 if paused else -1))

    def isRenderPaused(self) -> bool:
        return self._paused > 0

    def pauseRender(self) -> None:
        self.setRenderPaused(True)

    def resumeRender(self) -> None:
        self.setRenderPaused(False)

    def _on_layout(self) -> None:
        self.layoutChanged.emit(self.layout)
