"""What a run segments and where its results go: wanted slices, segmentations with earlier results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from SDFSMISLib.errors import InputError
from SDFSMISLib.scene import SegmentTemplate, find_results, make_segmentation, matches_lattice
from SDFSMISLib.workbench.text import tr as _
from SDFSMISLib.workbench.views import QueryMode, RunRequest


def wanted_slices(request: RunRequest, count: int, shown: int | None) -> tuple[list[int], str]:
    """Indices of the wanted slices of the painted scan, sorted, and why there are none ("" if there are some).

    Args:
        count: number of slices of the scan along the painted axis.
        shown: index of the slice that a view shows; None = no view shows one.

    >>> wanted_slices(RunRequest(QueryMode.OUTWARDS, reach=2), 10, 1)
    ([0, 1, 2, 3], '')
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
class ResultDestination:
    """The segmentation into which the results on a scan are written.

    Attributes:
        segmentation: a vtkMRMLSegmentationNode; None = a new one will be made.
        results: IDs of its segments with results of earlier runs, by label.
    """

    segmentation: Any | None
    results: Mapping[int, str]

    @classmethod
    def of(cls, volume: Any, painted: Any | None, templates: Mapping[int, SegmentTemplate]) -> ResultDestination:
        """The destination of the results on a scan.

        Args:
            volume: node of the scan.
            painted: the segmentation in which this scan is painted, if it is; it is used if it fits the scan's voxels.
            templates: of the structures, by label.
        """
        if painted is not None and matches_lattice(volume, painted):
            return cls(painted, _results(volume, painted, templates))
        nodes = volume.GetScene().GetNodesByClass("vtkMRMLSegmentationNode")
        for number in range(nodes.GetNumberOfItems()):
            results = _results(volume, node := nodes.GetItemAsObject(number), templates)
            if node is not painted and results:
                return cls(node, results)
        return cls(None, {})

    def node_for(self, volume: Any) -> Any:
        """The segmentation node; a new one is added to the scene if there is none."""
        if self.segmentation is not None:
            return self.segmentation
        return make_segmentation(volume, f"{volume.GetName()} (SDFSMIS)")


def _results(volume: Any, segmentation: Any, templates: Mapping[int, SegmentTemplate]) -> dict[int, str]:
    try:
        return find_results(volume, segmentation, templates)
    except InputError:  # it does not lie on this scan
        return {}
