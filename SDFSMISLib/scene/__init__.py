"""The MRML scene of 3D Slicer: painted slices out of it, results into it. No Qt; vtk and MRML are imported when used.

All of it belongs on the main thread, but for what works on copies: what :class:`Scan` and :class:`Painting` offer,
:func:`with_corrections`, and what :meth:`ResultWriter.cleaning` gives.
"""

from __future__ import annotations

from SDFSMISLib.scene.editing_rules import EditingRules
from SDFSMISLib.scene.painting import (
    HeldResult,
    ListedSegment,
    Painting,
    painted_segments,
    painting_stamp,
    read_painting,
    read_results,
    with_corrections,
)
from SDFSMISLib.scene.result_segment import ResultLost, find_results, fits, make_segmentation
from SDFSMISLib.scene.result_writer import ResultWriter
from SDFSMISLib.scene.run_labels import Cleaned
from SDFSMISLib.scene.scan import Scan, Scans, SequenceFrame, volume_voxels
from SDFSMISLib.scene.segment_tags import SegmentLook
from SDFSMISLib.scene.segment_voxels import SegmentGone
from SDFSMISLib.scene.slice_view import ObliqueView, ShownSlice, make_parallel, show_slice, shown_slice

__all__ = [
    "Cleaned",
    "EditingRules",
    "HeldResult",
    "ListedSegment",
    "ObliqueView",
    "Painting",
    "ResultLost",
    "ResultWriter",
    "Scan",
    "Scans",
    "SegmentGone",
    "SegmentLook",
    "SequenceFrame",
    "ShownSlice",
    "find_results",
    "fits",
    "make_parallel",
    "make_segmentation",
    "painted_segments",
    "painting_stamp",
    "read_painting",
    "read_results",
    "show_slice",
    "shown_slice",
    "volume_voxels",
    "with_corrections",
]
