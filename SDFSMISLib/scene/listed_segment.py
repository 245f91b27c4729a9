"""Listed segments: what a list of a segmentation's segments says of each."""

from __future__ import annotations

from typing import Any, NamedTuple

from SDFSMISLib.scene.result_segment import SOURCE_TAG
from SDFSMISLib.scene.slice_record import RECORD_TAG, tag_of

__all__ = ["ListedSegment", "painted_segments"]


class ListedSegment(NamedTuple):
    """A segment; ``color`` is red, green, blue from 0 to 1, ``is_result`` whether a run wrote it."""

    segment_id: str
    name: str
    color: tuple[float, float, float]
    is_result: bool


def painted_segments(segmentation_node: Any) -> list[ListedSegment]:
    """The segments of a segmentation in its order; results of runs are among them, and told from what was painted."""
    segmentation, listed = segmentation_node.GetSegmentation(), []
    for segment_id in segmentation.GetSegmentIDs():
        segment = segmentation.GetSegment(segment_id)
        is_result = bool(tag_of(segment, RECORD_TAG)) or segment.HasTag(SOURCE_TAG)
        listed.append(ListedSegment(segment_id, segment.GetName(), tuple(segment.GetColor()), is_result))
    return listed
