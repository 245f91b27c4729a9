"""The parameters of the panel, stored in a node of the scene and so saved with it."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Annotated, Any

from slicer import vtkMRMLSegmentationNode, vtkMRMLVolumeNode
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper

from SDFSMISLib.workbench.views import QueryMode

__all__ = ["Parameter", "keep_left_out", "keep_other_scans", "left_out", "other_scans"]

OTHER_SCAN = "other_scan"  # role of the references to other scans


@parameterNodeWrapper
class Parameter:
    """The typed parameters in a vtkMRMLScriptedModuleNode.

    Attributes:
        scan, segmentation: nodes that are painted.
        left_out: IDs of segments that are not chosen, as JSON; see :func:`left_out`.
        every_painted: whether every painted slice is used.
        mode, first, last, reach, strategy, region: as in :class:`.RunRequest`; a last of -1 = the range is not set yet.
        threshold, keep_largest, smooth_mm: as in :class:`.ReviewView`.
    """

    scan: vtkMRMLVolumeNode
    segmentation: vtkMRMLSegmentationNode
    left_out: str = "[]"
    every_painted: bool = True
    mode: QueryMode = QueryMode.ALL
    first: Annotated[int, WithinRange(0, 1_000_000)] = 0
    last: Annotated[int, WithinRange(-1, 1_000_000)] = -1
    reach: Annotated[int, WithinRange(1, 9999)] = 10
    strategy: str = "propagate"
    region: str = "auto"
    threshold: Annotated[float, WithinRange(0, 1)] = 0.5
    keep_largest: bool = False
    smooth_mm: Annotated[float, WithinRange(0, 20)] = 0.0


def left_out(parameter: Parameter) -> set[str]:
    """IDs of the segments that are not chosen. Not of those that are: a segment that is added later is chosen."""
    try:
        found = json.loads(parameter.left_out)
    except ValueError:
        return set()
    return {one for one in found if isinstance(one, str)} if isinstance(found, list) else set()


def keep_left_out(parameter: Parameter, segment_ids: Collection[str]) -> None:
    """Store the IDs of the segments that are not chosen."""
    parameter.left_out = json.dumps(sorted(segment_ids))


def other_scans(parameter: Parameter) -> list[Any]:
    """The volume nodes of the other scans to segment."""
    node = _node(parameter)
    count = node.GetNumberOfNodeReferences(OTHER_SCAN)
    found = [node.GetNthNodeReference(OTHER_SCAN, number) for number in range(count)]
    return [volume for volume in found if volume is not None]


def keep_other_scans(parameter: Parameter, volumes: Sequence[Any]) -> None:
    """Store the other scans as references, not as IDs in a text: a scene that is added to another one gets new IDs."""
    node = _node(parameter)
    node.RemoveNodeReferenceIDs(OTHER_SCAN)
    for volume in volumes:
        node.AddNodeReferenceID(OTHER_SCAN, volume.GetID())


def _node(parameter: Any) -> Any:
    return parameter.parameterNode  # set by Slicer's decorator
