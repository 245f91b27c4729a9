"""The files of a cohort's results, and whether they can be written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from SDFSMISLib.cohort.job import ScanJob
from SDFSMISLib.cohort.scan_list import result_names
from SDFSMISLib.errors import InputError
from SDFSMISLib.images.files import written_extension
from SDFSMISLib.inference.output import check_writable, written_files

__all__ = ["check_outputs", "is_folder", "plan_results", "same_file"]

FOLDER_EXTENSION = ".nii.gz"  # of results that go into a folder
PROVENANCE_MARK = b'"sdfsmis_version"'  # in each JSON file that comes beside a result


def plan_results(scans: Sequence[Path], output: str, probabilities: str | None) -> list[ScanJob]:
    """The jobs of the scans, with the files of their results.

    Args:
        output, probabilities: a file, or a folder for the results of several scans.

    Raises:
        InputError: for one file for several scans, or an extension that no volume can have.
    """
    into_folder = is_folder(output)
    if len(scans) > 1 and not into_folder:
        raise InputError(f"{len(scans)} scans cannot go into one file {output}; name a folder as --output.")
    into_probability_folder = probabilities is not None and is_folder(probabilities)
    if len(scans) > 1 and probabilities is not None and not into_probability_folder:
        raise InputError(
            f"The probabilities of {len(scans)} scans cannot go into one file {probabilities}; name a folder."
        )
    jobs = []
    for scan, name in zip(scans, result_names(scans), strict=True):
        labelmap = Path(output)
        if into_folder:
            labelmap /= f"{name}_seg{FOLDER_EXTENSION}"
        soft = Path(probabilities) if probabilities is not None else None
        if soft is not None and into_probability_folder:
            soft /= f"{name}_probability{FOLDER_EXTENSION}"
        for path in (labelmap, *([soft] if soft else ())):
            written_extension(path)
        jobs.append(ScanJob(scan, labelmap, soft))
    return jobs


def is_folder(output: str) -> bool:
    """Whether an output means a folder: an existing one, a slash at the end, or a name without an extension.

    >>> is_folder("results/"), is_folder("results"), is_folder("liver.nii.gz")
    (True, True, False)
    """
    return output.endswith(("/", os.sep)) or Path(output).is_dir() or not Path(output).suffix


def check_outputs(
    jobs: Sequence[ScanJob], labels: Sequence[int], inputs: Sequence[Path], others: Sequence[Path] = ()
) -> None:
    """Check the results before the work.

    Args:
        inputs: files that are read beside the scans.
        others: files that are written beside the scans' results.

    Raises:
        InputError: if one cannot be written, or would replace an input, another result or another program's file.
    """
    outputs = list(others)
    for job in jobs:
        outputs += written_files(job.labelmap, list(job.probability_files(labels).values()))
    read = {mark for path in (*inputs, *(job.query for job in jobs)) for mark in _marks(path)}
    seen: set[Path] = set()
    for output in outputs:
        if not read.isdisjoint(_marks(output)):
            raise InputError(f"{output} would replace an input of this run; give the result another name.")
        if (place := output.resolve()) in seen:
            raise InputError(f"Two results of this run would both be written to {output}; give them different names.")
        seen.add(place)
    probed: set[Path] = set()
    for output in outputs:
        if output.parent not in probed or output.is_dir():
            check_writable(output)
            probed.add(output.parent)
        if output.suffix == ".json" and output.exists() and PROVENANCE_MARK not in output.read_bytes():
            raise InputError(f"{output} exists and is of another program; give the result another name.")


def same_file(one: Path, other: Path | None) -> bool:
    """Whether both are the same file or folder; neither needs to exist."""
    return other is not None and not _marks(one).isdisjoint(_marks(other))


def _marks(path: Path) -> set[object]:
    """What two names of the same file have in common: its path and, if it exists, its number on the disk."""
    marks: set[object] = {path.resolve()}
    if path.exists():
        status = path.stat()
        marks.add((status.st_dev, status.st_ino))
    return marks
