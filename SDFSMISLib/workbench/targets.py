"""Query: which slices of the painted scan a run is asked for.

Result home: the segmentation into which the results on a scan go, and the results that are there already.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from SDFSMISLib.errors import InputError
from SDFSMISLib.scene import SegmentTemplate, find_results, make_segmentation, matches_lattice
from SDFSMISLib.workbench.text import tr as _
from SDFSMISLib.workbench.views import QueryMode, RunRequest


def wanted_slices(request: RunRequest, count: int, shown: int | None) -> tuple[list[int], str]:
    """The slices that are wanted, sorted, and why there are none, which is "" where there are some.

    Args:
        count: slices of the scan along the painted axis.
        shown: the one that a view shows; None = none lies in these slices.
    """
    if request.mode is QueryMode.ALL:
        return list(range(count)), ""
    if request.mode is QueryMode.RANGE:
        first, last = sorted((request.first, request.last))
        wanted = list(range(max(0, first), min(count - 1, last) + 1))
        problem = _("The range {first} to {last} lies outside the scan, which has the slices 0 to {end}.")
        return wanted, "" if wanted else problem.format(first=first, last=last, end=count - 1)
    if request.mode is QueryMode.OUTWARDS:
        if shown is None:
            return [], _("No view shows a slice in the direction that was painted; turn one, or choose all slices.")
        reach = max(0, request.reach)
        return list(range(max(0, shown - reach), min(count - 1, shown + reach) + 1)), ""
    return [], ""


@dataclass(frozen=True, eq=False)
class ResultHome:
    """Attributes:
    segmentation: a vtkMRMLSegmentationNode; None = one is to be made.
    results: IDs of the segments of earlier runs in it, by label.
    """

    segmentation: Any | None
    results: Mapping[int, str]

    @classmethod
    def of(cls, volume: Any, painted: Any | None, looks: Mapping[int, SegmentTemplate], axis: int) -> ResultHome:
        """That of a scan.

        Args:
            volume: its node.
            painted: the segmentation that is painted, where it is this scan that is; it is taken if it lies on the
                scan's voxels.
            looks: of the structures, by label.
            axis: along which the scan is sliced.
        """
        if painted is not None and matches_lattice(volume, painted):
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


def _results(volume: Any, segmentation: Any, looks: Mapping[int, SegmentTemplate], axis: int) -> dict[int, str]:
    try:
        return find_results(volume, segmentation, looks, axis)
    except InputError:  # it does not lie on this scan
        return {}
