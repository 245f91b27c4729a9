"""A query volume as the network sees it: canonical slices in [-1, 1], made one by one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from SDFSMISLib.geometry import SliceOrientation
from SDFSMISLib.inference.region import Region
from SDFSMISLib.volume import IntensityWindow, Volume


@dataclass(frozen=True)
class QueryScan:
    """Slices of `volume` along `axis`; nothing of the whole scan is copied."""

    volume: Volume
    axis: int
    window: IntensityWindow

    @property
    def count(self) -> int:
        return self.volume.slice_count(self.axis)

    @property
    def thickness(self) -> float:
        """Distance of neighbouring slices, mm."""
        return self.volume.geometry.axis_spacing(self.axis)

    @property
    def orientation(self) -> SliceOrientation:
        return self.volume.geometry.slice_orientation(self.axis)

    @property
    def spacing(self) -> tuple[float, float]:
        """(row, column) in mm, canonical."""
        return self.orientation.apply_spacing(self.volume.geometry.in_plane_spacing(self.axis))

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns), canonical."""
        native = self.volume.geometry.slice_shape(self.axis)
        return (native[1], native[0]) if self.orientation.transpose else native

    @property
    def whole(self) -> Region:
        return Region.whole(self.shape, self.spacing)

    def image(self, index: int) -> np.ndarray:
        """Canonical slice, float32 (rows, columns) in [-1, 1]."""
        return self.window.normalize(self.orientation.apply(self.volume.slice(self.axis, index)))
