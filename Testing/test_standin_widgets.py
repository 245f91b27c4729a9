"""The stand-in for Slicer's widgets and parameter nodes: they follow the scene as Slicer's do."""

from __future__ import annotations

import enum
from typing import Annotated, Any

import numpy as np
import pytest

pytest.importorskip("slicer")
pytest.importorskip("PySide6")

from standin_example import segmentation, volume  # noqa: E402

pytest_plugins = ["standin_fixtures"]


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


class Mode(enum.Enum):
    ALL = 1
    SOME = 2


def parameters(node: Any = None) -> Any:
    """A class of parameters of every kind, on a new node or on one that is there."""
    import slicer
    from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper

    class Kept:
        scan: slicer.vtkMRMLScalarVolumeNode
        threshold: Annotated[float, WithinRange(0, 1)] = 0.5
        invert: bool = False
        mode: Mode = Mode.SOME
        note: str = "a"

    Kept.__annotations__["scan"] = slicer.vtkMRMLScalarVolumeNode
    Kept.__annotations__["threshold"] = Annotated[float, WithinRange(0, 1)]
    return parameterNodeWrapper(Kept)(node or slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScriptedModuleNode"))


class TestParameterNode:
    """As Slicer's own pure-Python files of the parameter node wrapper do."""

    def test_values_survive_in_the_node(self, quiet: Any) -> None:
        made, node = parameters(), volume()
        values = (node, 0.25, True, Mode.ALL, "x, y")
        made.scan, made.threshold, made.invert, made.mode, made.note = values
        again = parameters(made.parameterNode)
        assert (again.scan, again.threshold, again.invert, again.mode, again.note) == values
        assert made.parameterNode.GetParameter("mode") == "ALL" and made.parameterNode.GetParameter("invert") == "True"

    def test_a_parameter_that_the_node_lacks_gets_its_default(self, quiet: Any) -> None:
        made = parameters()
        assert (made.scan, made.threshold, made.invert, made.mode, made.note) == (None, 0.5, False, Mode.SOME, "a")
        assert made.parameterNode.GetParameter("threshold") == "0.5"
        made.threshold = 0.9
        made.parameterNode.UnsetParameter("threshold")
        made.Modified()
        assert made.threshold == 0.5

    def test_a_value_that_is_not_valid_is_refused_and_not_written(self, quiet: Any) -> None:
        made = parameters()
        with pytest.raises(ValueError, match="within range"):
            made.threshold = 2.0
        for name, value in (("note", 3), ("invert", 1), ("mode", "ALL"), ("scan", "scan")):
            with pytest.raises(TypeError, match="must be of type"):
                setattr(made, name, value)
        with pytest.raises(ValueError, match="must not be None"):
            made.note = None
        assert (made.threshold, made.note, made.mode) == (0.5, "a", Mode.SOME)

    def test_an_observer_sees_the_new_value(self, quiet: Any) -> None:
        made, seen = parameters(), []
        made.AddObserver("ModifiedEvent", lambda *_: seen.append(made.threshold))
        made.threshold = 0.75
        assert set(seen) == {0.75}
        made.parameterNode.SetParameter("threshold", "0.125")
        assert made.threshold == 0.125

    def test_a_node_that_is_removed_is_none(self, quiet: Any) -> None:
        import slicer

        made = parameters()
        made.scan = volume()
        slicer.mrmlScene.RemoveNode(made.scan)
        made.Modified()
        assert made.scan is None

    def test_a_text_that_names_no_member_is_refused(self, standin: Any) -> None:
        made = parameters()
        made.parameterNode.SetParameter("mode", "NONE")
        with pytest.raises(ValueError, match="'NONE' in parameter node"):
            parameters(made.parameterNode)

    def test_a_name_that_slicer_uses_itself_is_refused(self, quiet: Any) -> None:
        from slicer.parameterNodeWrapper import parameterNodeWrapper

        with pytest.raises(ValueError, match="reserved name 'Modified'"):
            parameterNodeWrapper(type("Taken", (), {"Modified": 1, "__annotations__": {"Modified": int}}))


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

        widget, heard = ctk.ctkRangeWidget(), []
        widget.connect("valuesChanged(double,double)", lambda *both: heard.append(both))
        widget.minimum, widget.maximum = 0, 50
        widget.setValues(10, 20)
        widget.minimumValue = 30
        assert heard[-2:] == [(10.0, 20.0), (30.0, 30.0)]
        widget.maximum = 5
        assert (widget.minimum, widget.minimumValue, widget.maximumValue, widget.maximum) == (0, 5, 5, 5)

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
        assert editor.activeEffect().name == "Paint"
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


def shown(combo: Any) -> list[str]:
    box = combo._native._box
    return [box.itemText(index) for index in range(box.count())]


def choose(combo: Any, text: str) -> None:
    """What the user does: opens the list and takes an item."""
    box = combo._native._box
    box.setCurrentIndex(shown(combo).index(text))
    box.activated.emit(box.currentIndex())
