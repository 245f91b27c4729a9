"""Results of an evaluation: a row for each task and method, what was found in it, and the means of all rows.

A results folder holds ``results.csv`` (a line per row, appended as tasks finish), ``predictions`` (a compressed file
per row: the mask and counts for each slice, for pictures and diagnostics), ``results.json`` (rows with their slices)
and ``summary.json`` (means). A later run reads ``results.csv`` and does only what is missing.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import zipfile
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.evaluation.metrics import METRICS
from SDFSMISLib.evaluation.protocols import Setting, Task
from SDFSMISLib.images.files import atomic_output, write_text
from SDFSMISLib.images.planes import Plane

EXTENSION = ".npz"


@dataclass(frozen=True, eq=False)
class Prediction:
    """What was found in a task, slice by slice; the mask itself lies in the same file.

    Arrays with an entry for each judged slice: ``slices`` its index (int32); ``distances`` to the nearest painted slice
    of the query along the same axis in mm (float32, NaN if none is painted); and pixels (int32) that were ``found``,
    that the reference ``held``, and ``both``, but for those on painted slices of other axes. ``certainty`` (float32, 0
    to 1) is the method's own of each slice; empty if it has none.
    """

    slices: np.ndarray
    distances: np.ndarray
    found: np.ndarray
    held: np.ndarray
    both: np.ndarray
    certainty: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.float32))

    @classmethod
    def of(cls, task: Task, mask: np.ndarray, certainty: np.ndarray | None = None) -> Prediction:
        """The comparison of a mask, bool on the query's grid, with the task's reference.

        ``certainty`` has an entry for each slice of the query along the task's axis.
        """
        slices = np.array(task.judged, dtype=np.int32)
        apart = np.full(len(slices), np.nan)
        if task.painted:
            apart = np.abs(slices[:, None] - np.array(task.painted)).min(axis=1)
        counted = np.ix_(*task.counted())
        found, held = (np.moveaxis(array[counted], task.axis, 0) for array in (mask, task.reference))
        counts = [np.count_nonzero(array, axis=(1, 2)).astype(np.int32) for array in (found, held, found & held)]
        result = cls(slices, (apart * task.query.geometry.axis_spacing(task.axis)).astype(np.float32), *counts)
        return result if certainty is None else replace(result, certainty=certainty[slices].astype(np.float32))

    @property
    def dice(self) -> np.ndarray:
        """Dice of each judged slice; NaN if both masks are empty."""
        total = self.found + self.held
        return np.divide(2 * self.both, total, out=np.full(len(total), np.nan), where=total > 0)

    def save(self, path: Path, mask: np.ndarray) -> None:
        """Writes the file, whole or not at all: the mask as bits, all compressed."""
        with atomic_output(path, EXTENSION) as temporary:
            np.savez_compressed(temporary, bits=np.packbits(mask), shape=mask.shape, **vars(self))

    @classmethod
    def load(cls, path: Path) -> Prediction:
        """Reads what :meth:`save` wrote, but for the mask; raises :class:`InputError` for a missing or damaged file."""
        names = [one.name for one in fields(cls)]
        return cls(**_arrays(path, names, optional=("certainty",)))  # version 0.1.0 wrote none


def read_mask(path: Path) -> np.ndarray:
    """The mask that :meth:`Prediction.save` wrote; raises :class:`InputError` for a missing or damaged file."""
    arrays = _arrays(path, ("bits", "shape"))
    return np.unpackbits(arrays["bits"], count=int(np.prod(arrays["shape"]))).astype(bool).reshape(arrays["shape"])


def _arrays(path: Path, names: Iterable[str], optional: Collection[str] = ()) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as file:
            return {name: file[name] for name in names if name in file or name not in optional}
    except (OSError, ValueError, LookupError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"Cannot read {path} ({error}); name another folder for the results.") from error


def prediction_path(folder: Path, key: Hashable) -> Path:
    """Where in the folder of results the prediction lies of the row with this key."""
    return folder / "predictions" / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}{EXTENSION}"


SCORES = (*METRICS, "dice_whole")
MEASURES = (*SCORES, "seconds")
SETTING_COLUMNS = ("protocol", "shots", "directions", "painting", "finished", "examples_from")
KEY_COLUMNS = (*SETTING_COLUMNS, "group", "case", "target", "shown", "method")
COLUMNS = (*KEY_COLUMNS, *MEASURES, "ml", "axis", "painted", "support_case")
# That older files lack, and the values that their rows have:
NEW_COLUMNS = {"directions": "1", "painting": "", "finished": "0", "examples_from": "", "dice_whole": ""}


@dataclass(frozen=True)
class Row:
    """One task done by one method: a line of ``results.csv``.

    ``scores`` holds the metrics that were computed, and, if slices of the query itself were painted, ``dice_whole``:
    Dice over the whole volume, painted slices as painted. ``planes`` are these slices, ``axis`` that of the judged
    ones; ``shown`` is the structure that the support showed. Another ``shown`` than the target (a mispaired task) is a
    check of the method and not part of any mean. ``ml`` is the target's volume in the reference, ``seconds`` the
    method's time, with its share of the registrations if finished scans were registered; ``support_case`` has the ids
    of all finished scans then, with spaces between. Protocol, shots, directions, painting, finished and examples_from
    are explained in :class:`.protocols.Setting`.
    """

    protocol: str
    shots: int
    group: str
    case: str
    target: str
    method: str
    scores: dict[str, float]
    seconds: float
    axis: int
    planes: tuple[Plane, ...]
    support_case: str
    shown: str
    ml: float
    directions: int = 1
    painting: str = ""
    finished: int = 0
    examples_from: str = ""

    @property
    def setting(self) -> Setting:
        return Setting(self.protocol, self.shots, self.directions, self.painting, self.finished, self.examples_from)

    @property
    def painted(self) -> tuple[int, ...]:
        """The painted slices of the query along ``axis``."""
        return tuple(plane.index for plane in self.planes if plane.axis == self.axis)

    @property
    def mispaired(self) -> bool:
        """Whether the support showed another structure than the target."""
        return self.shown != self.target

    @property
    def key(self) -> tuple[Hashable, ...]:
        """What identifies a row: a later run with the same key is not done again."""
        return row_key(self.setting, self.case, self.target, self.method, self.mispaired)

    def measure(self, name: str) -> float:
        """A score, NaN if not computed; or ``"seconds"``."""
        return self.seconds if name == "seconds" else self.scores.get(name, math.nan)


def row_key(setting: Setting, case: str, target: str, method: str, mispaired: bool = False) -> tuple[Hashable, ...]:
    """What identifies a row; predictions are kept under it, so it must stay the same for rows of older files."""
    key = (setting.protocol, setting.shots, case, target, method, mispaired)
    if setting.finished:
        return (*key, *setting[2:])
    return key if setting[2:4] == (1, "") else (*key, *setting[2:4])


def predictions_in(folder: Path) -> Callable[[Row], Prediction]:
    """What gives the prediction of a row in a folder of results."""
    return lambda row: Prediction.load(prediction_path(folder, row.key))


class ResultsFile:
    """``results.csv``, to which rows are added one by one, so that an interrupted run loses no finished task.

    Rows of an earlier run are read at the start; half a line at the end, left by a run that was killed, is dropped.
    Raises :class:`InputError` for a file with other columns, and where the file cannot be written.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        self.rows = read_results(self.path) if self.path.exists() else []
        with atomic_output(self.path, self.path.suffix) as temporary:
            with temporary.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([COLUMNS, *map(_fields, self.rows)])

    def add(self, row: Row) -> None:
        """Appends a row; it is on the disk when this returns."""
        try:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerow(_fields(row))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"Cannot write {self.path}: {error.strerror or error}.") from error
        self.rows.append(row)


