"""The position of voxels in the patient: the grid of a volume, and the anatomical orientation of its slices.

Array axes are counted in the order ``(slices, height, width)`` in which SimpleITK gives an array: array axis ``a`` is
the file's axis ``2 - a``. Positions are millimetres in LPS (increasing toward the patient's Left, Posterior,
Superior), as in DICOM and SimpleITK.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from SDFSMISLib.errors import InputError

__all__ = ["Geometry", "SliceOrientation"]

SMALLEST_SPACING, LARGEST_SPACING = 1e-3, 100.0  # mm; beyond them a header is wrong (another unit, or never filled in)
SPACING_TIE = 1e-3  # relative difference of in-plane spacings that counts as a tie


@dataclass(frozen=True)
class SliceOrientation:
    """How a native slice ``(rows, columns)`` is turned to the canonical orientation: transposed first, then flipped.

    >>> turn = SliceOrientation(transpose=True, flip_rows=True, flip_columns=False)
    >>> turn.apply(np.array([[1, 2, 3]])).tolist()
    [[3], [2], [1]]
    >>> turn.undo(turn.apply(np.array([[1, 2, 3]]))).tolist()
    [[1, 2, 3]]
    """

    transpose: bool
    flip_rows: bool
    flip_columns: bool

    def apply(self, array: np.ndarray) -> np.ndarray:
        """The canonical slice of a native one; a view."""
        return self._flip(array.T if self.transpose else array)

    def undo(self, array: np.ndarray) -> np.ndarray:
        """The native slice of a canonical one; a view."""
        flipped = self._flip(array)
        return flipped.T if self.transpose else flipped

    def apply_spacing(self, spacing: tuple[float, float]) -> tuple[float, float]:
        """Canonical (row, column) spacing of a native (row, column) spacing, mm."""
        row, column = spacing
        return (column, row) if self.transpose else (row, column)

    def _flip(self, array: np.ndarray) -> np.ndarray:
        return array[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]


@dataclass(frozen=True)
class Geometry:
    """The grid of a volume.

    Args:
        shape: ``(slices, height, width)``.
        spacing: ``(x, y, z)`` in mm, as SimpleITK gives it.
        origin: ``(x, y, z)`` in LPS mm, as SimpleITK gives it.
        direction: 9 numbers, row by row, as SimpleITK gives them; the columns are the directions of the file's axes.

    Raises:
        InputError: for an empty grid, a spacing that no scanner has, or directions that are not at right angles.

    >>> grid = Geometry((20, 512, 512), (0.7, 0.7, 5), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    >>> grid.plane(0), grid.slice_shape(1), grid.in_plane_spacing(1)
    ('axial', (20, 512), (5.0, 0.7))
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, ...]

    def __post_init__(self) -> None:
        for field, count in (("shape", 3), ("spacing", 3), ("origin", 3), ("direction", 9)):
            values = tuple(int(value) if field == "shape" else float(value) for value in getattr(self, field))
            if len(values) != count:
                raise InputError(f"A volume's {field} has {count} numbers; {len(values)} were given.")
            object.__setattr__(self, field, values)
        if min(self.shape) < 1:
            raise InputError(f"The volume is empty: its shape is {self.shape}; every side must be at least 1 voxel.")
        if not all(SMALLEST_SPACING <= value <= LARGEST_SPACING for value in self.spacing):  # also refuses NaN
            raise InputError(
                f"The spacing {_numbers(self.spacing, ' × ')} mm (x, y, z) cannot be right: each must lie between "
                f"{SMALLEST_SPACING:g} and {LARGEST_SPACING:g} mm; correct the file's header."
            )
        if not all(math.isfinite(value) for value in self.origin):
            raise InputError(f"The origin ({_numbers(self.origin)}) is not finite; correct the file's header.")
        axes = self._axes()
        if not np.allclose(axes.T @ axes, np.eye(3), atol=0.02):  # NaN fails too
            raise InputError(
                f"The directions ({_numbers(self.direction)}) are not three axes at right angles; correct the file's "
                "header, or resample the scan onto a straight grid."
            )

    def axis_spacing(self, axis: int) -> float:
        """Distance of neighbouring slices along an array axis, mm."""
        return self.spacing[2 - _array_axis(axis)]

    def in_plane_spacing(self, axis: int) -> tuple[float, float]:
        """(row, column) spacing, mm, of a slice taken along an array axis."""
        rows, columns = _in_plane_axes(axis)
        return self.axis_spacing(rows), self.axis_spacing(columns)

    def slice_shape(self, axis: int) -> tuple[int, int]:
        """(rows, columns) of a slice taken along an array axis."""
        rows, columns = _in_plane_axes(axis)
        return self.shape[rows], self.shape[columns]

    def default_axis(self) -> int:
        """The array axis whose two in-plane spacings have the ratio nearest to 1; ties go to the first."""
        unlike = [abs(math.log(row / column)) for row, column in map(self.in_plane_spacing, range(3))]
        return next(axis for axis in range(3) if unlike[axis] <= min(unlike) + SPACING_TIE)

    def slice_orientation(self, axis: int) -> SliceOrientation:
        """The turn to the anatomical orientation nearest to LPS for slices taken along an array axis.

        A canonical slice has rows and columns in the order (S, P, L), the anatomical axis that lies nearest to the
        slicing axis left out, both increasing toward S, P, L: an axial slice has rows toward P and columns toward L. A
        file that stores the same scan flipped or with its axes in another order gives the same canonical slices.
        """
        anatomical = self._anatomical_axes()
        rows, columns = _in_plane_axes(axis)
        transpose = anatomical[rows][0] < anatomical[columns][0]
        if transpose:
            rows, columns = columns, rows
        return SliceOrientation(transpose, anatomical[rows][1], anatomical[columns][1])

    def nearest_to_lps(self) -> tuple[tuple[int, ...], tuple[bool, ...], Geometry]:
        """How to store the same voxels in the anatomical orientation nearest to LPS: axis 0 runs to S, 1 to P, 2 to L.

        Returns:
            The array axes in their new order; which of the new axes are flipped then; and the geometry that results.

        >>> grid = Geometry((2, 3, 4), (1, 1, 5), (0, 0, 0), (-1, 0, 0, 0, 0, 1, 0, -1, 0))
        >>> order, flips, turned = grid.nearest_to_lps()
        >>> order, flips, turned.shape, turned.spacing, turned.origin
        ((1, 0, 2), (True, False, True), (3, 2, 4), (1.0, 5.0, 1.0), (-3.0, 0.0, -2.0))
        """
        anatomical = self._anatomical_axes()
        order = tuple(sorted(range(3), key=lambda axis: -anatomical[axis][0]))
        flips = tuple(anatomical[axis][1] for axis in order)
        files = [2 - axis for axis in reversed(order)]  # the file's axes in their new order
        first = [0.0, 0.0, 0.0, 1.0]  # the old file index of the voxel that comes first now
        for axis, flip in zip(order, flips, strict=True):
            first[2 - axis] = self.shape[axis] - 1.0 if flip else 0.0
        direction = self._axes()[:, files] * [-1 if flip else 1 for flip in reversed(flips)]
        turned = Geometry(
            (self.shape[order[0]], self.shape[order[1]], self.shape[order[2]]),
            (self.spacing[files[0]], self.spacing[files[1]], self.spacing[files[2]]),
            tuple((self.index_to_physical() @ first)[:3]),
            tuple(direction.ravel()),
        )
        return order, flips, turned

    def plane(self, axis: int) -> str:
        """The anatomical plane that slices along an array axis lie nearest to: sagittal, coronal or axial."""
        return ("sagittal", "coronal", "axial")[self._anatomical_axes()[_array_axis(axis)][0]]

    def index_to_physical(self) -> np.ndarray:
        """4 × 4 float64 from a file index ``(i, j, k, 1)``, the array index reversed, to LPS mm ``(x, y, z, 1)``."""
        matrix = np.eye(4)
        matrix[:3, :3] = self._axes() * np.asarray(self.spacing)
        matrix[:3, 3] = self.origin
        return matrix

    def corners(self) -> np.ndarray:
        """(8, 3) LPS mm: the centres of the corner voxels."""
        i, j, k = (side - 1 for side in reversed(self.shape))
        indices = np.array([(*corner, 1) for corner in itertools.product((0, i), (0, j), (0, k))], dtype=np.float64)
        return (indices @ self.index_to_physical().T)[:, :3]

    def displacement(self, other: Geometry) -> float:
        """The largest distance of corresponding voxels of two grids, in voxels; infinite for different shapes."""
        if self.shape != other.shape:
            return math.inf
        apart = np.linalg.norm(self.corners() - other.corners(), axis=1).max() / min(self.spacing)
        unlike = max(abs(mine / theirs - 1) for mine, theirs in zip(self.spacing, other.spacing, strict=True))
        return float(max(apart, unlike))  # the second matters on axes of one voxel, whose spacing moves no corner

    def same_grid(self, other: Geometry) -> bool:
        """Whether all voxels of both coincide, up to a thousandth of a voxel."""
        return self.displacement(other) <= 1e-3

    def describe(self) -> str:
        """One line for messages: size, spacing, origin and direction."""
        return (
            f"{_numbers(self.shape[::-1], ' × ')} voxels of {_numbers(self.spacing, ' × ')} mm, "
            f"origin ({_numbers(self.origin)}), direction ({_numbers(self.direction)})"
        )

    def _axes(self) -> np.ndarray:
        """(3, 3) float64, the columns are the unit directions of i, j, k."""
        return np.asarray(self.direction, dtype=np.float64).reshape(3, 3)

    def _anatomical_axes(self) -> list[tuple[int, bool]]:
        """For each array axis: the LPS axis it lies nearest to (0 L, 1 P, 2 S), and whether it runs against that axis.

        At a tie (an exact turn by 45°) the choice must not depend on the order or the sense in which a file stores its
        axes, so it falls to a product of two components, which a flip leaves alone.
        """
        axes = self._axes()

        def nearness(order: tuple[int, ...]) -> float:
            near = sum(abs(axes[anatomical, file_axis]) for file_axis, anatomical in enumerate(order))
            left, posterior = axes[:, order.index(0)], axes[:, order.index(1)]
            return near + 1e-4 * (left[0] * left[1] + left[0] * left[2] / 2 + posterior[1] * posterior[2] / 4)

        nearest = max(itertools.permutations(range(3)), key=nearness)
        return [(nearest[2 - axis], bool(axes[nearest[2 - axis], 2 - axis] < 0)) for axis in range(3)]


def _array_axis(axis: int) -> int:
    if axis not in (0, 1, 2):
        raise InputError(f"The axis {axis} was given; a volume has the axes 0, 1 and 2 (slices, height, width).")
    return axis


def _in_plane_axes(axis: int) -> tuple[int, int]:
    rows, columns = (other for other in range(3) if other != _array_axis(axis))
    return rows, columns


def _numbers(values: Sequence[float], separator: str = ", ") -> str:
    return separator.join(f"{value + 0.0:.6g}" for value in values)
