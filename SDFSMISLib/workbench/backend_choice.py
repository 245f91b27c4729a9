"""Backend sentences: what is said of a backend that works, and of what went wrong with one.

Backend questions: what is asked before anything is installed, removed, or sent to another computer.

Computer: what the panel asks of the computer that it runs on.

Backend access: the way to the backend that the user chose, with what has to be asked before it is taken.
"""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from SDFSMISLib.client import BackendError, Capabilities, Client, RemoteRun
from SDFSMISLib.errors import Cancelled, InputError
from SDFSMISLib.workbench.background import Background, Cancel, Ended
from SDFSMISLib.workbench.run_job import ClientSource, Doing, Post
from SDFSMISLib.workbench.text import tr as _
from SDFSMISLib.workbench.views import BackendChoice, BackendKind, BackendView, Question

LOG = logging.getLogger("SDFSMIS")


def described(capabilities: Capabilities) -> str:
    """A backend in a sentence."""
    text = _("It works: SDFSMIS {version}, {model} on {device}, about {seconds} s a slice.").format(
        version=capabilities.version,
        model=capabilities.models[0].name,
        device=capabilities.device_name,
        seconds=f"{capabilities.seconds_per_slice:.2g}",
    )
    if capabilities.running:
        text += " " + _("Runs that take turns there now: {count}.").format(count=capabilities.running)
    return text


def sentence(error: BaseException) -> str:
    """An error in words; one that nobody expected is logged."""
    if isinstance(error, (BackendError, InputError, OSError)):
        return str(error)
    LOG.error("The backend failed", exc_info=error)
    return _("It failed ({kind}: {error}); the application's log says more.").format(
        kind=type(error).__name__, error=error
    )


INSTALL, REMOVE, SEND_SLICES = "install", "remove", "send slices"  # keys of the answers


def install_question(folder: Path) -> Question:
    """Before packages are downloaded into the folder of the environment."""
    text = _(
        "Segmenting on this computer needs Python packages (PyTorch and others): 0.5 to 4 GB to download, 3 to 9 "
        "GB on the disk, by the kind of computer. They go into an environment of their own, {folder}; Slicer's own "
        "packages stay as they are, and it can be removed again. No image leaves this computer. Install them now?"
    )
    return Question(INSTALL, text.format(folder=folder), _("Install"), _("Not now"))


def remove_question(folder: Path) -> Question:
    """Before that folder is removed."""
    text = _("Remove the Python environment of SDFSMIS, {folder}? Segmenting on this computer needs it.")
    return Question(REMOVE, text.format(folder=folder), _("Remove"), _("Keep it"))


def slices_question(host: str) -> Question:
    """Before a run on another computer; the answer holds for later runs, too."""
    text = _(
        "To segment on {host}, these are sent there over the network: grey values of the slices that are needed, "
        "painted masks, and the geometry of the slices. Names of patients, files and segments are not sent, but "
        "images can show a person. SDFSMIS keeps the slices in that computer's memory and writes them to no disk. "
        "Send them, now and later?"
    )
    return Question(SEND_SLICES, text.format(host=host), _("Send to {host}").format(host=host), _("Do not send"))


class Computer(Protocol):
    """The backend on this computer, and what has to be installed for it.

    Attributes:
        folder: of the environment of our own.
    """

    folder: Path

    def is_ready(self, choice: BackendChoice) -> bool:
        """Whether nothing has to be installed."""

    def is_there(self) -> bool:
        """Whether there is an environment of our own, whole or not."""

    def status(self, choice: BackendChoice) -> tuple[str, str]:
        """What is true of it now, and the state as in :class:`BackendView`."""

    def has_changed(self) -> bool:
        """Whether the status may be another one than when it was asked for last."""

    def client(self, choice: BackendChoice, say: Callable[[str], None], cancel: Cancel) -> Client:
        """A client of it, which is started where it does not run; in any thread, and it takes a while."""

    def install(self, options: Sequence[str], again: bool, report: Callable[[float, str], None], cancel: Cancel) -> str:
        """Makes the environment; in any thread, and it takes minutes. ``report`` gets the share and what goes on.

        Args:
            options: words for pip.
            again: whether packages are installed although nothing is missing.

        Returns what was done, and what is to be known of it, in sentences.
        """

    def remove(self) -> str:
        """Removes the environment; in any thread. What was done, in words."""

    def stop(self) -> None:
        """Ends the backend, if it runs."""


class Remembered(Protocol):
    """What is remembered from one start of Slicer to the next."""

    def hosts(self) -> tuple[str, ...]: ...
    def keep_host(self, url: str) -> None: ...
    def agreed_hosts(self) -> tuple[str, ...]: ...
    def keep_agreed(self, hosts: Sequence[str]) -> None: ...


@dataclass(frozen=True)
class _Done:
    """An installation or a removal is done; what it says."""

    text: str


@dataclass(frozen=True)
class _Tried:
    """What came out when the backend was used or changed the last time; ``works`` is None where that says nothing."""

    choice: BackendChoice
    text: str
    works: bool | None


