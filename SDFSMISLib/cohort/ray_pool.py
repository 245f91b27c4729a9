"""The same work on many jobs, by workers on a Ray cluster whose nodes share a file system and have this package.

The connection is to an existing cluster if there is one, else to a Ray that this program starts.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import warnings
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from SDFSMISLib.cohort.pool import Finished, MakeWork, answer
from SDFSMISLib.errors import InputError

# Ray prints the log of a node that was lost on standard output, where results go; it reads what to leave out while it
# is imported.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
try:
    import ray
    from ray.exceptions import RayError, RayTaskError
except ImportError as error:
    raise InputError('The engine ray needs Ray, which is not here; run: pip install "sdfsmis[ray]"') from error

__all__ = ["Share", "connected", "nodes", "run_on_ray", "share"]

Job = TypeVar("Job")
Result = TypeVar("Result")

REACH = 10.0  # seconds within which a cluster answers
TRIES = 3  # of a job whose worker is lost
FALSE_STARTS = 3  # workers one after the other that are lost before they can take a job
NOTICE = 60.0  # seconds without a worker after which the user is warned
PATIENCE = 60.0  # seconds that a worker has for stopping; it asks whether to after each batch of slices


def run_on_ray(
    jobs: Sequence[Job], make_work: MakeWork[Job, Result], workers: int | None = None, gpus: bool = True
) -> Generator[Finished[Result], None, None]:
    """Work through jobs; each comes out as soon as it is finished. A job whose worker is lost, with its node for
    example, goes to another worker; the lost worker is replaced if the cluster has room.

    Args:
        make_work: see `MakeWork`.
        workers, gpus: see `share`.

    Raises:
        InputError: if Ray is unreachable, or the workers cannot start.
        Exception: that `make_work` or a work raises.
    """
    with connected():
        yield from _Workers(jobs, make_work, share(nodes(), workers, gpus)).run()


@contextmanager
def connected() -> Iterator[None]:
    """A connection to the cluster that RAY_ADDRESS names or that runs on this machine, which continues to run; else to
    a Ray that ends with the block. An existing connection is used.

    Raises:
        InputError: if the cluster is unreachable.
    """
    if ray.is_initialized():
        yield
        return
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    named = os.environ.get("RAY_ADDRESS", "")
    try:
        _knock(named)
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"Cannot reach the Ray cluster {named} ({' '.join(str(error).split())}); start one with ray start --head, "
            "or unset RAY_ADDRESS to use this machine."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raises an OSError if nothing listens at an address; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH).close()


def nodes() -> list[tuple[int, int]]:
    """Processors and GPUs of each node."""
    alive = (node["Resources"] for node in ray.nodes() if node["Alive"])
    return [(int(resources.get("CPU", 0)), int(resources.get("GPU", 0))) for resources in alive]


@dataclass(frozen=True)
class Share:
    """The number of workers of a run, and the processors and GPUs that each of them takes of a node."""

    workers: int
    cpus: int
    gpus: int


def share(nodes: Sequence[tuple[int, int]], workers: int | None, gpus: bool) -> Share:
    """How workers share a cluster.

    Args:
        nodes: processors and GPUs of each.
        workers: None = one for each GPU, or for each node without GPUs.
        gpus: whether each worker gets a GPU, if there are any.

    >>> share([(16, 2), (16, 2)], None, gpus=True)
    Share(workers=4, cpus=8, gpus=1)
    """
    total = sum(gpu for _, gpu in nodes)
    if gpus and total:
        return Share(min(workers or total, total), min(cpu // gpu for cpu, gpu in nodes if gpu), 1)
    wanted = workers or max(1, sum(cpu > 0 for cpu, _ in nodes))
    most = max((cpu for cpu, _ in nodes), default=0)
    fits = (each for each in range(most, 1, -1) if sum(cpu // each for cpu, _ in nodes) >= wanted)
    return Share(wanted, next(fits, 1), 0)


class _Actor:
    """A worker: it does one job after the other; `stop` interrupts it in the middle of one."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self.work: Any = None

    def start(self, make_work: MakeWork[Any, Any]) -> tuple[None, Exception | None]:
        self.work, error = answer(lambda: make_work(0, 1))  # Ray sees to its share of the machine
        return None, error

    def do(self, job: Any) -> tuple[Any, Exception | None]:
        return answer(lambda: self.work(job, self.stopped.is_set))

    def stop(self) -> None:
        self.stopped.set()


