"""The scans that files, folders and lists name, and the names of their results."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from SDFSMISLib.errors import InputError
from SDFSMISLib.images.files import scan_name

__all__ = ["find_scans", "is_cohort", "result_names"]

LISTS = (".txt", ".csv")
# Of files that hold a volume with its place in space; of a pair, the header. A .seg.nrrd is what was painted on one.
VOLUMES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".hdr", ".gipl", ".gipl.gz", ".mnc", ".mrc", ".vtk")
DICOM_MARK, DICOM_MARK_AT = b"DICM", 128


def find_scans(named: Iterable[Path], leave_out: Path | None = None) -> list[Path]:
    """The scans of a cohort, each once, in the order of their names on the command line.

    Args:
        named: scans, each a file or a folder with a DICOM series; folders of scans, which come sorted by name; lists
            of both: ``.txt`` with a path on each line (``#`` begins a comment line), or ``.csv`` with a column
            ``scan``, else with paths in the first column. Paths in a list are relative to it.
        leave_out: a file among them that is no scan, such as the mask.

    Raises:
        InputError: if a scan is missing, a folder or list has none, or a list cannot be read.
    """
    scans: list[Path] = []
    for path in named:
        for place in _listed(path) if _is_list(path) else [path]:
            scans += _scans_at(place, leave_out)
    each: dict[str, Path] = {}
    for scan in scans:
        each.setdefault(os.path.abspath(scan), scan)
    return list(each.values())


def is_cohort(path: Path, scans: Sequence[Path]) -> bool:
    """Whether a path is a list or a folder of scans, and not one of the `scans` itself."""
    return _is_list(path) or (path.is_dir() and path not in scans)


def result_names(scans: Sequence[Path]) -> list[str]:
    """A unique name for each scan, without extension. If several scans have the same name, all get the folders below
    the folder that they have in common.

    Raises:
        InputError: for two that still have the same name, such as ``ct.nii`` and ``ct.mha`` in one folder.

    >>> result_names([Path("a/liver.nii.gz"), Path("a/head.mha")])
    ['liver', 'head']
    >>> result_names([Path("patient1/ct.nii"), Path("patient2/ct.nii")])
    ['patient1/ct', 'patient2/ct']
    """
    names = [scan_name(scan) for scan in scans]
    if len(set(names)) < len(names):
        folders = [Path(os.path.abspath(scan)).parent for scan in scans]
        if len({folder.anchor for folder in folders}) == 1:  # else on several drives, which have nothing in common
            root = os.path.commonpath(folders)
            names = [(folder.relative_to(root) / name).as_posix() for folder, name in zip(folders, names, strict=True)]
    again = [name for name, count in Counter(names).items() if count > 1]
    if again:
        one, other, *_ = (scan for scan, name in zip(scans, names, strict=True) if name == again[0])
        raise InputError(f"{one} and {other} would have results of the same name; rename one, or leave it out.")
    return names


def _is_list(path: Path) -> bool:
    return path.suffix.lower() in LISTS and not path.is_dir()


def _is_volume(path: Path) -> bool:
    name = path.name.lower()
    return name.endswith(VOLUMES) and not name.endswith(".seg.nrrd")


def _scans_at(path: Path, leave_out: Path | None) -> list[Path]:
    if not path.exists():
        raise InputError(f"There is no file or folder {path}.")
    try:
        return _scans_in(path, leave_out) if path.is_dir() else [path]
    except OSError as error:
        raise InputError(f"Cannot read the folder {path}: {error.strerror or error}; name one that you may.") from error


def _scans_in(folder: Path, leave_out: Path | None) -> list[Path]:
    """The folder itself where its files are a DICOM series; else the volumes and the series' folders in it."""
    if _holds_dicom(folder):
        return [folder]
    entries = [entry for entry in _visible(folder) if leave_out is None or not _same(entry, leave_out)]
    scans = [entry for entry in entries if (_holds_dicom(entry) if entry.is_dir() else _is_volume(entry))]
    if not scans and any(entry.is_file() and not _is_volume(entry) for entry in entries):
        return [folder]  # perhaps DICOM files without their mark; reading them will show
    if not scans:
        raise InputError(
            f"The folder {folder} holds no scan; name one that holds NIfTI, NRRD or MHA files, a DICOM series, or a "
            "folder for each series; of scans deeper down, make a list."
        )
    return scans


def _holds_dicom(folder: Path) -> bool:
    """Whether a file of the folder bears the mark of DICOM; the index of a disc (DICOMDIR) is no image."""
    return any(
        _is_dicom(entry)
        for entry in _visible(folder)
        if entry.is_file() and not _is_volume(entry) and entry.name.upper() != "DICOMDIR"
    )


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(DICOM_MARK_AT + len(DICOM_MARK))[DICOM_MARK_AT:] == DICOM_MARK


def _visible(folder: Path) -> list[Path]:
    """What a folder holds, by name, without what a system hides there."""
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _same(one: Path, other: Path) -> bool:
    return other.exists() and one.samefile(other)


def _listed(path: Path) -> list[Path]:
    """The places that a list names; all of them are there."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        entries = _cells(path, text) if path.suffix.lower() == ".csv" else _lines(text)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"Cannot read the list {path} ({reason}); a text file in UTF-8 is needed.") from error
    if not entries:
        raise InputError(f"The list {path} names no scan; it has the path of one on each line.")
    missing = [(line, entry) for line, entry in entries if not os.path.exists(path.parent / entry)]
    if missing:
        line, entry = missing[0]
        several = f"{len(missing)} of its {len(entries)} scans are not there, the first"
        raise InputError(
            f"In the list {path} {several if len(missing) > 1 else 'a scan is not there,'} on line {line}: "
            f"{path.parent / entry}; correct the list, whose paths are relative to it."
        )
    return [path.parent / entry for _, entry in entries]


def _lines(text: str) -> list[tuple[int, str]]:
    """Line number, from 1, and path."""
    lines = ((number, _unquoted(line.strip())) for number, line in enumerate(text.splitlines(), start=1))
    return [(number, line) for number, line in lines if line and not line.startswith("#")]


def _unquoted(text: str) -> str:
    """A path without the quotes that some programs copy it in."""
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text


def _cells(path: Path, text: str) -> list[tuple[int, str]]:
    """As `_lines`, of the column ``scan``, else of the first one, whose name is passed over where it has one."""
    lines = text.splitlines(keepends=True)
    delimiter = ";" if lines and ";" in lines[0] and "," not in lines[0] else ","
    reader = csv.reader(lines, delimiter=delimiter)
    rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(cell.strip() for cell in row)]
    names = [name.lower() for name in rows[0][1]] if rows else []
    column = names.index("scan") if "scan" in names else 0
    if rows and ("scan" in names or not _means_a_scan(path.parent / rows[0][1][0])):
        del rows[0]
    return [(line, row[column]) for line, row in rows if len(row) > column and row[column]]


def _means_a_scan(path: Path) -> bool:
    return _is_volume(path) or os.path.exists(path)