class BackendAccess:
    """Everything is on the main thread, but for the client that :meth:`source` gives.

    Attributes:
        view: what the panel shows.
        question: what is asked now; None = nothing.
    """

    def __init__(self, remembered: Remembered, computer: Computer) -> None:
        self._remembered, self._computer = remembered, computer
        self._choice = BackendChoice()
        self.question: Question | None = None
        self._then: Callable[[], None] | None = None
        self._testing: Background | None = None
        self._changing: Background | None = None
        self._progress: float | None = None
        self._doing = ""
        self._run_choice: BackendChoice | None = None
        self._tried: _Tried | None = None
        self.view = BackendView(self._choice, "", "unknown")
        self._look()

    # -- what the user does --------------------------------------------------------------------------------------------

    def choose(self, choice: BackendChoice) -> None:
        """Another backend; what waits for the old one, and a test of it, count for nothing."""
        if choice == self._choice:
            return
        if self._testing is not None:
            self._testing.cancel.set()
            self._testing = None
        self.forget_waiting()
        self._choice = choice
        self._look()

    def test(self) -> None:
        """Tries whether it works; asks where something has to be installed first. Nothing of a scan is sent."""
        if self._run_choice is not None or self._testing is not None:
            return
        if self._choice.kind is BackendKind.SERVER:
            self._begin_test()
            self._look()
        else:
            self.before_run(self._begin_test)

    def problem(self) -> str:
        """Why it cannot be used, and what to do; "" where it can, as far as that is known."""
        if self._changing is not None and self._choice.kind is BackendKind.LOCAL:
            return _("SDFSMIS is being installed or removed; wait until that has ended.")
        try:
            if self._choice.kind is BackendKind.SERVER:
                self._client()
        except InputError as error:
            return str(error)
        return ""

    def before_run(self, then: Callable[[], None]) -> None:
        """Calls it as soon as nothing needs to be asked, or installed, any more; never where the user declines."""
        problem = self.problem()
        if problem:
            self.fails(problem)
            return
        question = self._what_to_ask()
        if question is None:
            then()
        else:
            self.question, self._then = question, then
        self._look()

    def forget_waiting(self) -> None:
        """What waits for an answer or an installation does not go on."""
        self._then = None
        if self.question is not None and self.question.key in (SEND_SLICES, INSTALL):
            self.question = None

    def install(self) -> None:
        """Asks whether to install."""
        if self._may_change():
            self.question, self._then = install_question(self._computer.folder), None

    def remove(self) -> None:
        """Asks whether to remove what was installed."""
        if self._may_change():
            self.question, self._then = remove_question(self._computer.folder), None

    def answer(self, key: str, agreed: bool) -> None:
        """The answer to :attr:`question`."""
        if self.question is None or self.question.key != key:
            return
        then, self.question, self._then = self._then, None, None
        if agreed and key == SEND_SLICES:
            self._remembered.keep_agreed([*self._remembered.agreed_hosts(), self._client().host])
            if then is not None:
                self.before_run(then)
        elif agreed and key == INSTALL:
            self._begin_installation(then)
        elif agreed and key == REMOVE:
            computer = self._computer
            self._doing = _("Removing the environment…")
            self._changing = Background("SDFSMIS removal", lambda post, cancel: post(_Done(_removed(computer))))
        self._look()

    def cancel_installation(self) -> None:
        """Downloads that have come are used the next time."""
        if self._changing is not None:
            self._changing.cancel.set()

    # -- for a run -----------------------------------------------------------------------------------------------------

    def source(self) -> ClientSource:
        """What gives a client in the worker thread; it holds what was chosen now.

        Raises:
            InputError: for an address, a token or a certificate that is none.
        """
        choice, computer = self._choice, self._computer
        if choice.kind is BackendKind.SERVER:
            client = self._client()
            return lambda post, cancel: client
        return lambda post, cancel: computer.client(choice, lambda text: post(Doing(text)), cancel)

    def run_begins(self) -> None:
        """A run uses what was chosen now; until :meth:`run_ended` nothing else is done to it."""
        self._run_choice = self._choice
        self._look()

    def run_ended(self, error: BaseException | None, remote: RemoteRun | None) -> None:
        """The run ended: by itself, by an error, or by being cancelled.

        Args:
            remote: to know the backend by; None where it was never reached.
        """
        choice, self._run_choice = self._run_choice, None
        if choice is not None and isinstance(error, BackendError):
            self._tried = _Tried(choice, str(error), False)
        elif choice is not None and remote is not None and remote.version:
            text = _("It works: SDFSMIS {version}, {model} on {device}.")
            text = text.format(version=remote.version, model=remote.model, device=remote.device)
            self._worked(choice, text)
        self._look()

    def fails(self, text: str) -> None:
        """What was chosen did not do what it was asked for, and why."""
        self._tried = _Tried(self._choice, text, False)
        self._look()

    # -- step by step --------------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Takes what the threads have posted; whether there was any."""
        came = False
        for job in (self._testing, self._changing):
            for message in job.messages() if job is not None else ():
                came = True
                self._take(job, message)
        if came or self._computer.has_changed():
            self._look()
        return came

    def close(self) -> None:
        """Ends what goes on; no process stays."""
        self.forget_waiting()
        for job in (self._testing, self._changing):
            if job is not None:
                job.cancel.set()
        self._computer.stop()
        if self._changing is not None:
            self._changing.join(5)

    # -- within --------------------------------------------------------------------------------------------------------

    def _take(self, job: Background | None, message: Any) -> None:
        if isinstance(message, Capabilities):
            self._worked(self._choice, described(message))
        elif isinstance(message, Doing):
            self._doing = message.text
        elif isinstance(message, tuple):
            self._progress, self._doing = message
        elif isinstance(message, _Done):
            self._tried = _Tried(self._choice, message.text, None)
        elif isinstance(message, Ended) and job is self._testing:
            self._testing = None
            self._ended(message.error, "")
        elif isinstance(message, Ended):
            self._changing, self._progress = None, None
            then, self._then = self._then, None
            self._ended(message.error, _("It was cancelled. Downloads that have come are used the next time."))
            if message.error is None and then is not None:
                self.before_run(then)

    def _ended(self, error: BaseException | None, cancelled: str) -> None:
        """A job ended; an error is told, and of one that was cancelled what is to be known."""
        if isinstance(error, Cancelled):
            self._tried = _Tried(self._choice, cancelled, None) if cancelled else self._tried
        elif error is not None:
            self.fails(sentence(error))

    def _worked(self, choice: BackendChoice, text: str) -> None:
        self._tried = _Tried(choice, text, True)
        if choice.kind is BackendKind.SERVER:
            self._remembered.keep_host(choice.url)

    def _begin_test(self) -> None:
        try:
            source = self.source()
        except InputError as error:
            self.fails(str(error))
            return
        self._doing = _("Connecting to the backend…")
        self._testing = Background("SDFSMIS test", lambda post, cancel: post(source(post, cancel).capabilities()))

    def _begin_installation(self, then: Callable[[], None] | None) -> None:
        try:
            options = _words(self._choice.pip_options)
        except ValueError as error:
            self.fails(_("The pip options cannot be read ({error}); correct the quotes.").format(error=error))
            return
        self._then, self._progress, self._doing = then, 0.0, _("Installing…")
        computer, again = self._computer, then is None

        def install(post: Post, cancel: Cancel) -> None:
            computer.stop()
            post(_Done(computer.install(options, again, lambda share, text: post((share, text)), cancel)))

        self._changing = Background("SDFSMIS installation", install)

    def _what_to_ask(self) -> Question | None:
        """What has to be asked before the backend may be used."""
        if self._choice.kind is BackendKind.LOCAL:
            return None if self._computer.is_ready(self._choice) else install_question(self._computer.folder)
        client = self._client()
        agreed = client.is_local or client.host in self._remembered.agreed_hosts()
        return None if agreed else slices_question(client.host)

    def _may_change(self) -> bool:
        """Whether the environment of our own may be made anew, or removed: nothing uses it."""
        return self._changing is None and self._run_choice is None

    def _client(self) -> Client:
        """Raises :class:`InputError` for an address, a token or a certificate that is none."""
        choice = self._choice
        if not choice.url.strip():
            raise InputError(_("No server is named; enter its address, such as http://computer:7861."))
        return Client(choice.url, choice.token, ca_file=choice.certificate or None)

    def _look(self) -> None:
        """Brings the view up to date."""
        status, state = self._status()
        local = self._choice.kind is BackendKind.LOCAL
        free = local and self._may_change()
        self.view = BackendView(
            self._choice,
            status,
            state,
            self._progress,
            can_install=free and not self._choice.python,
            can_remove=free and self._computer.is_there(),
            hosts=self._remembered.hosts(),
        )

    def _status(self) -> tuple[str, str]:
        if self._changing is not None or self._testing is not None:
            return self._doing, "busy"
        if self._run_choice == self._choice:
            return _("It is used by the run that goes on."), "busy"
        tried = self._tried if self._tried is not None and self._tried.choice == self._choice else None
        if self._choice.kind is BackendKind.LOCAL:
            said = self._computer.status(self._choice)
            if tried is None or (tried.works and said[1] != "good"):  # it worked, and does not run any more
                return said
            return tried.text, said[1] if tried.works is None else "good" if tried.works else "bad"
        if tried is not None and tried.works is not None:
            return tried.text, "good" if tried.works else "bad"
        try:
            return _("{host} was not tried yet.").format(host=self._client().host), "unknown"
        except InputError as error:
            return str(error), "bad" if self._choice.url.strip() else "unknown"


def _words(options: str) -> list[str]:
    """The words of options, as a shell takes them; on Windows a backslash is a letter. ValueError for an open quote."""
    if os.name != "nt":
        return shlex.split(options)
    return [word.strip("\"'") for word in shlex.split(options, posix=False)]


def _removed(computer: Computer) -> str:
    computer.stop()
    return computer.remove()
