"""The stand-in for Slicer's Qt side: it behaves as PythonQt and Slicer do, and refuses what they do not have."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("slicer")
pytest.importorskip("PySide6")

from slicer_standin import install
from slicer_standin.example import FORM, write_example


@pytest.fixture
def standin() -> Iterator[Any]:
    made = install()
    yield made
    made.uninstall()


@pytest.fixture
def quiet(standin: Any) -> Iterator[Any]:
    """The stand-in, for a test in which no slot may fail."""
    yield standin
    assert standin.errors == []


@pytest.fixture
def example(quiet: Any, tmp_path: Path) -> Any:
    module = quiet.load_module(write_example(tmp_path))
    module.open()
    return module


def volume(name: str = "scan", shape: tuple[int, int, int] = (6, 8, 10)) -> Any:
    import slicer

    voxels = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    return slicer.util.addVolumeFromArray(voxels, name=name)


def segmentation(volume_node: Any) -> tuple[Any, str]:
    import slicer

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Segmentation")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume_node)
    return node, node.GetSegmentation().AddEmptySegment("", "liver", (1.0, 0.0, 0.0))


class TestPythonQt:
    def test_a_property_is_an_attribute_and_its_setter_works_too(self, quiet: Any) -> None:
        import qt

        label, box = qt.QLabel("a"), qt.QCheckBox()
        label.text = "b"
        assert label.text == "b"
        label.setText("c")
        box.checked, box.enabled, box.toolTip = True, False, "why"
        assert (label.text, box.checked, box.isChecked(), box.enabled, box.toolTip) == ("c", True, True, False, "why")

    def test_a_name_that_is_no_property_stays_a_method(self, quiet: Any) -> None:
        import qt

        widget = qt.QWidget()
        layout = qt.QVBoxLayout(widget)
        layout.addWidget(qt.QLabel("x"))
        assert widget.layout() is layout
        assert widget.layout().count() == 1

    def test_a_new_attribute_on_an_object_of_qt_is_refused(self, quiet: Any) -> None:
        import qt

        label = qt.QLabel()
        with pytest.raises(AttributeError, match="'txt' does not exist on QLabel"):
            label.txt = "x"
        with pytest.raises(AttributeError, match="'setText'.*not a property"):
            label.setText = "x"
        with pytest.raises(AttributeError, match="not writable"):
            label.hasSelectedText = True

    def test_a_python_class_of_a_qt_class_may_have_attributes(self, quiet: Any) -> None:
        import qt

        class Counter(qt.QObject):
            def __init__(self) -> None:
                super().__init__()
                self.count = 0

        counter = Counter()
        counter.count += 1
        assert counter.count == 1

    def test_a_name_that_only_qt_6_has_is_refused(self, quiet: Any) -> None:
        import qt

        event = qt.QMouseEvent(
            qt.QEvent.MouseButtonPress, qt.QPointF(1, 2), qt.Qt.LeftButton, qt.Qt.LeftButton, qt.Qt.NoModifier
        )
        assert event.pos().x() == 1
        with pytest.raises(AttributeError):
            event.position()
        with pytest.raises(AttributeError):
            _ = qt.QPointingDevice
        with pytest.raises(AttributeError):
            _ = qt.QCheckBox().checkStateChanged

    def test_wrapper_classes_are_flat_as_in_pythonqt(self, quiet: Any) -> None:
        import qt

        assert isinstance(qt.QLabel(), qt.QLabel)
        assert not isinstance(qt.QLabel(), qt.QWidget)
        assert qt.QLabel().inherits("QWidget")

    def test_enumerations_are_found_on_the_class(self, quiet: Any) -> None:
        import qt

        item = qt.QTableWidgetItem("x")
        item.setFlags(item.flags() & ~qt.Qt.ItemIsEditable)
        item.setData(qt.Qt.UserRole, "id")
        assert item.data(qt.Qt.UserRole) == "id"
        assert not item.flags() & qt.Qt.ItemIsEditable

    def test_dynamic_properties_and_children_are_attributes(self, quiet: Any) -> None:
        import qt

        parent = qt.QWidget()
        child = qt.QLabel("x", parent)
        child.name = "note"
        parent.setProperty("purpose", "test")
        assert parent.purpose == "test"
        assert parent.note is child
        assert parent.children() == (child,)
        assert parent.findChild(qt.QLabel, "note") is child
        assert parent.findChildren("QWidget") == (child,)

    def test_no_keyword_and_no_number_of_numpy_goes_to_qt(self, quiet: Any) -> None:
        import qt

        with pytest.raises(TypeError):
            qt.QLabel(text="x")
        with pytest.raises(TypeError, match="int64"):
            qt.QSpinBox().setValue(np.int64(3))

    def test_a_destroyed_object_says_so_and_is_false(self, quiet: Any) -> None:
        import qt

        label = qt.QLabel("x")
        label.delete()
        assert not label
        with pytest.raises(ValueError, match="destroyed QLabel"):
            _ = label.text

    def test_pictures_are_made_of_bytes_and_painted(self, quiet: Any, tmp_path: Path) -> None:
        import qt

        pixmap = qt.QPixmap(8, 8)
        pixmap.fill(qt.QColor("#ff0000"))
        painter = qt.QPainter(pixmap)
        painter.fillRect(0, 0, 4, 4, qt.QColor(0, 0, 255))
        painter.end()
        assert pixmap.save(str(tmp_path / "x.png"))
        again = qt.QPixmap()
        assert again.loadFromData(qt.QByteArray((tmp_path / "x.png").read_bytes()))
        image = again.toImage()
        assert (image.pixelColor(1, 1).blue(), image.pixelColor(6, 6).red(), again.width()) == (255, 255, 8)


class TestSignals:
    def test_a_signal_is_connected_by_its_signature(self, quiet: Any) -> None:
        import qt

        button, heard = qt.QPushButton(), []
        button.checkable = True
        button.connect("clicked()", lambda: heard.append("clicked"))
        button.connect("clicked(bool)", heard.append)
        button.click()
        assert heard == ["clicked", True]

    def test_a_signal_is_connected_by_its_name(self, quiet: Any) -> None:
        import qt

        box, heard = qt.QSpinBox(), []
        box.valueChanged.connect(heard.append)
        box.value = 3
        box.valueChanged.disconnect(heard.append)
        box.value = 4
        assert heard == [3]

    def test_a_disconnected_function_is_not_called(self, quiet: Any) -> None:
        import qt

        button, heard = qt.QPushButton(), []

        def hear() -> None:
            heard.append(1)

        button.connect("clicked()", hear)
        assert button.disconnect("clicked()", hear)
        assert not button.disconnect("clicked()", hear)
        button.click()
        assert heard == []

    def test_a_function_gets_as_many_arguments_as_it_takes(self, quiet: Any) -> None:
        import qt

        slider, heard = qt.QSlider(), []
        slider.connect("rangeChanged(int,int)", lambda low: heard.append(low))
        slider.connect("rangeChanged(int, int)", lambda *both: heard.append(both))
        slider.setRange(3, 7)
        assert heard == [3, (3, 7)]

    @pytest.mark.parametrize("signal", ["clickd()", "clicked(int)", "toggled()"])
    def test_a_signal_that_is_not_there_is_refused(self, quiet: Any, signal: str) -> None:
        import qt

        with pytest.raises(ValueError, match="QPushButton has no signal"):
            qt.QPushButton().connect(signal, print)

    def test_a_slot_of_qt_can_be_connected_to(self, quiet: Any) -> None:
        import qt

        box, label = qt.QCheckBox(), qt.QLabel()
        box.connect("toggled(bool)", label.setEnabled)
        box.connect("toggled(bool)", label, "setVisible(bool)")
        box.checked = True
        box.checked = False
        assert not label.enabled
        assert not label.visible

    def test_what_a_slot_raises_is_collected(self, standin: Any) -> None:
        import qt

        button = qt.QPushButton()
        button.connect("clicked()", lambda: 1 / 0)
        button.click()
        qt.QTimer.singleShot(0, lambda: {}["x"])
        standin.process(0.05)
        assert [type(error) for error in standin.errors] == [ZeroDivisionError, KeyError]

    def test_what_an_observer_of_vtk_raises_is_collected(self, standin: Any) -> None:
        import slicer

        slicer.mrmlScene.AddObserver(slicer.vtkMRMLScene.NodeAddedEvent, lambda *_: 1 / 0)
        volume()
        assert {type(error) for error in standin.errors} == {ZeroDivisionError}

    def test_qt_in_another_thread_is_refused(self, quiet: Any) -> None:
        import threading

        import qt

        label, caught = qt.QLabel("a"), []

        def work() -> None:
            try:
                label.text = "b"
            except RuntimeError as error:
                caught.append(str(error))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert "outside the main thread" in caught[0]
        assert label.text == "a"

    def test_a_timer_runs_while_events_are_processed(self, quiet: Any) -> None:
        import qt

        timer, beats = qt.QTimer(), []
        timer.interval = 1
        timer.connect("timeout()", lambda: beats.append(1))
        timer.start()
        assert quiet.process(2.0, until=lambda: len(beats) >= 3)
        timer.stop()
        assert not timer.active

    def test_an_event_filter_of_python_sees_events(self, quiet: Any) -> None:
        import qt

        class Clicks(qt.QObject):
            def __init__(self) -> None:
                super().__init__()
                self.places: list[int] = []

            def eventFilter(self, watched: Any, event: Any) -> bool:  # noqa: N802
                if event.type() == qt.QEvent.MouseButtonPress:
                    self.places.append(event.pos().x())
                    return True
                return super().eventFilter(watched, event)

        clicks, label = Clicks(), qt.QLabel("x")
        label.installEventFilter(clicks)
        press(label, 7, 3)
        assert clicks.places == [7]

    def test_what_a_virtual_function_raises_is_collected(self, standin: Any) -> None:
        import qt

        class Broken(qt.QWidget):
            def mousePressEvent(self, event: Any) -> None:  # noqa: N802
                raise RuntimeError("broken")

        press(Broken(), 1, 1)
        assert [str(error) for error in standin.errors] == ["broken"]

    def test_a_shortcut_of_the_panel_is_made_of_strings_and_enumerations(self, quiet: Any) -> None:
        import qt

        widget = qt.QWidget()
        shortcut = qt.QShortcut(qt.QKeySequence("Ctrl+L"), widget)
        shortcut.setContext(qt.Qt.WidgetWithChildrenShortcut)
        shortcut.connect("activated()", lambda: None)
        assert shortcut.key.toString() == "Ctrl+L"


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
        form = FORM.replace('class="ctkPathLineEdit"', 'class="ctkDirectoryButton"')
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


class TestNodeComboBox:
    def test_it_follows_the_scene(self, example: Any) -> None:
        import slicer

        combo = example.widget.ui.scan
        first, second = volume("first"), volume("second")
        hidden = volume("hidden")
        hidden.SetHideFromEditors(True)
        assert [combo.nodeFromIndex(i) for i in range(combo.nodeCount())] == [first, second]
        combo.setCurrentNode(second)
        slicer.mrmlScene.RemoveNode(second)
        assert combo.currentNode() is first
        slicer.mrmlScene.RemoveNode(first)
        assert combo.currentNode() is None
        assert combo.nodeCount() == 0

    def test_a_node_is_chosen_by_itself_where_none_may_not_be_chosen(self, quiet: Any) -> None:
        import slicer

        combo = slicer.qMRMLNodeComboBox()
        combo.nodeTypes = ["vtkMRMLScalarVolumeNode"]
        combo.setMRMLScene(slicer.mrmlScene)
        assert combo.currentNode() is None
        assert combo.enabled
        first = volume("first")
        assert combo.currentNode() is first
        volume("second")
        assert combo.currentNodeID == first.GetID()

    def test_a_node_that_is_chosen_before_there_is_a_scene_is_chosen_then(self, quiet: Any) -> None:
        import slicer

        volume("first")
        second = volume("second")
        combo = slicer.qMRMLNodeComboBox()
        combo.nodeTypes = ["vtkMRMLScalarVolumeNode"]
        combo.setCurrentNode(second)
        assert not combo.enabled
        combo.setMRMLScene(slicer.mrmlScene)
        assert combo.currentNode() is second

    def test_nodes_of_an_imported_scene_come_when_the_import_has_ended(self, example: Any, quiet: Any) -> None:
        import slicer

        volume("first")
        slicer.mrmlScene.SetSaveToXMLString(1)
        slicer.mrmlScene.Commit()
        text = slicer.mrmlScene.GetSceneXMLString()
        quiet.close_scene()
        added: list[str] = []
        example.widget.ui.scan.connect("nodeAdded(vtkMRMLNode*)", lambda node: added.append(node.GetName()))
        slicer.mrmlScene.SetLoadFromXMLString(1)
        slicer.mrmlScene.SetSceneXMLString(text)
        slicer.mrmlScene.Import()
        slicer.mrmlScene.SetLoadFromXMLString(0)
        assert added == ["first"]

    def test_it_tells_of_a_change_once(self, example: Any) -> None:
        combo, heard = example.widget.ui.scan, []
        combo.connect("currentNodeChanged(vtkMRMLNode*)", lambda node: heard.append(node))
        combo.connect("currentNodeChanged(bool)", lambda valid: heard.append(valid))
        combo.connect("currentNodeIDChanged(QString)", lambda node_id: heard.append(node_id))
        node = volume()
        combo.setCurrentNodeID(node.GetID())
        combo.setCurrentNode(node)
        assert heard == [node, True, node.GetID()]

    def test_a_renamed_node_is_shown_by_its_new_name(self, example: Any) -> None:
        node = volume("old")
        node.SetName("new")
        assert "new" in shown(example.widget.ui.scan)

    def test_a_node_is_made_by_the_last_item(self, quiet: Any) -> None:
        import slicer

        combo = slicer.qMRMLNodeComboBox()
        combo.nodeTypes, combo.noneEnabled, combo.baseName = ["vtkMRMLSegmentationNode"], True, "Mine"
        combo.setMRMLScene(slicer.mrmlScene)
        choose(combo, "Create new Segmentation")
        assert combo.currentNode().GetName() == "Mine"
        choose(combo, "None")
        assert combo.currentNode() is None

    def test_closing_the_scene_leaves_no_node(self, example: Any, quiet: Any) -> None:
        example.widget.ui.scan.setCurrentNode(volume())
        quiet.close_scene()
        assert example.widget.ui.scan.currentNode() is None
        assert example.widget.ui.scan.nodeCount() == 0

    def test_several_nodes_are_checked(self, example: Any) -> None:
        import qt
        import slicer

        combo, heard = example.widget.ui.others, []
        combo.connect("checkedNodesChanged()", lambda: heard.append(1))
        first, second = volume("first"), volume("second")
        assert combo.noneChecked()
        combo.check(second)
        combo.setCheckState(first, qt.Qt.Checked)
        assert combo.checkedNodes() == (first, second)
        slicer.mrmlScene.RemoveNode(first)
        assert combo.checkedNodes() == (second,)
        assert len(heard) == 3


class TestParameterNode:
    def test_values_and_widgets_follow_each_other(self, example: Any) -> None:
        parameters, ui = example.widget.parameters, example.widget.ui
        node = volume()
        ui.scan.setCurrentNode(node)
        ui.slider.value = 0.75
        ui.invert.checked = True
        ui.mode.currentIndex = 0
        assert (parameters.scan, parameters.threshold, parameters.invert) == (node, 0.75, True)
        assert parameters.mode.name == "ALL"
        parameters.threshold = 0.25
        parameters.scan = None
        assert ui.slider.value == 0.25
        assert ui.scan.currentNode() is None

    def test_a_disconnected_widget_no_longer_writes(self, example: Any) -> None:
        parameters = example.widget.parameters
        parameters.disconnectGui(example.widget.tag)
        example.widget.ui.slider.value = 0.1
        parameters.invert = True
        assert parameters.threshold == 0.5
        assert not example.widget.ui.invert.checked

    def test_a_value_that_is_not_valid_is_refused(self, example: Any) -> None:
        with pytest.raises(ValueError, match="within"):
            example.widget.parameters.threshold = 2.0
        with pytest.raises(TypeError, match="list"):
            example.widget.parameters.names = "abc"

    def test_lists_of_texts_and_enumerations_survive_in_the_node(self, example: Any) -> None:
        parameters = example.widget.parameters
        assert parameters.names == ["a"]
        parameters.names = ["x, y", "'", ""]
        again = type(parameters)(parameters.parameterNode)
        assert again.names == ["x, y", "'", ""]
        assert isinstance(again.mode, enum.Enum)

    def test_a_parameter_has_its_default_after_the_scene_was_closed(self, example: Any, quiet: Any) -> None:
        example.widget.parameters.threshold = 0.9
        example.widget.parameters.disconnectGui(example.widget.tag)
        quiet.close_scene()
        assert example.python.ExampleParameterNode(example.python.ExampleLogic().getParameterNode()).threshold == 0.5


class TestWidgets:
    def test_a_slider_keeps_its_range(self, quiet: Any) -> None:
        import ctk

        slider, heard = ctk.ctkSliderWidget(), []
        slider.minimum, slider.maximum = 0, 1
        slider.decimals, slider.singleStep = 3, 0.001
        slider.connect("valueChanged(double)", heard.append)
        slider.value = 0.375
        slider.value = 7
        assert heard == [0.375, 1.0]

    def test_a_range_keeps_its_order(self, quiet: Any) -> None:
        import ctk

        for widget in (ctk.ctkRangeWidget(), ctk.ctkDoubleRangeSlider()):
            heard: list[tuple[float, float]] = []
            widget.connect("valuesChanged(double,double)", lambda *both, h=heard: h.append(both))
            widget.minimum, widget.maximum = 0, 50
            widget.setValues(10, 20)
            widget.minimumValue = 30
            assert heard[-2:] == [(10.0, 20.0), (20.0, 30.0)] or heard[-1] == (30.0, 30.0)
            assert widget.minimum <= widget.minimumValue <= widget.maximumValue <= widget.maximum

    def test_a_collapsed_button_hides_what_is_inside(self, example: Any, quiet: Any) -> None:
        step, inside = example.widget.ui.step, example.widget.ui.inside
        heard: list[bool] = []
        step.connect("contentsCollapsed(bool)", heard.append)
        height = step.sizeHint.height()
        step.collapsed = True
        assert not inside.visible
        assert step.sizeHint.height() < height
        step.click()
        assert inside.visible
        assert heard == [True, False]

    def test_a_child_that_was_hidden_stays_hidden_in_an_expanded_button(self, example: Any) -> None:
        step, inside = example.widget.ui.step, example.widget.ui.inside
        inside.visible = False
        step.collapsed = True
        step.collapsed = False
        assert not inside.visible

    def test_a_path_is_kept_in_the_history(self, quiet: Any) -> None:
        import ctk

        line, heard = ctk.ctkPathLineEdit(), []
        line.settingKey = "SDFSMIS/python"
        line.connect("currentPathChanged(QString)", heard.append)
        line.currentPath = "/usr/bin/python3"
        line.addCurrentPathToHistory()
        other = ctk.ctkPathLineEdit()
        other.settingKey = "SDFSMIS/python"
        assert other.currentPath == "/usr/bin/python3"
        assert heard == ["/usr/bin/python3"]


class TestSegmentEditor:
    def editor(self, example: Any) -> Any:
        import slicer

        editor = example.widget.ui.editor
        editor.setMRMLSegmentEditorNode(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentEditorNode"))
        return editor

    def test_a_segmentation_brings_its_volume_and_its_first_segment(self, example: Any) -> None:
        editor, heard = self.editor(example), []
        editor.connect("segmentationNodeChanged(vtkMRMLSegmentationNode*)", heard.append)
        editor.connect("currentSegmentIDChanged(QString)", heard.append)
        scan = volume()
        node, segment_id = segmentation(scan)
        editor.setSegmentationNode(node)
        assert editor.segmentationNode() is node
        assert editor.sourceVolumeNode() is scan
        assert editor.currentSegmentID() == segment_id
        assert heard == [node, segment_id]

    def test_a_segment_is_chosen_when_the_chosen_one_goes(self, example: Any) -> None:
        editor = self.editor(example)
        node, first = segmentation(volume())
        editor.setSegmentationNode(node)
        second = node.GetSegmentation().AddEmptySegment("", "spleen")
        node.GetSegmentation().RemoveSegment(first)
        assert editor.currentSegmentID() == second

    def test_a_stroke_is_undone(self, example: Any, quiet: Any) -> None:
        import slicer

        editor, scan = self.editor(example), volume()
        node, segment_id = segmentation(scan)
        editor.setSegmentationNode(node)
        editor.saveStateForUndo()
        quiet.paint(node, segment_id, scan, np.ones((1, 3, 3), dtype=bool), start=(2, 1, 1))
        assert slicer.util.arrayFromSegmentBinaryLabelmap(node, segment_id, scan).sum() == 9
        editor.undo()
        assert not slicer.util.arrayFromSegmentBinaryLabelmap(node, segment_id, scan).any()

    def test_only_the_effects_of_the_order_are_shown(self, example: Any) -> None:
        editor = self.editor(example)
        editor.setEffectNameOrder(["Paint", "Erase"])
        editor.unorderedEffectsVisible = False
        assert [editor.effectByIndex(i).name for i in range(editor.effectCount())] == ["Paint", "Erase"]
        editor.setActiveEffectByName("Paint")
        editor.activeEffect().setParameter("BrushSphere", 0)
        assert editor.mrmlSegmentEditorNode().GetActiveEffectName() == "Paint"
        editor.setActiveEffect(None)
        assert editor.activeEffect() is None

    def test_an_editor_without_its_node_complains(self, standin: Any) -> None:
        import slicer

        editor = slicer.qMRMLSegmentEditorWidget()
        editor.setSegmentationNode(None)
        assert "no parameter node" in str(standin.errors[0])

    def test_shortcuts_come_and_go(self, example: Any) -> None:
        import qt

        editor = self.editor(example)
        before = len(example.parent.findChildren(qt.QShortcut))
        editor.installKeyboardShortcuts(example.parent)
        assert len(example.parent.findChildren(qt.QShortcut)) > before
        editor.uninstallKeyboardShortcuts()


class TestApplication:
    def test_slice_views_are_those_of_the_scene(self, quiet: Any) -> None:
        import slicer

        manager = slicer.app.layoutManager()
        assert manager.sliceViewNames() == ("Red", "Yellow", "Green")
        red = manager.sliceWidget("Red")
        assert red.mrmlSliceNode() is slicer.mrmlScene.GetNodeByID("vtkMRMLSliceNodeRed")
        assert red.sliceLogic().GetSliceNode() is red.mrmlSliceNode()
        assert red.sliceOrientation == "Axial"
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


def press(widget: Any, x: int, y: int) -> None:
    """A click with the mouse."""
    from PySide6.QtCore import QPoint, Qt
    from PySide6.QtTest import QTest

    widget.show()
    QTest.mousePress(widget._native, Qt.MouseButton.LeftButton, pos=QPoint(x, y))


def shown(combo: Any) -> list[str]:
    box = combo._native._box
    return [box.itemText(index) for index in range(box.count())]


def choose(combo: Any, text: str) -> None:
    """What the user does: opens the list and takes an item."""
    box = combo._native._box
    box.setCurrentIndex(shown(combo).index(text))
    box.activated.emit(box.currentIndex())
