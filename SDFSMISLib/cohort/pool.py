"""Cohort runs: the same work on many jobs; here one after the other, in worker processes, or on a Ray cluster.

A job that ends its worker, as the system does where memory runs out, is tried once more and then reported; the others
go on. Who leaves the iterator early, by Ctrl+C for example, stops the workers: each is asked to, and is waited for.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, Literal, TypeVar

from SDFSMISLib.client import BackendError
from SDFSMISLib.errors import Cancelled, InputError

__all__ = ["Finished", "MakeWork", "Work", "answer", "run_cohort"]

Job = TypeVar("Job")
Result = TypeVar("Result")

Work = Callable[[Job, Callable[[], bool]], Result]
"""Does a job. The second argument is asked now and then; where it says True the work is to raise `Cancelled`."""

MakeWork = Callable[[int, int], Work[Job, Result]]
"""Makes a worker's work once, from its number and the number of workers on its machine; for processes it can be
pickled."""

TRIES = 2  # of a job whose process ends
PATIENCE = 60.0  # seconds that a worker has for stopping; it asks whether to after each batch of slices


@dataclass(frozen=True)
class Finished(Generic[Result]):
    """A job, by its place in the sequence, with its result; or, where no worker outlived it, None and why."""

    number: int
    result: Result | None
    error: str = ""


def run_cohort(
    jobs: Sequence[Job],
    make_work: MakeWork[Job, Result],
    engine: Literal["process", "ray"] = "process",
    workers: int | None = None,
    *,
    gpus: bool = True,
) -> Generator[Finished[Result], None, None]:
    """Work through jobs; each comes out as soon as it is finished.

    Args:
        make_work: see `MakeWork`. With one worker process the work is done in this one.
        engine: `process`, or `ray`: the cluster that RAY_ADDRESS names or that runs here, else this machine.
        workers: how many at a time. None = one process; on Ray one for each GPU, or for each node without GPUs.
        gpus: on Ray, whether a worker is to have a GPU where there are any.

    Raises:
        InputError: where Ray is not installed or not to be reached, or the workers cannot start.
        Exception: what `make_work` or a work raises.
    """
    if engine == "ray":
        from SDFSMISLib.cohort.ray_pool import run_on_ray

        yield from run_on_ray(jobs, make_work, workers, gpus)
    elif (workers or 1) > 1:
        yield from _run_in_processes(jobs, make_work, workers or 1)
    else:
        work = make_work(0, 1)
        for number, job in enumerate(jobs):
            yield Finished(number, work(job, lambda: False))


def answer(call: Callable[[], Result]) -> tuple[Result | None, Exception | None]:
    """What a call in a worker gives, or raises; of the latter a kind that can be sent to another process.

    Raises:
        Cancelled: as the call does.
    """
    try:
        return call(), None
    except Cancelled:
        raise
    except InputError as error:
        return None, InputError(str(error))
    except BackendError as error:
        return None, BackendError(str(error))
    except Exception as error:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return None, MemoryError(str(error))
        return None, RuntimeError(f"in a worker: {type(error).__name__}: {error}")


def _run_in_processes(
    jobs: Sequence[Job], make_work: MakeWork[Job, Result], workers: int
) -> Iterator[Finished[Result]]:
    """With several processes first; then, one after the other, jobs that ended theirs, which may fit in when alone."""
    pool = _Pool(jobs, make_work)
    waiting = deque(range(len(jobs)))
    tries: Counter[int] = Counter()
    count = min(workers, len(jobs))
    while waiting:
        again: list[int] = []
        for number, result, ended in pool.run(waiting, count):
            tries[number] += 1
            if not ended:
                yield Finished(number, result)
            elif tries[number] < TRIES:
                again.append(number)
            else:
                yield Finished(
                    number,
                    None,
                    f"The process that worked on it was ended {TRIES} times ({ended}); often the memory does not "
                    "suffice: use a smaller scan, or another device.",
                )
        if waiting and count == 1:
            raise InputError(
                f"The worker process was ended while it started ({pool.ended}); often the memory does not suffice: use "
                "a smaller model, or another device."
            )
        waiting.extendleft(reversed(again))
        count = 1


class _Pool(Generic[Job, Result]):
    """Worker processes, each with a line of its own: whose line breaks has ended, and the others do not notice."""

    def __init__(self, jobs: Sequence[Job], make_work: MakeWork[Job, Result]) -> None:
        self.jobs = jobs
        self.make_work = make_work
        self.workers: list[_Worker] = []
        self.ended = ""  # how a process ended last, before it took a job

    def run(self, waiting: deque[int], count: int) -> Iterator[tuple[int, Result | None, str]]:
        """Take job after job from `waiting`, with `count` processes: its number, and its result or how its process
        ended. Jobs are left in `waiting` only where no process could start."""
        try:
            for place in range(count):
                self.workers.append(_Worker(self.make_work, place, count))
            while self.workers:
                lines = {worker.line: worker for worker in self.workers}
                for line in wait(list(lines)):
                    yield from self._heard(lines[line], waiting, count)  # type: ignore[index]
        finally:
            self._stop(self.workers)
            self.workers = []

    def _heard(self, worker: _Worker, waiting: deque[int], count: int) -> Iterator[tuple[int, Result | None, str]]:
        number = worker.number
        try:
            result, error = worker.line.recv()
        except (EOFError, OSError):
            ended = worker.end()
            self.workers.remove(worker)
            if number is None:
                self.ended = ended  # no other in its place: it would end the same way
                return
            if waiting:
                self.workers.append(_Worker(self.make_work, worker.place, count))
            yield number, None, ended
            return
        if error is not None:
            raise error
        if waiting:
            worker.give(waiting.popleft(), self.jobs)
        else:
            self.workers.remove(worker)
            self._stop([worker])
        if number is not None:
            yield number, result, ""

    def _stop(self, workers: list[_Worker]) -> None:
        """A worker whose line is closed stops, even in the middle of a job; one that does not is ended."""
        for worker in workers:
            worker.line.close()
        until = time.monotonic() + PATIENCE
        for worker in workers:
            worker.process.join(max(0.0, until - time.monotonic()))
            worker.process.terminate()
            worker.process.join()


class _Worker:
    """A process that does one job after the other."""

    def __init__(self, make_work: MakeWork[Any, Any], place: int, of: int) -> None:
        context = multiprocessing.get_context("spawn")  # a copy of a process that runs torch's threads would hang
        self.place = place
        self.number: int | None = None  # of the job in hand; None while it starts
        self.line, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, make_work, place, of), daemon=True)
        with _no_interruption():
            self.process.start()
        theirs.close()  # else the end of the process would not be heard

    def give(self, number: int, jobs: Sequence[Any]) -> None:
        self.number = number
        with suppress(OSError):  # it has ended: its line says so next
            self.line.send(jobs[number])

    def end(self) -> str:
        """How it ended: a signal's name or an exit code."""
        self.line.close()
        self.process.join()
        code = self.process.exitcode or 0
        with suppress(ValueError):
            return f"by {signal.Signals(-code).name}"
        return f"exit code {code}"


@contextmanager
def _no_interruption() -> Iterator[None]:
    """A process that starts within it never hears Ctrl+C, which reaches all processes of a terminal: the first one
    stops the others. On Windows it may hear it until it ignores it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(line: Connection, make_work: MakeWork[Any, Any], place: int, of: int) -> None:
    """A worker process, until its line is closed; that happens too where the process that started it is no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(OSError, EOFError, Cancelled):
        work, error = answer(lambda: make_work(place, of))
        line.send((None, error))
        while work is not None:
            job = line.recv()
            line.send(answer(partial(work, job, partial(_closed, line))))


def _closed(line: Connection) -> bool:
    """Whether the other end is closed; nothing else comes while a job is in hand."""
    try:
        return line.poll()
    except OSError:
        return True
