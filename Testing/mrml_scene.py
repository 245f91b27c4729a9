"""A real MRML scene without 3D Slicer, for tests: volumes, segmentations, transforms, views and the segment editor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from SDFSMISLib.images.volume import Geometry, Volume
from SDFSMISLib.scene.frame import ijk_to_ras, vtk_matrix_from_array


class MrmlScene:
    """A vtkMRMLScene with the logics that segmentations need. ``slicer.mrmlScene`` and ``slicer.app`` do not exist."""

    def __init__(self) -> None:
        import slicer

        self.node = slicer.vtkMRMLScene()
        self._application = slicer.vtkSlicerApplicationLogic()
        self._application.SetMRMLScene(self.node)
        self._application.GetColorLogic().SetMRMLScene(self.node)
        self._segmentations = slicer.vtkSlicerSegmentationsModuleLogic()
        self._segmentations.SetMRMLApplicationLogic(self._application)
        self._segmentations.SetMRMLScene(self.node)
        self._application.SetModuleLogic("Segmentations", self._segmentations)
        slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(self.node, True)

    def volume(self, voxels: np.ndarray, geometry: Geometry, kind: str = "Scalar", name: str = "scan") -> Any:
        """A volume node of ``(slices, height, width)``, or of ``(slices, height, width, values)``."""
        from vtkmodules.util.numpy_support import numpy_to_vtk
        from vtkmodules.vtkCommonDataModel import vtkImageData

        image = vtkImageData()
        image.SetDimensions(*geometry.shape[::-1])
        flat = voxels.reshape(-1) if voxels.ndim == 3 else voxels.reshape(-1, voxels.shape[3])
        image.GetPointData().SetScalars(numpy_to_vtk(np.ascontiguousarray(flat), deep=True))
        node = self.node.AddNewNodeByClass(f"vtkMRML{kind}VolumeNode", name)
        node.SetIJKToRASMatrix(vtk_matrix_from_array(ijk_to_ras(geometry)))
        node.SetAndObserveImageData(image)
        return node

    def scan(self, volume: Volume, name: str = "scan") -> Any:
        return self.volume(volume.voxels, volume.geometry, name=name)

    def segmentation(self, volume_node: Any, name: str = "Segmentation") -> Any:
        """An empty segmentation as the segment editor makes one for a volume, under no transform."""
        node = self.node.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
        node.CreateDefaultDisplayNodes()
        node.SetReferenceImageGeometryParameterFromVolumeNode(volume_node)
        return node

    def transform(self, matrix: np.ndarray) -> Any:
        node = self.node.AddNewNodeByClass("vtkMRMLLinearTransformNode")
        node.SetMatrixTransformToParent(vtk_matrix_from_array(matrix))
        return node

    def warp(self) -> Any:
        """A transform that is not linear."""
        from vtkmodules.vtkCommonCore import vtkPoints
        from vtkmodules.vtkCommonTransforms import vtkThinPlateSplineTransform

        here, there, spline = vtkPoints(), vtkPoints(), vtkThinPlateSplineTransform()
        for number, point in enumerate(((0, 0, 0), (9, 0, 0), (0, 9, 0), (0, 0, 9), (9, 9, 9), (4, 2, 7))):
            here.InsertNextPoint(point)
            there.InsertNextPoint(np.add(point, np.sin([number, 2 * number, 3 * number])))
        spline.SetSourceLandmarks(here)
        spline.SetTargetLandmarks(there)
        spline.SetBasisToR()
        node = self.node.AddNewNodeByClass("vtkMRMLTransformNode")
        node.SetAndObserveTransformToParent(spline)
        return node

    def view(self, name: str = "Red") -> Any:
        node = self.node.AddNewNodeByClass("vtkMRMLSliceNode", name)
        node.SetLayoutName(name)
        node.SetOrientationToAxial()
        return node

    def editor(self, segmentation_node: Any, volume_node: Any) -> SegmentEditor:
        return SegmentEditor(self, segmentation_node, volume_node)

    def save(self, node: Any, path: Path) -> Path:
        """Writes a volume (.nrrd) or a segmentation (.seg.nrrd) as Slicer does."""
        storage = self.node.AddNewNodeByClass(_storage_class(path))
        storage.SetFileName(str(path))
        assert storage.WriteData(node)
        return path

    def load_segmentation(self, path: Path) -> Any:
        storage = self.node.AddNewNodeByClass(_storage_class(path))
        storage.SetFileName(str(path))
        node = self.node.AddNewNodeByClass("vtkMRMLSegmentationNode", path.name)
        assert storage.ReadData(node)
        return node


class SegmentEditor:
    """Slicer's segment editor without its widget; by default it lets segments overlap and has no editable area."""

    def __init__(self, scene: MrmlScene, segmentation_node: Any, volume_node: Any) -> None:
        import slicer

        self.node = scene.node.AddNewNodeByClass("vtkMRMLSegmentEditorNode")
        self.node.SetOverwriteMode(slicer.vtkMRMLSegmentEditorNode.OverwriteNone)
        self.logic = slicer.vtkSlicerSegmentEditorLogic()
        self.logic.SetMRMLScene(scene.node)
        self.logic.SetSegmentEditorNode(self.node)
        self.logic.SetSegmentationNode(segmentation_node)
        self.logic.SetSourceVolumeNode(volume_node)
        self.logic.SetMaximumNumberOfUndoStates(10)
        self._segmentation, self._volume = segmentation_node, volume_node

    def segment(self, name: str, mask: np.ndarray | None = None, color: tuple[float, float, float] = (1, 0, 0)) -> str:
        """ID of a new segment, painted with a mask of the volume's whole grid."""
        segment_id = self._segmentation.GetSegmentation().AddEmptySegment("", name, color)
        if mask is not None:
            self.paint(segment_id, mask)
        return segment_id

    def paint(self, segment_id: str, mask: np.ndarray, start: tuple[int, int, int] = (0, 0, 0)) -> None:
        """One stroke: adds a mask, whose first voxel lies at ``start`` (k, j, i) of the volume's grid."""
        self._stroke(segment_id, mask, start, self.logic.ModificationModeAdd)

    def erase(self, segment_id: str, mask: np.ndarray, start: tuple[int, int, int] = (0, 0, 0)) -> None:
        self._stroke(segment_id, mask, start, self.logic.ModificationModeRemove)

    def _stroke(self, segment_id: str, mask: np.ndarray, start: tuple[int, int, int], mode: int) -> None:
        from SDFSMISLib.scene.frame import Frame

        frame = Frame.of(self._volume, self._segmentation)
        image = oriented_image(mask, frame.ijk_to_segmentation, start)
        self.node.SetSelectedSegmentID(segment_id)
        self.logic.SaveStateForUndo()
        self.logic.ModifySegmentByLabelmap(self._segmentation, segment_id, image, mode, False, False)


