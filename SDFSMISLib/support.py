"""Support: the painted slices that show what to segment; made from a labelmap, saved in one file.

The file is a safetensors file (https://huggingface.co/docs/safetensors): eight bytes with the length of a JSON header,
the header (dtype, shape and offsets of each array, and a table of strings), then the arrays, little-endian, one after
the other. It is read and written here with numpy only, since 3D Slicer's Python has no safetensors package.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.images.files import atomic_output
from SDFSMISLib.images.geometry import Geometry
from SDFSMISLib.images.labelmap import integer_labels, label_values
from SDFSMISLib.images.volume import Volume, match_labelmap
from SDFSMISLib.slices import SlicePlane

DTYPES = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "U16": "<u2",
    "I16": "<i2",
    "U32": "<u4",
    "I32": "<i4",
    "U64": "<u8",
    "I64": "<i8",
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
}
DTYPE_NAMES = {np.dtype(code): name for name, code in DTYPES.items()}
LONGEST_HEADER = 100_000_000  # bytes; the limit of the format
METADATA = "__metadata__"


class TensorFileError(ValueError):
    """A file is not a safetensors file, or is damaged."""


def write_tensors(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a safetensors file with arrays of bool, integers or floats, and a table of strings."""
    header: dict[str, Any] = {METADATA: dict(metadata)}
    parts, end = [], 0
    for name, array in tensors.items():
        stored = np.ascontiguousarray(array)
        stored = stored.astype(stored.dtype.newbyteorder("<"), copy=False)
        begin, end = end, end + stored.nbytes
        header[name] = {"dtype": DTYPE_NAMES[stored.dtype], "shape": list(array.shape), "data_offsets": [begin, end]}
        parts.append(stored.tobytes())
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(parts)


