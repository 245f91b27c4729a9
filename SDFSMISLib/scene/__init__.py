"""The MRML scene of 3D Slicer: painted slices out of it, results into it. No Qt; vtk and MRML are imported when used.

All of it belongs on the main thread, but for what :class:`Scan` and :class:`Painting` offer, which are copies.
"""

from __future__ import annotations

from SDFSMISLib.scene.editing_rules import EditingRules
from SDFSMISLib.scene.painting import Painting, read_painting, with_corrections
from SDFSMISLib.scene.result_segment import SegmentLook, find_result
from SDFSMISLib.scene.result_segmentation import fits, make_segmentation
from SDFSMISLib.scene.result_writer import ResultLost, ResultWriter
from SDFSMISLib.scene.scan import Scan, Scans
from SDFSMISLib.scene.segment import SegmentGone
from SDFSMISLib.scene.slice_view import ObliqueView, ShownSlice, make_parallel, show_slice, shown_slice

__all__ = [
    "EditingRules",
    "ObliqueView",
    "Painting",
    "ResultLost",
    "ResultWriter",
    "Scan",
    "Scans",
    "SegmentGone",
    "SegmentLook",
    "ShownSlice",
    "find_result",
    "fits",
    "make_parallel",
    "make_segmentation",
    "read_painting",
    "show_slice",
    "shown_slice",
    "with_corrections",
]
