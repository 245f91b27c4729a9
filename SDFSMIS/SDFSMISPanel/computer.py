"""Computer: what the panel asks of the computer that it runs on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from SDFSMISLib.client import Client
from SDFSMISPanel.background import Cancel
from SDFSMISPanel.panel_logic import BackendChoice

__all__ = ["Computer"]


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