class _Workers(Generic[Job, Result]):
    """The workers of a run, and the job of each."""

    def __init__(self, jobs: Sequence[Job], make_work: MakeWork[Job, Result], mine: Share) -> None:
        self.jobs = jobs
        self.share = mine
        self.make_work = ray.put(make_work)
        self.new_actor: Any = ray.remote(_Actor).options(
            num_cpus=mine.cpus,
            num_gpus=mine.gpus,
            max_concurrency=2,  # `stop` is called while it works
            scheduling_strategy="SPREAD",
        )
        self.waiting = deque(range(len(jobs)))
        self.busy: dict[Any, tuple[Any, int | None]] = {}  # what is awaited -> worker, job; None while it starts
        self.tries: Counter[int] = Counter()
        self.false_starts = 0

    def run(self) -> Iterator[Finished[Result]]:
        try:
            for _ in range(min(self.share.workers, len(self.jobs))):
                self._start()
            while self.waiting or any(number is not None for _, number in self.busy.values()):
                yield from self._next_finished()
        finally:
            self._stop()

    def _start(self) -> None:
        actor = self.new_actor.remote()
        self.busy[actor.start.remote(self.make_work)] = actor, None

    def _next_finished(self) -> Iterator[Finished[Result]]:
        done, _ = ray.wait(list(self.busy), num_returns=1, timeout=NOTICE)
        if not done:
            self._warn_of_waiting()
            return
        actor, number = self.busy.pop(done[0])
        try:
            result, error = ray.get(done[0])
        except RayTaskError:
            raise  # a defect
        except RayError as lost:
            yield from self._worker_lost(actor, number, lost)
            return
        if error is not None:
            raise error
        self.false_starts = 0
        if self.waiting:
            following = self.waiting.popleft()
            self.busy[actor.do.remote(self.jobs[following])] = actor, following
        else:
            ray.kill(actor)  # others may need its room
        if number is not None:
            yield number, result

    def _worker_lost(self, actor: Any, number: int | None, lost: RayError) -> Iterator[Finished[Result]]:
        """Replaces a worker; its job is tried again, behind all others, or has failed."""
        sentences = " ".join(str(lost).split()).split(". ")
        why = next((sentence for sentence in sentences if "because" in sentence), sentences[0])
        with suppress(RayError):
            ray.kill(actor)  # one that only cannot be reached
        if number is None:
            self.false_starts += 1
            if self.false_starts == FALSE_STARTS:
                raise InputError(
                    f"{FALSE_STARTS} Ray workers were lost while they started ({why}); does each node of the cluster "
                    "have this version of sdfsmis, and memory for the model?"
                )
        else:
            self.tries[number] += 1
            if self.tries[number] < TRIES:
                self.waiting.append(number)
                warnings.warn(f"A Ray worker was lost ({why}); its scan is tried again.", stacklevel=2)
        self._start()
        if number is not None and self.tries[number] == TRIES:
            yield number, InputError(f"The Ray worker that worked on it was lost {TRIES} times ({why}).")

    def _warn_of_waiting(self) -> None:
        """Warns that no worker has started after a while."""
        if all(number is None for _, number in self.busy.values()):
            gpus = f" and {self.share.gpus} GPU" if self.share.gpus else ""
            warnings.warn(
                f"No Ray worker has started yet; each needs {self.share.cpus} processors{gpus} of one node. It is "
                "waited for.",
                stacklevel=2,
            )

    def _stop(self) -> None:
        """Tells the workers to stop, waits for those with a job, and ends all."""
        with suppress(RayError):
            working = {ref: actor for ref, (actor, number) in self.busy.items() if number is not None}
            for actor in working.values():
                actor.stop.remote()
            if working:
                ray.wait(list(working), num_returns=len(working), timeout=PATIENCE)
            for actor, _ in self.busy.values():
                ray.kill(actor)
