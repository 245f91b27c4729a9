"""Learning job: what goes on in the worker thread of learning. Scans it asks for, one by one, from the main thread."""

from __future__ import annotations

import queue
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from SDFSMISLib.client import BackendError, Client
from SDFSMISLib.errors import Cancelled
from SDFSMISLib.volume import Volume
from SDFSMISPanel.background import Cancel
from SDFSMISPanel.run_job import ClientSource, Post

__all__ = ["LearningJob", "ScanWanted"]

LOOK = 0.1  # seconds between two looks at whether it was cancelled


@dataclass(frozen=True, eq=False)
class ScanWanted:
    """A scan is needed now; the main thread answers, once.

    Attributes:
        number: of the scan, from 0.
    """

    number: int
    _answer: queue.SimpleQueue[Volume | Exception] = field(default_factory=queue.SimpleQueue)

    def give(self, scan: Volume | Exception) -> None:
        """The scan, as a copy; or why it cannot be given."""
        self._answer.put(scan)

    def wait(self, cancel: Cancel) -> Volume:
        """What was given. Raises what was given instead, or `Cancelled`."""
        while not cancel():
            with suppress(queue.Empty):
                scan = self._answer.get(timeout=LOOK)
                if isinstance(scan, Exception):
                    raise scan
                return scan
        raise Cancelled("Learning was cancelled.")


@dataclass(frozen=True, eq=False)
class LearningJob:
    """The job of learning. It posts each progress of the client, the learned model, and what the backend has then.

    Attributes:
        scans: how many there are. name, minutes: as ``Client.learn`` takes them.
    """

    source: ClientSource
    scans: int
    name: str
    minutes: float

    def __call__(self, post: Post, cancel: Cancel) -> None:
        client = self.source(post, cancel)
        scans = [partial(_scan, number, post, cancel) for number in range(self.scans)]
        model = client.learn(scans, self.name, self.minutes, on_progress=post, cancel=cancel)
        post(model)
        with suppress(BackendError):  # what was learned is there, whatever follows
            self._tidy_up(client, keep=model.improved)
            post(client.capabilities())

    def _tidy_up(self, client: Client, keep: bool) -> None:
        """A model that learned nothing is the one it began with, under another name: nobody looks for it."""
        if not keep:
            client.forget_model(self.name)


def _scan(number: int, post: Post, cancel: Cancel) -> Volume:
    wanted = ScanWanted(number)
    post(wanted)
    return wanted.wait(cancel)
