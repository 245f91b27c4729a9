"""Support saving: writes the support into a file while the application goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from SDFSMISLib.errors import InputError
from SDFSMISLib.scene import Scan, Scans
from SDFSMISPanel.background import Background, Ended
from SDFSMISPanel.panel_logic import RunView
from SDFSMISPanel.support_plan import SupportPlan

__all__ = ["SupportSaving"]


class SupportSaving:
    """It goes on by :meth:`step`, on the main thread; the file is written in a thread of its own.

    Attributes:
        view: what the panel shows.
        over: whether the file is there, or cannot be written.
    """

    def __init__(self, plan: SupportPlan, painted: Any | None, scans: Scans, path: Path) -> None:
        """
        Args:
            painted: volume node of the scan that is painted; None = the support is from files.
            scans: where copies are kept.
        """
        self.over, self.view = False, RunView(True, _("Saving the support…"), can_cancel=False)
        self._plan, self._scans, self._path, self._painted = plan, scans, path, painted
        self._copying: Iterator[float] = scans.copying(painted) if painted is not None else iter(())
        self._background: Background | None = None

    @property
    def is_writing(self) -> bool:
        """Whether the file is being written, for which the scene is not needed any more."""
        return self._background is not None

    def step(self) -> bool:
        """Does the next piece, of some 20 ms; whether there is more to do at once."""
        if self._background is None:
            return self._copy()
        for message in self._background.messages():
            if isinstance(message, Ended):
                self._end(message.error)
        return False

    def _copy(self) -> bool:
        try:
            if next(self._copying, None) is not None:
                return True
            scan = self._scans.of(self._painted) if self._painted is not None else None
        except InputError as error:
            self._end(error)
            return False
        self._background = Background("SDFSMIS saving", lambda post, cancel: self._write(scan))
        return False

    def _write(self, scan: Scan | None) -> None:
        self._plan.support(scan).save(self._path)

    def _end(self, error: BaseException | None) -> None:
        self.over = True
        if error is None:
            self.view = RunView(text=_("The support was saved as {name}.").format(name=self._path.name))
        else:
            text = _("The support was not saved: {error}").format(error=error)
            self.view = RunView(text=text, failed=True)
