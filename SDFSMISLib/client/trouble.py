"""What to do where a backend is not there, is busy, or is lost: wait and try again, for as long as it makes sense."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from SDFSMISLib.client.backend_error import BackendBusy, BackendError, ConnectionLost, SlicesMissing
from SDFSMISLib.client.connection import Interrupt

__all__ = ["Trouble"]

BUSY_SHARE = 15  # times its patience that it waits for a backend that is there and says when to come again
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 5.0  # seconds before trying again; doubled each time
MOST_IN_VAIN = 5  # streams that end without anything new before it is given up
LOOK = 0.25  # seconds between two looks at whether it was cancelled


class Trouble:
    """How long it goes on without anything new coming, not counting the time in which the backend answers."""

    def __init__(self, patience: float, name: str, interrupt: Interrupt) -> None:
        """
        Args:
            patience: seconds. name: of the backend, for people. interrupt: ends the waiting.
        """
        self._patience, self._name, self._interrupt = patience, name, interrupt
        self._spent = 0.0
        self._since: float | None = None
        self._tries = 0
        self._in_vain = 0
        self._most_sent = 0
        self._ordered = 0.0

    def outlast(
        self, error: BackendError, ask: Callable[[], None], on_trouble: Callable[[BackendError], None] | None = None
    ) -> None:
        """Wait until it makes sense to try again; raise where it does not.

        Args:
            ask: called while waiting; may raise.
            on_trouble: called with what is wrong, before it is waited.
        """
        seconds = self._pause(error)
        if seconds is None and isinstance(error, (BackendBusy, SlicesMissing)):
            raise error
        if seconds is None:
            raise ConnectionLost(
                f"The backend at {self._name} was lost and did not come back. Check the network and the backend, then "
                "try again."
            ) from error
        if on_trouble is not None and seconds:
            on_trouble(error)
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            ask()
            self._interrupt.wait(min(left, LOOK))
        ask()

    def connected(self) -> None:
        """The backend has taken the work on."""
        self._in_vain += 1
        if self._since is not None:
            self._spent += time.monotonic() - self._since
            self._since = None

    def over(self, sent: int | None = None) -> None:
        """Something new has come; or, given their number, more slices than ever were sent."""
        if sent is not None and sent <= self._most_sent:
            return
        self._most_sent = max(self._most_sent, sent or 0)
        self._spent, self._since, self._tries, self._ordered = 0.0, None, 0, 0.0
        self._in_vain = self._in_vain if sent is not None else 0

    def _pause(self, error: BackendError) -> float | None:
        """Seconds to wait before trying again; None where patience has come to its end."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if isinstance(error, SlicesMissing):
            self._in_vain += 1
            return 0.0 if self._in_vain <= MOST_IN_VAIN else None
        asked = error.retry_after if isinstance(error, BackendBusy) else None
        if asked is not None:  # the backend is there, and says when: that takes no patience, within bounds
            self._ordered += asked
            self._since += asked
            late = random.uniform(0, 1)  # clients come apart
            return asked + late if self._ordered <= BUSY_SHARE * self._patience else None
        seconds = min(LONGEST_PAUSE, FIRST_PAUSE * 2**self._tries) * random.uniform(0.5, 1)  # clients come apart
        self._tries = min(self._tries + 1, 16)
        spent = self._spent + now - self._since
        return None if self._in_vain > MOST_IN_VAIN or spent + seconds > self._patience else seconds
