"""Turns on the device: fair by batches, bounded, and not held by who is slow, gone, broken or done."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator

import pytest

from processes import until
from SDFSMISLib.server.scheduler import BackendStopping, ClientStalled, QueueFull, ScheduledRun, Scheduler


class Runs:
    """Makes runs whose batches the test lets through one by one."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.ends: dict[str, BaseException | None] = {}
        self.gate = threading.Semaphore(0)
        self.closed: list[str] = []

    def make(
        self, name: str, batches: int, is_gated: bool = False, fails_at: int = -1, size: int = 0
    ) -> ScheduledRun[str]:
        def steps() -> Generator[list[str], None, None]:
            try:
                for number in range(batches):
                    if is_gated:
                        self.gate.acquire()
                    if number == fails_at:
                        raise ValueError(name)
                    self.order.append(name)
                    yield [name]
            finally:
                self.closed.append(name)

        def on_results(results: list[str]) -> int:
            return size

        run: ScheduledRun[str] = ScheduledRun(steps(), on_results, lambda error: self.ends.__setitem__(name, error))
        return run


@pytest.fixture
def runs() -> Runs:
    return Runs()


@pytest.fixture
def scheduler() -> Iterator[Scheduler[str]]:
    made: Scheduler[str] = Scheduler(3, max_unsent_bytes=10, max_stall_seconds=0.05)
    yield made
    made.stop()
    made.join(5)


def test_a_small_run_does_not_wait_for_the_end_of_a_large_one(runs: Runs, scheduler: Scheduler[str]) -> None:
    scheduler.submit(runs.make("large", 20, is_gated=True))
    scheduler.submit(runs.make("small", 2))
    for _ in range(20):
        runs.gate.release()
    until(lambda: set(runs.ends) == {"large", "small"})
    assert runs.order.index("small") <= 1 and "".join(name[0] for name in runs.order[:5]) in ("lslsl", "slsll", "lsls")


def test_a_run_that_fails_gets_its_error_and_the_next_one_works(runs: Runs, scheduler: Scheduler[str]) -> None:
    scheduler.submit(runs.make("bad", 3, fails_at=1))
    scheduler.submit(runs.make("good", 3))
    until(lambda: set(runs.ends) == {"bad", "good"})
    assert isinstance(runs.ends["bad"], ValueError) and runs.ends["good"] is None
    assert runs.order.count("good") == 3 and scheduler.active_runs == 0


def test_what_goes_wrong_at_the_end_of_a_run_is_not_the_end_of_the_others(
    runs: Runs, scheduler: Scheduler[str]
) -> None:
    def steps() -> Generator[list[str], None, None]:
        try:
            yield ["one"]
            yield ["two"]
        finally:
            raise ValueError("in the end")

    def on_results(results: list[str]) -> int:
        scheduler.cancel(run)
        return 0

    def on_end(error: BaseException | None) -> None:
        runs.ends["bad"] = error
        raise RuntimeError("the event loop is closed")

    run: ScheduledRun[str] = ScheduledRun(steps(), on_results, on_end)
    scheduler.submit(run)
    until(lambda: "bad" in runs.ends)
    assert isinstance(runs.ends["bad"], ValueError) and scheduler.is_alive
    scheduler.submit(runs.make("good", 2))
    until(lambda: "good" in runs.ends)


def test_a_cancelled_run_ends_behind_the_batch_it_is_at(runs: Runs, scheduler: Scheduler[str]) -> None:
    run = runs.make("one", 100, is_gated=True)
    scheduler.submit(run)
    runs.gate.release()
    until(lambda: runs.order == ["one"])
    scheduler.cancel(run)
    runs.gate.release()
    until(lambda: runs.ends == {"one": None})
    assert len(runs.order) <= 2 and runs.closed == ["one"]
    scheduler.cancel(run)


def test_one_run_too_many_is_told_when_to_come_again(runs: Runs, scheduler: Scheduler[str]) -> None:
    for name in "abc":
        scheduler.submit(runs.make(name, 1, is_gated=True))
    with pytest.raises(QueueFull) as full:
        scheduler.submit(runs.make("d", 1), retry_after=7)
    assert full.value.retry_after == 7
    for _ in range(3):
        runs.gate.release()
    until(lambda: len(runs.ends) == 3)
    scheduler.submit(runs.make("d", 1))
    until(lambda: "d" in runs.ends)


def test_a_run_whose_client_is_slow_takes_no_turns_until_it_has_taken_some(runs: Runs) -> None:
    scheduler: Scheduler[str] = Scheduler(3, max_unsent_bytes=10, max_stall_seconds=60)
    slow = runs.make("slow", 5, size=11)
    scheduler.submit(slow)
    scheduler.submit(runs.make("other", 9))
    until(lambda: "other" in runs.ends)
    assert runs.order.count("slow") == 1
    for _ in range(5):
        scheduler.results_sent(slow, 11)
        until(lambda: slow.unsent_bytes > 0 or "slow" in runs.ends)
    assert runs.order.count("slow") == 5
    scheduler.stop()
    scheduler.join(5)


def test_a_run_whose_client_takes_nothing_for_long_fails(runs: Runs, scheduler: Scheduler[str]) -> None:
    scheduler.submit(runs.make("gone", 5, size=11))
    until(lambda: "gone" in runs.ends)
    assert isinstance(runs.ends["gone"], ClientStalled) and runs.closed == ["gone"]


def test_a_stopping_scheduler_lets_runs_end_within_the_grace_and_takes_no_more(runs: Runs) -> None:
    scheduler: Scheduler[str] = Scheduler(3, 10, 60)
    scheduler.submit(runs.make("quick", 3, is_gated=True))
    scheduler.stop(grace=30)
    with pytest.raises(BackendStopping):
        scheduler.submit(runs.make("late", 1))
    for _ in range(3):
        runs.gate.release()
    scheduler.join(5)
    assert runs.ends == {"quick": None} and not scheduler.is_alive


def test_what_is_not_done_after_the_grace_is_told_so(runs: Runs) -> None:
    scheduler: Scheduler[str] = Scheduler(3, 10, 60)
    scheduler.submit(runs.make("long", 1000, is_gated=True))
    scheduler.submit(runs.make("waiting", 1000, is_gated=True))
    scheduler.stop(grace=0.0)
    until(lambda: scheduler._is_grace_over)
    runs.gate.release()
    scheduler.join(5)
    assert {name: type(error) for name, error in runs.ends.items()} == {
        "long": BackendStopping,
        "waiting": BackendStopping,
    }
    assert len(runs.order) <= 1
