"""The run: every method on every task of some cases, kept as it goes, so that it can be taken up again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from os import PathLike
from pathlib import Path

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.evaluation.baselines import Method
from SDFSMISLib.evaluation.cases import Case, Manifest
from SDFSMISLib.evaluation.metrics import score
from SDFSMISLib.evaluation.protocols import PROTOCOLS, Task, load_case
from SDFSMISLib.evaluation.results import ResultsFile, Row, write_summary

__all__ = ["evaluate"]

CASES_IN_MEMORY = 3  # this one, its support, and the one between them that lacks the target

Progress = Callable[[int, int, str], None]
"""(tasks done, tasks at most, what is next); a task that is skipped counts as done."""


def evaluate(
    manifest: Manifest,
    protocol: str,
    methods: Mapping[str, Method],
    cases: Sequence[Case] | None = None,
    shots: int = 1,
    output: str | PathLike[str] | None = None,
    progress: Progress | None = None,
) -> list[Row]:
    """Runs ``methods`` (by the name they have in the table) on the tasks that ``protocol`` makes of ``cases``.

    ``cases`` None takes all of the manifest; a support from another case may come from any case of its group, as the
    protocol says. With ``output``, a folder, rows go into its ``results.csv`` one by one and the means of all of them
    into ``summary.json``; what is there already is not done again, so a method must be renamed when it changes.
    Returns the rows of this protocol, these shots, cases and methods. Raises :class:`InputError` for an unknown
    protocol, fewer shots than 1 and bad files; ValueError for a method's mask that is not bool on the query's grid.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"There is no protocol {protocol!r}; there are {', '.join(PROTOCOLS)}.")
    if shots < 1:
        raise InputError(f"{shots} shots were asked for; at least 1 painted slice is needed.")
    chosen = manifest.cases if cases is None else tuple(cases)
    load = lru_cache(maxsize=CASES_IN_MEMORY)(load_case)
    kept = ResultsFile(Path(output) / "results.csv") if output is not None else None
    known = {row.key: row for row in kept.rows} if kept else {}
    rows: list[Row] = []
    total = sum(len(case.targets) for case in chosen) * len(methods)
    done = 0
    for case in chosen:
        for target in case.targets:
            missing = {name for name in methods if (protocol, shots, case.id, target, name) not in known}
            task = PROTOCOLS[protocol](case, target, manifest.following(case), load, shots) if missing else None
            for name, method in methods.items():
                if progress:
                    progress(done, total, f"{case.id}, {target}, {name}")
                done += 1
                if name not in missing:
                    rows.append(known[protocol, shots, case.id, target, name])
                elif task is not None:
                    rows.append(_row(task, name, method, protocol, shots))
                    if kept:
                        kept.add(rows[-1])
    if progress:
        progress(total, total, "")
    if kept:
        write_summary(kept.rows, kept.path.with_name("summary.json"))
    return rows


def _row(task: Task, name: str, method: Method, protocol: str, shots: int) -> Row:
    start = time.perf_counter()
    mask = method(task)
    seconds = time.perf_counter() - start
    if mask.shape != task.reference.shape or mask.dtype != np.bool_:
        raise ValueError(f"{name} gave {mask.dtype} {mask.shape}; a bool mask of {task.reference.shape} is needed.")
    x, y, z = task.query.geometry.spacing
    return Row(
        protocol=protocol,
        shots=shots,
        group=task.case.group,
        case=task.case.id,
        target=task.target,
        method=name,
        scores=score(mask, task.reference, (z, y, x), task.axis, task.judged),
        seconds=seconds,
        axis=task.axis,
        painted=task.painted,
        support_case=task.support_case.id,
    )
