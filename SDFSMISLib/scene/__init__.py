"""The MRML scene of 3D Slicer: painted slices are read from it, results written into it. No Qt; vtk and MRML are
imported when they are needed.

Everything runs on the main thread, except what works on copies: the methods of :class:`Scan` and :class:`Painting`,
:func:`with_corrections`, and the function that :meth:`ResultWriter.cleaning_task` returns.
"""

from __future__ import annotations

from SDFSMISLib.scene.corrections import Known, ResultSnapshot, read_results
from SDFSMISLib.scene.editing_rules import EditingRules
from SDFSMISLib.scene.frame import VoxelBox, ijk_to_world, volume_geometry
from SDFSMISLib.scene.painting import (
    Correction,
    Painting,
    SegmentItem,
    list_segments,
    painting_stamp,
    read_painting,
    with_corrections,
)
from SDFSMISLib.scene.result_segment import ResultUnavailable, find_results, make_segmentation, matches_lattice
from SDFSMISLib.scene.result_writer import ResultWriter
from SDFSMISLib.scene.run_labels import CleanedLabels, Suggestion
from SDFSMISLib.scene.scan import Scan, ScanCache, SequenceFrame, array_from_volume
from SDFSMISLib.scene.segment_tags import SegmentTemplate
from SDFSMISLib.scene.segment_voxels import SegmentNotFound
from SDFSMISLib.scene.slice_view import ObliqueView, ShownSlice, rotate_to_volume_plane, show_slice, shown_slice

__all__ = [
    "CleanedLabels",
    "Correction",
    "EditingRules",
    "Known",
    "ObliqueView",
    "Painting",
    "ResultSnapshot",
    "ResultUnavailable",
    "ResultWriter",
    "Scan",
    "ScanCache",
    "SegmentItem",
    "SegmentNotFound",
    "SegmentTemplate",
    "SequenceFrame",
    "ShownSlice",
    "Suggestion",
    "VoxelBox",
    "array_from_volume",
    "find_results",
    "ijk_to_world",
    "list_segments",
    "make_segmentation",
    "matches_lattice",
    "painting_stamp",
    "read_painting",
    "read_results",
    "rotate_to_volume_plane",
    "show_slice",
    "shown_slice",
    "volume_geometry",
    "with_corrections",
]
