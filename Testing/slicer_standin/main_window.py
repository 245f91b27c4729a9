"""qSlicerMainWindow: a module's panel at the left, the slice views at the right; for screenshots of the whole."""

from __future__ import annotations

from typing import Any

import slicer
from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QComboBox, QDockWidget, QMainWindow, QScrollArea, QToolBar, QWidget

PANEL_WIDTH = 430  # pixels, about what Slicer's module panel has


class qSlicerModuleSelectorToolBar(QToolBar):
    """Chooses the module whose panel is shown."""

    moduleSelected = Signal(str)

    def __init__(self, window: qSlicerMainWindow) -> None:
        super().__init__("Modules", window)
        self._window = window
        self._box = QComboBox(self)
        self._box.setMinimumWidth(260)
        self.addWidget(self._box)

    def selectModule(self, name: str) -> None:
        """A module that is not loaded only closes the one that is shown."""
        module = slicer.app.moduleManager().module(name)
        self._window.show_panel(module.widgetRepresentation() if module is not None else None)
        self.moduleSelected.emit(name)

    def show_module(self, name: str) -> None:
        module = slicer.app.moduleManager().module(name)
        self._box.clear()
        self._box.addItem(module.title if module is not None else "")


class qSlicerMainWindow(QMainWindow):
    initialWindowShown = Signal()

    def __init__(self, views: QWidget) -> None:
        super().__init__()
        self.setObjectName("qSlicerMainWindow")
        self.setWindowTitle("3D Slicer (stand-in)")
        self._panel: Any = None
        self._selector = qSlicerModuleSelectorToolBar(self)
        self.addToolBar(self._selector)
        self._scroll = QScrollArea()
        self._scroll.setWidgetResizable(True)
        self._scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAsNeeded)
        dock = QDockWidget("Module", self)
        dock.setObjectName("PanelDockWidget")
        dock.setWidget(self._scroll)
        dock.setMinimumWidth(PANEL_WIDTH)
        self.addDockWidget(Qt.DockWidgetArea.LeftDockWidgetArea, dock)
        self.setCentralWidget(views)
        self.statusBar()
        self.resize(1400, 900)

    def moduleSelector(self) -> Any:
        return self._selector

    def show_panel(self, panel: Any) -> None:
        """Leaves the module that is shown, and enters another."""
        native = panel._native if hasattr(panel, "_native") else panel
        if native is self._panel:
            return
        if self._panel is not None:
            self._panel.exit()
            self._scroll.takeWidget()
        self._panel = native
        self._selector.show_module(native.moduleName if native is not None else "")
        if native is not None:
            self._scroll.setWidget(native)
            native.show()
            if not native.isEntered:
                native.enter()
