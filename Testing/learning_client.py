"""A client of a backend that learns as a test tells it, with what the panel uses of the real one; and a computer that
gives it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from panel_examples import NoComputer
from SDFSMISLib.client import BackendError, Capabilities, LearnedModel, LearningProgress, ModelMissing
from SDFSMISLib.client.capabilities import Adaptations, Limits, Model
from SDFSMISLib.errors import Cancelled
from SDFSMISLib.volume import Volume
from SDFSMISPanel.panel_logic import BackendChoice

LIMITS = Limits(10_000, 100, 5, 4, 1 << 20, 1 << 20, 8)


class LearningClient:
    """Asks for the scans, tells how far it is, and ends when it is let go on.

    Attributes:
        learned: names of the models that the backend has learned.
        offered: what it says of learning; None = it does not offer it.
        go_on: lets it end. error: that it then ends with. improved: whether it learned anything.
        got: content hash of each scan that came. asked: names and minutes of what was to be learned.
        waits: whether another one learns there first. models: what runs asked for.
    """

    def __init__(self, *learned: str) -> None:
        self.learned, self.offered = list(learned), Adaptations(False, 45.0, 3, 1 << 30)
        self.go_on, self.error, self.improved, self.waits = threading.Event(), None, True, False
        self.got: list[str] = []
        self.asked: list[tuple[str, float]] = []
        self.models: list[str | None] = []
        self.forget_error: Exception | None = None

    def capabilities(self) -> Capabilities:
        models = [Model("built-in", "w", 128, False), *(Model(name, name, 128, True) for name in self.learned)]
        ways = ("propagate", "independent"), ("auto", "full")
        return Capabilities("1", tuple(models), "a processor", "cpu", 0.5, *ways, LIMITS, 0, self.offered)

    def learn(
        self,
        scans: Sequence[Callable[[], Volume]],
        name: str,
        minutes: float = 10.0,
        *,
        on_progress: Callable[[LearningProgress], None],
        cancel: Callable[[], bool],
    ) -> LearnedModel:
        self.asked.append((name, minutes))
        for scan in scans:
            self.got.append(scan().content_hash())
            on_progress(LearningProgress(1, 2, "Sending", "sending"))
        if self.waits:
            on_progress(LearningProgress(0, 0, "another one learns there.", "waiting"))
        else:
            on_progress(LearningProgress(3, 10, "Learning: held out 0.610 → 0.640", "learning"))
        while not self.go_on.wait(0.005):
            if cancel():
                raise Cancelled("Learning was cancelled.")
        if self.error is not None:
            raise self.error
        self.learned.append(name)
        after = 0.6412 if self.improved else 0.6104
        return LearnedModel(name, "w2", self.improved, 0.6104, after, 90, 541.0, len(scans), ("Scan 2 is too small.",))

    def forget_model(self, name: str) -> None:
        if self.forget_error is not None:
            raise self.forget_error
        if name not in self.learned:
            raise ModelMissing(f"There is no model {name}.")
        self.learned.remove(name)

    def segment(self, *_: Any, model: str | None, **more: Any) -> Any:
        self.models.append(model)
        if model is not None and model not in self.learned:
            raise ModelMissing(f"The backend has no model {model}.")
        raise BackendError("It segments nothing.")


class LearningComputer(NoComputer):
    """A computer on which a backend runs."""

    def __init__(self, client: LearningClient) -> None:
        self._client = client

    def is_ready(self, choice: BackendChoice) -> bool:
        return True

    def client(self, choice: Any, say: Any, cancel: Any) -> Any:
        return self._client

    def is_there(self) -> bool:
        return True

    def status(self, choice: BackendChoice) -> tuple[str, str]:
        return "It runs.", "good"
