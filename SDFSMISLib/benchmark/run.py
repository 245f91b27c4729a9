"""A benchmark run: every fold is trained by a given trainer, then tested; a stopped run goes on.

A run's folder holds ``training`` (a folder for each training), ``training-set`` (files that trainings use beside the
scans themselves) and ``results`` (a JSON file for each fold, training and number of shots).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from SDFSMISLib import __version__
from SDFSMISLib.benchmark.data_sets import DataSet, Exclusion, Fold, Training, fold_of, trainings, write_training_set
from SDFSMISLib.benchmark.scores import FoldResult, Score
from SDFSMISLib.benchmark.tasks import Protocol, Window, fold_task, protocol_method, query_cases
from SDFSMISLib.cohort.cases import Case, LabelledScan, load_case
from SDFSMISLib.errors import InputError
from SDFSMISLib.evaluation.baselines import Method, run_method
from SDFSMISLib.evaluation.results import Prediction

if TYPE_CHECKING:
    from SDFSMISLib.inference import Segmenter


__all__ = ["Model", "Plan", "Progress", "Trainer", "TrainingJob", "measure_folds", "train_folds"]

CASES_IN_MEMORY = 3  # the query, its support, and the support's own

Progress = Callable[[int, int, str], None]
"""(done, in all, what comes next)"""


@dataclass(frozen=True)
class Plan:
    """What is trained on which scans, and tested on which.

    Attributes:
        data, cases: the tested data set, and its scans in their order.
        output: folder of the run.
        setting: 1, or 2: training uses no slice that shows a tested organ. exclusion: in Setting II, see `Training`.
        protocol: `field`, or `official`: the official code's training targets, supports, masks and folds.
        folds: their numbers, 0 to 4.
        shots: painted slices per chunk; several numbers make several tests.
        train_on: another data set with the same organs, all of whose scans are trained on (cross-domain); None: the
            scans of the other folds.
        shared: folder of files that trainings, also those of several runs, share; None: one in ``output``.

    Raises :class:`InputError` for a setting, protocol and data sets that do not go together.

    >>> from SDFSMISLib.benchmark.data_sets import DATA_SETS
    >>> plan = Plan(DATA_SETS["chaos_t2"], (), Path("run"), setting=2)
    >>> [(training.name, training.hidden) for training in plan.trainings]
    [('upper', ('liver', 'spleen')), ('lower', ('right kidney', 'left kidney'))]
    """

    data: DataSet
    cases: tuple[Case, ...]
    output: Path
    setting: int = 1
    exclusion: Exclusion = "any"
    protocol: Protocol = "field"
    folds: tuple[int, ...] = (0, 1, 2, 3, 4)
    shots: tuple[int, ...] = (1,)
    train_on: tuple[DataSet, tuple[Case, ...]] | None = None
    shared: Path | None = None

    def __post_init__(self) -> None:
        source = self.train_on[0] if self.train_on else self.data
        if self.setting not in (1, 2):
            raise InputError(f"Setting {self.setting} was asked for; the benchmark has Settings 1 and 2.")
        if self.setting == 2 and not source.excluded_together:
            raise InputError(
                f"{source.name} has no Setting II, since its structures lie on the same slices; ask for Setting 1."
            )
        if self.setting == 2 and self.protocol == "official":
            raise InputError(
                "The official code's Setting II leaves out next to nothing, as it compares supervoxels with organs; "
                "ask for Setting 1 with the official protocol, or for the protocol field."
            )
        if self.train_on and self.train_on[0].organs != self.data.organs:
            raise InputError(f"{source.name} and {self.data.name} have not the same organs; train on another data set.")

    @property
    def trainings(self) -> tuple[Training, ...]:
        """The trainings of each fold."""
        source = self.train_on[0] if self.train_on else self.data
        return trainings(source, self.setting, self.exclusion, self.protocol == "official")

    def job(self, number: int, training: Training) -> TrainingJob:
        """A training of a fold; across data sets one and the same for all folds."""
        fold = fold_of(self.cases, number)
        seen = tuple(case for case in self.cases if case.id not in {held.id for held in fold.cases})
        data, cases = self.train_on or (self.data, seen)
        name = f"{'all-of-' + data.name if self.train_on else f'fold{number}'}-{training.name}"
        shared = self.shared or self.output / "training-set"
        return TrainingJob(data, cases, training, self.output / "training" / name, shared / data.name)


@dataclass(frozen=True)
class TrainingJob:
    """A training to do: on these ``cases`` and no others, in the folder ``output``; ``shared`` holds files of all
    trainings.
    """

    data: DataSet
    cases: tuple[Case, ...]
    training: Training
    output: Path
    shared: Path

    def manifest(self, progress: Progress | None = None) -> Path:
        """Writes what the training may see (see `write_training_set`) and returns the manifest's path."""
        return write_training_set(self.cases, self.training, self.shared, self.output / "cases.json", progress)


