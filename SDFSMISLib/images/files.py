"""Image files, read and written by SimpleITK, and files that appear whole or not at all.

Errors that SimpleITK ignores are raised here: a truncated NIfTI file (SimpleITK reads zeros), a NIfTI spacing of zero
or NaN (it reads 1 mm) or one that contradicts the sform, a DICOM folder with more than one series.
"""

from __future__ import annotations

import errno
import gzip
import json
import math
import os
import re
import shutil
import struct
import tempfile
import uuid
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.images.geometry import Geometry

PREVIOUS = "previous"  # subfolder of the temporary folder, for the replaced files until all new ones are in place


@contextmanager
def atomic_output(path: Path, extension: str) -> Iterator[Path]:
    """A temporary file in the folder of ``path``: renamed to ``path`` at the end of the block, removed after an error.

    Its name ends with ``extension`` (``".nii.gz"``), by which writers choose the format. A missing folder is created.
    Raises :class:`InputError` if the folder cannot be created, the file cannot be written or renamed, or the disk is
    full.
    """
    temporary = path.with_name(f".{path.name.removesuffix(extension)}.{uuid.uuid4().hex[:8]}{extension}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"Cannot write {path}: {reason}; name a file in a folder that can be written to.") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8, whole or not at all; raises :class:`InputError` as `atomic_output` does."""
    with atomic_output(path, path.suffix) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_outputs(paths: Sequence[Path]) -> Iterator[dict[Path, Path]]:
    """Temporary files for ``paths``: renamed together at the end of the block; after an error all is as before.

    They have the names of ``paths``, in a new folder beside them. A path whose temporary file is not written stays as
    it is. The last path disappears first and appears last, so that a reader who finds it finds all. Missing folders are
    created.

    >>> table, notes = Path("volumes.csv"), Path("notes.txt")
    >>> with atomic_outputs([table, notes]) as temporary:
    ...     _ = temporary[table].write_text("label,volume_ml")
    ...     table.exists()
    False
    >>> table.read_text(), notes.exists()
    ('label,volume_ml', False)

    Raises:
        InputError: if a folder cannot be created, a file cannot be written or renamed, or the disk is full.
    """
    folders: dict[Path, Path] = {}
    with ExitStack() as undo:
        try:
            for folder in dict.fromkeys(path.parent for path in paths):
                _make_folder(folder, undo)
                folders[folder] = Path(tempfile.mkdtemp(prefix=".sdfsmis-", dir=folder))
                undo.callback(_remove, folders[folder])
                (folders[folder] / PREVIOUS).mkdir()
            yield {path: folders[path.parent] / path.name for path in paths}
            written = [path for path in paths if (folders[path.parent] / path.name).exists()]
            for path in reversed(written):
                if path.is_symlink() or path.is_file():
                    _move(path, folders[path.parent] / PREVIOUS / path.name, undo)
            for path in written:
                _move(folders[path.parent] / path.name, path, undo)
        except InputError as error:
            text = str(error)
            for folder, temporary in folders.items():
                text = text.replace(f"{temporary}{os.sep}", f"{folder}{os.sep}")
            raise InputError(text) from error
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(
                f"Cannot write {paths[-1]}: {reason}; name a file in a folder that can be written to."
            ) from error
        undo.pop_all()
    for temporary in folders.values():
        shutil.rmtree(temporary, ignore_errors=True)


def _make_folder(folder: Path, undo: ExitStack) -> None:
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    for one in reversed(missing):
        one.mkdir(exist_ok=True)
        undo.callback(_remove_empty, one)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))


def _move(source: Path, target: Path, undo: ExitStack) -> None:
    os.replace(source, target)
    undo.callback(os.replace, target, source)


def _remove(temporary: Path) -> None:
    """Removes a temporary folder, unless it still has a replaced file that could not be moved back."""
    if not any((temporary / PREVIOUS).glob("*")):
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


