"""`cohort.csv`, beside the results of a cohort: one row for each label of each scan."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Sequence
from pathlib import Path

from SDFSMISLib.cohort.job import LabelResult, ScanJob, ScanResult
from SDFSMISLib.errors import InputError
from SDFSMISLib.images.files import atomic_output

__all__ = ["COLUMNS", "CohortTable"]

COLUMNS = (
    "scan",  # its path, so that the table can be named as a list of scans
    "result",  # the labelmap, relative to the table
    "status",  # done or failed
    "label",
    "name",
    "volume_ml",
    "voxels",
    "certainty_mean",  # of the slices, 0 to 1
    "certainty_min",
    "agreement",  # of the examples of a library on the scan, 0 to 1
    "look_first",  # 1 = the scan whose result most needs a look: that with the least certainty times agreement
    "seconds",  # of the whole scan
    "error",
)

NEW_COLUMNS = ("agreement", "look_first")  # that tables of earlier versions lack

Row = dict[str, str]


class CohortTable:
    """The rows of finished scans, in the order of the scans. It is written as a whole each time, so that a run that is
    killed leaves a table of all finished scans.

    Rows of an earlier run for results of other scans stay, behind those of this run.
    """

    def __init__(self, path: Path, jobs: Sequence[ScanJob]) -> None:
        """
        Args:
            path: of the table; an existing one is read.
            jobs: all scans of the run, in order.

        Raises:
            InputError: for an existing file that is not such a table.
        """
        self.path = path
        self._order = [self._result(job) for job in jobs]
        self._earlier = _read(path)
        self._rows: dict[str, list[Row]] = {}

    def keep(self, job: ScanJob) -> None:
        """Keep the earlier rows of a scan that is skipped, since it has its result; else those of its own table."""
        result = self._result(job)
        rows = self._earlier.get(result, [])
        if not rows or any(row["status"] != "done" for row in rows):
            rows = _volumes(job.volumes) or [{}]
        self._rows[result] = [{**row, **self._start(job, "done")} for row in rows]

    def add(self, job: ScanJob, result: ScanResult) -> None:
        """The rows of a finished scan."""
        if result.error:
            self._rows[self._result(job)] = [{**self._start(job, "failed"), "error": result.error}]
        else:
            start = {**self._start(job, "done"), "agreement": _share(result.agreement)}
            start["seconds"] = f"{result.seconds:.1f}"
            self._rows[self._result(job)] = [{**start, **_fields(label)} for label in result.labels]

    def write(self) -> None:
        """Raises :class:`InputError` where the file cannot be written; the earlier one stays then."""
        others = [result for result in self._earlier if result not in self._order]
        rows = [self._rows.get(result, []) for result in self._order] + [self._earlier[result] for result in others]
        _rank(rows)
        with atomic_output(self.path, self.path.suffix) as temporary:
            with temporary.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
                writer.writeheader()
                for of_scan in rows:
                    writer.writerows(of_scan)

    def _result(self, job: ScanJob) -> str:
        return Path(os.path.relpath(job.labelmap, self.path.parent)).as_posix()

    def _start(self, job: ScanJob, status: str) -> Row:
        return {"scan": os.path.abspath(job.query), "result": self._result(job), "status": status}


def _fields(result: LabelResult) -> Row:
    return {
        "label": str(result.label),
        "name": result.name,
        "volume_ml": f"{result.volume_ml:.6g}",
        "voxels": str(result.voxels),
        "certainty_mean": _share(result.certainty_mean),
        "certainty_min": _share(result.certainty_min),
    }


def _rank(rows: Sequence[list[Row]]) -> None:
    """Sets the rank by which the results of scans, each with its rows, should be looked at; the least sure one is 1."""
    sure: dict[int, float] = {}
    for place, of_scan in enumerate(rows):
        certainties = [float(row["certainty_mean"]) for row in of_scan if row.get("certainty_mean")]
        if certainties:
            sure[place] = sum(certainties) / len(certainties) * float(of_scan[0].get("agreement") or 1)
    ranks = {place: rank for rank, place in enumerate(sorted(sure, key=lambda one: (sure[one], one)), start=1)}
    for place, of_scan in enumerate(rows):
        for row in of_scan:
            row["look_first"] = str(ranks.get(place, ""))


def _share(number: float) -> str:
    return "" if math.isnan(number) else f"{number:.4f}"


def _read(path: Path) -> dict[str, list[Row]]:
    """The rows of a table by result; none where there is no file."""
    if not path.exists():
        return {}
    rows: dict[str, list[Row]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, restval="")
            named = tuple(reader.fieldnames or ())
            if named not in (COLUMNS, tuple(one for one in COLUMNS if one not in NEW_COLUMNS)):
                raise InputError(f"{path} exists and is of another program; name another folder as --output.")
            for row in reader:
                rows.setdefault(row["result"], []).append({column: row.get(column, "") for column in COLUMNS})
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"Cannot read {path} ({error}); remove it, or name another folder as --output.") from error
    return rows


def _volumes(path: Path) -> list[Row]:
    """The rows of a scan's own table; none where it cannot be read."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, restval=""))
    except (OSError, UnicodeDecodeError, csv.Error):
        return []
    return [{column: row[column] for column in COLUMNS if column in row} for row in rows]
