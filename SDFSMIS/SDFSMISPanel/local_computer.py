"""Local computer: the backend that runs beside Slicer, in an environment of our own or in a Python that is named."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from slicer.i18n import tr as _

from SDFSMISLib.client import Client
from SDFSMISPanel.background import Cancel
from SDFSMISPanel.environment import Environment, EnvironmentState
from SDFSMISPanel.installation import Installation, Progress, adopt
from SDFSMISPanel.local_backend import LocalBackend, LocalBackendState
from SDFSMISPanel.panel_logic import BackendChoice
from SDFSMISPanel.torch_build import graphics_cards, usual_build

__all__ = ["LocalComputer", "Places"]

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
        return LocalBackend(python, variables, model=choice.model or "built-in", device=choice.device)

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
