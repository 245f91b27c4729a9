"""The backend on this computer: its environment, and its process, which starts when needed and ends with its owner."""

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
from SDFSMISLib.workbench.installation import Installation, Progress, graphics_cards, inspect_python, usual_build
from SDFSMISLib.workbench.text import tr as _
from SDFSMISLib.workbench.views import BackendChoice

KEPT_LINES = 200
POLL_SECONDS = 0.1  # seconds between two looks of one that waits until another has started it
PATIENCE = 3.0  # seconds that a process has to end by itself


class LocalBackendState(str, Enum):
    """State of the process.

    ``ABSENT``: its Python does not exist. ``FAILED``: it did not start, or ended by itself; the next use
    starts it again.
    """

    ABSENT = "absent"
    STARTING = "starting"
    RUNNING = "running"
    STOPPED = "stopped"
    FAILED = "failed"


class LocalBackend:
    """The backend process of one Python with one model and device; all methods may be called from any thread.

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
        self._holder = _ProcessHolder()
        self._lock = threading.Lock()  # held for moments only, so that the main thread never waits for it
        self._starting = False
        self._failure = ""
        weakref.finalize(self, self._holder.stop)

    @property
    def state(self) -> LocalBackendState:
        """State of the process now."""
        return self._state_and_status()[0]

    @property
    def status(self) -> str:
        """The state in a sentence."""
        return self._state_and_status()[1]

    @property
    def log(self) -> str:
        """The last lines that the process wrote, and earlier ones."""
        return "\n".join(list(self._holder.lines))

    def client(self, cancel: Callable[[], bool] | None = None, on_log: Callable[[str], None] | None = None) -> Client:
        """A client of the process, which is started if it does not run; that takes some seconds.

        Args:
            cancel: called ten times a second while waiting; True stops waiting.
            on_log: called, in another thread, with each line that a process started by this call writes.

        Raises:
            InputError: if its Python does not exist.
            BackendError: if it does not start.
            Cancelled: if ``cancel`` returned True, or the process was stopped meanwhile.
        """
        while True:
            if not Path(self._python).is_file():
                raise InputError(f"There is no Python {self._python}; install SDFSMIS, or name another Python.")
            with self._lock:
                process = self._holder.process
                if process is not None and process.poll() is None:
                    return process.client()
                mine = not self._starting
                if mine:
                    self._starting, self._failure = True, ""
                    self._holder.stopped, self._holder.ended = threading.Event(), threading.Event()
                stopped, ended = self._holder.stopped, self._holder.ended
            if mine:
                return self._start(stopped, cancel, on_log)
            while not ended.wait(POLL_SECONDS):
                if cancel is not None and cancel():
                    raise Cancelled("Waiting for the backend was cancelled.")
            if stopped.is_set():
                raise Cancelled("The backend was stopped while it started.")
            if self._failure:
                raise BackendError(self._failure)

    def stop(self) -> None:
        """End the process, or its start; safe at any time and more than once. It takes some seconds at most."""
        self._holder.stop()

    def _start(
        self,
        stopped: threading.Event,
        cancel: Callable[[], bool] | None,
        on_log: Callable[[str], None] | None,
    ) -> Client:
        """Start the process, while other callers wait."""
        holder = self._holder
        holder.stop_process()  # the rest of one that ended by itself
        try:
            process = start_backend(
                self._python,
                model=self._model,
                device=self._device,
                environment=self._variables,
                on_log=holder.writer(on_log),
                cancel=lambda: stopped.is_set() or (cancel is not None and cancel()),
            )
            if not holder.take(process, stopped):
                raise Cancelled("The backend was stopped while it started.")
            return process.client()
        except (InputError, BackendError) as error:
            self._failure = str(error)
            raise
        finally:
            with self._lock:
                self._starting = False
                holder.ended.set()

    def _state_and_status(self) -> tuple[LocalBackendState, str]:
        process = self._holder.process
        if self._starting:
            return LocalBackendState.STARTING, "SDFSMIS is starting on this computer."
        if process is not None and process.poll() is None:
            return LocalBackendState.RUNNING, f"SDFSMIS runs on this computer (version {process.version})."
        if not Path(self._python).is_file():
            return LocalBackendState.ABSENT, "SDFSMIS is not installed on this computer."
        if process is not None:
            text = f"SDFSMIS ended by itself on this computer (exit status {process.poll()})"
            return LocalBackendState.FAILED, f"{text}; it is started again when it is needed."
        if self._failure:
            return LocalBackendState.FAILED, self._failure.partition("\n")[0]
        return LocalBackendState.STOPPED, "SDFSMIS starts on this computer when it is needed."


class _ProcessHolder:
    """The process and its log, apart from :class:`LocalBackend`: its finalizer must not keep that alive.

    Attributes:
        stopped: set to stop the start in progress.
        ended: set when that start has ended.
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
class InstallationPaths:
    """Where things are on a computer.

    Attributes:
        environment: folder of the environment that is installed.
        panel_library: the folder ``SDFSMISLib`` from which the front end was loaded.
        requirements: file of the packages that the backend needs.
        python: the Python that the environment is made of, Slicer's own.
        variables: environment variables that a Python may start with, by name; the first that work are used.
    """

    environment: Path
    panel_library: Path
    requirements: Path
    python: str
    variables: Mapping[str, Mapping[str, str]]


