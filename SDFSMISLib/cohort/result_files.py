"""Where the results of a run go, and whether they can go there."""

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
    """Where each scan's results go: ``output`` and ``probabilities`` name a file, or a folder for those of many.

    Raises:
        InputError: where a file is named for many scans, or no volume can be written under a name.
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
    """Whether an output means a folder: one that is there, a slash at the end, or a name without an extension."""
    return output.endswith(("/", os.sep)) or Path(output).is_dir() or not Path(output).suffix


def check_outputs(
    jobs: Sequence[ScanJob], labels: Sequence[int], inputs: Sequence[Path], others: Sequence[Path] = ()
) -> None:
    """Refuses results that cannot be written, would replace what is read, or would replace each other.

    Args:
        inputs: what is read beside the scans.
        others: files that are written beside the scans' results.
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
    """Whether both are the same file or folder, which need not be there."""
    return other is not None and not _marks(one).isdisjoint(_marks(other))


def _marks(path: Path) -> set[object]:
    """What two names of the same file have in common: its place, and where it is there its number on the disk."""
    marks: set[object] = {path.resolve()}
    if path.exists():
        status = path.stat()
        marks.add((status.st_dev, status.st_ino))
    return marks
