"""Example: a small scripted module with all that the stand-in offers, written to a folder."""

from __future__ import annotations

from pathlib import Path

MODULE = '''
import enum
from typing import Annotated

import qt
import slicer
from slicer import vtkMRMLScalarVolumeNode
from slicer.i18n import tr as _
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import *
from slicer.util import VTKObservationMixin


class Mode(enum.Enum):
    ALL = 1
    SOME = 2


@parameterNodeWrapper
class ExampleParameterNode:
    scan: vtkMRMLScalarVolumeNode
    threshold: Annotated[float, WithinRange(0, 1)] = 0.5
    invert: bool = False
    mode: Mode = Mode.SOME
    names: list[str] = ["a"]


class Example(ScriptedLoadableModule):
    def __init__(self, parent):
        super().__init__(parent)
        parent.title = _("Example")
        self.started = False
        slicer.app.connect("startupCompleted()", self.onStarted)

    def onStarted(self):
        self.started = True


class ExampleWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.events = []

    def setup(self):
        super().setup()
        panel = slicer.util.loadUI(self.resourcePath("UI/Example.ui"))
        self.layout.addWidget(panel)
        self.ui = slicer.util.childWidgetVariables(panel)
        panel.setMRMLScene(slicer.mrmlScene)
        self.ui.go.connect("clicked()", self.onGo)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.parameters = ExampleParameterNode(ExampleLogic().getParameterNode())
        self.tag = self.parameters.connectGui(self.ui)
        self.events.append("setup")

    def enter(self):
        self.events.append("enter")

    def exit(self):
        self.events.append("exit")

    def cleanup(self):
        self.removeObservers()
        self.events.append("cleanup")

    def onSceneStartClose(self, caller, event):
        self.events.append("close")

    def onGo(self):
        self.events.append("go")


class ExampleLogic(ScriptedLoadableModuleLogic):
    pass


class ExampleTest(ScriptedLoadableModuleTest):
    def runTest(self):
        self.test_it()

    def test_it(self):
        self.assertEqual(slicer.modules.example.title, "Example")
'''


def _item(kind: str, name: str, properties: str = "") -> str:
    return f'<item><widget class="{kind}" name="{name}">{properties}</widget></item>'


def _property(name: str, value: str) -> str:
    return f'<property name="{name}">{value}</property>'


def _bound(name: str) -> str:
    return f'<property name="SlicerParameterName" stdset="0"><string>{name}</string></property>'


def _connection(receiver: str) -> str:
    signal, slot = "mrmlSceneChanged(vtkMRMLScene*)", "setMRMLScene(vtkMRMLScene*)"
    return (
        f"<connection><sender>Example</sender><signal>{signal}</signal>"
        f"<receiver>{receiver}</receiver><slot>{slot}</slot></connection>"
    )


VOLUMES = _property("nodeTypes", "<stringlist><string>vtkMRMLScalarVolumeNode</string></stringlist>")
INSIDE = _item("QLabel", "inside", _property("text", "<string>inside</string>"))
ITEMS = (
    _item("qMRMLNodeComboBox", "scan", VOLUMES + _property("noneEnabled", "<bool>true</bool>") + _bound("scan")),
    _item("qMRMLCheckableNodeComboBox", "others", VOLUMES),
    _item("ctkSliderWidget", "slider", _bound("threshold")),
    _item("ctkRangeWidget", "range"),
    _item("QCheckBox", "invert", _bound("invert")),
    _item("QComboBox", "mode", _bound("mode")),
    _item("ctkPathLineEdit", "path"),
    _item("ctkCollapsibleButton", "step", f'<layout class="QVBoxLayout" name="stepLayout">{INSIDE}</layout>'),
    _item("qMRMLSegmentEditorWidget", "editor"),
    _item("QPushButton", "go", _property("text", "<string>Go</string>")),
)
CUSTOM = "".join(
    f"<customwidget><class>{kind}</class><extends>QWidget</extends><container>1</container></customwidget>"
    for kind in ("qMRMLWidget", "ctkCollapsibleButton")
)
FORM = (
    f'<ui version="4.0"><class>Example</class><widget class="qMRMLWidget" name="Example">'
    f'<layout class="QVBoxLayout" name="exampleLayout">{"".join(ITEMS)}</layout></widget>'
    f"<customwidgets>{CUSTOM}</customwidgets>"
    f"<connections>{''.join(map(_connection, ('scan', 'others', 'editor')))}</connections></ui>"
)


def write_example(folder: Path, form: str = FORM) -> Path:
    """The module's file, with its .ui file in ``Resources/UI``."""
    place = folder / "Resources" / "UI"
    place.mkdir(parents=True, exist_ok=True)
    (place / "Example.ui").write_text(form)
    (folder / "Example.py").write_text(MODULE)
    return folder / "Example.py"