def read_results(path: str | PathLike[str]) -> list[Row]:
    """The rows of a ``results.csv``; raises :class:`InputError` for a missing file, or other columns or values."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read the results {path}: {error}.") from error
    complete = text[: text.rfind("\n") + 1]
    lines = list(csv.reader(io.StringIO(complete)))
    if not lines:
        return []
    header = lines[0]
    if not set(COLUMNS) - NEW_COLUMNS.keys() <= set(header) <= set(COLUMNS) or len(set(header)) < len(header):
        raise InputError(f"{path} has other columns than {', '.join(COLUMNS)}; name another folder.")
    try:
        return [_row(NEW_COLUMNS | dict(zip(header, line, strict=True))) for line in lines[1:]]
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}; remove it, or name another folder.") from error


@dataclass(frozen=True)
class Mean:
    """Means of every measure over ``tasks`` tasks; ``undefined`` counts the tasks in which a metric has no value."""

    tasks: int
    values: dict[str, float]
    undefined: dict[str, int]


@dataclass(frozen=True)
class Summary:
    """Means of one method in one setting: over cases for each target, over targets for each group, over groups at
    last.

    ``targets`` is keyed by (group, target), ``groups`` by group.

    >>> def row(case, target, dice):
    ...     scores = {"dice": dice}
    ...     planes = (Plane(0, 3),)
    ...     return Row("same-volume", 1, "ct", case, target, "copy", scores, 0.1, 0, planes, case, target, 20.0)
    >>> rows = [row("ct/1", "liver", 0.5), row("ct/2", "liver", 0.7), row("ct/1", "aorta", 0.2)]
    >>> (summary,) = summarise(rows)
    >>> round(summary.targets["ct", "liver"].values["dice"], 3), round(summary.overall.values["dice"], 3)
    (0.6, 0.4)
    """

    setting: Setting
    method: str
    targets: dict[tuple[str, str], Mean]
    groups: dict[str, Mean]
    overall: Mean


def summarise(rows: Iterable[Row]) -> list[Summary]:
    """A summary for each setting and method, in the order in which they first occur.

    Neither a group of many cases nor one of many targets counts more (see :class:`Summary`). NaN is left out of its
    mean and counted; mispaired rows are left out.
    """
    runs: dict[tuple[Setting, str], list[Row]] = {}
    for row in rows:
        if not row.mispaired:
            runs.setdefault((row.setting, row.method), []).append(row)
    summaries = []
    for (setting, method), members in runs.items():
        by_target: dict[tuple[str, str], list[Row]] = {}
        for row in members:
            by_target.setdefault((row.group, row.target), []).append(row)
        targets = {target: _mean_of_rows(its) for target, its in by_target.items()}
        by_group: dict[str, list[Mean]] = {}
        for (group, _), its_mean in targets.items():
            by_group.setdefault(group, []).append(its_mean)
        groups = {group: _mean_of_means(its) for group, its in by_group.items()}
        summaries.append(Summary(setting, method, targets, groups, _mean_of_means(list(groups.values()))))
    return summaries


def write_summary(
    rows: Iterable[Row],
    path: Path,
    diagnostics: Mapping[tuple[Setting, str], Mapping[str, Any]] | None = None,
) -> None:
    """Writes the summaries of ``rows`` as JSON, whole or not at all; a mean of nothing is null.

    ``diagnostics``, by (setting, method), go with them.
    """
    content = [
        {
            **summary.setting._asdict(),
            "method": summary.method,
            **_plain(summary.overall),
            "diagnostics": dict((diagnostics or {}).get((summary.setting, summary.method), {})),
            "groups": {
                group: {
                    **_plain(its_mean),
                    "targets": {
                        name: _plain(its) for (its_own, name), its in summary.targets.items() if its_own == group
                    },
                }
                for group, its_mean in summary.groups.items()
            },
        }
        for summary in summarise(rows)
    ]
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_results(rows: Iterable[Row], path: Path, prediction: Callable[[Row], Prediction]) -> None:
    """Writes ``results.json``, whole or not at all: each row with its judged slices, a line each; NaN is null.

    ``prediction`` gives a row's prediction.
    """
    lines = []
    for row in rows:
        its = prediction(row)
        content = {**dict(zip(COLUMNS, _values(row), strict=True)), "painted": _painted(row)}
        content |= {name: None if math.isnan(content[name]) else content[name] for name in SCORES}
        names = ("slices", "found", "held", "both")
        lines.append(json.dumps(content | {name: getattr(its, name).tolist() for name in names}, ensure_ascii=False))
    write_text(path, "[\n" + ",\n".join(lines) + "\n]\n")


def mean(values: Iterable[float]) -> float:
    """The mean of all values but NaN; NaN if there are none."""
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan


def _mean_of_rows(rows: Sequence[Row]) -> Mean:
    values = {name: [row.measure(name) for row in rows] for name in MEASURES}
    undefined = {name: sum(name in row.scores and math.isnan(row.scores[name]) for row in rows) for name in METRICS}
    return Mean(len(rows), {name: mean(values[name]) for name in MEASURES}, undefined)


def _mean_of_means(means: Sequence[Mean]) -> Mean:
    values = {name: mean(its.values[name] for its in means) for name in MEASURES}
    undefined = {name: sum(its.undefined[name] for its in means) for name in METRICS}
    return Mean(sum(its.tasks for its in means), values, undefined)


def _plain(its: Mean) -> dict[str, Any]:
    values = {name: None if math.isnan(value) else round(value, 6) for name, value in its.values.items()}
    return {"tasks": its.tasks, **values, "undefined": its.undefined}


def _values(row: Row) -> list[Any]:
    """The columns of a row, figures rounded to six digits."""
    figures = {name: float(f"{row.measure(name):.6g}") for name in MEASURES} | {"ml": float(f"{row.ml:.6g}")}
    values = {**vars(row), **figures, "painted": " ".join(map(str, _painted(row)))}
    return [values[column] for column in COLUMNS]


def _painted(row: Row) -> list[int | str]:
    """The painted slices: numbers along the axis of the row, ``AXIS:NUMBER`` along others."""
    return [index if axis == row.axis else f"{axis}:{index}" for axis, index in row.planes]


def _fields(row: Row) -> list[str]:
    texts = dict(zip(COLUMNS, map(str, _values(row)), strict=True))
    return ["" if column in SCORES and column not in row.scores else text for column, text in texts.items()]


def _row(texts: Mapping[str, str]) -> Row:
    planes = [text.rpartition(":")[::2] for text in texts["painted"].split()]
    return Row(
        protocol=texts["protocol"],
        shots=int(texts["shots"]),
        group=texts["group"],
        case=texts["case"],
        target=texts["target"],
        method=texts["method"],
        scores={name: float(texts[name]) for name in SCORES if texts[name]},
        seconds=float(texts["seconds"]),
        axis=int(texts["axis"]),
        planes=tuple(Plane(int(axis or texts["axis"]), int(index)) for axis, index in planes),
        support_case=texts["support_case"],
        shown=texts["shown"],
        ml=float(texts["ml"]),
        directions=int(texts["directions"]),
        painting=texts["painting"],
        finished=int(texts["finished"]),
        examples_from=texts["examples_from"],
    )
