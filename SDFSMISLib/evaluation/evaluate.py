"""The run: every method on every task of some cases, kept as it goes, so that it can be taken up again."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache, lru_cache, partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from SDFSMISLib.cohort.cases import Case, Manifest, Split, load_case, read_manifest
from SDFSMISLib.evaluation.baselines import Method, SegmenterMethod, check_directions, run_method, uses_prior
from SDFSMISLib.evaluation.diagnostics import diagnose
from SDFSMISLib.evaluation.finished import FinishedScans
from SDFSMISLib.evaluation.metrics import METRICS, check_metrics, dice, score
from SDFSMISLib.evaluation.protocols import PROTOCOLS, Setting, Task, check_protocol, same_volume
from SDFSMISLib.evaluation.results import (
    Prediction,
    ResultsFile,
    Row,
    prediction_path,
    predictions_in,
    row_key,
    summarise,
    write_results,
    write_summary,
)

if TYPE_CHECKING:
    from SDFSMISLib.model.pipeline import SDFSMISPipeline

__all__ = ["evaluate", "held_out_dice", "keep", "scored", "write_means"]

CASES_IN_MEMORY = 3  # this one, its support, and the one between them that lacks the target

Progress = Callable[[int, int, str], None]
"""(tasks done, tasks at most, name of the next); a task that is skipped counts as done."""


def evaluate(
    manifest: Manifest,
    protocol: str,
    methods: Mapping[str, Method],
    cases: Sequence[Case] | None = None,
    shots: int = 1,
    output: str | PathLike[str] | None = None,
    progress: Progress | None = None,
    metrics: Sequence[str] = tuple(METRICS),
    mispaired: Collection[str] = (),
    directions: int = 1,
    finished: int = 0,
    examples_from: Split | None = None,
) -> list[Row]:
    """Runs ``methods`` (by the name they have in the table) on the tasks that ``protocol`` makes of ``cases``.

    ``cases`` None takes all of the manifest; a support from another case may come from any case of its group, as the
    protocol says. With several ``directions`` one slice is painted along each. Of ``metrics`` those beside ``dice``
    need MONAI. The methods named in ``mispaired`` also do each task with a support that shows another structure, which
    tells whether they look at it at all.

    With ``finished`` > 0 a task also gets so many other cases of its group as examples, those of the split
    ``examples_from`` (None = any) that come next and show the target, in ``cross-volume`` in place of painted slices;
    a target that fewer cases show makes no task (see :mod:`.finished`).

    With ``output``, a folder, rows go into its ``results.csv`` one by one and what was found into ``predictions``; at
    the end all slices into ``results.json`` and the means of all rows, with diagnostics, into ``summary.json``. What is
    there already is not done again, so a method must be renamed when it changes. Returns the rows of this protocol,
    these shots, cases and methods. Raises :class:`InputError` for an unknown protocol or metric, shots and directions
    that the protocol does not take, methods that know one direction only, a package that is missing, and bad files;
    ValueError for a method's mask that is not bool on the query's grid.
    """
    check_protocol(protocol, shots, directions, finished)
    check_metrics(metrics)
    if directions > 1:
        check_directions(methods)
    if finished and protocol == "cross-volume":
        shots = 0
    setting = Setting(protocol, shots, directions, "", finished, (examples_from or "") if finished else "")
    make_task = PROTOCOLS[protocol] if directions == 1 else partial(same_volume, directions=directions)
    chosen = manifest.cases if cases is None else tuple(cases)
    load = lru_cache(maxsize=CASES_IN_MEMORY)(load_case)
    scans = FinishedScans(manifest, finished, examples_from, load) if finished else None
    kept = ResultsFile(Path(output) / "results.csv") if output is not None else None
    known = {row.key: row for row in kept.rows} if kept else {}
    jobs = [*((name, False) for name in methods), *((name, True) for name in methods if name in mispaired)]
    rows: list[Row] = []
    pairs = [(case, target) for case in chosen for target in case.targets]
    total = len(pairs) * len(jobs)
    done = 0
    for case, target in pairs:
        task: Callable[[bool], Task | None] = (
            cache(partial(scans.task, case, target, protocol, shots, directions))
            if scans
            else cache(partial(make_task, case, target, manifest.following(case), load, shots))
        )
        for name, mispaired_now in jobs:
            if progress:
                progress(done, total, f"{case.id}, {target}, {name}")
            done += 1
            row = known.get(row_key(setting, case.id, target, name, mispaired_now))
            if row is None and (todo := task(mispaired_now)) is not None:
                row = _row(todo, name, methods[name], setting, metrics, kept)
            if row is not None:
                rows.append(row)
    if progress:
        progress(total, total, "")
    if kept:
        write_means(kept)
    return rows


def held_out_dice(pipeline: SDFSMISPipeline, manifest: Path, cases: Sequence[str]) -> dict[str, float]:
    """Mean Dice by group of the ``cases`` (ids) of a manifest, each segmented by one painted slice of its own."""
    from SDFSMISLib.inference.segmenter import Segmenter

    content = read_manifest(manifest)
    chosen = [case for case in content.cases if case.id in cases]
    rows = evaluate(
        content, "same-volume", {"held out": SegmenterMethod(Segmenter(pipeline))}, chosen, metrics=("dice",)
    )
    return {group: mean.values["dice"] for its in summarise(rows) for group, mean in its.groups.items()}


def _row(
    task: Task,
    name: str,
    method: Method,
    setting: Setting,
    metrics: Sequence[str],
    kept: ResultsFile | None,
) -> Row | None:
    """Does a task, saves its prediction and its row; None if the method does not apply."""
    shared = task.prior.seconds if task.prior is not None and uses_prior(method) else 0.0  # makes it, if need be
    start = time.perf_counter()
    mask = run_method(method, task)
    seconds = shared + time.perf_counter() - start
    if mask is None:
        return None
    row = scored(task, mask, setting, name, seconds, metrics)
    if kept:
        keep(kept, row, Prediction.of(task, mask), mask)
    return row


def scored(task: Task, mask: np.ndarray, setting: Setting, method: str, seconds: float, metrics: Sequence[str]) -> Row:
    """The row of a mask, bool on the query's grid, that a method gave for a task."""
    x, y, z = task.query.geometry.spacing
    scores = score(mask, task.reference, (z, y, x), task.counted(), metrics)
    if task.planes:
        scores["dice_whole"] = dice(task.as_painted(mask), task.reference)
    return Row(
        protocol=setting.protocol,
        shots=setting.shots,
        group=task.case.group,
        case=task.case.id,
        target=task.target,
        method=method,
        scores=scores,
        seconds=seconds,
        axis=task.axis,
        planes=task.planes,
        support_case=" ".join(case.id for case in task.examples) or task.support_case.id,
        shown=task.shown,
        ml=int(np.count_nonzero(task.reference)) * x * y * z / 1000,
        directions=setting.directions,
        painting=setting.painting,
        finished=setting.finished,
        examples_from=setting.examples_from,
    )


def keep(kept: ResultsFile, row: Row, prediction: Prediction, mask: np.ndarray) -> None:
    """Writes a prediction, and then its row: a row is never without."""
    prediction.save(prediction_path(kept.path.parent, row.key), mask)
    kept.add(row)


def write_means(kept: ResultsFile) -> None:
    """Writes ``results.json`` and ``summary.json`` of all rows beside ``results.csv``."""
    folder = kept.path.parent
    prediction = predictions_in(folder)
    write_results(kept.rows, folder / "results.json", prediction)
    diagnostics = {run: its.plain() for run, its in diagnose(kept.rows, prediction).items()}
    write_summary(kept.rows, folder / "summary.json", diagnostics)
