"""The backend that the user chose: whether it works, what must be installed or agreed to before it is used."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from SDFSMISLib.client import BackendError, Capabilities, Client, RemoteRun
from SDFSMISLib.errors import Cancelled, InputError
from SDFSMISLib.workbench.background import Background, Cancel, JobEnded
from SDFSMISLib.workbench.local_backend import LocalBackendManager
from SDFSMISLib.workbench.questions import Questions
from SDFSMISLib.workbench.run_job import ClientSource, Post, Status
from SDFSMISLib.workbench.settings import Settings
from SDFSMISLib.workbench.text import tr as _
from SDFSMISLib.workbench.views import BackendChoice, BackendKind, BackendView, Part, Question

LOG = logging.getLogger("SDFSMIS")


def describe_backend(capabilities: Capabilities) -> str:
    """A working backend in a sentence or two."""
    text = _("It works: SDFSMIS {version}, {model} on {device}, about {seconds} s a slice.").format(
        version=capabilities.version,
        model=capabilities.models[0].name,
        device=capabilities.device_name,
        seconds=f"{capabilities.seconds_per_slice:.2g}",
    )
    if capabilities.running:
        text += " " + _("Other runs there now: {count}.").format(count=capabilities.running)
    return text


def error_text(error: BaseException) -> str:
    """The text that the user sees for an exception; an unexpected one is logged with its traceback."""
    if isinstance(error, (BackendError, InputError, OSError)):
        return str(error)
    LOG.error("The backend failed", exc_info=error)
    return _("It failed ({kind}: {error}); the application's log says more.").format(
        kind=type(error).__name__, error=error
    )


INSTALL, REMOVE, SEND_SLICES = "install", "remove", "send slices"  # keys of questions


def install_question(folder: Path) -> Question:
    """Asked before packages are downloaded into the folder of the environment."""
    text = _(
        "Segmenting on this computer needs Python packages (PyTorch and others): 0.5 to 4 GB to download, 3 to 9 "
        "GB on the disk, by the kind of computer. They go into an environment of their own, {folder}; Slicer's own "
        "packages stay as they are, and it can be removed again. No image leaves this computer. Install them now?"
    )
    return Question(INSTALL, text.format(folder=folder), _("Install"), _("Not now"))


def remove_question(folder: Path) -> Question:
    """Asked before that folder is removed."""
    text = _("Remove the Python environment of SDFSMIS, {folder}? Segmenting on this computer needs it.")
    return Question(REMOVE, text.format(folder=folder), _("Remove"), _("Keep it"))


def slices_question(host: str) -> Question:
    """Asked before the first run on another computer; the answer holds for later runs, too."""
    text = _(
        "To segment on {host}, these are sent there over the network: grey values of the slices that are needed, "
        "painted masks, and the geometry of the slices. Names of patients, files and segments are not sent, but "
        "images can show a person. SDFSMIS keeps the slices in that computer's memory and writes them to no disk. "
        "Send them, now and later?"
    )
    return Question(SEND_SLICES, text.format(host=host), _("Send to {host}").format(host=host), _("Do not send"))


@dataclass(frozen=True)
class _Changed:
    """The message that the environment was installed or removed, in words."""

    text: str


@dataclass(frozen=True)
class _Attempt:
    """The last use, or change, of a backend; ``works`` is None if it does not tell whether the backend works."""

    choice: BackendChoice
    text: str
    works: bool | None


class ChosenBackend(Part[BackendView]):
    """The backend that the user chose. Threads test it, install it and remove it, one at a time.

    Args:
        settings: remembers servers that worked, and those that the user agreed to send slices to.
        local: the backend on this computer.
        questions: what the user is asked before something is installed, removed, or sent to a server.
    """

    def __init__(
        self,
        settings: Settings,
        local: LocalBackendManager,
        questions: Questions,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(BackendView(BackendChoice(), "", "unknown"), changed)
        self._settings, self._local, self._questions = settings, local, questions
        self._choice = BackendChoice()
        self._after_installation: Callable[[], None] | None = None
        self._testing: Background | None = None
        self._changing: Background | None = None
        self._progress: float | None = None
        self._status = ""
        self._run_choice: BackendChoice | None = None
        self._last: _Attempt | None = None
        self._update_view()

    # -- what the user does --------------------------------------------------------------------------------------------

    def choose(self, choice: BackendChoice) -> None:
        """Choose another backend. A test of the old one, and a run that waits for it, are dropped."""
        if choice == self._choice:
            return
        if self._testing is not None:
            self._testing.cancel.set()
            self._testing = None
        self.forget_waiting()
        self._choice = choice
        self._update_view()

    def test(self) -> None:
        """Test whether the backend works; ask first if something must be installed. No scan is sent."""
        if self._run_choice is not None or self._testing is not None:
            return
        if self._choice.kind is BackendKind.SERVER:
            self._begin_test()
            self._update_view()
        else:
            self.before_run(self._begin_test)

    def problem(self) -> str:
        """Why the backend cannot be used, and what to do; "" if it can, as far as is known."""
        if self._changing is not None and self._choice.kind is BackendKind.LOCAL:
            return _("SDFSMIS is being installed or removed; wait until that has ended.")
        try:
            if self._choice.kind is BackendKind.SERVER:
                self._client()
        except InputError as error:
            return str(error)
        return ""

    def before_run(self, then: Callable[[], None]) -> None:
        """Call ``then`` once nothing must be asked or installed any more; never if the user declines."""
        problem = self.problem()
        if problem:
            self.fails(problem)
        elif self._choice.kind is BackendKind.SERVER:
            client = self._client()
            if client.is_local or client.host in self._settings.agreed_hosts():
                then()
            else:
                self._ask(slices_question(client.host), lambda: self._agree(client.host, then))
        elif self._local.is_ready(self._choice):
            then()
        else:
            self._ask(install_question(self._local.folder), lambda: self._begin_installation(then))
        self._update_view()

    def forget_waiting(self) -> None:
        """Drop what waits for an answer or an installation."""
        self._after_installation = None
        self._questions.withdraw(SEND_SLICES, INSTALL)

    def install(self) -> None:
        """Ask whether to install the environment (again)."""
        if self._may_change():
            self._ask(install_question(self._local.folder), lambda: self._begin_installation(None))

    def remove(self) -> None:
        """Ask whether to remove the environment."""
        if self._may_change():
            self._ask(remove_question(self._local.folder), self._begin_removal)

    def cancel_installation(self) -> None:
        """Stop the installation; finished downloads are used the next time."""
        if self._changing is not None:
            self._changing.cancel.set()

    # -- for a run -----------------------------------------------------------------------------------------------------

    def source(self) -> ClientSource:
        """What connects to the backend in the thread of a run; a later choice does not change it.

        Raises:
            InputError: for an invalid address, token or certificate.
        """
        choice, local = self._choice, self._local
        if choice.kind is BackendKind.SERVER:
            client = self._client()
            return lambda post, cancel: client
        return lambda post, cancel: local.client(choice, lambda text: post(Status(text)), cancel)

    def run_begins(self) -> None:
        """A run uses the backend; until :meth:`run_ended` it is neither tested nor changed."""
        self._run_choice = self._choice
        self._update_view()

    def run_ended(self, error: BaseException | None, remote: RemoteRun | None) -> None:
        """The run ended: by itself, by an error, or since it was cancelled.

        Args:
            remote: the run on the backend; None if it was never reached.
        """
        choice, self._run_choice = self._run_choice, None
        if choice is not None and isinstance(error, BackendError):
            self._last = _Attempt(choice, str(error), False)
        elif choice is not None and remote is not None and remote.version:
            text = _("It works: SDFSMIS {version}, {model} on {device}.")
            text = text.format(version=remote.version, model=remote.model, device=remote.device)
            self._worked(choice, text)
        self._update_view()

    def fails(self, text: str) -> None:
        """The backend did not work, and why."""
        self._last = _Attempt(self._choice, text, False)
        self._update_view()

    # -- steps ---------------------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Take the messages of the threads; True if there were any."""
        received = False
        for job in (self._testing, self._changing):
            for message in job.messages() if job is not None else ():
                received = True
                self._take(job, message)
        if received or self._local.has_changed():
            self._update_view()
        return received

    def close(self) -> None:
        """End the threads, and the backend on this computer."""
        self.forget_waiting()
        for job in (self._testing, self._changing):
            if job is not None:
                job.cancel.set()
        self._local.stop()
        if self._changing is not None:
            self._changing.join(5)

    # -- within --------------------------------------------------------------------------------------------------------

    def _take(self, job: Background | None, message: Any) -> None:
        if isinstance(message, Capabilities):
            self._worked(self._choice, describe_backend(message))
        elif isinstance(message, Status):
            self._status = message.text
        elif isinstance(message, tuple):
            self._progress, self._status = message
        elif isinstance(message, _Changed):
            self._last = _Attempt(self._choice, message.text, None)
        elif isinstance(message, JobEnded) and job is self._testing:
            self._testing = None
            self._ended(message.error, "")
        elif isinstance(message, JobEnded):
            self._changing, self._progress = None, None
            then, self._after_installation = self._after_installation, None
            self._ended(message.error, _("It was cancelled. Downloads that have come are used the next time."))
            if message.error is None and then is not None:
                self.before_run(then)

    def _ended(self, error: BaseException | None, cancelled: str) -> None:
        """A thread ended: show its error, or ``cancelled`` if it was cancelled."""
        if isinstance(error, Cancelled):
            self._last = _Attempt(self._choice, cancelled, None) if cancelled else self._last
        elif error is not None:
            self.fails(error_text(error))

    def _worked(self, choice: BackendChoice, text: str) -> None:
        self._last = _Attempt(choice, text, True)
        if choice.kind is BackendKind.SERVER:
            self._settings.keep_host(choice.url)

    def _ask(self, question: Question, agreed: Callable[[], None]) -> None:
        """Ask a question in place of the one before."""
        self._questions.withdraw(SEND_SLICES, INSTALL, REMOVE)
        self._questions.ask(question, lambda agrees: agreed() if agrees else None)

    def _agree(self, host: str, then: Callable[[], None]) -> None:
        """The user agreed that slices are sent to a host, now and later."""
        self._settings.keep_agreed([*self._settings.agreed_hosts(), host])
        self.before_run(then)

    def _begin_test(self) -> None:
        try:
            source = self.source()
        except InputError as error:
            self.fails(str(error))
            return
        self._status = _("Connecting…")
        self._testing = Background("SDFSMIS test", lambda post, cancel: post(source(post, cancel).capabilities()))

    def _begin_installation(self, then: Callable[[], None] | None) -> None:
        try:
            options = _words(self._choice.pip_options)
        except ValueError as error:
            self.fails(_("The pip options cannot be read ({error}); correct the quotes.").format(error=error))
            return
        self._after_installation, self._progress, self._status = then, 0.0, _("Installing…")
        local, again = self._local, then is None

        def install(post: Post, cancel: Cancel) -> None:
            local.stop()
            post(_Changed(local.install(options, again, lambda share, text: post((share, text)), cancel)))

        self._changing = Background("SDFSMIS installation", install)
        self._update_view()

    def _begin_removal(self) -> None:
        local = self._local

        def remove(post: Post, cancel: Cancel) -> None:
            local.stop()
            post(_Changed(local.remove()))

        self._status = _("Removing the environment…")
        self._changing = Background("SDFSMIS removal", remove)
        self._update_view()

    def _may_change(self) -> bool:
        """Whether the environment may be installed again, or removed: nothing uses it."""
        return self._changing is None and self._run_choice is None

    def _client(self) -> Client:
        """A client of the server; raises :class:`InputError` for an invalid address, token or certificate."""
        choice = self._choice
        if not choice.url.strip():
            raise InputError(_("No server is named; enter its address, such as http://computer:7861."))
        return Client(choice.url, choice.token, ca_file=choice.certificate or None)

    def _update_view(self) -> None:
        """Bring the view up to date."""
        status, state = self._current_status()
        local = self._choice.kind is BackendKind.LOCAL
        free = local and self._may_change()
        self.view = BackendView(
            self._choice,
            status,
            state,
            self._progress,
            can_install=free and not self._choice.python,
            can_remove=free and self._local.exists(),
            hosts=self._settings.hosts(),
        )

    def _current_status(self) -> tuple[str, str]:
        if self._changing is not None or self._testing is not None:
            return self._status, "busy"
        if self._run_choice == self._choice:
            return _("The run is using it."), "busy"
        last = self._last if self._last is not None and self._last.choice == self._choice else None
        if self._choice.kind is BackendKind.LOCAL:
            status = self._local.status(self._choice)
            if last is None or (last.works and status[1] != "good"):  # it worked, and does not run any more
                return status
            return last.text, status[1] if last.works is None else "good" if last.works else "bad"
        if last is not None and last.works is not None:
            return last.text, "good" if last.works else "bad"
        try:
            return _("{host} has not been tried yet.").format(host=self._client().host), "unknown"
        except InputError as error:
            return str(error), "bad" if self._choice.url.strip() else "unknown"


def _words(options: str) -> list[str]:
    """Options of pip, split as a shell does; on Windows a backslash is a letter. ValueError for an open quote."""
    if os.name != "nt":
        return shlex.split(options)
    return [word.strip("\"'") for word in shlex.split(options, posix=False)]
