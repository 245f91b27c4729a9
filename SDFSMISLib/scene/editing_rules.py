"""Editing rules of the segment editor: where editing is allowed, and which segments are overwritten."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.scene.frame import Frame, VoxelBox
from SDFSMISLib.scene.scan import Scan
from SDFSMISLib.scene.segment_voxels import read_extent

__all__ = ["EditingRules"]


@dataclass(frozen=True)
class EditingRules:
    """The masking settings of a segment editor.

    Attributes:
        mask_mode: an ``EditAllowed...`` of vtkMRMLSegmentationNode.
        mask_segment: ID of the segment inside which editing is allowed, for ``EditAllowedInsideSingleSegment``.
        intensities: lowest and highest intensity that may be edited; None = any.
        overwrite_mode: an ``Overwrite...`` of vtkMRMLSegmentEditorNode.
    """

    mask_mode: int
    mask_segment: str
    intensities: tuple[float, float] | None
    overwrite_mode: int

    @classmethod
    def of(cls, editor_node: Any, volume_node: Any) -> EditingRules:
        """The rules of a vtkMRMLSegmentEditorNode.

        Raises:
            InputError: if they allow a range of intensities of another volume.
        """
        intensities = None
        if editor_node.GetSourceVolumeIntensityMask():
            source = editor_node.GetSourceVolumeNode()
            if source is not volume_node:
                raise InputError(
                    "The editable intensity range is that of another volume than the scan "
                    f"{volume_node.GetName()}; choose this one in the segment editor, or turn the range off."
                )
            low, high = editor_node.GetSourceVolumeIntensityMaskRange()
            intensities = low, high
        return cls(
            editor_node.GetMaskMode(), editor_node.GetMaskSegmentID() or "", intensities, editor_node.GetOverwriteMode()
        )

    def editable(
        self, box: VoxelBox, scan: Scan, segmentation_node: Any, frame: Frame, own: Collection[str]
    ) -> np.ndarray:
        """Whether each voxel in the extent of a box may be edited, bool of the box's shape.

        Args:
            own: IDs of the segments that belong to the edited ones; they do not count among "all" or "visible"
                segments.
        """
        editable = np.ones(box.voxels.shape, dtype=bool)
        segments, inside = self._mask(segmentation_node, own)
        if segments is not None:
            editable[...] = not inside
            for segment_id in segments:
                editable[read_extent(segmentation_node, segment_id, frame, box.start, box.stop)] = inside
        if self.intensities is not None:
            values = VoxelBox((0, 0, 0), scan.voxels).view(box.start, box.stop)
            editable &= (values >= self.intensities[0]) & (values <= self.intensities[1])
        return editable

    def overwritten(self, segmentation_node: Any, own: Collection[str]) -> list[str]:
        """IDs of the segments that lose the voxels of the edited ones, ``own``."""
        import slicer

        editor = slicer.vtkMRMLSegmentEditorNode
        if self.overwrite_mode == editor.OverwriteNone:
            return []
        others = [one for one in segmentation_node.GetSegmentation().GetSegmentIDs() if one not in own]
        return _visible(segmentation_node, others) if self.overwrite_mode == editor.OverwriteVisibleSegments else others

    def _mask(self, segmentation_node: Any, own: Collection[str]) -> tuple[list[str] | None, bool]:
        """The segments that limit editing, None = none; and whether it is allowed inside or outside them."""
        import slicer

        node, mode = slicer.vtkMRMLSegmentationNode, self.mask_mode
        every = list(segmentation_node.GetSegmentation().GetSegmentIDs())
        if mode == node.EditAllowedEverywhere:
            return None, False
        if mode == node.EditAllowedInsideSingleSegment:
            return [one for one in every if one == self.mask_segment], True
        others = [one for one in every if one not in own]
        visible = mode in (node.EditAllowedInsideVisibleSegments, node.EditAllowedOutsideVisibleSegments)
        inside = mode in (node.EditAllowedInsideAllSegments, node.EditAllowedInsideVisibleSegments)
        return _visible(segmentation_node, others) if visible else others, inside


def _visible(segmentation_node: Any, segment_ids: list[str]) -> list[str]:
    display = segmentation_node.GetDisplayNode()
    return [one for one in segment_ids if display is not None and display.GetSegmentVisibility(one)]
