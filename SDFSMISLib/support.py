"""Support: the painted slices that show what to segment; made from a labelmap, saved in one file.

The file is a safetensors file (https://huggingface.co/docs/safetensors): eight bytes with the length of a JSON header,
the header (dtype, shape and offsets of each array, and a table of strings), then the arrays, little-endian, one after
the other. It is read and written here with numpy only, since 3D Slicer's Python has no safetensors package.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.images.files import atomic_output
from SDFSMISLib.images.geometry import Geometry
from SDFSMISLib.images.labelmap import integer_labels, label_values
from SDFSMISLib.images.planes import Plane, painted_planes
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
    header, metadata, begin = _header(data, len(data))
    try:
        return {name: _tensor(entry, memoryview(data)[begin:]) for name, entry in header.items()}, metadata
    except TensorFileError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise TensorFileError(f"its header is damaged ({error})") from error


def read_metadata(path: str | PathLike[str]) -> dict[str, str]:
    """The table of strings of a safetensors file, without reading its arrays; errors as of :func:`read_tensors`."""
    with Path(path).open("rb") as file:
        size, start = os.fstat(file.fileno()).st_size, file.read(8)
        start += file.read(min(int.from_bytes(start, "little"), LONGEST_HEADER))
    return _header(start, size)[1]


def _header(data: bytes, size: int) -> tuple[dict[str, Any], dict[str, str], int]:
    """The entries of the arrays, the table of strings, and where the arrays begin.

    ``data`` has the first bytes of a file of ``size`` bytes, its header at least.
    """
    length = int.from_bytes(data[:8], "little")
    if size < 8 or length > min(LONGEST_HEADER, size - 8):
        raise TensorFileError("it is not a safetensors file")
    try:
        header = json.loads(data[8 : 8 + length])
        metadata = {str(key): str(value) for key, value in header.pop(METADATA, {}).items()}
        header.items()
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise TensorFileError(f"its header is damaged ({error})") from error
    return header, metadata, 8 + length


def _tensor(entry: Mapping[str, Any], data: memoryview) -> np.ndarray:
    dtype, shape, (begin, end) = np.dtype(DTYPES[entry["dtype"]]), tuple(entry["shape"]), entry["data_offsets"]
    if not all(isinstance(side, int) and side >= 0 for side in (*shape, begin, end)):
        raise TensorFileError("a shape or a place in it is no number")
    if not begin <= end <= len(data) or end - begin != math.prod(shape) * dtype.itemsize:
        raise TensorFileError("an array in it is cut off")
    array = np.frombuffer(data[begin:end], dtype).reshape(shape)
    return array.astype(dtype.newbyteorder("="))  # a copy, so that it can be written to


FORMAT = "sdfsmis-support-set"
VERSIONS = ("1", "2")  # the second has slices of which only a part is known
EXTENSION = ".safetensors"


@dataclass(frozen=True, eq=False)
class SupportSlice:
    """One painted slice; it can be used without its scan.

    Attributes:
        image: float32 (rows, columns), raw intensities in native orientation.
        labels: uint16 of the same shape, the label value of each pixel, 0 for unpainted ones.
        index: which slice of the scan, from 0, along the axis of ``plane``.
        plane: axis, spacing, orientation and intensity window, shared by all slices of the scan along that axis.
        complete: True if a label that is absent on this slice is truly absent, not just unpainted.
        known: bool of the same shape: the pixels of which it is known whether they belong to a label; the others are
            left to the networks, as around strokes of a correction. None = the whole slice.

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
    known: np.ndarray | None = None

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
        for array in (self.image, self.labels, *(() if self.known is None else (self.known,))):
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

    def axes_on(self, scan: Volume, content_hash: str) -> tuple[int, ...]:
        """The array axes along which to segment a scan: those of the slices painted on it as wholes, the main one first
        (see :func:`axes_in_order`), or else the one of the same anatomical plane as the first slice; then those on
        which only parts of slices are known, or that nothing is there.

        ``content_hash`` is the scan's. Raises :class:`InputError` for a set without slices.
        """
        if not self.slices:
            raise InputError("The support set has nothing painted; paint the structure on at least one slice.")
        own = [one for one in self.slices if one.plane.scan == content_hash]
        whole = {Plane(one.plane.axis, one.index) for one in own if one.known is None and one.labels.any()}
        axes = axes_in_order(whole, scan.geometry)
        if not axes:
            first = next((one for one in self.slices if one.known is None), self.slices[0])
            axes = (next(axis for axis in range(3) if scan.geometry.plane(axis) == first.plane.name),)
        return (*axes, *sorted({one.plane.axis for one in own} - set(axes)))

    def digest(self) -> tuple[str, ...]:
        """The digests of the slices, in their order."""
        return tuple(painted.digest() for painted in self.slices)

    @classmethod
    def from_labelmap(
        cls,
        scan: Volume,
        labelmap: Volume,
        label: int | Sequence[int] | None = 1,
        slices: Sequence[int | tuple[int, int]] | None = None,
        axis: int | Literal["auto"] = "auto",
    ) -> SupportSet:
        """The painted slices of a scan.

        Args:
            scan: (slices, height, width), any modality.
            labelmap: resampled to the scan's grid if it has another one (see :func:`.volume.match_labelmap`).
            label: one label value, several, or None for all; other labels are left out.
            slices: (axis, index) of each slice, from 0, or indices along the one axis that was painted; None = all
                painted slices. If a label is absent on a slice given here, it counts as truly absent (a negative
                example).
            axis: 0, 1 or 2 of (slices, height, width): only slices along it are taken. ``"auto"`` takes those that were
                painted, along one axis or several (see :func:`.planes.painted_planes`); a structure painted as a whole
                is read as slices of the axis whose two in-plane spacings are most alike
                (:meth:`.geometry.Geometry.default_axis`).

        Raises:
            InputError: if the labelmap does not match the scan, is empty or lacks the label; if a slice is outside the
                scan, or nothing is painted on the slices given; if an index is given without its axis where slices of
                several axes are painted.
        """
        matched, message = match_labelmap(labelmap, scan.geometry)
        if message:
            warnings.warn(message, stacklevel=2)
        matched = replace(matched, voxels=integer_labels(matched.voxels, "The mask"))
        wanted = wanted_labels(matched.voxels, label)
        if slices is None:
            shown = labels_by_plane(matched.voxels, wanted, scan.geometry.default_axis(), axis)
        else:
            shown = {plane: wanted for plane in _named(slices, matched.voxels, wanted, scan.geometry, axis)}
        planes = {axis: SlicePlane.of(scan, axis) for axis in sorted({plane.axis for plane in shown})}
        painted_slices = tuple(
            SupportSlice(
                image=np.array(scan.slice(*plane), dtype=np.float32),
                labels=_only(matched.slice(*plane), labels),
                index=plane.index,
                plane=planes[plane.axis],
                complete=slices is not None,
            )
            for plane, labels in sorted(shown.items())
        )
        found = {value for one in painted_slices for value in label_values(one.labels)}
        absent = [value for value in wanted if value not in found]
        if absent and not (label is None and found):
            along = axis if slices is None else _one_axis(shown, axis)
            painted = labels_by_plane(matched.voxels, absent, scan.geometry.default_axis(), along)
            raise InputError(
                f"Label {_listed(absent)} is not painted on {_described(shown)}; painted slices: {_described(painted)}."
            )
        return cls(painted_slices, {value: matched.segment_names.get(value, "") for value in sorted(found)})

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the set to one safetensors file, whole or not at all; returns the path."""
        path = Path(path)
        tensors = {}
        for number, painted in enumerate(self.slices):
            tensors[f"{number}.image"] = painted.image
            tensors[f"{number}.labels"] = painted.labels
            if painted.known is not None:
                tensors[f"{number}.known"] = painted.known
        names = {str(label): name for label, name in self.names.items()}
        content = {"names": names, "slices": [painted.to_fields() for painted in self.slices]}
        version = VERSIONS[any(painted.known is not None for painted in self.slices)]
        metadata = {"format": FORMAT, "version": version, "content": json.dumps(content)}
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
            if metadata.get("version") not in VERSIONS:
                raise InputError(
                    f"{path} is a support set of version {metadata.get('version')}, and this program reads versions "
                    f"{' and '.join(VERSIONS)}; install a program as new as the one that saved it."
                )
            content = json.loads(metadata["content"])
            slices = tuple(
                _slice(entry, tensors[f"{number}.image"], tensors[f"{number}.labels"], tensors.get(f"{number}.known"))
                for number, entry in enumerate(content["slices"])
            )
            return cls(slices, {int(label): str(name) for label, name in content["names"].items()})
        except InputError:
            raise
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise InputError(f"The support set {path} is damaged ({error}); save it again.") from error


def _slice(entry: dict[str, Any], image: np.ndarray, labels: np.ndarray, known: np.ndarray | None) -> SupportSlice:
    """The slice of a file's entry and arrays; ValueError if they do not fit together."""
    if image.ndim != 2 or image.shape != labels.shape or image.dtype != np.float32 or labels.dtype != np.uint16:
        raise ValueError(f"{image.dtype} {image.shape} and {labels.dtype} {labels.shape} are no slice and its labels")
    if known is not None and (known.shape != labels.shape or known.dtype != bool):
        raise ValueError(f"{known.dtype} {known.shape} does not tell what is known of {labels.shape} pixels")
    lengths = (*entry["spacing"], entry["thickness"])
    if entry["axis"] not in (0, 1, 2) or entry["index"] < 0 or not all(length > 0 for length in lengths):
        raise ValueError("a slice has an impossible axis, index or spacing")
    plane, complete = SlicePlane.from_fields(entry), bool(entry["complete"])
    return SupportSlice(image, labels, int(entry["index"]), plane, complete, known)


