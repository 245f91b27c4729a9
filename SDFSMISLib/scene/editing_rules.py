"""Editing rules: where a user allows editing, and what may be overwritten, as the segment editor has it set."""

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
    """What a segment editor was set to.

    Attributes:
        mask_mode: an ``EditAllowed...`` of vtkMRMLSegmentationNode.
        mask_segment: ID of the only segment inside which editing is allowed, where the mode is that.
        intensities: the lowest and the highest that may be edited; None = any.
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
            InputError: where it allows a range of intensities of another volume.
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
        self, piece: VoxelBox, scan: Scan, segmentation_node: Any, frame: Frame, own: Collection[str]
    ) -> np.ndarray:
        """Where in the box of a piece editing is allowed, bool of its shape.

        Args:
            own: IDs of the segments that belong to what is edited; they are among "all" and "visible" segments neither
                inside nor outside which editing is allowed.
        """
        allowed = np.ones(piece.voxels.shape, dtype=bool)
        segments, inside = self._mask(segmentation_node, own)
        if segments is not None:
            allowed[...] = not inside
            for segment_id in segments:
                allowed[read_extent(segmentation_node, segment_id, frame, piece.start, piece.stop)] = inside
        if self.intensities is not None:
            box = tuple(slice(a, b) for a, b in zip(piece.start, piece.stop, strict=True))
            grey = scan.voxels[box]
            allowed &= (grey >= self.intensities[0]) & (grey <= self.intensities[1])
        return allowed

    def overwritten(self, segmentation_node: Any, own: Collection[str]) -> list[str]:
        """IDs of the segments that give way to what is edited, which is ``own``."""
        import slicer

        editor = slicer.vtkMRMLSegmentEditorNode
        if self.overwrite_mode == editor.OverwriteNone:
            return []
        others = [one for one in segmentation_node.GetSegmentation().GetSegmentIDs() if one not in own]
        return _visible(segmentation_node, others) if self.overwrite_mode == editor.OverwriteVisibleSegments else others

    def _mask(self, segmentation_node: Any, own: Collection[str]) -> tuple[list[str] | None, bool]:
        """The segments that say where editing is allowed, None = anywhere; and whether it is inside them."""
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
