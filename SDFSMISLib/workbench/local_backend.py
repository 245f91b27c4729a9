"""Local backend: a process on this computer that is started when it is needed, and that never outlives its owner.

Local computer: the backend that runs beside Slicer, in an environment of our own or in a Python that is named.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from SDFSMISLib.client import BackendError, BackendProcess, Client, start_backend
from SDFSMISLib.errors import Cancelled, InputError
from SDFSMISLib.options import BUILT_IN
from SDFSMISLib.workbench.background import Cancel
from SDFSMISLib.workbench.environment import Environment, EnvironmentState
from SDFSMISLib.workbench.installation import Installation, Progress, adopt, graphics_cards, usual_build
from SDFSMISLib.workbench.text import tr as _
from SDFSMISLib.workbench.views import BackendChoice

KEPT_LINES = 200
LOOK = 0.1  # seconds between two looks of one that waits until another has started it
PATIENCE = 3.0  # seconds that a process has to end by itself


class LocalBackendState(str, Enum):
    """``ABSENT``: its Python is not there. ``FAILED``: it did not start, or ended by itself; it is started again."""

    ABSENT = "absent"
    STARTING = "starting"
    RUNNING = "running"
    STOPPED = "stopped"
    FAILED = "failed"


class LocalBackend:
    """The backend of one Python with one model and device; all may be used from any thread.

    The process ends by :meth:`stop`, when this object is deleted, and when this program ends in any way.
    """

    def __init__(
        self,
        python: str,
        variables: Mapping[str, str],
        *,
        model: str = BUILT_IN,
        device: str = "auto",
    ) -> None:
        """
        Args:
            python: path of a Python that has SDFSMIS.
            variables: environment variables that it starts with.
            model, device: as ``sdfsmis serve`` takes them.
        """
        self._python, self._variables = str(python), dict(variables)
        self._model, self._device = model, device
        self._own = _Own()
        self._lock = threading.Lock()  # held for moments only, so that the main thread never waits for it
        self._starting = False
        self._failure = ""
        weakref.finalize(self, self._own.stop)

    @property
    def state(self) -> LocalBackendState:
        """What is true of it now."""
        return self._look()[0]

    @property
    def status(self) -> str:
        """The state in a sentence, for people."""
        return self._look()[1]

    @property
    def log(self) -> str:
        """The last lines that it wrote, of earlier processes too."""
        return "\n".join(list(self._own.lines))

    def client(self, cancel: Callable[[], bool] | None = None, on_log: Callable[[str], None] | None = None) -> Client:
        """A client of it. Where it does not run, or has ended, it is started, which takes some seconds.

        Args:
            cancel: asked ten times a second while waiting.
            on_log: called with each line that the process writes which this call starts, in a thread of its own.

        Raises:
            InputError: where its Python is not there.
            BackendError: where it does not start.
            Cancelled: where ``cancel`` said so, or it was stopped meanwhile.
        """
        while True:
            if not Path(self._python).is_file():
                raise InputError(f"There is no Python {self._python}; install SDFSMIS, or name another Python.")
            with self._lock:
                process = self._own.process
                if process is not None and process.poll() is None:
                    return process.client()
                mine = not self._starting
                if mine:
                    self._starting, self._failure = True, ""
                    self._own.stopped, self._own.ended = threading.Event(), threading.Event()
                stopped, ended = self._own.stopped, self._own.ended
            if mine:
                return self._start(stopped, cancel, on_log)
            while not ended.wait(LOOK):
                if cancel is not None and cancel():
                    raise Cancelled("Waiting for the backend was cancelled.")
            if stopped.is_set():
                raise Cancelled("The backend was stopped while it started.")
            if self._failure:
                raise BackendError(self._failure)

    def stop(self) -> None:
        """End it, or its start; safe at any time, and again. It takes a moment, and some seconds at most."""
        self._own.stop()

    def _start(
        self,
        stopped: threading.Event,
        cancel: Callable[[], bool] | None,
        on_log: Callable[[str], None] | None,
    ) -> Client:
        """The one that starts it, while the others wait."""
        own = self._own
        own.stop_process()  # what is left of one that ended by itself
        try:
            process = start_backend(
                self._python,
                model=self._model,
                device=self._device,
                environment=self._variables,
                on_log=own.writer(on_log),
                cancel=lambda: stopped.is_set() or (cancel is not None and cancel()),
            )
            if not own.take(process, stopped):
                raise Cancelled("The backend was stopped while it started.")
            return process.client()
        except (InputError, BackendError) as error:
            self._failure = str(error)
            raise
        finally:
            with self._lock:
                self._starting = False
                own.ended.set()

    def _look(self) -> tuple[LocalBackendState, str]:
        process = self._own.process
        if self._starting:
            return LocalBackendState.STARTING, "The backend on this computer is starting."
        if process is not None and process.poll() is None:
            return LocalBackendState.RUNNING, f"The backend runs on this computer (version {process.version})."
        if not Path(self._python).is_file():
            return LocalBackendState.ABSENT, "The backend on this computer is not installed."
        if process is not None:
            said = f"The backend on this computer ended by itself (exit status {process.poll()})"
            return LocalBackendState.FAILED, f"{said}; it is started again when it is needed."
        if self._failure:
            return LocalBackendState.FAILED, self._failure.partition("\n")[0]
        return LocalBackendState.STOPPED, "The backend on this computer is started when it is needed."


class _Own:
    """The process and its log, apart from the object that is deleted: what ends the process must not keep that alive.

    ``stopped`` is what was said to the start that goes on, ``ended`` is set when that start is over.
    """

    def __init__(self) -> None:
        self.process: BackendProcess | None = None
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.stopped, self.ended = threading.Event(), threading.Event()
        self.ended.set()
        self._lock = threading.Lock()

    def writer(self, on_log: Callable[[str], None] | None) -> Callable[[str], None]:
        lines = self.lines

        def write(line: str) -> None:
            lines.append(line)
            if on_log is not None:
                on_log(line)

        return write

    def take(self, process: BackendProcess, stopped: threading.Event) -> bool:
        """Whether it is taken; one that was stopped while it started is ended instead."""
        with self._lock:
            if not stopped.is_set():
                self.process = process
                return True
        process.stop(PATIENCE)
        return False

    def stop(self) -> None:
        with self._lock:
            self.stopped.set()
        self.stop_process()
        self.ended.wait(PATIENCE)

    def stop_process(self) -> None:
        with self._lock:
            process, self.process = self.process, None
        if process is not None:
            process.stop(PATIENCE)


STATES = {
    LocalBackendState.ABSENT: "bad",
    LocalBackendState.STARTING: "busy",
    LocalBackendState.RUNNING: "good",
    LocalBackendState.STOPPED: "unknown",
    LocalBackendState.FAILED: "bad",
}


@dataclass(frozen=True)
class Places:
    """Where things are on a computer.

    Attributes:
        environment: folder of the environment of our own.
        panel_library: the folder ``SDFSMISLib`` that the panel was loaded from.
        requirements: file of the packages that the backend needs.
        python: the Python that the environment is made of, Slicer's own.
        variables: environment variables that another Python may start with, by name; the first that work are used.
    """

    environment: Path
    panel_library: Path
    requirements: Path
    python: str
    variables: Mapping[str, Mapping[str, str]]


class LocalComputer:
    """Keeps :class:`.backend_access.Computer`; see there."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._environment = Environment(places.environment, places.panel_library, places.requirements, places.variables)
        self.folder = places.environment
        self._lock = threading.Lock()  # held for moments only
        self._making = threading.Lock()
        self._backend: LocalBackend | None = None
        self._made_for: tuple[str, str, str] | None = None
        self._told: tuple[BackendChoice, tuple[str, str]] | None = None

    def is_ready(self, choice: BackendChoice) -> bool:
        if choice.python:
            return True  # whether it fits is told when it is tried
        state = self._environment.state
        return state is EnvironmentState.READY or (
            state is EnvironmentState.OUTDATED and not self._environment.needs_packages  # our own files are copied
        )

    def is_there(self) -> bool:
        return self._environment.is_there

    def status(self, choice: BackendChoice) -> tuple[str, str]:
        said = self._status(choice)
        self._told = choice, said
        return said

    def has_changed(self) -> bool:
        return self._backend is not None and self._told is not None and self._told[1] != self._status(self._told[0])

    def client(self, choice: BackendChoice, say: Callable[[str], None], cancel: Cancel) -> Client:
        with self._making:  # one after the other, so that none stops what another has just made
            with self._lock:
                backend = self._backend if self._made_for == _key(choice) else None
            if backend is None:
                say(_("Preparing the backend on this computer…"))
                backend = self._made(choice, cancel)
                self.stop()
                with self._lock:
                    self._backend, self._made_for = backend, _key(choice)
        say(_("Starting the backend on this computer…"))
        return backend.client(cancel)

    def install(self, options: Sequence[str], again: bool, report: Callable[[float, str], None], cancel: Cancel) -> str:
        def on_progress(progress: Progress) -> None:
            step = _("Step {step} of {steps}. {text}")
            report(progress.share, step.format(step=progress.step, steps=progress.steps, text=progress.text))

        build = usual_build(graphics_cards(next(iter(self._places.variables.values()))))
        return Installation(self._environment, self._places.python, build, options).run(on_progress, cancel, again)

    def remove(self) -> str:
        return self._environment.remove()

    def stop(self) -> None:
        with self._lock:
            backend, self._backend, self._made_for = self._backend, None, None
        if backend is not None:
            backend.stop()

    # -- within --------------------------------------------------------------------------------------------------------

    def _made(self, choice: BackendChoice, cancel: Cancel) -> LocalBackend:
        """Another backend, not started yet."""
        if choice.python:
            adopted = adopt(choice.python, self._places.variables, cancel)
            python, variables = adopted.python, adopted.variables
        else:
            if self._environment.state is EnvironmentState.OUTDATED:  # the panel was updated: its files are copied
                self.install((), False, lambda share, text: None, cancel)
            python, variables = str(self._environment.python), self._environment.environment_variables()
        return LocalBackend(python, variables, model=choice.model or BUILT_IN, device=choice.device)

    def _status(self, choice: BackendChoice) -> tuple[str, str]:
        backend = self._backend if self._made_for == _key(choice) else None
        if backend is not None:
            return backend.status, STATES[backend.state]
        if choice.python:
            return _("The Python that is named is tried when it is needed."), "unknown"
        state = self._environment.state
        if state is EnvironmentState.READY:
            return _("Installed; it starts when it is needed."), "unknown"
        if state is EnvironmentState.OUTDATED:
            return _(
                "Installed by another version of this panel; it is brought up to date when it is needed."
            ), "unknown"
        if state is EnvironmentState.INCOMPLETE:
            return _("An installation was cut off. Install it again; what was downloaded is used."), "bad"
        return _("Not installed yet. Press Segment or Install; you are asked before anything is downloaded."), "unknown"


def _key(choice: BackendChoice) -> tuple[str, str, str]:
    """What makes it another backend."""
    return choice.python, choice.model, choice.device
