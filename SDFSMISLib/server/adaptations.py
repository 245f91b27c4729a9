"""Learning from scans, as the backend offers it: scans that wait, models that were learned, and the one that learns."""

from __future__ import annotations

import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from SDFSMISLib.errors import InputError
from SDFSMISLib.server.failures import Refused
from SDFSMISLib.server.learning import Ending, Learning
from SDFSMISLib.server.learning_child import ChildRequest
from SDFSMISLib.server.learning_folder import opened
from SDFSMISLib.server.limits import Limits
from SDFSMISLib.server.logs import LOGGER, event
from SDFSMISLib.server.models import LearnedModel, LearnedModels, Lesson
from SDFSMISLib.server.scans import ScanStore

__all__ = ["Adaptations", "Pupil"]

NEEDED = ("accelerate", "numba")
RETRY_SECONDS = 10  # after which to ask again whether the running one has ended
STOP_SECONDS = 3.0  # that learning has to end in when the backend does; what it loses is done again

Listener = Callable[[dict[str, Any]], None]


class Adaptations:
    """What belongs to learning, in one folder, which is this process's alone.

    Locks are taken in the order: this one's, then that of models or of scans.

    Args:
        folder: made where it is missing.

    Attributes:
        scans, models: what is kept in it.
        on_end: told how each adaptation has ended.

    Raises:
        InputError: where the folder cannot be used, holds other things, another backend has it, or a package is
            missing.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        lacking = [module for module in NEEDED if find_spec(module) is None]
        if lacking:
            raise InputError(
                f'Learning needs {lacking[0]}, which is not installed: pip install "sdfsmis[serve,train]".'
            )
        self._file = opened(folder)
        folder = folder.absolute()  # what goes on after a restart knows its scans by their place
        try:
            self.scans = ScanStore(folder / "scans", limits.kept_scan_bytes, limits.store_seconds)
            self.models = LearnedModels(folder / "models", limits.models, limits.store_seconds)
        except OSError as error:
            self._file.close()
            raise InputError(f"What is in {folder} cannot be used ({error}); name another folder.") from error
        self.on_end: Callable[[Ending], None] = lambda _: None
        self._running: Pupil | None = None
        self._is_stopping = False
        self._lock = threading.RLock()

    @property
    def is_running(self) -> bool:
        """Whether weights learn now."""
        return self._running is not None

    def begin(self, owner: str, lesson: Lesson, model: str, device: str) -> Pupil | LearnedModel:
        """Let weights learn from now on, or go on with what just this has begun; or the finished model, where just this
        was learned before.

        Args:
            model: weights to begin with, as in `load_pipeline`. device: for learning.

        Raises:
            Refused: where the name is taken, there are too many models, scans are missing, another one is running, or
                the backend is stopping.
        """
        with self._lock:
            finished = self._finished(owner, lesson)
            if finished is not None:
                return finished
            if self._running is not None and self._running.is_of(owner, lesson):
                return self._running  # its client lost the connection, which is not noticed here yet
            self._check_scans(owner, lesson)
            self._check_free()
            self.scans.hold(owner, lesson.scans)
            try:
                started = self.models.begin(owner, lesson)
                paths = tuple(str(self.scans.path(owner, content)) for content in lesson.scans)
                request = ChildRequest(str(started.folder), paths, model, device)
                self._running = Pupil(owner, started, request, self._ended)
            except Exception as error:  # of the disk, the process or its threads
                LOGGER.exception("learning cannot begin")
                self.models.leave()
                self.scans.release()
                raise Refused(500, "failed", "The backend cannot begin to learn; its log tells why.") from error
            return self._running

    def forget(self, owner: str, name: str) -> LearnedModel:
        """Delete a model, and scans that wait for it where it is not finished; see `LearnedModels.forget`."""
        with self._lock:
            model = self.models.forget(owner, name)
            if model.outcome is None:
                self.scans.delete(owner, model.lesson.scans)
        return model

    def stop(self) -> None:
        """Let nothing begin any more, and cancel what is running. Does not wait; may be called by a signal."""
        with self._lock:
            self._is_stopping = True
            if self._running is not None:
                self._running.stop()

    def close(self) -> None:
        """`stop`, and wait; no scan stays as it was sent. What was begun can go on in another process: until it is
        finished or expires it keeps what it has made of its scans."""
        self.stop()
        running = self._running
        if running is not None:
            running.learning.join(STOP_SECONDS)
            running.learning.kill()
            running.learning.join()
        self.scans.clear()
        self._file.close()

    def _finished(self, owner: str, lesson: Lesson) -> LearnedModel | None:
        """See `LearnedModels.taken`. What was sent for a lesson that nobody will learn from is of no use."""
        try:
            finished = self.models.taken(owner, lesson)
        except Refused as refused:
            if refused.code == "name_taken":
                self.scans.delete(owner, lesson.scans)
            raise
        if finished is not None:
            self.scans.delete(owner, lesson.scans)
        return finished

    def _check_scans(self, owner: str, lesson: Lesson) -> None:
        missing = self.scans.missing(owner, lesson.scans)
        if missing:
            raise Refused(
                409,
                "scans_missing",
                f"{len(missing)} scans are not here, or no longer; send them, and ask again.",
                {"missing": missing},
            )

    def _check_free(self) -> None:
        if self._is_stopping:
            text = "The backend is stopping; ask again when it is back, or ask another one."
            raise Refused(503, "stopping", text, headers={"Retry-After": "5"})
        if self._running is not None:
            seconds = 1 if self._running.learning.is_ending else RETRY_SECONDS
            text = "Weights are learning here already, and one adaptation runs at a time; ask again later."
            raise Refused(503, "busy", text, headers={"Retry-After": str(seconds)})

    def _ended(self, pupil: Pupil, ending: Ending) -> LearnedModel:
        """Put away what is not needed any more; what became of the model."""
        try:
            with self._lock:
                self._running = None
                self.scans.release()
                goes_on = ending in ("cancelled", "cut")
                model = self.models.end(pupil.owner, keep=goes_on)
                if model.outcome is not None or not goes_on:
                    self.scans.delete(pupil.owner, model.lesson.scans)
        except Exception:
            self.on_end("failed")
            raise
        self.on_end(ending)
        return model


class Pupil:
    """A model that learns from now on, and who listens to it. When nobody does any more, it is cancelled.

    Attributes:
        owner: whose it is. model: as it was at the start.
        learning: its process.
    """

    def __init__(
        self, owner: str, model: LearnedModel, request: ChildRequest, on_end: Callable[[Pupil, Ending], LearnedModel]
    ) -> None:
        self.owner = owner
        self.model = model
        self._on_end = on_end
        self._listeners: list[Listener] = []
        self._said: dict[str, Any] | None = None
        self._lock = threading.RLock()
        self.learning = Learning(request, self._ended, self._tell)

    def is_of(self, owner: str, lesson: Lesson) -> bool:
        """Whether this is just what is asked for, and goes on."""
        return (self.owner, self.model.lesson) == (owner, lesson) and not self.learning.is_ending

    def listen(self, listener: Listener) -> None:
        """Have a listener told the last record so far, where there is one, and each one that comes: of the types
        `progress`, and in the end `end` or `error`."""
        with self._lock:
            self._listeners.append(listener)
            if self._said is not None:
                listener(self._said)

    def leave(self, listener: Listener) -> None:
        """A listener has gone."""
        with self._lock:
            self._listeners.remove(listener)
            if not self._listeners:
                self.learning.cancel()

    def stop(self) -> None:
        """The backend ends: let it end, and those who listen hear of it at once."""
        self.learning.cancel()
        text = "The backend is stopping; ask again when it is back, and it goes on."
        self._tell({"type": "error", "code": "stopping", "message": text})

    def _tell(self, record: dict[str, Any]) -> None:
        with self._lock:
            self._said = record
            for listener in self._listeners:
                listener(record)

    def _ended(self, ending: Ending, code: str, message: str) -> None:
        try:
            model = self._on_end(self, ending)
        except Exception:  # of the disk; whoever listens must hear of the end
            LOGGER.exception("what was learned cannot be kept")
            text = "The backend could not keep what was learned; its log tells why."
            self._tell({"type": "error", "code": "failed", "message": text})
            return
        event(f"adaptation {ending}", scans=len(model.lesson.scans), minutes=model.lesson.minutes)
        if model.outcome is not None:
            self._tell(end_record(model))
        elif ending in ("cut", "failed"):
            self._tell({"type": "error", "code": code, "message": message})
        else:
            text = "Learning was cancelled; the same request goes on with it."
            self._tell({"type": "error", "code": "stopping", "message": text})


def end_record(model: LearnedModel) -> dict[str, Any]:
    """The last record of a stream: what was learned."""
    outcome = model.outcome
    assert outcome is not None, "the model is not finished"
    return {
        "type": "end",
        "name": model.lesson.name,
        "weights_sha256": outcome.weights_sha256,
        "improved": outcome.improved,
        "before": outcome.before,
        "after": outcome.after,
        "steps": outcome.steps,
        "seconds": outcome.seconds,
        "scans": outcome.scans,
        "skipped": list(outcome.skipped),
    }
