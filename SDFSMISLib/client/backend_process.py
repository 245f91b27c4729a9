"""A backend of one's own: started as a process of another Python, ended with the one that started it."""

from __future__ import annotations

import json
import os
import queue
import secrets
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import IO

from SDFSMISLib.client.client import Client
from SDFSMISLib.client.errors import BackendFailed
from SDFSMISLib.errors import Cancelled, InputError

__all__ = ["BackendProcess", "start_backend"]

TOKEN_VARIABLE = "SDFSMIS_TOKEN"
NOT_INHERITED = ("PYTHONHOME", "PYTHONPATH")  # 3D Slicer sets them for its own Python; another one would not start
KEPT_LINES = 30
if sys.platform == "win32":
    NO_WINDOW = subprocess.CREATE_NO_WINDOW
else:
    NO_WINDOW = 0
LOOK = 0.1  # seconds between two looks at whether it was cancelled
TERMINATION = 5.0  # seconds between asking the system to end a process and making it


@dataclass(eq=False)
class BackendProcess:
    """A running backend, stopped by :meth:`stop`, by its ``with`` block, or by the end of this process.

    Attributes:
        url: where it listens, on this computer only.
        token: that it asks for, made for this one process.
        version: of its program.
    """

    url: str
    token: str
    version: str
    _child: _Child

    def __enter__(self) -> BackendProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def client(self) -> Client:
        """A client of it."""
        return Client(self.url, self.token)

    def poll(self) -> int | None:
        """None while it runs, then its exit status."""
        return self._child.process.poll()

    def log(self) -> str:
        """The last lines that it wrote."""
        return self._child.last_lines()

    def stop(self, timeout: float = 10.0) -> None:
        """End it: by closing its standard input; where it is still there after ``timeout`` seconds, by force."""
        self._child.stop(timeout)


def start_backend(
    python: str | Sequence[str] = sys.executable,
    *,
    model: str = "built-in",
    device: str = "auto",
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    on_log: Callable[[str], None] | None = None,
    timeout: float = 120.0,
    cancel: Callable[[], bool] | None = None,
) -> BackendProcess:
    """Start a backend on a free port of this computer and wait until it answers.

    Args:
        python: a Python that has this package; or the words of a command that take the place of one.
        model: weights, as ``sdfsmis serve`` takes them.
        device: where to compute, as ``sdfsmis serve`` takes it.
        arguments: more of ``sdfsmis serve``.
        environment: variables; None = those of this process. PYTHONHOME and PYTHONPATH are left out, since they belong
            to the Python that runs here.
        on_log: called with each line that the backend writes, in a thread of its own.
        timeout: seconds to wait; loading a large model from a slow disk takes a minute.
        cancel: asked while waiting; True ends the backend.

    Raises:
        InputError: where ``python`` cannot be run.
        BackendFailed: where the backend ends before it answers, or does not answer in time; with its last lines.
        Cancelled: where ``cancel`` said so.
    """
    token = secrets.token_urlsafe(32)
    command = [python] if isinstance(python, str) else list(python)
    command += ["-m", "SDFSMISLib.cli", "serve", "--port", "0", "--until-stdin-closes"]
    command += ["--model", model, "--device", device, *arguments]
    inherited = os.environ if environment is None else environment
    variables = {name: value for name, value in inherited.items() if name not in NOT_INHERITED}
    # The token is no argument: those of a process can be read by all users of a computer.
    variables |= {TOKEN_VARIABLE: token, "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"}
    child = _Child(command, variables, on_log)
    try:
        said = child.announcement(time.monotonic() + timeout, timeout, cancel)
        return BackendProcess(str(said["url"]), token, str(said["version"]), child)
    except BaseException:
        child.stop(0)
        raise


class _Child:
    """A process, and the threads that read what it writes; without them it would stop when a pipe is full."""

    def __init__(
        self, command: Sequence[str], variables: Mapping[str, str], on_log: Callable[[str], None] | None
    ) -> None:
        try:
            self.process = subprocess.Popen(
                command,
                env=dict(variables),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                creationflags=NO_WINDOW,
            )
        except (OSError, ValueError) as error:
            raise InputError(f"{command[0]} cannot be run ({error}); name a Python that has SDFSMIS.") from error
        self._on_log = on_log
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._said: queue.SimpleQueue[dict[str, str] | None] = queue.SimpleQueue()
        self._readers = [
            threading.Thread(target=target, args=(pipe,), daemon=True)
            for target, pipe in ((self._read_output, self.process.stdout), (self._read_log, self.process.stderr))
        ]
        for reader in self._readers:
            reader.start()

    def announcement(self, until: float, timeout: float, cancel: Callable[[], bool] | None) -> dict[str, str]:
        """What the backend says when it is ready."""
        while True:
            if cancel is not None and cancel():
                raise Cancelled("Starting the backend was cancelled.")
            with suppress(queue.Empty):
                said = self._said.get(timeout=LOOK)
                if said is not None:
                    return said
                self.stop(TERMINATION)
                raise BackendFailed(
                    f"The backend ended before it was ready (exit status {self.process.returncode}). Its last lines "
                    f"say why:\n{self.last_lines()}"
                )
            if time.monotonic() > until:
                raise BackendFailed(
                    f"The backend was not ready within {timeout:g} seconds. Try again; its last lines may say why:\n"
                    f"{self.last_lines()}"
                )

    def last_lines(self) -> str:
        return "\n".join(list(self._lines))

    def stop(self, timeout: float) -> None:
        with suppress(OSError):
            assert self.process.stdin is not None
            self.process.stdin.close()
        for end, seconds in ((self.process.terminate, timeout), (self.process.kill, TERMINATION)):
            try:
                self.process.wait(seconds)
                break
            except subprocess.TimeoutExpired:
                end()
        self.process.wait()
        for reader in self._readers:  # they read its last lines; a child of its own may keep the pipes open
            reader.join(TERMINATION)

    def _read_output(self, pipe: IO[str]) -> None:
        """The line that says where it listens; whatever else a library prints is part of the log."""
        for line in self._each_line(pipe):
            said = _announced(line)
            if said is None:
                self._log(line)
            else:
                self._said.put(said)
        self._said.put(None)

    def _read_log(self, pipe: IO[str]) -> None:
        for line in self._each_line(pipe):
            self._log(line)

    @staticmethod
    def _each_line(pipe: IO[str]) -> Iterator[str]:
        with pipe:
            for line in pipe:
                yield line.rstrip("\r\n")

    def _log(self, line: str) -> None:
        self._lines.append(line)
        if self._on_log is not None:
            with suppress(Exception):  # a log that cannot be shown must not stop the backend
                self._on_log(line)


def _announced(line: str) -> dict[str, str] | None:
    with suppress(ValueError):
        said = json.loads(line)
        if isinstance(said, dict) and {"url", "version"} <= said.keys():
            return said
    return None
