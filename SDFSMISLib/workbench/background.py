"""Jobs in threads, which touch neither MRML nor widgets, and the queues of messages that they post."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["Background", "Cancel", "Job", "JobEnded"]


class Cancel:
    """Asks a job to stop, from any thread; it cannot be taken back.

    >>> cancel = Cancel()
    >>> cancel.then(lambda: print("closing the connection"))
    >>> cancel.set()
    closing the connection
    >>> cancel()
    True
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._then: Callable[[], Any] | None = None

    def __call__(self) -> bool:
        """Whether the job should stop."""
        return self._event.is_set()

    def set(self) -> None:
        """Ask the job to stop, and call what :meth:`then` was given."""
        with self._lock:
            self._event.set()
            then = self._then
        if then is not None:
            then()

    def then(self, call: Callable[[], Any] | None) -> None:
        """Call something, in any thread, when the job is asked to stop, or now if it was already; None = nothing."""
        with self._lock:
            self._then, now = call, self._event.is_set()
        if now and call is not None:
            call()


@dataclass(frozen=True)
class JobEnded:
    """The last message of a job, with the exception that ended it, if one did."""

    error: BaseException | None = None


Job = Callable[[Callable[[Any], None], Cancel], None]
"""A job is called with a function that posts a message, and with what asks it to stop."""


class Background:
    """A job in a daemon thread. Its messages wait until the main thread takes them.

    Attributes:
        cancel: asks the job to stop.

    >>> background = Background("example", lambda post, cancel: post("done"))
    >>> background.join(5)
    True
    >>> list(background.messages())
    ['done', JobEnded(error=None)]
    """

    def __init__(self, name: str, job: Job) -> None:
        self.cancel = Cancel()
        self._messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._job = job
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def messages(self) -> Iterator[Any]:
        """The messages posted since the last call; :class:`JobEnded` is the last one."""
        while True:
            try:
                yield self._messages.get_nowait()
            except queue.Empty:
                return

    def join(self, seconds: float) -> bool:
        """Wait until the thread has ended; False if it has not after so many seconds."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        error: BaseException | None = None
        try:
            self._job(self._messages.put, self.cancel)
        except BaseException as caught:  # the main thread says what is wrong; nothing may vanish in a thread
            error = caught
        self._messages.put(JobEnded(error))
