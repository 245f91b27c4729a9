"""A small scripted module for the tests of the stand-in, written to a folder; and nodes of its scene."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

MODULE = """
import slicer
from slicer.i18n import tr as _
from slicer.ScriptedLoadableModule import *
from slicer.util import VTKObservationMixin


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


class ExampleTest(ScriptedLoadableModuleTest):
    def runTest(self):
        self.assertEqual(slicer.modules.example.title, "Example")
"""
FORM = """<ui version="4.0"><class>Example</class>
<widget class="qMRMLWidget" name="Example"><layout class="QVBoxLayout" name="exampleLayout">
 <item><widget class="qMRMLNodeComboBox" name="scan">
  <property name="nodeTypes"><stringlist><string>vtkMRMLScalarVolumeNode</string></stringlist></property>
  <property name="noneEnabled"><bool>true</bool></property>
 </widget></item>
 <item><widget class="qMRMLCheckableNodeComboBox" name="others">
  <property name="nodeTypes"><stringlist><string>vtkMRMLScalarVolumeNode</string></stringlist></property>
 </widget></item>
 <item><widget class="ctkCollapsibleButton" name="step"><layout class="QVBoxLayout" name="stepLayout">
  <item><widget class="QLabel" name="inside"><property name="text"><string>inside</string></property></widget></item>
 </layout></widget></item>
 <item><widget class="qMRMLSegmentEditorWidget" name="editor"/></item>
 <item><widget class="QPushButton" name="go"><property name="text"><string>Go</string></property></widget></item>
</layout></widget>
<customwidgets>
 <customwidget><class>qMRMLWidget</class><extends>QWidget</extends><container>1</container></customwidget>
 <customwidget><class>ctkCollapsibleButton</class><extends>QWidget</extends><container>1</container></customwidget>
</customwidgets>
<connections>
 <connection><sender>Example</sender><signal>mrmlSceneChanged(vtkMRMLScene*)</signal>
  <receiver>scan</receiver><slot>setMRMLScene(vtkMRMLScene*)</slot></connection>
 <connection><sender>Example</sender><signal>mrmlSceneChanged(vtkMRMLScene*)</signal>
  <receiver>others</receiver><slot>setMRMLScene(vtkMRMLScene*)</slot></connection>
 <connection><sender>Example</sender><signal>mrmlSceneChanged(vtkMRMLScene*)</signal>
  <receiver>editor</receiver><slot>setMRMLScene(vtkMRMLScene*)</slot></connection>
</connections></ui>
"""


def write_example(folder: Path, form: str = FORM) -> Path:
    """The module's file, with its .ui file in ``Resources/UI``."""
    place = folder / "Resources" / "UI"
    place.mkdir(parents=True, exist_ok=True)
    (place / "Example.ui").write_text(form)
    (folder / "Example.py").write_text(MODULE)
    return folder / "Example.py"


def volume(name: str = "scan", shape: tuple[int, int, int] = (6, 8, 10)) -> Any:
    """A volume node of the scene."""
    import slicer

    voxels = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    return slicer.util.addVolumeFromArray(voxels, name=name)


def segmentation(volume_node: Any) -> tuple[Any, str]:
    """A segmentation node on a volume's grid, and the ID of its one empty segment."""
    import slicer

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Segmentation")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume_node)
    return node, node.GetSegmentation().AddEmptySegment("", "liver", (1.0, 0.0, 0.0))
