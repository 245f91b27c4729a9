"""Step 5, Review: the results, how certain they are, accept or discard."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import qt
from slicer.i18n import tr as _

from SDFSMISLib.images.planes import Plane
from SDFSMISLib.workbench.review import describe_cleaning
from SDFSMISLib.workbench.views import ResultView, ReviewView
from SDFSMISPanel.certainty_plot import BY_HAND, PAINTED, SHOWN, CertaintyPlot
from SDFSMISPanel.controls import Control, bring_into_sight, plane_names
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
        self._corrected_before: dict[int, set[Plane]] = {}  # slices by the number of their scan, when its review began
        self._opened = qt.QTimer()
        self._opened.setSingleShot(True)
        self._opened.setInterval(LAYOUT)
        self._opened.connect("timeout()", self._on_opened)
        self._scans: tuple[str, ...] = ()
        self._controls = [Control(one) for one in (ui.thresholdSlider, ui.smoothSpinBox, ui.keepLargestCheckBox)]
        self._ends = [Control(ui.acceptButton), Control(ui.discardButton)]
        self._suggestion, self._right = Control(ui.suggestionButton), Control(ui.sliceRightButton)
        self._plot = CertaintyPlot(ui.certaintyPlotLabel, workbench.review.go_to_slice)
        ui.plotLegendLabel.text = _legend()
        ui.reviewScanComboBox.connect("activated(int)", workbench.review.choose_scan)
        ui.thresholdSlider.connect("valueChanged(double)", self._on_threshold)
        ui.smoothSpinBox.connect("valueChanged(double)", self._on_cleaning)
        ui.keepLargestCheckBox.connect("toggled(bool)", self._on_cleaning)
        ui.suggestionButton.connect("clicked()", self.go_to_suggestion)
        ui.sliceRightButton.connect("clicked()", self.say_right)
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

    def go_to_suggestion(self) -> None:
        """Show the slice where one more painted slice would help most, if there are results."""
        if self._workbench.review.view.results:
            self._workbench.review.go_to_suggestion()

    def say_right(self) -> None:
        """Take the slice of the view that was used last as right, if there are results."""
        view = self._workbench.review.view
        if view.results and view.shown and not view.is_right:
            self._workbench.review.say_right()

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
            self._plot.show(view.results, view.axis, view.index)
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
        self._show_slices(view)
        self._show_ends()

    def _show_slices(self, view: ReviewView) -> None:
        """Name the slice that is suggested, and the one that can be said to be right."""
        ui = self._ui
        best = _("One more painted slice would help most here: <b>{slice}</b>").format(slice=_slice(view.suggestion))
        ui.suggestionLabel.text, ui.suggestionLabel.visible = best, bool(view.suggestion)
        none = _("No slice stands out, or the search for it has not ended yet.")
        self._suggestion.allow("" if view.suggestion else none)
        text = _("This slice is right: {slice}").format(slice=_slice(view.shown)) if view.shown else ""
        ui.sliceRightButton.text = text or _("This slice is right")
        known = _("All of this slice is known to be right already.") if view.is_right else ""
        self._right.allow(known if view.shown else _("No view shows a slice of this scan."))

    def _show_ends(self) -> None:
        for control in self._ends:
            control.allow(self._busy)


def _by_hand(view: ReviewView) -> set[Plane]:
    return {plane for result in view.results for plane in result.by_hand}


def _title(view: ReviewView) -> str:
    """Names the post-processing, since it is applied to the results of the next run, too."""
    what = describe_cleaning(view)
    return _("5. Review ({what})").format(what=what) if what else _("5. Review")


def _correction_hint(results: Sequence[ResultView]) -> str:
    names = [_("“{name} (SDFSMIS)”").format(name=result.name) for result in results]
    where = _(" or ").join(names) if len(names) <= NAMED else _("its segment with “(SDFSMIS)” in its name")
    return _(
        "Wrong somewhere? Correct it in {where}, in the view in which you see it, then press Segment again. What you "
        "corrected, and what lies within 5 mm on that slice, is never overwritten. If all of a slice is right, say so: "
        "it becomes one more example."
    ).format(where=where)


def _slice(name: str) -> str:
    """A slice such as "sagittal 27", in the user's language."""
    plane, _space, index = name.partition(" ")
    return f"{plane_names().get(plane, plane)} {index}"


def _volume(result: ResultView) -> str:
    amount = _("{ml:.1f} ml").format(ml=result.volume_ml) if result.volume_ml is not None else _("being counted")
    return f"{_swatch([round(255 * part) for part in result.color])} {html.escape(result.name)}: {amount}"


def _legend() -> str:
    parts = ((PAINTED, _("painted")), (BY_HAND, _("corrected")), (SHOWN, _("shown now")))
    return " &nbsp; ".join(f"{_swatch(color)} {text}" for color, text in parts)


def _swatch(color: Any) -> str:
    return '<span style="color: rgb({}, {}, {})">&#9632;</span>'.format(*color)
