"""ctkPathLineEdit: a path to type, to browse for, or to take from the history."""

from __future__ import annotations

from typing import Any

from PySide6.QtCore import Property, QSettings, Signal
from PySide6.QtWidgets import QComboBox, QHBoxLayout, QSizePolicy, QToolButton, QWidget

from slicer_standin.dialogs import dialogs
from slicer_standin.widgets.kept import kept

FILES, WRITABLE = 2, 32


class ctkPathLineEdit(QWidget):
    validInputChanged = Signal(bool)
    currentPathChanged = Signal(str)

    label = kept(str, "")
    filters = kept(int, 7)
    options = kept(int, 0)
    settingKey = kept(str, "", "retrieveHistory")
    showBrowseButton = kept(bool, True, "_show_buttons")
    showHistoryButton = kept(bool, True, "_show_buttons")
    sizeAdjustPolicy = kept(int, 1)
    minimumContentsLength = kept(int, 0)
    nameFilters = kept("QStringList", [])

    def __init__(self, *arguments: Any) -> None:
        super().__init__(next((item for item in arguments if isinstance(item, QWidget)), None))
        self._box = QComboBox(self)
        self._box.setEditable(True)
        self._box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self._box.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self._button = QToolButton(self)
        self._button.setText("...")
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._box, 1)
        layout.addWidget(self._button)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self._box.editTextChanged.connect(self.currentPathChanged)
        self._button.clicked.connect(self.browse)

    def _path(self) -> str:
        return self._box.currentText()

    def _set_path(self, path: str) -> None:
        self._box.setEditText(path)

    currentPath = Property(str, _path, _set_path)

    def browse(self) -> None:
        kind = "getExistingDirectory" if not self.filters & FILES else "getOpenFileName"
        if self.filters & FILES and self.filters & WRITABLE:
            kind = "getSaveFileName"
        path = dialogs.ask(kind, self.label, default="")
        if path:
            self.currentPath = path

    def addCurrentPathToHistory(self) -> None:
        if self.currentPath:
            paths = [self.currentPath, *(path for path in self._history() if path != self.currentPath)]
            QSettings().setValue(self._key(), paths[:10])
            self.retrieveHistory()

    def retrieveHistory(self) -> None:
        path, paths = self.currentPath, self._history()
        self._box.blockSignals(True)
        self._box.clear()
        self._box.addItems(paths)
        self._box.setEditText(path or (paths[0] if paths else ""))
        self._box.blockSignals(False)
        if self.currentPath != path:
            self.currentPathChanged.emit(self.currentPath)

    def _history(self) -> list[str]:
        stored = QSettings().value(self._key(), [])
        return [stored] if isinstance(stored, str) else list(stored or [])

    def _key(self) -> str:
        return self.settingKey or self.objectName()

    def _show_buttons(self) -> None:
        self._button.setVisible(self.showBrowseButton)
