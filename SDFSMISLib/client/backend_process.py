"""A backend on this computer: a process of another Python that ends with the program that has started it."""

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
from SDFSMISLib.options import BUILT_IN

__all__ = ["BackendProcess", "start_backend"]

TOKEN_VARIABLE = "SDFSMIS_TOKEN"
NOT_INHERITED = ("PYTHONHOME", "PYTHONPATH")  # 3D Slicer sets them for its own Python; another one would not start
KEPT_LINES = 30
if sys.platform == "win32":
    NO_WINDOW = subprocess.CREATE_NO_WINDOW
else:
    NO_WINDOW = 0
POLL_SECONDS = 0.1  # between two checks for cancellation
TERMINATION = 5.0  # seconds between SIGTERM and SIGKILL


@dataclass(eq=False)
class BackendProcess:
    """A running backend, stopped by :meth:`stop`, by the end of its ``with`` block, or by the end of this process.

    Attributes:
        url: its address, reachable from this computer only.
        token: the token that its requests need, made for this process.
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
        """A new client of the backend."""
        return Client(self.url, self.token)

    def poll(self) -> int | None:
        """None while the process runs, then its exit status."""
        return self._child.process.poll()

    def log(self) -> str:
        """The last lines of its log."""
        return self._child.last_lines()

    def stop(self, timeout: float = 10.0) -> None:
        """Ask it to end by closing its standard input; after ``timeout`` seconds end it by force."""
        self._child.stop(timeout)


def start_backend(
    python: str | Sequence[str] = sys.executable,
    *,
    model: str = BUILT_IN,
    device: str = "auto",
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    on_log: Callable[[str], None] | None = None,
    timeout: float = 120.0,
    cancel: Callable[[], bool] | None = None,
) -> BackendProcess:
    """Start a backend on a free port of this computer and wait until it answers.

    Args:
        python: a Python that has this package, or a command that runs one.
        model, device: options of ``sdfsmis serve``.
        arguments: further options of ``sdfsmis serve``.
        environment: variables; None = those of this process. PYTHONHOME and PYTHONPATH are left out, since they belong
            to the Python of this process.
        on_log: called with each line of the backend's log, in another thread.
        timeout: seconds to wait; loading a large model from a slow disk takes a minute.
        cancel: called several times a second while waiting; True ends the backend.

    Raises:
        InputError: if ``python`` cannot be run.
        BackendFailed: if the backend ends before it answers, or does not answer in time; with its last lines.
        Cancelled: if ``cancel`` returned True.
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
        announced = child.announcement(timeout, cancel)
        return BackendProcess(str(announced["url"]), token, str(announced["version"]), child)
    except BaseException:
        child.stop(0)
        raise


class _Child:
    """A process and the threads that read its output; without them it would stop when a pipe is full."""

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
        self._announcements: queue.SimpleQueue[dict[str, str] | None] = queue.SimpleQueue()
        self._readers = [
            threading.Thread(target=target, args=(pipe,), daemon=True)
            for target, pipe in ((self._read_output, self.process.stdout), (self._read_log, self.process.stderr))
        ]
        for reader in self._readers:
            reader.start()

    def announcement(self, timeout: float, cancel: Callable[[], bool] | None) -> dict[str, str]:
        """Wait for the line of JSON that the backend prints when it is ready: ``url`` and ``version``."""
        until = time.monotonic() + timeout
        while True:
            if cancel is not None and cancel():
                raise Cancelled("Starting the backend was cancelled.")
            with suppress(queue.Empty):
                announced = self._announcements.get(timeout=POLL_SECONDS)
                if announced is not None:
                    return announced
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
        """Read standard output: the announcement, and whatever else a library prints, which is part of the log."""
        for line in self._each_line(pipe):
            announced = _parse_announcement(line)
            if announced is None:
                self._log(line)
            else:
                self._announcements.put(announced)
        self._announcements.put(None)

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


def _parse_announcement(line: str) -> dict[str, str] | None:
    with suppress(ValueError):
        fields = json.loads(line)
        if isinstance(fields, dict) and {"url", "version"} <= fields.keys():
            return fields
    return None
