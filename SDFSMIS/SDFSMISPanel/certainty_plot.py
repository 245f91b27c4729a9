"""The plot of certainty over the slices of a scan; a click shows a slice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import qt
from slicer.i18n import tr as _

from SDFSMISLib.workbench.views import ResultView

__all__ = ["CertaintyPlot", "Scale", "lowest_of", "slices_of"]

GREY, PAINTED, BY_HAND, SHOWN = (128, 128, 128), (70, 160, 90), (230, 140, 30), (60, 120, 220)
LEFT, RIGHT, TOP, BOTTOM = 62, 8, 8, 30  # pixels around the curves
MARK = 4  # pixels, half the side of a mark
CURVES = 4  # of structures; of more, only the lowest is drawn
PALE = 90  # opacity of 255


class Scale:
    """Maps slices and certainties to pixels of the plot.

    Args:
        width, height: of the picture in pixels.
        count: number of slices.
    """

    def __init__(self, width: int, height: int, count: int) -> None:
        self.left, self.right = LEFT, max(LEFT + 1, width - RIGHT)
        self.top, self.bottom = TOP, max(TOP + 1, height - BOTTOM)
        self._last = max(1, count - 1)

    def x(self, index: float) -> int:
        """Column of a slice."""
        return round(self.left + (self.right - self.left) * index / self._last)

    def y(self, certainty: float) -> int:
        """Row of a certainty, 0 to 1."""
        return round(self.bottom - (self.bottom - self.top) * min(max(certainty, 0.0), 1.0))

    def slice_at(self, x: int) -> int:
        """The slice nearest to a column."""
        share = (x - self.left) / (self.right - self.left)
        return round(min(max(share, 0.0), 1.0) * self._last)


def slices_of(certainty: np.ndarray, scale: Scale) -> list[int]:
    """The slices through which a curve is drawn: for each column the least certain one. NaN is left out."""
    least: dict[int, int] = {}
    for index in map(int, np.flatnonzero(~np.isnan(certainty))):
        column = scale.x(index)
        if column not in least or certainty[index] < certainty[least[column]]:
            least[column] = index
    return list(least.values())


def lowest_of(results: Sequence[ResultView]) -> tuple[np.ndarray, np.ndarray]:
    """The lowest certainty of each slice (NaN if none was computed), and the number of the structure that it is of."""
    all_of_them = np.array([result.certainty for result in results])
    owner = np.nan_to_num(all_of_them, nan=np.inf).argmin(axis=0)
    return all_of_them[owner, np.arange(all_of_them.shape[1])], owner


class CertaintyPlot(qt.QObject):
    """Draws into a QLabel, and reacts to clicks and changes of its size.

    Args:
        on_slice: called with the clicked slice.
    """

    def __init__(self, label: Any, on_slice: Callable[[int], None]) -> None:
        qt.QObject.__init__(self)
        self._label, self._on_slice = label, on_slice
        self._results: tuple[ResultView, ...] = ()
        self._axis = 0
        self._index: int | None = None
        label.installEventFilter(self)

    def show(self, results: tuple[ResultView, ...], axis: int, index: int | None) -> None:
        """Draw the curves of these structures over the slices along an axis, and mark the slice that a view shows."""
        self._results, self._axis, self._index = results, axis, index
        self._draw()

    def close(self) -> None:
        """Stop reacting to the label."""
        self._label.removeEventFilter(self)

    def eventFilter(self, _watched: Any, event: Any) -> bool:  # noqa: N802 - Qt's name
        """Qt's event filter: True for a click, which is handled here."""
        if event.type() == qt.QEvent.MouseButtonRelease and self._results:
            self._on_slice(self._scale().slice_at(event.pos().x()))
            return True
        if event.type() == qt.QEvent.Resize:
            self._draw()
        return False

    def _scale(self) -> Scale:
        count = max((len(result.certainty) for result in self._results), default=1)
        return Scale(self._label.width, self._label.height, count)

    def _draw(self) -> None:
        width, height = max(1, self._label.width), max(1, self._label.height)
        picture = qt.QPixmap(width, height)
        picture.fill(qt.QColor(0, 0, 0, 0))
        painter = qt.QPainter()
        painter.begin(picture)
        painter.setRenderHint(qt.QPainter.Antialiasing, True)
        scale = self._scale()
        self._draw_axes(painter, scale)
        if self._results:
            self._draw_curves(painter, scale)
        self._draw_marks(painter, scale)
        painter.end()
        self._label.setPixmap(picture)

    def _draw_axes(self, painter: Any, scale: Scale) -> None:
        painter.setPen(_pen(GREY))
        painter.drawLine(scale.left, scale.bottom, scale.right, scale.bottom)
        painter.drawLine(scale.left, scale.top, scale.left, scale.bottom)
        painter.drawText(0, scale.top + 8, _("certain"))
        painter.drawText(0, scale.bottom, _("uncertain"))
        count = max((len(result.certainty) for result in self._results), default=0)
        if count:
            painter.drawText(scale.left, scale.bottom + 24, "0")
            last = str(count - 1)
            painter.drawText(scale.right - 8 * len(last), scale.bottom + 24, last)
            painter.drawText((scale.left + scale.right) // 2 - 20, scale.bottom + 24, _("slice"))

    def _draw_curves(self, painter: Any, scale: Scale) -> None:
        """The lowest certainty is bold, in the colors of its structures; the curves of the structures are pale."""
        results = self._results
        if 1 < len(results) <= CURVES:
            for result in results:
                color = (*_color(result), PALE)
                _draw_curve(painter, scale, result.certainty, [color] * len(result.certainty), 1)
        lowest, owner = lowest_of(results)
        _draw_curve(painter, scale, lowest, [_color(results[number]) for number in owner], 2)

    def _draw_marks(self, painter: Any, scale: Scale) -> None:
        """Below the axis: painted and corrected slices; a vertical line: the slice that is shown."""
        place = scale.bottom + 2 + MARK
        for color, indices in (
            (PAINTED, _union(result.painted for result in self._results)),
            (BY_HAND, _union(self._along_axis(result) for result in self._results)),
        ):
            for index in indices:
                painter.fillRect(scale.x(index) - MARK // 2, place - MARK, MARK, 2 * MARK, qt.QColor(*color))
        if self._index is not None:
            painter.setPen(_pen(SHOWN))
            painter.drawLine(scale.x(self._index), scale.top, scale.x(self._index), scale.bottom)

    def _along_axis(self, result: ResultView) -> list[int]:
        return [plane.index for plane in result.by_hand if plane.axis == self._axis]


def _draw_curve(painter: Any, scale: Scale, certainty: np.ndarray, colors: Sequence[Sequence[int]], width: int) -> None:
    """Draw a curve with a color for each slice."""
    slices = slices_of(certainty, scale)
    gap = scale.x(1) - scale.x(0) + 1  # farther apart than neighbours: slices between them were not computed
    places = [(scale.x(index), scale.y(float(certainty[index]))) for index in slices]
    for number, ((x, y), (next_x, next_y)) in enumerate(zip(places, places[1:], strict=False)):
        if next_x - x <= gap:
            lower = slices[number + 1] if next_y > y else slices[number]
            painter.setPen(_pen(colors[lower], width))
            painter.drawLine(x, y, next_x, next_y)
    for x, y in places if len(places) == 1 else ():
        painter.setPen(_pen(colors[slices[0]], width))
        painter.drawLine(x - 1, y, x + 1, y)


def _color(result: ResultView) -> tuple[int, ...]:
    return tuple(round(255 * part) for part in result.color)


def _pen(color: Sequence[int], width: int = 1) -> Any:
    pen = qt.QPen(qt.QColor(*color))
    pen.setWidth(width)
    return pen


def _union(groups: Any) -> list[int]:
    return sorted({index for group in groups for index in group})
