"""qSlicerSegmentEditorAbstractEffect: one tool of the segment editor."""

from __future__ import annotations

from typing import Any

from PySide6.QtCore import QObject
from PySide6.QtWidgets import QWidget

from slicer_standin.widgets.kept import kept


class qSlicerSegmentEditorAbstractEffect(QObject):
    """An effect; its parameters lie in the editor's parameter node as Slicer's do."""

    perSegment = kept(bool, True)
    active = kept(bool, False)
    name = kept(str, "")
    title = kept(str, "")

    def __init__(self, name: str, editor: QWidget) -> None:
        super().__init__(editor)
        self.name = self.title = name

    def parameterSetNode(self) -> Any:
        return self.parent().mrmlSegmentEditorNode()

    def setParameter(self, name: str, value: Any) -> None:
        self.parameterSetNode().SetAttribute(f"{self.name}.{name}", str(value))

    def parameter(self, name: str) -> str:
        return self.parameterSetNode().GetAttribute(f"{self.name}.{name}") or ""

    def setCommonParameter(self, name: str, value: Any) -> None:
        self.parameterSetNode().SetAttribute(name, str(value))

    def commonParameter(self, name: str) -> str:
        return self.parameterSetNode().GetAttribute(name) or ""

    def integerParameter(self, name: str) -> int:
        return int(float(self.parameter(name) or 0))

    def doubleParameter(self, name: str) -> float:
        return float(self.parameter(name) or 0)
