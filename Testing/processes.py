"""Other processes in tests: a command, programs that are scripts, and whether something has happened there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

import pytest

posix = pytest.mark.skipif(os.name == "nt", reason="needs programs that are scripts")


def until(is_so: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for something that happens in another thread or process."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def script(folder: Path, text: str) -> str:
    """A program that takes the place of Python."""
    program = folder / f"program{len(list(folder.glob('program*')))}"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    return str(program)


ROOT = Path(__file__).resolve().parent.parent


class Command:
    """`sdfsmis` with some words in a process of its own, which reads nothing.

    On Linux the process is a fork of this one, which has imported already what takes ten seconds to import; make it
    where no other thread works. Elsewhere it is a new Python.

    Attributes:
        pid: its number.
        stdout, stderr: what it writes.
    """

    stdout: IO[str]
    stderr: IO[str]

    def __init__(self, *words: object, **variables: str) -> None:
        self._returncode: int | None = None
        self._child: subprocess.Popen[str] | None = None
        if sys.platform == "linux":
            out, err = os.pipe(), os.pipe()
            self.pid = os.fork()
            if self.pid == 0:
                _run_command([str(word) for word in words], variables, out[1], err[1])
            for _, end in (out, err):
                os.close(end)
            self.stdout, self.stderr = (os.fdopen(begin, encoding="utf-8") for begin, _ in (out, err))
            return
        self._child = subprocess.Popen(
            [sys.executable, "-m", "SDFSMISLib.cli", *map(str, words)],
            cwd=ROOT,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._child.stdout is not None and self._child.stderr is not None
        self.pid, self.stdout, self.stderr = self._child.pid, self._child.stdout, self._child.stderr

    def send_signal(self, number: signal.Signals) -> None:
        if self._returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once; nothing is tidied up. Harmless after its end."""
        if self._child is not None:
            self._child.kill()
        else:
            self.send_signal(signal.SIGKILL)

    def wait(self) -> int:
        """Its exit code, when it has ended; -N if signal N has ended it."""
        if self._child is not None:
            return self._child.wait()
        if self._returncode is None:
            self._returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._returncode

    def end(self) -> None:
        """Kill it and close its pipes."""
        self.kill()
        self.wait()
        self.stdout.close()
        self.stderr.close()


def _run_command(words: list[str], variables: Mapping[str, str], out: int, err: int) -> None:
    """In the fork: the command, and the end of the process, whatever happens."""
    code = 70
    try:
        null = os.open(os.devnull, os.O_RDONLY)
        for mine, standard in ((null, 0), (out, 1), (err, 2)):
            os.dup2(mine, standard)
        os.closerange(3, 1 << 16)  # sockets of this process, which would stay open with the fork
        sys.stdin, sys.stdout, sys.stderr = (
            os.fdopen(number, mode, encoding="utf-8") for number, mode in ((0, "r"), (1, "w"), (2, "w"))
        )
        os.environ.update(variables)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a pytest-xdist process ignores
        from SDFSMISLib.cli.app import main

        code = main(words)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def is_running(number: int) -> bool:
    """Whether a process of that number is there."""
    if os.name == "nt":
        return False  # to ask this way would end it there
    try:
        os.kill(number, 0)
    except OSError:
        return False
    state = Path(f"/proc/{number}/stat")
    return not (state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z")  # one that nobody buries
