"""The client sends the slices that a backend lacks, each once."""

from __future__ import annotations

import numpy as np
import pytest

from client_examples import ADDRESSES, GRID, SCAN, SHAPE, STACKS, SUPPORT, TWO_LABELS, a_scan, collected, painted
from SDFSMISLib.client import Client, upload
from SDFSMISLib.client.errors import ScanTooLarge
from SDFSMISLib.errors import Cancelled
from SDFSMISLib.images.volume import Volume
from SDFSMISLib.slices import SliceStack
from small_backend import SmallBackend

pytest_plugins = ["client_fixtures"]
pytestmark = pytest.mark.usefixtures("no_proxy_and_no_long_pauses")


def test_only_missing_slices_are_sent_and_each_once(url: str, backend: SmallBackend) -> None:
    client, seen = Client(url), []

    def run(slices: list[int] | None) -> None:
        collected(client.segment(STACKS, SUPPORT, slices=slices, on_upload=lambda *numbers: seen.append(numbers)))

    run([3])
    assert sorted(backend.puts()) == sorted(ADDRESSES[2:4]), "the painted slice is one of the scan's"
    assert seen[0] == (0, 2) and seen[-1] == (2, 2)
    seen.clear()
    run(None)
    assert sorted(backend.puts()) == sorted(ADDRESSES)
    assert seen[0] == (2, 7) and seen[-1] == (7, 7)
    for index in range(SHAPE[0]):
        assert np.array_equal(backend.store[ADDRESSES[index]], SCAN.voxels[index])


def test_slices_that_a_model_sees_ahead_are_sent_too(url: str, backend: SmallBackend) -> None:
    backend.model["looks_ahead"] = True
    collected(Client(url).segment(STACKS, SUPPORT, slices=[3]))
    assert sorted(backend.puts()) == sorted(ADDRESSES), "those up to 6 mm away"


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_a_painted_slice_of_the_scan_is_not_sent_twice(url: str, backend: SmallBackend, dtype: str) -> None:
    scan = a_scan(5, dtype)
    collected(Client(url).segment(SliceStack.along(scan, [0]), painted(scan, (2, 1))))
    assert len(backend.puts()) == SHAPE[0]
    assert {array.dtype for array in backend.store.values()} == {np.dtype(dtype)}


def test_slices_that_are_alike_are_sent_once(url: str, backend: SmallBackend) -> None:
    scan = Volume(np.zeros(SHAPE, np.int16), GRID)
    collected(Client(url).segment(SliceStack.along(scan, [0]), painted(scan, (2, 1))))
    assert len(backend.puts()) == 1


def test_a_big_endian_scan_is_sent_little_endian(url: str, backend: SmallBackend) -> None:
    scan = Volume(SCAN.voxels.astype(">i2"), GRID)
    assert len(collected(Client(url).segment(SliceStack.along(scan, [0]), painted(scan, (2, 1))))) == 6
    assert set(backend.store) == set(ADDRESSES)


def test_on_this_computer_slices_go_over_one_connection_as_they_are(url: str, backend: SmallBackend) -> None:
    collected(Client(url).segment(STACKS, SUPPORT))
    assert len(backend.peers) == 2  # one to ask
    assert min(backend.sizes) > SCAN.voxels[0].nbytes


def test_a_connection_that_was_closed_while_idle_is_opened_again(url: str, backend: SmallBackend) -> None:
    backend.drop_idle = True
    assert len(collected(Client(url).segment(STACKS, SUPPORT))) == 6


@pytest.mark.parametrize(
    ("limit", "most", "words"),
    [
        ("slice_pixels", 71, "Resample the scan"),
        ("slices", 6, "Crop the scan"),
        ("shots", 1, "Give fewer of them"),
        ("labels", 1, "some of them at a time"),
        ("store_bytes", 7 * 9 * 8 * 2 - 1, "Segment fewer slices at once, or crop"),
    ],
)
def test_a_scan_beyond_the_limits_is_refused_before_it_is_sent(
    url: str, backend: SmallBackend, limit: str, most: int, words: str
) -> None:
    backend.limits[limit] = most
    with pytest.raises(ScanTooLarge, match=words):
        collected(Client(url).segment(STACKS, TWO_LABELS))
    assert backend.puts() == []


@pytest.mark.parametrize("most", [100, 800])  # less than a slice; less than the request
def test_a_request_beyond_the_limit_is_refused_before_it_is_sent(url: str, backend: SmallBackend, most: int) -> None:
    backend.limits["body_bytes"] = most
    with pytest.raises(ScanTooLarge, match="Segment fewer slices or structures"):
        collected(Client(url).segment(STACKS, SUPPORT))
    assert backend.asked == []


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice in each request."""
    monkeypatch.setattr(upload, "LOCAL_UPLOAD_BYTES", 1)


@pytest.mark.parametrize(
    ("most", "uploads"), [(1 << 20, [7]), (3 * (SCAN.voxels[0].nbytes + 60), [3, 3, 1]), (1, 7 * [1])]
)
def test_several_slices_go_in_one_request(
    url: str, backend: SmallBackend, monkeypatch: pytest.MonkeyPatch, most: int, uploads: list[int]
) -> None:
    monkeypatch.setattr(upload, "LOCAL_UPLOAD_BYTES", most)
    assert len(collected(Client(url).segment(STACKS, SUPPORT))) == 6
    assert [len(addresses) for addresses in backend.uploads] == uploads


@pytest.mark.usefixtures("one_by_one")
def test_a_slice_that_the_backend_refuses_ends_the_sending(url: str, backend: SmallBackend) -> None:
    backend.put_status = 413
    with pytest.raises(ScanTooLarge, match="does not take so much: It is too_large. Segment fewer"):
        collected(Client(url).segment(STACKS, SUPPORT))
    assert len(backend.puts()) == 1


@pytest.mark.usefixtures("one_by_one")
def test_sending_can_be_cancelled(url: str, backend: SmallBackend) -> None:
    backend.hold_puts = True
    with pytest.raises(Cancelled):
        collected(Client(url).segment(STACKS, SUPPORT, cancel=backend.reached.is_set))
    assert len(backend.puts()) == 1 and backend.left.wait(10)
