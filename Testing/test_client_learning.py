"""The client lets a backend learn: scans are sent one by one, what breaks is taken up, what is wrong is a sentence."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
import unicodedata
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from learning_examples import LEARNING_PARTS, LEARNS, body_scan, child_program, finished_model, models_of, small_weights
from SDFSMISLib import Segmenter, Volume
from SDFSMISLib.client import (
    BackendError,
    Client,
    LearnedModel,
    LearningProgress,
    ModelMissing,
    NameTaken,
    NotOffered,
    trouble,
)
from SDFSMISLib.client import learning as client_learning
from SDFSMISLib.client.backend_error import BackendBusy, BackendFailed, ConnectionLost, ScanTooLarge
from SDFSMISLib.errors import Cancelled, InputError
from SDFSMISLib.inference import RemoteSegmenter
from SDFSMISLib.server import adaptations, learning, learning_stream
from SDFSMISLib.server.limits import Limits
from serving import Backend, running, task

WAITS = LEARNING_PARTS + "tell(3, 'Learning')\nsys.stdin.read()\nprint(json.dumps({'type': 'cancelled'}), flush=True)\n"
NAMES = (
    LEARNING_PARTS
    + "import os\nname = 'scan ' + os.path.basename(asked['scans'][0])[:12]\n"
    + "outcome['skipped'] = [name + ' is too small']\ntell(3, 'Reading ' + name)\ntime.sleep(0.3)\nfinish()\n"
)
FAILS = "print(json.dumps({'type': 'error', 'code': 'invalid_input', 'message': 'The scans show nothing.'}))\n"
NO_MEMORY = "print(json.dumps({'type': 'cut', 'code': 'out_of_memory', 'message': 'Too little memory.'}))\n"


pytest_plugins = ["client_fixtures"]
pytestmark = pytest.mark.usefixtures("no_proxy_and_no_long_pauses")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(learning, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(learning_stream, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(learning_stream, "ALIVE_SECONDS", 0.1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "adaptations"


@pytest.fixture
def backend(folder: Path) -> Iterator[Backend]:
    with running(adaptations=folder) as made:
        yield made


def becomes(program: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that learns is this program."""
    monkeypatch.setattr(learning, "COMMAND", child_program(folder.parent, program))


def forget_slices(backend: Backend) -> None:
    for owner, address in list(backend.store._kept):
        backend.store.delete(owner, address)


class Counted:
    """A scan that counts how often it was read."""

    def __init__(self, scan: Volume | Exception) -> None:
        self.scan, self.reads = scan, 0

    def __call__(self) -> Volume:
        self.reads += 1
        if isinstance(self.scan, Exception):
            raise self.scan
        return self.scan


