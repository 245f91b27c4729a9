"""The process in which weights learn: `python -m SDFSMISLib.server.learning_child`.

What to do comes as one line of JSON on standard input, whose end means to stop; what happens is told as lines of JSON
on standard output. The backend starts one for each adaptation, so that learning takes neither its threads nor its
memory with it, whatever becomes of either.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from SDFSMISLib.errors import Cancelled, InputError
from SDFSMISLib.server.entrance import when_stdin_closes
from SDFSMISLib.server.folder_lock import locked
from SDFSMISLib.server.models import LearnedModel, Outcome

__all__ = ["ChildRequest", "main"]

NICE = 10  # by how much others come first
END_SECONDS = 20.0  # in which it ends by itself, once it was told to
LOCK_SECONDS = 60.0  # that a child of a backend which was killed may still take to notice
LOOK = 0.2
REPORT = ("report.html", "pictures")  # they show slices of the scans, and nobody reads them here

Say = Callable[[int, int, str], None]


@dataclass(frozen=True)
class ChildRequest:
    """What the backend asks for.

    Attributes:
        folder: of the `LearnedModel`.
        scans: files. model: weights to begin with. device: for `adapt`.
    """

    folder: str
    scans: tuple[str, ...]
    model: str
    device: str


def main() -> None:
    """Learn once, as standard input says."""
    records = _own_output()
    request = _request()
    stdin = _own_input()
    cancelled = threading.Event()

    def end() -> None:
        cancelled.set()
        time.sleep(END_SECONDS)
        os._exit(1)  # nobody is there any more to do it; what was kept so far is whole

    when_stdin_closes(end, stdin)
    if sys.platform != "win32":  # where the backend says it when it starts the process
        os.nice(NICE)

    def say(done: int, total: int, text: str) -> None:
        _tell(records, {"type": "progress", "done": done, "total": total, "text": _without_places(text, request)})

    say(0, 1, "Starting")  # which takes some seconds, for libraries that are large
    _tell(records, _learned(request, say, cancelled.is_set))


class _InUse(RuntimeError):
    """Another process has the folder."""


def _learned(request: ChildRequest, say: Say, cancel: Callable[[], bool]) -> dict[str, Any]:
    """The last record: how it ended."""
    try:
        with _alone(Path(request.folder), cancel):
            _learn(request, say, cancel)
        return {"type": "done"}
    except Cancelled:
        return {"type": "cancelled"}
    except InputError as error:
        return _error("invalid_input", _without_places(str(error), request))
    except _InUse as error:
        return _cut("failed", str(error))
    except Exception as error:
        from SDFSMISLib.inference.networks import is_out_of_memory

        traceback.print_exc()
        if is_out_of_memory(error):
            return _cut("out_of_memory", "The backend's device has too little memory to learn beside what runs there.")
        return _error("failed", f"Learning failed ({type(error).__name__}); the backend's log tells more.")


def _learn(request: ChildRequest, say: Say, cancel: Callable[[], bool]) -> None:
    from SDFSMISLib.model.digest import weights_digest
    from SDFSMISLib.model.loading import load_pipeline
    from SDFSMISLib.training.adaptation import adapt

    model = LearnedModel.read(Path(request.folder))
    if model.outcome is not None:  # by a child of a backend that was killed, while this one waited for it
        return
    if not (model.pipeline / "work" / "state.json").exists() or (model.pipeline / "model_index.json").exists():
        shutil.rmtree(model.pipeline, ignore_errors=True)  # cut before there was anything, or between two last steps
    scans = [Path(scan) for scan in request.scans]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they name files; what the user has to know is in `skipped`
        made = adapt(scans, model.pipeline, request.model, model.lesson.minutes, request.device, say, cancel)
    for name in REPORT:
        _remove(model.pipeline / name)
    pipeline = load_pipeline(model.pipeline, "cpu")  # as those who use it will, whatever type it was kept in
    model.finish(
        Outcome(
            weights_sha256=weights_digest(pipeline),
            resolution=pipeline.config.resolution,
            improved=made.improved,
            before=made.start.mean,
            after=made.kept.mean,
            steps=made.steps,
            seconds=made.seconds,
            scans=made.scans,
            skipped=tuple(_without_places(why, request) for why in made.skipped),
        )
    )


def _alone(folder: Path, cancel: Callable[[], bool]) -> IO[bytes]:
    """The folder, once a child before has left it. Raises `Cancelled`, or `_InUse` where that does not end."""
    end = time.monotonic() + LOCK_SECONDS
    while time.monotonic() < end:
        try:
            return locked(folder)
        except BlockingIOError:
            if cancel():
                raise Cancelled("It was cancelled before it began.") from None
            time.sleep(LOOK)
    raise _InUse("The learning process of before does not end; ask again later, or start the backend again.")


def _request() -> ChildRequest:
    """The first line of standard input; read as it comes, so that the end of the stream can be waited for."""
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(sys.stdin.fileno(), 1 << 16)
        if not part:
            raise SystemExit("Standard input ended before it said what to do; the backend starts this program.")
        line += part
    content = json.loads(line)
    return ChildRequest(**content | {"scans": tuple(content["scans"])})


def _own_output() -> IO[str]:
    """Standard output for records alone: whatever a library prints goes to standard error."""
    records = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return records


def _own_input() -> int:
    """Where standard input is from now on: for whatever a library looks at there is nothing in its place, since on
    Windows a library that is loaded while a thread reads from there waits for that thread."""
    stdin = sys.stdin.fileno()
    kept = os.dup(stdin)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, stdin)
    os.close(nothing)
    return kept


def _tell(records: IO[str], record: dict[str, Any]) -> None:
    records.write(json.dumps(record) + "\n")
    records.flush()


def _error(code: str, message: str) -> dict[str, Any]:
    return {"type": "error", "code": code, "message": message}


def _cut(code: str, message: str) -> dict[str, Any]:
    """A failure that may be over when the same is asked for again, which then goes on."""
    return {"type": "cut", "code": code, "message": message}


def _without_places(text: str, request: ChildRequest) -> str:
    """A text for clients: it names scans by the beginning of their hash, and none of the backend's folders."""
    for scan in map(Path, request.scans):
        short = f"scan {scan.name[:12]}"
        text = text.replace(str(scan), short).replace(scan.name, short)
    return text.replace(request.folder, "the backend's folder")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
