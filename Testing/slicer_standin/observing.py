"""Observing: a widget observes an object of VTK for as long as it lives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import shiboken6
from PySide6.QtCore import QObject


class Observation:
    """Calls ``call`` at each event, until it is closed or the owner is destroyed by Qt."""

    def __init__(self, owner: QObject, subject: Any, event: Any, call: Callable[[], Any]) -> None:
        self._owner, self._subject, self._call = owner, subject, call
        self._tag: int | None = subject.AddObserver(event, self._on_event)
        owner.destroyed.connect(lambda: self.close())

    def close(self) -> None:
        if self._tag is not None:
            self._subject.RemoveObserver(self._tag)
            self._tag = None

    def _on_event(self, *_: Any) -> None:
        if shiboken6.isValid(self._owner):
            self._call()
        else:
            self.close()
