"""Query: which slices of the painted scan a run is asked for."""

from __future__ import annotations

from slicer.i18n import tr as _

from SDFSMISPanel.panel_logic import QueryMode, RunRequest

__all__ = ["wanted_slices"]


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