Trainer = Callable[[TrainingJob], Path]
"""Trains, or goes on where it was stopped, or does nothing where all is done; the folder of the finished pipeline."""


@dataclass(frozen=True)
class Model:
    """The weights that are tested.

    Attributes:
        name: in tables. start: weights as they are, or those that the trainings begin with. about: what else
            distinguishes these results from others, such as the configuration.
        window: see `protocol_method`.
        load: from a name or a folder to a segmenter.
    """

    name: str
    start: str
    window: Window
    load: Callable[[str], Segmenter]
    about: Mapping[str, Any] = field(default_factory=dict)


def train_folds(plan: Plan, trainer: Trainer) -> dict[tuple[int, str], Path]:
    """Does all trainings; the pipeline folders by fold and name of the training. Each is done once."""
    done: dict[Path, Path] = {}
    folders: dict[tuple[int, str], Path] = {}
    for number, training in _runs(plan):
        job = plan.job(number, training)
        if job.output not in done:
            done[job.output] = trainer(job)
        folders[number, training.name] = done[job.output]
    return folders


def measure_folds(
    plan: Plan,
    model: Model,
    folders: Mapping[tuple[int, str], Path] | None = None,
    progress: Progress | None = None,
) -> list[FoldResult]:
    """Tests every fold, with the weights in ``folders`` (see `train_folds`) or, None, with the model's as they are.

    Tests that were made before are not made again. Raises :class:`InputError` where the output folder holds results of
    other weights or another plan.
    """
    load = lru_cache(maxsize=CASES_IN_MEMORY)(load_case)
    loaded = lru_cache(maxsize=1)(model.load)
    results = []
    tests = len(plan.folds) * len(plan.shots) * len(plan.data.organs) * (len(plan.cases) // 5 + 1)
    done = 0
    for number, training in _runs(plan):
        segmenter = loaded(str(folders[number, training.name]) if folders else model.start)
        method = protocol_method(segmenter, plan.protocol, model.window)
        fold = fold_of(plan.cases, number)
        for shots in plan.shots:
            result = _opened(plan, model, number, training, shots, segmenter, folders is not None)
            for case, organ in _tests(plan, fold, training):
                if progress:
                    progress(done, tests, f"fold {number}, {case.id}, {organ}, shots: {shots}")
                done += 1
                if not result.has_score(case.id, organ):
                    score = _score(plan, model, fold, case, organ, load, shots, method)
                    if score is not None:
                        result.add(score)
            results.append(result)
    return results


def _runs(plan: Plan) -> Iterator[tuple[int, Training]]:
    """Folds and their trainings."""
    for number in plan.folds:
        for training in plan.trainings:
            yield number, training


def _tests(plan: Plan, fold: Fold, training: Training) -> Iterator[tuple[Case, str]]:
    for case in query_cases(fold, plan.protocol):
        for organ in training.organs:
            yield case, organ


def _opened(
    plan: Plan, model: Model, number: int, training: Training, shots: int, segmenter: Segmenter, trained: bool
) -> FoldResult:
    source = plan.train_on[0] if plan.train_on else plan.data
    about = {
        "data": plan.data.name,
        "trained_on": source.name if trained else "none",
        "setting": plan.setting,
        "exclusion": plan.exclusion if plan.setting == 2 else "none",
        "protocol": plan.protocol,
        "fold": number,
        "training": training.name,
        "shots": shots,
        "model": model.name,
        "start": model.start,
        **model.about,
        "weights": segmenter.weights,
        "device": segmenter.device,
        "version": __version__,
    }
    return FoldResult.resumed(plan.output / "results" / f"fold{number}-{training.name}-shots{shots}.json", about)


def _score(
    plan: Plan,
    model: Model,
    fold: Fold,
    case: Case,
    organ: str,
    load: Callable[[Case], LabelledScan],
    shots: int,
    method: Method,
) -> Score | None:
    """Does a test; None if query or support lacks the organ."""
    window: Window = "minmax" if plan.protocol == "official" else model.window
    task = fold_task(fold, case, organ, load, shots, plan.protocol, window)
    if task is None:
        return None
    start = time.perf_counter()
    mask = run_method(method, task)
    seconds = time.perf_counter() - start
    assert mask is not None, "a model applies to every test"
    counts = Prediction.of(task, mask)
    return Score(
        case=case.id,
        organ=organ,
        support=task.support_case.id,
        slices=len(task.judged),
        found=int(counts.found.sum()),
        held=int(counts.held.sum()),
        both=int(counts.both.sum()),
        own=case.id in fold.own,
        query=case.id != fold.support.id,
        seconds=round(seconds, 3),
    )
