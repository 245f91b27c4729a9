"""SDFSMIS in 3D Slicer: paint a structure on one slice, and get it on every other slice, here and in other scans."""
# ruff: noqa: N802 - the names are Slicer's

from __future__ import annotations

import sys
import unittest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

HERE = Path(__file__).resolve().parent


def _find_packages() -> None:
    """The panel lies beside this file; the library beside it where installed, in the folder above in a checkout."""
    installed = (HERE / "SDFSMISLib").is_dir()
    for folder in (HERE,) if installed else (HERE, HERE.parent):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))


_find_packages()

from SDFSMISLib.workbench.settings import Settings  # noqa: E402
from SDFSMISLib.workbench.text import set_translator  # noqa: E402
from SDFSMISPanel.parameter import Parameter  # noqa: E402
from SDFSMISPanel.sample_data import register_sample_data  # noqa: E402
from SDFSMISPanel.widget import Panel  # noqa: E402

if TYPE_CHECKING:
    from SDFSMISLib.workbench import Workbench

set_translator(_)


class SDFSMIS(ScriptedLoadableModule):
    """The module as Slicer lists it. Its icon is found by its name."""

    def __init__(self, parent: Any) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = _("SDFSMIS")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        parent.dependencies = ["Segmentations"]
        parent.contributors = ["SDFSMIS contributors"]
        parent.helpText = _(
            "Paint a structure on one slice and press Segment: it is found on every other slice, of this scan and of "
            "other scans. Correct what came out wrong, in any view, and press Segment again: it is taken into account. "
            "What computes is this computer, or a server that you name; nothing is sent anywhere before you agree."
        )
        parent.acknowledgementText = _(
            "Built on SD-FSMIS (arXiv 2604.03134): Stable Diffusion adapted to few-shot segmentation in medicine. "
            "Not a medical device: check every result before you use it."
        )
        slicer.app.connect("startupCompleted()", register_sample_data)


class SDFSMISWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """Slicer's life cycle of the panel; what is in the panel is :class:`SDFSMISPanel.widget.Panel`."""

    def __init__(self, parent: Any = None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic: Any = None
        self.panel: Any = None

    def setup(self) -> None:
        ScriptedLoadableModuleWidget.setup(self)
        root = slicer.util.loadUI(self.resourcePath("UI/SDFSMIS.ui"))
        self.layout.addWidget(root)
        self.ui = slicer.util.childWidgetVariables(root)
        root.setMRMLScene(slicer.mrmlScene)
        self.logic, settings = SDFSMISLogic(), Settings(slicer.app.userSettings())
        self.panel = Panel(root, self.ui, self.logic.make_workbench(settings), settings)
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(scene, scene.StartImportEvent, self.onSceneStartImport)
        self.addObserver(scene, scene.EndImportEvent, self.onSceneEndClose)
        if self.parent.isEntered:  # reloaded, and shown already; else Slicer enters it next
            self.enter()

    def cleanup(self) -> None:
        """The application ends, or the module is reloaded."""
        self.removeObservers()
        if self.panel is not None:
            self.panel.close()

    def enter(self) -> None:
        if self.panel is not None:  # it is missing where setup() has failed
            self.panel.enter()
            self.initializeParameterNode()

    def exit(self) -> None:
        if self.panel is not None:
            self.panel.exit()

    def onSceneStartClose(self, _caller: Any, _event: Any) -> None:
        if self.panel is not None:
            self.panel.close_scene()

    def onSceneEndClose(self, _caller: Any, _event: Any) -> None:
        if self.parent.isEntered:
            self.enter()  # the scene has other nodes of ours now, or none yet

    def onSceneStartImport(self, _caller: Any, _event: Any) -> None:
        self.setParameterNode(None)  # or what the selectors choose meanwhile would be written over what is loaded

    def initializeParameterNode(self) -> None:
        self.setParameterNode(self.logic.getParameterNode())

    def setParameterNode(self, parameter: Parameter | None) -> None:
        if self.panel is not None:
            self.panel.restore(parameter)

    def onReload(self) -> None:
        """Reload the panel and the workbench, too."""
        for name in [name for name in sys.modules if name.startswith(("SDFSMISPanel", "SDFSMISLib.workbench"))]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)


class SDFSMISLogic(ScriptedLoadableModuleLogic):
    """Gives the widget what it works on."""

    def getParameterNode(self) -> Parameter:
        node = ScriptedLoadableModuleLogic.getParameterNode(self)
        return Parameter(node)  # type: ignore[call-arg]  # the constructor is the decorator's

    def make_workbench(self, settings: Settings) -> Workbench:
        """The workbench of one panel, which closes it."""
        from SDFSMISPanel.slicer_paths import make_workbench

        return make_workbench(settings)


class SDFSMISTest(ScriptedLoadableModuleTest):
    """Slicer's self-test: run by Reload and Test, and by slicer.testing."""

    def setUp(self) -> None:
        slicer.mrmlScene.Clear()

    def runTest(self) -> None:
        for test in (self.test_parameters_are_kept_in_the_scene, self.test_a_painted_slice_becomes_a_segmentation):
            self.setUp()
            try:
                test()
            except unittest.SkipTest as skipped:
                self.delayDisplay(str(skipped))

    def test_parameters_are_kept_in_the_scene(self) -> None:
        """What the panel is set to is written into the scene, and read from it again."""
        logic = SDFSMISLogic()
        logic.getParameterNode().threshold = 0.25
        self.assertEqual(logic.getParameterNode().threshold, 0.25)

    def test_a_painted_slice_becomes_a_segmentation(self) -> None:
        """The whole path, with the backend that the environment names; see :mod:`SDFSMISPanel.self_test`."""
        from SDFSMISPanel.self_test import SelfTest

        backend = SelfTest.backend()
        slicer.util.selectModule("SDFSMIS")
        SelfTest(self, slicer.util.getModuleWidget("SDFSMIS"), backend).run()
