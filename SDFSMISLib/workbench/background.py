"""Background: a job in a thread of its own, which touches neither MRML nor Qt, and a queue of what it says."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["Background", "Cancel", "Ended", "Job"]


class Cancel:
    """A wish to stop that any thread may utter, once and for all."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._then: Callable[[], Any] | None = None

    def __call__(self) -> bool:
        """Whether it was uttered."""
        return self._event.is_set()

    def set(self) -> None:
        """Utters it, and calls what waits for it."""
        with self._lock:
            self._event.set()
            then = self._then
        if then is not None:
            then()

    def then(self, call: Callable[[], Any] | None) -> None:
        """What to call when it is uttered, at once where it was already; it must be safe in any thread."""
        with self._lock:
            self._then, now = call, self._event.is_set()
        if now and call is not None:
            call()


@dataclass(frozen=True)
class Ended:
    """The last message of a job; the error that ended it, if one did."""

    error: BaseException | None = None


Job = Callable[[Callable[[Any], None], Cancel], None]
"""Called with what posts a message, and with the wish to stop."""


class Background:
    """A job in a daemon thread. What it posts waits until the main thread asks."""

    def __init__(self, name: str, job: Job) -> None:
        self.cancel = Cancel()
        self._messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._job = job
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def messages(self) -> Iterator[Any]:
        """What was posted until now, each once; :class:`Ended` comes last."""
        while True:
            try:
                yield self._messages.get_nowait()
            except queue.Empty:
                return

    def join(self, seconds: float) -> bool:
        """Waits until the thread has ended, for so long at most; whether it has."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        error: BaseException | None = None
        try:
            self._job(self._messages.put, self.cancel)
        except BaseException as caught:  # the main thread says what is wrong; nothing may vanish in a thread
            error = caught
        self._messages.put(Ended(error))
