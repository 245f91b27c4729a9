"""The stand-in for Slicer's application: names, modules, dialogs, views and files are as in Slicer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("slicer")
pytest.importorskip("PySide6")

from slicer_standin import install  # noqa: E402
from standin_example import FORM, segmentation, volume, write_example  # noqa: E402

pytest_plugins = ["standin_fixtures"]


class TestNames:
    def test_a_misspelt_method_of_slicer_is_refused(self, quiet: Any) -> None:
        import slicer

        for owner in (slicer.qMRMLNodeComboBox(), slicer.app, slicer.app.layoutManager()):
            with pytest.raises(AttributeError, match="no attribute named 'currentNod'"):
                owner.currentNod()
        with pytest.raises(AttributeError):
            slicer.util.showStatusMesage("x")

    def test_a_signal_of_slicer_has_slicers_signature(self, quiet: Any) -> None:
        import slicer

        combo = slicer.qMRMLNodeComboBox()
        assert combo.connect("currentNodeChanged(vtkMRMLNode*)", print)
        with pytest.raises(ValueError, match="no signal currentNodeChanged\\(vtkMRMLVolumeNode\\*\\)"):
            combo.connect("currentNodeChanged(vtkMRMLVolumeNode*)", print)

    def test_a_class_that_slicer_has_and_the_standin_lacks_says_so(self, quiet: Any, tmp_path: Path) -> None:
        form = FORM.replace('class="QPushButton"', 'class="ctkDirectoryButton"')
        module = quiet.load_module(write_example(tmp_path, form))
        with pytest.raises(NotImplementedError, match="lacks ctkDirectoryButton"):
            module.open()

    def test_a_property_that_the_widget_lacks_is_refused_in_a_ui_file(self, quiet: Any, tmp_path: Path) -> None:
        module = quiet.load_module(write_example(tmp_path, FORM.replace('"noneEnabled"', '"noneEnable"')))
        with pytest.raises(ValueError, match="qMRMLNodeComboBox has no property noneEnable"):
            module.open()

    @pytest.mark.parametrize("name", ["setRange", "setMinimum"])
    def test_a_function_that_is_no_slot_of_ctk_is_refused(self, quiet: Any, name: str) -> None:
        import ctk

        with pytest.raises(AttributeError):
            getattr(ctk.ctkSliderWidget(), name)

    def test_a_misspelt_property_of_qt_is_refused_in_a_ui_file(self, quiet: Any, tmp_path: Path) -> None:
        module = quiet.load_module(write_example(tmp_path, FORM.replace('name="text"', 'name="txt"')))
        with pytest.raises(ValueError, match="QLabel has no property txt"):
            module.open()

    def test_names_that_came_after_slicer_5_12_are_absent(self, quiet: Any) -> None:
        import slicer

        assert not hasattr(slicer.util, "LazyImport")


class TestModule:
    def test_a_module_lives_as_in_slicer(self, quiet: Any, tmp_path: Path) -> None:
        import slicer

        before = quiet.connections
        example = quiet.load_module(write_example(tmp_path))
        example.open()
        quiet.start()
        widget = example.widget
        assert example.module.started
        assert slicer.modules.example.path == str(example.path)
        assert slicer.util.getModuleWidget("Example") is widget
        example.leave()
        example.open()
        quiet.close_scene()
        quiet.unload(example)
        assert widget.events == ["setup", "enter", "exit", "enter", "close", "exit", "cleanup"]
        assert not hasattr(slicer.modules, "example")
        assert quiet.connections <= before + 1  # the module's own to startupCompleted(), which nobody disconnects

    def test_child_widgets_are_found_by_name(self, example: Any) -> None:
        ui = example.widget.ui
        assert ui.go.text == "Go"
        assert ui.inside.text == "inside"
        ui.go.click()
        assert example.widget.events[-1] == "go"

    def test_reload_makes_a_new_widget_of_the_file_as_it_is_now(self, example: Any, quiet: Any) -> None:
        import slicer

        before = example.widget
        example.path.write_text(example.path.read_text().replace('append("go")', 'append("went")'))
        slicer.util.reloadScriptedModule("Example")
        example.widget.ui.go.click()
        assert before.events[-1] == "cleanup"
        assert example.widget.events == ["setup", "went"]

    def test_the_developer_section_is_there_in_developer_mode(self, quiet: Any, tmp_path: Path) -> None:
        import qt

        qt.QSettings().setValue("Developer/DeveloperMode", True)
        module = quiet.load_module(write_example(tmp_path))
        module.open().reloadButton.click()
        assert module.widget.events == ["setup"]

    def test_the_self_test_runs_and_its_failure_is_raised(self, example: Any, quiet: Any) -> None:
        quiet.run_self_test(example)
        example.module.parent.title = "Other"
        with pytest.raises(AssertionError, match="Other"):
            quiet.run_self_test(example)

    def test_settings_are_new_in_each_session(self, quiet: Any) -> None:
        import qt
        import slicer

        assert slicer.util.settingsValue("SDFSMIS/x", 3, converter=int) == 3
        qt.QSettings().setValue("SDFSMIS/x", 4)
        assert slicer.util.settingsValue("SDFSMIS/x", 3, converter=int) == 4
        assert slicer.app.userSettings().value("SDFSMIS/x") in (4, "4")

    def test_what_was_before_comes_back_at_the_end(self, tmp_path: Path) -> None:
        import sys

        import slicer

        def now() -> tuple[Any, ...]:
            return set(vars(slicer)), slicer.util.infoDisplay, sys.excepthook, sys.modules.get("qt")

        before = now()
        install().uninstall()
        assert now() == before


class TestDialogs:
    def test_questions_are_recorded_and_answered(self, quiet: Any) -> None:
        import slicer

        quiet.dialogs.answers["confirmOkCancelDisplay"] = [False]
        assert not slicer.util.confirmOkCancelDisplay("Really?")
        assert slicer.util.confirmOkCancelDisplay("Really?")
        slicer.util.errorDisplay("Broken")
        assert [(d.kind, d.text) for d in quiet.dialogs.shown][-1] == ("errorDisplay", "Broken")

    def test_a_file_dialog_gives_a_path_and_not_a_pair(self, quiet: Any) -> None:
        import qt

        quiet.dialogs.answers["getSaveFileName"] = "/tmp/set.safetensors"
        assert qt.QFileDialog.getSaveFileName(None, "Save", "", "Support set (*.safetensors)") == "/tmp/set.safetensors"
        assert qt.QFileDialog.getOpenFileName(None, "Open") == ""

    def test_a_modal_dialog_does_not_block(self, quiet: Any) -> None:
        import qt

        box = qt.QMessageBox()
        box.text = "Stop?"
        quiet.dialogs.answers["QMessageBox.exec"] = qt.QMessageBox.No
        assert box.exec_() == qt.QMessageBox.No

    def test_an_error_inside_try_with_error_display_is_shown(self, quiet: Any) -> None:
        import slicer

        with pytest.raises(RuntimeError), slicer.util.tryWithErrorDisplay("Failed.", waitCursor=True):
            raise RuntimeError("why")
        assert "why" in quiet.dialogs.shown[0].text


class TestApplication:
    def test_slice_views_are_those_of_the_scene(self, quiet: Any) -> None:
        import slicer

        manager = slicer.app.layoutManager()
        assert manager.sliceViewNames() == ("Red", "Yellow", "Green")
        red = manager.sliceWidget("Red")
        assert red.mrmlSliceNode() is slicer.mrmlScene.GetNodeByID("vtkMRMLSliceNodeRed")
        assert red.sliceLogic().GetSliceNode() is red.mrmlSliceNode()
        assert red.mrmlSliceNode().GetOrientation() == "Axial"
        assert slicer.app.applicationLogic().GetSliceLogicByLayoutName("Red") is red.sliceLogic()
        assert manager.sliceWidget("Blue") is None

    def test_a_view_shows_the_slice_and_the_segments(self, quiet: Any) -> None:
        import slicer

        from slicer_standin.picture import slice_picture

        scan = volume(shape=(6, 40, 40))
        node, segment_id = segmentation(scan)
        quiet.paint(node, segment_id, scan, np.ones((1, 20, 20), dtype=bool), start=(3, 10, 10))
        quiet.show_volume(scan)
        logic = slicer.app.layoutManager().sliceWidget("Red").sliceLogic()
        reds = []
        for offset in (3.3, 4.0):
            logic.SetSliceOffset(offset)
            picture = slice_picture(logic, 60, 60)
            assert picture is not None
            reds.append(int((picture[..., 0] > picture[..., 1]).sum()))
        assert reds[0] > 100
        assert reds[1] == 0

    def test_the_window_holds_the_panel_and_the_views(self, example: Any, quiet: Any, tmp_path: Path) -> None:
        import slicer

        window = quiet.main_window(example.parent)
        assert slicer.util.mainWindow() is window
        assert slicer.util.showStatusMessage("hello")
        assert window.statusBar().currentMessage() == "hello"
        picture = quiet.screenshot(window, tmp_path / "window.png")
        assert picture.stat().st_size > 5000

    def test_text_is_visible_in_a_picture(self, quiet: Any, tmp_path: Path) -> None:
        import qt

        label = qt.QLabel("Text")
        label.resize(60, 20)
        image = label.grab().toImage()
        shades = {image.pixelColor(x, y).lightness() for x in range(60) for y in range(20)}
        assert min(shades) < 100 < max(shades)

    def test_other_modules_are_entered_and_left(self, example: Any, quiet: Any) -> None:
        import slicer

        quiet.main_window()
        slicer.util.selectModule("Example")
        slicer.util.selectModule("Data")
        slicer.util.selectModule("Example")
        assert example.widget.events == ["setup", "enter", "exit", "enter"]
        assert "Example" in slicer.util.moduleNames()

    def test_the_application_quits(self, quiet: Any) -> None:
        import slicer

        heard: list[int] = []
        slicer.app.connect("aboutToQuit()", lambda: heard.append(1))
        quiet.quit()
        assert heard == [1]

    def test_files_are_loaded_by_their_storage(self, quiet: Any, tmp_path: Path) -> None:
        import slicer

        scan = volume()
        scan.AddDefaultStorageNode()
        scan.GetStorageNode().SetFileName(str(tmp_path / "scan.nrrd"))
        assert scan.GetStorageNode().WriteData(scan)
        again = slicer.util.loadVolume(str(tmp_path / "scan.nrrd"))
        assert np.array_equal(slicer.util.arrayFromVolume(again), slicer.util.arrayFromVolume(scan))
        with pytest.raises(RuntimeError, match="Failed to load"):
            slicer.util.loadVolume(str(tmp_path / "none.nrrd"))

    def test_sample_data_is_registered(self, quiet: Any) -> None:
        import SampleData
        import slicer

        SampleData.SampleDataLogic.registerCustomSampleDataSource(
            category="SDFSMIS", sampleName="Head", uris="u", fileNames="f", checksums="c", nodeNames="n"
        )
        (source,) = slicer.modules.sampleDataSources["SDFSMIS"]
        assert (source.sampleName, source.uris) == ("Head", ["u"])
        with pytest.raises(TypeError, match="urls"):
            SampleData.SampleDataLogic.registerCustomSampleDataSource(category="SDFSMIS", urls="u")