class LocalBackendManager:
    """Installs, starts and ends the backend on this computer.

    Attributes:
        folder: of the environment.
    """

    def __init__(self, paths: InstallationPaths) -> None:
        self._paths = paths
        self._environment = Environment(paths.environment, paths.panel_library, paths.requirements, paths.variables)
        self.folder = paths.environment
        self._lock = threading.Lock()  # held for moments only
        self._making = threading.Lock()
        self._backend: LocalBackend | None = None
        self._made_for: tuple[str, str, str] | None = None
        self._last_status: tuple[BackendChoice, tuple[str, str]] | None = None

    def is_ready(self, choice: BackendChoice) -> bool:
        """Whether nothing must be installed before the backend can start."""
        if choice.python:
            return True  # whether it fits is told when it is tried
        state = self._environment.state
        return state is EnvironmentState.READY or (
            state is EnvironmentState.OUTDATED and not self._environment.needs_packages  # our own files are copied
        )

    def exists(self) -> bool:
        """Whether there is an environment, complete or not."""
        return self._environment.exists

    def status(self, choice: BackendChoice) -> tuple[str, str]:
        """The status in a sentence, and the state as in :class:`.BackendView`."""
        status = self._status(choice)
        self._last_status = choice, status
        return status

    def has_changed(self) -> bool:
        """Whether the status of a process may have changed since :meth:`status`."""
        last = self._last_status
        return self._backend is not None and last is not None and last[1] != self._status(last[0])

    def client(self, choice: BackendChoice, on_status: Callable[[str], None], cancel: Cancel) -> Client:
        """A client of the backend, which is started if it does not run; in any thread, and it takes some seconds.

        Args:
            on_status: called with what is being done, in words.
        """
        with self._making:  # one after the other, so that none stops what another has just made
            with self._lock:
                backend = self._backend if self._made_for == _key(choice) else None
            if backend is None:
                on_status(_("Preparing SDFSMIS on this computer…"))
                backend = self._make(choice, cancel)
                self.stop()
                with self._lock:
                    self._backend, self._made_for = backend, _key(choice)
        on_status(_("Starting SDFSMIS on this computer…"))
        return backend.client(cancel)

    def install(self, options: Sequence[str], again: bool, report: Callable[[float, str], None], cancel: Cancel) -> str:
        """Install the environment, in any thread; it takes minutes.

        Args:
            options: of pip, word by word.
            again: whether to install although nothing is missing.
            report: called with the share that is done, 0 to 1, and what is being done, in words.

        Returns:
            what was done and what the user should know about it, in sentences.
        """

        def on_progress(progress: Progress) -> None:
            step = _("Step {step} of {steps}. {text}")
            report(progress.share, step.format(step=progress.step, steps=progress.steps, text=progress.text))

        build = usual_build(graphics_cards(next(iter(self._paths.variables.values()))))
        return Installation(self._environment, self._paths.python, build, options).run(on_progress, cancel, again)

    def remove(self) -> str:
        """Remove the environment, in any thread; returns what was done, in a sentence."""
        return self._environment.remove()

    def stop(self) -> None:
        """End the process, if it runs."""
        with self._lock:
            backend, self._backend, self._made_for = self._backend, None, None
        if backend is not None:
            backend.stop()

    # -- within --------------------------------------------------------------------------------------------------------

    def _make(self, choice: BackendChoice, cancel: Cancel) -> LocalBackend:
        """A backend for another choice, not started yet."""
        if choice.python:
            existing = inspect_python(choice.python, self._paths.variables, cancel)
            python, variables = existing.python, existing.variables
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
    """Backends with the same key are the same process."""
    return choice.python, choice.model, choice.device
