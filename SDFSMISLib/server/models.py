"""Models that clients have learned, and those that are being learned: folders on disk, each only for its owner.

A model's folder has `request.json`, what it was asked for by; `pipeline`, the weights, and while it is learned all that
going on needs; and `learned.json`, which makes it a finished one.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
import uuid
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from SDFSMISLib.atomic import atomic_output
from SDFSMISLib.server.failures import Refused
from SDFSMISLib.server.owners import owner_folder, owner_of

__all__ = ["LearnedModel", "LearnedModels", "Lesson", "Outcome", "model_missing"]

REQUEST, LEARNED, PIPELINE = "request.json", "learned.json", "pipeline"
OURS = re.compile("[0-9a-f]{32}")  # names of folders of models
UNREADABLE = (OSError, ValueError, TypeError, KeyError)


@dataclass(frozen=True)
class Lesson:
    """What a model is asked for by; the same again is the same model.

    Attributes:
        name: of the new model.
        scans: content hashes, sorted.
        minutes: that it may take.
        weights: digest of the weights that it begins with.
    """

    name: str
    scans: tuple[str, ...]
    minutes: float
    weights: str


@dataclass(frozen=True)
class Outcome:
    """What came of it; `improved`, `before` and `after` as `Adapted` has them.

    Attributes:
        weights_sha256: digest of the new weights. resolution: side of the square on which they see, pixels.
        seconds: that it took. scans: that were learned from. skipped: why others were not.
    """

    weights_sha256: str
    resolution: int
    improved: bool
    before: float
    after: float
    steps: int
    seconds: float
    scans: int
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class LearnedModel:
    """One model, at the moment it was looked at. `outcome` is None while it is not finished."""

    folder: Path
    lesson: Lesson
    outcome: Outcome | None

    @property
    def pipeline(self) -> Path:
        """The folder of its weights."""
        return self.folder / PIPELINE

    @classmethod
    def read(cls, folder: Path) -> LearnedModel:
        """The model of a folder. Raises `OSError`, `ValueError`, `TypeError` or `KeyError` where it holds none."""
        asked = _read(folder / REQUEST)
        lesson = Lesson(**asked | {"scans": tuple(asked["scans"])})
        if not (folder / LEARNED).exists():
            return cls(folder, lesson, None)
        came = _read(folder / LEARNED)
        return cls(folder, lesson, Outcome(**came | {"skipped": tuple(came["skipped"])}))

    @classmethod
    def made(cls, folder: Path, lesson: Lesson) -> LearnedModel:
        """A new one, of which nothing is learned yet, in a folder that is made for it."""
        folder.mkdir(parents=True)
        _write(folder / REQUEST, asdict(lesson))
        return cls(folder, lesson, None)

    def finish(self, outcome: Outcome) -> None:
        """Make it a finished one; its weights are in place."""
        _write(self.folder / LEARNED, asdict(outcome))


class LearnedModels:
    """The models of all owners, by owner and name. All may be called from several threads.

    Args:
        folder: of them alone.
        most: finished models of one owner.
        most_seconds: that one which is not finished stays without being learned.
    """

    def __init__(self, folder: Path, most: int, most_seconds: float) -> None:
        self._folder = folder
        self._most = most
        self._most_seconds = most_seconds
        self._learning: LearnedModel | None = None
        self._lock = threading.RLock()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._kept = self._found()
        self.expire()

    def finished(self, owner: str) -> list[LearnedModel]:
        """Those of an owner that can be used, by name."""
        with self._lock:
            models = [model for (whose, _), model in self._kept.items() if whose == owner and model.outcome]
        return sorted(models, key=lambda model: model.lesson.name)

    def owned_by_others(self, owners: Collection[str]) -> int:
        """How many models belong to none of these owners."""
        with self._lock:
            return sum(whose not in owners for whose, _ in self._kept)

    def of(self, owner: str, name: str) -> LearnedModel:
        """A finished one.

        Raises:
            Refused: where there is none.
        """
        with self._lock:
            model = self._kept.get((owner, name))
        if model is None or model.outcome is None:
            raise model_missing(name)
        return model

    def taken(self, owner: str, lesson: Lesson) -> LearnedModel | None:
        """The finished model that a lesson has led to, or None where it is still to be learned.

        Raises:
            Refused: where another lesson has led to a model of this name, or the owner has too many.
        """
        with self._lock:
            self._look_again((owner, lesson.name))
            model = self._kept.get((owner, lesson.name))
            others = sum(other.lesson.name != lesson.name for other in self.finished(owner))
        if model is not None and model.outcome is not None:
            if model.lesson == lesson:
                return model
            raise Refused(
                409,
                "name_taken",
                f"There is a model {lesson.name} already, learned from other scans, in another time, or from other "
                "weights; choose another name, or forget that model first.",
            )
        if others >= self._most:
            raise Refused(409, "too_many_models", f"You have {others} models here, as many as may be; forget one.")
        return None

    def begin(self, owner: str, lesson: Lesson) -> LearnedModel:
        """The model to learn now, which nobody can forget before `end`: as it was left off, or a new one, in place of
        another unfinished one of its name."""
        with self._lock:
            model = self._kept.get((owner, lesson.name))
            if model is None or model.lesson != lesson:
                if model is not None:
                    self._remove((owner, lesson.name))
                folder = owner_folder(self._folder, owner) / uuid.uuid4().hex
                model = LearnedModel.made(folder, lesson)
                self._kept[owner, lesson.name] = model
            self._learning = model
            return model

    def end(self, owner: str, keep: bool) -> LearnedModel:
        """What became of the model that was learned. One that is not finished goes, unless it is to be kept, so that it
        can go on."""
        with self._lock:
            model = self._learning
            assert model is not None, "nothing is learned"
            self._learning = None
            model = replace(model, outcome=LearnedModel.read(model.folder).outcome)
            self._kept[owner, model.lesson.name] = model
            if model.outcome is None and not keep:
                self._remove((owner, model.lesson.name))
            return model

    def leave(self) -> None:
        """What was to be learned did not begin."""
        with self._lock:
            self._learning = None

    def forget(self, owner: str, name: str) -> LearnedModel:
        """Delete a model, finished or not; the one that was.

        Raises:
            Refused: where there is none, or it is being learned.
        """
        with self._lock:
            model = self._kept.get((owner, name))
            if model is None:
                raise model_missing(name)
            if model is self._learning:
                raise Refused(409, "model_in_use", f"The model {name} is being learned; cancel that first.")
            self._remove((owner, name))
            return model

    def expire(self) -> None:
        """Forget what was left unfinished for too long; it holds parts of scans."""
        oldest = time.time() - self._most_seconds
        with self._lock:
            for key, model in list(self._kept.items()):
                if model.outcome is None and model is not self._learning and _touched(model.folder) < oldest:
                    self._remove(key)

    def _look_again(self, key: tuple[str, str]) -> None:
        """A process of a backend that was killed may have finished a model since."""
        model = self._kept.get(key)
        if model is not None and model.outcome is None and model is not self._learning:
            with suppress(*UNREADABLE):
                self._kept[key] = LearnedModel.read(model.folder)

    def _remove(self, key: tuple[str, str]) -> None:
        _delete(self._kept.pop(key).folder)

    def _found(self) -> dict[tuple[str, str], LearnedModel]:
        """What an earlier process has left; of that, what is no model is deleted. What others have put there stays."""
        found = {}
        for folder in self._folder.glob("*/*"):
            if not OURS.fullmatch(folder.name) or not folder.is_dir():
                continue
            try:
                model = LearnedModel.read(folder)
            except UNREADABLE:
                _delete(folder)
            else:
                found[owner_of(folder.parent), model.lesson.name] = model
        return found


def model_missing(name: str) -> Refused:
    """What to answer where an owner has no model of a name."""
    return Refused(404, "model_missing", f"There is no model {name} here; /capabilities names those that there are.")


def _touched(folder: Path) -> float:
    """When something of an unfinished model was last written; now, where that cannot be told."""
    times = [0.0]
    try:
        for path in (folder, *folder.glob("*"), *folder.glob("*/*/*.json")):
            with suppress(FileNotFoundError):  # gone meanwhile
                times.append(path.stat().st_mtime)
    except OSError:
        return time.time()
    return max(times)


def _delete(folder: Path) -> None:
    with suppress(OSError):  # first: what cannot be deleted now is no model later
        (folder / REQUEST).unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _write(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_output(path, ".json") as part:
        part.write_text(json.dumps(content, indent=1), encoding="utf-8")
