"""Segments: what one holds on a volume's grid, and how its content is replaced."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.geometry import Geometry
from SDFSMISLib.labelmap import resample_labels
from SDFSMISLib.scene.frame import Frame, ijk_to_ras, labelmap_geometry, matrix_of, vtk_matrix
from SDFSMISLib.scene.piece import Index, Piece
from SDFSMISLib.volume import SAME_VOXELS, Volume, match_labelmap

__all__ = [
    "LABELMAP",
    "SURFACE",
    "SegmentGone",
    "add_to_segment",
    "image_to_frame",
    "labelmap_of",
    "lattice_shift",
    "on_lattice",
    "read_segment",
    "read_within",
    "remove_from_segment",
    "replace_segment",
    "segment_of",
]

LABELMAP, SURFACE = "Binary labelmap", "Closed surface"  # Slicer's names of the representations


class SegmentGone(InputError):
    """A segment is not there any more."""


def segment_of(segmentation_node: Any, segment_id: str) -> Any:
    """The vtkSegment of an ID; raises :class:`SegmentGone`."""
    segment = segmentation_node.GetSegmentation().GetSegment(segment_id)
    if segment is None:
        raise SegmentGone(
            f"The segmentation {segmentation_node.GetName()} has no segment {segment_id} any more; choose another."
        )
    return segment


def read_segment(segmentation_node: Any, segment_id: str, frame: Frame) -> tuple[Piece, str | None]:
    """What a segment holds on the volume's grid, bool, and one line where it had to be resampled for it.

    A segment on the volume's lattice is read as it is, in milliseconds: cropped or not, alone in its labelmap or with
    others. Any other is brought onto the grid by nearest neighbour, as :func:`.volume.match_labelmap` does it.

    Raises:
        SegmentGone: where there is no such segment.
        InputError: where it is no labelmap, or lies outside the volume as a whole or by more than 1 %.
    """
    held = _Held.by(segmentation_node, segment_id, frame)
    piece = held.on_lattice()
    if piece is not None and (not piece.voxels.size or _lies_within(piece, frame.geometry)):
        return piece, None
    name = segment_of(segmentation_node, segment_id).GetName()
    try:
        matched, message = match_labelmap(Volume(held.piece.voxels.view(np.uint8), held.geometry()), frame.geometry)
    except InputError as error:
        raise InputError(f"The segment {name} does not fit the scan: {error}") from error
    return Piece((0, 0, 0), matched.voxels.view(bool)).trimmed(), f"{name}: {message}"


def read_within(segmentation_node: Any, segment_id: str, frame: Frame) -> Piece:
    """As :func:`read_segment`, but what lies outside the volume is just left out, however much it is."""
    held = _Held.by(segmentation_node, segment_id, frame)
    piece = held.on_lattice()
    if piece is None:
        voxels, _ = resample_labels(held.piece.voxels.view(np.uint8), held.geometry(), frame.geometry)
        return Piece((0, 0, 0), voxels.view(bool)).trimmed()
    if not piece.voxels.size or _lies_within(piece, frame.geometry):
        return piece
    return Piece((0, 0, 0), piece.cut((0, 0, 0), frame.geometry.shape)).trimmed()


def labelmap_of(segmentation_node: Any, segment_id: str) -> Any:
    """The vtkOrientedImageData that holds a segment, maybe with others.

    Raises:
        SegmentGone: where there is no such segment.
        InputError: where the segmentation is made of surfaces, not of labelmaps.
    """
    segment = segment_of(segmentation_node, segment_id)
    image = segment.GetRepresentation(LABELMAP)
    if image is None or segmentation_node.GetSegmentation().GetSourceRepresentationName() != LABELMAP:
        raise InputError(
            f"The segmentation {segmentation_node.GetName()} is made of surfaces or fractions; make the binary "
            "labelmap its source representation (module Segmentations), or paint in another segmentation."
        )
    return image


def on_lattice(segmentation_node: Any, segment_id: str, frame: Frame) -> bool:
    """Whether a segment's voxels are voxels of the volume; an empty one's are.

    Raises as :func:`labelmap_of`.
    """
    return _Held.by(segmentation_node, segment_id, frame).on_lattice() is not None


def lattice_shift(index_to_ras: np.ndarray, start: Index, stop: Index, geometry: Geometry) -> Index | None:
    """By how many voxels ``(k, j, i)`` a labelmap's index differs from a grid's; None where the lattices differ.

    Args:
        index_to_ras: 4 × 4 of the labelmap, from ``(i, j, k, 1)`` to RAS mm in the grid's frame.
        start, stop: ``(k, j, i)`` of the part of the labelmap that counts.
    """
    to_grid = np.linalg.inv(ijk_to_ras(geometry)) @ index_to_ras
    sides = [(first, last - 1) for first, last in zip(start[::-1], stop[::-1], strict=True)]
    corners = np.array(list(itertools.product(*sides))).T
    moved = to_grid[:3, :3] @ corners + to_grid[:3, 3:] - corners
    shift = np.rint(moved[:, :1])
    if np.abs(moved - shift).max() > SAME_VOXELS:
        return None
    i, j, k = shift[:, 0].astype(int).tolist()
    return k, j, i


def image_to_frame(image: Any) -> np.ndarray:
    """4 × 4 of a vtkOrientedImageData, from ``(i, j, k, 1)`` to RAS mm in the segmentation's frame."""
    from vtkmodules.vtkCommonMath import vtkMatrix4x4

    matrix = vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    return matrix_of(matrix)


