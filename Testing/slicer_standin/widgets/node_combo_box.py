"""qMRMLNodeComboBox: chooses one node of the scene."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PySide6.QtCore import Property, Signal
from PySide6.QtWidgets import QComboBox, QHBoxLayout, QInputDialog, QSizePolicy, QWidget

from slicer_standin import errors
from slicer_standin.widgets.kept import kept
from slicer_standin.widgets.scene_nodes import SceneNodes
from slicer_standin.widgets.sort_filter_proxy_model import qMRMLSortFilterProxyModel


class qMRMLNodeComboBox(QWidget):
    """The items are ``None`` if that may be chosen, the nodes in the scene's order, then what can be done with them."""

    currentNodeChanged = Signal((object,), (bool,))
    currentNodeIDChanged = Signal(str)
    currentNodeRenamed = Signal(str)
    nodeActivated = Signal(object)
    nodeAdded = Signal(object)
    nodeAddedByUser = Signal(object)
    nodeAddedByUserAction = Signal(object)
    nodeAboutToBeRemoved = Signal(object)
    nodeAboutToBeEdited = Signal(object)

    nodeTypes = kept("QStringList", [], "_refresh")
    showHidden = kept(bool, False, "_refresh")
    showChildNodeTypes = kept(bool, True, "_refresh")
    hideChildNodeTypes = kept("QStringList", [], "_refresh")
    baseName = kept(str, "")
    noneEnabled = kept(bool, False, "_refresh")
    addEnabled = kept(bool, True, "_refresh")
    removeEnabled = kept(bool, True, "_refresh")
    editEnabled = kept(bool, False, "_refresh")
    renameEnabled = kept(bool, False, "_refresh")
    interactionNodeSingletonTag = kept(str, "Singleton")
    selectNodeUponCreation = kept(bool, True)
    noneDisplay = kept(str, "None", "_refresh")

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._nodes: SceneNodes | None = None
        self._current: Any = None
        self._requested: Any = None
        self._listed: list[Any] = []
        self._attributes: list[tuple[str, str, Any]] = []
        self._labels: dict[str, str] = {}
        self._actions: list[Callable[[], Any]] = []
        self._menu_actions: list[Any] = []
        self._filter = qMRMLSortFilterProxyModel(self, self._refresh)
        self._box = self._make_box()
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._box)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self._box.activated.connect(self._on_activated)
        self.setEnabled(False)
        self._refresh()

    def _make_box(self) -> QComboBox:
        box = QComboBox(self)
        box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        box.setMinimumContentsLength(8)
        return box

    def _policy(self) -> Any:
        return self._box.sizeAdjustPolicy()

    def _set_policy(self, policy: Any) -> None:
        self._box.setSizeAdjustPolicy(policy)

    def _id(self) -> str:
        return self._current.GetID() if self._current is not None else ""

    def _set_id(self, node_id: str) -> None:
        self.setCurrentNode(node_id)

    sizeAdjustPolicy = Property(QComboBox.SizeAdjustPolicy, _policy, _set_policy)
    currentNodeID = Property(str, _id, _set_id)
    currentNodeId = Property(str, _id, _set_id)

    def mrmlScene(self) -> Any:
        return self._nodes.scene if self._nodes is not None else None

    def setMRMLScene(self, scene: Any) -> None:
        if scene is self.mrmlScene():
            return
        if self._nodes is not None:
            self._nodes.close()
        self._nodes = SceneNodes(self, scene, self._refresh) if scene is not None else None
        self._refresh()
        if self._requested is not None:
            self._requested, wanted = None, self._requested
            self.setCurrentNode(wanted)
        self.setEnabled(scene is not None)

    def currentNode(self) -> Any:
        return self._current

    def setCurrentNode(self, node: Any) -> None:
        """A node, or its ID; what is not in the list leaves nothing chosen. It waits for the scene if there is none."""
        if self._nodes is None:
            self._requested = node
        wanted = node.GetID() if hasattr(node, "GetID") else node
        self._choose(next((item for item in self._listed if item.GetID() == wanted), None))

    def setCurrentNodeIndex(self, index: int) -> None:
        self._choose(self.nodeFromIndex(index))

    def nodeCount(self) -> int:
        return len(self._listed)

    def nodeFromIndex(self, index: int) -> Any:
        return self._listed[index] if 0 <= index < len(self._listed) else None

    def sortFilterProxyModel(self) -> qMRMLSortFilterProxyModel:
        return self._filter

    def addAttribute(self, kind: str, name: str, value: Any = None) -> None:
        self._attributes.append((kind, name, value))
        self._refresh()

    def removeAttribute(self, kind: str, name: str) -> None:
        self._attributes = [row for row in self._attributes if row[:2] != (kind, name)]
        self._refresh()

    def setNodeTypeLabel(self, label: str, kind: str) -> None:
        self._labels[kind] = label
        self._refresh()

    def nodeTypeLabel(self, kind: str) -> str:
        scene = self.mrmlScene()
        tag = scene.GetTagByClassName(kind) if scene is not None and kind else None
        return self._labels.get(kind) or tag or ("Volume" if kind == "vtkMRMLVolumeNode" else "node")

    def addMenuAction(self, action: Any) -> None:
        self._menu_actions.append(action)
        self._refresh()

    def addNode(self, kind: str = "") -> Any:
        kind = kind or self.nodeTypes[0]
        if kind not in self.nodeTypes or self._nodes is None:
            return None
        scene = self._nodes.scene
        node = scene.CreateNodeByClass(kind)
        node.UnRegister(None)
        for _, name, value in (row for row in self._attributes if row[0] == kind):
            node.SetAttribute(name, value)
        node.SetName(scene.GenerateUniqueName(self.baseName or self.nodeTypeLabel(kind)))
        added = scene.AddNode(node)
        if self.selectNodeUponCreation:
            self.setCurrentNode(added)
        self.nodeAddedByUser.emit(added)
        self.nodeAddedByUserAction.emit(added)
        return added

    def removeCurrentNode(self) -> None:
        if self._current is not None and self._nodes is not None:
            self._nodes.scene.RemoveNode(self._current)

    def editCurrentNode(self) -> None:
        if self._current is not None:
            self.nodeAboutToBeEdited.emit(self._current)

    def renameCurrentNode(self) -> None:
        if self._current is None:
            return
        name, accepted = QInputDialog.getText(self, "Rename", "New name:", text=self._current.GetName())
        if accepted and name:
            self._current.SetName(name)
            self.currentNodeRenamed.emit(name)

    def _fits(self, node: Any) -> bool:
        if node.GetHideFromEditors() and not self.showHidden:
            return False
        if node.GetID() in self._filter.hiddenNodeIDs:
            return False
        if any(node.IsA(kind) for kind in self.hideChildNodeTypes):
            return False
        kinds = [kind for kind in self.nodeTypes if self._is_of(node, kind)]
        return any(self._has_attributes(node, kind) for kind in kinds)

    def _is_of(self, node: Any, kind: str) -> bool:
        return bool(node.IsA(kind)) if self.showChildNodeTypes else node.GetClassName() == kind

    def _has_attributes(self, node: Any, kind: str) -> bool:
        wanted = [(name, value) for row, name, value in self._attributes if row == kind]
        found = [(node.GetAttribute(name), value) for name, value in wanted]
        return all(have is not None and value in (None, have) for have, value in found)

    def _refresh(self) -> None:
        before = self._listed
        scene = self.mrmlScene()
        nodes = [scene.GetNthNode(index) for index in range(scene.GetNumberOfNodes())] if scene is not None else []
        self._listed = [node for node in nodes if self._fits(node)]
        if self._nodes is not None:
            self._nodes.watch(self._listed)
        self._choose(self._still_current(before))
        for node in [node for node in self._listed if node not in before]:
            self.nodeAdded.emit(node)

    def _still_current(self, before: list[Any]) -> Any:
        """Where the chosen node is gone, the one that took its place; the first of a list that was empty."""
        if self._current in self._listed:
            return self._current
        if self._current is not None and self._listed:
            place = before.index(self._current) if self._current in before else 0
            return self._listed[min(place, len(self._listed) - 1)]
        return self._listed[0] if self._listed and not before and not self.noneEnabled else None

    def _choose(self, node: Any) -> None:
        changed = node is not self._current
        self._current = node
        self._show()
        if changed:
            with errors.collected():
                self.currentNodeChanged[object].emit(node)
                self.currentNodeChanged[bool].emit(node is not None)
                self.currentNodeIDChanged.emit(node.GetID() if node is not None else "")

    def _show(self) -> None:
        """Fills the box: None, the nodes, what can be done with them."""
        self._box.blockSignals(True)
        self._box.clear()
        if self.noneEnabled:
            self._box.addItem(self.noneDisplay)
        self._box.addItems([node.GetName() or "" for node in self._listed])
        commands = self._commands() if self._nodes is not None else []
        if commands:
            self._box.insertSeparator(self._box.count())
        self._box.addItems([text for text, _ in commands])
        self._actions = [action for _, action in commands]
        self._box.setCurrentIndex(self._index())
        if self._current is None and not self.noneEnabled and self.nodeTypes:
            self._box.setPlaceholderText(f"Select a {self.nodeTypeLabel(self.nodeTypes[0])}")
        self._box.blockSignals(False)

    def _index(self) -> int:
        if self._current is None:
            return 0 if self.noneEnabled else -1
        return self._listed.index(self._current) + int(self.noneEnabled)

    def _commands(self) -> list[tuple[str, Callable[[], Any]]]:
        commands: list[tuple[str, Callable[[], Any]]] = []
        kinds = list(self.nodeTypes)
        label = self.nodeTypeLabel(kinds[0] if len(kinds) == 1 else "")
        if self.renameEnabled:
            commands.append((f"Rename current {label}", self.renameCurrentNode))
        if self.editEnabled:
            commands.append((f"Edit current {label}", self.editCurrentNode))
        if self.addEnabled:
            commands += [(f"Create new {self.nodeTypeLabel(kind)}", lambda k=kind: self.addNode(k)) for kind in kinds]
        if self.removeEnabled:
            commands.append((f"Delete current {label}", self.removeCurrentNode))
        return commands + [(action.text(), action.trigger) for action in self._menu_actions]

    def _on_activated(self, index: int) -> None:
        nodes = index - int(self.noneEnabled)
        if nodes < len(self._listed):
            node = self._listed[nodes] if nodes >= 0 else None
            self._choose(node)
            self.nodeActivated.emit(node)
            return
        action = self._actions[nodes - len(self._listed) - 1]
        self._show()
        action()
