"""Volumes for tests: strategies over shapes, types, spacings and directions; the same scan stored another way."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from SDFSMISLib.images.volume import Geometry, Volume

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
DTYPES = ("uint8", "int8", "int16", "uint16", "int32", "uint32", "float32")
quick = settings(deadline=None, max_examples=40)
seeds = st.integers(0, 2**32 - 1)


def random_direction(rng: np.random.Generator, oblique: bool = True) -> tuple[float, ...]:
    """Axes at right angles, of either handedness: any, or along the patient's."""
    axes = np.linalg.qr(rng.normal(size=(3, 3)))[0] if oblique else np.eye(3)[rng.permutation(3)]
    return tuple((axes * rng.choice([-1, 1], 3)).ravel())


@st.composite
def geometries(draw: st.DrawFn, smallest: int = 1) -> Geometry:
    rng = np.random.default_rng(draw(seeds))
    side, spacing = st.integers(smallest, 9), st.floats(0.05, 20)
    return Geometry(
        draw(st.tuples(side, side, side)),
        draw(st.tuples(spacing, spacing, spacing)),
        tuple(rng.uniform(-300, 300, 3)),
        random_direction(rng, draw(st.booleans())),
    )


@st.composite
def volumes(draw: st.DrawFn, dtypes: tuple[str, ...] = DTYPES) -> Volume:
    geometry, dtype = draw(geometries()), np.dtype(draw(st.sampled_from(dtypes)))
    rng = np.random.default_rng(draw(seeds))
    if dtype.kind == "f":
        voxels = rng.normal(0, 10.0 ** rng.integers(-3, 6), geometry.shape).astype(dtype)
    else:
        info = np.iinfo(dtype)
        voxels = rng.integers(info.min, info.max, geometry.shape, dtype=dtype, endpoint=True)
    return Volume(voxels, geometry)


def stored_otherwise(volume: Volume, order: tuple[int, ...], flips: tuple[bool, ...]) -> Volume:
    """The same voxels at the same places, as a file holds them whose array axes are permuted, then flipped."""
    voxels = np.flip(volume.voxels.transpose(order), [axis for axis in range(3) if flips[axis]])
    matrix = volume.geometry.index_to_physical()
    first = [0, 0, 0, 1]  # file index, in the first volume, of the voxel that comes first now
    for axis in range(3):
        if flips[axis]:
            first[2 - order[axis]] = volume.voxels.shape[order[axis]] - 1
    direction = np.reshape(volume.geometry.direction, (3, 3))[:, [2 - order[2 - file] for file in range(3)]]
    direction = direction * [-1 if flips[2 - file] else 1 for file in range(3)]
    spacing = tuple(volume.geometry.spacing[2 - order[2 - file]] for file in range(3))
    return Volume(voxels, Geometry(voxels.shape, spacing, tuple((matrix @ first)[:3]), tuple(direction.ravel())))


def canonical(volume: Volume, axis: int, index: int) -> np.ndarray:
    return volume.geometry.slice_orientation(axis).apply(volume.slice(axis, index))


def plain(shape: tuple[int, int, int] = (4, 5, 6), dtype: str = "int16") -> Volume:
    voxels = np.arange(math.prod(shape)).reshape(shape).astype(dtype)
    return Volume(voxels, Geometry(shape, (1.5, 2.0, 3.0), (-20.0, 10.0, 5.0), IDENTITY))


class FailingMoves:
    """In place of `os.replace`: the move of this number, from 0, fails, as where another program has the file open."""

    def __init__(self, step: int) -> None:
        self.step, self.failed = step, False
        self._replace = os.replace

    def __call__(self, source: Path, target: Path) -> None:
        self.step -= 1
        if self.step == -1:
            self.failed = True
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(source))
        self._replace(source, target)


def contents(folder: Path) -> dict[str, bytes | None]:
    """All files below a folder with their bytes, and all folders."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
