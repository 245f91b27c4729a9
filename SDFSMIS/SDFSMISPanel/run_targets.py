"""Run targets: the scans of a run, and the slices of each that are wanted."""

from __future__ import annotations

from typing import Any

from slicer.i18n import tr as _

from SDFSMISLib.errors import InputError
from SDFSMISPanel.panel_logic import QueryMode, RunRequest
from SDFSMISPanel.panel_run import Target
from SDFSMISPanel.query import wanted_slices
from SDFSMISPanel.slice_views import visible_slice
from SDFSMISPanel.support_list import SupportList
from SDFSMISPanel.support_plan import SupportPlan

__all__ = ["run_targets"]


def run_targets(request: RunRequest, support: SupportList, plan: SupportPlan) -> list[Target]:
    """The scans of a run; raises :class:`InputError` where there is nothing to do."""
    targets, scan = [], support.scan
    if request.mode is not QueryMode.NONE and scan is not None:
        targets.append(_own(request, plan, scan, support.segmentation))
    others = [node for node in request.others if node is not None and node is not scan]
    targets += [Target(node, None, None, node.GetName()) for node in others]
    if not targets:
        raise InputError(_("No scan to segment is chosen; choose slices of this scan, or another scan."))
    return targets


def _own(request: RunRequest, plan: SupportPlan, scan: Any, painted: Any | None) -> Target:
    """The scan that is painted."""
    if plan.painting is None:  # in which direction it is sliced follows from the file
        if request.mode is not QueryMode.ALL:
            raise InputError(_("Nothing is painted on this scan; choose all of its slices."))
        return Target(scan, painted, None, scan.GetName())
    wanted, problem = wanted_slices(request, plan.painting.geometry.shape[plan.axis], visible_slice(scan, plan.axis))
    if problem:
        raise InputError(problem)
    done = [set(plan.used) & set(plan.painting.slices(plan.axis, label)) for label in plan.looks]
    if all(set(wanted) <= slices for slices in done):
        raise InputError(
            _("All wanted slices are painted already. Uncheck “Use every painted slice” to use chosen ones only.")
        )
    return Target(scan, painted, wanted, scan.GetName())
