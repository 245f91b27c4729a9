"""slicer.util: the functions that ask or tell the user something; all others are Slicer's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import slicer

from slicer_standin.dialogs import dialogs


def replaced() -> dict[str, Any]:
    """The functions by their names."""
    told = {name: _told(name) for name in ("infoDisplay", "warningDisplay", "errorDisplay", "delayDisplay")}
    asked = ("confirmOkCancelDisplay", "confirmYesNoDisplay", "confirmRetryCloseDisplay")
    return told | {name: _asked(name) for name in asked} | _loaders() | {"messageBox": _told("messageBox")}


def _loaders() -> dict[str, Callable[..., Any]]:
    return {
        "loadVolume": lambda path, properties=None: _loaded(path, "vtkMRMLScalarVolumeNode"),
        "loadLabelVolume": lambda path, properties=None: _loaded(path, "vtkMRMLLabelMapVolumeNode"),
        "loadSegmentation": lambda path, properties=None: _loaded(path, "vtkMRMLSegmentationNode"),
    }


def _loaded(path: str, kind: str) -> Any:
    """Reads .nrrd and .seg.nrrd by the node's own storage, and shows a volume in the slice views."""
    node = slicer.mrmlScene.AddNewNodeByClass(kind, slicer.mrmlScene.GenerateUniqueName(Path(path).name.split(".")[0]))
    node.AddDefaultStorageNode(str(path))
    if not Path(path).is_file() or not node.GetStorageNode().ReadData(node):
        slicer.mrmlScene.RemoveNode(node)
        raise RuntimeError(f"Failed to load node from file: {path}")
    node.CreateDefaultDisplayNodes()
    if kind == "vtkMRMLScalarVolumeNode":
        slicer.util.setSliceViewerLayers(background=node, fit=True)
    return node


def _told(name: str) -> Callable[..., Any]:
    def tell(text: str, windowTitle: Any = None, parent: Any = None, **options: Any) -> Any:
        return dialogs.ask(name, text, default=None)

    return tell


def _asked(name: str) -> Callable[..., bool]:
    def ask(text: str, windowTitle: Any = None, parent: Any = None, **options: Any) -> bool:
        return dialogs.ask(name, text, default=True)

    return ask
