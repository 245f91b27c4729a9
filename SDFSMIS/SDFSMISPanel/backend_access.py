"""Backend access: the way to the backend that the user chose, with what has to be asked before it is taken."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from slicer.i18n import tr as _

from SDFSMISLib.client import BackendError, Capabilities, Client
from SDFSMISLib.errors import Cancelled, InputError
from SDFSMISPanel.background import Background, Cancel, Ended
from SDFSMISPanel.panel_logic import BackendChoice, BackendKind, BackendView, Question
from SDFSMISPanel.run_job import ClientSource, Doing, Post

__all__ = ["BackendAccess", "Computer", "Remembered"]

LOG = logging.getLogger("SDFSMIS")
INSTALL, REMOVE, CONSENT = "install", "remove", "consent"


class Remembered(Protocol):
    """What is remembered from one start of Slicer to the next."""

    def hosts(self) -> tuple[str, ...]: ...
    def keep_host(self, url: str) -> None: ...
    def agreed_hosts(self) -> tuple[str, ...]: ...
    def keep_agreed(self, hosts: Sequence[str]) -> None: ...


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

    def needed(self) -> str:
        """How much is downloaded, in words."""

    def size(self) -> int:
        """Bytes of the environment on the disk."""

    def client(self, choice: BackendChoice, say: Callable[[str], None], cancel: Cancel) -> Client:
        """A client of it, which is started where it does not run; in any thread, and it takes a while."""

    def install(self, options: Sequence[str], report: Callable[[float, str], None], cancel: Cancel) -> str:
        """Makes the environment; in any thread, and it takes minutes. ``report`` gets the share and what goes on.

        Returns what was done, and what is to be known of it, in sentences.
        """

    def remove(self) -> str:
        """Removes the environment; what was done, in words."""

    def stop(self) -> None:
        """Ends the backend, if it runs."""


@dataclass(frozen=True)
class _Installed:
    """An installation is there; what it says."""

    text: str


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
        self._installing: Background | None = None
        self._progress: float | None = None
        self._doing = ""
        self._installed = ""
        self._tried: tuple[BackendChoice, str, bool | None] | None = None
        self.view = BackendView(self._choice, "", "unknown")
        self._look()

    # -- what the user does --------------------------------------------------------------------------------------------

    def choose(self, choice: BackendChoice) -> None:
        """Another backend; a test of the old one counts for nothing."""
        if choice == self._choice:
            return
        if self._testing is not None:
            self._testing.cancel.set()
            self._testing = None
        if self.question is not None and self.question.key == CONSENT:
            self.question = self._then = None
        self._choice = choice
        self._look()

    def test(self) -> None:
        """Tries whether it works, after what has to be asked first."""
        self.before_run(self._begin_test)

    def before_run(self, then: Callable[[], None]) -> None:
        """Calls it as soon as nothing needs to be asked, or installed, any more; never where the user declines."""
        question = self._what_to_ask()
        if question is None:
            then()
        else:
            self.question, self._then = question, then
        self._look()

    def install(self) -> None:
        """Asks whether to install."""
        if self._installing is None:
            self.question, self._then = self._install_question(), None

    def remove(self) -> None:
        """Asks whether to remove what was installed."""
        text = _(
            "Remove the Python environment of SDFSMIS from {folder} ({size})? Segmenting on this computer needs it."
        )
        folder, size = self._computer.folder, _size(self._computer.size())
        self.question = Question(REMOVE, text.format(folder=folder, size=size), _("Remove"), _("Keep it"))

    def answer(self, key: str, agreed: bool) -> None:
        """The answer to :attr:`question`."""
        if self.question is None or self.question.key != key:
            return
        then, self.question, self._then = self._then, None, None
        if agreed and key == CONSENT:
            self._remembered.keep_agreed([*self._remembered.agreed_hosts(), self._client().host])
            if then is not None:
                self.before_run(then)
        elif agreed and key == INSTALL:
            self._begin_installation(then)
        elif agreed and key == REMOVE:
            self._computer.stop()
            self._note(self._guarded(self._computer.remove), None)
        self._look()

    def cancel_installation(self) -> None:
        """Downloads that have come are used the next time."""
        if self._installing is not None:
            self._installing.cancel.set()

    # -- for a run -----------------------------------------------------------------------------------------------------

    def source(self) -> ClientSource:
        """What gives a client in the worker thread; it holds what was chosen now."""
        choice, computer = self._choice, self._computer
        if choice.kind is BackendKind.SERVER:
            client = self._client()
            return lambda post, cancel: client
        return lambda post, cancel: computer.client(choice, lambda text: post(Doing(text)), cancel)

    def works(self, text: str) -> None:
        """The backend did what it was asked for; ``text`` says what it is."""
        self._note(text, True)
        if self._choice.kind is BackendKind.SERVER:
            self._remembered.keep_host(self._choice.url)
        self._look()

    def fails(self, text: str) -> None:
        """The backend did not do what it was asked for, and why."""
        self._note(text, False)
        self._look()

    # -- step by step --------------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Takes what the threads have posted; whether there was any."""
        came = False
        for job in (self._testing, self._installing):
            for message in job.messages() if job is not None else ():
                came = True
                self._take(job, message)
        if came or self._computer.has_changed():
            self._look()
        return came

    def run_ended(self, error: BaseException | None) -> None:
        """A run ended: by itself, or by an error of the backend, of another part, or by being cancelled."""
        if isinstance(error, BackendError):
            self.fails(str(error))
        else:
            self._look()

    def close(self) -> None:
        """Ends what goes on; no process stays."""
        for job in (self._testing, self._installing):
            if job is not None:
                job.cancel.set()
        self._computer.stop()
        if self._installing is not None:
            self._installing.join(5)

    # -- within --------------------------------------------------------------------------------------------------------

    def _take(self, job: Background | None, message: Any) -> None:
        if isinstance(message, Capabilities):
            self.works(described(message))
        elif isinstance(message, Doing):
            self._doing = message.text
        elif isinstance(message, tuple):
            self._progress, self._doing = message
        elif isinstance(message, _Installed):
            self._installed = message.text
        elif isinstance(message, Ended) and job is self._testing:
            self._testing = None
            if message.error is not None and not isinstance(message.error, Cancelled):
                self.fails(sentence(message.error))
        elif isinstance(message, Ended):
            self._installing, self._progress = None, None
            then, self._then = self._then, None
            if message.error is None:
                self._note(self._installed, None)
                if then is not None:
                    then()
            else:
                self.fails(sentence(message.error))

    def _begin_test(self) -> None:
        try:
            source = self.source()
        except InputError as error:
            self.fails(str(error))
            return
        self._doing = _("Connecting to the backend…")
        self._testing = Background("SDFSMIS test", lambda post, cancel: post(source(post, cancel).capabilities()))

    def _begin_installation(self, then: Callable[[], None] | None) -> None:
        self._then, self._progress = then, 0.0
        self._doing = _("Installing…")
        computer, options = self._computer, shlex.split(self._choice.pip_options)
        self._computer.stop()

        def install(post: Post, cancel: Cancel) -> None:
            post(_Installed(computer.install(options, lambda share, text: post((share, text)), cancel)))

        self._installing = Background("SDFSMIS installation", install)

    def _what_to_ask(self) -> Question | None:
        """What has to be asked before the backend may be used."""
        if self._choice.kind is BackendKind.LOCAL:
            return None if self._computer.is_ready(self._choice) else self._install_question()
        try:
            client = self._client()
        except InputError:  # it is told when it is used
            return None
        if client.is_local or client.host in self._remembered.agreed_hosts():
            return None
        text = _(
            "To segment on {host}, these are sent there over the network: grey values of the slices that are needed, "
            "painted masks, and the geometry of the slices. Names of patients, files and segments are not sent, but "
            "images can show a person. SDFSMIS keeps the slices in that computer's memory and writes them to no disk. "
            "Send them, now and later?"
        )
        return Question(
            CONSENT, text.format(host=client.host), _("Send to {host}").format(host=client.host), _("Do not send")
        )

    def _install_question(self) -> Question:
        text = _(
            "Segmenting on this computer needs Python packages (PyTorch and others, {size}). They are downloaded into "
            "an environment of their own, {folder}; Slicer's own packages stay as they are, and it can be removed "
            "again. No image leaves this computer. Install them now?"
        )
        text = text.format(size=self._computer.needed(), folder=self._computer.folder)
        return Question(INSTALL, text, _("Install"), _("Not now"))

    def _client(self) -> Client:
        """Raises :class:`InputError` for an address or a token that is none."""
        choice = self._choice
        if not choice.url.strip():
            raise InputError(_("No server is named; enter its address, such as http://computer:7861."))
        return Client(choice.url, choice.token, ca_file=choice.certificate or None)

    def _guarded(self, call: Callable[[], Any]) -> str:
        """What is said of a call that may fail."""
        try:
            return str(call())
        except (InputError, OSError) as error:
            return str(error)

    def _note(self, text: str, works: bool | None) -> None:
        self._tried = self._choice, text, works

    def _look(self) -> None:
        """Brings the view up to date."""
        status, state = self._status()
        local = self._choice.kind is BackendKind.LOCAL
        self.view = BackendView(
            self._choice,
            status,
            state,
            self._progress,
            can_install=local and self._installing is None and not self._choice.python,
            can_remove=local and self._installing is None and self._computer.is_there(),
            hosts=self._remembered.hosts(),
        )

    def _status(self) -> tuple[str, str]:
        if self._installing is not None:
            return self._doing, "busy"
        if self._testing is not None:
            return self._doing, "busy"
        tried = self._tried if self._tried is not None and self._tried[0] == self._choice else None
        if self._choice.kind is BackendKind.LOCAL:
            said = self._computer.status(self._choice)
            if tried is not None and tried[2] is None and said[1] == "unknown":
                return tried[1], "unknown"
            if tried is not None and tried[2] is not None and (not tried[2] or said[1] == "good"):
                return tried[1], "good" if tried[2] else "bad"
            return said
        if tried is not None:
            return tried[1], "good" if tried[2] else "bad"
        try:
            return _("{host} was not tried yet.").format(host=self._client().host), "unknown"
        except InputError as error:
            return str(error), "bad" if self._choice.url.strip() else "unknown"


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


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"
