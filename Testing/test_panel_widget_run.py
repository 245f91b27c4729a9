"""The panel's steps for other slices and scans, and for a run; on a stand-in for Slicer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

slicer = pytest.importorskip("slicer")
pytest.importorskip("PySide6")

from recording_workbench import a_review, a_support, request_of  # noqa: E402

if TYPE_CHECKING:
    from panel_fixtures import Shown

pytest_plugins = ["panel_fixtures"]


def test_all_slices_are_asked_for_by_default(shown: Shown) -> None:
    from SDFSMISLib.workbench.views import QueryMode, RunRequest

    shown.put(support=a_support())
    request = request_of(shown)
    assert request == RunRequest(QueryMode.ALL, 0, 299, 10, (), "propagate", "auto")
    editor = shown.workbench.calls_of("run.start")[-1][1]
    assert editor.node.IsA("vtkMRMLSegmentEditorNode") and callable(editor.save_undo)


def test_a_range_is_asked_for(shown: Shown) -> None:
    from SDFSMISLib.workbench.views import QueryMode

    shown.put(support=a_support())
    assert not shown.seen("rangeWidget") and not shown.seen("reachSpinBox")
    shown.ui.queryModeComboBox.currentIndex = 1
    assert shown.seen("rangeWidget") and shown.ui.rangeWidget.maximum == 299
    shown.ui.rangeWidget.setValues(20, 40)
    request = request_of(shown)
    assert (request.mode, request.first, request.last) == (QueryMode.RANGE, 20, 40)


@pytest.mark.parametrize(("first", "last"), [(0, 0), (0, 40), (299, 299)])
def test_a_range_is_the_same_when_the_panel_is_opened_again(shown: Shown, first: int, last: int) -> None:
    shown.put(support=a_support())
    shown.ui.queryModeComboBox.currentIndex = 1
    shown.ui.rangeWidget.setValues(first, last)
    shown.module.leave()
    shown.module.open()
    request = request_of(shown)
    assert (request.first, request.last) == (first, last)


def test_a_range_that_nobody_set_is_the_whole_of_the_next_scan_too(shown: Shown) -> None:
    shown.put(support=replace(a_support(), slice_count=20))
    shown.ui.queryModeComboBox.currentIndex = 1
    shown.put(support=a_support())
    request = request_of(shown)
    assert (request.first, request.last) == (0, 299)


def test_slices_around_the_one_shown_are_asked_for(shown: Shown) -> None:
    from SDFSMISLib.workbench.views import QueryMode

    shown.ui.queryModeComboBox.currentIndex = 2
    shown.ui.reachSpinBox.value = 7
    assert shown.seen("reachSpinBox") and not shown.seen("rangeWidget")
    request = request_of(shown)
    assert (request.mode, request.reach) == (QueryMode.OUTWARDS, 7)


def test_other_scans_are_asked_for_and_the_painted_one_is_none_of_them(shown: Shown) -> None:
    shown.scan()
    other = shown.scan("MR of the next day")
    selector = shown.ui.otherScansSelector
    assert selector.nodeCount() == 1 and selector.nodeFromIndex(0) is other
    selector.check(other)
    assert request_of(shown).others == (other,)
    shown.ui.scanSelector.setCurrentNode(other)
    assert request_of(shown).others == ()


def test_the_way_and_the_region_are_set_under_advanced(shown: Shown) -> None:
    shown.ui.strategyComboBox.currentIndex = 1
    shown.ui.regionComboBox.currentIndex = 1
    request = request_of(shown)
    assert (request.strategy, request.region) == ("independent", "full")


def test_a_run_that_cannot_be_started_says_why(shown: Shown) -> None:
    shown.workbench.reason = "Paint the liver on one slice."
    shown.put(support=a_support())
    button = shown.ui.runButton
    assert not button.enabled and button.toolTip == shown.ui.runLabel.text == "Paint the liver on one slice."
    assert not shown.seen("paintHintLabel") or "Load a scan" in shown.ui.paintHintLabel.text
    shown.workbench.reason = ""
    shown.put(support=a_support())
    assert button.enabled and "Find the structures" in button.toolTip and not shown.seen("runLabel")


def test_a_reason_stands_in_place_of_how_the_last_run_ended_but_not_of_what_went_wrong(shown: Shown) -> None:
    from SDFSMISLib.workbench.views import RunView

    shown.workbench.reason = "Paint the liver on one slice."
    shown.put(run=RunView(False, "Finished."))
    assert shown.ui.runLabel.text == "Paint the liver on one slice."
    shown.put(run=RunView(False, "The file holds no slices.", failed=True))
    assert shown.ui.runLabel.text == "The file holds no slices.\nPaint the liver on one slice."


def test_what_is_missing_is_said_once(shown: Shown) -> None:
    shown.scan()
    shown.workbench.reason = "Paint the liver on one slice."
    shown.put(support=replace(a_support(), entries=(), problem="Paint the liver on one slice."))
    assert not shown.seen("paintHintLabel") and shown.ui.runLabel.text == "Paint the liver on one slice."


def test_a_reason_that_follows_from_the_query_is_shown_at_once(shown: Shown) -> None:
    shown.workbench.reason = "No scan to segment is chosen."
    shown.ui.queryModeComboBox.currentIndex = 3
    shown.settle()
    assert shown.ui.runLabel.text == "No scan to segment is chosen."


def test_segment_becomes_cancel_while_a_run_goes_on(shown: Shown) -> None:
    from SDFSMISLib.workbench.views import RunView

    shown.put(run=RunView(True, "12 of 300 slices.", 0.04, 130.0, notes=("The scan is long.",)))
    ui = shown.ui
    assert ui.runButton.text == "Cancel" and ui.runProgressBar.value == 4 and shown.seen("runProgressBar")
    assert ui.runLabel.text == "12 of 300 slices, about 2 min left" and ui.runNotesLabel.text == "The scan is long."
    ui.runButton.click()
    assert shown.workbench.calls_of("run.cancel") == [()] and shown.workbench.calls_of("run.start") == []
    shown.put(run=RunView(False, "All 300 slices are done."))
    assert ui.runButton.text == "4. Segment" and not shown.seen("runProgressBar")
    assert ui.runLabel.text == "All 300 slices are done."


@pytest.mark.parametrize("text", ["Slice 19 of 36", "Writing the results…", "Sending."])
def test_the_remaining_time_is_set_apart_from_what_goes_on(shown: Shown, text: str) -> None:
    from SDFSMISLib.workbench.views import RunView

    shown.put(run=RunView(True, text, 0.5, 2.0))
    assert shown.ui.runLabel.text == text.rstrip(".…") + ", about 2 s left"


def test_what_cannot_be_cancelled_leaves_segment_where_it_is_and_says_why(shown: Shown) -> None:
    from SDFSMISLib.workbench.views import RunView

    shown.put(support=a_support(), review=a_review())
    shown.put(run=RunView(True, "Saving the examples…", can_cancel=False))
    ui = shown.ui
    assert ui.runButton.text == "4. Segment" and not ui.runButton.enabled
    assert ui.runButton.toolTip == ui.acceptButton.toolTip == "Wait until this has ended: Saving the examples…"
    shown.panel._shortcuts._made[0].activated()
    assert shown.workbench.calls_of("run.cancel") == shown.workbench.calls_of("run.start") == []
    shown.put(run=RunView(False, "The examples were saved."))
    assert ui.runButton.enabled and "Find the structures" in ui.runButton.toolTip
    assert ui.acceptButton.enabled and "Keep the results" in ui.acceptButton.toolTip


def test_a_run_whose_length_is_not_known_yet_moves_its_bar(shown: Shown) -> None:
    from SDFSMISLib.workbench.views import RunView

    shown.put(run=RunView(True, "Starting."))
    assert shown.ui.runProgressBar.maximum == 0 and shown.ui.runLabel.text == "Starting."


def test_a_run_that_failed_tells_it(shown: Shown) -> None:
    from SDFSMISLib.workbench.views import RunView

    shown.put(run=RunView(False, "The server was not reached.", failed=True))
    assert shown.ui.runLabel.text == "The server was not reached." and shown.ui.runButton.enabled


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "1 s"), (59, "59 s"), (130, "2 min"), (11_100, "3 h 5 min")])
def test_the_remaining_time_is_said_as_a_clinician_says_it(standin: Any, seconds: float, text: str) -> None:
    from SDFSMISLib.workbench.text import format_duration

    assert format_duration(seconds) == text
