"""Models: which model segments, of those that the backend has; all of it on the main thread."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from slicer.i18n import tr as _

from SDFSMISLib.client import Capabilities, Client, ModelMissing
from SDFSMISLib.errors import Cancelled
from SDFSMISPanel.backend_access import BackendAccess
from SDFSMISPanel.backend_sentences import sentence
from SDFSMISPanel.background import Background, Cancel, Ended
from SDFSMISPanel.learning_view import ModelsView
from SDFSMISPanel.panel_logic import BackendChoice, Question
from SDFSMISPanel.run_job import Post

__all__ = ["Models"]

FORGET = "forget model"


@dataclass(frozen=True)
class _Lost:
    """A model that a backend said it does not have, although nothing newer is known."""

    choice: BackendChoice
    name: str


class Models:
    """The choice of a model, and what asks the backend which ones there are, in a thread of its own.

    Attributes:
        view: what the panel shows.
    """

    def __init__(self, access: BackendAccess) -> None:
        self._access = access
        self._chosen = ""
        self._asking: Background | None = None
        self._asked: BackendChoice | None = None
        self._lost: _Lost | None = None
        self._failure = ""
        self._forgetting = ""
        self._learning = ""
        self.view = ModelsView()
        self._look()

    def choose(self, name: str) -> None:
        """The learned model that segments from now on; "" = the one that the backend was started with."""
        self._chosen, self._failure = name, ""
        self._look()

    def learns(self, name: str) -> None:
        """Which model is being learned now; "" = none."""
        self._learning = name
        self._look()

    def is_missing(self, name: str) -> None:
        """A run was told that this model is not there."""
        self._lost = _Lost(self._access.choice, name)
        self.look(anew=True)
        self._look()

    def look(self, anew: bool = False) -> None:
        """Asks the backend that is chosen, and has just been used, which models it has; not where that is known,
        unless ``anew``."""
        if (anew or self._access.capabilities is None) and not self._access.problem():
            self._ask(lambda client: None)

    def forget_question(self) -> Question | None:
        """What is asked before the chosen model is forgotten; None where it cannot be."""
        if not self.view.can_forget:
            return None
        text = _(
            "Forget the model “{name}”? What was learned is deleted on the backend, and cannot be brought back. "
            "Segmentations stay as they are."
        )
        return Question(FORGET, text.format(name=self._chosen), _("Forget it"), _("Keep it"))

    def forget(self) -> None:
        """Has the backend delete the chosen model."""
        if self.view.can_forget:
            name, self._failure = self._chosen, self._access.problem()
            if not self._failure:
                self._ask(lambda client: _forget(client, name))
                self._forgetting = name
            self._look()

    def step(self) -> bool:
        """Takes what the thread has posted; whether there was any."""
        came = False
        for message in self._asking.messages() if self._asking is not None else ():
            came = True
            self._take(message)
        self._look()
        return came

    def close(self) -> None:
        """Nothing goes on any more."""
        if self._asking is not None:
            self._asking.cancel.set()

    # -- within --------------------------------------------------------------------------------------------------------

    def _ask(self, first: Callable[[Client], None]) -> None:
        """Does something to the backend that is chosen, and asks it what it has then."""
        self.close()
        source = self._access.source()

        def job(post: Post, cancel: Cancel) -> None:
            client = source(lambda message: None, cancel)
            first(client)
            if cancel():
                raise Cancelled("Nobody asks any more.")
            post(client.capabilities())

        self._asked, self._asking = self._access.choice, Background("SDFSMIS models", job)

    def _take(self, message: Any) -> None:
        if isinstance(message, Capabilities) and self._asked is not None:
            self._access.knows(self._asked, message)
            self._lost = None
            if self._forgetting == self._chosen:
                self._chosen = ""
        elif isinstance(message, Ended):
            if self._forgetting and message.error is not None:
                self._failure = sentence(message.error)
            self._asking, self._forgetting = None, ""

    def _look(self) -> None:
        """Brings the view up to date; a view that says the same stays the same object."""
        capabilities = self._access.capabilities
        models = capabilities.models if capabilities is not None else ()
        learned = tuple(model.name for model in models if model.learned)
        there = self._chosen in learned
        view = ModelsView(
            served=models[0].name if models else "",
            learned=learned,
            chosen=self._chosen,
            problem=self._failure or self._problem(there or capabilities is None),
            can_forget=bool(self._chosen) and there and not self._forgetting and self._chosen != self._learning,
        )
        if view != self.view:
            self.view = view

    def _problem(self, may_be_there: bool) -> str:
        lost = self._lost == _Lost(self._access.choice, self._chosen)
        if not self._chosen or may_be_there and not lost:
            return ""
        text = _("The model “{name}” is not on this backend, or no more. Choose another one under Backend, {first}.")
        capabilities = self._access.capabilities
        served = capabilities.models[0].name if capabilities is not None else ""
        first = _("such as “{served}”").format(served=served) if served else _("such as the first one")
        return text.format(name=self._chosen, first=first)


def _forget(client: Client, name: str) -> None:
    with suppress(ModelMissing):  # somebody else was faster
        client.forget_model(name)
