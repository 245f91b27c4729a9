"""The backend as a process: how it starts, what it says, how it ends, and that a run outlives its end."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from certificates import self_signed
from processes import Command
from SDFSMISLib import Segmenter, SupportSet, Volume
from SDFSMISLib.cli.app import main
from SDFSMISLib.client import Client
from SDFSMISLib.client.errors import CertificateNotTrusted, TokenRefused
from SDFSMISLib.inference.remote import RemoteSegmenter
from SDFSMISLib.inference.segmentation import Segmentation
from serving import Task, task

TOKEN = "a-token-of-more-than-16-letters"
KNOWN = {"SDFSMIS_TOKEN": TOKEN}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class Serve(Command):
    """`sdfsmis serve` in a process of its own."""

    @cached_property
    def url(self) -> str:
        """Its address, when it is ready."""
        line = self.stdout.readline()
        assert line, self.stderr.read()
        return str(json.loads(line)["url"])


@pytest.fixture
def started() -> Iterator[Callable[..., Serve]]:
    made: list[Serve] = []

    def start(*options: object, **environment: str) -> Serve:
        made.append(Serve("serve", *options, **environment))
        return made[-1]

    yield start
    for process in made:
        process.end()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def noisy_task(depth: int = 10) -> Task:
    """Enough for a stream that can be cut: two labels, two painted slices, so that lanes meet."""
    made = task((depth, 56, 48), painted=(depth // 3, 2 * depth // 3))
    noise = np.random.default_rng(1).normal(0, 12, made.scan.voxels.shape)
    scan = Volume((made.scan.voxels + noise).astype(np.int16), made.scan.geometry)
    labels = made.truth.voxels.copy()
    labels[:, :24] *= 2
    painted = np.zeros_like(labels)
    for index in (depth // 3, 2 * depth // 3):
        painted[index] = labels[index]
    support = SupportSet.from_labelmap(scan, Volume(painted, scan.geometry), None, axis=0)
    return Task(scan, support, Volume(labels, scan.geometry))


def assert_same(one: Segmentation, other: Segmentation) -> None:
    np.testing.assert_array_equal(one.labelmap.voxels, other.labelmap.voxels)
    assert set(one.probabilities) == set(other.probabilities)
    for label, probability in one.probabilities.items():
        np.testing.assert_array_equal(probability, other.probabilities[label])
        np.testing.assert_array_equal(one.certainty[label], other.certainty[label])
    assert (one.axis, one.painted, one.warnings) == (other.axis, other.painted, other.warnings)


def test_killed_in_the_middle_and_started_again_it_gives_the_same_labelmap_until_it_is_told_to_stop(
    started: Callable[..., Serve], tmp_path: Path
) -> None:
    """The same as without a backend, to the bit; and it speaks TLS, to who trusts its certificate."""
    asked, certificate = noisy_task(), self_signed(tmp_path)
    options = ("--port", free_port(), "--tls-cert", certificate, "--tls-key", certificate)
    local = Segmenter.from_pretrained("built-in", "cpu").segment(asked.scan, asked.support)
    first = started(*options, **KNOWN)
    assert first.url.startswith("https://")
    with pytest.raises(CertificateNotTrusted):
        Client(first.url, TOKEN).capabilities()
    client = Client(first.url, TOKEN, ca_file=str(certificate))
    seen: list[int] = []
    again: list[Serve] = []

    def on_slice(result: Any) -> None:
        seen.append(result.finished)
        if result.finished == 7:
            first.kill()  # SIGKILL: nothing is tidied up
            first.wait()
            again.append(started(*options, **KNOWN))

    resumed = RemoteSegmenter(client).segment(asked.scan, asked.support, on_slice=on_slice)
    (second,) = again
    assert_same(resumed, local)
    assert seen == list(range(1, len(seen) + 1)), "no slice came twice"
    if os.name == "nt":
        return  # it has no signal to send to another process
    longer = noisy_task(60)
    with client.segment(longer.stacks, longer.support, patience=0.5) as run:
        next(iter(run))
        second.send_signal(signal.SIGINT)
        with pytest.raises(Exception, match="stopped or restarted|lost"):
            list(run)
    assert second.wait() == 0


def test_another_address_than_loopback_has_a_token_and_a_warning(started: Callable[..., Serve]) -> None:
    process = started("--host", "0.0.0.0", "--port", 0)
    port = int(process.url.rpartition(":")[2])
    with pytest.raises(TokenRefused):
        Client(f"127.0.0.1:{port}").capabilities()
    process.send_signal(signal.SIGTERM)
    log = process.stderr.read()
    assert process.wait() == 0
    token = next(line.rpartition(" ")[2] for line in log.splitlines() if line.startswith("Token"))
    assert len(token) >= 24 and log.count(token) == 1 and "in the clear" in log


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--port", "{taken}"], "name another --port"),
        (["--host", "no.such.host.invalid"], "name another --port"),
        (["--token", "short"], "16 or more"),
        (["--token", "with a blank in the middle"], "16 or more"),
        (["--token-file", "{folder}/none"], "cannot be read"),
        (["--token-file", "{folder}/empty"], "has no token"),
        (["--token-file", "{folder}/twice"], "twice"),
        (["--token-file", "{folder}/good", "--token", TOKEN], "one of the two"),
        (["--tls-cert", "{folder}/good"], "belong together"),
        (["--tls-cert", "{folder}/none", "--tls-key", "{folder}/good"], "no file"),
        (["--tls-cert", "{folder}/good", "--tls-key", "{folder}/good"], "PEM"),
        (["--port", "70000"], "65535"),
        (["--model", "{folder}/none"], "none"),
        (["--device", "abacus"], "abacus"),
    ],
)
def test_a_bad_option_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    for name, text in (("empty", "# none\n"), ("twice", f"{TOKEN}\n{TOKEN}\n"), ("good", f"{TOKEN}\n")):
        (tmp_path / name).write_text(text)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        filled = [one.format(taken=taken.getsockname()[1], folder=tmp_path) for one in options]
        default = [] if "--port" in options else ["--port", "0"]
        code = main(["serve", *default, *filled])
    err = capsys.readouterr().err
    assert code == 2 and said in err and len(err.strip().splitlines()) == 1, err
