"""Step 3, Where to look: which slices of this scan, and which other scans."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from slicer.i18n import tr as _

from SDFSMISLib.options import REGIONS, STRATEGIES
from SDFSMISLib.workbench.views import QueryMode, RunRequest
from SDFSMISPanel.controls import Control
from SDFSMISPanel.parameter import Parameter, keep_other_scans, other_scans

if TYPE_CHECKING:
    from SDFSMISLib.workbench import Workbench

__all__ = ["QuerySection"]

# As the .ui lists them.
MODES = (QueryMode.ALL, QueryMode.RANGE, QueryMode.OUTWARDS, QueryMode.NONE)


class QuerySection:
    """Makes the :class:`.RunRequest` of its controls.

    Args:
        on_change: called when the request has changed.
    """

    def __init__(self, ui: Any, workbench: Workbench, on_change: Callable[[], None]) -> None:
        self._ui, self._workbench, self._on_change = ui, workbench, on_change
        self._parameter: Parameter | None = None
        self._slices = -1
        self._range = Control(ui.rangeWidget)
        self._show_mode()
        for box in (ui.queryModeComboBox, ui.strategyComboBox, ui.regionComboBox):
            box.connect("currentIndexChanged(int)", self._on_index)
        ui.rangeWidget.connect("valuesChanged(double,double)", self._on_range)
        ui.reachSpinBox.connect("valueChanged(int)", self._on_index)
        ui.otherScansSelector.connect("checkedNodesChanged()", self._keep)

    def request(self) -> RunRequest:
        """The request of the controls."""
        ui = self._ui
        return RunRequest(
            mode=MODES[ui.queryModeComboBox.currentIndex],
            first=round(ui.rangeWidget.minimumValue),
            last=round(ui.rangeWidget.maximumValue),
            reach=ui.reachSpinBox.value,
            others=tuple(ui.otherScansSelector.checkedNodes()),
            strategy=STRATEGIES[ui.strategyComboBox.currentIndex],
            region=REGIONS[ui.regionComboBox.currentIndex],
        )

    def show(self) -> None:
        """Show the number of slices in the range."""
        count = self._workbench.support.view.slice_count
        if count != self._slices:
            self._slices = count
            self._show_slices(count)

    def restore(self, parameter: Parameter | None) -> None:
        """Set the controls to a scene's parameters, and store later changes there; None = store them nowhere."""
        self._parameter = None
        if parameter is not None:
            ui = self._ui
            ui.queryModeComboBox.currentIndex = MODES.index(parameter.mode)
            ui.strategyComboBox.currentIndex = _place(STRATEGIES, parameter.strategy)
            ui.regionComboBox.currentIndex = _place(REGIONS, parameter.region)
            ui.reachSpinBox.value = parameter.reach
            self._slices = -1
            for volume in other_scans(parameter):
                ui.otherScansSelector.check(volume)
        self._parameter = parameter
        self._show_mode()
        self.show()

    def leave_out(self, scan: Any | None) -> None:
        """Hide the painted scan from the list of other scans."""
        selector = self._ui.otherScansSelector
        if scan is not None:
            selector.uncheck(scan)
        selector.sortFilterProxyModel().hiddenNodeIDs = [scan.GetID()] if scan is not None else []

    def _on_index(self, _number: int) -> None:
        self._show_mode()
        self._keep()

    def _on_range(self, first: float, last: float) -> None:
        if self._parameter is not None:
            self._parameter.first, self._parameter.last = round(first), round(last)
        self._on_change()

    def _keep(self) -> None:
        self._on_change()
        if self._parameter is None:
            return
        kept, request = self._parameter, self.request()
        kept.mode, kept.reach = request.mode, request.reach
        kept.strategy, kept.region = request.strategy, request.region
        keep_other_scans(kept, request.others)

    def _show_mode(self) -> None:
        ui, mode = self._ui, MODES[self._ui.queryModeComboBox.currentIndex]
        ui.rangeLabel.visible = ui.rangeWidget.visible = mode is QueryMode.RANGE
        ui.reachLabel.visible = ui.reachSpinBox.visible = mode is QueryMode.OUTWARDS

    def _show_slices(self, count: int) -> None:
        """Limit the range to the slices of the scan; the range of a loaded scene is set as soon as these are known."""
        self._range.allow("" if count else _("Paint a slice first: its direction says which slices there are."))
        if not count:
            return
        widget, kept = self._ui.rangeWidget, self._parameter
        first, last = (kept.first, kept.last) if kept is not None and kept.last >= 0 else (0, count - 1)
        widget.blockSignals(True)
        widget.minimum, widget.maximum = 0, count - 1
        widget.setValues(min(first, count - 1), min(last, count - 1))
        widget.blockSignals(False)


def _place(names: tuple[str, ...], name: str) -> int:
    return names.index(name) if name in names else 0
