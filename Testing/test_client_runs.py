"""The client's runs: what is asked for comes slice by slice, and whoever asks can cancel."""

from __future__ import annotations

import threading

import pytest

from client_examples import ADDRESSES, OTHER_SCAN, STACKS, SUPPORT, TWO_LABELS, collected, places, wait_for
from SDFSMISLib.client import Client
from SDFSMISLib.errors import Cancelled, InputError
from SDFSMISLib.options import RunOptions
from SDFSMISLib.slices import SliceResult
from SDFSMISLib.support import SupportSet
from SDFSMISLib.wire import PROTOCOL
from small_backend import Fault, SmallBackend

pytest_plugins = ["client_fixtures"]
pytestmark = pytest.mark.usefixtures("no_proxy_and_no_long_pauses")


def test_a_run_gives_every_open_slice_of_every_label_once(url: str, backend: SmallBackend) -> None:
    sent: list[tuple[int, int]] = []
    run = Client(url).segment(
        STACKS, TWO_LABELS, RunOptions(threshold=0.4), on_upload=lambda *numbers: sent.append(numbers)
    )
    assert run.phase == "not begun"
    found = collected(run)
    assert set(found) == places(1, 2, without={(1, 2), (2, 2), (2, 4)})
    assert [(one.finished, one.total) for one in found.values()] == [(n, 11) for n in range(1, 12)]
    assert all(one.certainty == 0.5 for one in found.values())
    assert sent[-1] == (7, 7) and run.phase == "finished"
    assert run.warnings == ["They are unlike."] and run.seconds == {"total": 2.0, "waiting": 0.5, "computing": 1.5}
    assert (run.version, run.model, run.weights_sha256, run.device) == ("9.9", "small", "w1", "a processor")
    (asked,) = backend.asked
    assert (asked["labels"], asked["slices"], asked["threshold"]) == ([1, 2], None, 0.4)
    assert (asked["strategy"], asked["region"], asked["protocol"]) == ("propagate", "auto", PROTOCOL)
    assert (asked["finished"], asked["lanes"], asked["found"]) == ([], [], None)


def test_labels_slices_and_options_are_asked_for_as_given(url: str, backend: SmallBackend) -> None:
    run = Client(url).segment(STACKS, TWO_LABELS, RunOptions("independent", "full"), labels=[2], slices=[6, 5, 5])
    assert set(collected(run)) == {(2, 5), (2, 6)}
    (asked,) = backend.asked
    assert (asked["labels"], asked["slices"]) == ([2], [5, 6])
    assert (asked["strategy"], asked["region"]) == ("independent", "full")
    assert [[mask["label"] for mask in one["masks"]] for one in asked["support"]] == [[2], [2]]


@pytest.mark.parametrize(
    ("support", "slices", "strategy", "needed"),
    [
        (SUPPORT, None, "propagate", range(7)),
        (SUPPORT, [4], "propagate", [2, 3, 4]),
        (SUPPORT, [4], "independent", [2, 4]),  # 2 is the painted slice
        (TWO_LABELS, [5], "propagate", [2, 3, 4, 5]),
        (TWO_LABELS, [2], "propagate", [2, 4]),  # all that is asked for is painted; 4 is painted
        (OTHER_SCAN, [4], "propagate", range(7)),  # it has to be found first
        (OTHER_SCAN, [4], "independent", [4]),
        (SupportSet((*SUPPORT.slices, *OTHER_SCAN.slices), SUPPORT.names), [4], "propagate", [2, 3, 4]),
    ],
)
def test_only_slices_that_a_run_reads_are_sent(
    url: str, backend: SmallBackend, support: SupportSet, slices: list[int] | None, strategy: str, needed: list[int]
) -> None:
    collected(Client(url).segment(STACKS, support, RunOptions(strategy), slices=slices))
    assert {address for address in backend.puts() if address in ADDRESSES} == {ADDRESSES[index] for index in needed}


@pytest.mark.parametrize(
    "arguments",
    [{"labels": [7]}, {"labels": []}, {"slices": [7]}, {"slices": []}],
)
def test_what_cannot_be_asked_is_refused_at_once(arguments: dict) -> None:
    with pytest.raises(InputError):
        Client("localhost").segment(STACKS, SUPPORT, **arguments)


@pytest.mark.parametrize(("option", "given"), [("strategy", "propagate"), ("region", "auto")])
def test_an_option_that_the_backend_does_not_know_is_refused_before_anything_is_sent(
    url: str, backend: SmallBackend, option: str, given: str
) -> None:
    backend.accepted[option] = ["other"]
    with pytest.raises(InputError, match=f"The {option} '{given}' was given; the backend accepts other"):
        collected(Client(url).segment(STACKS, SUPPORT))
    assert backend.puts() == []


def test_cancelling_from_another_thread_closes_the_connection_at_once(url: str, backend: SmallBackend) -> None:
    backend.faults.append(Fault(after=6, silent=True))
    run, got, ended = Client(url).segment(STACKS, SUPPORT), [], []

    def work() -> None:
        try:
            with run:
                for record in run:
                    got.append(record)
        except Cancelled as error:
            ended.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    assert backend.reached.wait(10) and wait_for(lambda: len(got) == 2)
    run.cancel()
    worker.join(10)
    assert not worker.is_alive() and len(ended) == 1 and len(got) == 2
    assert backend.left.wait(10)


def test_leaving_the_block_closes_the_connection(url: str, backend: SmallBackend) -> None:
    backend.faults.append(Fault(after=6, silent=True))
    with Client(url).segment(STACKS, SUPPORT) as run:
        for _ in run:
            break
    assert backend.left.wait(10)
    with pytest.raises(StopIteration):
        next(iter(run))


def test_the_caller_is_asked_at_every_record(url: str, backend: SmallBackend) -> None:
    got: list[SliceResult] = []
    with Client(url).segment(STACKS, SUPPORT, cancel=lambda: len(got) == 3) as run, pytest.raises(Cancelled):
        for record in run:
            got.append(record)
    assert len(got) == 3


def test_waiting_for_a_backend_can_be_cancelled(url: str, backend: SmallBackend) -> None:
    backend.faults.append(Fault(status=503, retry_after="30"))
    run = Client(url).segment(STACKS, SUPPORT)
    watcher = threading.Thread(target=lambda: wait_for(lambda: run.phase == "reconnecting") and run.cancel())
    watcher.start()
    with pytest.raises(Cancelled):
        collected(run)
    watcher.join()


def test_a_run_that_is_cancelled_before_it_begins_sends_nothing(url: str, backend: SmallBackend) -> None:
    run = Client(url).segment(STACKS, SUPPORT)
    run.cancel()
    with pytest.raises(Cancelled):
        collected(run)
    assert backend.requests == []


def test_sending_within_a_run_is_cancelled_by_another_thread(url: str, backend: SmallBackend) -> None:
    backend.hold_puts = True
    run = Client(url).segment(STACKS, SUPPORT)
    watcher = threading.Thread(target=lambda: backend.reached.wait(10) and run.cancel())
    watcher.start()
    with pytest.raises(Cancelled):
        collected(run)
    watcher.join()
    assert run.phase == "sending" and backend.left.wait(10)
