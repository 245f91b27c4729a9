"""Sequence frames: which frame of a sequence a node of the scene shows, such as one phase of a beating heart."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

__all__ = ["SequenceFrame"]


@dataclass(frozen=True)
class SequenceFrame:
    """One frame of a sequence.

    Attributes:
        text: for people, such as "frame 3 of 12 of ECG gated".
        key: 16 hexadecimal digits that stand for the sequence's name and the frame's index value, such as its time.
    """

    text: str
    key: str

    @classmethod
    def of(cls, node: Any) -> SequenceFrame | None:
        """The frame that a node shows as the proxy of a sequence browser; None where it is the proxy of none."""
        scene = node.GetScene()
        for number in range(scene.GetNumberOfNodesByClass("vtkMRMLSequenceBrowserNode") if scene is not None else 0):
            browser = scene.GetNthNodeByClass(number, "vtkMRMLSequenceBrowserNode")
            sequence = browser.GetSequenceNode(node) if browser.IsProxyNodeID(node.GetID()) else None
            master, item = browser.GetMasterSequenceNode(), browser.GetSelectedItemNumber()
            if sequence is None or master is None or item < 0:
                continue
            name = sequence.GetName()
            place = f"{name}\n{master.GetIndexName()}\n{master.GetNthIndexValue(item)}"
            text = f"frame {item + 1} of {browser.GetNumberOfItems()} of {name}"
            return cls(text, hashlib.sha256(place.encode()).hexdigest()[:16])
        return None
