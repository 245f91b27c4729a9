"""The panel's last step: results are reviewed, corrected and drawn; on a stand-in for Slicer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")
pytest.importorskip("PySide6")

from recording_workbench import a_review, a_support, corrected  # noqa: E402

if TYPE_CHECKING:
    from panel_fixtures import Shown

pytest_plugins = ["panel_fixtures"]


def test_without_results_there_is_nothing_to_review(shown: Shown) -> None:
    assert not shown.seen("reviewFrame") and shown.seen("reviewHintLabel")


def test_results_open_the_review(shown: Shown) -> None:
    shown.put(review=a_review())
    ui = shown.ui
    assert shown.seen("reviewFrame") and not ui.reviewCollapsibleButton.collapsed
    assert not shown.seen("reviewScanComboBox")
    assert "liver: 1432.6 ml" in ui.volumesLabel.text and "spleen: being counted" in ui.volumesLabel.text
    assert not ui.certaintyPlotLabel.pixmap.isNull()


@pytest.mark.parametrize(
    ("change", "call"),
    [
        (lambda ui: setattr(ui.thresholdSlider, "value", 0.3), ("review.set_threshold", 0.3)),
        (lambda ui: setattr(ui.smoothSpinBox, "value", 2.5), ("review.set_cleaning", False, 2.5)),
        (lambda ui: ui.keepLargestCheckBox.click(), ("review.set_cleaning", True, 0.0)),
        (lambda ui: ui.suggestionButton.click(), ("review.go_to_suggestion",)),
        (lambda ui: ui.sliceRightButton.click(), ("review.say_right",)),
        (lambda ui: ui.acceptButton.click(), ("review.accept",)),
        (lambda ui: ui.discardButton.click(), ("review.discard",)),
    ],
)
def test_a_control_of_the_review_reaches_the_workbench(
    shown: Shown, change: Callable[[Any], None], call: tuple[Any, ...]
) -> None:
    shown.put(review=a_review())
    change(shown.ui)
    assert shown.workbench.calls[-1] == pytest.approx(call) if len(call) == 2 else shown.workbench.calls[-1] == call


def test_a_threshold_that_the_workbench_sets_is_shown_and_not_sent_back(shown: Shown) -> None:
    shown.put(review=a_review())
    calls = len(shown.workbench.calls)
    shown.put(review=replace(a_review(), threshold=0.2, smooth_mm=1.5, keep_largest=True))
    ui = shown.ui
    assert (ui.thresholdSlider.value, ui.smoothSpinBox.value, ui.keepLargestCheckBox.checked) == (0.2, 1.5, True)
    assert len(shown.workbench.calls) == calls


def test_after_a_correction_it_is_said_what_to_do(shown: Shown) -> None:
    from SDFSMISLib.workbench.views import ReviewView, RunView

    finished = RunView(False, "Finished.")
    shown.put(support=a_support(), run=finished, review=corrected(90))
    assert shown.ui.runLabel.text == "Finished."  # corrected before that run, which has used it
    shown.put(review=corrected(90, 230))
    text = "1 corrected slice. Press Segment to use it, or Accept to keep the result."
    assert shown.ui.runLabel.text == text
    shown.put(review=corrected(90, 230, sagittal=(90,)))
    assert shown.ui.runLabel.text.startswith("2 corrected slices. Press Segment to use them")
    shown.put(run=RunView(True, "Segmenting…"), review=ReviewView())
    assert shown.ui.runLabel.text == "Segmenting…"
    shown.put(run=finished, review=corrected(90, 230, sagittal=(90,)))
    assert shown.ui.runLabel.text == "Finished."


def test_where_to_correct_is_named(shown: Shown) -> None:
    shown.put(review=a_review())
    assert "Correct it in “liver (SDFSMIS)” or “spleen (SDFSMIS)”" in shown.ui.correctionHintLabel.text
    many = tuple(replace(a_review().results[0], name=f"s{n}") for n in range(7))
    shown.put(review=replace(a_review(), results=many))
    assert "Correct it in its segment with “(SDFSMIS)”" in shown.ui.correctionHintLabel.text


def test_the_slice_where_one_more_helps_most_and_the_one_that_can_be_right_are_named(shown: Shown) -> None:
    shown.put(review=a_review())
    ui = shown.ui
    assert shown.seen("suggestionLabel") and "<b>sagittal 211</b>" in ui.suggestionLabel.text
    assert ui.sliceRightButton.text == "This slice is right: coronal 87" and ui.sliceRightButton.enabled
    shown.put(review=replace(a_review(), suggestion="", is_right=True))
    assert not shown.seen("suggestionLabel") and not ui.suggestionButton.enabled
    assert not ui.sliceRightButton.enabled and "right already" in ui.sliceRightButton.toolTip
    shown.put(review=replace(a_review(), shown=""))
    assert ui.sliceRightButton.text == "This slice is right" and not ui.sliceRightButton.enabled


def test_what_is_done_to_results_stands_in_the_title_of_the_review(shown: Shown) -> None:
    shown.put(review=replace(a_review(), smooth_mm=3.0, keep_largest=True))
    assert shown.ui.reviewCollapsibleButton.text == "5. Review (smoothed 3 mm, largest piece only)"
    shown.put(review=a_review())
    assert shown.ui.reviewCollapsibleButton.text == "5. Review"


def test_a_review_that_begins_is_brought_into_sight_once(shown: Shown) -> None:
    window = shown.standin.main_window(shown.module.parent)
    window.resize(1100, 600)
    shown.put(support=a_support())
    button = shown.ui.reviewCollapsibleButton._native
    area = button.parentWidget()
    while not area.inherits("QScrollArea"):
        area = area.parentWidget()
    bar = area.verticalScrollBar()
    shown.standin.process(5, until=lambda: bar.maximum() > 0)
    bar.setValue(0)
    shown.put(review=a_review())
    assert shown.standin.process(5, until=lambda: bar.value() > 0)
    place = button.mapTo(area.viewport(), button.rect().center()).y()
    assert 0 < place < area.viewport().height()
    bar.setValue(0)
    shown.put(review=corrected(90))
    shown.standin.process(0.2)
    assert bar.value() == 0


def test_a_long_name_takes_no_scroll_bar_and_is_whole_in_the_tooltip(shown: Shown) -> None:
    name = "left lateral ventricle of the brain, as seen by the first reader in the year before last"
    support = a_support()
    liver = replace(support.segments[0], name=name)
    shown.put(support=replace(support, segments=(liver,)))
    items = shown.ui.segmentsList
    assert not items._native.horizontalScrollBar().isVisible() and name in items.item(0).toolTip()


def test_another_scan_is_reviewed(shown: Shown) -> None:
    shown.put(review=replace(a_review(), scans=("CTA abdomen", "MR of the next day"), scan=1))
    assert shown.seen("reviewScanComboBox") and shown.ui.reviewScanComboBox.currentText == "MR of the next day"
    shown.ui.reviewScanComboBox.activated(0)
    assert shown.workbench.calls_of("review.choose_scan") == [(0,)]


def test_results_that_cannot_be_changed_say_why(shown: Shown) -> None:
    shown.put(review=replace(a_review(), problem="The segment was deleted."))
    assert not shown.ui.thresholdSlider.enabled and shown.ui.thresholdSlider.toolTip == "The segment was deleted."
    assert shown.ui.reviewProblemLabel.text == "The segment was deleted." and shown.ui.discardButton.enabled


def test_a_click_on_the_plot_goes_to_that_slice(shown: Shown) -> None:
    from PySide6.QtCore import QPoint, Qt
    from PySide6.QtTest import QTest

    from SDFSMISPanel.certainty_plot import Scale

    shown.put(review=a_review())
    label = shown.ui.certaintyPlotLabel
    scale = Scale(label.width, label.height, 300)
    QTest.mouseClick(label._native, Qt.MouseButton.LeftButton, pos=QPoint(scale.x(230), 40))
    ((index,),) = shown.workbench.calls_of("review.go_to_slice")
    assert abs(index - 230) <= 1


def test_a_curve_leaves_out_slices_that_were_not_computed_and_keeps_the_least_certain(standin: Any) -> None:
    from SDFSMISPanel.certainty_plot import Scale, slices_of

    assert slices_of(np.array([1.0, np.nan, 0.0, np.nan, 0.5]), Scale(1000, 100, 5)) == [0, 2, 4]
    certainty = np.full(10_000, 0.9)
    certainty[5000] = 0.1
    found = slices_of(certainty, Scale(80, 100, 10_000))
    assert len(found) <= 11 and 5000 in found and found == sorted(found)


def test_the_lowest_certainty_is_that_of_the_least_certain_structure_that_was_computed(standin: Any) -> None:
    from SDFSMISPanel.certainty_plot import lowest_of

    curves = ([0.9, 0.2, np.nan, np.nan], [0.5, np.nan, 0.3, np.nan])
    results = [replace(a_review().results[0], certainty=np.array(curve)) for curve in curves]
    lowest, owner = lowest_of(results)
    assert np.array_equal(lowest, [0.5, 0.2, 0.3, np.nan], equal_nan=True) and list(owner[:3]) == [1, 0, 1]


@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_the_plot_of_many_structures_is_drawn(shown: Shown, count: int) -> None:
    first = a_review().results[0]
    results = tuple(replace(first, name=f"s{n}", certainty=np.roll(first.certainty, 40 * n)) for n in range(count))
    shown.put(review=replace(a_review(), results=results))
    assert not shown.ui.certaintyPlotLabel.pixmap.isNull()


def test_columns_and_slices_answer_each_other(standin: Any) -> None:
    from SDFSMISPanel.certainty_plot import Scale

    scale = Scale(800, 100, 300)
    assert [scale.slice_at(scale.x(k)) for k in range(300)] == list(range(300))
    assert scale.slice_at(-50) == 0 and scale.slice_at(10_000) == 299
    assert Scale(0, 0, 1).slice_at(3) in (0, 1)


# -- pictures


@pytest.mark.parametrize("values", [3, 4])
def test_a_picture_arrives_in_qt_as_it_was(standin: Any, values: int) -> None:
    import qt

    from SDFSMISPanel.controls import pixmap

    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, values), dtype=np.uint8)
    pixels[..., 3:] = 255
    made = pixmap(pixels)
    assert (made.width(), made.height()) == (7, 5)
    color = qt.QColor(made.toImage().pixel(6, 4))
    assert (color.red(), color.green(), color.blue()) == tuple(pixels[4, 6, :3])
