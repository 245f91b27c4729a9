"""Runs take turns on the device, one batch at a time.

One thread, named `device`, computes for all runs: CUDA's libraries keep prepared state per thread, and two threads on
one device only wait for each other. It takes the runs round robin and computes one batch of each, so a short run never
waits for the end of a long one. Results are handed over by a callback, which must not block. A run whose client does
not keep up gets no turns until the client has caught up, and fails if that takes too long. A cancelled run ends after
its current batch; a batch is never interrupted.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from SDFSMISLib.server.settings import LOGGER

Item = TypeVar("Item")


class QueueFull(RuntimeError):
    """The maximum number of runs is reached. `retry_after`: seconds after which the client may try again."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("The queue is full.")
        self.retry_after = retry_after


class BackendStopping(RuntimeError):
    """The scheduler takes no more runs."""

    def __init__(self) -> None:
        super().__init__("The backend is stopping.")


class ClientStalled(RuntimeError):
    """The client of a run did not read its results for too long."""


@dataclass(eq=False)
class ScheduledRun(Generic[Item]):
    """A run in the scheduler.

    Both callbacks are called in the device's thread and must not block.

    Attributes:
        batches: computes one batch each time it is advanced, and gives its results.
        on_results: called with the results of a batch; returns their size in bytes.
        on_end: called once, after the last `on_results`, with the error that ended the run, or None if the run was
            completed or cancelled.
        computing_seconds: time on the device so far.
        turns: batches computed so far.
        unsent_bytes: size of the results that the client has not read yet.
        last_sent: time (monotonic) at which the client last read results.
    """

    batches: Generator[list[Item], None, None]
    on_results: Callable[[list[Item]], int]
    on_end: Callable[[BaseException | None], None]
    computing_seconds: float = 0.0
    turns: int = 0
    unsent_bytes: int = 0
    last_sent: float = field(default_factory=time.monotonic)
    is_cancelled: bool = False


