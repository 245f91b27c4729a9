"""Volumes: the voxels of a scan or of a labelmap with their geometry; reading, writing, slices, intensities.

Arrays are ``(slices, height, width)`` as SimpleITK gives them; an axis counts in that order. Only numpy is needed
until a file is read or written.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.images.files import read_image, write_image, written_extension
from SDFSMISLib.images.geometry import Geometry, SliceOrientation
from SDFSMISLib.images.intensity import IntensityWindow, finite_range, minmax_window, robust_window
from SDFSMISLib.images.labelmap import integer_labels, merge_layers, read_segments, resample_labels, segment_fields

__all__ = ["Geometry", "IntensityWindow", "SliceOrientation", "Volume", "match_labelmap", "read_labelmap"]

Computed = TypeVar("Computed")

OUTSIDE_SHARE = 0.01  # of the painted voxels; if more lie outside the scan, the mask was drawn on another one
SAME_VOXELS = 0.1  # of a voxel: headers rounded by another program differ by less and still mean the same voxels


@dataclass(eq=False)
class Volume:
    """Voxels ``(slices, height, width)`` of any real dtype, and their geometry.

    Window and content hash are computed once. From then on the array is read-only, so that they stay valid: work on a
    copy, or assign another array to ``voxels``.

    Attributes:
        voxels: (slices, height, width), integers or real numbers.
        geometry: their grid, of the same shape.
        path: the file or folder that they were read from.
        segment_names: of a labelmap, by label value.

    >>> grid = Geometry((2, 3, 4), (1, 1, 1), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    >>> volume = Volume(np.zeros((2, 3, 4), np.int16), grid)
    >>> volume.content_hash() == volume.content_hash()
    True
    >>> volume.voxels[0] = 5
    Traceback (most recent call last):
    ValueError: assignment destination is read-only
    """

    voxels: np.ndarray
    geometry: Geometry
    path: Path | None = None
    segment_names: dict[int, str] = field(default_factory=dict)
    _computed: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    _computed_of: tuple[np.ndarray, Geometry] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.voxels.shape != self.geometry.shape:
            raise InputError(
                f"An array of shape {self.voxels.shape} was given for a geometry of {self.geometry.shape}; both are "
                "the same (slices, height, width)."
            )
        if self.voxels.dtype.kind not in "biuf":
            raise InputError(f"Voxels of type {self.voxels.dtype} were given; integers or real numbers are needed.")

    @classmethod
    def read(cls, path: str | PathLike[str]) -> Volume:
        """A scan from any file that SimpleITK reads, or from a folder with one DICOM series.

        Integer types are kept, 64-bit floats become 32-bit. NaN is replaced by the smallest finite value and
        infinities by the nearest finite extreme, with a warning that counts them. Raises :class:`InputError` for a
        missing, damaged or truncated file, an image that is not one 3D volume of single grey values, and a spacing
        that cannot be right.
        """
        path = Path(path)
        voxels, geometry, _ = read_image(path)
        return cls(_finite(voxels, path), geometry, path)

    def write(self, path: str | PathLike[str], metadata: Mapping[str, str] | None = None) -> Path:
        """Write ``.nii.gz``, ``.nii``, ``.nrrd``, ``.seg.nrrd`` or ``.mha``, whole or not at all; returns the path.

        ``metadata`` go into the header (NRRD, MHA) or into ``<name>.json`` beside the file (NIfTI). A ``.seg.nrrd``,
        which takes labels from 0 to 65535, carries the segments' names, colours and extents as Slicer reads
        them. Raises :class:`InputError` for another extension, a folder that cannot be created or written, or a full
        disk.
        """
        path = Path(path)
        voxels, fields = self.voxels, {str(key): str(value) for key, value in (metadata or {}).items()}
        if written_extension(path).lower() == ".seg.nrrd":
            voxels = integer_labels(voxels, "What is to be written as segments")
            fields |= segment_fields(voxels, self.segment_names)
        write_image(path, voxels, self.geometry, fields)
        return path

    def slice_count(self, axis: int) -> int:
        """Number of slices along an array axis."""
        self.geometry.axis_spacing(axis)
        return self.geometry.shape[axis]

    def slice(self, axis: int, index: int) -> np.ndarray:
        """The native slice ``(rows, columns)`` at ``index`` (from 0) along an array axis; a view."""
        count = self.slice_count(axis)
        if not 0 <= index < count:
            raise InputError(f"Slice {index} was given; axis {axis} of this scan has the slices 0 to {count - 1}.")
        return self.voxels[(slice(None),) * axis + (index,)]

    def window(self, method: Literal["robust", "minmax"] = "robust") -> IntensityWindow:
        """The intensity window of the whole scan.

        ``robust`` is that of the tissue, without padding, air and outliers (see :func:`.intensity.robust_window`);
        ``minmax``, the paper's, spans all finite voxels. Raises :class:`InputError` if no voxel is finite.
        """
        if method not in ("robust", "minmax"):
            raise InputError(f"The window method {method!r} was given; 'robust' and 'minmax' are accepted.")
        compute = robust_window if method == "robust" else minmax_window
        return self._once(method, lambda: compute(self.voxels))

    def content_hash(self) -> str:
        """sha256 (hex) of voxels, dtype and geometry (to 4 decimals, the precision of file headers)."""
        return self._once("hash", self._content_hash)

    def _once(self, name: str, compute: Callable[[], Computed]) -> Computed:
        """The cached result of ``compute`` for these voxels on this grid; the voxels are read-only from now on."""
        of = self._computed_of
        if of is None or of[0] is not self.voxels or of[1] is not self.geometry or self.voxels.flags.writeable:
            self.voxels.flags.writeable = False
            self._computed_of, self._computed = (self.voxels, self.geometry), {}
        known = self._computed
        if name not in known:
            known[name] = compute()
        return known[name]

    def _content_hash(self) -> str:
        grid = self.geometry
        position = [round(value, 4) + 0.0 for value in (*grid.spacing, *grid.origin, *grid.direction)]
        digest = hashlib.sha256(f"{self.voxels.dtype.str} {grid.shape} {position}".encode())
        for plane in self.voxels:
            digest.update(np.ascontiguousarray(plane).data)
        return digest.hexdigest()


def read_labelmap(path: str | PathLike[str]) -> Volume:
    """A labelmap: uint8 voxels (uint16 if a label is above 255), and the segment names of a Slicer header.

    Overlapping segments, which Slicer keeps in layers, are merged with a warning: a later layer wins, and a label
    value that two layers use is renumbered. Raises :class:`InputError` as :meth:`Volume.read` does, and for values
    that are not whole numbers from 0 to 65535.
    """
    path = Path(path)
    voxels, geometry, fields = read_image(path, components=True)
    segments = read_segments(fields)
    if voxels.ndim == 4:
        if not segments:
            raise InputError(f"{path} has {voxels.shape[3]} values per voxel and no segments; a labelmap has one.")
        labels, names = merge_layers(voxels, segments, str(path))
    else:
        labels, names = integer_labels(voxels, str(path)), {label: name for _, label, name in segments}
    return Volume(labels, geometry, path, names)


def match_labelmap(labelmap: Volume, scan_geometry: Geometry) -> tuple[Volume, str | None]:
    """The labelmap on the scan's grid, and a message if it was resampled (None if not).

    A labelmap of the same grid is returned unchanged. One on another grid, such as the cropped extent that Slicer
    writes, is resampled by nearest neighbour. Raises :class:`InputError`, with both geometries, if the two do not
    overlap, if more than 1 % of the painted voxels lie outside the scan, or if the labelmap's header has only defaults.
    """
    mask_geometry = labelmap.geometry
    apart = mask_geometry.displacement(scan_geometry)
    if apart == 0:
        return labelmap, None
    if apart <= SAME_VOXELS:
        return replace(labelmap, geometry=scan_geometry), None
    both = f"mask: {mask_geometry.describe()}; scan: {scan_geometry.describe()}"
    if mask_geometry.shape == scan_geometry.shape and _unplaced(mask_geometry):
        raise InputError(f"The mask's header has lost its position; save it with that of the scan ({both}).")
    if not _overlap(mask_geometry, scan_geometry):
        raise InputError(f"The mask lies outside the scan; give one that was drawn on this scan ({both}).")
    voxels, outside = resample_labels(labelmap.voxels, mask_geometry, scan_geometry)
    painted = int(np.count_nonzero(labelmap.voxels))
    if painted and not voxels.any():
        place = "outside the scan" if outside == painted else "between the scan's voxels"
        raise InputError(f"All painted voxels of the mask lie {place}; give one that was drawn on this scan ({both}).")
    if outside > OUTSIDE_SHARE * painted:
        raise InputError(
            f"{outside} of the mask's {painted} painted voxels lie outside the scan; give a mask that was drawn on "
            f"this scan ({both})."
        )
    lost = f"; {outside} of its {painted} painted voxels lie outside" if outside else ""
    message = f"The mask was resampled to the scan's grid by nearest neighbour{lost} ({both})."
    return Volume(voxels, scan_geometry, labelmap.path, dict(labelmap.segment_names)), message


def _unplaced(geometry: Geometry) -> bool:
    """Whether a header has only default values: 1 mm voxels at the origin, along the patient's axes."""
    axes = np.abs(np.reshape(geometry.direction, (3, 3)))
    return geometry.spacing == (1, 1, 1) and not any(geometry.origin) and bool(np.array_equal(axes, np.eye(3)))


def _overlap(one: Geometry, other: Geometry) -> bool:
    """Whether the boxes around two grids overlap, tested along the axes of either."""
    for grid, second in ((one, other), (other, one)):
        to_index = np.linalg.inv(grid.index_to_physical())
        corners = (np.c_[second.corners(), np.ones(8)] @ to_index.T)[:, :3]
        sides = np.array(grid.shape[::-1])
        if (corners.max(axis=0) < -0.5).any() or (corners.min(axis=0) > sides - 0.5).any():
            return False
    return True


def _finite(voxels: np.ndarray, path: Path) -> np.ndarray:
    """``voxels`` with NaN and infinities replaced in place; warns with their number."""
    if voxels.dtype.kind != "f" or (math.isfinite(voxels.min()) and math.isfinite(voxels.max())):
        return voxels
    low, high = finite_range(voxels)
    count = 0
    for plane in voxels:
        count += plane.size - int(np.count_nonzero(np.isfinite(plane)))
        np.nan_to_num(plane, copy=False, nan=low, posinf=high, neginf=low)
    warnings.warn(f"{path} holds {count} voxels of NaN or infinity, now set to {low:g} or {high:g}.", stacklevel=3)
    return voxels
