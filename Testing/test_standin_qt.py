"""The stand-in for Slicer's Qt: objects, properties and signals are as PythonQt shows them, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("slicer")
pytest.importorskip("PySide6")

from standin_example import volume  # noqa: E402

pytest_plugins = ["standin_fixtures"]


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


def press(widget: Any, x: int, y: int) -> None:
    """A click with the mouse."""
    from PySide6.QtCore import QPoint, Qt
    from PySide6.QtTest import QTest

    widget.show()
    QTest.mousePress(widget._native, Qt.MouseButton.LeftButton, pos=QPoint(x, y))
