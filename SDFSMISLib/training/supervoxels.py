"""Supervoxels: parts of a scan that look alike, the pseudo-labels of self-supervised training.

Two kinds: SLIC (Achanta et al., PAMI 2012), compact and of a given number; and the literature's, the graph-based method
of Felzenszwalb and Huttenlocher (IJCV 2004) in 3D with anisotropic spacing, as ADNet (Hansen et al., MedIA 2022) and
its successors use it: grey levels 0 to 255, ``scale`` 1 (of 255), no smoothing, at least ``min_size`` voxels. At that
scale the criterion joins hardly anything but equal grey levels; the minimum size does the rest.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from scipy import ndimage

from SDFSMISLib.images.files import atomic_output

__all__ = ["Felzenszwalb", "Slic", "Supervoxels", "foreground", "cached_supervoxels"]

EDGES = [step for step in itertools.product((-1, 0, 1), repeat=3) if step > (0, 0, 0)]  # one of every two directions
DARK_SHARE = 10 / 255  # of the range; ADNet's threshold of what belongs to the body


class Supervoxels(Protocol):
    """A way to make supervoxels; ``key`` names it with all parameters that change its result.

    >>> image = np.full((4, 16, 16), 0.5, dtype=np.float32)
    >>> image[:, :, 8:] = -0.5
    >>> parts = Slic(2)(image, (5.0, 1.0, 1.0))
    >>> parts.shape, parts.dtype, int(parts.min())
    ((4, 16, 16), dtype('uint16'), 1)
    """

    @property
    def key(self) -> str: ...

    def __call__(self, image: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
        """Numbers from 1, 0 in the background, unsigned integers, of an image (slices, height, width) in [-1, 1] with
        voxels of `spacing` mm, array order."""


def cached_supervoxels(
    kind: Supervoxels, image: np.ndarray, spacing: tuple[float, float, float], cache: Path, name: str
) -> np.ndarray:
    """The supervoxels of a scan, made once and kept in the folder `cache`."""
    content = hashlib.sha256(np.ascontiguousarray(image).tobytes())
    content.update(f"{kind.key} {name} {image.shape} {spacing}".encode())
    path = cache / f"supervoxels_{content.hexdigest()[:16]}.npz"
    if path.exists():
        with np.load(path) as kept:
            return kept["supervoxels"]
    found = kind(image.astype(np.float32), spacing)
    with atomic_output(path, ".npz") as part:
        np.savez_compressed(part, supervoxels=found)
    return found


HALVED_FROM = 96  # voxels along an axis, from which supervoxels are found at half size: a tenth of the time


@dataclass(frozen=True)
class Slic:
    """About ``count`` supervoxels of the foreground (intensity above -0.98)."""

    count: int

    @property
    def key(self) -> str:
        return f"slic-3 {self.count}"

    def __call__(self, image: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
        from skimage.segmentation import slic

        steps = tuple(2 if size >= HALVED_FROM else 1 for size in image.shape)
        small = image[:: steps[0], :: steps[1], :: steps[2]]
        found = slic(
            small,
            n_segments=self.count,
            compactness=0.06,
            mask=small > -0.98,
            spacing=tuple(s * step for s, step in zip(spacing, steps, strict=True)),
            channel_axis=None,
            max_num_iter=5,
            start_label=1,
        ).astype(np.uint16)
        for axis, step in enumerate(steps):
            found = np.repeat(found, step, axis=axis)
        return found[: image.shape[0], : image.shape[1], : image.shape[2]]


@dataclass(frozen=True)
class Felzenszwalb:
    """Supervoxels of at least `min_size` voxels: 5000 for abdominal scans, 1000 for cardiac ones in the literature."""

    min_size: int
    scale: float = 1.0

    @property
    def key(self) -> str:
        return f"felzenszwalb-1 {self.min_size} {self.scale}"

    def __call__(self, image: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
        levels = ((image.astype(np.float32) + 1) * 127.5).clip(0, 255)
        parts = graph_components(levels, spacing, self.scale, self.min_size)
        parts = np.where(foreground(image), parts + 1, 0)
        _, compact = np.unique(parts, return_inverse=True)
        compact = compact.reshape(image.shape)
        return compact.astype(np.uint16 if compact.max() < 1 << 16 else np.uint32)


def foreground(image: np.ndarray) -> np.ndarray:
    """The body, bool: on each slice the largest connected part that is not dark, holes filled.

    Args:
        image: (slices, height, width) in [-1, 1].
    """
    body = np.zeros(image.shape, dtype=bool)
    for plane, bright in zip(body, image > 2 * DARK_SHARE - 1, strict=True):
        parts, count = ndimage.label(bright)
        if count:
            sizes = np.bincount(parts.ravel())
            sizes[0] = 0
            plane[:] = ndimage.binary_fill_holes(parts == sizes.argmax())
    return body


def graph_components(
    levels: np.ndarray, spacing: tuple[float, float, float], scale: float, min_size: int
) -> np.ndarray:
    """Component number of every voxel, integers of the shape of `levels`.

    A voxel is joined with its 26 neighbours. An edge weighs the difference of grey levels, times its length where
    voxels are `spacing` mm apart over its length were they cubes of the in-plane spacing: thick slices hold together
    less. Two components are joined over the weakest edge between them where it weighs less than either's own strongest
    edge plus `scale` / 255 over its size. Components that are too small then join a neighbour over the weakest edge.
    """
    numbers = np.arange(levels.size, dtype=np.int32).reshape(levels.shape)
    weights, starts, ends = [], [], []
    for step in EDGES:
        voxels, neighbours = _neighbours(levels.shape, step)
        length = np.sqrt(sum((s / spacing[2]) ** 2 for s, moved in zip(spacing, step, strict=True) if moved))
        length /= np.sqrt(np.count_nonzero(step))
        weights.append((np.abs(levels[neighbours] - levels[voxels]) * np.float32(length)).ravel())
        starts.append(numbers[voxels].ravel())
        ends.append(numbers[neighbours].ravel())
    weight = np.concatenate(weights)
    order = np.argsort(weight, kind="stable")
    start, end = np.concatenate(starts)[order], np.concatenate(ends)[order]
    return _compiled()(levels.size, weight[order], start, end, scale / 255, min_size).reshape(levels.shape)


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., np.ndarray]:
    """`_component_roots`, compiled and kept on disk; numba takes longer to import than most of what imports this."""
    import numba

    return numba.njit(_component_roots, cache=True)


def _neighbours(shape: tuple[int, ...], step: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The voxels that have a neighbour one `step` away, and these neighbours."""
    voxels = tuple(slice(max(-move, 0), side - max(move, 0)) for side, move in zip(shape, step, strict=True))
    neighbours = tuple(slice(max(move, 0), side - max(-move, 0)) for side, move in zip(shape, step, strict=True))
    return voxels, neighbours


def _component_roots(
    count: int, weight: np.ndarray, start: np.ndarray, end: np.ndarray, scale: float, min_size: int
) -> np.ndarray:
    """Root of every voxel's component; edges rise in weight. Plain loops: compiled by numba."""
    parent = np.arange(count)
    size = np.ones(count, dtype=np.int64)
    limit = np.full(count, scale)  # a component's strongest edge plus scale over its size
    for closing in range(2):  # first by the criterion, then the small ones
        for edge in range(len(weight)):
            one, other = start[edge], end[edge]
            while parent[one] != one:
                parent[one] = parent[parent[one]]
                one = parent[one]
            while parent[other] != other:
                parent[other] = parent[parent[other]]
                other = parent[other]
            if one == other:
                continue
            if closing == 0:
                join = weight[edge] < limit[one] and weight[edge] < limit[other]
            else:
                join = size[one] < min_size or size[other] < min_size
            if join:
                if size[one] < size[other]:
                    one, other = other, one
                parent[other] = one
                size[one] += size[other]
                limit[one] = weight[edge] + scale / size[one]
    for voxel in range(count):
        root = voxel
        while parent[root] != root:
            root = parent[root]
        parent[voxel] = root
    return parent
