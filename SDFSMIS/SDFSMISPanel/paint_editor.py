"""Slicer's segment editor inside the panel, with the tools that paint a single slice."""

from __future__ import annotations

from typing import Any

import slicer

from SDFSMISLib.workbench.views import Editor

__all__ = ["PaintEditor"]

EFFECTS = ("Paint", "Draw", "Erase", "Level tracing")  # those that change one slice; the others reach into the volume
TAG = "SDFSMIS"
UNDO_STATES = 10
MADE = "SDFSMIS.made"  # attribute of an editor node that the panel has set up


class PaintEditor:
    """A qMRMLSegmentEditorWidget in a frame. Its editor node is not that of the Segment Editor module."""

    def __init__(self, frame: Any) -> None:
        self._scan: Any | None = None
        self._segmentation: Any | None = None
        self._node: Any | None = None
        self._has_keys = False
        self._widget = slicer.qMRMLSegmentEditorWidget()
        self._widget.segmentationNodeSelectorVisible = False
        self._widget.sourceVolumeNodeSelectorVisible = False
        self._widget.switchToSegmentationsButtonVisible = False
        self._widget.setEffectNameOrder(list(EFFECTS))
        self._widget.unorderedEffectsVisible = False
        self._widget.undoEnabled = True
        self._widget.setMaximumNumberOfUndoStates(UNDO_STATES)
        self._take_node()  # before the scene, so that what the scene makes it select is kept in the node
        self._widget.setMRMLScene(slicer.mrmlScene)
        frame.layout().addWidget(self._widget)

    def editor(self) -> Editor:
        """The segment editor as a run needs it."""
        return Editor(self._widget.mrmlSegmentEditorNode(), self._widget.saveStateForUndo)

    def edit(self, scan: Any | None, segmentation: Any | None) -> None:
        """Paint on a scan, into a segmentation."""
        self._scan, self._segmentation = scan, segmentation
        self._widget.setSegmentationNode(segmentation)
        if segmentation is not None:
            self._widget.setSourceVolumeNode(scan)  # after the segmentation, and never without one

    def enter(self) -> None:
        """The panel is shown, or the scene is another one: the tools take keys and strokes."""
        self._take_node()
        self.edit(self._scan, self._segmentation)
        self._widget.updateWidgetFromMRML()
        if not self._has_keys:
            self._has_keys = True
            self._widget.installKeyboardShortcuts()

    def exit(self) -> None:
        """The panel is hidden: no tool is active."""
        self._has_keys = False
        self._widget.setActiveEffect(None)
        self._widget.uninstallKeyboardShortcuts()
        self._widget.removeViewObservations()

    def close_scene(self) -> None:
        """The scene is about to be closed, with the editor's node."""
        self._node = None
        self.edit(None, None)
        self._widget.removeViewObservations()

    def close(self) -> None:
        """The panel ends: the editor, which stays alive after a reload, lets go of the scene."""
        self._widget.setActiveEffect(None)
        self._widget.setMRMLSegmentEditorNode(None)
        self._widget.setMRMLScene(None)
        self._scan = self._segmentation = self._node = None

    def _take_node(self) -> None:
        """Take the editor's node of the scene; a loaded scene has its own, else one is made."""
        node = slicer.mrmlScene.GetSingletonNode(TAG, "vtkMRMLSegmentEditorNode")
        if node is None:
            node = slicer.vtkMRMLSegmentEditorNode()
            node.SetSingletonTag(TAG)
            node = slicer.mrmlScene.AddNode(node)
        if node.GetAttribute(MADE) is None:  # new, or as good as new: closing a scene resets it and keeps it
            node.SetAttribute(MADE, "1")
            node.SetOverwriteMode(node.OverwriteNone)  # no stroke and no result takes voxels from what is painted
        if node is not self._node:
            self._node = node
            self._widget.setMRMLSegmentEditorNode(node)
