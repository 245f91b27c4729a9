"""Step 5, Review: the results, how certain they are, accept or discard."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import qt
from slicer.i18n import tr as _

from SDFSMISLib.workbench.review import describe_cleaning
from SDFSMISLib.workbench.views import ResultView, ReviewView
from SDFSMISPanel.certainty_plot import BY_HAND, PAINTED, SHOWN, CertaintyPlot
from SDFSMISPanel.controls import Control, bring_into_sight
from SDFSMISPanel.parameter import Parameter

if TYPE_CHECKING:
    from SDFSMISLib.workbench import Workbench

__all__ = ["ReviewSection"]

LAYOUT = 50  # ms that a part which has opened takes to find its place
NAMED = 3  # structures that are named in a sentence; more are too many


class ReviewSection:
    """Shows a :class:`.ReviewView`."""

    def __init__(self, ui: Any, workbench: Workbench) -> None:
        self._ui, self._workbench = ui, workbench
        self._parameter: Parameter | None = None
        self._shown: ReviewView | None = None
        self._busy = ""
        self._corrected_before: dict[int, set[int]] = {}  # slices by the number of their scan, when its review began
        self._opened = qt.QTimer()
        self._opened.setSingleShot(True)
        self._opened.setInterval(LAYOUT)
        self._opened.connect("timeout()", self._on_opened)
        self._scans: tuple[str, ...] = ()
        self._controls = [Control(one) for one in (ui.thresholdSlider, ui.smoothSpinBox, ui.keepLargestCheckBox)]
        self._ends = [Control(ui.acceptButton), Control(ui.discardButton)]
        self._least = Control(ui.leastCertainButton)
        self._plot = CertaintyPlot(ui.certaintyPlotLabel, workbench.review.go_to_slice)
        ui.plotLegendLabel.text = _legend()
        ui.reviewScanComboBox.connect("activated(int)", workbench.review.choose_scan)
        ui.thresholdSlider.connect("valueChanged(double)", self._on_threshold)
        ui.smoothSpinBox.connect("valueChanged(double)", self._on_cleaning)
        ui.keepLargestCheckBox.connect("toggled(bool)", self._on_cleaning)
        ui.leastCertainButton.connect("clicked()", self.go_to_least_certain)
        ui.acceptButton.connect("clicked()", workbench.review.accept)
        ui.discardButton.connect("clicked()", workbench.review.discard)

    def restore(self, parameter: Parameter | None) -> None:
        """Set the controls to a scene's parameters, and store later changes there; None = store them nowhere."""
        self._parameter = parameter
        if parameter is not None:
            self._workbench.review.set_threshold(parameter.threshold)
            self._workbench.review.set_cleaning(parameter.keep_largest, parameter.smooth_mm)

    def close(self) -> None:
        """Stop the timer and the plot."""
        self._opened.stop()
        self._plot.close()

    def advice(self) -> str:
        """What to do after a correction; "" if no slice was corrected since the review began."""
        view = self._workbench.review.view
        new = _by_hand(view) - self._corrected_before.get(view.scan, _by_hand(view))
        if not new:
            return ""
        if len(new) == 1:
            return _("1 corrected slice. Press Segment to use it, or Accept to keep the result.")
        text = _("{n} corrected slices. Press Segment to use them, or Accept to keep the result.")
        return text.format(n=len(new))

    def go_to_least_certain(self) -> None:
        """Show the least certain slice, if there are results."""
        if self._workbench.review.view.results:
            self._workbench.review.go_to_least_certain()

    def show(self) -> None:
        """Show the results."""
        view, run = self._workbench.review.view, self._workbench.run.view
        busy = _("Wait until this has ended: {text}").format(text=run.text) if run.running else ""
        if busy != self._busy:
            self._busy = busy
            self._show_ends()
        if view is self._shown:
            return
        before, self._shown, ui = self._shown, view, self._ui
        some = bool(view.results)
        ui.reviewFrame.visible, ui.reviewHintLabel.visible = some, not some
        if some and (before is None or not before.results):
            ui.reviewCollapsibleButton.collapsed = False
            self._corrected_before.clear()
            self._opened.start()
        if some:
            self._corrected_before.setdefault(view.scan, _by_hand(view))
            ui.correctionHintLabel.text = _correction_hint(view.results)
        ui.reviewCollapsibleButton.text = _title(view)
        self._show_scans(view)
        self._show_controls(view)
        if some and (before is None or view.results != before.results or view.index != before.index):
            self._plot.show(view.results, view.index)
        ui.volumesLabel.text = "<br>".join(_volume(result) for result in view.results)
        waits = _("A change is still being written.") if view.working else ""
        text = view.problem or waits
        ui.reviewProblemLabel.text, ui.reviewProblemLabel.visible = text, bool(text)

    # -- what the user does

    def _on_threshold(self, threshold: float) -> None:
        if self._parameter is not None:
            self._parameter.threshold = threshold
        self._workbench.review.set_threshold(threshold)

    def _on_cleaning(self, _value: object) -> None:
        largest, smooth = bool(self._ui.keepLargestCheckBox.checked), float(self._ui.smoothSpinBox.value)
        if self._parameter is not None:
            self._parameter.keep_largest, self._parameter.smooth_mm = largest, smooth
        self._workbench.review.set_cleaning(largest, smooth)

    def _on_opened(self) -> None:
        if self._ui.reviewCollapsibleButton.visible:
            bring_into_sight(self._ui.reviewCollapsibleButton)

    # -- what is shown

    def _show_scans(self, view: ReviewView) -> None:
        ui, box = self._ui, self._ui.reviewScanComboBox
        if view.scans != self._scans:
            self._scans = view.scans
            box.clear()
            box.addItems(list(view.scans))
        box.currentIndex = view.scan if view.scans else -1
        box.visible = ui.reviewScanLabel.visible = len(view.scans) > 1

    def _show_controls(self, view: ReviewView) -> None:
        ui = self._ui
        for control in self._controls:
            control.allow(view.problem)
        for widget, name, value in (
            (ui.thresholdSlider, "value", view.threshold),
            (ui.smoothSpinBox, "value", view.smooth_mm),
            (ui.keepLargestCheckBox, "checked", view.keep_largest),
        ):
            if abs(getattr(widget, name) - value) > 1e-6:  # what the user drags at this moment stays where it is
                widget.blockSignals(True)
                setattr(widget, name, value)
                widget.blockSignals(False)
        self._least.allow("" if view.plane else _("No view shows slices of this scan."))
        self._show_ends()

    def _show_ends(self) -> None:
        for control in self._ends:
            control.allow(self._busy)