EXTENSIONS = (".seg.nrrd", ".nrrd", ".mha", ".nii.gz", ".nii")
TWO_PARTS = (".nii.gz", ".seg.nrrd", ".gipl.gz")  # extensions of which Path.stem would leave one part
LONGEST_MHA_FIELD = 30_000  # MetaImage cannot read a file with longer lines, nor line breaks within a field
NIFTI_HEADER = 348  # bytes; NIfTI-2, which is longer, is not read by SimpleITK
NIFTI_FLOAT64 = 64
NIFTI_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", NIFTI_FLOAT64: "f8", 256: "i1", 512: "u2", 768: "u4"}
CHUNK = 1 << 22
UNEVEN = 0.05  # of the distance between slices; smaller deviations are rounding in the DICOM header


def read_image(path: Path, components: bool = False) -> tuple[np.ndarray, Geometry, dict[str, str]]:
    """Voxels ``(slices, height, width)``, geometry and header fields of an image file or a DICOM folder.

    Integer types are kept, 64-bit floats become 32-bit. With ``components`` an image of several components per voxel is
    read too, as ``(slices, height, width, components)``. Raises :class:`InputError` for anything but one volume.
    """
    if not path.exists():
        raise InputError(f"There is no file or folder {path}.")
    try:
        header, voxels = _read_series(path) if path.is_dir() else _read_file(path, components)
    except (RuntimeError, MemoryError, OSError) as error:
        raise InputError(
            f"Cannot read {path} ({_reason(error)}); an undamaged image is needed: NIfTI, NRRD, MHA, another that "
            "SimpleITK reads, or a folder with one DICOM series."
        ) from error
    shape = tuple(reversed(header.GetSize()))
    geometry = _geometry(path, shape, header.GetSpacing(), header.GetOrigin(), header.GetDirection())
    fields = {key: header.GetMetaData(key) for key in header.GetMetaDataKeys()}
    return voxels, geometry, fields


def write_image(path: Path, voxels: np.ndarray, geometry: Geometry, fields: dict[str, str]) -> None:
    """Write ``(slices, height, width)`` compressed, whole or not at all.

    ``fields`` go into the header of an NRRD file, and of an MHA file if it can hold them (plain ASCII); otherwise, as
    for NIfTI, into ``<name>.json`` beside the file. Raises :class:`InputError` for an unknown extension, or if the file
    cannot be written.
    """
    import SimpleITK

    extension = written_extension(path)
    in_header = _holds_fields(extension.lower(), fields)
    if voxels.dtype == bool:
        voxels = voxels.view(np.uint8)
    elif voxels.dtype == np.float16:
        voxels = voxels.astype(np.float32)
    image = SimpleITK.GetImageFromArray(voxels)
    image.SetSpacing(geometry.spacing)
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)
    if in_header:
        for key, value in fields.items():
            image.SetMetaData(key, value)
    beside = path.with_name(path.name[: -len(extension)] + ".json")
    files = [path] if in_header or not fields else [beside, path]
    with atomic_outputs(files) as temporary:
        try:
            SimpleITK.WriteImage(image, str(temporary[path]), useCompression=True)
            _check_nifti(temporary[path])  # a full disk goes unnoticed there
        except (RuntimeError, InputError) as error:
            raise OSError(_reason(error)) from error
        if beside in temporary:
            text = json.dumps(fields, indent=2, ensure_ascii=False) + "\n"
            temporary[beside].write_text(text, encoding="utf-8")


def written_extension(path: Path) -> str:
    """The extension of a file name (``".seg.nrrd"``, ``".nii.gz"``, ...); :class:`InputError` for an unknown one."""
    for extension in EXTENSIONS:
        if path.name.lower().endswith(extension) and len(path.name) > len(extension):
            return path.name[-len(extension) :]
    raise InputError(f"Cannot write {path}: a volume's file name ends with one of {', '.join(EXTENSIONS)}.")


def scan_name(path: Path) -> str:
    """The name of a scan's file or folder without its extension."""
    name = path.resolve().name
    for extension in TWO_PARTS:
        if name.lower().endswith(extension):
            return name[: -len(extension)]
    return name if path.is_dir() else Path(name).stem


