"""Where a data set's scans and labels lie in the folders that people download."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from SDFSMISLib.errors import InputError
from SDFSMISLib.evaluation.benchmark.data_sets import DataSet

__all__ = ["Pair", "found_pairs"]

NIFTI = r"\.nii(\.gz)?"
# Of scan and labelmap, in lower case; the group is the number that joins them. With _labels: our own form.
NAMES = {
    "chaos_t2": (
        (rf"images/chaos_(\d+){NIFTI}", rf"labels/chaos_(\d+){NIFTI}"),
        (rf"chaos_(\d+){NIFTI}", rf"chaos_(\d+)_labels{NIFTI}"),
        (rf"image_(\d+){NIFTI}", rf"label_(\d+){NIFTI}"),
    ),
    "sabs": (
        (rf"sabs_(\d+){NIFTI}", rf"sabs_(\d+)_labels{NIFTI}"),
        (rf"img(\d+){NIFTI}", rf"label(\d+){NIFTI}"),
        (rf"det(\d+)_avg{NIFTI}", rf"det(\d+)_avg_seg{NIFTI}"),
        (rf"image_(\d+){NIFTI}", rf"label_(\d+){NIFTI}"),
    ),
    "cmr": (
        (rf"cmr_(\d+){NIFTI}", rf"cmr_(\d+)_labels{NIFTI}"),
        (rf"patient_?(\d+)_c0{NIFTI}", rf"patient_?(\d+)_c0_manual{NIFTI}"),
        (rf"image_(\d+){NIFTI}", rf"label_(\d+){NIFTI}"),
    ),
}
EXPECTED = {
    "chaos_t2": "the challenge's MR/<number>/T2SPIR with DICOM_anon and Ground, or image_<number>.nii.gz and "
    "label_<number>.nii.gz",
    "sabs": "img<number>.nii.gz and label<number>.nii.gz, or DET<number>_avg.nii.gz and DET<number>_avg_seg.nii.gz",
    "cmr": "patient<number>_C0.nii.gz and patient<number>_C0_manual.nii.gz",
}


@dataclass(frozen=True)
class Pair:
    """One scan with its labels: two files, or a folder of DICOM slices and one of a PNG picture for each."""

    number: int
    scan: Path
    labels: Path


def found_pairs(data: DataSet, source: Path) -> list[Pair]:
    """All scans of a data set anywhere under the folder ``source``, by number.

    Raises :class:`InputError` where there are none, a scan has no labels or labels no scan, or two have one number.
    """
    if not source.is_dir():
        raise InputError(f"There is no folder {source}; name the one that holds what was downloaded.")
    files = sorted(path for path in source.rglob("*") if path.is_file())
    for scan_name, label_name in NAMES[data.name]:
        scans, labels = _matching(files, scan_name), _matching(files, label_name)
        if scans and labels:
            return _joined(scans, labels)
    if data.name == "chaos_t2" and (pairs := list(_dicom_pairs(source))):
        return sorted(pairs, key=lambda pair: pair.number)
    raise InputError(f"{source} holds no scans of {data.name} in a known layout; expected is {EXPECTED[data.name]}.")


def _matching(files: list[Path], name: str) -> dict[int, Path]:
    """The files whose path ends with ``name``, a regular expression of one group or more, by their number."""
    found: dict[int, Path] = {}
    for path in files:
        match = re.search(rf"(^|/){name}$", path.as_posix().lower())
        if match:
            number = int(match.group(2))
            if number in found:
                raise InputError(f"{found[number]} and {path} have the same number; name a folder with one of them.")
            found[number] = path
    return found


def _joined(scans: dict[int, Path], labels: dict[int, Path]) -> list[Pair]:
    for kind, here, there in (("labels", scans, labels), ("scan", labels, scans)):
        alone = sorted(here.keys() - there.keys())
        if alone and kind == "labels":
            raise InputError(f"{here[alone[0]]} has no {kind} beside it; fetch them, or take it out of the folder.")
        if alone:
            raise InputError(f"{here[alone[0]]} has no {kind} beside it; fetch it, or take them out of the folder.")
    return [Pair(number, scans[number], labels[number]) for number in sorted(scans)]


def _dicom_pairs(source: Path) -> Iterator[Pair]:
    """Of CHAOS's own layout."""
    for folder in sorted(path for path in source.rglob("*") if path.is_dir() and path.name.upper() == "T2SPIR"):
        if not folder.parent.name.isdigit():
            continue
        scan, labels = folder / "DICOM_anon", folder / "Ground"
        if not (scan.is_dir() and labels.is_dir()):
            raise InputError(f"{folder} lacks DICOM_anon or Ground; only the training part of CHAOS has labels.")
        yield Pair(int(folder.parent.name), scan, labels)