def oriented_image(mask: np.ndarray, index_to_ras: np.ndarray, start: tuple[int, int, int] = (0, 0, 0)) -> Any:
    import slicer
    from vtkmodules.util.numpy_support import numpy_to_vtk

    image = slicer.vtkOrientedImageData()
    stop = np.add(start, mask.shape) - 1
    image.SetExtent(start[2], int(stop[2]), start[1], int(stop[1]), start[0], int(stop[0]))
    scalars = numpy_to_vtk(np.ascontiguousarray(mask, dtype=np.uint8).ravel(), deep=True)
    scalars.SetName("ImageScalars")
    image.GetPointData().SetScalars(scalars)
    image.SetGeometryFromImageToWorldMatrix(vtk_matrix_from_array(index_to_ras))
    return image


def held(segmentation_node: Any, segment_id: str, volume_node: Any) -> np.ndarray:
    """What Slicer itself says that a segment holds: bool on the volume's whole grid, read in world coordinates."""
    import slicer

    image = slicer.vtkOrientedImageData()
    assert segmentation_node.GetBinaryLabelmapRepresentation(segment_id, image)
    slicer.vtkSlicerSegmentationsModuleLogic.ApplyParentTransformToOrientedImageData(segmentation_node, image)
    return _resampled(image, volume_node)


def _resampled(image: Any, volume_node: Any) -> np.ndarray:
    import slicer
    from vtkmodules.util.numpy_support import vtk_to_numpy

    from SDFSMISLib.scene.frame import ijk_to_world, volume_geometry

    shape = volume_geometry(volume_node).shape
    reference = oriented_image(np.zeros(shape, dtype=bool), ijk_to_world(volume_node))
    found = slicer.vtkOrientedImageData()
    slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage(image, reference, found)
    return vtk_to_numpy(found.GetPointData().GetScalars()).reshape(shape) != 0


def _storage_class(path: Path) -> str:
    return "vtkMRMLSegmentationStorageNode" if path.name.endswith(".seg.nrrd") else "vtkMRMLNRRDStorageNode"
