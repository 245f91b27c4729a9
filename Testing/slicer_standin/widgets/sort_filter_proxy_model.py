"""qMRMLSortFilterProxyModel: which nodes of the scene a selector leaves out."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import QObject, QSortFilterProxyModel

from slicer_standin.widgets.kept import kept


class qMRMLSortFilterProxyModel(QSortFilterProxyModel):
    hiddenNodeIDs = kept("QStringList", [], "_tell")

    def __init__(self, parent: QObject, on_change: Callable[[], None]) -> None:
        super().__init__(parent)
        self._on_change = on_change

    def _tell(self) -> None:
        self._on_change()
