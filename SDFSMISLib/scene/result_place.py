"""The place of a run's results: a segmentation in which a scan lies as it lay when the run began, until it is lost."""

from __future__ import annotations

from typing import Any

from SDFSMISLib.errors import InputError
from SDFSMISLib.scene.frame import Frame
from SDFSMISLib.scene.scan import Scan
from SDFSMISLib.scene.sequence_frame import SequenceFrame

__all__ = ["ResultLost", "ResultPlace"]


class ResultLost(InputError):
    """What the results are written into is gone: deleted, undone, closed, or moved."""


class ResultPlace:
    """A segmentation, and how a volume's grid lies in it, as it was in the beginning.

    Attributes:
        frame: the volume's grid in the segmentation.

    Raises:
        InputError: where a transform that is not linear lies between volume and segmentation.
    """

    def __init__(self, volume_node: Any, segmentation_node: Any, scan: Scan) -> None:
        self.frame = Frame.of(volume_node, segmentation_node)
        self._volume_node, self._segmentation_node, self._scan = volume_node, segmentation_node, scan
        self._segmentation_frame = SequenceFrame.of(segmentation_node)

    @property
    def is_there(self) -> bool:
        """Whether the segmentation is in a scene."""
        return _is_present(self._segmentation_node)

    @property
    def scan_changed(self) -> bool:
        """Whether the volume does not show what the scan is."""
        return not (_is_present(self._volume_node) and self._scan.is_shown_by(self._volume_node))

    def check(self) -> None:
        """Raises :class:`ResultLost` where nothing can be written as it could in the beginning.

        Another frame of the scan's sequence may be shown: it may have another grid, and what is written lies where it
        lay.
        """
        for node, what in ((self._segmentation_node, "segmentation"), (self._volume_node, "scan")):
            if not _is_present(node):
                raise ResultLost(f"The {what} was deleted, or the scene closed; results cannot be written any more.")
        began, now = self._segmentation_frame, SequenceFrame.of(self._segmentation_node)
        if now != began:
            raise ResultLost(
                f"The segmentation shows {now.text if now else 'no frame of a sequence'}, and the run began in "
                f"{began.text if began else 'none'}; go back to that, or begin the run again."
            )
        if SequenceFrame.of(self._volume_node) == self._scan.sequence_frame and self._has_moved():
            raise ResultLost(
                "The scan was changed, or moved against the segmentation, since the run began; begin the run again."
            )

    def _has_moved(self) -> bool:
        try:
            return not self.frame.same(Frame.of(self._volume_node, self._segmentation_node))
        except InputError:
            return True


def _is_present(node: Any) -> bool:
    """Whether a node is in a scene."""
    return node.GetScene() is not None and bool(node.GetScene().IsNodePresent(node))