def test_scans_are_sent_learned_from_and_become_a_model(
    backend: Backend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    becomes(LEARNS, folder, monkeypatch)
    heard: list[LearningProgress] = []
    scans = [Counted(body_scan(seed)) for seed in (1, 2)]
    made = Client(backend.url).learn(scans, "our scanner", 2.0, on_progress=heard.append)
    assert made == LearnedModel("our scanner", "ab" * 32, True, 0.5, 0.625, 8, 1.5, 2, ("scan 12 is too small",))
    assert [scan.reads for scan in scans] == [1, 1]
    phases = [one.phase for one in heard]
    assert phases == sorted(phases, key=["sending", "learning"].index)  # first the one, then the other
    assert {one.text for one in heard if one.phase == "sending"} == {"Sending scan 1 of 2", "Sending scan 2 of 2"}
    shares = [one.done / one.total for one in heard if one.phase == "sending"]
    assert shares == sorted(shares) and shares[-1] == 1
    assert models_of(backend) == [("bright", False), ("our scanner", True)]


def test_the_same_request_again_gives_the_same_model_and_another_one_finds_the_name_taken(
    backend: Backend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    becomes(LEARNS, folder, monkeypatch)
    client, scans = Client(backend.url), [partial(body_scan, 1)]
    first = client.learn(scans, "ours", 2.0)
    becomes(FAILS, folder, monkeypatch)
    forget_slices(backend)
    assert client.learn(scans, "ours", 2.0) == first
    with pytest.raises(NameTaken, match="ours already"):
        client.learn(scans, "ours", 3.0)
    assert not backend.store.bytes and not list(folder.glob("scans/*/*")), "nothing was sent for that"
    client.forget_model("ours")
    with pytest.raises(ModelMissing, match="ours"):
        client.forget_model("ours")
    with pytest.raises(BackendError, match="show nothing"):
        client.learn(scans, "ours", 3.0)


def test_scans_that_are_there_are_not_sent_again(
    backend: Backend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    becomes(WAITS, folder, monkeypatch)
    client, stop = Client(backend.url), threading.Event()
    with pytest.raises(Cancelled, match="goes on"):
        client.learn(
            [partial(body_scan, 1)],
            "ours",
            2.0,
            on_progress=lambda far: stop.set() if far.phase == "learning" else None,
            cancel=stop.is_set,
        )
    forget_slices(backend)
    becomes(LEARNS, folder, monkeypatch)
    client.learn([partial(body_scan, 1)], "ours", 2.0)
    assert not backend.store.bytes  # no slice came again


def test_scans_that_the_backend_has_lost_meanwhile_are_sent_again(
    backend: Backend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    becomes(LEARNS, folder, monkeypatch)
    assert backend.adaptations is not None
    held, lost = backend.adaptations.scans, []
    original = held.missing

    def missing(owner: str, contents: list[str]) -> list[str]:
        if len(contents) == 2 and not lost:  # the request to learn
            lost.append(contents[0])
            held.delete(owner, [contents[0]])
        return original(owner, contents)

    monkeypatch.setattr(held, "missing", missing)
    scans = [Counted(body_scan(seed)) for seed in (1, 2)]
    assert Client(backend.url).learn(scans, "ours", 2.0).scans == 2
    assert lost and sum(scan.reads for scan in scans) <= 3


def test_a_backend_that_learns_already_is_waited_for_but_not_for_ever(
    backend: Backend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adaptations, "RETRY_SECONDS", 1)
    becomes(WAITS, folder, monkeypatch)
    client, stop, begun = Client(backend.url), threading.Event(), threading.Event()

    def first(far: LearningProgress) -> None:
        if far.phase == "learning":
            begun.set()

    def second(far: LearningProgress) -> None:
        if far.phase == "waiting":
            assert "learning from other scans" in far.text
            becomes(LEARNS, folder, monkeypatch)
            stop.set()

    other = threading.Thread(
        target=lambda: pytest.raises(
            Cancelled, client.learn, [body_scan], "first", 2.0, on_progress=first, cancel=stop.is_set
        )
    )
    other.start()
    assert begun.wait(20)
    with pytest.raises(BackendBusy, match="learning from other scans"):
        client.learn([body_scan], "second", 2.0, patience=0.0)
    assert client.learn([body_scan], "second", 2.0, on_progress=second).name == "second"
    other.join(20)
    assert stop.is_set() and not other.is_alive()


def test_an_upload_that_is_cut_again_and_again_goes_on_as_long_as_it_advances(
    backend: Backend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each cut takes more time than there is patience for in all."""
    becomes(LEARNS, folder, monkeypatch)
    put, cuts, clock = client_learning.Learning._put, [], itertools.count()
    lost = [0.0]

    def cut(asked: client_learning.Learning, number: int) -> None:
        put(asked, number)
        if number not in cuts:
            cuts.append(number)
            lost[0] += 50.0
            raise ConnectionLost("It broke.")

    monkeypatch.setattr(client_learning.Learning, "_put", cut)
    monkeypatch.setattr(trouble, "time", SimpleNamespace(monotonic=lambda: lost[0] + next(clock) / 1000))
    scans = [partial(body_scan, seed) for seed in range(4)]
    assert Client(backend.url).learn(scans, "ours", 2.0, patience=60.0).scans == 4
    assert cuts == [0, 1, 2, 3]


def test_a_scan_in_another_byte_order_is_the_same_scan(
    backend: Backend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    becomes(LEARNS, folder, monkeypatch)
    scan = body_scan(1)
    client = Client(backend.url)
    first = client.learn([lambda: replace(scan, voxels=scan.voxels.astype(">i2"))], "ours", 2.0)
    becomes(FAILS, folder, monkeypatch)
    assert client.learn([lambda: scan], "ours", 2.0) == first


def test_a_scan_that_takes_long_to_be_written_is_waited_for(
    backend: Backend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    becomes(LEARNS, folder, monkeypatch)
    monkeypatch.setattr(client_learning, "SLOWEST_WRITE", 1000)
    assert backend.adaptations is not None
    held, written = backend.adaptations.scans, []
    original = held.put

    def put(owner: str, content: str, scan: Volume) -> bool:
        written.append(content)
        time.sleep(1.0)
        return original(owner, content, scan)

    monkeypatch.setattr(held, "put", put)
    Client(backend.url, timeout=0.7).learn([body_scan], "ours", 2.0, patience=0.0)
    assert len(written) == 1


def test_a_backend_that_always_breaks_at_the_same_place_is_given_up(
    backend: Backend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    becomes(WAITS, folder, monkeypatch)
    whole = learning_stream.LearningStream.lines
    cuts = []

    async def cut(stream: learning_stream.LearningStream) -> AsyncIterator[bytes]:
        async for line in whole(stream):
            yield line
            if b'"progress"' in line:
                cuts.append(line)
                stream.leave()
                assert stream._pupil is not None
                await asyncio.to_thread(stream._pupil.learning.join, 20)
                return

    monkeypatch.setattr(learning_stream.LearningStream, "lines", cut)
    with pytest.raises(ConnectionLost, match="did not come back"):
        Client(backend.url).learn([body_scan], "ours", 2.0)
    assert len(cuts) == trouble.MOST_IN_VAIN + 2  # the first brought something new


def test_scans_have_the_names_that_they_have_here(
    backend: Backend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    becomes(NAMES, folder, monkeypatch)
    client, heard = Client(backend.url), []
    scan = replace(body_scan(), path=folder / "livers.nrrd")
    for name, source, called in (("one", body_scan, "scan 1"), ("two", lambda: scan, "livers.nrrd")):
        made = client.learn([source], name, 2.0, on_progress=heard.append)
        assert f"Reading {called}" in {one.text for one in heard}
        assert made.skipped == (f"{called} is too small",)


def test_scans_that_cannot_be_read_are_named_and_passed_over(
    backend: Backend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    becomes(LEARNS, folder, monkeypatch)
    bad = Counted(InputError("letter.txt is no scan."))
    made = Client(backend.url).learn([bad, partial(body_scan, 1)], "ours", 2.0)
    assert made.scans == 1 and made.skipped == ("letter.txt is no scan.", "scan 12 is too small")
    with pytest.raises(InputError, match=r"None of the 1 scans can be read: letter\.txt"):
        Client(backend.url).learn([bad], "more", 2.0)


def test_what_goes_wrong_there_is_one_sentence(backend: Backend, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(backend.url)
    becomes(NO_MEMORY, folder, monkeypatch)
    with pytest.raises(ScanTooLarge, match="backend with more memory"):
        client.learn([body_scan], "ours", 2.0)
    becomes("sys.exit(3)\n", folder, monkeypatch)
    with pytest.raises(BackendFailed, match="ended by itself"):
        client.learn([body_scan], "ours", 2.0)


@pytest.mark.parametrize(
    ("scans", "name", "minutes", "says"),
    [
        ([], "ours", 1.0, "No scan was given"),
        ([body_scan], "  ", 1.0, "a model's name has 1 to 40"),
        ([body_scan], "x" * 41, 1.0, "a model's name has 1 to 40"),
        ([body_scan], "../ours", 1.0, "a model's name has 1 to 40"),
        ([body_scan], "ours", 0.0, "must be above 0"),
        ([body_scan], "ours", float("nan"), "must be above 0"),
        ([body_scan], "ours", 1e4, "the backend takes 60"),
        ([body_scan] * 41, "ours", 1.0, "the backend takes 40"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_sent(
    backend: Backend, scans: list, name: str, minutes: float, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        Client(backend.url).learn(scans, name, minutes)
    assert not backend.store.bytes


def test_scans_that_are_too_large_are_refused_before_anything_is_sent(tmp_path: Path) -> None:
    for limits, says in (
        (Limits(scan_bytes=1 << 15), "0 MiB"),
        (Limits(slices=8), "8 slices at most, and scan 1 has 16"),
    ):
        with running(limits=limits, adaptations=tmp_path / "a") as backend:
            with pytest.raises(ScanTooLarge, match=f"{says}.*Crop it, or leave it out"):
                Client(backend.url).learn([body_scan], "ours", 1.0)
            assert not backend.store.bytes


def test_a_backend_that_does_not_learn_says_so_and_gets_nothing() -> None:
    with running() as backend:
        client = Client(backend.url)
        assert client.capabilities().adaptations is None
        with pytest.raises(NotOffered, match="--adaptations"):
            client.learn([body_scan], "ours", 1.0)
        with pytest.raises(NotOffered):
            client.forget_model("ours")
        assert not backend.store.bytes


def test_a_learned_model_segments_as_its_folder_does(tmp_path: Path) -> None:
    model = finished_model(tmp_path / "adaptations", "für uns")
    served = Segmenter.from_pretrained(small_weights(tmp_path / "served"), "cpu")
    own = Segmenter.from_pretrained(model.pipeline, "cpu")
    with running(segmenter=served, adaptations=tmp_path / "adaptations") as backend:
        client, asked = Client(backend.url), task()
        assert [one.learned for one in client.capabilities().models] == [False, True]
        remote = RemoteSegmenter(client, model=unicodedata.normalize("NFD", "für uns")).checked()
        assert (remote.name, remote.weights) == ("für uns", own.weights)
        found = remote.segment(asked.scan, asked.support)
        expected = own.segment(asked.scan, asked.support)
        assert (found.labelmap.voxels == expected.labelmap.voxels).all()
        other = RemoteSegmenter(client).segment(asked.scan, asked.support)
        soft = [
            {label: maps.tobytes() for label, maps in one.probabilities.items()} for one in (found, expected, other)
        ]
        assert soft[0] == soft[1] != soft[2]
        with pytest.raises(ModelMissing, match="no model 'theirs'; it has"):
            RemoteSegmenter(client, model="theirs").checked()
