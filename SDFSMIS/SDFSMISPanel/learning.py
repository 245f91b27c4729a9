"""Learning: the backend's weights learn from whole scans; from the wish to the sentence about what came of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from slicer.i18n import tr as _

from SDFSMISLib.client import BackendError, Capabilities, LearnedModel, LearningProgress
from SDFSMISLib.client.model_name import model_name
from SDFSMISLib.errors import Cancelled, InputError
from SDFSMISLib.scene import Scans
from SDFSMISPanel.backend_access import BackendAccess
from SDFSMISPanel.background import Background, Ended
from SDFSMISPanel.duration import spoken
from SDFSMISPanel.learning_job import LearningJob, ScanWanted
from SDFSMISPanel.learning_view import LearningView, LearnRequest
from SDFSMISPanel.models import Models
from SDFSMISPanel.panel_logic import BackendChoice, BackendKind
from SDFSMISPanel.panel_run import unexpected
from SDFSMISPanel.run_job import Doing

__all__ = ["Learning"]

LOG = logging.getLogger("SDFSMIS")


class Learning:
    """It goes on by :meth:`step`, on the main thread; the backend is talked to in a thread of its own. Nothing of the
    scene is changed, and of its scans one at a time is copied.

    Attributes:
        view: what the panel shows.
    """

    def __init__(self, access: BackendAccess, models: Models) -> None:
        self._access, self._models = access, models
        self._background: Background | None = None
        self._choice: BackendChoice | None = None
        self._request = LearnRequest()
        self._scans = Scans()
        self._wanted: ScanWanted | None = None
        self._reading: Iterator[float] | None = None
        self._learned: LearnedModel | None = None
        self._doing = ""
        self._fraction: float | None = None
        self._since: float | None = None
        self._same_scene = self._cancelled = False
        self._outcome = LearningView()
        self.view = self._outcome

    def why_not(self, request: LearnRequest) -> str:
        """Why it cannot begin, and what to do; "" where it can, as far as that is known."""
        if self._background is not None:
            return _("It learns already; wait until that has ended, or cancel it.")
        capabilities = self._access.capabilities
        if capabilities is not None and capabilities.adaptations is None:
            return self._not_offered()
        return self._lacks(request, capabilities) or self._access.problem()

    def start(self, request: LearnRequest) -> None:
        """Begins, where nothing is in the way; the user has agreed to what is sent."""
        problem = self.why_not(request)
        if problem:
            self._end(problem, failed=True)
            return
        job = LearningJob(self._access.source(), len(request.scans), request.name.strip(), request.minutes)
        LOG.info("Learning begins: %d scans, %g minutes", job.scans, job.minutes)
        self._request, self._choice, self._learned = request, self._access.choice, None
        self._doing, self._fraction = _("Connecting to the backend…"), None
        self._same_scene, self._cancelled, self._since = True, False, None
        self._access.learning_begins()
        self._models.learns(job.name)
        self._background = Background("SDFSMIS learning", job)
        self._show()

    def cancel(self) -> None:
        """Asks it to end; it does so within seconds."""
        if self._background is not None:
            self._background.cancel.set()
            self._cancelled = True
            self._show()

    def close_scene(self) -> None:
        """The scans go. Learning goes on where the backend has them all; else it ends."""
        self._same_scene, self._reading, self._outcome = False, None, LearningView()
        self._request = replace(self._request, scans=(None,) * len(self._request.scans))
        self._show()

    def close(self) -> None:
        """The panel ends: nothing goes on."""
        if self._background is not None:
            self._background.cancel.set()
        self._finish()
        self._show()

    def step(self) -> bool:
        """Does the next piece, of some 20 ms; whether there is more to do at once."""
        if self._background is None:
            self._show()
            return False
        if self._wanted is not None:
            self._read()
            return self._wanted is not None
        for message in self._background.messages():
            self._take(message)
            if self._background is None or self._wanted is not None:
                break
        self._show()
        return self._wanted is not None

    # -- scans ---------------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Copies the next piece of the scan that is wanted, and hands it over when it is whole."""
        wanted = self._wanted
        assert wanted is not None
        volume = self._request.scans[wanted.number]
        try:
            if volume is None or volume.GetScene() is None:
                raise InputError(_("A scan was deleted, or the scene closed, before it was sent. Nothing was learned."))
            self._reading = self._reading or self._scans.copying(volume)
            if next(self._reading, None) is not None:
                return
            wanted.give(self._scans.of(volume))
            self._forget_scan()
        except InputError as error:
            self._refuse(str(error))
        except Exception as error:  # it must not come again with every beat of the timer
            self._refuse(unexpected(error))

    def _refuse(self, why: str) -> None:
        """The scan that is wanted cannot be given."""
        if self._wanted is not None:
            self._wanted.give(InputError(why))
        self._forget_scan()

    def _forget_scan(self) -> None:
        self._wanted = self._reading = None
        self._scans.forget()

    # -- what comes ----------------------------------------------------------------------------------------------------

    def _take(self, message: Any) -> None:
        if isinstance(message, Doing):
            self._doing, self._fraction = message.text, None
        elif isinstance(message, ScanWanted):
            self._wanted = message
            self._doing = self._sending(message.number)
        elif isinstance(message, LearningProgress):
            self._progress(message)
        elif isinstance(message, LearnedModel):
            self._learned = message
        elif isinstance(message, Capabilities):
            assert self._choice is not None
            self._access.knows(self._choice, message)
        elif isinstance(message, Ended):
            self._ended(message.error)

    def _progress(self, progress: LearningProgress) -> None:
        self._fraction = progress.done / progress.total if progress.total else None
        if progress.phase == "waiting":
            self._doing, self._fraction = _("Waiting, and trying again: {text}").format(text=progress.text), None
        elif progress.phase == "learning":
            self._since = self._since or time.monotonic()
            left = 60 * self._request.minutes - (time.monotonic() - self._since)
            self._doing = progress.text
            if left > 0:
                self._doing = _("{text}, {time} left at most").format(text=progress.text, time=spoken(left))

    def _sending(self, number: int) -> str:
        return _("Sending scan {number} of {count}…").format(number=number + 1, count=len(self._request.scans))

    def _ended(self, error: BaseException | None) -> None:
        learned = self._learned
        if learned is not None:  # whatever went wrong since then
            name = learned.name if learned.improved and self._is_here() else ""
            if name:
                self._models.choose(name)
                self._models.look(anew=name not in self._models.view.learned)
            self._end(_outcome(learned, chosen=bool(name)), notes=tuple(learned.skipped))
        elif isinstance(error, Cancelled) or error is None:
            self._end(_("Cancelled. For some time, the same scans under the same name go on where it was."))
        elif isinstance(error, (BackendError, InputError)):
            self._end(str(error), failed=True)
        else:
            self._end(unexpected(error), failed=True)

    def _is_here(self) -> bool:
        """Whether scene and backend are those that it began with."""
        return self._same_scene and self._choice == self._access.choice

    def _end(self, text: str, failed: bool = False, notes: tuple[str, ...] = ()) -> None:
        self._finish()
        self._outcome = LearningView(False, text, None, failed, notes)
        LOG.info("Learning ended: %s", text)
        self._show()

    def _finish(self) -> None:
        self._background = self._learned = None
        self._forget_scan()
        self._models.learns("")
        self._access.learning_ended()

    # -- words ---------------------------------------------------------------------------------------------------------

    def _lacks(self, request: LearnRequest, capabilities: Capabilities | None) -> str:
        """What is wrong with a request; "" = nothing."""
        name, offered = request.name.strip(), capabilities.adaptations if capabilities is not None else None
        if not request.scans:
            return _("Choose the scans to learn from.")
        if offered is not None and len(request.scans) > offered.most_scans:
            return _("The backend learns from {most} scans at most; choose fewer.").format(most=offered.most_scans)
        if any(volume.GetImageData() is None for volume in request.scans):
            return _("One of the chosen scans holds no grey values; leave it out.")
        if not name:
            return _("Give the model that is learned a name.")
        try:
            name = model_name(name)
        except InputError:
            return _(
                "The name has 1 to 40 letters and digits, and between them blanks, hyphens, underscores and dots; "
                "change it."
            )
        if capabilities is not None and name in [model.name for model in capabilities.models]:
            return _("There is a model “{name}” already; take another name, or forget that one under Backend.").format(
                name=name
            )
        return ""

    def _not_offered(self) -> str:
        if self._access.choice.kind is BackendKind.SERVER:
            return _(
                "This server does not learn from scans; it does where it is started with --adaptations and a folder. "
                "Or choose this computer under Backend."
            )
        return _(
            "The backend on this computer does not learn from scans now: another Slicer learns, or its Python lacks "
            "packages. Close the other Slicer, or install again under Backend."
        )

    def _show(self) -> None:
        """Brings the view up to date; a view that says the same stays the same object."""
        view = self._outcome
        if self._background is not None:
            text = _("Cancelling…") if self._cancelled else self._doing
            view = LearningView(True, text, self._fraction, can_cancel=not self._cancelled)
        capabilities = self._access.capabilities
        if capabilities is not None and capabilities.adaptations is not None:
            view = replace(view, most_minutes=capabilities.adaptations.most_minutes)
        if view != self.view:
            self.view = view


def _outcome(learned: LearnedModel, chosen: bool) -> str:
    """What came of it, in sentences."""
    places = 2 if round(learned.before, 2) != round(learned.after, 2) else 3
    scans = _("1 scan") if learned.scans == 1 else _("{n} scans").format(n=learned.scans)
    facts = {
        "name": learned.name,
        "scans": scans,
        "time": spoken(learned.seconds),
        "before": f"{learned.before:.{places}f}",
        "after": f"{learned.after:.{places}f}",
    }
    if not learned.improved:
        text = _(
            "Nothing better was learned from {scans} in {time} ({before} on held-out parts): the model is as it was."
        )
    elif chosen:
        text = _("Learned from {scans} in {time}: {before} → {after} on held-out parts. “{name}” segments from now on.")
    else:
        text = _("Learned from {scans} in {time}: {before} → {after} on held-out parts. Choose “{name}” under Backend.")
    return text.format(**facts)
