"""The workbench on scenes of every kind: how scans lie, what segments share, transforms, masks, sequences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("slicer")
pytest.importorskip("PySide6.QtWidgets", exc_type=ImportError)
pytest.importorskip("fastapi")

from slicer_standin import install

install()

from panel_examples import PaintedScene, dice, differ, only  # noqa: E402
from SDFSMISLib.workbench.views import RunRequest  # noqa: E402
from serving import Backend, running  # noqa: E402
from small_scans import ball_scan  # noqa: E402

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, -1.0, 0.0)
SAGITTAL = (0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0)
OBLIQUE = (0.36, 0.48, -0.8, -0.8, 0.6, 0.0, 0.48, 0.64, 0.6)
FLIPPED = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)
TURN = np.array([[0.8, -0.6, 0, 12.5], [0.6, 0.8, 0, -7.25], [0, 0, 1, 3.0], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    with running() as one:
        yield one


def lying(direction: tuple[float, ...]) -> object:
    scan, _ = ball_scan()
    return replace(scan, geometry=replace(scan.geometry, direction=direction))


@pytest.mark.parametrize("direction", [AXIAL, CORONAL, SAGITTAL, OBLIQUE, FLIPPED])
def test_scans_may_lie_in_any_way(backend: Backend, direction: tuple[float, ...]) -> None:
    panel = PaintedScene(backend.url, scan=lying(direction))
    panel.run()
    assert differ(panel.held(only(panel.results())), panel.answer()) == 0, panel.last_run.text
    panel.workbench.close()


@pytest.mark.parametrize(
    ("above_scan", "above_segmentation"), [(TURN, TURN), (TURN, None), (None, TURN), (TURN, TURN @ TURN)]
)
def test_what_views_show_on_each_other_counts_under_any_transforms(
    backend: Backend, above_scan: np.ndarray | None, above_segmentation: np.ndarray | None
) -> None:
    panel = PaintedScene(backend.url, scan=lying(OBLIQUE), above_scan=above_scan, above_segmentation=above_segmentation)
    panel.run()
    (home,) = [node for node in (panel.segmentation, *others(panel)) if panel.results(node)]
    found = panel.held(only(panel.results(home)), home)
    if above_scan is above_segmentation:
        assert home is panel.segmentation and differ(found, panel.answer()) == 0, panel.last_run
    else:  # the segment editor paints on another lattice there, so the painted slice itself is not the same
        assert home is not panel.segmentation and dice(found, panel.truth) > 0.95, panel.last_run
    panel.workbench.close()


def others(panel: PaintedScene) -> list[object]:
    nodes = panel.scene.node.GetNodesByClass("vtkMRMLSegmentationNode")
    found = [nodes.GetItemAsObject(number) for number in range(nodes.GetNumberOfItems())]
    return [node for node in found if node is not panel.segmentation]


@pytest.mark.parametrize("shared", [True, False])
def test_other_segments_stay_whether_they_share_a_labelmap_or_not(backend: Backend, shared: bool) -> None:
    panel = PaintedScene(backend.url)
    neighbour = panel.editor.segment("neighbour")
    mask = np.zeros_like(panel.truth)
    mask[:, 2:4, 2:4] = True
    if not shared:
        mask |= panel.truth  # what overlaps lies on another layer
    panel.editor.paint(neighbour, mask)
    layers = panel.segmentation.GetSegmentation().GetNumberOfLayers()
    assert layers == (1 if shared else 2)
    panel.workbench.step()
    panel.workbench.support.choose_segments([panel.segment])
    panel.run()
    assert not panel.last_run.failed, panel.last_run.text
    assert differ(panel.held(only(panel.results())), panel.answer()) == 0
    assert differ(panel.held(neighbour), mask) == 0
    panel.workbench.review.accept()
    panel.rest()
    assert differ(panel.held(neighbour), mask) == 0, "the editor lets segments overlap"
    panel.workbench.close()


def test_results_stay_where_editing_is_allowed(backend: Backend) -> None:
    import slicer

    panel = PaintedScene(backend.url)
    area = np.zeros_like(panel.truth)
    area[:, :16] = True
    allowed = panel.editor.segment("area", area)
    panel.workbench.step()
    panel.workbench.support.choose_segments([panel.segment])
    panel.editor.node.SetMaskMode(slicer.vtkMRMLSegmentationNode.EditAllowedInsideSingleSegment)
    panel.editor.node.SetMaskSegmentID(allowed)
    panel.run()
    expected = panel.answer() & area
    expected[6] = panel.truth[6]  # what was painted stays as it was painted
    assert differ(panel.held(only(panel.results())), expected) == 0
    panel.workbench.close()


def test_accepted_results_take_from_others_what_the_editor_overwrites(backend: Backend) -> None:
    import slicer

    panel = PaintedScene(backend.url)
    neighbour = panel.editor.segment("neighbour", np.ones_like(panel.truth))
    panel.workbench.step()
    panel.workbench.support.choose_segments([panel.segment])
    panel.editor.node.SetOverwriteMode(slicer.vtkMRMLSegmentEditorNode.OverwriteAllSegments)
    panel.run()
    assert panel.held(neighbour).all(), "nothing is taken before the results are accepted"
    panel.workbench.review.accept()
    panel.rest()
    assert differ(panel.held(neighbour), ~panel.answer()) == 0
    assert differ(panel.held(panel.segment)[6], panel.truth[6]) == 0, "the painted segment is kept"
    panel.workbench.close()


def test_an_intensity_range_of_another_scan_is_refused_before_anything_is_sent(backend: Backend) -> None:
    panel = PaintedScene(backend.url)
    other = panel.scene.scan(ball_scan()[0], "PET")
    panel.editor.node.SetSourceVolumeIntensityMask(True)
    panel.editor.logic.SetSourceVolumeNode(other)
    panel.run()
    assert panel.last_run.failed and "another volume" in panel.last_run.text and not panel.results()
    panel.workbench.close()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 1, 9), (2, 300, 7)])
def test_tiny_scans_are_segmented_or_refused_in_words(backend: Backend, shape: tuple[int, int, int]) -> None:
    scan, labelmap = ball_scan(shape=shape)
    panel = PaintedScene(backend.url, scan=scan, painted=())
    panel.truth = labelmap.voxels.astype(bool)
    painted = np.zeros(shape, dtype=bool)
    painted[0, 0, 0] = True
    panel.editor.paint(panel.segment, painted)
    panel.run()
    assert panel.last_run.text and "unexpected" not in panel.last_run.text
    if not panel.last_run.failed:
        assert panel.held(only(panel.results()))[0, 0, 0]
    panel.workbench.close()


def test_a_sequence_is_segmented_frame_by_frame(backend: Backend) -> None:
    panel = PaintedScene(backend.url)
    logic = _sequences_logic(panel)
    sequence = panel.scene.node.AddNewNodeByClass("vtkMRMLSequenceNode", "beating heart")
    frames = []
    for number in range(2):
        scan, labelmap = ball_scan(gap=() if number == 0 else (7, 8))
        node = panel.scene.scan(scan, "frame")
        sequence.SetDataNodeAtValue(node, str(number))
        panel.scene.node.RemoveNode(node)
        frames.append(labelmap.voxels.astype(bool))
    browser = panel.scene.node.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "browser")
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    browser.AddProxyNode(panel.volume, sequence, False)
    for number, truth in enumerate(frames):
        browser.SetSelectedItemNumber(number)
        logic.UpdateProxyNodesFromSequences(browser)
        panel.run(RunRequest())
        assert not panel.last_run.failed, panel.last_run.text
        name = next(name for name in panel.results() if f"frame {number + 1} of 2" in name)
        assert dice(panel.held(panel.results()[name]), truth) > 0.95
    assert len(panel.results()) == 2
    panel.workbench.close()


def _sequences_logic(panel: PaintedScene) -> object:
    import slicer

    logic = slicer.vtkSlicerSequencesLogic()
    logic.SetMRMLScene(panel.scene.node)
    return logic