def read_tensors(path: str | PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays, by name, and the table of strings of a safetensors file.

    Raises:
        TensorFileError: if the file has another format, is damaged, or has a dtype that numpy lacks.
        OSError: if it cannot be read.
    """
    data = Path(path).read_bytes()
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(LONGEST_HEADER, len(data) - 8):
        raise TensorFileError("it is not a safetensors file")
    try:
        header = json.loads(data[8 : 8 + length])
        metadata = {str(key): str(value) for key, value in header.pop(METADATA, {}).items()}
        return {name: _tensor(entry, memoryview(data)[8 + length :]) for name, entry in header.items()}, metadata
    except TensorFileError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise TensorFileError(f"its header is damaged ({error})") from error


def _tensor(entry: Mapping[str, Any], data: memoryview) -> np.ndarray:
    dtype, shape, (begin, end) = np.dtype(DTYPES[entry["dtype"]]), tuple(entry["shape"]), entry["data_offsets"]
    if not all(isinstance(side, int) and side >= 0 for side in (*shape, begin, end)):
        raise TensorFileError("a shape or a place in it is no number")
    if not begin <= end <= len(data) or end - begin != math.prod(shape) * dtype.itemsize:
        raise TensorFileError("an array in it is cut off")
    array = np.frombuffer(data[begin:end], dtype).reshape(shape)
    return array.astype(dtype.newbyteorder("="))  # a copy, so that it can be written to


FORMAT, VERSION = "sdfsmis-support-set", 1
EXTENSION = ".safetensors"
THIN = 0.25  # the longest row of painted slices on one axis, as a share of that on the next, that means single slices


@dataclass(frozen=True, eq=False)
class SupportSlice:
    """One painted slice; it can be used without its scan.

    Attributes:
        image: float32 (rows, columns), raw intensities in native orientation.
        labels: uint16 of the same shape, the label value of each pixel, 0 for unpainted ones.
        index: which slice of the scan, from 0, along the axis of ``plane``.
        plane: axis, spacing, orientation and intensity window, shared by all slices of the scan along that axis.
        complete: True if a label that is absent on this slice is truly absent, not just unpainted.

    >>> from SDFSMISLib.images.volume import Geometry
    >>> grid = Geometry((1, 1, 3), (1, 1, 3), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    >>> plane = SlicePlane.of(Volume(np.float32([[[0, 1, 4]]]), grid), axis=0)
    >>> painted = SupportSlice(np.float32([[0, 1, 4]]), np.uint16([[0, 5, 5]]), index=0, plane=plane)
    >>> painted.plane.name, painted.mask(5).tolist(), painted.canonical_image().dtype
    ('axial', [[False, True, True]], dtype('float32'))
    """

    image: np.ndarray
    labels: np.ndarray
    index: int
    plane: SlicePlane
    complete: bool = False

    def mask(self, label: int) -> np.ndarray:
        """Bool (rows, columns), native: the pixels painted with ``label``."""
        return self.labels == label

    def canonical_image(self) -> np.ndarray:
        """The image as float32 in [-1, 1], in the canonical anatomical orientation."""
        return self.plane.window.normalize(self.plane.orientation.apply(self.image))

    def canonical_mask(self, label: int) -> np.ndarray:
        """The mask of ``label`` in the canonical anatomical orientation."""
        return self.plane.orientation.apply(self.mask(label))

    def digest(self) -> str:
        """16 hexadecimal digits that identify this slice in a result's provenance."""
        digest = hashlib.sha256(json.dumps(self.to_fields(), sort_keys=True).encode())
        for array in (self.image, self.labels):
            digest.update(f"{array.dtype.str} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]

    def to_fields(self) -> dict[str, Any]:
        """All but the arrays, for JSON."""
        plane = self.plane.to_fields()
        return {"axis": plane.pop("axis"), "index": self.index, **plane, "complete": self.complete}


@dataclass(frozen=True, eq=False)
class SupportSet:
    """Painted slices of one or several scans, and the names of their labels ("" if unknown).

    >>> from SDFSMISLib.images.volume import Geometry
    >>> grid = Geometry((5, 4, 4), (1, 1, 3), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    >>> scan, labelmap = Volume(np.zeros(grid.shape, np.int16), grid), Volume(np.zeros(grid.shape, np.uint8), grid)
    >>> labelmap.voxels[2, 1:3, 1:3] = 7
    >>> support = SupportSet.from_labelmap(scan, labelmap, label=7)
    >>> support.labels, [(painted.plane.axis, painted.index) for painted in support.slices]
    ((7,), [(0, 2)])
    """

    slices: tuple[SupportSlice, ...]
    names: dict[int, str] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[int, ...]:
        """The label values that are painted on any slice, sorted."""
        return tuple(sorted({label for painted in self.slices for label in label_values(painted.labels)}))

    def for_label(self, label: int) -> tuple[SupportSlice, ...]:
        """The slices that show ``label``, and the complete ones on which it is absent (negative examples).

        Raises :class:`InputError` if no slice shows it.
        """
        if label not in self.labels:
            raise InputError(f"The support has nothing painted with label {label}; it has {_listed(self.labels)}.")
        return tuple(painted for painted in self.slices if painted.complete or painted.mask(label).any())

    def axis_on(self, scan: Volume, content_hash: str) -> int:
        """The array axis along which to slice a scan: that of the slices painted on it, else the one of the same
        anatomical plane as the first slice.

        ``content_hash`` is the scan's. Raises :class:`InputError` for a set without slices.
        """
        for painted in self.slices:
            if painted.plane.scan == content_hash:
                return painted.plane.axis
        if not self.slices:
            raise InputError("The support set has nothing painted; paint the structure on at least one slice.")
        return next(axis for axis in range(3) if scan.geometry.plane(axis) == self.slices[0].plane.name)

    def digest(self) -> tuple[str, ...]:
        """The digests of the slices, in their order."""
        return tuple(painted.digest() for painted in self.slices)

    @classmethod
    def from_labelmap(
        cls,
        scan: Volume,
        labelmap: Volume,
        label: int | Sequence[int] | None = 1,
        slices: Sequence[int] | None = None,
        axis: int | Literal["auto"] = "auto",
    ) -> SupportSet:
        """The painted slices of a scan.

        Args:
            scan: (slices, height, width), any modality.
            labelmap: resampled to the scan's grid if it has another one (see :func:`.volume.match_labelmap`).
            label: one label value, several, or None for all; other labels are left out.
            slices: indices along ``axis``, from 0; None = all painted slices. If a label is absent on a slice given
                here, it counts as truly absent (a negative example).
            axis: 0, 1 or 2 of (slices, height, width). ``"auto"`` takes the axis on which single slices are painted:
                the one whose longest row of neighbouring painted slices is the shortest, if it is one slice, or at
                most a quarter of the row on the next axis. Otherwise, as for a structure painted as a whole, it takes
                the axis whose two in-plane spacings are most alike (see :meth:`.geometry.Geometry.default_axis`).

        Raises:
            InputError: if the labelmap does not match the scan, is empty or lacks the label; if a slice is outside the
                scan, or nothing is painted on the slices given.
        """
        matched, message = match_labelmap(labelmap, scan.geometry)
        if message:
            warnings.warn(message, stacklevel=2)
        matched = replace(matched, voxels=integer_labels(matched.voxels, "The mask"))
        wanted = _wanted_labels(matched.voxels, label)
        kept = np.zeros(1 << 16, dtype=np.uint16)  # by label value: itself if it is wanted, else 0
        kept[wanted] = wanted
        planes = _painted_planes(matched.voxels, kept > 0)
        chosen = painted_axis(scan.geometry, planes) if axis == "auto" else axis
        count = scan.slice_count(chosen)
        painted = np.flatnonzero(planes[chosen]).tolist()
        indices = painted if slices is None else sorted({int(index) for index in slices})
        outside = [index for index in indices if not 0 <= index < count]
        if outside:
            raise InputError(f"Slice {outside[0]} was named; axis {chosen} of the scan has slices 0 to {count - 1}.")

        plane = SlicePlane.of(scan, chosen)
        painted_slices = tuple(
            SupportSlice(
                image=np.array(scan.slice(chosen, index), dtype=np.float32),
                labels=kept[matched.slice(chosen, index)],
                index=index,
                plane=plane,
                complete=slices is not None,
            )
            for index in indices
        )
        found = {value for one in painted_slices for value in label_values(one.labels)}
        absent = [value for value in wanted if value not in found]
        if absent and not (label is None and found):
            raise InputError(
                f"Label {_listed(absent)} is not painted on slice {_listed(indices) or '(none was named)'} of axis "
                f"{chosen}; painted slices there: {_ranges(painted)}."
            )
        return cls(painted_slices, {value: matched.segment_names.get(value, "") for value in sorted(found)})

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the set to one safetensors file, whole or not at all; returns the path."""
        path = Path(path)
        tensors = {}
        for number, painted in enumerate(self.slices):
            tensors[f"{number}.image"] = painted.image
            tensors[f"{number}.labels"] = painted.labels
        names = {str(label): name for label, name in self.names.items()}
        content = {"names": names, "slices": [painted.to_fields() for painted in self.slices]}
        metadata = {"format": FORMAT, "version": str(VERSION), "content": json.dumps(content)}
        with atomic_output(path, path.suffix or EXTENSION) as temporary:
            temporary.write_bytes(write_tensors(tensors, metadata))
        return path

    @classmethod
    def load(cls, path: str | PathLike[str]) -> SupportSet:
        """Read a file of :meth:`save`; raises :class:`InputError` for a missing, damaged, foreign or newer file."""
        path = Path(path)
        if not path.is_file():
            raise InputError(f"There is no support set {path}.")
        try:
            tensors, metadata = read_tensors(path)
            if metadata.get("format") != FORMAT:
                raise InputError(f"{path} is not a support set; give a file that was saved as one.")
            if metadata.get("version") != str(VERSION):
                raise InputError(
                    f"{path} is a support set of version {metadata.get('version')}, and this program reads version "
                    f"{VERSION}; install a program as new as the one that saved it."
                )
            content = json.loads(metadata["content"])
            slices = tuple(
                _slice(entry, tensors[f"{number}.image"], tensors[f"{number}.labels"])
                for number, entry in enumerate(content["slices"])
            )
            return cls(slices, {int(label): str(name) for label, name in content["names"].items()})
        except InputError:
            raise
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise InputError(f"The support set {path} is damaged ({error}); save it again.") from error


def _slice(entry: dict[str, Any], image: np.ndarray, labels: np.ndarray) -> SupportSlice:
    """The slice of a file's entry and arrays; ValueError if they do not fit together."""
    if image.ndim != 2 or image.shape != labels.shape or image.dtype != np.float32 or labels.dtype != np.uint16:
        raise ValueError(f"{image.dtype} {image.shape} and {labels.dtype} {labels.shape} are no slice and its labels")
    lengths = (*entry["spacing"], entry["thickness"])
    if entry["axis"] not in (0, 1, 2) or entry["index"] < 0 or not all(length > 0 for length in lengths):
        raise ValueError("a slice has an impossible axis, index or spacing")
    return SupportSlice(image, labels, int(entry["index"]), SlicePlane.from_fields(entry), bool(entry["complete"]))


def _wanted_labels(voxels: np.ndarray, label: int | Sequence[int] | None) -> list[int]:
    """The label values of a ``label`` argument, sorted; all of them must be painted."""
    present = label_values(voxels)
    if not present:
        raise InputError("The mask is empty; paint the structure on at least one slice.")
    if label is None:
        return present
    wanted = sorted({int(value) for value in ([label] if isinstance(label, (int, np.integer)) else label)})
    missing = [value for value in wanted if value not in present]
    if missing or not wanted:
        raise InputError(f"The mask has no label {_listed(missing) or '(none was named)'}; it has {_listed(present)}.")
    return wanted


def _painted_planes(voxels: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, ...]:
    """For each axis, bool per slice: whether a wanted label is painted on it. ``wanted`` is bool by label value."""
    planes = tuple(np.zeros(side, dtype=bool) for side in voxels.shape)
    for index, plane in enumerate(voxels):
        painted = wanted[plane]
        planes[0][index] = painted.any()
        planes[1][:] |= painted.any(axis=1)
        planes[2][:] |= painted.any(axis=0)
    return planes


def painted_axis(geometry: Geometry, planes: tuple[np.ndarray, ...]) -> int:
    """The axis on which single slices are painted, else the geometry's default (see ``SupportSet.from_labelmap``)."""
    runs = [_longest_run(painted) for painted in planes]
    shortest, following = sorted(runs)[:2]
    if shortest < following and (shortest == 1 or shortest <= THIN * following):
        return runs.index(shortest)
    return geometry.default_axis()


def _longest_run(painted: np.ndarray) -> int:
    """Length of the longest row of neighbouring true values."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], painted, [False])).astype(np.int8)))
    return int((edges[1::2] - edges[::2]).max(initial=0))


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def _ranges(indices: Sequence[int]) -> str:
    """``"3, 7 to 9"``: sorted indices in few words."""
    groups: list[list[int]] = []
    for index in indices:
        if groups and index == groups[-1][1] + 1:
            groups[-1][1] = index
        else:
            groups.append([index, index])
    return ", ".join(f"{first}" if first == last else f"{first} to {last}" for first, last in groups)
