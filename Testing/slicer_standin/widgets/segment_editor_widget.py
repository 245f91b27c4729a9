"""qMRMLSegmentEditorWidget: the segment editor, with Slicer's own logic and without its effects' brushes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import slicer
import vtk
from PySide6.QtCore import QItemSelection, Qt, Signal
from PySide6.QtGui import QKeySequence, QShortcut
from PySide6.QtWidgets import QGridLayout, QHBoxLayout, QLabel, QPushButton, QToolButton, QVBoxLayout, QWidget

from slicer_standin import errors
from slicer_standin.observing import Observation
from slicer_standin.widgets.kept import kept
from slicer_standin.widgets.mrml_widget import qMRMLWidget
from slicer_standin.widgets.node_combo_box import qMRMLNodeComboBox
from slicer_standin.widgets.segment_editor_effect import qSlicerSegmentEditorAbstractEffect
from slicer_standin.widgets.segments_table_view import qMRMLSegmentsTableView

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


class qMRMLSegmentEditorWidget(qMRMLWidget):
    currentSegmentIDChanged = Signal(str)
    sourceVolumeNodeChanged = Signal(object)
    segmentationNodeChanged = Signal(object)

    segmentationNodeSelectorVisible = kept(bool, True, "_show_parts")
    sourceVolumeNodeSelectorVisible = kept(bool, True, "_show_parts")
    switchToSegmentationsButtonVisible = kept(bool, True)
    autoShowSourceVolumeNode = kept(bool, True)
    undoEnabled = kept(bool, True, "_show_parts")
    maximumNumberOfUndoStates = kept(int, 10, "_on_undo_states")
    readOnly = kept(bool, False, "_show_parts")
    effectButtonStyle = kept(Qt.ToolButtonStyle, Qt.ToolButtonStyle.ToolButtonIconOnly)
    effectColumnCount = kept(int, 4, "updateEffectList")
    unorderedEffectsVisible = kept(bool, True, "updateEffectList")
    defaultTerminologyEntrySettingsKey = kept(str, "Segmentations/DefaultTerminologyEntry")
    defaultTerminologyEntry = kept(str, "")
    jumpToSelectedSegmentEnabled = kept(bool, False)
    maskingSectionVisible = kept(bool, True, "_show_parts")
    show3DButtonVisible = kept(bool, True, "_show_parts")

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._node: Any = None
        self._observation: Observation | None = None
        self._seen: tuple[Any, Any, str] = (None, None, "")
        self._order: list[str] = []
        self._shortcuts: list[QShortcut] = []
        self._observing_views = False
        self._logic = slicer.vtkSlicerSegmentEditorLogic()
        self._logic.SetMaximumNumberOfUndoStates(10)
        self._effects = {name: qSlicerSegmentEditorAbstractEffect(name, self) for name in EFFECT_NAMES}
        self._active: qSlicerSegmentEditorAbstractEffect | None = None
        self._make_parts()
        self.updateEffectList()

    # The node, the segmentation, the volume, the segment

    def setMRMLScene(self, scene: Any) -> None:
        self._logic.SetMRMLScene(scene)
        for box in (self._segmentations, self._volumes):
            box.setMRMLScene(scene)
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

    def segmentationNodeID(self) -> str:
        node = self.segmentationNode()
        return node.GetID() if node is not None else ""

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

    def setSegmentationNodeID(self, node_id: str) -> None:
        self.setSegmentationNode(self._scene.GetNodeByID(node_id) if node_id else None)

    def sourceVolumeNode(self) -> Any:
        return self._node.GetSourceVolumeNode() if self._node is not None else None

    def sourceVolumeNodeID(self) -> str:
        node = self.sourceVolumeNode()
        return node.GetID() if node is not None else ""

    def setSourceVolumeNode(self, node: Any) -> None:
        if not self._has_node("setSourceVolumeNode"):
            return
        if node is not None and self.segmentationNode() is None:
            _complain("setSourceVolumeNode before a segmentation node is set")
        self._logic.SetSourceVolumeNode(node)
        self._node.SetAndObserveSourceVolumeNode(node)
        if node is not None and self.autoShowSourceVolumeNode:
            self.showSourceVolumeInSliceViewers()

    def setSourceVolumeNodeID(self, node_id: str) -> None:
        self.setSourceVolumeNode(self._scene.GetNodeByID(node_id) if node_id else None)

    def currentSegmentID(self) -> str:
        return (self._node.GetSelectedSegmentID() or "") if self._node is not None else ""

    def setCurrentSegmentID(self, segment_id: str) -> None:
        if self._has_node("setCurrentSegmentID"):
            self._node.SetSelectedSegmentID(segment_id or None)

    def updateWidgetFromMRML(self) -> None:
        """Shows what the parameter node says, and tells what of it changed."""
        segmentation, volume, segment = self.segmentationNode(), self.sourceVolumeNode(), self.currentSegmentID()
        before, self._seen = self._seen, (segmentation, volume, segment)
        with errors.collected():
            self._show(segmentation, volume, segment)
        if before[0] is not segmentation:
            self.segmentationNodeChanged.emit(segmentation)
        if before[1] is not volume:
            self.sourceVolumeNodeChanged.emit(volume)
        if before[2] != segment:
            self.currentSegmentIDChanged.emit(segment)

    def selectNextSegment(self) -> None:
        self.selectSegmentAtOffset(1)

    def selectPreviousSegment(self) -> None:
        self.selectSegmentAtOffset(-1)

    def selectSegmentAtOffset(self, offset: int) -> None:
        ids = self._table.displayedSegmentIDs()
        if ids:
            here = ids.index(self.currentSegmentID()) if self.currentSegmentID() in ids else 0
            self.setCurrentSegmentID(ids[(here + offset) % len(ids)])

    # Effects

    def effectByName(self, name: str) -> Any:
        return self._effects.get(name)

    def availableEffectNames(self) -> list[str]:
        return list(self._effects)

    def setEffectNameOrder(self, names: list[str]) -> None:
        self._order = list(names)
        self.updateEffectList()

    def effectNameOrder(self) -> list[str]:
        return list(self._order)

    def effectCount(self) -> int:
        return len(self._shown_effects())

    def effectByIndex(self, index: int) -> Any:
        return self._effects[self._shown_effects()[index]]

    def activeEffect(self) -> Any:
        return self._active

    def setActiveEffect(self, effect: Any) -> None:
        if self._active is not None:
            self._active.active = False
        self._active = effect
        if effect is not None:
            effect.active = True
        if self._node is not None:
            self._node.SetActiveEffectName(effect.name if effect is not None else "")
        self._show_effects()

    def setActiveEffectByName(self, name: str) -> None:
        if name and name not in self._effects:
            _complain(f"setActiveEffectByName: there is no effect {name!r}")
        self.setActiveEffect(self._effects.get(name))

    def updateEffectList(self) -> None:
        for button in self._buttons.values():
            button.deleteLater()
        self._buttons = {name: self._effect_button(name) for name in self._shown_effects()}
        for place, button in enumerate(self._buttons.values()):
            self._grid.addWidget(button, place // self.effectColumnCount, place % self.effectColumnCount)
        self._show_effects()

    # Undo, views, shortcuts

    def saveStateForUndo(self) -> None:
        if self.undoEnabled:
            self._logic.SaveStateForUndo()
        self._show_undo()

    def undo(self) -> None:
        self._logic.Undo()
        self._show_undo()

    def redo(self) -> None:
        self._logic.Redo()
        self._show_undo()

    def setupViewObservations(self) -> None:
        self._observing_views = True

    def removeViewObservations(self) -> None:
        self._observing_views = False

    def installKeyboardShortcuts(self, parent: QWidget | None = None) -> None:
        self.uninstallKeyboardShortcuts()
        owner = parent or self.window()
        wanted: dict[str, Callable[[], None]] = {
            "Ctrl+Z": self.undo,
            "Ctrl+Y": self.redo,
            "q": self.selectPreviousSegment,
            "w": self.selectNextSegment,
            "0": lambda: self.setActiveEffect(None),
        }
        for keys, action in wanted.items():
            shortcut = QShortcut(QKeySequence(keys), owner)
            shortcut.activated.connect(action)
            self._shortcuts.append(shortcut)

    def uninstallKeyboardShortcuts(self) -> None:
        for shortcut in self._shortcuts:
            shortcut.setEnabled(False)
            shortcut.deleteLater()
        self._shortcuts.clear()

    def showSourceVolumeInSliceViewers(self, force: bool = False, fit: bool = False) -> None:
        volume = self.sourceVolumeNode()
        for node in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode") if volume is not None else []:
            shown = (node.GetBackgroundVolumeID(), node.GetForegroundVolumeID())
            if force or volume.GetID() not in shown:
                node.SetBackgroundVolumeID(volume.GetID())
        if fit:
            slicer.util.resetSliceViews()

    def turnOffLightboxes(self) -> bool:
        return False

    def hideLabelLayer(self) -> None:
        for node in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
            node.SetLabelVolumeID(None)

    def rotateSliceViewsToSegmentation(self) -> None:
        for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
            if self.sourceVolumeNode() is not None:
                node.RotateToVolumePlane(self.sourceVolumeNode())

    # Its parts

    def _make_parts(self) -> None:
        self._segmentations, self._volumes = qMRMLNodeComboBox(self), qMRMLNodeComboBox(self)
        self._segmentations.nodeTypes = ["vtkMRMLSegmentationNode"]
        self._segmentations.noneEnabled = True
        self._volumes.nodeTypes = ["vtkMRMLScalarVolumeNode"]
        self._volumes.addEnabled = False
        self._volumes.noneEnabled = True
        self._segmentations.nodeActivated.connect(self.setSegmentationNode)
        self._volumes.nodeActivated.connect(self.setSourceVolumeNode)
        self._table = qMRMLSegmentsTableView(self)
        self._table.setMinimumHeight(110)
        self._table.selectionChanged.connect(self._on_selection)
        self._table.segmentsChanged.connect(self._select_first)
        self._buttons: dict[str, QToolButton] = {}
        self._grid = QGridLayout()
        self._grid.setSpacing(3)
        self._add, self._remove, self._show_3d = (QPushButton(text) for text in ("Add", "Remove", "Show 3D"))
        self._add.clicked.connect(self._on_add)
        self._remove.clicked.connect(self._on_remove)
        self._undo, self._redo = QPushButton("Undo"), QPushButton("Redo")
        self._undo.clicked.connect(self.undo)
        self._redo.clicked.connect(self.redo)
        self._masking = QLabel("Masking: editable area everywhere")
        self._arrange()

    def _arrange(self) -> None:
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        for widget in (self._segmentations, self._volumes):
            layout.addWidget(widget)
        for row in ((self._add, self._remove, self._show_3d), (), (self._undo, self._redo)):
            line = QHBoxLayout()
            for button in row:
                line.addWidget(button)
            if row:
                layout.addLayout(line)
            else:
                layout.addWidget(self._table)
                layout.addLayout(self._grid)
        layout.addWidget(self._masking)
        note = QLabel("(stand-in for the segment editor)")
        note.setEnabled(False)
        layout.addWidget(note)

    def _effect_button(self, name: str) -> QToolButton:
        button = QToolButton(self)
        button.setText(name)
        button.setCheckable(True)
        button.setAutoRaise(False)
        button.setMinimumWidth(60)
        button.clicked.connect(lambda checked: self.setActiveEffectByName(name if checked else ""))
        return button

    def _shown_effects(self) -> list[str]:
        known = [name for name in self._order if name in self._effects]
        rest = [name for name in self._effects if name not in known] if self.unorderedEffectsVisible else []
        return known + rest

    def _show(self, segmentation: Any, volume: Any, segment: str) -> None:
        self._segmentations.setCurrentNode(segmentation)
        self._volumes.setCurrentNode(volume)
        if self._table.segmentationNode() is not segmentation:
            self._table.setSegmentationNode(segmentation)
        self._table.blockSignals(True)
        self._table.setSelectedSegmentIDs([segment])
        self._table.blockSignals(False)
        self._show_parts()

    def _show_parts(self) -> None:
        ready = self.segmentationNode() is not None and self.sourceVolumeNode() is not None
        self._segmentations.setVisible(self.segmentationNodeSelectorVisible)
        self._volumes.setVisible(self.sourceVolumeNodeSelectorVisible)
        self._show_3d.setVisible(self.show3DButtonVisible)
        self._masking.setVisible(self.maskingSectionVisible)
        self._add.setEnabled(ready and not self.readOnly)
        self._remove.setEnabled(ready and not self.readOnly and bool(self.currentSegmentID()))
        self._table.setEnabled(not self.readOnly)
        for button in (self._undo, self._redo):
            button.setVisible(self.undoEnabled)
        self._show_effects()
        self._show_undo()

    def _show_effects(self) -> None:
        usable = self.segmentationNode() is not None and bool(self.currentSegmentID()) and not self.readOnly
        for name, button in self._buttons.items():
            button.setEnabled(usable)
            button.setChecked(self._active is not None and self._active.name == name)

    def _show_undo(self) -> None:
        self._undo.setEnabled(bool(self._logic.CanUndo()))
        self._redo.setEnabled(bool(self._logic.CanRedo()))

    def _on_undo_states(self) -> None:
        self._logic.SetMaximumNumberOfUndoStates(self.maximumNumberOfUndoStates)

    def _on_selection(self, selected: QItemSelection, deselected: QItemSelection) -> None:
        ids = self._table.selectedSegmentIDs()
        if ids and self._node is not None:
            self._node.SetSelectedSegmentID(ids[0])

    def _on_add(self) -> None:
        self.saveStateForUndo()
        self.setCurrentSegmentID(self.segmentationNode().GetSegmentation().AddEmptySegment())

    def _on_remove(self) -> None:
        self.saveStateForUndo()
        self.segmentationNode().GetSegmentation().RemoveSegment(self.currentSegmentID())
        self._select_first()

    def _select_first(self) -> None:
        ids = self.segmentationNode().GetSegmentation().GetSegmentIDs() if self.segmentationNode() is not None else ()
        if self._node is not None and self.currentSegmentID() not in ids:
            self._node.SetSelectedSegmentID(ids[0] if ids else None)

    def _has_node(self, name: str) -> bool:
        if self._node is None:
            _complain(f"{name}: the segment editor widget has no parameter node (setMRMLSegmentEditorNode)")
        return self._node is not None


def _complain(text: str) -> None:
    """Slicer logs an error for it and goes on."""
    errors.collection.append(RuntimeError(text))
