"""Scans: copies of the scene's volumes, recognised by their voxels, and the sequence frames that they are."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.images.intensity import finite_range
from SDFSMISLib.images.volume import Volume
from SDFSMISLib.scene.frame import array_from_vtk_matrix, volume_geometry

STEP_BYTES = 1 << 23  # copied in one step: 10 to 20 ms if the memory is new
KEY_VOXELS = 1 << 17  # read to recognise a scan; reading all would take a tenth of a second or more


@dataclass(frozen=True)
class SequenceFrame:
    """One frame of a sequence, such as one phase of a beating heart.

    Attributes:
        text: such as "frame 3 of 12 of ECG gated".
        key: 16 hexadecimal digits that stand for the sequence's name and the frame's index value, such as its time.
    """

    text: str
    key: str

    @classmethod
    def of(cls, node: Any) -> SequenceFrame | None:
        """The frame that a node shows as the proxy of a sequence browser; None if it is no such proxy."""
        scene = node.GetScene()
        for number in range(scene.GetNumberOfNodesByClass("vtkMRMLSequenceBrowserNode") if scene is not None else 0):
            browser = scene.GetNthNodeByClass(number, "vtkMRMLSequenceBrowserNode")
            sequence = browser.GetSequenceNode(node) if browser.IsProxyNodeID(node.GetID()) else None
            master, item = browser.GetMasterSequenceNode(), browser.GetSelectedItemNumber()
            if sequence is None or master is None or item < 0:
                continue
            name = sequence.GetName()
            place = f"{name}\n{master.GetIndexName()}\n{master.GetNthIndexValue(item)}"
            text = f"frame {item + 1} of {browser.GetNumberOfItems()} of {name}"
            return cls(text, hashlib.sha256(place.encode()).hexdigest()[:16])
        return None


@dataclass(eq=False)
class Scan(Volume):
    """A copy of a volume of the scene, on the volume's own grid.

    Any thread may read the voxels, and compute window and content hash, which take 70 and 90 ms for 512 × 512 × 300
    voxels.

    Attributes:
        name: the node's.
        notes: about the copy, for the user, one sentence each.
        sequence_frame: the frame of a sequence that was copied; None if the node shows no sequence.
        key: see :func:`scan_key`.
        stamp: the :func:`volume_stamp` of the node when it was copied.

    >>> from SDFSMISLib.images.geometry import Geometry
    >>> grid = Geometry((5, 4, 4), (1.0, 1.0, 2.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
    >>> scan = Scan(np.zeros(grid.shape, np.int16), grid, sequence_frame=SequenceFrame("frame 3 of 12 of heart", "0a"))
    >>> scan.frame_text
    'frame 3 of 12 of heart'
    """

    name: str = ""
    notes: tuple[str, ...] = ()
    sequence_frame: SequenceFrame | None = None
    key: str = ""
    stamp: tuple[float, ...] = field(default=(), repr=False)

    @property
    def frame_text(self) -> str:
        """The frame of a sequence, such as "frame 3 of 12 of ECG gated"; "" if there is none."""
        return "" if self.sequence_frame is None else self.sequence_frame.text

    def is_shown_by(self, volume_node: Any) -> bool:
        """Whether a node shows what was copied: the same frame of a sequence, else the same voxels on the same grid."""
        frame = SequenceFrame.of(volume_node)
        if frame is None and self.sequence_frame is None:
            return volume_stamp(volume_node) == self.stamp
        return frame == self.sequence_frame


class ScanCache:
    """Copies of volumes; a volume is copied again only after its voxels or grid have changed."""

    def __init__(self) -> None:
        self._kept: dict[str, Scan] = {}

    def get(self, volume_node: Any) -> Scan:
        """The scan of a vtkMRMLVolumeNode; the same object as long as the node does not change.

        Types are those of :meth:`.volume.Volume.read`: 64-bit floats become 32-bit, NaN and infinities the nearest
        finite values, with a note. Of several values per voxel the first is taken, with a note. Transforms above the
        node are ignored.

        Raises:
            InputError: for a node without an image, or with an invalid grid.
        """
        for _ in self.copy_steps(volume_node):
            pass
        return self._kept[volume_node.GetID()]

    def copy_steps(self, volume_node: Any) -> Iterator[float]:
        """Copies in steps of milliseconds, after which :meth:`get` returns at once.

        Copying begins anew if the node changes meanwhile.

        Yields:
            The share that is done, 0 to 1.
        """
        while (kept := self._kept.get(volume_node.GetID())) is None or kept.stamp != volume_stamp(volume_node):
            scan, finite = _empty_scan(volume_node), True
            planes, low, high = max(1, STEP_BYTES // max(1, scan.voxels[0].nbytes)), math.inf, -math.inf
            for first in range(0, len(scan.voxels), planes):
                block = scan.voxels[first : first + planes]
                with np.errstate(over="ignore"):
                    block[...] = array_from_volume(volume_node)[first : first + planes]
                if block.dtype.kind == "f":
                    finite = finite and bool(np.isfinite([block.min(), block.max()]).all())
                    low, high = _range_with(low, high, block)
                yield min(1.0, (first + planes) / len(scan.voxels))
                if volume_stamp(volume_node) != scan.stamp:
                    break
            else:
                if not finite:
                    yield from _making_finite(scan, low, high, planes)
                self._kept[volume_node.GetID()] = scan

    def clear(self) -> None:
        """Drops all copies, as when the scene is closed."""
        self._kept.clear()


def volume_stamp(volume_node: Any) -> tuple[float, ...]:
    """Values that change with the voxels or grid; VTK counts modification times through the program, none twice."""
    from vtkmodules.vtkCommonMath import vtkMatrix4x4

    image, matrix = volume_node.GetImageData(), vtkMatrix4x4()
    volume_node.GetIJKToRASMatrix(matrix)
    return (image.GetMTime() if image is not None else 0, *array_from_vtk_matrix(matrix)[:3].ravel().tolist())


def scan_key(volume_node: Any) -> str:
    """16 hexadecimal digits by which a scan is recognised, from every n-th voxel and the frame of a sequence.

    They stay the same if the volume is renamed, moved, loaded or imported again, and take some milliseconds.

    Raises:
        InputError: for a node without an image.
    """
    values, frame = array_from_volume(volume_node).reshape(-1), SequenceFrame.of(volume_node)
    # A step without a common divisor with rows and slices reaches all their columns and rows in turn.
    step = next(n for n in itertools.count(max(1, values.size // KEY_VOXELS)) if math.gcd(n, values.size) == 1)
    with np.errstate(over="ignore"):
        sampled = values[::step].astype("<f4")
    digest = hashlib.sha256(f"{values.size} {frame.key if frame is not None else ''}\n".encode())
    digest.update(sampled.tobytes())
    return digest.hexdigest()[:16]


def _empty_scan(volume_node: Any) -> Scan:
    """A scan with uninitialised voxels."""
    name, geometry, voxels = volume_node.GetName(), volume_geometry(volume_node), array_from_volume(volume_node)
    dtype, count = voxels.dtype, volume_node.GetImageData().GetPointData().GetScalars().GetNumberOfComponents()
    scan = Scan(np.empty(geometry.shape, np.float32 if dtype == np.float64 else dtype), geometry, name=name)
    scan.sequence_frame, scan.stamp = SequenceFrame.of(volume_node), volume_stamp(volume_node)
    scan.key = scan_key(volume_node)
    if count > 1:
        scan.notes = (f"The volume {name} has {count} values per voxel (colour or vectors); the first is used.",)
    return scan


def array_from_volume(volume_node: Any) -> np.ndarray:
    """A view ``(slices, height, width)`` of a node's voxels; of several values per voxel the first.

    Raises:
        InputError: for a node without an image.
    """
    from vtkmodules.util.numpy_support import vtk_to_numpy

    image = volume_node.GetImageData()
    scalars = image.GetPointData().GetScalars() if image is not None else None
    if scalars is None:
        name = volume_node.GetName()
        raise InputError(f"The volume {name} holds no grey values; load it again, or choose another one.")
    values = vtk_to_numpy(scalars)
    values = values if values.ndim == 1 else values[:, 0]
    return values.reshape(image.GetDimensions()[::-1])


def _range_with(low: float, high: float, block: np.ndarray) -> tuple[float, float]:
    """A range of finite values, widened to that of a block."""
    try:
        lowest, highest = finite_range(block)
    except InputError:  # nothing finite in this block
        return low, high
    return min(low, lowest), max(high, highest)


def _making_finite(scan: Scan, low: float, high: float, planes: int) -> Iterator[float]:
    """Replaces NaN and infinities in place, as reading a file does, some planes in each step, with a note."""
    if low > high:
        finite_range(scan.voxels)  # raises: nothing is finite
    count = 0
    for first in range(0, len(scan.voxels), planes):
        block = scan.voxels[first : first + planes]
        count += block.size - int(np.count_nonzero(np.isfinite(block)))
        np.nan_to_num(block, copy=False, nan=low, posinf=high, neginf=low)
        yield 1.0
    text = f"The volume {scan.name} holds {count} voxels of NaN or infinity, now set to {low:g} or {high:g}."
    scan.notes += (text,)
