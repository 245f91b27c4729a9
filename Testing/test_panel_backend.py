"""The process of the backend on this computer: it starts when needed, serves, says what is wrong, and ends.

A real one starts once, in `real`; what must start again has a smaller program in its place.
"""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

from processes import is_running, posix, script, until
from SDFSMISLib.client import BackendError, Client
from SDFSMISLib.client.errors import TokenRefused
from SDFSMISLib.errors import Cancelled, InputError
from SDFSMISLib.workbench.local_backend import LocalBackend, LocalBackendState
from serving import task

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def real() -> Iterator[LocalBackend]:
    """A real backend with the built-in weights."""
    backend = LocalBackend(sys.executable, os.environ, device="cpu")
    yield backend
    backend.stop()


def test_two_threads_that_ask_at_once_get_one_process(real: LocalBackend) -> None:
    urls: list[str] = []
    lines: list[str] = []
    threads = [threading.Thread(target=lambda: urls.append(real.client(on_log=lines.append).url)) for _ in range(2)]
    for thread in threads:
        thread.start()
    until(lambda: real.state is LocalBackendState.STARTING)
    assert "starting" in real.status
    for thread in threads:
        thread.join()
    assert len(urls) == 2 and len(set(urls)) == 1
    assert real.state is LocalBackendState.RUNNING and "version" in real.status
    assert real.client().capabilities().models[0].name == "built-in"
    until(lambda: "SDFSMIS" in real.log and "SDFSMIS" in "".join(lines))


def test_its_token_is_asked_for_and_is_not_in_its_log(real: LocalBackend) -> None:
    client, process, small = real.client(), real._holder.process, task((6, 40, 40))
    assert process is not None and len(process.token) >= 16
    with pytest.raises(TokenRefused):
        Client(client.url).capabilities()
    with client.segment(small.stacks, small.support) as run:
        assert len(list(run)) == 5
    until(lambda: "run done" in real.log)
    assert process.token not in real.log


def test_stopping_ends_it_at_once_and_can_be_done_again(real: LocalBackend) -> None:
    process = process_of(real)
    real.stop()
    assert process.poll() is not None
    real.stop()
    assert real.state is LocalBackendState.STOPPED and "when it is needed" in real.status


@posix
def test_one_that_has_died_is_started_again(tmp_path: Path) -> None:
    backend = LocalBackend(small_backend(tmp_path), os.environ)
    first = backend.client().url
    assert backend.client().capabilities().models[0].name == "small"
    process_of(backend).kill()
    until(lambda: backend.state is LocalBackendState.FAILED)
    assert "ended by itself" in backend.status
    assert backend.client().url != first and backend.client().capabilities()
    backend.stop()


@posix
def test_it_ends_when_the_object_is_deleted(tmp_path: Path) -> None:
    backend = LocalBackend(ready_backend(tmp_path), os.environ)
    process = process_of(backend)
    assert process.poll() is None
    del backend
    gc.collect()
    assert process.poll() is not None


@posix
def test_it_ends_when_the_program_that_started_it_is_killed(tmp_path: Path) -> None:
    code = (
        f"import os, sys, time; sys.path[:0] = [{str(ROOT)!r}]\n"
        "from SDFSMISLib.workbench.local_backend import LocalBackend\n"
        f"backend = LocalBackend({small_backend(tmp_path)!r}, os.environ)\n"
        "print(backend.client().url, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        port = int(parent.stdout.readline().rpartition(":")[2])
        socket.create_connection(("127.0.0.1", port)).close()
        parent.kill()
    until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) != 0)


@posix
def test_stopping_while_it_starts_ends_the_start_for_all_who_wait(tmp_path: Path) -> None:
    mark = tmp_path / "process"
    backend = LocalBackend(script(tmp_path, f'echo $$ > "{mark}.new"; mv "{mark}.new" "{mark}"; exec sleep 60'), {})
    outcomes: list[type] = []

    def ask() -> None:
        try:
            backend.client()
        except Exception as error:
            outcomes.append(type(error))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    until(mark.exists)
    backend.stop()
    for thread in threads:
        thread.join()
    assert outcomes == [Cancelled, Cancelled] and backend.state is LocalBackendState.STOPPED
    assert not is_running(int(mark.read_text()))


@posix
def test_one_who_waits_can_give_up_and_the_start_goes_on(tmp_path: Path) -> None:
    go = tmp_path / "go"
    backend = LocalBackend(ready_backend(tmp_path, f'while [ ! -e "{go}" ]; do sleep 0.05; done'), os.environ)
    starter = threading.Thread(target=backend.client)
    starter.start()
    until(lambda: backend.state is LocalBackendState.STARTING)
    with pytest.raises(Cancelled):
        backend.client(cancel=lambda: True)
    go.touch()
    starter.join()
    assert backend.state is LocalBackendState.RUNNING
    backend.stop()


@posix
def test_one_that_does_not_start_says_why_and_is_tried_again(tmp_path: Path) -> None:
    backend = LocalBackend(script(tmp_path, "echo There is no such model. >&2; exit 2"), os.environ, model="none")
    for _ in range(2):
        with pytest.raises(BackendError, match="There is no such model"):
            backend.client()
        assert backend.state is LocalBackendState.FAILED and "exit status 2" in backend.status
    assert backend.log.splitlines() == ["There is no such model."] * 2


def test_without_its_python_it_is_absent(tmp_path: Path) -> None:
    backend = LocalBackend(str(tmp_path / "python"), os.environ)
    assert backend.state is LocalBackendState.ABSENT and "not installed" in backend.status
    with pytest.raises(InputError, match="install SDFSMIS"):
        backend.client()
    backend.stop()


def process_of(backend: LocalBackend) -> subprocess.Popen[str]:
    backend.client()
    process = backend._holder.process
    assert process is not None
    return process._child.process


def ready_backend(folder: Path, before: str = ":") -> str:
    """A program that says that it is ready, and ends when its input closes."""
    return script(folder, before + """\necho '{"url": "http://127.0.0.1:9", "version": "9"}'; exec cat""")


def small_backend(folder: Path) -> str:
    """A program that answers as a backend does, without networks, and ends when its input closes."""
    code = folder / "small.py"
    code.write_text(
        f"import json, os, sys; sys.path[:0] = {[str(ROOT), str(ROOT / 'Testing')]!r}\n"
        "from small_backend import SmallBackend\n"
        "with SmallBackend(token=os.environ['SDFSMIS_TOKEN']).serve() as url:\n"
        "    print(json.dumps({'url': url, 'version': '9.9'}), flush=True)\n"
        "    sys.stdin.read()\n"
    )
    return script(folder, f'exec "{sys.executable}" "{code}"')