def axes_in_order(planes: Collection[Plane], geometry: Geometry) -> tuple[int, ...]:
    """The array axes of painted planes. The first is the main one, along which results come: the axis with most planes;
    of equal ones that with the finest pixels, then the lowest.

    >>> grid = Geometry((9, 64, 64), (0.5, 0.7, 3), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    >>> axes_in_order([Plane(2, 30), Plane(0, 4)], grid), axes_in_order([Plane(2, 30), Plane(2, 40)], grid)
    ((0, 2), (2,))
    """

    def order(axis: int) -> tuple[int, float, int]:
        row, column = geometry.in_plane_spacing(axis)
        return -sum(plane.axis == axis for plane in planes), row * column, axis

    return tuple(sorted({plane.axis for plane in planes}, key=order))


def wanted_labels(voxels: np.ndarray, label: int | Sequence[int] | None) -> list[int]:
    """The label values of a ``label`` argument, sorted; :class:`InputError` unless all of them are painted."""
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


def labels_by_plane(
    voxels: np.ndarray, wanted: Sequence[int], default_axis: int, axis: int | Literal["auto"] = "auto"
) -> dict[Plane, list[int]]:
    """The planes that were painted, and the labels painted on each; see :func:`.planes.painted_planes`.

    Args:
        voxels: label values (slices, height, width).
        wanted: the label values that count.
        default_axis: axis of the slices if the paint does not tell.
        axis: an array axis takes all of its slices that hold a label.
    """
    shown: dict[Plane, list[int]] = {}
    if axis == "auto" and len(wanted) > 1:  # several structures painted as wholes are slices of one axis
        axes = {plane.axis for plane in painted_planes(np.isin(voxels, wanted), default_axis)}
        axis = axes.pop() if len(axes) == 1 else "auto"
    for label in wanted:
        mask = voxels == label
        if axis == "auto":
            planes = painted_planes(mask, default_axis)
        else:
            others = tuple(other for other in range(3) if other != axis)
            planes = [Plane(axis, int(index)) for index in np.flatnonzero(mask.any(axis=others))]
        for plane in planes:
            shown.setdefault(plane, []).append(label)
    return shown


