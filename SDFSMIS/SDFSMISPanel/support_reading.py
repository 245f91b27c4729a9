"""Support reading: what is painted in the scene at some time, with what was corrected by hand in results of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from SDFSMISLib.errors import InputError
from SDFSMISLib.scene import Painting, SegmentLook, read_painting, read_results, with_corrections
from SDFSMISPanel.background import Background, Ended
from SDFSMISPanel.result_home import ResultHome

__all__ = ["SupportReading", "SupportReader"]


@dataclass(frozen=True, eq=False)
class SupportReading:
    """Attributes:
    looks: of the painted segments, by label. painting: None = nothing is painted.
    axis: along which the scan is sliced.
    unpainted: names of segments that take part and have nothing painted.
    problem: why it cannot be read; "" where it can.
    """

    looks: Mapping[int, SegmentLook] = field(default_factory=dict)
    painting: Painting | None = None
    axis: int = 0
    unpainted: tuple[str, ...] = ()
    problem: str = ""


class SupportReader:
    """Reads in two parts: the scene on the main thread, what was corrected in a thread of its own.

    Attributes:
        reading: the last one that is whole.
    """

    def __init__(self) -> None:
        self.reading = SupportReading()
        self._background: Background | None = None
        self._next = SupportReading()

    def begin(
        self, scan: Any | None, segmentation: Any | None, segments: Sequence[str], axis: int | None, results_count: bool
    ) -> None:
        """Reads the scene; some milliseconds. What went on before is let go of.

        Args:
            segments: IDs of those that take part.
            axis: along which the scan is sliced; None = as it is painted.
            results_count: whether corrections in results are looked for.
        """
        self._background = None
        if scan is None or segmentation is None or not segments:
            self.reading = SupportReading()
            return
        try:
            painting = read_painting(scan, segmentation, segments)
        except InputError as error:
            self.reading = SupportReading(problem=str(error))
            return
        along = axis if axis is not None else painting.axis
        names = {label: name for label, name in painting.names.items() if painting.slices(along, label)}
        missing = tuple(name for label, name in painting.names.items() if label not in names)
        looks = {label: SegmentLook.of(segmentation, segments[label - 1]) for label in names}
        painting = replace(painting, names=names)
        self._next = SupportReading(looks, painting if names else None, along, missing)
        home = ResultHome.of(scan, segmentation, looks, along) if results_count and names else None
        if home is None or not home.results:
            self.reading = self._next
            return
        results = read_results(scan, home.segmentation, home.results)
        self._background = Background(
            "SDFSMIS corrections", lambda post, cancel: post(with_corrections(painting, results))
        )

    def take(self, wait: float = 0.0) -> bool:
        """Takes what was corrected, if that is found; whether the reading has changed.

        Args:
            wait: seconds to wait for it at most.
        """
        if self._background is None:
            return False
        if wait:
            self._background.join(wait)
        for message in self._background.messages():
            self._background = None
            if isinstance(message, Ended):  # without a result: there is an error
                self.reading = replace(self._next, problem=str(message.error))
            else:
                self.reading = replace(self._next, painting=message)
            return True
        return False
