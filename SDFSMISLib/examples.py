"""Finished scans as examples for the next one: an `Example` is one file, a `Library` a folder of them.

An example holds the scan's grey values and its labels on a coarse grid along the patient's axes. That is enough to
bring whole structures over to another scan by registration. It is the image of a patient: protect it as the scan.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.images.coarse_grid import IDENTITY, CoarseGrid, coarse_scan, turn
from SDFSMISLib.images.files import atomic_output, scan_name
from SDFSMISLib.images.geometry import Geometry
from SDFSMISLib.images.intensity import IntensityWindow
from SDFSMISLib.images.labelmap import integer_labels, label_values, resample_labels
from SDFSMISLib.images.volume import Volume, match_labelmap
from SDFSMISLib.support import EXTENSION, TensorFileError, read_metadata, read_tensors, wanted_labels, write_tensors

__all__ = ["Example", "Library", "LibraryEntry", "Structure"]

FORMAT, VERSION = "sdfsmis-example", "1"
MOST_LABELS = 1000  # of a labelmap; one with more is a scan
LARGEST_STORED = 1 << 27  # voxels that a file may declare
LONGEST_NAME = 100  # characters
FORBIDDEN = re.compile(r'[\x00-\x1f<>:"/\\|?*]')  # in file names, on one of the systems
RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\.|$)")  # names that Windows keeps for devices


@dataclass(frozen=True, eq=False)
class Example:
    """A finished scan: its grey values and labels on a coarse grid.

    Attributes:
        name: of the scan; the name of the file without its extension, and not stored in it.
        image: uint8 (slices, height, width); 0 and 255 are the grey values ``window.low`` and ``window.high``.
        labels: uint8, or uint16 if a label is above 255, of the same shape; 0 is background.
        geometry: their grid, in LPS orientation: the direction is the identity, axis 0 runs to the patient's Superior.
        window: the scan's grey values that are 0 and 255 in the image.
        names: of the structures, by label value; "" if it is unknown. It has all labels of the example and no others.
        scan: content hash of the scan.
        stored: of an example with other label values than its file has, the content address of the file; else "".

    >>> grid = Geometry((4, 6, 6), (1, 1, 2), (0, 0, 0), (-1, 0, 0, 0, -1, 0, 0, 0, 1))
    >>> scan = Volume(np.arange(144, dtype=np.int16).reshape(grid.shape), grid)
    >>> labelmap = Volume((scan.voxels > 100).astype(np.uint8), grid, segment_names={1: "liver"})
    >>> example = Example.of(scan, labelmap, "patient 1")
    >>> example.names, example.geometry.origin, int(example.labels.sum())
    ({1: 'liver'}, (-5.0, -5.0, 0.0), 43)
    """

    name: str
    image: np.ndarray
    labels: np.ndarray
    geometry: Geometry
    window: IntensityWindow
    names: dict[int, str]
    scan: str
    stored: str = ""

    def __post_init__(self) -> None:
        shape = self.geometry.shape
        if self.image.shape != shape or self.labels.shape != shape or self.geometry.direction != IDENTITY:
            raise InputError(
                f"An example of {self.image.shape} grey values and {self.labels.shape} labels on a grid of "
                f"{self.geometry.describe()} was given; the shapes must agree, along the patient's axes."
            )
        if self.image.dtype != np.uint8 or self.labels.dtype not in (np.uint8, np.uint16):
            raise InputError(
                f"An example of {self.image.dtype} grey values and {self.labels.dtype} labels was given; accepted are "
                "uint8, and uint8 or uint16."
            )
        names = {value: self.names.get(value, "").strip() for value in label_values(self.labels)}
        object.__setattr__(self, "names", names)

    @classmethod
    def of(cls, scan: Volume, labelmap: Volume, name: str = "", labels: Sequence[int] | None = None) -> Example:
        """The example that a scan and its finished labelmap make.

        The grid is that of the scan, stored in LPS orientation; if it has more than 1.5 million voxels, the spacing of
        each axis is at least the smallest that they can all have. Grey values are means over the voxels of the new
        grid. A label takes as many voxels as its volume fills, those that it fills most, so thin structures neither
        grow nor disappear; where labels meet, the smaller one is served first. A scan that lies obliquely is resampled
        on the box along the patient's axes that contains it, with the window's low end outside of it.

        Args:
            scan: (slices, height, width), any modality.
            labelmap: resampled to the scan's grid, with a warning, if it has another one.
            name: "" = that of the scan's file.
            labels: the label values to keep; None = all.

        Raises:
            InputError: if the labelmap does not match the scan, is empty or lacks a label.
        """
        matched, message = match_labelmap(labelmap, scan.geometry)
        if message:
            warnings.warn(message, stacklevel=2)
        values = integer_labels(matched.voxels, "The labelmap")
        if not values.any():
            raise InputError("The labelmap is empty; an example has at least one structure that is finished.")
        present = label_values(values)
        if len(present) > MOST_LABELS:
            raise InputError(
                f"The labelmap has {len(present)} different values, as a scan has; give one with at most {MOST_LABELS} "
                "structures."
            )
        wanted = wanted_labels(values, labels)
        if len(wanted) < len(present):
            values = np.where(np.isin(values, wanted), values, 0)
        order, flips, turned = scan.geometry.nearest_to_lps()
        image, geometry = coarse_scan(scan)
        return cls(
            name=name or (scan_name(scan.path) if scan.path else "scan"),
            image=image,
            labels=integer_labels(CoarseGrid.of(turned).labels(turn(values, order, flips)), "The labelmap"),
            geometry=geometry,
            window=scan.window(),
            names=dict(matched.segment_names),
            scan=scan.content_hash(),
        )

    @property
    def label_values(self) -> tuple[int, ...]:
        """The label values that the example has, sorted."""
        return tuple(self.names)

    def renumbered(self, values: Mapping[int, int], names: Mapping[int, str]) -> Example:
        """The same example with other label values: ``values`` has the new ones by the old ones, and labels that are
        not in it become background; ``names`` are those of the new values."""
        table = np.zeros(max(self.label_values, default=0) + 1, np.uint16)
        for old, new in values.items():
            if old < len(table):
                table[old] = new
        labels = integer_labels(table[self.labels], "The example")
        return replace(self, labels=labels, names=dict(names), stored=self.digest())

    def digest(self) -> str:
        """sha256 (hex) of all that is stored: the content address. The name, which is the file's, does not count."""
        if self.stored:
            return self.stored
        digest = hashlib.sha256(json.dumps(self._fields(), sort_keys=True).encode())
        digest.update(np.ascontiguousarray(self.image).data)
        digest.update(_little_endian(self.labels))
        return digest.hexdigest()

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the example to one safetensors file, whole or not at all; returns the path."""
        path = Path(path)
        axis = min((2, 1, 0), key=self.geometry.axis_spacing)  # neighbours are most alike along the finest
        tensors = {
            "image": _compressed(_differences(self.image, axis).tobytes(), zlib.Z_FILTERED),
            "labels": _compressed(_little_endian(self.labels), zlib.Z_DEFAULT_STRATEGY),
        }
        content = {**self._fields(), "differences": axis}
        metadata = {"format": FORMAT, "version": VERSION, "content": json.dumps(content)}
        with atomic_output(path, path.suffix or EXTENSION) as temporary:
            temporary.write_bytes(write_tensors(tensors, metadata))
        return path

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Example:
        """Read a file of :meth:`save`; raises :class:`InputError` for a missing, damaged, foreign or newer file."""
        path = Path(path)
        entry = LibraryEntry.read(path)
        if entry is None:
            raise InputError(f"{path} is not an example; give a file that sdfsmis examples add has written.")
        try:
            tensors, metadata = read_tensors(path)
            content = json.loads(metadata["content"])
            dtype = np.dtype({"uint8": "u1", "uint16": "<u2"}[content["labels"]])
            count = math.prod(entry.geometry.shape)
            image = np.frombuffer(_decompressed(tensors["image"], count), np.uint8)
            labels = np.frombuffer(_decompressed(tensors["labels"], count * dtype.itemsize), dtype)
            example = cls(
                entry.name,
                np.cumsum(image.reshape(entry.geometry.shape), axis=content["differences"], dtype=np.uint8),
                labels.reshape(entry.geometry.shape).astype(dtype.newbyteorder("=")),
                entry.geometry,
                entry.window,
                entry.names,
                entry.scan,
            )
            if example.names != entry.names:
                raise ValueError("its labels are not those that it names")
            return example
        except (OSError, ValueError, LookupError, TypeError, AttributeError, zlib.error) as error:
            raise _damaged(path, error) from error

    def _fields(self) -> dict[str, Any]:
        """All but the arrays and the name, for JSON."""
        grid = self.geometry
        return {
            "shape": list(grid.shape),
            "spacing": list(grid.spacing),
            "origin": list(grid.origin),
            "window": [self.window.low, self.window.high],
            "labels": self.labels.dtype.name,
            "names": {str(value): name for value, name in self.names.items()},
            "scan": self.scan,
        }


@dataclass(frozen=True)
class LibraryEntry:
    """An example file of a library, all but its voxels; attributes as of :class:`Example`."""

    path: Path
    geometry: Geometry
    window: IntensityWindow
    names: dict[int, str]
    scan: str

    @property
    def name(self) -> str:
        return self.path.name.removesuffix(EXTENSION)

    @classmethod
    def read(cls, path: Path) -> LibraryEntry | None:
        """The entry of a file, of which only the header is read; None for a safetensors file of another kind.

        Raises :class:`InputError` for a missing, damaged or newer file.
        """
        if not path.is_file():
            raise InputError(f"There is no example {path}.")
        try:
            metadata = read_metadata(path)
        except (OSError, TensorFileError) as error:
            raise _damaged(path, error) from error
        if metadata.get("format") != FORMAT:
            return None
        if metadata.get("version") != VERSION:
            raise InputError(
                f"{path} is an example of version {metadata.get('version')}, and this program reads version {VERSION}; "
                "install a program as new as the one that saved it."
            )
        try:
            content = json.loads(metadata["content"])
            geometry = Geometry(content["shape"], content["spacing"], content["origin"], IDENTITY)
            if math.prod(geometry.shape) > LARGEST_STORED:
                raise ValueError(f"it declares {math.prod(geometry.shape)} voxels")
            names = {int(value): str(name) for value, name in content["names"].items()}
            return cls(path, geometry, IntensityWindow(*content["window"]), names, str(content["scan"]))
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise _damaged(path, error) from error


@dataclass(frozen=True)
class Structure:
    """A structure of a library.

    Attributes:
        value: its label value in results.
        name: "" if no example names it.
        examples: how many have it.
    """

    value: int
    name: str
    examples: int


class Library:
    """A folder with one ``.safetensors`` file for each finished scan; other files in it are left alone.

    Structures of several examples are the same if they have the same name, whatever the case of its letters; those
    without a name, if they have the same label value. Wherever there is no example, or one that cannot be read,
    :class:`InputError` is raised.

    >>> grid = Geometry((2, 2, 2), (1, 1, 1), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    >>> scan = Volume(np.arange(8, dtype=np.int16).reshape(grid.shape), grid)
    >>> labelmap = Volume((scan.voxels > 3).astype(np.uint8), grid, segment_names={1: "liver"})
    >>> library = Library("livers")
    >>> library.add(Example.of(scan, labelmap, "patient 1")).name
    'patient 1.safetensors'
    >>> library.names(), library.structures()
    (('patient 1',), (Structure(value=1, name='liver', examples=1),))
    """

    def __init__(self, folder: str | PathLike[str]) -> None:
        self.folder = Path(folder)

    def add(self, example: Example) -> Path:
        """Write an example into the folder, which is created if need be, whole or not at all; the path of its file.

        If the library has the same scan, its file keeps its name and the structures that the new example lacks; the
        new labels overwrite those that they lie on. Another scan of the same name gets ``_2``.
        """
        entries = self._entries() if self.folder.is_dir() else []
        earlier = next((entry for entry in entries if entry.scan == example.scan), None)
        if earlier is None:
            return example.save(self.folder / f"{self._free_name(example.name)}{EXTENSION}")
        return _joined(Example.load(earlier.path), example).save(earlier.path)

    def remove(self, name: str) -> None:
        """Delete the file of an example, a damaged one too."""
        path = self.folder / f"{name}{EXTENSION}"
        if path not in _example_files(self.folder) or not _is_example(path):
            raise InputError(f"{self.folder} has no example {name!r}; it has {_listed(self.names())}.")
        try:
            path.unlink()
        except OSError as error:
            raise InputError(f"Cannot remove {path}: {error.strerror or error}.") from error

    def names(self) -> tuple[str, ...]:
        """The names of the examples, sorted."""
        return tuple(entry.name for entry in self.entries())

    def entries(self) -> list[LibraryEntry]:
        """What the library has, without the voxels, sorted by name."""
        entries = self._entries()
        if not entries:
            raise InputError(f"The library {self.folder} has no example; add one with sdfsmis examples add.")
        return entries

    def examples(self) -> Iterator[Example]:
        """The examples as they are stored, read one at a time, sorted by name."""
        return (Example.load(entry.path) for entry in self.entries())

    def structures(self) -> tuple[Structure, ...]:
        """What the examples show, sorted by the label value in results.

        That is the value in the first example that has the structure, or, if another structure has it already, the
        smallest free one.
        """
        names, values = _unified([entry.names for entry in self.entries()])
        counts = Counter(value for table in values for value in set(table.values()))
        return tuple(Structure(value, name, counts[value]) for value, name in names.items())

    def unified(
        self, labels: Collection[int] | None = None, painted: Mapping[int, str] | None = None
    ) -> tuple[dict[int, str], Iterable[Example]]:
        """The names of the structures by label value, and the examples with these label values.

        The examples are read one at a time, whenever they are gone through.

        Args:
            labels: values of :meth:`structures`; examples that have none of them are left out. None = all.
            painted: names by label value of structures that were painted, which keep their values, and which the
                examples take over.
        """
        entries = self.entries()
        names, (own, *values) = _unified([painted or {}, *(entry.names for entry in entries)])
        shown = {value for table in values for value in table.values()}
        names = {value: name for value, name in names.items() if value in shown}
        if labels is not None:
            if missing := sorted(set(labels) - set(names)):
                raise InputError(f"The library {self.folder} has no label {_listed(missing)}; it has {_listed(names)}.")
            names = {value: name for value, name in names.items() if value in labels}
            values = [{own: value for own, value in table.items() if value in names} for table in values]
        chosen = [(entry, table) for entry, table in zip(entries, values, strict=True) if table]
        return names, _Renumbered(chosen, names)

    def _entries(self) -> list[LibraryEntry]:
        if not self.folder.is_dir():
            raise InputError(f"There is no library {self.folder}; a library is a folder.")
        entries = (LibraryEntry.read(path) for path in _example_files(self.folder))
        return sorted((entry for entry in entries if entry is not None), key=lambda entry: entry.name)

    def _free_name(self, name: str) -> str:
        """A file name, without extension, that nothing in the folder has."""
        stem = FORBIDDEN.sub("_", name).strip(" .")[:LONGEST_NAME].strip(" .") or "scan"
        stem = f"_{stem}" if RESERVED.match(stem) else stem
        taken = {path.name.casefold() for path in self.folder.glob("*")}
        numbered = (stem if number == 1 else f"{stem}_{number}" for number in range(1, len(taken) + 2))
        return next(one for one in numbered if f"{one}{EXTENSION}".casefold() not in taken)


@dataclass(frozen=True)
class _Renumbered:
    """Examples with other label values: the files, each with the new values by its own, and the names of the new ones.
    They are read whenever they are gone through."""

    entries: Sequence[tuple[LibraryEntry, Mapping[int, int]]]
    names: dict[int, str]

    def __iter__(self) -> Iterator[Example]:
        return (Example.load(entry.path).renumbered(table, self.names) for entry, table in self.entries)


def _is_example(path: Path) -> bool:
    """Whether a file is an example, or so damaged that nothing else can be said of it."""
    try:
        return LibraryEntry.read(path) is not None
    except InputError:
        return True


def _example_files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.glob(f"*{EXTENSION}") if path.is_file() and not path.name.startswith("."))
    except OSError as error:
        raise InputError(f"Cannot read the folder {folder}: {error.strerror or error}.") from error


# -- which labels of several examples are the same structure


def _unified(tables: Sequence[Mapping[int, str]]) -> tuple[dict[int, str], list[dict[int, int]]]:
    """The label values that several examples have in common.

    Args:
        tables: name by label value of each example.

    Returns:
        Name by common label value, sorted; and of each example the common value by its own.

    >>> _unified([{1: "Liver", 2: ""}, {1: "spleen", 2: ""}, {7: "liver ", 1: ""}])
    ({1: 'Liver', 2: '', 3: 'spleen'}, [{1: 1, 2: 2}, {1: 3, 2: 2}, {1: 3, 7: 1}])
    """
    labels = [(number, value) for number, table in enumerate(tables) for value in sorted(table)]
    key = {label: tables[label[0]][label[1]].strip().casefold() for label in labels}
    structure: dict[tuple[int, int], str | int] = {label: name for label, name in key.items() if name}
    uses = Counter((value, name) for (_, value), name in structure.items())
    for number, value in labels:
        if not key[number, value]:
            own = {structure.get((number, other)) for other in tables[number]}
            named = [(count, name) for (used, name), count in uses.items() if used == value and name not in own]
            structure[number, value] = max(named, key=lambda one: one[0])[1] if named else value
    first = {structure[label]: label for label in reversed(labels)}
    common: dict[str | int, int] = {}
    ordered = sorted(first, key=lambda one: labels.index(first[one]))
    for one in ordered:
        if first[one][1] not in common.values():
            common[one] = first[one][1]
    for one in ordered:
        if one not in common:
            common[one] = next(free for free in range(1, len(labels) + 1) if free not in common.values())
    spelled = {
        structure[number, value]: tables[number][value].strip()
        for number, value in reversed(labels)
        if key[number, value]
    }
    names = {common[one]: spelled.get(one, "") for one in ordered}
    values = [
        {value: common[structure[number, value]] for value in sorted(table)} for number, table in enumerate(tables)
    ]
    return dict(sorted(names.items())), values


def _joined(earlier: Example, example: Example) -> Example:
    """The new example with those structures of an earlier one of the same scan that it lacks."""
    names, (before, now) = _unified([earlier.names, example.names])
    new = example.renumbered(now, names).labels
    kept = earlier.renumbered({own: value for own, value in before.items() if value not in now.values()}, names).labels
    if not earlier.geometry.same_grid(example.geometry):
        kept = resample_labels(kept, earlier.geometry, example.geometry)[0]
    labels = np.where(new > 0, new, kept)
    return replace(example, name=earlier.name, labels=integer_labels(labels, "The example"), names=names)


# -- the file


def _differences(image: np.ndarray, axis: int) -> np.ndarray:
    """uint8: each voxel less the one before it along an axis, modulo 256. It compresses better; the cumulative sum
    undoes it."""
    return np.diff(image, axis=axis, prepend=np.uint8(0))


def _little_endian(labels: np.ndarray) -> bytes:
    return labels.astype(labels.dtype.newbyteorder("<"), copy=False).tobytes()


def _compressed(data: bytes, strategy: int) -> np.ndarray:
    stream = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, strategy)
    return np.frombuffer(stream.compress(data) + stream.flush(), np.uint8)


def _decompressed(data: np.ndarray, size: int) -> bytes:
    """Exactly ``size`` bytes; ValueError if there are fewer or more, which are not decompressed."""
    stream = zlib.decompressobj()
    found = stream.decompress(data.tobytes(), size + 1)
    if len(found) != size or not stream.eof:
        raise ValueError(f"it does not have the {size} bytes that it declares")
    return found


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"The example {path} is damaged ({error}); remove it, and add its scan again.")


def _listed(values: Collection[object]) -> str:
    return ", ".join(map(str, values))
