"""SceneNodes: tells that nodes of the scene were added, removed or renamed, at once or when an import has ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import slicer
import vtk
from PySide6.QtCore import QObject

from slicer_standin.observing import Observation


class SceneNodes:
    """Observes a scene and the nodes it is given, for a widget."""

    def __init__(self, owner: QObject, scene: Any, changed: Callable[[], None]) -> None:
        self._owner, self.scene, self._changed = owner, scene, changed
        kinds = slicer.vtkMRMLScene
        calls = {kinds.NodeAddedEvent: self._on_added, kinds.NodeRemovedEvent: self._on_removed}
        calls |= {kinds.EndImportEvent: changed, kinds.EndCloseEvent: changed}
        self._scene = [Observation(owner, scene, event, call) for event, call in calls.items()]
        self._nodes: dict[Any, Observation] = {}

    def watch(self, nodes: list[Any]) -> None:
        """The nodes whose change of name matters."""
        for node in [node for node in self._nodes if node not in nodes]:
            self._nodes.pop(node).close()
        for node in nodes:
            if node not in self._nodes:
                event = vtk.vtkCommand.ModifiedEvent
                self._nodes[node] = Observation(self._owner, node, event, self._changed)

    def close(self) -> None:
        for observation in self._scene:
            observation.close()
        self.watch([])

    def _on_added(self) -> None:
        if not self.scene.IsImporting():  # references are not valid before its end
            self._changed()

    def _on_removed(self) -> None:
        if not self.scene.IsClosing():
            self._changed()
