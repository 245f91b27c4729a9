"""A backend of one's own: it starts, says where it is, writes a log, fails in a sentence, and ends with its parent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from SDFSMISLib.client.backend_process import start_backend
from SDFSMISLib.client.errors import BackendFailed
from SDFSMISLib.errors import Cancelled, InputError

READY = 'print(json.dumps({"url": "http://127.0.0.1:9", "version": "9.9"}), flush=True)\n'
UNTIL_STDIN_CLOSES = "sys.stdin.read()\n"


@pytest.fixture
def stand_in(tmp_path: Path) -> Callable[..., list[str]]:
    """Makes a program that takes the place of Python; it gets the arguments that Python would get."""

    def made(*parts: str) -> list[str]:
        program = tmp_path / "stand_in.py"
        code = "import json, os, sys, time\n" + "\n".join(map(textwrap.dedent, parts))
        program.write_text(code, encoding="utf-8")
        return [sys.executable, str(program)]

    return made


def test_it_is_started_with_a_token_that_no_other_process_can_see(stand_in, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/of/another/python")
    monkeypatch.setenv("OF_THE_USER", "kept")
    lines: list[str] = []
    code = """
        print(json.dumps([sys.argv[1:], dict(os.environ)]), file=sys.stderr, flush=True)
    """
    python = stand_in(code, READY, UNTIL_STDIN_CLOSES)
    with start_backend(python, model="a folder", device="cpu", arguments=["--queue", "3"], on_log=lines.append) as one:
        with start_backend(python, on_log=lines.append) as two:
            assert one.token != two.token and min(len(one.token), len(two.token)) >= 32
        assert (one.url, one.version, one.poll()) == ("http://127.0.0.1:9", "9.9", None)
        assert one.client().url == one.url
    assert one.poll() == 0
    first = next(line for line in lines if "a folder" in line)
    words = ["-m", "SDFSMISLib.cli", "serve", "--port", "0", "--until-stdin-closes"]
    words += ["--model", "a folder", "--device", "cpu", "--queue", "3"]
    arguments, variables = json.loads(first)
    assert arguments == words
    assert variables["SDFSMIS_TOKEN"] == one.token and variables["OF_THE_USER"] == "kept"
    assert "PYTHONPATH" not in variables and "PYTHONHOME" not in variables


def test_the_environment_can_be_given(stand_in, monkeypatch) -> None:
    monkeypatch.setenv("OF_SLICER", "1")
    lines: list[str] = []
    code = "print(sorted(os.environ), file=sys.stderr, flush=True)\n" + READY + UNTIL_STDIN_CLOSES
    outside = {name: value for name, value in os.environ.items() if name != "OF_SLICER"}
    with start_backend(stand_in(code), environment={**outside, "OUTSIDE": "1"}, on_log=lines.append):
        pass
    assert "'OUTSIDE'" in lines[0] and "'OF_SLICER'" not in lines[0]


def test_all_that_it_writes_is_told_and_what_is_no_announcement_is_log(stand_in) -> None:
    code = """
        print("a library says hello")
        print("[1, 2]")
        print("ünïcode is read", file=sys.stderr, flush=True)
    """
    late = 'print("later\\nlast", file=sys.stderr, flush=True)\n'
    lines: list[str] = []
    with start_backend(stand_in(code, READY, late, UNTIL_STDIN_CLOSES), on_log=lines.append) as backend:
        assert backend.version == "9.9"
    assert sorted(lines) == sorted(["a library says hello", "[1, 2]", "ünïcode is read", "later", "last"])
    assert {"later", "last"} <= set(backend.log().splitlines())


def test_a_log_that_is_long_or_cannot_be_shown_stops_nothing(stand_in) -> None:
    code = """
        for number in range(20_000):
            print("x" * 50, number, file=sys.stderr)
            print("y" * 50, number)
    """

    def broken(line: str) -> None:
        raise RuntimeError("no window")

    with start_backend(stand_in(code, READY, UNTIL_STDIN_CLOSES), on_log=broken) as backend:
        assert backend.poll() is None
    assert 20 < len(backend.log().splitlines()) <= 30


def test_one_that_ends_before_it_is_ready_says_why(stand_in) -> None:
    code = """
        print("There is no model there.", file=sys.stderr)
        sys.exit(2)
    """
    with pytest.raises(BackendFailed, match=r"exit status 2.*\nThere is no model there."):
        start_backend(stand_in(code))


def test_a_python_without_the_package_says_so(tmp_path: Path) -> None:
    with pytest.raises(BackendFailed, match="No module named"):
        start_backend([sys.executable, "-S", "-I"], environment={**os.environ})


@pytest.mark.parametrize("python", ["/there/is/no/python", "", ["\0"]])
def test_a_python_that_cannot_be_run_is_refused(python) -> None:
    with pytest.raises(InputError, match="cannot be run"):
        start_backend(python)


def test_one_that_is_not_ready_in_time_is_ended(stand_in, tmp_path: Path) -> None:
    mark = tmp_path / "process"
    code = f"""
        open({str(mark)!r}, "w").write(str(os.getpid()))
        print("Loading.", file=sys.stderr, flush=True)
        time.sleep(60)
    """
    with pytest.raises(BackendFailed, match=r"not ready within 1.5 seconds.*\nLoading."):
        start_backend(stand_in(code), timeout=1.5)
    assert not is_running(int(mark.read_text()))


def test_starting_can_be_cancelled(stand_in, tmp_path: Path) -> None:
    mark = tmp_path / "process"
    code = f"""
        open({str(mark)!r} + ".new", "w").write(str(os.getpid()))
        os.replace({str(mark)!r} + ".new", {str(mark)!r})
        time.sleep(60)
    """
    with pytest.raises(Cancelled):
        start_backend(stand_in(code), cancel=mark.exists)
    assert not is_running(int(mark.read_text()))


def test_one_that_closes_its_output_and_stays_is_ended(stand_in) -> None:
    with pytest.raises(BackendFailed, match="ended before it was ready"):
        start_backend(stand_in("os.close(1); sys.stdin.read()"))


def test_stopping_lets_it_end_by_itself_and_can_be_done_twice(stand_in, tmp_path: Path) -> None:
    mark = tmp_path / "ended"
    backend = start_backend(stand_in(READY + UNTIL_STDIN_CLOSES + f"open({str(mark)!r}, 'w').close()"))
    backend.stop()
    backend.stop()
    assert backend.poll() == 0 and mark.exists()


@pytest.mark.skipif(os.name == "nt", reason="there a process cannot refuse to be terminated")
def test_one_that_does_not_listen_is_ended_by_force(stand_in, monkeypatch) -> None:
    monkeypatch.setattr("SDFSMISLib.client.backend_process.TERMINATION", 0.2)
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + READY + "time.sleep(60)"
    backend = start_backend(stand_in(deaf))
    backend.stop(timeout=0.1)
    assert backend.poll() == -9


def test_it_ends_when_its_parent_is_killed(stand_in, tmp_path: Path) -> None:
    mark = tmp_path / "ended"
    python = stand_in(READY + UNTIL_STDIN_CLOSES + f"open({str(mark)!r}, 'w').close()")
    parent = (
        "from SDFSMISLib.client.backend_process import start_backend\n"
        f"start_backend({python!r})\n"
        "print('started', flush=True)\n"
        "import time; time.sleep(60)"
    )
    root = Path(__file__).resolve().parent.parent
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdout is not None and process.stdout.readline() == "started\n"
        process.kill()
    until = time.monotonic() + 10
    while not mark.exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert mark.exists()


def test_one_that_dies_later_is_seen_and_its_log_is_kept(stand_in, tmp_path: Path) -> None:
    mark = tmp_path / "die"
    code = f"""
        while not os.path.exists({str(mark)!r}):
            time.sleep(0.01)
        print("Out of memory.", file=sys.stderr, flush=True)
        os._exit(3)
    """
    lines: list[str] = []
    with start_backend(stand_in(READY, code), on_log=lines.append) as backend:
        assert backend.poll() is None
        mark.touch()
        until = time.monotonic() + 10
        while backend.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        assert backend.poll() == 3
    assert lines == ["Out of memory."] and backend.log() == "Out of memory."


def is_running(number: int) -> bool:
    """Whether a process of that number is there."""
    if os.name == "nt":
        return False  # to ask this way would end it there
    try:
        os.kill(number, 0)
    except OSError:
        return False
    return True
