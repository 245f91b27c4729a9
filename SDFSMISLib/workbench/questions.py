"""Questions to the user, asked in the front end and answered later: consent, installation, turning a view."""

from __future__ import annotations

from collections.abc import Callable

from SDFSMISLib.workbench.views import Part, Question

__all__ = ["Questions"]


class Questions(Part["Question | None"]):
    """The view is the newest question that waits for its answer; None = there is none.

    >>> questions = Questions()
    >>> questions.ask(Question("turn", "Turn the view?", "Turn", "Leave it"), lambda agreed: print("agreed:", agreed))
    >>> questions.view.text
    'Turn the view?'
    >>> questions.answer("turn", True)
    agreed: True
    >>> questions.view is None
    True
    """

    def __init__(self, changed: Callable[[], None] = lambda: None) -> None:
        super().__init__(None, changed)
        self._waiting: list[tuple[Question, Callable[[bool], None]]] = []

    def ask(self, question: Question, answered: Callable[[bool], None]) -> None:
        """Ask a question; it replaces one with the same key.

        Args:
            answered: called with whether the user agreed.
        """
        self.withdraw(question.key)
        self._waiting.append((question, answered))
        self.view = question

    def answer(self, key: str, agreed: bool) -> None:
        """Answer the question in view; the key of any other one changes nothing."""
        if self.view is not None and self.view.key == key:
            _question, answered = self._waiting[-1]
            self.withdraw(key)
            answered(agreed)

    def withdraw(self, *keys: str) -> None:
        """Drop questions that need no answer any more."""
        self._waiting = [one for one in self._waiting if one[0].key not in keys]
        self.view = self._waiting[-1][0] if self._waiting else None
