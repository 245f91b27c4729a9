"""A stack of slices: what segmenting needs to know of a scan, without the scan."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.images.geometry import SliceOrientation
from SDFSMISLib.images.intensity import IntensityWindow
from SDFSMISLib.images.volume import Volume

__all__ = ["SliceResult", "SliceStack", "needed_slices"]

LONGEST_PIXEL = 100.0  # ratio of a pixel's sides; beyond it a header is wrong, and squares in mm have no bound


@dataclass(frozen=True, eq=False)
class SliceStack:
    """Parallel slices of one scan, read when they are asked for.

    Raises :class:`InputError` for pixels whose sides are so unlike that the scan's header must be wrong.

    Attributes:
        read: the native slice (rows, columns) of an index, in raw intensities.
        axis: the scan's array axis that the slices are counted along, from 0 to ``count - 1``.
        native_shape: (rows, columns) of a slice as the scan has it.
        native_spacing: (row, column) in mm.
        thickness: distance of neighbouring slices, mm.
        orientation: how native slices are turned to the canonical orientation.
        plane: axial, coronal or sagittal.
        window: the intensities of the whole scan that become -1 and 1.
        scan: content hash of the scan; painted slices with the same one lie on it.
        identity: what tells a slice from all others, by index: its content's hash. None = slices have none, and what
            was computed of them cannot be used again in another run.
    """

    read: Callable[[int], np.ndarray]
    axis: int
    count: int
    native_shape: tuple[int, int]
    native_spacing: tuple[float, float]
    thickness: float
    orientation: SliceOrientation
    plane: str
    window: IntensityWindow
    scan: str
    identity: Callable[[int], str] | None = None

    def __post_init__(self) -> None:
        row, column = self.native_spacing
        if max(row, column) > LONGEST_PIXEL * min(row, column):
            raise InputError(
                f"Pixels of slices along axis {self.axis} are {row:g} x {column:g} mm; sides that differ by up to "
                f"{LONGEST_PIXEL:g} times are accepted. Name another axis, or correct the file's header."
            )

    @classmethod
    def of(
        cls, volume: Volume, axis: int, window: IntensityWindow | None = None, scan: str | None = None
    ) -> SliceStack:
        """The slices of a volume along an array axis; nothing of it is copied.

        Args:
            window: None = the robust one of the whole volume.
            scan: the volume's content hash, where it is known already.
        """
        grid = volume.geometry
        return cls(
            read=lambda index: volume.slice(axis, index),
            axis=axis,
            count=volume.slice_count(axis),
            native_shape=grid.slice_shape(axis),
            native_spacing=grid.in_plane_spacing(axis),
            thickness=grid.axis_spacing(axis),
            orientation=grid.slice_orientation(axis),
            plane=grid.plane(axis),
            window=window or volume.window(),
            scan=scan or volume.content_hash(),
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns), canonical."""
        rows, columns = self.native_shape
        return (columns, rows) if self.orientation.transpose else (rows, columns)

    @property
    def spacing(self) -> tuple[float, float]:
        """(row, column) in mm, canonical."""
        return self.orientation.apply_spacing(self.native_spacing)

    def image(self, index: int) -> np.ndarray:
        """Canonical slice, float32 (rows, columns) in [-1, 1]."""
        return self.window.normalize(self.orientation.apply(self.read(index)))

    def wanted(self, slices: Sequence[int] | None) -> list[int]:
        """The slices that are asked for, sorted, each once; None = all.

        Raises:
            InputError: where one is outside the stack, or none is named.
        """
        if slices is None:
            return list(range(self.count))
        wanted = sorted({int(index) for index in slices})
        outside = [index for index in wanted if not 0 <= index < self.count]
        if outside or not wanted:
            named = f"Slice {outside[0]} was given" if outside else "No slice was given"
            raise InputError(f"{named}; axis {self.axis} of the scan has the slices 0 to {self.count - 1}.")
        return wanted


@dataclass(frozen=True, eq=False)
class SliceResult:
    """One finished slice of one label.

    Attributes:
        label: label value. axis, index: which slice of the query (array order, from 0).
        probability: uint8 (rows, columns) on the query's own grid, 255 meaning 1.
        certainty: 0 to 1, see `certainty_of`.
        finished, total: slices done so far, this one included, and slices in all (labels counted one by one).
    """

    label: int
    axis: int
    index: int
    probability: np.ndarray
    certainty: float
    finished: int
    total: int


def needed_slices(strategy: str, count: int, wanted: Collection[int], painted: Collection[int]) -> list[int]:
    """The slices of a scan that a run reads, sorted.

    ``independent`` reads those that are wanted; ``propagate`` also the painted ones and all on the way, or, where no
    painted slice shows the structure, every slice, since it has to be found first.

    Args:
        count: slices of the scan.
        painted: slices of this very scan that show a structure, of all labels; an empty collection where one of the
            labels is shown by none.
    """
    if strategy == "independent":
        return sorted(wanted)
    if not painted:
        return list(range(count))
    ends = [*wanted, *painted]
    return list(range(min(ends), max(ends) + 1))
