"""The labelmap of a segment: which image holds it, how its index lies on a volume's grid, and what is in it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.images.geometry import Geometry
from SDFSMISLib.images.volume import SAME_VOXELS
from SDFSMISLib.scene.frame import Frame, ijk_to_ras, labelmap_geometry, matrix_of
from SDFSMISLib.scene.piece import Index, Piece

__all__ = [
    "LABELMAP",
    "SURFACE",
    "SegmentGone",
    "SegmentLabelmap",
    "image_to_frame",
    "labelmap_of",
    "lattice_shift",
    "segment_of",
    "view_of",
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


@dataclass(frozen=True, eq=False)
class SegmentLabelmap:
    """The labelmap of a segment: a view of what all segments that share it hold, in the labelmap's own index; the
    segment's value; 4 × 4 from the index to the volume's frame, RAS mm."""

    shared: Piece
    value: int
    to_volume: np.ndarray
    frame: Frame

    @classmethod
    def of(cls, segmentation_node: Any, segment_id: str, frame: Frame) -> SegmentLabelmap:
        image = labelmap_of(segmentation_node, segment_id)
        value = segment_of(segmentation_node, segment_id).GetLabelValue()
        return cls(view_of(image), value, frame.from_segmentation @ image_to_frame(image), frame)

    def content(self) -> Piece:
        """What the segment holds, bool, without the zeros around it, in the labelmap's own index."""
        return _where(self.shared, self.value)

    def shift(self) -> Index | None:
        """By how much the index differs from the volume's, where something is held; None where the lattice of what is
        held is another one."""
        if not self.shared.voxels.size:
            return 0, 0, 0
        shift = self._shift_of(self.shared)
        if shift is not None:
            return shift
        held = self.content()  # far away from it a lattice that is all but the same may not be so any more
        return self._shift_of(held) if held.voxels.size else (0, 0, 0)

    def on_volume(self) -> Piece:
        """:attr:`shared` in the volume's index; nothing where the segment is empty on another lattice.

        It is a ValueError where something is held on another lattice.
        """
        if not self.shared.voxels.size:
            return Piece.nothing()
        shift = self._shift_of(self.shared)
        if shift is None:
            held = self.content()
            if not held.voxels.size:
                return Piece.nothing()
            shift = self._shift_of(held)
        if shift is None:
            raise ValueError("The labelmap lies on another lattice than the volume.")
        return self.shared.moved(shift)

    def geometry(self, piece: Piece) -> Geometry:
        """The grid of a piece in the labelmap's own index."""
        return labelmap_geometry(self.to_volume, piece.start, piece.voxels.shape)

    def _shift_of(self, piece: Piece) -> Index | None:
        return lattice_shift(self.to_volume, piece.start, piece.stop, self.frame.geometry)


def view_of(image: Any) -> Piece:
    """All values of a labelmap, in its own index; a view."""
    from vtkmodules.util.numpy_support import vtk_to_numpy

    extent, scalars = image.GetExtent(), image.GetPointData().GetScalars()
    if scalars is None or scalars.GetNumberOfTuples() == 0:
        return Piece.nothing()
    k, j, i = extent[4], extent[2], extent[0]
    return Piece((k, j, i), vtk_to_numpy(scalars).reshape(np.subtract(extent[1::2], extent[::2])[::-1] + 1))


def _where(labels: Piece, value: int) -> Piece:
    """Where labels have a value: bool, without the zeros around it."""
    voxels = labels.voxels
    slices, rows = np.zeros(voxels.shape[0], dtype=bool), np.zeros(voxels.shape[1], dtype=bool)
    columns = np.zeros(voxels.shape[2], dtype=bool)
    for k, plane in enumerate(voxels):  # plane by plane: no array of the whole labelmap's size is made
        mask = plane == value
        if np.count_nonzero(mask):
            slices[k], rows[:], columns[:] = True, rows | mask.any(axis=1), columns | mask.any(axis=0)
    if not slices.any():
        return Piece.nothing()
    first, last = ([int(np.flatnonzero(side)[end]) for side in (slices, rows, columns)] for end in (0, -1))
    part = voxels[first[0] : last[0] + 1, first[1] : last[1] + 1, first[2] : last[2] + 1]
    return Piece((0, 0, 0), part == value).moved((first[0], first[1], first[2])).moved(labels.start)
