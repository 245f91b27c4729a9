"""Light work for cohort runs, found by name in other processes; no torch, so that those start at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from SDFSMISLib.errors import Cancelled, InputError

Cancel = Callable[[], bool]
LONGEST = 60.0  # seconds that a job waits for what a test is about to do


def square(job: int, cancel: Cancel) -> int:
    return job**2


def make_square(place: int, of: int) -> Callable[[int, Cancel], int]:
    return square


def make_places(place: int, of: int) -> Callable[[int, Cancel], tuple[int, int, int]]:
    """Work that tells which worker did it."""
    return lambda job, cancel: (place, of, os.getpid())


def make_bad_input(place: int, of: int) -> Callable[[int, Cancel], int]:
    raise InputError("There is no such model.")


def make_defect(place: int, of: int) -> Callable[[int, Cancel], int]:
    raise ZeroDivisionError("by zero")


def make_nothing(place: int, of: int) -> Callable[[int, Cancel], int]:
    os.kill(os.getpid(), signal.SIGKILL)
    return square


class Work:
    """Squares whole numbers; some of them end the process, always or once, fail, or last until it is told to stop.

    `folder` is where the work leaves its marks.
    """

    def __init__(
        self, folder: Path, deadly: set[int] | None = None, deadly_once: set[int] | None = None, slow: bool = False
    ) -> None:
        self.folder = folder
        self.deadly = deadly or set()
        self.deadly_once = deadly_once or set()
        self.slow = slow

    def __call__(self, place: int, of: int) -> Callable[[int, Cancel], int]:
        return self.work

    def work(self, job: int, cancel: Cancel) -> int:
        mark = self.folder / f"begun {job}"
        first = not mark.exists()
        mark.write_text(str(os.getpid()))
        if job in self.deadly or (job in self.deadly_once and first):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.slow and job > 0:
            wait_until(cancel)
            (self.folder / f"stopped {job}").touch()
            raise Cancelled("It was told to.")
        return job**2


class NodeWork:
    """As `Work`, on Ray: on a node with DOOMED in its environment a job lasts until that node is no more."""

    def __init__(self, folder: Path, deadly: set[int]) -> None:
        self.folder = folder
        self.deadly = deadly

    def __call__(self, place: int, of: int) -> Callable[[int, Cancel], int]:
        return self.work

    def work(self, job: int, cancel: Cancel) -> int:
        if job in self.deadly:
            with (self.folder / f"tries {job}").open("a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        if "DOOMED" in os.environ:
            (self.folder / f"doomed {job}").touch()
            wait_until(cancel)
        wait_until(lambda: any(self.folder.glob("doomed *")))  # else all is done before the doomed node is up
        return job**2


def wait_until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + LONGEST
    while not true():
        assert time.monotonic() < until, "what was waited for did not come"
        time.sleep(0.01)
