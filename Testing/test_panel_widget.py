"""The panel's widgets: every control reaches the logic, every view of the logic is shown; on a stand-in for Slicer."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")
pytest.importorskip("PySide6")

from recording_logic import a_review, a_support  # noqa: E402

if TYPE_CHECKING:
    from panel_fixtures import Shown

pytest_plugins = ["panel_fixtures"]


# -- step 1


def test_a_choice_of_the_backend_reaches_the_logic_and_is_remembered_without_its_token(shown: Shown) -> None:
    ui = shown.ui
    ui.serverRadioButton.click()
    ui.serverComboBox.setEditText(" http://gpu.example.org:7861 ")
    ui.tokenLineEdit.text = "secret"
    ui.certificateLineEdit.text = "/certificates/gpu.pem"
    ui.certificateLineEdit.editingFinished()
    choice = shown.logic.asked("choose_backend")[-1][0]
    assert (choice.kind.value, choice.url, choice.token) == ("server", "http://gpu.example.org:7861", "secret")
    assert choice.certificate == "/certificates/gpu.pem"
    kept = str(slicer.app.userSettings().value("SDFSMIS/backend"))
    assert "gpu.example.org" in kept and "secret" not in kept


def test_the_backend_on_this_computer_is_set_under_advanced(shown: Shown) -> None:
    ui = shown.ui
    ui.deviceComboBox.currentIndex = 1
    ui.modelLineEdit.text, ui.pythonLineEdit.text, ui.pipOptionsLineEdit.text = "/models/sd", "/usr/bin/python3", "-q"
    ui.pipOptionsLineEdit.editingFinished()
    choice = shown.logic.asked("choose_backend")[-1][0]
    assert (choice.device, choice.model) == ("cpu", "/models/sd")
    assert (choice.python, choice.pip_options) == ("/usr/bin/python3", "-q")


def test_no_password_of_an_address_or_of_pip_is_written_to_the_settings_or_the_log(
    shown: Shown, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "SDFSMIS")
    ui = shown.ui
    for options in ("--proxy http://dr:geheim@proxy:8080", "--proxy dr:geheim@proxy:8080"):
        ui.pipOptionsLineEdit.text = options
        ui.pipOptionsLineEdit.editingFinished()
        assert shown.logic.asked("choose_backend")[-1][0].pip_options == options
    ui.serverRadioButton.click()
    ui.tokenLineEdit.text = "geheim"
    for address in ("https://dr:geheim@gpu.example.org", "http://gpu.example.org:7861"):
        ui.serverComboBox.setEditText(address)
        ui.serverComboBox.lineEdit().editingFinished()
        assert shown.logic.asked("choose_backend")[-1][0].url == address
        assert "geheim" not in str(slicer.app.userSettings().value("SDFSMIS/backend"))
    assert "geheim" not in caplog.text and "server gpu.example.org:7861" in caplog.text
    assert (
        "never written to disk" in ui.pipOptionsLineEdit.toolTip and "never written to disk" in ui.tokenLineEdit.toolTip
    )


@pytest.mark.parametrize("name", ["token", "certificate", "python", "model", "pipOptions"])
def test_what_was_just_typed_counts_when_segment_is_asked_for(shown: Shown, name: str) -> None:
    field = {"pipOptions": "pip_options"}.get(name, name)
    getattr(shown.ui, f"{name}LineEdit").text = "by button"
    shown.ui.runButton.click()
    assert [call[0] for call in shown.logic.calls[-2:]] == ["choose_backend", "start"]
    assert getattr(shown.logic.backend.choice, field) == "by button"
    getattr(shown.ui, f"{name}LineEdit").text = "by key"
    shown.panel._shortcuts._made[0].activated()
    assert getattr(shown.logic.backend.choice, field) == "by key"
    assert len(shown.logic.asked("start")) == 2


@pytest.mark.parametrize(("button", "method"), [("testBackendButton", "test_backend"), ("installButton", "install")])
def test_what_was_just_typed_counts_when_the_backend_is_tested_or_installed(
    shown: Shown, button: str, method: str
) -> None:
    shown.ui.pipOptionsLineEdit.text = "--quiet"
    getattr(shown.ui, button).click()
    assert [call[0] for call in shown.logic.calls[-2:]] == ["choose_backend", method]
    assert shown.logic.backend.choice.pip_options == "--quiet"


def test_where_nothing_was_typed_a_choice_of_the_logic_stands(shown: Shown) -> None:
    from SDFSMISLib.workbench.views import BackendChoice

    shown.logic.choose_backend(BackendChoice(python="/usr/bin/python3"))
    shown.ui.runButton.click()  # before the panel shows it
    assert shown.logic.backend.choice.python == "/usr/bin/python3"


def test_an_address_that_was_typed_makes_the_buttons_usable_before_the_field_is_left(shown: Shown) -> None:
    shown.ui.serverRadioButton.click()
    shown.settle()
    assert not shown.ui.testBackendButton.enabled and "Type the address" in shown.ui.testBackendButton.toolTip
    shown.ui.serverComboBox.setEditText("gpu.example.org")
    assert shown.standin.process(5, until=lambda: shown.ui.testBackendButton.enabled)
    shown.ui.serverComboBox.setEditText("other.example.org")
    shown.ui.runButton.click()
    assert shown.logic.backend.choice.url == "other.example.org"


def test_an_empty_model_is_the_built_in_one(shown: Shown) -> None:
    assert shown.panel is not None and shown.logic.asked("choose_backend")[0][0].model == "built-in"
    assert shown.ui.modelLineEdit.text == ""


@pytest.mark.parametrize(
    ("button", "method", "view"),
    [
        ("testBackendButton", "test_backend", {}),
        ("installButton", "install", {"can_install": True}),
        ("removeInstallationButton", "remove_installation", {"can_remove": True}),
        ("cancelInstallationButton", "cancel_installation", {"progress": 0.4, "state": "busy"}),
    ],
)
def test_a_button_of_the_backend_reaches_the_logic(
    shown: Shown, button: str, method: str, view: dict[str, Any]
) -> None:
    shown.put(backend=replace(shown.logic.backend, **view))
    getattr(shown.ui, button).click()
    assert shown.logic.asked(method) == [()]


def test_the_progress_of_an_installation_is_shown_only_while_it_goes_on(shown: Shown) -> None:
    assert not shown.seen("installationProgressBar")
    shown.put(backend=replace(shown.logic.backend, state="busy", status="Installing torch.", progress=0.4))
    assert shown.seen("installationProgressBar") and shown.ui.installationProgressBar.value == 40
    assert shown.ui.backendStatusLabel.text == "Installing torch."


def test_what_is_being_typed_is_not_overwritten(shown: Shown) -> None:
    shown.ui.serverRadioButton.click()
    shown.ui.serverComboBox.setEditText("http://half")
    shown.put(backend=replace(shown.logic.backend, hosts=("http://a:1", "http://b:2")))
    assert shown.ui.serverComboBox.count == 2


def test_only_what_belongs_to_the_kind_of_backend_is_seen(shown: Shown) -> None:
    assert shown.seen("localAdvancedFrame") and not shown.seen("serverFrame")
    shown.ui.serverRadioButton.click()
    shown.settle()
    assert shown.seen("serverFrame") and shown.seen("serverAdvancedFrame")
    assert not shown.seen("localAdvancedFrame") and not shown.seen("installButton")


def test_a_button_that_cannot_be_used_says_why(shown: Shown) -> None:
    button = shown.ui.removeInstallationButton
    assert not button.enabled and button.toolTip == "Nothing was installed."
    shown.put(backend=replace(shown.logic.backend, can_remove=True))
    assert button.enabled and "free its space" in button.toolTip
    shown.put(backend=replace(shown.logic.backend, can_remove=False, state="busy"))
    assert not button.enabled and "Wait" in button.toolTip


def test_every_control_has_a_tooltip(shown: Shown) -> None:
    kinds = ("QPushButton", "QRadioButton", "QCheckBox", "QComboBox", "QLineEdit", "QSpinBox", "QDoubleSpinBox")
    kinds += ("QListWidget", "QProgressBar", "qMRMLNodeComboBox", "qMRMLCheckableNodeComboBox", "ctkRangeWidget")
    controls = {name: one for name, one in vars(shown.ui).items() if one.className() in (*kinds, "ctkSliderWidget")}
    assert len(controls) > 35
    assert [name for name, one in controls.items() if not one.toolTip and not name.startswith("qt_")] == []


# -- the question


def test_a_question_is_shown_in_the_panel_and_answered_there(shown: Shown) -> None:
    from SDFSMISLib.workbench.views import Question

    assert not shown.seen("questionFrame")
    shown.put(question=Question("consent:gpu", "Send slices to gpu?", "Send them", "Do not"))
    assert shown.seen("questionFrame") and shown.ui.questionLabel.text == "Send slices to gpu?"
    assert (shown.ui.agreeButton.text, shown.ui.declineButton.text) == ("Send them", "Do not")
    shown.ui.agreeButton.click()
    shown.ui.declineButton.click()
    assert shown.logic.asked("answer") == [("consent:gpu", True), ("consent:gpu", False)]
    shown.put(question=None)
    assert not shown.seen("questionFrame")


# -- step 2


def test_the_scan_and_a_segmentation_made_for_it_reach_the_logic(shown: Shown) -> None:
    scan = shown.scan()
    chosen, segmentation = shown.logic.asked("select")[-1]
    assert chosen is scan and segmentation.IsA("vtkMRMLSegmentationNode")
    assert segmentation.GetDisplayNode() is not None
    assert shown.ui.segmentationSelector.currentNode() is segmentation


def test_no_segmentation_is_made_where_there_is_one(shown: Shown) -> None:
    own = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "own")
    shown.scan()
    assert shown.logic.asked("select")[-1][1] is own
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 1


def test_a_new_segmentation_stands_under_the_transform_of_the_scan(shown: Shown) -> None:
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    own = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "own")
    shown.scan().SetAndObserveTransformNodeID(transform.GetID())
    made = shown.ui.segmentationSelector.addNode()
    assert made is not own
    shown.ui.segmentationSelector.nodeAddedByUserAction(made)
    assert made.GetTransformNodeID() == transform.GetID()


def test_without_a_scan_the_first_step_is_said(shown: Shown) -> None:
    assert "Load a scan first" in shown.ui.paintHintLabel.text
    assert not shown.ui.useSliceButton.enabled and "Load a scan" in shown.ui.useSliceButton.toolTip


def test_structures_are_listed_with_how_often_they_are_painted(shown: Shown) -> None:
    shown.put(support=a_support())
    items = shown.ui.segmentsList
    assert items.item(0).text() == "liver - painted on 1 slice" and items.item(1).text() == "spleen - not painted yet"


def test_a_tick_chooses_a_structure_and_is_kept_in_the_scene(shown: Shown) -> None:
    import qt

    shown.scan()
    shown.put(support=a_support())
    shown.ui.segmentsList.item(0).setCheckState(qt.Qt.Unchecked)
    assert shown.logic.asked("choose_segments")[-1] == ([],)
    shown.ui.segmentsList.item(1).setCheckState(qt.Qt.Checked)
    assert shown.logic.asked("choose_segments")[-1] == (["Segment_2"],)
    assert shown.widget.logic.getParameterNode().left_out == '["Segment_1"]'


def test_a_structure_that_is_added_later_takes_part(shown: Shown) -> None:
    import qt

    shown.scan()
    shown.put(support=a_support())
    shown.ui.segmentsList.item(1).setCheckState(qt.Qt.Checked)
    shown.ui.segmentsList.item(0).setCheckState(qt.Qt.Unchecked)
    support = a_support()
    kidney = replace(support.segments[0], segment_id="Segment_3", name="kidney", chosen=False)
    shown.put(support=replace(support, segments=(*support.segments, kidney)))
    assert shown.logic.asked("choose_segments")[-1] == (["Segment_2", "Segment_3"],)


def test_support_slices_are_listed_with_all_that_tells_them_apart(shown: Shown) -> None:
    shown.put(support=a_support())
    items = shown.ui.supportList
    assert [items.item(k).text() for k in range(items.count)] == [
        "Slice 143, axial: liver, 171.4 cm²\nCTA abdomen, painted",
        "Slice 90, axial: liver, 84.0 cm²\nCTA abdomen, corrected",
        "Slice 12, axial: none of the structures\nabdomen.safetensors, from a file",
    ]
    assert not items.item(0).icon().isNull() and items.item(2).icon().isNull()


def test_marked_slices_are_removed_and_one_that_is_clicked_on_is_shown(shown: Shown) -> None:
    shown.put(support=a_support())
    ui = shown.ui
    assert not ui.removeSupportButton.enabled
    ui.supportList.item(1).setSelected(True)
    ui.supportList.item(2).setSelected(True)
    ui.removeSupportButton.click()
    ui.supportList.itemClicked(ui.supportList.item(1))
    assert shown.logic.asked("remove_support") == [(["corrected-90", "file-12"],)]
    assert shown.logic.asked("show_support") == [("corrected-90",)]


def test_marked_slices_stay_marked_when_the_list_changes(shown: Shown) -> None:
    shown.put(support=a_support())
    shown.ui.supportList.item(2).setSelected(True)
    support = a_support()
    shown.put(support=replace(support, entries=support.entries[1:]))
    assert shown.ui.supportList.item(1).isSelected() and shown.ui.removeSupportButton.enabled


def test_the_slice_of_the_chosen_view_is_used(shown: Shown) -> None:
    shown.scan()
    shown.settle()
    shown.ui.viewSelector.setCurrentNode(slicer.app.layoutManager().sliceWidget("Yellow").mrmlSliceNode())
    shown.put(support=a_support())
    shown.ui.useSliceButton.click()
    assert [node.GetLayoutName() for (node,) in shown.logic.asked("use_slice")] == ["Yellow"]


def test_every_painted_slice_or_only_chosen_ones(shown: Shown) -> None:
    shown.scan()
    shown.put(support=a_support())
    shown.ui.everyPaintedCheckBox.click()
    assert shown.logic.asked("use_every_painted")[-1] == (False,)
    assert shown.widget.logic.getParameterNode().every_painted is False


def test_a_support_set_is_saved_and_loaded_and_its_folder_remembered(shown: Shown, tmp_path: Path) -> None:
    shown.put(support=a_support())
    answers = shown.standin.dialogs.answers
    answers["getSaveFileName"] = [str(tmp_path / "liver"), ""]
    answers["getOpenFileName"] = [str(tmp_path / "spleen.safetensors"), ""]
    for button in (shown.ui.saveSupportButton, shown.ui.loadSupportButton):
        button.click()
        button.click()  # and leaves the dialog without a choice
    assert shown.logic.asked("save_support") == [(tmp_path / "liver.safetensors",)]
    assert shown.logic.asked("load_support") == [(tmp_path / "spleen.safetensors",)]
    assert slicer.app.userSettings().value("SDFSMIS/folder") == f'"{tmp_path}"'


# -- steps 3 and 4


def request_of(shown: Shown) -> Any:
    shown.ui.runButton.click()
    return shown.logic.asked("start")[-1][0]


def test_all_slices_are_asked_for_by_default(shown: Shown) -> None:
    from SDFSMISLib.workbench.views import QueryMode, RunRequest

    shown.put(support=a_support())
    request = request_of(shown)
    assert request == RunRequest(QueryMode.ALL, 0, 299, 10, (), "propagate", "auto")
    editor = shown.logic.asked("start")[-1][1]
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
    shown.logic.reason = "Paint the liver on one slice."
    shown.put(support=a_support())
    button = shown.ui.runButton
    assert not button.enabled and button.toolTip == shown.ui.runLabel.text == "Paint the liver on one slice."
    assert not shown.seen("paintHintLabel") or "Load a scan" in shown.ui.paintHintLabel.text
    shown.logic.reason = ""
    shown.put(support=a_support())
    assert button.enabled and "Find the structures" in button.toolTip and not shown.seen("runLabel")


def test_a_reason_stands_in_place_of_how_the_last_run_ended_but_not_of_what_went_wrong(shown: Shown) -> None:
    from SDFSMISLib.workbench.views import RunView

    shown.logic.reason = "Paint the liver on one slice."
    shown.put(run=RunView(False, "Finished."))
    assert shown.ui.runLabel.text == "Paint the liver on one slice."
    shown.put(run=RunView(False, "The file holds no slices.", failed=True))
    assert shown.ui.runLabel.text == "The file holds no slices.\nPaint the liver on one slice."


def test_what_is_missing_is_said_once(shown: Shown) -> None:
    shown.scan()
    shown.logic.reason = "Paint the liver on one slice."
    shown.put(support=replace(a_support(), entries=(), problem="Paint the liver on one slice."))
    assert not shown.seen("paintHintLabel") and shown.ui.runLabel.text == "Paint the liver on one slice."


def test_a_reason_that_follows_from_the_query_is_shown_at_once(shown: Shown) -> None:
    shown.logic.reason = "No scan to segment is chosen."
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
    assert shown.logic.asked("cancel") == [()] and shown.logic.asked("start") == []
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
    shown.put(run=RunView(True, "Saving the support…", can_cancel=False))
    ui = shown.ui
    assert ui.runButton.text == "4. Segment" and not ui.runButton.enabled
    assert ui.runButton.toolTip == ui.acceptButton.toolTip == "Wait until this has ended: Saving the support…"
    shown.panel._shortcuts._made[0].activated()
    assert shown.logic.asked("cancel") == shown.logic.asked("start") == []
    shown.put(run=RunView(False, "The support was saved."))
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
    from SDFSMISLib.workbench.text import spoken

    assert spoken(seconds) == text


# -- step 5


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
        (lambda ui: setattr(ui.thresholdSlider, "value", 0.3), ("set_threshold", 0.3)),
        (lambda ui: setattr(ui.smoothSpinBox, "value", 2.5), ("set_cleaning", False, 2.5)),
        (lambda ui: ui.keepLargestCheckBox.click(), ("set_cleaning", True, 0.0)),
        (lambda ui: ui.leastCertainButton.click(), ("go_to_least_certain",)),
        (lambda ui: ui.acceptButton.click(), ("accept",)),
        (lambda ui: ui.discardButton.click(), ("discard",)),
    ],
)
def test_a_control_of_the_review_reaches_the_logic(
    shown: Shown, change: Callable[[Any], None], call: tuple[Any, ...]
) -> None:
    shown.put(review=a_review())
    change(shown.ui)
    assert shown.logic.calls[-1] == pytest.approx(call) if len(call) == 2 else shown.logic.calls[-1] == call


def test_a_threshold_that_the_logic_sets_is_shown_and_not_sent_back(shown: Shown) -> None:
    shown.put(review=a_review())
    calls = len(shown.logic.calls)
    shown.put(review=replace(a_review(), threshold=0.2, smooth_mm=1.5, keep_largest=True))
    ui = shown.ui
    assert (ui.thresholdSlider.value, ui.smoothSpinBox.value, ui.keepLargestCheckBox.checked) == (0.2, 1.5, True)
    assert len(shown.logic.calls) == calls


def corrected(*slices: int) -> Any:
    """The review after these slices of it were changed by hand."""
    return replace(a_review(), results=tuple(replace(one, by_hand=slices) for one in a_review().results))


def test_after_a_correction_it_is_said_what_to_do(shown: Shown) -> None:
    from SDFSMISLib.workbench.views import ReviewView, RunView

    finished = RunView(False, "Finished.")
    shown.put(support=a_support(), run=finished, review=corrected(90))
    assert shown.ui.runLabel.text == "Finished."  # corrected before that run, which has used it
    shown.put(review=corrected(90, 230))
    text = "1 corrected slice. Press Segment to use it, or Accept to keep the result."
    assert shown.ui.runLabel.text == text
    shown.put(review=corrected(90, 230, 231))
    assert shown.ui.runLabel.text.startswith("2 corrected slices. Press Segment to use them")
    shown.put(run=RunView(True, "Segmenting…"), review=ReviewView())
    assert shown.ui.runLabel.text == "Segmenting…"
    shown.put(run=finished, review=corrected(90, 230, 231))
    assert shown.ui.runLabel.text == "Finished."


def test_where_to_correct_is_named(shown: Shown) -> None:
    shown.put(review=a_review())
    assert "Correct it in “liver (SDFSMIS)” or “spleen (SDFSMIS)”" in shown.ui.correctionHintLabel.text
    many = tuple(replace(a_review().results[0], name=f"s{n}") for n in range(7))
    shown.put(review=replace(a_review(), results=many))
    assert "Correct it in its segment with “(SDFSMIS)”" in shown.ui.correctionHintLabel.text


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
    assert shown.logic.asked("review_scan") == [(0,)]


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
    ((index,),) = shown.logic.asked("go_to_slice")
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


# -- life


def test_the_logic_is_driven_while_the_panel_is_entered_and_while_something_goes_on(shown: Shown) -> None:
    from SDFSMISLib.workbench.views import RunView

    shown.settle()
    shown.logic.run = RunView(True, "Starting.")
    shown.widget.exit()
    shown.settle()
    shown.logic.run = RunView()
    shown.standin.process(0.3)
    steps = shown.logic.stepped
    shown.standin.process(0.3)
    assert shown.logic.stepped == steps
    shown.widget.enter()
    shown.settle()


def test_what_waits_to_be_done_is_done_without_pause(shown: Shown) -> None:
    shown.logic.steps = 500
    shown.standin.process(2, until=lambda: shown.logic.steps == 0)
    assert shown.logic.steps == 0


def test_a_scene_that_is_closed_is_let_go_of(shown: Shown) -> None:
    shown.scan()
    shown.put(support=a_support())
    shown.standin.close_scene()
    assert ("close_scene",) in shown.logic.calls
    closing = shown.logic.calls.index(("close_scene",))
    assert shown.logic.calls[closing - 1] == ("select", None, None)
    assert shown.ui.scanSelector.currentNode() is None
    scan = shown.scan("the next one")
    assert shown.logic.asked("select")[-1][0] is scan
    editor = shown.ui.editorFrame.findChild("qMRMLSegmentEditorWidget")
    assert editor.sourceVolumeNode() is scan and editor.mrmlSegmentEditorNode().GetScene() is slicer.mrmlScene


def test_the_end_of_the_panel_leaves_no_observer_and_no_timer(shown: Shown) -> None:
    shown.scan()
    widget, panel = shown.widget, shown.panel
    widget.cleanup()
    assert shown.logic.calls[-1] == ("close",) and shown.logic.on_change is None
    assert widget.Observations == [] and not panel._timer.active
    steps = shown.logic.stepped
    shown.scan("another")
    shown.standin.process(0.2)
    assert shown.logic.stepped == steps


def test_the_editor_of_a_panel_that_was_reloaded_holds_nothing_of_the_scene(shown: Shown) -> None:
    shown.scan()
    editor = shown.ui.editorFrame.findChild("qMRMLSegmentEditorWidget")
    editor.setActiveEffectByName("Paint")
    shown.widget.onReload()
    assert editor.mrmlSegmentEditorNode() is None and editor.mrmlScene() is None and editor.activeEffect() is None
    anew = slicer.modules.SDFSMISWidget.ui.editorFrame.findChild("qMRMLSegmentEditorWidget")
    assert anew.mrmlSegmentEditorNode().GetScene() is slicer.mrmlScene
    shown.standin.close_scene()


def test_a_defect_of_the_logic_is_logged_once_and_the_panel_goes_on(
    shown: Shown, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats: list[int] = []

    def step() -> bool:
        beats.append(1)
        raise RuntimeError(f"beat {len(beats)}")

    with monkeypatch.context() as broken:
        broken.setattr(shown.logic, "step", step)
        shown.logic.show(question=None, support=a_support())
        assert shown.standin.process(5, until=lambda: len(beats) >= 3)
        assert shown.panel._timer.interval > 0 and shown.ui.supportList.count == 3
    assert [record.message for record in caplog.records if record.exc_info] == ["A defect in the panel; it goes on"]
    shown.settle()


def test_without_a_panel_slicers_life_cycle_goes_on(shown: Shown) -> None:
    unmade = type(shown.widget)(shown.module.parent)  # as it is left by a setup() that failed
    assert unmade.panel is None
    for event in (unmade.onSceneStartImport, unmade.onSceneStartClose, unmade.onSceneEndClose):
        event(None, None)
    unmade.enter()
    unmade.exit()
    unmade.cleanup()


def test_what_the_panel_is_set_to_comes_back_with_the_scene(shown: Shown) -> None:
    from SDFSMISLib.workbench.views import QueryMode

    shown.scan()
    other = shown.scan("other")
    shown.put(support=a_support(), review=a_review())
    ui = shown.ui
    ui.queryModeComboBox.currentIndex = 1
    ui.rangeWidget.setValues(20, 40)
    ui.reachSpinBox.value, ui.strategyComboBox.currentIndex, ui.regionComboBox.currentIndex = 7, 1, 1
    ui.otherScansSelector.check(other)
    ui.thresholdSlider.value, ui.smoothSpinBox.value = 0.3, 2.5
    ui.keepLargestCheckBox.click()
    kept = shown.widget.logic.getParameterNode()
    assert (kept.mode, kept.first, kept.last, kept.reach) == (QueryMode.RANGE, 20, 40, 7)
    assert (kept.strategy, kept.region, kept.threshold) == ("independent", "full", pytest.approx(0.3))
    assert (kept.keep_largest, kept.smooth_mm) == (True, 2.5)
    for box in (ui.queryModeComboBox, ui.strategyComboBox, ui.regionComboBox):
        box.blockSignals(True)
        box.currentIndex = 0
        box.blockSignals(False)
    shown.widget.enter()
    assert request_of(shown).others == (other,)
    request = request_of(shown)
    assert (request.mode, request.first, request.last, request.strategy) == (QueryMode.RANGE, 20, 40, "independent")


def test_the_scan_that_the_views_show_is_taken_when_the_panel_is_opened(shown: Shown) -> None:
    shown.module.leave()
    shown.standin.close_scene()
    shown.scan("first")
    second = shown.scan("second")
    slicer.app.applicationLogic().GetSelectionNode().SetActiveVolumeID(second.GetID())
    shown.module.open()
    assert shown.logic.asked("select")[-1][0] is second


def test_the_editor_paints_what_is_selected_with_tools_for_one_slice(shown: Shown) -> None:
    scan = shown.scan()
    editor = shown.ui.editorFrame.findChild("qMRMLSegmentEditorWidget")
    assert editor.sourceVolumeNode() is scan and editor.segmentationNode() is not None
    assert editor.effectNameOrder() == ("Paint", "Draw", "Erase", "Level tracing")
    assert not editor.unorderedEffectsVisible
    assert editor.mrmlSegmentEditorNode().GetSingletonTag() == "SDFSMIS"
    editor.setActiveEffectByName("Paint")
    shown.module.leave()
    assert editor.activeEffect() is None
    shown.module.open()


def test_a_stroke_takes_no_voxels_from_other_segments_unless_the_user_wants_it(shown: Shown) -> None:
    shown.scan()
    editor = shown.ui.editorFrame.findChild("qMRMLSegmentEditorWidget")
    assert editor.maskingSectionVisible
    node = editor.mrmlSegmentEditorNode()
    assert node.GetOverwriteMode() == node.OverwriteNone
    node.SetOverwriteMode(node.OverwriteVisibleSegments)
    shown.module.leave()
    shown.module.open()
    assert node.GetOverwriteMode() == node.OverwriteVisibleSegments
    shown.standin.close_scene()
    assert editor.mrmlSegmentEditorNode().GetOverwriteMode() == node.OverwriteNone


def test_the_overwrite_mode_of_a_scene_that_is_loaded_stays(shown: Shown) -> None:
    scene = slicer.mrmlScene
    scene.RegisterNodeClass(slicer.vtkMRMLSegmentEditorNode())
    editor = shown.ui.editorFrame.findChild("qMRMLSegmentEditorWidget")
    node = editor.mrmlSegmentEditorNode()
    node.SetOverwriteMode(node.OverwriteAllSegments)
    scene.SetSaveToXMLString(1)
    scene.Commit()
    text = scene.GetSceneXMLString()
    shown.standin.close_scene()
    scene.SetLoadFromXMLString(1)
    scene.SetSceneXMLString(text)
    scene.Import()
    scene.SetLoadFromXMLString(0)
    assert editor.mrmlSegmentEditorNode().GetOverwriteMode() == node.OverwriteAllSegments


def test_nothing_is_made_in_the_scene_while_the_panel_is_hidden(shown: Shown) -> None:
    shown.module.leave()
    shown.scan()
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0
    shown.module.open()
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 1


def test_what_was_chosen_last_is_chosen_at_the_next_start(shown: Shown) -> None:
    from SDFSMISLib.workbench.settings import Settings
    from SDFSMISLib.workbench.views import BackendChoice, BackendKind

    settings = Settings(slicer.app.userSettings())
    settings.keep_choice(BackendChoice(BackendKind.SERVER, "http://gpu:7861", "secret", device="cuda"))
    shown.widget.onReload()
    kept = BackendChoice(BackendKind.SERVER, "http://gpu:7861", device="cuda")
    assert Settings(slicer.app.userSettings()).choice() == kept
    ui = slicer.modules.SDFSMISWidget.ui
    assert ui.serverRadioButton.checked and ui.serverComboBox.currentText == "http://gpu:7861"
    assert ui.deviceComboBox.currentIndex == 2 and ui.tokenLineEdit.text == ""


def test_a_scene_that_is_saved_and_loaded_again_says_the_same(shown: Shown) -> None:
    from SDFSMISLib.workbench.views import QueryMode
    from SDFSMISPanel.parameter import keep_left_out, left_out, other_scans

    shown.scan()
    shown.ui.otherScansSelector.check(shown.scan("other"))
    kept = shown.widget.logic.getParameterNode()
    kept.mode, kept.reach, kept.threshold, kept.keep_largest = QueryMode.OUTWARDS, 7, 0.25, True
    keep_left_out(kept, {"Segment_1"})
    scene = slicer.mrmlScene
    scene.SetSaveToXMLString(1)
    scene.Commit()
    text = scene.GetSceneXMLString()
    shown.standin.close_scene()
    assert shown.widget.logic.getParameterNode().reach == 10
    scene.SetLoadFromXMLString(1)
    scene.SetSceneXMLString(text)
    scene.Import()
    scene.SetLoadFromXMLString(0)
    found = shown.widget.logic.getParameterNode()
    assert (found.mode, found.reach, found.threshold, found.keep_largest) == (QueryMode.OUTWARDS, 7, 0.25, True)
    assert left_out(found) == {"Segment_1"}
    assert found.scan.GetName() == "CTA abdomen" and [one.GetName() for one in other_scans(found)] == ["other"]
    assert shown.ui.reachSpinBox.value == 7 and shown.logic.asked("set_threshold")[-1] == (0.25,)


def test_a_reload_reads_every_file_of_the_panel_anew(shown: Shown) -> None:
    before = sys.modules["SDFSMISPanel.widget"]
    shown.widget.onReload()
    assert sys.modules["SDFSMISPanel.widget"] is not before
    assert shown.logic.calls[-1] == ("close",)


def test_the_module_says_what_it_is(shown: Shown) -> None:
    parent = shown.module.module.parent
    assert parent.title == "SDFSMIS" and tuple(parent.categories) == ("Segmentation",)
    assert tuple(parent.contributors) == ("SDFSMIS contributors",) and "agree" in parent.helpText
    assert "2604.03134" in parent.acknowledgementText and not parent.icon.isNull()


def test_sample_data_are_registered_when_the_application_has_started(shown: Shown) -> None:
    shown.standin.start()
    assert "SDFSMIS" in slicer.modules.sampleDataSources


def test_the_self_test_passes(shown: Shown) -> None:
    shown.standin.run_self_test(shown.module)


def test_keys_segment_and_go_to_the_least_certain_slice(shown: Shown) -> None:
    shown.put(support=a_support(), review=a_review())
    for shortcut in shown.panel._shortcuts._made:
        shortcut.activated()
    assert len(shown.logic.asked("start")) == 2 and shown.logic.asked("go_to_least_certain") == [()]


@pytest.mark.parametrize(
    "kept", ['{"kind": [], "url": "gpu"}', '{"kind": {}, "url": ["x"], "model": ""}', '{"device": 7}']
)
def test_broken_values_in_the_settings_do_not_keep_the_panel_from_opening(shown: Shown, kept: str) -> None:
    slicer.app.userSettings().setValue("SDFSMIS/backend", kept)
    shown.widget.onReload()
    choice = slicer.modules.SDFSMISWidget.panel.logic.backend.choice
    assert (choice.kind.value, choice.model, choice.device) == ("local", "built-in", "auto")
    assert choice.url == ("gpu" if "gpu" in kept else "")


def test_what_somebody_else_wrote_into_the_settings_does_no_harm(standin: Any) -> None:
    from SDFSMISLib.workbench.settings import Settings
    from SDFSMISLib.workbench.views import BackendChoice

    store = slicer.app.userSettings()
    for name, value in (("backend", "[]"), ("hosts", '{"a": 1}'), ("agreed", "not JSON"), ("folder", "7")):
        store.setValue(f"SDFSMIS/{name}", value)
    settings = Settings(slicer.app.userSettings())
    assert settings.choice() == BackendChoice()
    assert (settings.hosts(), settings.agreed_hosts(), settings.folder()) == ((), (), "")
    for number in range(12):
        settings.keep_host(f"http://host{number}")
    settings.keep_host("http://host5")
    assert settings.hosts()[:2] == ("http://host5", "http://host11") and len(settings.hosts()) == 10


# -- states


def states() -> dict[str, dict[str, Any]]:
    """Views of the logic by the name of the state that they make."""
    from SDFSMISLib.workbench.views import BackendChoice, BackendKind, BackendView, Question, RunView

    server = BackendChoice(BackendKind.SERVER, "https://gpu.hospital.example:7861", "secret")
    consent = (
        "To segment on gpu.hospital.example, the grey values of the slices that are needed and the painted masks are "
        "sent there over the network. Send them, now and later?"
    )
    installing = "Installing PyTorch (2 of 4): 310 of 890 MB."
    failed = "The server gpu.hospital.example was not reached: connection refused. Start it, or check its address."
    return {
        "empty": {},
        "installing": {"backend": BackendView(BackendChoice(), installing, "busy", 0.42)},
        "server": {
            "backend": BackendView(server, "Works: SDFSMIS 0.1 on an NVIDIA A100, 0.02 s per slice.", "good"),
            "question": Question("consent", consent, "Send them", "Do not send"),
        },
        "painted": {"support": a_support(), "backend": BackendView(BackendChoice(), "Ready.", "good", can_remove=True)},
        "running": {
            "support": a_support(),
            "run": RunView(True, "143 of 300 slices are done.", 0.48, 75.0, notes=("The spleen is not painted.",)),
            "review": a_review(),
        },
        "failed": {"support": a_support(), "run": RunView(False, failed, failed=True)},
        "review": {"support": a_support(), "run": RunView(False, "Done: 300 slices in 2 min."), "review": a_review()},
    }


NAMES = ["empty", "installing", "server", "painted", "running", "failed", "review"]


@pytest.mark.parametrize("name", NAMES)
def test_every_state_fits_into_a_narrow_panel(shown: Shown, tmp_path: Path, name: str) -> None:
    """``PANEL_PICTURES`` names a folder that pictures of the states are kept in."""
    if name != "empty":
        shown.scan()
        shown.scan("MR of the next day")
    shown.put(**states()[name])
    for step in ("backend", "support", "query", "review"):
        getattr(shown.ui, f"{step}CollapsibleButton").collapsed = step == "review" and name not in ("running", "review")
    root = shown.module.parent._native
    root.setFixedWidth(420)
    shown.standin.process(0.1)
    assert root.minimumSizeHint().width() <= 420
    folder = Path(os.environ.get("PANEL_PICTURES", tmp_path))
    assert shown.standin.screenshot(shown.module.parent, folder / f"panel-{name}.png").stat().st_size > 10_000
