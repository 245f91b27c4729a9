"""Results of a benchmark run: a JSON file for each fold and number of shots, and means over them.

Three means. ``own``: every scan of the data set once. ``queries``: the papers' tests, in which a scan that two folds
share counts twice and the folds' support scans are not tested. ``pooled``: the same tests with all scans of a fold as
one set of voxels, as the official code counts. Each is taken over scans (not ``pooled``), then over folds for each
organ, then over organs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from SDFSMISLib.errors import InputError
from SDFSMISLib.evaluation.metrics import dice_of_counts
from SDFSMISLib.evaluation.results import mean
from SDFSMISLib.images.files import write_text

__all__ = ["KINDS", "FoldResult", "Kind", "Score", "organ_means", "read_fold_results"]

Kind = Literal["own", "queries", "pooled"]
KINDS: tuple[Kind, ...] = ("own", "queries", "pooled")


@dataclass(frozen=True)
class Score:
    """One organ of one scan: voxels ``found``, ``held`` by the reference and in ``both``, on the tested slices.

    ``own``: the test belongs to this fold alone; ``query``: papers make it too. ``seconds`` are wall-clock.
    """

    case: str
    organ: str
    support: str
    slices: int
    found: int
    held: int
    both: int
    own: bool
    query: bool
    seconds: float

    @property
    def dice(self) -> float:
        """Dice, 0 to 1."""
        return dice_of_counts(self.both, self.found, self.held)


@dataclass
class FoldResult:
    """The scores of one fold, in a file.

    ``about`` is what must be the same for the scores to belong together: data set, setting, protocol, weights ...
    """

    path: Path
    about: dict[str, Any]
    scores: list[Score] = field(default_factory=list)

    @classmethod
    def resumed(cls, path: Path, about: dict[str, Any]) -> FoldResult:
        """The file's scores, or none if there is no file yet.

        Raises :class:`InputError` if the file is damaged or of another run.
        """
        if not path.exists():
            return cls(path, about)
        kept = read_fold_result(path)
        different = [name for name, value in about.items() if kept.about.get(name) != value]
        if different:
            name = different[0]
            raise InputError(
                f"{path} holds results with {name} {kept.about.get(name)!r}, and {about[name]!r} was asked for; name "
                "another output folder, or remove that file."
            )
        return kept

    def has_score(self, case: str, organ: str) -> bool:
        """Whether this test was made."""
        return any(score.case == case and score.organ == organ for score in self.scores)

    def add(self, score: Score) -> None:
        """Adds a score; the file holds it when this returns."""
        self.scores.append(score)
        self.save()

    def save(self) -> None:
        """Writes the file, whole or not at all, with its own means beside the scores."""
        means = {kind: organ_means([self], kind) for kind in KINDS}
        rows = [{**asdict(score), "dice": round(score.dice, 6)} for score in self.scores]
        content = {"about": self.about, "dice": means, "scores": rows}
        write_text(self.path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_fold_result(path: Path) -> FoldResult:
    """One fold's file; raises :class:`InputError` where it is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = [{name: value for name, value in row.items() if name != "dice"} for row in content["scores"]]
        return FoldResult(path, dict(content["about"]), [Score(**row) for row in rows])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"Cannot read the benchmark results {path} ({error}); remove the file to make them again."
        ) from error


def read_fold_results(folder: Path) -> list[FoldResult]:
    """All that a run's folder holds, by shots and fold.

    Raises :class:`InputError` where it holds none.
    """
    paths = sorted((folder / "results").glob("*.json"))
    if not paths:
        raise InputError(
            f"The folder {folder} has no benchmark results; make some with: sdfsmis benchmark run --output {folder}"
        )
    results = [read_fold_result(path) for path in paths]
    return sorted(results, key=lambda result: (result.about["shots"], result.about["fold"]))


def organ_means(results: Iterable[FoldResult], kind: Kind) -> dict[str, float]:
    """Mean Dice (0 to 1) of each organ over the folds, and of them all as ``"mean"``; empty where nothing counts."""
    by_organ: dict[str, list[float]] = {}
    for result in results:
        for organ, value in _of_fold(result.scores, kind).items():
            by_organ.setdefault(organ, []).append(value)
    means = {organ: mean(values) for organ, values in by_organ.items()}
    return means | {"mean": mean(means.values())} if means else {}


def _of_fold(scores: Sequence[Score], kind: Kind) -> Mapping[str, float]:
    """One fold's Dice of each organ."""
    counted: dict[str, list[Score]] = {}
    for score in scores:
        if score.own if kind == "own" else score.query:
            counted.setdefault(score.organ, []).append(score)
    if kind == "pooled":
        return {
            organ: dice_of_counts(*(sum(getattr(its, name) for its in rows) for name in ("both", "found", "held")))
            for organ, rows in counted.items()
        }
    return {organ: mean(its.dice for its in rows) for organ, rows in counted.items()}