def _named(
    slices: Sequence[int | tuple[int, int]],
    voxels: np.ndarray,
    wanted: Sequence[int],
    geometry: Geometry,
    axis: int | Literal["auto"],
) -> list[Plane]:
    """The planes of a ``slices`` argument, sorted and each once."""
    planes = {Plane(int(one[0]), int(one[1])) for one in slices if not isinstance(one, (int, np.integer))}
    others = [plane for plane in sorted(planes) if axis not in ("auto", plane.axis)]
    if others:
        raise InputError(f"Slice {others[0].axis}:{others[0].index} was named, and axis {axis}; name one axis only.")
    indices = [int(one) for one in slices if isinstance(one, (int, np.integer))]
    if indices:
        if axis == "auto":
            axes = sorted({plane.axis for plane in labels_by_plane(voxels, wanted, geometry.default_axis())})
            if len(axes) > 1:
                index = indices[0]
                fitting = [one for one in axes if 0 <= index < geometry.shape[one]]
                if not fitting:
                    there = " and ".join(f"0 to {geometry.shape[one] - 1} of axis {one}" for one in axes)
                    raise InputError(f"Slice {index} was named; the painted slices are among {there}.")
                raise InputError(
                    f"Slice {index} was named without its axis, but slices of the axes {_listed(axes)} are painted; "
                    f"name it as {fitting[0]}:{index}, or name the axis."
                )
            axis = axes[0]
        planes |= {Plane(axis, index) for index in indices}
    for plane in sorted(planes):
        if plane.axis not in (0, 1, 2):
            raise InputError(
                f"The axis {plane.axis} was given; a volume has the axes 0, 1 and 2 (slices, height, width)."
            )
        count = geometry.shape[plane.axis]
        if not 0 <= plane.index < count:
            raise InputError(
                f"Slice {plane.index} was named; axis {plane.axis} of the scan has slices 0 to {count - 1}."
            )
    return sorted(planes)


def _one_axis(planes: Iterable[Plane], axis: int | Literal["auto"]) -> int | Literal["auto"]:
    """The axis that all planes have in common, else ``axis``."""
    axes = {plane.axis for plane in planes}
    return axes.pop() if len(axes) == 1 else axis


def _only(labels: np.ndarray, wanted: Sequence[int]) -> np.ndarray:
    """uint16 of the same shape: the wanted labels, 0 elsewhere."""
    return np.where(np.isin(labels, wanted), labels, 0).astype(np.uint16)


def _described(planes: Iterable[Plane]) -> str:
    """``"slice 3, 7 to 9 of axis 0"``."""
    by_axis: dict[int, list[int]] = {}
    for plane in sorted(planes):
        by_axis.setdefault(plane.axis, []).append(plane.index)
    parts = [f"slice {_ranges(indices)} of axis {axis}" for axis, indices in by_axis.items()]
    return " and ".join(parts) or "any slice (none was named)"


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
