"""Learning view: what the panel shows of learned models and of learning, and what it asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["LearnRequest", "LearningView", "ModelsView"]


@dataclass(frozen=True)
class ModelsView:
    """Attributes:
    served: name of the model that the backend was started with; "" = not known yet.
    learned: names of those that learned from this user's scans, as far as they are known.
    chosen: the learned one that segments; "" = the one that is served.
    problem: why the chosen one cannot be used or was not forgotten, and what to do; "" where all is well.
    can_forget: whether the chosen one can be forgotten now.
    """

    served: str = ""
    learned: tuple[str, ...] = ()
    chosen: str = ""
    problem: str = ""
    can_forget: bool = False


@dataclass(frozen=True)
class LearnRequest:
    """What is to be learned.

    Attributes:
        scans: volume nodes. name: of the model that it makes. minutes: how long it may take.
    """

    scans: tuple[Any, ...] = ()
    name: str = ""
    minutes: float = 10.0


@dataclass(frozen=True)
class LearningView:
    """Attributes:
    running: from the moment in which it was started to the moment in which nothing more comes.
    text: what goes on, or how the last one ended.
    fraction: 0 to 1 of what goes on now; None = not known.
    failed: whether the last one ended with an error, which ``text`` tells.
    notes: what the user should know, one sentence each.
    can_cancel: False once that was asked for.
    most_minutes: that the backend allows.
    """

    running: bool = False
    text: str = ""
    fraction: float | None = None
    failed: bool = False
    notes: tuple[str, ...] = ()
    can_cancel: bool = True
    most_minutes: float = 60.0
