"""Slices of a scan: their plane, the stack that a run segments, and the record of each finished slice."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from SDFSMISLib.errors import InputError
from SDFSMISLib.images.geometry import SliceOrientation
from SDFSMISLib.images.intensity import IntensityWindow
from SDFSMISLib.images.labelmap import bounding_box
from SDFSMISLib.images.volume import Volume

__all__ = [
    "AHEAD",
    "CroppedSlices",
    "SlicePlane",
    "SliceResult",
    "SliceStack",
    "needed_slices",
    "place_in_slice",
    "propagation_stride",
    "slices_ahead",
]

Number = TypeVar("Number", int, float)

CUT_PIXELS = 1 << 20  # of neighbouring slices that are cut at once, which takes hardly longer than one
CUT_BLOCKS = 4  # of such slices in memory
STRIDE_MM = 3.0  # thin slices are predicted several at a time, so that errors are passed on less often
LONGEST_STRIDE = 10  # slices
AHEAD = 2  # slices that networks with an input for them see ahead of a query
LONGEST_PIXEL = 100.0  # ratio of a pixel's sides; beyond it a header is wrong, and squares in mm have no bound


@dataclass(frozen=True)
class SlicePlane:
    """The geometry and intensities that all parallel slices of a scan have in common.

    Attributes:
        axis: the scan's array axis along which the slices are counted: 0, 1 or 2 of (slices, height, width).
        spacing: (row, column) of a native slice, in mm.
        thickness: distance of neighbouring slices, in mm.
        orientation: turns native slices to the canonical anatomical orientation.
        window: the intensities of the whole scan that become -1 and 1.
        scan: content hash of the scan.
        name: the nearest anatomical plane: axial, coronal or sagittal.

    >>> from SDFSMISLib.images.volume import Geometry
    >>> grid = Geometry((9, 64, 64), (0.5, 0.7, 3), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    >>> plane = SlicePlane.of(Volume(np.zeros(grid.shape, np.int16), grid), axis=0)
    >>> plane.name, plane.spacing, plane.thickness
    ('axial', (0.7, 0.5), 3.0)
    """

    axis: int
    spacing: tuple[float, float]
    thickness: float
    orientation: SliceOrientation
    window: IntensityWindow
    scan: str
    name: str

    @classmethod
    def of(
        cls, volume: Volume, axis: int, window: IntensityWindow | None = None, scan: str | None = None
    ) -> SlicePlane:
        """The plane of a volume's slices along an array axis.

        Args:
            window: None = the robust one of the whole volume.
            scan: the volume's content hash; None = compute it.
        """
        grid = volume.geometry
        return cls(
            axis=axis,
            spacing=grid.in_plane_spacing(axis),
            thickness=grid.axis_spacing(axis),
            orientation=grid.slice_orientation(axis),
            window=window or volume.window(),
            scan=scan or volume.content_hash(),
            name=grid.plane(axis),
        )

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> SlicePlane:
        """The plane of :meth:`to_fields`, or of a larger dictionary that contains those fields.

        Raises LookupError, TypeError or ValueError for fields that are missing or of another type.
        """
        row, column = fields["spacing"]
        return cls(
            axis=int(fields["axis"]),
            spacing=(float(row), float(column)),
            thickness=float(fields["thickness"]),
            orientation=SliceOrientation(**fields["orientation"]),
            window=IntensityWindow(**fields["window"]),
            scan=str(fields["scan"]),
            name=str(fields["plane"]),
        )

    def to_fields(self) -> dict[str, Any]:
        """The fields for JSON, as support sets and requests contain them; ``name`` is ``plane`` there."""
        fields = asdict(self)
        fields["plane"] = fields.pop("name")
        return fields

    @property
    def canonical_spacing(self) -> tuple[float, float]:
        """(row, column) of a canonical slice, in mm."""
        return self.orientation.apply_spacing(self.spacing)

    def has_slices_of(self, other: SlicePlane) -> bool:
        """Whether both are slices of the same scan along the same axis, so that equal indices mean the same slice."""
        return self.scan == other.scan and self.axis == other.axis


@dataclass(frozen=True, eq=False)
class SliceStack:
    """Parallel slices of one scan, each read when it is needed.

    Raises :class:`InputError` for pixels whose sides are so unlike that the scan's header must be wrong.

    Attributes:
        read: gives the native slice (rows, columns) of an index from 0 to ``count - 1``, in raw intensities.
        native_shape: (rows, columns) of a native slice.
        identity: gives what tells a slice from all others, by its index: the hash of its content. None = nothing does,
            and what was computed for a slice cannot be reused in another run.

    >>> from SDFSMISLib.images.volume import Geometry
    >>> grid = Geometry((9, 64, 48), (0.5, 0.7, 3), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    >>> stack = SliceStack.of(Volume(np.zeros(grid.shape, np.int16), grid), axis=2)
    >>> stack.count, stack.native_shape, stack.image(0).dtype
    (48, (9, 64), dtype('float32'))
    """

    read: Callable[[int], np.ndarray]
    count: int
    native_shape: tuple[int, int]
    plane: SlicePlane
    identity: Callable[[int], str] | None = None

    def __post_init__(self) -> None:
        row, column = self.plane.spacing
        if max(row, column) > LONGEST_PIXEL * min(row, column):
            raise InputError(
                f"Pixels of slices along axis {self.plane.axis} are {row:g} x {column:g} mm; sides that differ by up "
                f"to {LONGEST_PIXEL:g} times are accepted. Name another axis, or correct the file's header."
            )

    @classmethod
    def of(
        cls, volume: Volume, axis: int, window: IntensityWindow | None = None, scan: str | None = None
    ) -> SliceStack:
        """The slices of a volume along an array axis, without copying it; arguments as of :meth:`SlicePlane.of`."""
        return cls(
            read=lambda index: volume.slice(axis, index),
            count=volume.slice_count(axis),
            native_shape=volume.geometry.slice_shape(axis),
            plane=SlicePlane.of(volume, axis, window, scan),
        )

    @classmethod
    def along(
        cls, volume: Volume, axes: Sequence[int], window: IntensityWindow | None = None, scan: str | None = None
    ) -> dict[int, SliceStack]:
        """The stack of each of several array axes, by axis in the given order; one window for all, see :meth:`of`."""
        window, scan = window or volume.window(), scan or volume.content_hash()
        return {axis: cls.of(volume, axis, window, scan) for axis in axes}

    def cut(
        self, axis: int, orientation: SliceOrientation, name: str, identity: Callable[[int], str] | None = None
    ) -> SliceStack:
        """The slices of the same scan along another array axis, cut from all slices of this stack.

        Args:
            axis: 0 to 2, not the stack's own.
            orientation, name: of the slices along it, see :class:`SlicePlane`.
            identity: as of a stack.

        >>> from SDFSMISLib.images.volume import Geometry
        >>> grid = Geometry((2, 3, 4), (0.5, 0.7, 3), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
        >>> scan = Volume(np.arange(24, dtype=np.int16).reshape(grid.shape), grid)
        >>> sagittal = SliceStack.of(scan, axis=2).plane
        >>> stack = SliceStack.of(scan, axis=0).cut(2, sagittal.orientation, sagittal.name)
        >>> stack.plane == sagittal, stack.read(1).tolist()
        (True, [[1, 5, 9], [13, 17, 21]])
        """
        own, shape, spacing = self.plane.axis, self.scan_shape, self.scan_spacing
        row, column = (other for other in range(3) if other != axis)
        across, together = place_in_slice(axis, own), max(CUT_PIXELS // (shape[row] * shape[column]), 1)

        @lru_cache(maxsize=CUT_BLOCKS)
        def block(first: int) -> np.ndarray:
            near = range(first, min(first + together, shape[axis]))
            return np.stack([self.read(number).take(near, axis=across) for number in range(self.count)], axis=own)

        def read(index: int) -> np.ndarray:
            first = index - index % together
            return block(first).take(index - first, axis=axis)

        plane = replace(
            self.plane,
            axis=axis,
            spacing=(spacing[row], spacing[column]),
            thickness=spacing[axis],
            orientation=orientation,
            name=name,
        )
        return SliceStack(read, shape[axis], (shape[row], shape[column]), plane, identity)

    @property
    def scan_shape(self) -> tuple[int, int, int]:
        """Shape of the whole scan, (slices, height, width)."""
        rows, columns = self.native_shape
        return _inserted(rows, columns, self.count, self.plane.axis)

    @property
    def scan_spacing(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxels along the array axes of the scan, in mm."""
        return _inserted(*self.plane.spacing, self.plane.thickness, self.plane.axis)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of a canonical slice."""
        rows, columns = self.native_shape
        return (columns, rows) if self.plane.orientation.transpose else (rows, columns)

    @property
    def spacing(self) -> tuple[float, float]:
        """(row, column) of a canonical slice, in mm."""
        return self.plane.canonical_spacing

    def image(self, index: int) -> np.ndarray:
        """The canonical slice, float32 (rows, columns) in [-1, 1]."""
        return self.plane.window.normalize(self.plane.orientation.apply(self.read(index)))

    def wanted(self, slices: Sequence[int] | None) -> list[int]:
        """The indices ``slices``, sorted and each once; None = all of the stack.

        Raises:
            InputError: if one is outside the stack, or there are none.
        """
        if slices is None:
            return list(range(self.count))
        wanted = sorted({int(index) for index in slices})
        outside = [index for index in wanted if not 0 <= index < self.count]
        if outside or not wanted:
            named = f"Slice {outside[0]} was given" if outside else "No slice was given"
            raise InputError(f"{named}; axis {self.plane.axis} of the scan has the slices 0 to {self.count - 1}.")
        return wanted


def _inserted(rows: Number, columns: Number, along: Number, axis: int) -> tuple[Number, Number, Number]:
    """What belongs to the three array axes, from what belongs to the rows, columns and succession of slices."""
    values = [rows, columns]
    values.insert(axis, along)
    return values[0], values[1], values[2]


def place_in_slice(axis: int, slice_axis: int) -> int:
    """The place of an array axis in slices taken along another one: 0 rows, 1 columns."""
    return [other for other in range(3) if other != slice_axis].index(axis)


@dataclass(frozen=True, eq=False)
class SliceResult:
    """One finished slice of one label.

    Attributes:
        label: label value. axis, index: which slice of the query (array order, from 0).
        probability: uint8 (rows, columns) on the query's own grid, 255 meaning 1.
        certainty: 0 to 1, see `certainty_of`.
        finished, total: slices done so far, this one included, and slices in all (labels counted one by one).
        stage: ``preview`` if the slice comes once more, corrected by what was painted across it and fused with what was
            found along other axes.
    """

    label: int
    axis: int
    index: int
    probability: np.ndarray
    certainty: float
    finished: int
    total: int
    stage: Literal["preview", "final"] = "final"


class CroppedSlices(MutableMapping[int, np.ndarray]):
    """Slices by index, of which only the boxes around what is not 0 are kept in memory.

    Args:
        shape: (rows, columns) of a slice.
        dtype: of the slices.

    >>> slices = CroppedSlices((2, 3))
    >>> slices[4] = np.array([[0, 0, 0], [0, 7, 0]], dtype=np.uint8)
    >>> slices[4].tolist(), slices.volume(axis=1, count=5).shape
    ([[0, 0, 0], [0, 7, 0]], (2, 5, 3))
    """

    def __init__(self, shape: tuple[int, int], dtype: DTypeLike = np.uint8) -> None:
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self._boxes: dict[int, tuple[tuple[slice, ...], np.ndarray]] = {}

    def __getitem__(self, index: int) -> np.ndarray:
        box, values = self._boxes[index]
        whole = np.zeros(self.shape, dtype=self.dtype)
        whole[box] = values
        return whole

    def __setitem__(self, index: int, values: np.ndarray) -> None:
        box = bounding_box(values) or (slice(0, 0), slice(0, 0))
        self._boxes[index] = box, np.array(values[box], dtype=self.dtype)

    def __delitem__(self, index: int) -> None:
        del self._boxes[index]

    def __iter__(self) -> Iterator[int]:
        return iter(self._boxes)

    def __len__(self) -> int:
        return len(self._boxes)

    def volume(self, axis: int, count: int) -> np.ndarray:
        """A volume of ``count`` slices along an array axis; those that are missing are 0."""
        rows, columns = self.shape
        shape = [rows, columns]
        shape.insert(axis, count)
        volume = np.zeros(shape, dtype=self.dtype)
        along = np.moveaxis(volume, axis, 0)
        for index, (box, values) in self._boxes.items():
            along[index][box] = values
        return volume


def propagation_stride(thickness: float) -> int:
    """How many slices, `thickness` mm from one to the next, propagation predicts at a time.

    >>> [propagation_stride(mm) for mm in (0.01, 0.8, 2.0, 8.0)]
    [10, 4, 2, 1]
    """
    return min(max(1, round(STRIDE_MM / thickness)), LONGEST_STRIDE)


def slices_ahead(index: int, way: int, stride: int, count: int) -> list[int | None]:
    """The slices that networks see ahead of slice `index` of `count`: one stride further, and two.

    Strides, of 3 mm or of one thick slice, rather than the distance to the last finished slice: among several slices
    that are predicted at a time, the first is a fraction of a millimetre from it, and nothing changes so soon.

    Args:
        way: 1 or -1, the direction in which a track goes; 0: it goes nowhere.
        stride: see `propagation_stride`.

    Returns:
        `AHEAD` indices; None for each that is behind the end of the scan, and for all if the track goes nowhere.

    >>> slices_ahead(5, way=-1, stride=4, count=100), slices_ahead(5, way=0, stride=4, count=100)
    ([1, None], [None, None])
    """
    places = [index + way * stride * (1 + number) for number in range(AHEAD)]
    return [place if way and 0 <= place < count else None for place in places]


def needed_slices(
    strategy: str, count: int, wanted: Collection[int], painted: Collection[int], ahead: int = 0
) -> list[int]:
    """The indices of the slices that a run reads, sorted.

    ``independent`` reads the slices to segment. ``propagate`` also reads the painted ones and all in between; without
    a painted slice it reads all, since it must find the structure first.

    Args:
        strategy: ``independent`` or ``propagate``.
        count: slices of the scan.
        wanted: slices to segment.
        painted: slices of this scan on which a structure is painted, of all labels; empty if a label has none.
        ahead: how far the networks look beyond a slice in `propagate`, in slices, either way.

    >>> needed_slices("propagate", count=100, wanted=[40, 50], painted=[44])
    [40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50]
    """
    if strategy == "independent":
        return sorted(wanted)
    if not painted:
        return list(range(count))
    ends = [*wanted, *painted]
    return list(range(max(min(ends) - ahead, 0), min(max(ends) + ahead + 1, count)))