def _holds_fields(extension: str, fields: dict[str, str]) -> bool:
    """Whether a format's header can hold these fields."""
    if extension == ".mha":
        return all(v.isascii() and v.isprintable() and 0 < len(v) <= LONGEST_MHA_FIELD for v in fields.values())
    return extension.endswith(".nrrd")


def _read_file(path: Path, components: bool) -> tuple[Any, np.ndarray]:
    """An object with size, spacing and fields, as a SimpleITK image has them; and the voxels."""
    import SimpleITK

    if path.stat().st_size == 0:
        raise InputError(f"The file {path} is empty.")
    content = bytearray()
    _check_nifti(path, content)
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    size, count = reader.GetSize(), reader.GetNumberOfComponents()
    if reader.GetDimension() != 3:
        raise InputError(
            f"{path} has {reader.GetDimension()} dimensions ({' × '.join(map(str, size))}); a volume has 3: of a time "
            "series, export one time point; of single pictures, a stack with its spacing."
        )
    if count != 1 and not components:
        raise InputError(f"{path} has {count} values per voxel (colour or vectors); one grey value is needed.")
    if reader.GetPixelID() in (SimpleITK.sitkComplexFloat32, SimpleITK.sitkComplexFloat64):
        raise InputError(f"{path} holds complex numbers; one real value per voxel is needed, such as the magnitude.")
    _geometry(path, tuple(reversed(size)), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())
    voxels = _nifti_voxels(content, size)
    if voxels is not None:
        return reader, voxels
    image = reader.Execute()
    return image, _array(image)


def _array(image: Any) -> np.ndarray:
    """The voxels of an image; 64-bit floats as 32-bit."""
    import SimpleITK

    if image.GetPixelID() in (SimpleITK.sitkFloat64, SimpleITK.sitkVectorFloat64):
        single = SimpleITK.sitkFloat32 if image.GetNumberOfComponentsPerPixel() == 1 else SimpleITK.sitkVectorFloat32
        image = SimpleITK.Cast(image, single)
    return SimpleITK.GetArrayFromImage(image)


def _nifti_voxels(content: bytearray, size: Sequence[int]) -> np.ndarray | None:
    """The voxels ``(slices, height, width)`` in a NIfTI file, the same as SimpleITK would read.

    Args:
        content: all bytes of the file, decompressed; empty if it is not compressed.
        size: as SimpleITK gives it, the file's first axis first.

    Returns:
        None if SimpleITK has to read them: they are scaled, of a rare type, or not in this file.
    """
    if content[344:348] != b"n+1\0":
        return None
    order = "<" if content[:4] == struct.pack("<i", NIFTI_HEADER) else ">"
    (code,) = struct.unpack_from(f"{order}h", content, 70)
    offset, slope, intercept = struct.unpack_from(f"{order}3f", content, 108)
    if code not in NIFTI_TYPES or (slope, intercept) not in ((0, 0), (1, 0)) or offset < NIFTI_HEADER:
        return None
    stored = np.dtype(order + NIFTI_TYPES[code])
    voxels = np.frombuffer(content, stored, math.prod(size), int(offset)).reshape(tuple(reversed(size)))
    kind = np.dtype(np.float32) if code == NIFTI_FLOAT64 else stored.newbyteorder("=")
    return np.require(voxels.astype(kind, copy=False), requirements=["ALIGNED", "WRITEABLE"])


def _read_series(folder: Path) -> tuple[Any, np.ndarray]:
    import SimpleITK

    series = SimpleITK.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        raise InputError(
            f"The folder {folder} holds {len(series) or 'no'} DICOM series; name a folder with the files of one."
        )
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0]))
    reader.MetaDataDictionaryArrayUpdateOn()
    image = reader.Execute()
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(f"The DICOM series in {folder} is not a volume of one grey value per voxel.")
    _check_positions(folder, reader, image)
    return image, _array(image)


