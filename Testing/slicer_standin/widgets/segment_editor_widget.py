"""qMRMLSegmentEditorWidget: the segment editor, with Slicer's own logic and without its effects' brushes.

What the panel uses of it; its selectors of nodes, which the panel hides, are not here.
"""

from __future__ import annotations

from typing import Any

import slicer
import vtk
from PySide6.QtCore import QObject, QSize, Signal
from PySide6.QtGui import QColor, QIcon, QKeySequence, QPixmap, QShortcut
from PySide6.QtWidgets import (
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QListWidget,
    QListWidgetItem,
    QPushButton,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from slicer_standin import errors
from slicer_standin.observing import Observation
from slicer_standin.widgets.kept import kept
from slicer_standin.widgets.mrml_widget import qMRMLWidget

EFFECT_NAMES = (
    "Threshold",
    "Paint",
    "Draw",
    "Erase",
    "Level tracing",
    "Grow from seeds",
    "Fill between slices",
    "Margin",
    "Hollow",
    "Smoothing",
    "Scissors",
    "Islands",
    "Logical operators",
    "Mask volume",
)
COLUMNS = 4
SEGMENT_EVENTS = ("SegmentAdded", "SegmentRemoved", "SegmentModified", "SegmentsOrderModified")


class qSlicerSegmentEditorAbstractEffect(QObject):
    name = kept(str, "")

    def __init__(self, name: str, editor: QWidget) -> None:
        super().__init__(editor)
        self.name = name


class qMRMLSegmentEditorWidget(qMRMLWidget):
    currentSegmentIDChanged = Signal(str)
    sourceVolumeNodeChanged = Signal(object)
    segmentationNodeChanged = Signal(object)

    segmentationNodeSelectorVisible = kept(bool, True)
    sourceVolumeNodeSelectorVisible = kept(bool, True)
    switchToSegmentationsButtonVisible = kept(bool, True)
    undoEnabled = kept(bool, True, "_show_parts")
    maximumNumberOfUndoStates = kept(int, 10, "_on_undo_states")
    unorderedEffectsVisible = kept(bool, True, "_make_buttons")
    maskingSectionVisible = kept(bool, True, "_show_parts")

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._node: Any = None
        self._observation: Observation | None = None
        self._segments: list[Observation] = []
        self._seen: tuple[Any, Any, str] = (None, None, "")
        self._order: list[str] = []
        self._shortcuts: list[QShortcut] = []
        self._logic = slicer.vtkSlicerSegmentEditorLogic()
        self._logic.SetMaximumNumberOfUndoStates(10)
        self._effects = {name: qSlicerSegmentEditorAbstractEffect(name, self) for name in EFFECT_NAMES}
        self._active: qSlicerSegmentEditorAbstractEffect | None = None
        self._make_parts()
        self._make_buttons()

    # The node, the segmentation, the volume, the segment

    def setMRMLScene(self, scene: Any) -> None:
        self._logic.SetMRMLScene(scene)
        super().setMRMLScene(scene)
        self.updateWidgetFromMRML()

    def setMRMLSegmentEditorNode(self, node: Any) -> None:
        if self._observation is not None:
            self._observation.close()
        self._node, self._observation = node, None
        if node is not None:
            self._observation = Observation(self, node, vtk.vtkCommand.ModifiedEvent, self.updateWidgetFromMRML)
        self._logic.SetSegmentEditorNode(node)
        self.updateWidgetFromMRML()

    def mrmlSegmentEditorNode(self) -> Any:
        return self._node

    def segmentationNode(self) -> Any:
        return self._node.GetSegmentationNode() if self._node is not None else None

    def setSegmentationNode(self, node: Any) -> None:
        """The source volume becomes the one whose geometry the segmentation has."""
        if not self._has_node("setSegmentationNode"):
            return
        if node is self.segmentationNode():
            return
        self._logic.SetSegmentationNode(node)
        self._node.SetAndObserveSegmentationNode(node)
        if node is not None:
            role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
            volume = node.GetNodeReference(role)
            if volume is not None:
                self.setSourceVolumeNode(volume)
        self._select_first()

    def sourceVolumeNode(self) -> Any:
        return self._node.GetSourceVolumeNode() if self._node is not None else None

    def setSourceVolumeNode(self, node: Any) -> None:
        """The slice views show it."""
        if not self._has_node("setSourceVolumeNode"):
            return
        if node is not None and self.segmentationNode() is None:
            _complain("setSourceVolumeNode before a segmentation node is set")
        self._logic.SetSourceVolumeNode(node)
        self._node.SetAndObserveSourceVolumeNode(node)
        for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode") if node is not None else []:
            if node.GetID() not in (composite.GetBackgroundVolumeID(), composite.GetForegroundVolumeID()):
                composite.SetBackgroundVolumeID(node.GetID())

    def currentSegmentID(self) -> str:
        return (self._node.GetSelectedSegmentID() or "") if self._node is not None else ""

    def updateWidgetFromMRML(self) -> None:
        """Shows what the parameter node says, and tells what of it changed."""
        segmentation, volume, segment = self.segmentationNode(), self.sourceVolumeNode(), self.currentSegmentID()
        before, self._seen = self._seen, (segmentation, volume, segment)
        with errors.collected():
            if before[0] is not segmentation:
                self._watch_segments(segmentation)
            self._show_parts()
        if before[0] is not segmentation:
            self.segmentationNodeChanged.emit(segmentation)
        if before[1] is not volume:
            self.sourceVolumeNodeChanged.emit(volume)
        if before[2] != segment:
            self.currentSegmentIDChanged.emit(segment)

    # Effects

    def setEffectNameOrder(self, names: list[str]) -> None:
        self._order = list(names)
        self._make_buttons()

    def effectNameOrder(self) -> list[str]:
        return list(self._order)

    def effectCount(self) -> int:
        return len(self._buttons)

    def effectByIndex(self, index: int) -> Any:
        return self._effects[list(self._buttons)[index]]

    def activeEffect(self) -> Any:
        return self._active

    def setActiveEffect(self, effect: Any) -> None:
        self._active = effect
        if self._node is not None:
            self._node.SetActiveEffectName(effect.name if effect is not None else "")
        self._show_parts()

    def setActiveEffectByName(self, name: str) -> None:
        if name and name not in self._effects:
            _complain(f"setActiveEffectByName: there is no effect {name!r}")
        self.setActiveEffect(self._effects.get(name))

    # Undo, views, shortcuts

    def saveStateForUndo(self) -> None:
        if self.undoEnabled:
            self._logic.SaveStateForUndo()
        self._show_parts()

    def undo(self) -> None:
        self._logic.Undo()
        self._show_parts()

    def redo(self) -> None:
        self._logic.Redo()
        self._show_parts()

    def removeViewObservations(self) -> None:
        """Nobody paints in these views by mouse."""

    def installKeyboardShortcuts(self, parent: QWidget | None = None) -> None:
        self.uninstallKeyboardShortcuts()
        wanted = {"Ctrl+Z": self.undo, "Ctrl+Y": self.redo, "0": lambda: self.setActiveEffect(None)}
        for keys, action in wanted.items():
            shortcut = QShortcut(QKeySequence(keys), parent or self.window())
            shortcut.activated.connect(action)
            self._shortcuts.append(shortcut)

    def uninstallKeyboardShortcuts(self) -> None:
        for shortcut in self._shortcuts:
            shortcut.setEnabled(False)
            shortcut.deleteLater()
        self._shortcuts.clear()

    # Its parts

    def _make_parts(self) -> None:
        self._list = QListWidget(self)
        self._list.setMinimumHeight(110)
        self._list.setIconSize(QSize(36, 14))
        self._list.itemClicked.connect(lambda item: self._node.SetSelectedSegmentID(item.toolTip()))
        self._buttons: dict[str, QToolButton] = {}
        self._grid = QGridLayout()
        self._grid.setSpacing(3)
        self._add, self._remove = QPushButton("Add"), QPushButton("Remove")
        self._undo, self._redo = QPushButton("Undo"), QPushButton("Redo")
        self._masking = QLabel("Masking: editable area everywhere")
        actions = {self._add: self._on_add, self._remove: self._on_remove, self._undo: self.undo, self._redo: self.redo}
        for button, action in actions.items():
            button.clicked.connect(action)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addLayout(_row(self._add, self._remove))
        layout.addWidget(self._list)
        layout.addLayout(self._grid)
        layout.addLayout(_row(self._undo, self._redo))
        layout.addWidget(self._masking)
        note = QLabel("(stand-in for the segment editor)")
        note.setEnabled(False)
        layout.addWidget(note)

    def _make_buttons(self) -> None:
        for button in self._buttons.values():
            button.deleteLater()
        known = [name for name in self._order if name in self._effects]
        rest = [name for name in self._effects if name not in known] if self.unorderedEffectsVisible else []
        self._buttons = {name: QToolButton(self) for name in known + rest}
        for place, (name, button) in enumerate(self._buttons.items()):
            button.setText(name)
            button.setCheckable(True)
            button.setMinimumWidth(60)
            button.clicked.connect(lambda checked, name=name: self.setActiveEffectByName(name if checked else ""))
            self._grid.addWidget(button, *divmod(place, COLUMNS))
        self._show_parts()

    def _watch_segments(self, segmentation: Any) -> None:
        for observation in self._segments:
            observation.close()
        owner = segmentation.GetSegmentation() if segmentation is not None else None
        events = [getattr(owner, event) for event in SEGMENT_EVENTS] if owner is not None else []
        self._segments = [Observation(self, owner, event, self._on_segments) for event in events]

    def _on_segments(self) -> None:
        self._select_first()
        self._show_parts()

    def _show_parts(self) -> None:
        segmentation, current = self.segmentationNode(), self.currentSegmentID()
        self._list.clear()
        for segment_id in segmentation.GetSegmentation().GetSegmentIDs() if segmentation is not None else ():
            item = _item(segmentation.GetSegmentation().GetSegment(segment_id), segment_id)
            self._list.addItem(item)
            item.setSelected(segment_id == current)
        ready = segmentation is not None and self.sourceVolumeNode() is not None
        self._add.setEnabled(ready)
        self._remove.setEnabled(ready and bool(current))
        self._masking.setVisible(self.maskingSectionVisible)
        for button, possible in ((self._undo, self._logic.CanUndo()), (self._redo, self._logic.CanRedo())):
            button.setVisible(self.undoEnabled)
            button.setEnabled(bool(possible))
        for name, button in self._buttons.items():
            button.setEnabled(segmentation is not None and bool(current))
            button.setChecked(self._active is not None and self._active.name == name)

    def _on_undo_states(self) -> None:
        self._logic.SetMaximumNumberOfUndoStates(self.maximumNumberOfUndoStates)

    def _on_add(self) -> None:
        self.saveStateForUndo()
        self._node.SetSelectedSegmentID(self.segmentationNode().GetSegmentation().AddEmptySegment())

    def _on_remove(self) -> None:
        self.saveStateForUndo()
        self.segmentationNode().GetSegmentation().RemoveSegment(self.currentSegmentID())

    def _select_first(self) -> None:
        ids = self.segmentationNode().GetSegmentation().GetSegmentIDs() if self.segmentationNode() is not None else ()
        if self._node is not None and self.currentSegmentID() not in ids:
            self._node.SetSelectedSegmentID(ids[0] if ids else None)

    def _has_node(self, name: str) -> bool:
        if self._node is None:
            _complain(f"{name}: the segment editor widget has no parameter node (setMRMLSegmentEditorNode)")
        return self._node is not None


def _row(*buttons: QPushButton) -> QHBoxLayout:
    row = QHBoxLayout()
    for button in buttons:
        row.addWidget(button)
    return row


def _item(segment: Any, segment_id: str) -> QListWidgetItem:
    swatch = QPixmap(36, 14)
    swatch.fill(QColor.fromRgbF(*segment.GetColor()))
    item = QListWidgetItem(QIcon(swatch), segment.GetName())
    item.setToolTip(segment_id)
    return item


def _complain(text: str) -> None:
    """Slicer logs an error for it and goes on."""
    errors.collection.append(RuntimeError(text))
