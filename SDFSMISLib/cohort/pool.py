"""The same work on many jobs, in worker processes on this machine.

A job whose process is killed, as the system does when memory runs out, is tried once more and then reported; the others
go on. Closing the iterator early, by Ctrl+C for example, stops the workers: each is told to stop, and waited for.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from SDFSMISLib.client import BackendError
from SDFSMISLib.errors import Cancelled, InputError

__all__ = ["Finished", "MakeWork", "Work", "answer", "run_cohort"]

Job = TypeVar("Job")
Result = TypeVar("Result")

Work = Callable[[Job, Callable[[], bool]], Result]
"""Does a job. The second argument is called now and then; if it returns True, the work raises `Cancelled`."""

MakeWork = Callable[[int, int], Work[Job, Result]]
"""Makes the work of a worker, from its number and the number of workers on its machine. It can be pickled."""

Finished = tuple[int, Result | InputError]
"""A job, by its index in the sequence, with its result, or with the reason if no worker survived it."""

TRIES = 2  # of a job whose process ends
PATIENCE = 60.0  # seconds that a worker has for stopping; it checks after each batch of slices
# A fork of this process, which may run torch's threads, would hang; on Linux workers are forks of one that runs none.
START_METHOD = "forkserver" if sys.platform == "linux" else "spawn"
LOOK = 0.5  # seconds between two looks at the workers; on Windows Ctrl+C does not interrupt waiting


def answer(call: Callable[[], Result]) -> tuple[Result | None, Exception | None]:
    """What a call in a worker returns, or the exception that it raises, as one that can be sent to another process.

    Raises:
        Cancelled: if the call does.
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


def run_cohort(
    jobs: Sequence[Job], make_work: MakeWork[Job, Result], workers: int, imports: Sequence[str] = ()
) -> Generator[Finished[Result], None, None]:
    """Work through jobs; each comes out as soon as it is finished.

    With `workers` processes first; then, one after the other, jobs that ended theirs, which may succeed when alone.

    Args:
        make_work: see `MakeWork`.
        workers: how many processes, 1 or more.
        imports: modules that the work uses. On Linux they are imported once for all workers, which share their memory.

    Raises:
        InputError: if the workers cannot start.
        Exception: that `make_work` or a work raises.
    """
    if imports and START_METHOD == "forkserver":
        multiprocessing.set_forkserver_preload(list(imports))
    waiting = deque(range(len(jobs)))
    losses: Counter[int] = Counter()
    count = min(workers, len(jobs))
    while waiting:
        again: list[int] = []
        with closing(_taken(waiting, jobs, make_work, count)) as taken:
            for number, finished in taken:
                if finished is not None:
                    yield finished
                    continue
                losses[number] += 1
                if losses[number] < TRIES:
                    again.append(number)
                    continue
                yield (
                    number,
                    InputError(
                        f"The process that worked on it was ended {TRIES} times; often the memory does not suffice: "
                        "use a smaller scan, or another device."
                    ),
                )
        if waiting and count == 1:
            raise InputError(
                "The worker process was ended while it started; often the memory does not suffice: use a smaller "
                "model, or another device."
            )
        waiting.extendleft(reversed(again))
        count = 1


def _taken(
    waiting: deque[int], jobs: Sequence[Job], make_work: MakeWork[Job, Result], count: int
) -> Generator[tuple[int, Finished[Result] | None], None, None]:
    """`count` processes take job after job from `waiting`: the number of each, with None if it ended its process. Jobs
    are left in `waiting` only if no process could start."""
    workers: list[_Worker] = []
    try:
        for place in range(count):
            workers.append(_Worker(make_work, place, count))
        while workers:
            wait([worker.future for worker in workers], LOOK, FIRST_COMPLETED)
            for worker in [worker for worker in workers if worker.future.done()]:
                number = worker.number
                try:
                    result, error = worker.future.result()
                except BrokenProcessPool:
                    workers.remove(worker)
                    _stop([worker])
                    if number is None:
                        continue  # no other in its place: it would end the same way
                    if waiting:
                        workers.append(_Worker(make_work, worker.place, count))
                    yield number, None
                    continue
                if error is not None:
                    raise error
                if waiting:
                    worker.give(waiting.popleft(), jobs)
                else:
                    workers.remove(worker)
                    _stop([worker])
                if number is not None:
                    yield number, (number, result)
    finally:
        _stop(workers)


class _Worker:
    """A process that does one job after the other. It is a pool of its own, so that the others survive its end."""

    def __init__(self, make_work: MakeWork[Any, Any], place: int, of: int) -> None:
        context = multiprocessing.get_context(START_METHOD)
        theirs, self.line = context.Pipe(duplex=False)
        self.place = place
        self.number: int | None = None  # of the job in hand; None while it starts
        self.pool = ProcessPoolExecutor(1, context, _begin, (theirs,))
        with _no_interruption():
            self.future: Future[Any] = self.pool.submit(_make, make_work, place, of)
        theirs.close()

    def give(self, number: int, jobs: Sequence[Any]) -> None:
        self.number = number
        try:
            self.future = self.pool.submit(_do, jobs[number])
        except BrokenProcessPool as ended:  # since its last job
            self.future = Future()
            self.future.set_exception(ended)


def _stop(workers: Sequence[_Worker]) -> None:
    """Closing the line of a worker stops it, even in the middle of a job."""
    for worker in workers:
        worker.line.close()
    for worker in workers:
        worker.pool.shutdown(cancel_futures=True)


@contextmanager
def _no_interruption() -> Iterator[None]:
    """A process that starts within it never gets Ctrl+C, which reaches all processes of a terminal: the first one stops
    the others. On Windows it may get it until it ignores it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# -- in a worker process -----------------------------------------------------------------------------------------------

_work: Work[Any, Any] | None = None
_stop_requested = threading.Event()
_job_in_hand = threading.Lock()


def _begin(line: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_listen, args=(line,), daemon=True).start()


def _listen(line: Connection) -> None:
    """The line closes to stop this process, or when the one that started it has ended. A job in hand has time to stop;
    then an existing executor ends the process, or else it ends by itself."""
    with suppress(OSError):
        line.poll(None)
    _stop_requested.set()
    if _work is not None:
        _job_in_hand.acquire(timeout=PATIENCE)
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join(PATIENCE)
    os._exit(1)


def _make(make_work: MakeWork[Any, Any], place: int, of: int) -> tuple[None, Exception | None]:
    global _work
    _work, error = answer(lambda: make_work(place, of))
    return None, error


def _do(job: Any) -> tuple[Any, Exception | None]:
    with _job_in_hand:
        assert _work is not None
        work = _work
        return answer(lambda: work(job, _stop_requested.is_set))