def _check_positions(folder: Path, reader: Any, image: Any) -> None:
    """Warns if the slices of a DICOM series are not at the positions of an even, straight stack."""
    position, files = "0020|0032", range(len(reader.GetFileNames()))
    if len(files) != image.GetDepth() or not all(reader.HasMetaDataKey(index, position) for index in files):
        return  # one file with many frames
    off = max(
        math.dist(
            [float(part) for part in reader.GetMetaData(index, position).split("\\")],
            image.TransformIndexToPhysicalPoint((0, 0, index)),
        )
        for index in files
    )
    if off > UNEVEN * image.GetSpacing()[2]:
        warnings.warn(
            f"The slices in {folder} do not lie evenly in a straight stack (off by up to {off:.3g} mm): one may be "
            "missing, or the gantry was tilted; positions and volumes are only approximate.",
            stacklevel=2,
        )


def _geometry(path: Path, shape: Any, spacing: Any, origin: Any, direction: Any) -> Geometry:
    try:
        return Geometry(shape, spacing, origin, direction)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _check_nifti(path: Path, content: bytearray | None = None) -> None:
    """Raises :class:`InputError` for a NIfTI file that is truncated, or whose header has an impossible spacing.

    Args:
        content: receives the decompressed bytes of a compressed file, since decompressing takes most of the time.
    """
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        return
    is_gzip = _is_gzip(path)
    try:
        with gzip.open(path) if is_gzip else path.open("rb") as file:
            header = file.read(NIFTI_HEADER)
            order = next((order for order in "<>" if header[:4] == struct.pack(f"{order}i", NIFTI_HEADER)), None)
            if order is None or len(header) < NIFTI_HEADER:
                return  # not NIfTI after all: SimpleITK says what is wrong with it
            _check_nifti_spacing(path, header, order)
            length = len(header) if is_gzip else path.stat().st_size
            if content is not None and is_gzip:
                content += header
            while is_gzip and (chunk := file.read(CHUNK)):
                length += len(chunk)
                if content is not None:
                    content += chunk
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path} is damaged or cut short ({error}); fetch or export it again.") from error
    dim, (bits,) = struct.unpack_from(f"{order}8h", header, 40), struct.unpack_from(f"{order}h", header, 72)
    expected = int(struct.unpack_from(f"{order}f", header, 108)[0]) + math.prod(dim[1 : 1 + dim[0]]) * bits // 8
    if length < expected:
        raise InputError(f"{path} is cut short: {length} of {expected} bytes are there; fetch or export it again.")


def _check_nifti_spacing(path: Path, header: bytes, order: str) -> None:
    """Raises for spacings that are not above zero, or that contradict the sform of a file without qform."""
    (dimensions,) = struct.unpack_from(f"{order}h", header, 40)
    spacing = struct.unpack_from(f"{order}3f", header, 80)[: max(dimensions, 1)]
    given = " × ".join(f"{value:g}" for value in spacing)
    if not all(math.isfinite(value) and value > 0 for value in spacing):
        raise InputError(f"{path} gives a spacing of {given} mm; it must be above zero: correct the header.")
    qform, sform = struct.unpack_from(f"{order}2h", header, 252)
    if qform <= 0 and sform <= 0:
        warnings.warn(f"{path} does not say how it lies in the patient; it is taken as if along LPS.", stacklevel=2)
    if qform <= 0 and sform > 0:
        matrix = np.reshape(struct.unpack_from(f"{order}12f", header, 280), (3, 4))
        scales = np.linalg.norm(matrix[:, : len(spacing)], axis=0)
        if not np.allclose(scales, spacing, rtol=0.01):
            other = " × ".join(f"{value:g}" for value in scales)
            raise InputError(f"{path} gives a spacing of {given} mm and an sform of {other} mm; correct its header.")


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _reason(error: Exception) -> str:
    """The last telling line of a SimpleITK exception."""
    lines = [line.strip() for line in str(error).splitlines()]
    # MetaImage reports a damaged file by the last error of the system, whatever that was.
    reasons = [line for line in lines if line and line != "Reason: No such file or directory"]
    last = reasons[-1] if reasons else "no reason given"
    return re.sub(r"^((sitk::ERROR|ITK ERROR|Reason|\[nrrd\] \w+|\w+\(0x\w+\)): *)+", "", last).strip(" .")
