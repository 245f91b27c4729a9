"""Slices of training volumes, and how they are seen through a frame."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from SDFSMISLib.training.volumes import TrainingVolume

__all__ = ["Frame", "SliceKey", "sampled"]


@dataclass(frozen=True)
class Frame:
    """A square of the slice plane: centre (row, column) and half side in mm, turned by `angle`, mirrored, bent by a
    field."""

    centre: tuple[float, float]
    half: float
    angle: float = 0.0
    mirror: bool = False
    bend: torch.Tensor | None = None  # (1, n, n, 2), in units of the half side


@dataclass(frozen=True)
class SliceKey:
    """One slice of one volume, with the target's label values in one of the volume's maps."""

    volume: TrainingVolume
    axis: int
    index: int
    map_number: int
    values: tuple[int, ...]
    thick: int = 1  # slices that are averaged to one

    @property
    def spacing(self) -> tuple[float, float]:
        rest = [self.volume.spacing[a] for a in range(3) if a != self.axis]
        return self.volume.orientations[self.axis].apply_spacing((rest[0], rest[1]))

    @property
    def is_supervoxel(self) -> bool:
        """Whether the target is a part that looks alike, rather than a structure that was drawn (or synthesised)."""
        return self.volume.image is not None and self.map_number > 0

    def at(self, index: int) -> SliceKey:
        return replace(self, index=index)

    def image(self) -> np.ndarray:
        if self.volume.image is None:
            return self._canonical(self.volume.maps[0], self.index)
        if self.thick == 1:
            return self._canonical(self.volume.image, self.index)
        first = self.index - self.thick // 2
        last = min(first + self.thick, self.volume.image.shape[self.axis])
        parts = [self._canonical(self.volume.image, z).astype(np.float32) for z in range(max(first, 0), last)]
        return np.mean(parts, axis=0)

    def mask(self) -> np.ndarray:
        return np.isin(self._canonical(self.volume.maps[self.map_number], self.index), self.values)

    def _canonical(self, array: np.ndarray, index: int) -> np.ndarray:
        return np.ascontiguousarray(self.volume.orientations[self.axis].apply(np.take(array, index, axis=self.axis)))


def sampled(
    image: torch.Tensor, spacing: tuple[float, float], frame: Frame, resolution: int, mode: str = "bilinear"
) -> torch.Tensor:
    """An image (H, W) through a frame, (R, R); zero outside; twice as fine and averaged where pixels get lost
    otherwise."""
    fine = 2 if mode == "bilinear" and 2 * frame.half / resolution > 1.4 * min(spacing) else 1
    size = resolution * fine
    cos, sin = np.cos(frame.angle) * frame.half, np.sin(frame.angle) * frame.half
    mirror = -1.0 if frame.mirror else 1.0
    height, width = image.shape
    across = 2 / (spacing[1] * width)  # from mm to grid_sample's -1 to 1
    down = 2 / (spacing[0] * height)
    theta = torch.tensor(
        [
            [[mirror * cos * across, -sin * across, (frame.centre[1] + spacing[1] / 2) * across - 1]],
            [[mirror * sin * down, cos * down, (frame.centre[0] + spacing[0] / 2) * down - 1]],
        ],
        dtype=torch.float32,
    ).view(1, 2, 3)
    grid = F.affine_grid(theta, [1, 1, size, size], align_corners=False)
    if frame.bend is not None:
        field = F.interpolate(frame.bend.permute(0, 3, 1, 2), size=(size, size), mode="bicubic", align_corners=True)
        grid = grid + field.permute(0, 2, 3, 1) * torch.tensor([frame.half * across, frame.half * down])
    found = F.grid_sample(image[None, None], grid, mode=mode, padding_mode="zeros", align_corners=False)
    return (F.avg_pool2d(found, fine) if fine > 1 else found)[0, 0]
