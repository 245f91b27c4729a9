"""The panel in Slicer's life: entered, left, reloaded, with scenes that close and load; on a stand-in for Slicer."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

slicer = pytest.importorskip("slicer")
pytest.importorskip("PySide6")

from recording_workbench import a_review, a_support, request_of  # noqa: E402

if TYPE_CHECKING:
    from panel_fixtures import Shown

pytest_plugins = ["panel_fixtures"]


def test_the_workbench_is_driven_while_the_panel_is_entered_and_while_something_goes_on(shown: Shown) -> None:
    from SDFSMISLib.workbench.views import RunView

    shown.settle()
    shown.workbench.run.view = RunView(True, "Starting.")
    shown.widget.exit()
    shown.settle()
    shown.workbench.run.view = RunView()
    shown.standin.process(0.3)
    steps = shown.workbench.stepped
    shown.standin.process(0.3)
    assert shown.workbench.stepped == steps
    shown.widget.enter()
    shown.settle()


def test_what_waits_to_be_done_is_done_without_pause(shown: Shown) -> None:
    shown.workbench.steps = 500
    shown.standin.process(2, until=lambda: shown.workbench.steps == 0)
    assert shown.workbench.steps == 0


def test_a_scene_that_is_closed_is_let_go_of(shown: Shown) -> None:
    shown.scan()
    shown.put(support=a_support())
    shown.standin.close_scene()
    assert ("close_scene",) in shown.workbench.calls
    closing = shown.workbench.calls.index(("close_scene",))
    assert shown.workbench.calls[closing - 1] == ("support.select", None, None)
    assert shown.ui.scanSelector.currentNode() is None
    scan = shown.scan("the next one")
    assert shown.workbench.calls_of("support.select")[-1][0] is scan
    editor = shown.ui.editorFrame.findChild("qMRMLSegmentEditorWidget")
    assert editor.sourceVolumeNode() is scan and editor.mrmlSegmentEditorNode().GetScene() is slicer.mrmlScene


def test_the_end_of_the_panel_leaves_no_observer_and_no_timer(shown: Shown) -> None:
    shown.scan()
    widget, panel = shown.widget, shown.panel
    widget.cleanup()
    assert shown.workbench.calls[-1] == ("close",) and shown.workbench.changed is None
    assert widget.Observations == [] and not panel._timer.active
    steps = shown.workbench.stepped
    shown.scan("another")
    shown.standin.process(0.2)
    assert shown.workbench.stepped == steps


def test_the_editor_of_a_panel_that_was_reloaded_holds_nothing_of_the_scene(shown: Shown) -> None:
    shown.scan()
    editor = shown.ui.editorFrame.findChild("qMRMLSegmentEditorWidget")
    editor.setActiveEffectByName("Paint")
    shown.widget.onReload()
    assert editor.mrmlSegmentEditorNode() is None and editor.mrmlScene() is None and editor.activeEffect() is None
    anew = slicer.modules.SDFSMISWidget.ui.editorFrame.findChild("qMRMLSegmentEditorWidget")
    assert anew.mrmlSegmentEditorNode().GetScene() is slicer.mrmlScene
    shown.standin.close_scene()


def test_a_defect_of_the_workbench_is_logged_once_and_the_panel_goes_on(
    shown: Shown, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats: list[int] = []

    def step() -> bool:
        beats.append(1)
        raise RuntimeError(f"beat {len(beats)}")

    with monkeypatch.context() as broken:
        broken.setattr(shown.workbench, "step", step)
        shown.workbench.show(support=a_support())
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
    assert shown.workbench.calls_of("support.select")[-1][0] is second


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
    assert shown.ui.reachSpinBox.value == 7 and shown.workbench.calls_of("review.set_threshold")[-1] == (0.25,)


def test_a_reload_reads_every_file_of_the_panel_anew(shown: Shown) -> None:
    before = sys.modules["SDFSMISPanel.widget"]
    shown.widget.onReload()
    assert sys.modules["SDFSMISPanel.widget"] is not before
    assert shown.workbench.calls[-1] == ("close",)


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


def test_keys_segment_go_to_the_suggested_slice_and_say_that_one_is_right(shown: Shown) -> None:
    shown.put(support=a_support(), review=a_review())
    for shortcut in shown.panel._shortcuts._made:
        shortcut.activated()
    assert len(shown.workbench.calls_of("run.start")) == 2
    assert shown.workbench.calls_of("review.go_to_suggestion") == shown.workbench.calls_of("review.say_right") == [()]


@pytest.mark.parametrize(
    "kept", ['{"kind": [], "url": "gpu"}', '{"kind": {}, "url": ["x"], "model": ""}', '{"device": 7}']
)
def test_broken_values_in_the_settings_do_not_keep_the_panel_from_opening(shown: Shown, kept: str) -> None:
    slicer.app.userSettings().setValue("SDFSMIS/backend", kept)
    shown.widget.onReload()
    choice = slicer.modules.SDFSMISWidget.panel.workbench.backend.view.choice
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
    """Views of the workbench by the name of the state that they make."""
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
            "questions": Question("consent", consent, "Send them", "Do not send"),
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
