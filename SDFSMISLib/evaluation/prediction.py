"""What a method found in a task, kept in a small file: for pictures and diagnostics, in this run or a later one."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.evaluation.protocols import Task
from SDFSMISLib.images.files import atomic_output

__all__ = ["Prediction", "prediction_path", "read_mask"]

EXTENSION = ".npz"


@dataclass(frozen=True, eq=False)
class Prediction:
    """How what was found compares on each judged slice; the mask itself lies in the same file.

    The arrays have an entry for each judged slice: ``slices`` its index (int32), ``distances`` mm to the nearest
    painted slice of the query (float32, NaN where none is painted), and in pixels (int32) what was ``found``, what the
    reference ``held``, and what is in ``both``.
    """

    slices: np.ndarray
    distances: np.ndarray
    found: np.ndarray
    held: np.ndarray
    both: np.ndarray

    @classmethod
    def of(cls, task: Task, mask: np.ndarray) -> Prediction:
        """The comparison of a mask, bool on the query's grid, with the task's reference."""
        slices = np.array(task.judged, dtype=np.int32)
        apart = np.full(len(slices), np.nan)
        if task.painted:
            apart = np.abs(slices[:, None] - np.array(task.painted)).min(axis=1)
        found, held = (np.moveaxis(array, task.axis, 0)[slices] for array in (mask, task.reference))
        counts = [np.count_nonzero(array, axis=(1, 2)).astype(np.int32) for array in (found, held, found & held)]
        return cls(slices, (apart * task.query.geometry.axis_spacing(task.axis)).astype(np.float32), *counts)

    @property
    def dice(self) -> np.ndarray:
        """Dice of each judged slice; NaN where neither mask holds anything."""
        total = self.found + self.held
        return np.divide(2 * self.both, total, out=np.full(len(total), np.nan), where=total > 0)

    def save(self, path: Path, mask: np.ndarray) -> None:
        """Writes the file, whole or not at all: the mask as bits, all compressed."""
        with atomic_output(path, EXTENSION) as temporary:
            np.savez_compressed(temporary, bits=np.packbits(mask), shape=mask.shape, **vars(self))

    @classmethod
    def load(cls, path: Path) -> Prediction:
        """Reads what :meth:`save` wrote, but for the mask; raises :class:`InputError` for a missing or damaged file."""
        return cls(**_arrays(path, [field.name for field in fields(cls)]))


def read_mask(path: Path) -> np.ndarray:
    """The mask that :meth:`Prediction.save` wrote; raises :class:`InputError` for a missing or damaged file."""
    arrays = _arrays(path, ("bits", "shape"))
    return np.unpackbits(arrays["bits"], count=int(np.prod(arrays["shape"]))).astype(bool).reshape(arrays["shape"])


def _arrays(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as file:
            return {name: file[name] for name in names}
    except (OSError, ValueError, LookupError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"Cannot read {path} ({error}); name another folder for the results.") from error


def prediction_path(folder: Path, key: Hashable) -> Path:
    """Where in the folder of results the prediction lies of the row with this key."""
    return folder / "predictions" / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}{EXTENSION}"
