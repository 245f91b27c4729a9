"""The segmentation that results go into: whether one has the volume's lattice, and a new one that has."""

from __future__ import annotations

from typing import Any

from SDFSMISLib.errors import InputError
from SDFSMISLib.scene.frame import Frame
from SDFSMISLib.scene.segment import on_lattice
from SDFSMISLib.scene.segment_labelmap import image_to_frame, lattice_shift

__all__ = ["fits", "make_segmentation"]


def fits(volume_node: Any, segmentation_node: Any) -> bool:
    """Whether what is painted in a segmentation lies on the voxels of a volume.

    Where it does not, results belong into a segmentation of their own (:func:`make_segmentation`): with the first
    stroke in one of them, the segment editor would resample it.
    """
    import slicer

    try:
        frame = Frame.of(volume_node, segmentation_node)
        segmentation = segmentation_node.GetSegmentation()
        if not all(on_lattice(segmentation_node, one, frame) for one in segmentation.GetSegmentIDs()):
            return False
    except InputError:
        return False
    converter = slicer.vtkSegmentationConverter
    text = segmentation.GetConversionParameter(converter.GetReferenceImageGeometryParameterName())
    image = slicer.vtkOrientedImageData()
    if not text or not converter.DeserializeImageGeometry(text, image, False):
        return True  # the editor will take the volume's
    to_volume = frame.from_segmentation @ image_to_frame(image)
    return lattice_shift(to_volume, (0, 0, 0), frame.geometry.shape, frame.geometry) is not None


def make_segmentation(volume_node: Any, name: str) -> Any:
    """A new vtkMRMLSegmentationNode in the volume's scene, on its lattice and under its transform."""
    node = volume_node.GetScene().AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    node.CreateDefaultDisplayNodes()
    node.SetAndObserveTransformNodeID(volume_node.GetTransformNodeID())
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume_node)
    return node