class Scheduler(Generic[Item]):
    """Computes the batches of several runs in turn, in a thread of its own. All methods may be called by any thread.

    Args:
        max_runs: number of runs that may take turns at the same time.
        max_unsent_bytes: a run with more unread results than this gets no turns.
        max_stall_seconds: time without reading after which such a run fails with `ClientStalled`.
        thread_context: context manager that the device's thread enters for its lifetime, such as `torch.no_grad`.

    Example:
        >>> results, ended = [], threading.Event()
        >>> def on_results(batch):
        ...     results.extend(batch)
        ...     return 0
        >>> scheduler = Scheduler(max_runs=2, max_unsent_bytes=1 << 20, max_stall_seconds=60)
        >>> scheduler.submit(ScheduledRun(([n] for n in range(3)), on_results, on_end=lambda error: ended.set()))
        >>> ended.wait(10)
        True
        >>> results
        [0, 1, 2]
        >>> scheduler.stop()
    """

    def __init__(
        self,
        max_runs: int,
        max_unsent_bytes: int,
        max_stall_seconds: float,
        thread_context: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    ) -> None:
        self._max_runs = max_runs
        self._max_unsent_bytes = max_unsent_bytes
        self._max_stall_seconds = max_stall_seconds
        self._thread_context = thread_context
        self._waiting: deque[ScheduledRun[Item]] = deque()
        self._on_device: ScheduledRun[Item] | None = None
        self._is_stopping = False
        self._is_grace_over = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="device", daemon=True)
        self._thread.start()

    @property
    def active_runs(self) -> int:
        """Number of runs that take turns now."""
        return len(self._waiting) + (self._on_device is not None)

    @property
    def is_alive(self) -> bool:
        """Whether new runs are accepted."""
        return self._thread.is_alive() and not self._is_stopping

    def submit(self, run: ScheduledRun[Item], retry_after: int = 5) -> None:
        """Let a run take turns from now on.

        Raises:
            QueueFull: if `max_runs` take turns already; carries `retry_after` (seconds).
            BackendStopping: if the scheduler is stopping.
        """
        with self._changed:
            self.check(retry_after)
            self._waiting.append(run)
            self._changed.notify()

    def check(self, retry_after: int = 5) -> None:
        """Raise what `submit` would raise now."""
        if not self.is_alive:
            raise BackendStopping
        if self.active_runs >= self._max_runs:
            raise QueueFull(retry_after)

    def cancel(self, run: ScheduledRun[Item]) -> None:
        """End a run after its current batch, without an error. No effect on a run that has ended."""
        with self._changed:
            run.is_cancelled = True
            self._changed.notify()

    def results_sent(self, run: ScheduledRun[Item], size: int) -> None:
        """Report that the client of a run has read `size` bytes of its results."""
        with self._changed:
            run.unsent_bytes -= size
            run.last_sent = time.monotonic()
            self._changed.notify()

    def stop(self, grace: float = 0.0) -> None:
        """Accept no more runs. Those that have not ended after `grace` seconds fail with `BackendStopping`.

        Returns at once; see `join`.
        """
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        timer = threading.Timer(grace, self._end_grace)
        timer.daemon = True
        timer.start()

    def join(self, timeout: float | None = None) -> None:
        """Wait, after `stop`, until the device's thread has ended."""
        self._thread.join(timeout)

    def _end_grace(self) -> None:
        with self._changed:
            self._is_grace_over = True
            self._changed.notify()

    def _work(self) -> None:
        with self._thread_context():
            while (run := self._next_run()) is not None:
                self._take_turn(run)

    def _next_run(self) -> ScheduledRun[Item] | None:
        """The run whose turn it is; waits for one. None if the scheduler is stopping and all runs have ended."""
        with self._changed:
            while True:
                for _ in range(len(self._waiting)):
                    run = self._waiting.popleft()
                    if self._is_ready(run):
                        self._on_device = run
                        return run
                    self._waiting.append(run)
                if self._is_stopping and not self._waiting:
                    return None
                self._changed.wait(1.0 if self._waiting else None)  # a stalled client notifies nobody

    def _is_ready(self, run: ScheduledRun[Item]) -> bool:
        """Whether a turn of this run makes progress: computes a batch, or ends the run."""
        if run.is_cancelled or self._is_grace_over or run.unsent_bytes <= self._max_unsent_bytes:
            return True
        return time.monotonic() - run.last_sent > self._max_stall_seconds

    def _take_turn(self, run: ScheduledRun[Item]) -> None:
        """Compute one batch of a run, or end the run."""
        has_more = False
        error: Exception | None = None
        try:
            has_more = self._compute_batch(run)
        except Exception as failure:  # ends this run, not the others
            error = failure
        with self._changed:
            self._on_device = None
            if has_more:
                self._waiting.append(run)
        if not has_more:
            self._end(run, error)

    def _compute_batch(self, run: ScheduledRun[Item]) -> bool:
        """Whether more batches may follow."""
        if run.is_cancelled:
            return False
        if self._is_grace_over:
            raise BackendStopping
        if run.unsent_bytes > self._max_unsent_bytes:
            raise ClientStalled("The client did not read the results for too long.")
        began = time.monotonic()
        try:
            results = next(run.batches, None)
        finally:
            run.computing_seconds += time.monotonic() - began
            run.turns += 1
        if results:
            self._add_unsent(run, run.on_results(results))
        return results is not None

    def _add_unsent(self, run: ScheduledRun[Item], size: int) -> None:
        with self._changed:
            if run.unsent_bytes <= self._max_unsent_bytes < run.unsent_bytes + size:
                run.last_sent = time.monotonic()  # the time allowed for a stall begins now
            run.unsent_bytes += size

    def _end(self, run: ScheduledRun[Item], error: Exception | None) -> None:
        """Close a run. Errors of its cleanup must not end the thread, which all runs share."""
        try:
            run.batches.close()
        except Exception as failure:
            error = error or failure
        try:
            run.on_end(error)
        except Exception:
            LOGGER.exception("end of a run failed")
