"""Dialogs: what the user was asked, and what a test has answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Dialog:
    """One dialog: which function opened it, its text, and what was answered."""

    kind: str
    text: str
    answer: Any


@dataclass
class Dialogs:
    """``shown`` is every dialog until now; ``answers`` says by kind what is answered, in turn or always."""

    shown: list[Dialog] = field(default_factory=list)
    answers: dict[str, Any] = field(default_factory=dict)

    def ask(self, kind: str, text: str, default: Any) -> Any:
        """Records a dialog; its answer is the next of a list in ``answers``, or the value there, or ``default``."""
        answer = self.answers.get(kind, default)
        if isinstance(answer, list):
            answer = answer.pop(0) if answer else default
        self.shown.append(Dialog(kind, text, answer))
        return answer

    def clear(self) -> None:
        self.shown.clear()
        self.answers.clear()


dialogs = Dialogs()