def replace_segment(segmentation_node: Any, segment_id: str, piece: Piece, frame: Frame) -> None:
    """Makes a piece of the volume's grid, bool, all that a segment holds.

    Other segments stay as they are. The segment's surface is not remade if it was removed beforehand.
    """
    import slicer

    held = piece if piece.voxels.size else Piece((0, 0, 0), np.zeros((1, 1, 1), dtype=bool))
    _set(segmentation_node, segment_id, held, frame, slicer.vtkSlicerSegmentationsModuleLogic.MODE_REPLACE)


def add_to_segment(segmentation_node: Any, segment_id: str, piece: Piece, frame: Frame) -> None:
    """Adds a piece of the volume's grid, bool and not empty, to a segment; other segments stay as they are."""
    import slicer

    _set(segmentation_node, segment_id, piece, frame, slicer.vtkSlicerSegmentationsModuleLogic.MODE_MERGE_MASK)


def remove_from_segment(segmentation_node: Any, segment_id: str, piece: Piece, frame: Frame) -> None:
    """Takes a piece of the volume's grid, bool and not empty, away from a segment; others stay as they are."""
    import slicer

    rest = Piece(piece.start, ~piece.voxels)
    _set(segmentation_node, segment_id, rest, frame, slicer.vtkSlicerSegmentationsModuleLogic.MODE_MERGE_MIN)


def _set(segmentation_node: Any, segment_id: str, piece: Piece, frame: Frame, mode: int) -> None:
    import slicer

    image = _oriented_image(piece, frame.image_to_segmentation)
    slicer.vtkSlicerSegmentationsModuleLogic.SetBinaryLabelmapToSegment(image, segmentation_node, segment_id, mode)


def _oriented_image(piece: Piece, image_to_frame: np.ndarray) -> Any:
    """A vtkOrientedImageData of a bool piece; a copy."""
    import slicer
    from vtkmodules.util.numpy_support import numpy_to_vtk

    image = slicer.vtkOrientedImageData()
    image.SetExtent([edge for a, b in zip(piece.start[::-1], piece.stop[::-1], strict=True) for edge in (a, b - 1)])
    scalars = numpy_to_vtk(np.ascontiguousarray(piece.voxels).view(np.uint8).ravel(), deep=True)
    scalars.SetName("ImageScalars")
    image.GetPointData().SetScalars(scalars)
    image.SetGeometryFromImageToWorldMatrix(vtk_matrix(image_to_frame))
    return image


@dataclass(frozen=True, eq=False)
class _Held:
    """What a segment holds, bool, in its labelmap's own index; 4 × 4 from that to the volume's frame, RAS mm."""

    piece: Piece
    to_volume: np.ndarray
    frame: Frame

    @classmethod
    def by(cls, segmentation_node: Any, segment_id: str, frame: Frame) -> _Held:
        image = labelmap_of(segmentation_node, segment_id)
        value = segment_of(segmentation_node, segment_id).GetLabelValue()
        return cls(_voxels_of(image, value), frame.from_segmentation @ image_to_frame(image), frame)

    def on_lattice(self) -> Piece | None:
        """The piece of the volume's grid, maybe beyond its borders; None where the lattice is another one."""
        if not self.piece.voxels.size:
            return self.piece
        shift = lattice_shift(self.to_volume, self.piece.start, self.piece.stop, self.frame.geometry)
        if shift is None:
            return None
        k, j, i = np.add(self.piece.start, shift).tolist()
        return Piece((k, j, i), self.piece.voxels)

    def geometry(self) -> Geometry:
        """The grid of the piece."""
        return labelmap_geometry(self.to_volume, self.piece.start, self.piece.voxels.shape)


def _lies_within(piece: Piece, geometry: Geometry) -> bool:
    return min(piece.start) >= 0 and bool(np.less_equal(piece.stop, geometry.shape).all())


def _voxels_of(image: Any, value: int) -> Piece:
    """Where a labelmap has a value: bool, without the zeros around it, in the labelmap's own index."""
    from vtkmodules.util.numpy_support import vtk_to_numpy

    extent, scalars = image.GetExtent(), image.GetPointData().GetScalars()
    if scalars is None or scalars.GetNumberOfTuples() == 0:
        return Piece.nothing()
    low, high = np.array(extent[::2]), np.array(extent[1::2])
    voxels = vtk_to_numpy(scalars).reshape((high - low + 1)[::-1])
    slices, rows = np.zeros(voxels.shape[0], dtype=bool), np.zeros(voxels.shape[1], dtype=bool)
    columns = np.zeros(voxels.shape[2], dtype=bool)
    for k, plane in enumerate(voxels):  # plane by plane: no array of the whole labelmap's size is made
        mask = plane == value
        painted = mask.any(axis=1)
        if painted.any():
            slices[k], rows[:], columns[:] = True, rows | painted, columns | mask.any(axis=0)
    if not slices.any():
        return Piece.nothing()
    first, last = ([int(np.flatnonzero(side)[end]) for side in (slices, rows, columns)] for end in (0, -1))
    part = voxels[first[0] : last[0] + 1, first[1] : last[1] + 1, first[2] : last[2] + 1]
    k, j, i = (int(edge) + at for edge, at in zip(low[::-1], first, strict=True))
    return Piece((k, j, i), part == value)
