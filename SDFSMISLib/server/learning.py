"""One adaptation while it runs: its process, what it says, and its end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Literal

from SDFSMISLib.server.learning_child import ChildRequest
from SDFSMISLib.server.logs import LOGGER

__all__ = ["Ending", "Learning"]

COMMAND = (sys.executable, "-m", "SDFSMISLib.server.learning_child")
GRACE_SECONDS = 20.0  # in which a process that was told to end does so; a step of large networks takes some
KEPT_LINES = 40
if sys.platform == "win32":
    FLAGS = subprocess.CREATE_NO_WINDOW | subprocess.BELOW_NORMAL_PRIORITY_CLASS
else:
    FLAGS = 0

Record = dict[str, Any]
Ending = Literal["done", "cancelled", "cut", "failed"]
"""`cut` is a failure after which the same request goes on; `failed` is one for good."""


class Learning:
    """A process that learns, from now on.

    Args:
        request: what it is told.
        on_end: called once, in a thread, when the process is gone: with how it ended, and with the code and the message
            of its failure, `cut` or `failed`.
        tell: called with each record of progress, in a thread.

    Raises:
        OSError, RuntimeError: where the process, or a thread that follows it, cannot be started.
    """

    def __init__(
        self, request: ChildRequest, on_end: Callable[[Ending, str, str], None], tell: Callable[[Record], None]
    ) -> None:
        self._on_end = on_end
        self._tell = tell
        self._cancelled = False
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUTF8": "1"},
            creationflags=FLAGS,
            start_new_session=True,  # Ctrl+C in the backend's terminal is the backend's to hear
        )
        self._log = threading.Thread(target=self._read_log, name="learning log", daemon=True)
        self._thread = threading.Thread(target=self._work, args=(request,), name="learning", daemon=True)
        try:
            self._log.start()
            self._thread.start()
        except RuntimeError:  # as many as may be; nobody would follow the process
            self._process.kill()
            self._process.wait()
            raise

    @property
    def is_ending(self) -> bool:
        """Whether it was cancelled and will soon be gone."""
        return self._cancelled

    def cancel(self) -> None:
        """Let it end within a step; by force where that takes too long. Does not wait."""
        if not self._cancelled:
            self._cancelled = True
            threading.Thread(target=self._stop, name="learning end", daemon=True).start()

    def kill(self) -> None:
        """End it by force."""
        self._process.kill()

    def join(self, timeout: float | None = None) -> None:
        """Wait until the process is gone, and all that follows from it is done."""
        self._thread.join(timeout)

    def _work(self, request: ChildRequest) -> None:
        last: Record = {}
        try:
            last = self._told(request)
        except Exception:  # a process that is killed, or one that says what it should not
            LOGGER.exception("learning process cannot be followed")
        finally:
            self._stop()
        self._on_end(*self._ending(last))
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _told(self, request: ChildRequest) -> Record:
        """Hands on what the process says, to its last record; empty where there is none."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        with suppress(OSError, ValueError):  # it has ended, or was cancelled, before it was told
            process.stdin.write(json.dumps(asdict(request)).encode() + b"\n")
            process.stdin.flush()
        for line in process.stdout:
            record = json.loads(line)
            if record["type"] != "progress":
                return record
            self._tell(record)
        return {}

    def _ending(self, last: Record) -> tuple[Ending, str, str]:
        if last.get("type") == "done":
            return "done", "", ""
        if last.get("type") in ("cut", "error"):
            if last["code"] != "invalid_input":
                self._log.join(1.0)
                LOGGER.error("learning failed: %s\n%s", last["message"], "\n".join(self._lines))
            return "cut" if last["type"] == "cut" else "failed", last["code"], last["message"]
        if self._cancelled or last.get("type") == "cancelled":
            return "cancelled", "", ""
        self._log.join(1.0)
        LOGGER.error("learning process ended by %s\n%s", self._process.returncode, "\n".join(self._lines))
        code = self._process.returncode
        return "cut", "failed", f"The learning process ended by itself ({code}); the backend's log tells more."

    def _stop(self) -> None:
        """Tell the process to end and wait until it is gone; by force where that takes too long."""
        with suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read_log(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                self._lines.append(line.decode("utf-8", "replace").rstrip())
