"""Command: a program that is run to its end, line by line, and can be ended with everything that it started."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from SDFSMISLib.errors import Cancelled, InputError

__all__ = ["Finished", "clean", "run_command"]

if sys.platform == "win32":
    NO_WINDOW = subprocess.CREATE_NO_WINDOW
else:
    NO_WINDOW = 0

NOT_INHERITED = ("PYTHONHOME", "PYTHONPATH")  # they belong to the Python that runs here; another one would not start
LOOK = 0.1  # seconds between two looks at whether it was cancelled
TERMINATION = 3.0  # seconds between asking the system to end a process and making it


@dataclass(frozen=True)
class Finished:
    """How a program ended: its exit status, and the lines that it wrote."""

    status: int
    lines: tuple[str, ...]


def clean(variables: Mapping[str, str]) -> dict[str, str]:
    """Environment variables as another Python can take them."""
    return {name: value for name, value in variables.items() if name.upper() not in NOT_INHERITED}


def run_command(
    command: Sequence[str],
    variables: Mapping[str, str],
    *,
    folder: Path | None = None,
    on_line: Callable[[str], None] | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Finished:
    """Run a program until it ends.

    Args:
        command: its words.
        variables: its environment variables, all of them; PYTHONHOME and PYTHONPATH are left out.
        folder: where it runs; None = here.
        on_line: called in this thread with each line that it writes.
        cancel: asked ten times a second; True ends the program and all that it started.

    Raises:
        InputError: where it cannot be run.
        Cancelled: where ``cancel`` said so; the program has ended then.
    """
    process = _started(command, variables, folder)
    lines: list[str] = []
    try:
        for line in _lines(process):
            if cancel is not None and cancel():
                raise Cancelled("It was cancelled.")
            if line is not None:
                lines.append(line)
                if on_line is not None:
                    on_line(line)
        return Finished(process.wait(), tuple(lines))
    finally:
        if process.poll() is None:
            _end_tree(process)


def _started(command: Sequence[str], variables: Mapping[str, str], folder: Path | None) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(
            list(command),
            env=clean(variables) | {"PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            creationflags=NO_WINDOW,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise InputError(f"{command[0]} cannot be run ({error}); name a program that is there.") from error


def _lines(process: subprocess.Popen[str]) -> Iterator[str | None]:
    """The lines that come until the end; None whenever a while passed without one."""
    said: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(process, said), daemon=True).start()
    while True:
        try:
            line = said.get(timeout=LOOK)
        except queue.Empty:
            yield None
            continue
        if line is None:
            break
        yield line
    while process.poll() is None:  # it has closed its output and goes on
        with suppress(subprocess.TimeoutExpired):
            process.wait(LOOK)
        yield None


def _read(process: subprocess.Popen[str], said: queue.SimpleQueue[str | None]) -> None:
    assert process.stdout is not None
    with process.stdout as pipe:
        for line in pipe:
            said.put(line.rstrip("\r\n"))
    said.put(None)


def _end_tree(process: subprocess.Popen[str]) -> None:
    """End a process and all that it started."""
    if sys.platform == "win32":
        words = ["taskkill", "/T", "/F", "/PID", str(process.pid)]
        subprocess.run(words, capture_output=True, creationflags=NO_WINDOW, check=False)
    else:
        for kind in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, kind)  # it leads a group of its own
            with suppress(subprocess.TimeoutExpired):
                process.wait(TERMINATION)
    process.kill()
    process.wait()
