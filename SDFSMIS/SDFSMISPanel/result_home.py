"""Result home: the segmentation into which the results on a scan go, and the results that are there already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from SDFSMISLib.errors import InputError
from SDFSMISLib.scene import SegmentLook, find_results, fits, make_segmentation

__all__ = ["ResultHome"]


@dataclass(frozen=True, eq=False)
class ResultHome:
    """Attributes:
    segmentation: a vtkMRMLSegmentationNode; None = one is to be made.
    results: IDs of the segments of earlier runs in it, by label.
    """

    segmentation: Any | None
    results: Mapping[int, str]

    @classmethod
    def of(cls, volume: Any, painted: Any | None, looks: Mapping[int, SegmentLook], axis: int) -> ResultHome:
        """That of a scan.

        Args:
            volume: its node.
            painted: the segmentation that is painted, where it is this scan that is; it is taken if it lies on the
                scan's voxels.
            looks: of the structures, by label.
            axis: along which the scan is sliced.
        """
        if painted is not None and fits(volume, painted):
            return cls(painted, _results(volume, painted, looks, axis))
        nodes = volume.GetScene().GetNodesByClass("vtkMRMLSegmentationNode")
        for number in range(nodes.GetNumberOfItems()):
            results = _results(volume, node := nodes.GetItemAsObject(number), looks, axis)
            if node is not painted and results:
                return cls(node, results)
        return cls(None, {})

    def made(self, volume: Any) -> Any:
        """The segmentation; it is made where there is none."""
        if self.segmentation is not None:
            return self.segmentation
        return make_segmentation(volume, f"{volume.GetName()} (SDFSMIS)")


def _results(volume: Any, segmentation: Any, looks: Mapping[int, SegmentLook], axis: int) -> dict[int, str]:
    try:
        return find_results(volume, segmentation, looks, axis)
    except InputError:  # it does not lie on this scan
        return {}