def _by_hand(view: ReviewView) -> set[int]:
    return {index for result in view.results for index in result.by_hand}


def _title(view: ReviewView) -> str:
    """Names the post-processing, since it is applied to the results of the next run, too."""
    what = describe_cleaning(view)
    return _("5. Review ({what})").format(what=what) if what else _("5. Review")


def _correction_hint(results: Sequence[ResultView]) -> str:
    names = [_("“{name} (SDFSMIS)”").format(name=result.name) for result in results]
    where = _(" or ").join(names) if len(names) <= NAMED else _("its segment with “(SDFSMIS)” in its name")
    return _(
        "Wrong there? Correct it in {where}: paint or erase there, then press Segment again. Slices that you corrected "
        "are used as examples and never overwritten."
    ).format(where=where)


def _volume(result: ResultView) -> str:
    amount = _("{ml:.1f} ml").format(ml=result.volume_ml) if result.volume_ml is not None else _("being counted")
    return f"{_swatch([round(255 * part) for part in result.color])} {html.escape(result.name)}: {amount}"


def _legend() -> str:
    parts = ((PAINTED, _("painted")), (BY_HAND, _("corrected")), (SHOWN, _("shown now")))
    return " &nbsp; ".join(f"{_swatch(color)} {text}" for color, text in parts)


def _swatch(color: Any) -> str:
    return '<span style="color: rgb({}, {}, {})">&#9632;</span>'.format(*color)
