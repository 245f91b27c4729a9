"""The panel's second step: the scan, its segmentation and the painted slices; on a stand-in for Slicer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

slicer = pytest.importorskip("slicer")
pytest.importorskip("PySide6")

from recording_workbench import a_support  # noqa: E402

if TYPE_CHECKING:
    from panel_fixtures import Shown

pytest_plugins = ["panel_fixtures"]


def test_the_scan_and_a_segmentation_made_for_it_reach_the_workbench(shown: Shown) -> None:
    scan = shown.scan()
    chosen, segmentation = shown.workbench.calls_of("support.select")[-1]
    assert chosen is scan and segmentation.IsA("vtkMRMLSegmentationNode")
    assert segmentation.GetDisplayNode() is not None
    assert shown.ui.segmentationSelector.currentNode() is segmentation


def test_no_segmentation_is_made_where_there_is_one(shown: Shown) -> None:
    own = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "own")
    shown.scan()
    assert shown.workbench.calls_of("support.select")[-1][1] is own
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
    assert shown.workbench.calls_of("support.choose_segments")[-1] == ([],)
    shown.ui.segmentsList.item(1).setCheckState(qt.Qt.Checked)
    assert shown.workbench.calls_of("support.choose_segments")[-1] == (["Segment_2"],)
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
    assert shown.workbench.calls_of("support.choose_segments")[-1] == (["Segment_2", "Segment_3"],)


def test_support_slices_are_listed_with_all_that_tells_them_apart(shown: Shown) -> None:
    shown.put(support=a_support())
    items = shown.ui.supportList
    assert [items.item(k).text() for k in range(items.count)] == [
        "Axial 143: liver, 171.4 cm²\nCTA abdomen, painted",
        "Sagittal 90: liver, 84.0 cm²\nCTA abdomen, corrected in part",
        "Axial 12: none of the structures\nabdomen.safetensors, from a file",
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
    assert shown.workbench.calls_of("support.remove") == [(["corrected-90", "file-12"],)]
    assert shown.workbench.calls_of("support.show") == [("corrected-90",)]


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
    assert [node.GetLayoutName() for (node,) in shown.workbench.calls_of("support.use_slice")] == ["Yellow"]


def test_every_painted_slice_or_only_chosen_ones(shown: Shown) -> None:
    shown.scan()
    shown.put(support=a_support())
    shown.ui.everyPaintedCheckBox.click()
    assert shown.workbench.calls_of("support.use_every_painted")[-1] == (False,)
    assert shown.widget.logic.getParameterNode().every_painted is False


def test_a_support_set_is_saved_and_loaded_and_its_folder_remembered(shown: Shown, tmp_path: Path) -> None:
    shown.put(support=a_support())
    answers = shown.standin.dialogs.answers
    answers["getSaveFileName"] = [str(tmp_path / "liver"), ""]
    answers["getOpenFileName"] = [str(tmp_path / "spleen.safetensors"), ""]
    for button in (shown.ui.saveSupportButton, shown.ui.loadSupportButton):
        button.click()
        button.click()  # and leaves the dialog without a choice
    assert shown.workbench.calls_of("run.save_support") == [(tmp_path / "liver.safetensors",)]
    assert shown.workbench.calls_of("support.load") == [(tmp_path / "spleen.safetensors",)]
    assert slicer.app.userSettings().value("SDFSMIS/folder") == f'"{tmp_path}"'
