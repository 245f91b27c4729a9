"""Sequences in the MRML scene: the frame that is shown is segmented, and its results stay those of the frame."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mrml_scene import held
from scene_examples import (
    Bench,
    accept,
    finish,
    write_all,
)
from SDFSMISLib.scene import (
    ResultUnavailable,
    ResultWriter,
    ScanCache,
    SegmentTemplate,
    SequenceFrame,
    list_segments,
    read_painting,
)
from SDFSMISLib.scene.frame import ijk_to_ras, vtk_matrix_from_array
from SDFSMISLib.support import SupportSet


@pytest.fixture(scope="module", autouse=True)
def _slicer() -> None:
    pytest.importorskip("slicer")


class BeatingHeart(Bench):
    """A bench whose scan is the proxy of a sequence of three frames; its segments are painted on the first."""

    def __init__(self) -> None:
        import slicer

        super().__init__(labels=1)
        scene = self.scene.node
        self.sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode", "ECG gated")
        self.sequence.SetIndexName("time")
        self.sequence.SetIndexUnit("ms")
        for number in range(3):
            frame = self.scene.volume(self.scan.voxels + np.int16(1000 * number), self.geometry, name="frame")
            self.sequence.SetDataNodeAtValue(frame, str(40 * number))
            scene.RemoveNode(frame)
        self._logic = slicer.vtkSlicerSequencesLogic()
        self._logic.SetMRMLScene(scene)
        self.browser = scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "browser")
        self.browser.SetAndObserveMasterSequenceNodeID(self.sequence.GetID())
        scene.RemoveNode(self.node)
        self._logic.UpdateProxyNodesFromSequences(self.browser)
        self.node = self.browser.GetProxyNode(self.sequence)
        self.editor.logic.SetSourceVolumeNode(self.node)
        self.show(0)

    def show(self, number: int) -> None:
        self.browser.SetSelectedItemNumber(number)
        self._logic.UpdateProxyNodesFromSequences(self.browser)
        self.scan = ScanCache().get(self.node)


def test_the_frame_that_is_shown_is_told_in_words() -> None:
    heart = BeatingHeart()
    assert heart.scan.frame_text == "frame 1 of 3 of ECG gated" and heart.scan.voxels.max() < 1000
    heart.show(2)
    assert heart.scan.frame_text == "frame 3 of 3 of ECG gated" and heart.scan.voxels.min() >= 2000
    assert Bench().scan.frame_text == "" and SequenceFrame.of(Bench().node) is None
    heart.browser.RemoveAllSequenceNodes()
    assert SequenceFrame.of(heart.node) is None


def test_each_frame_has_results_of_its_own() -> None:
    heart = BeatingHeart()
    first = heart.finished()
    assert heart.found() == {1: first.segment_id(1)}
    shown = heart.held(first)
    heart.show(1)
    assert heart.found() == {}
    heart.probabilities = {1: 255 - heart.probabilities[1]}
    second = heart.finished(into={1: first.segment_id(1)})
    assert second.segment_id(1) != first.segment_id(1), "the result of another frame is not gone on in"
    assert np.array_equal(heart.held(first), shown) and np.array_equal(heart.held(second), heart.expected())
    assert [one.name for one in list_segments(heart.segmentation) if one.is_result] == [
        "liver (SDFSMIS, frame 1 of 3 of ECG gated)",
        "liver (SDFSMIS, frame 2 of 3 of ECG gated)",
    ]
    assert heart.found() == {1: second.segment_id(1)}
    heart.show(0)
    assert heart.found() == {1: first.segment_id(1)}
    third = heart.finished(into={1: first.segment_id(1)})
    assert third.segment_id(1) == first.segment_id(1) and np.array_equal(heart.held(third), heart.expected())
    heart.browser.RemoveAllSequenceNodes()
    assert heart.found() == {}, "a volume that is of no sequence has none of them"


def test_frames_are_known_after_saving_and_loading(tmp_path) -> None:
    heart = BeatingHeart()
    first = heart.finished()
    loaded = heart.scene.load_segmentation(heart.scene.save(heart.segmentation, tmp_path / "saved.seg.nrrd"))
    assert heart.found(loaded) == {1: first.segment_id(1)}
    heart.show(1)
    assert heart.found(loaded) == {}


def test_a_frame_that_changes_during_the_run_is_noticed_and_its_results_come_out_all_the_same() -> None:
    heart = BeatingHeart()
    expected, writer = heart.expected(), heart.writer()
    support = heart.support()
    writer.add_slice(1, 0, heart.slice(1, 0), 0.5)
    write_all(writer)
    assert not writer.scan_changed
    heart.show(2)
    assert writer.scan_changed
    heart.run(writer, support=support)
    finish(writer)
    assert np.array_equal(held(heart.segmentation, writer.segment_id(1), heart.node), expected == 1)
    assert heart.found() == {}
    heart.show(0)
    assert not writer.scan_changed and heart.found() == {1: writer.segment_id(1)}
    accept(writer)


def test_frames_may_have_grids_of_their_own() -> None:
    heart = BeatingHeart()
    moved = replace(heart.geometry, origin=(90.0, 80.0, 70.0))
    heart.sequence.GetNthDataNode(1).SetIJKToRASMatrix(vtk_matrix_from_array(ijk_to_ras(moved)))
    expected, support, writer = heart.expected(), heart.support(), heart.writer()
    write_all(writer)
    heart.show(1)
    heart.run(writer, support=support)
    finish(writer)
    heart.show(0)
    assert np.array_equal(heart.held(writer), expected)
    heart.node.SetOrigin(1, 2, 3)
    with pytest.raises(ResultUnavailable, match="changed, or moved"):
        writer.write_next()


def test_voxels_that_change_under_a_run_are_noticed() -> None:
    bench = Bench()
    writer = bench.writer()
    assert not writer.scan_changed
    bench.node.GetImageData().Modified()
    assert writer.scan_changed
    bench.scene.node.RemoveNode(bench.node)
    assert writer.scan_changed


def test_a_segmentation_that_is_of_a_sequence_itself_must_show_the_frame_of_the_run() -> None:
    heart = BeatingHeart()
    scene = heart.scene.node
    drawn = scene.AddNewNodeByClass("vtkMRMLSequenceNode", "drawn")
    drawn.SetIndexName("time")
    for number in range(3):
        node = heart.scene.segmentation(heart.node, "drawn")
        drawn.SetDataNodeAtValue(node, str(40 * number))
        scene.RemoveNode(node)
    heart.browser.AddSynchronizedSequenceNode(drawn)
    heart.show(0)
    target = heart.browser.GetProxyNode(drawn)
    templates = {1: SegmentTemplate("liver")}
    writer = ResultWriter(heart.node, target, heart.scan, SupportSet(()), 0, templates)
    writer.add_slice(1, 0, heart.slice(1, 0), 0.5)
    write_all(writer)
    heart.show(1)
    writer.add_slice(1, 1, heart.slice(1, 1), 0.5)
    with pytest.raises(
        ResultUnavailable, match="shows frame 2 of 3 of drawn, and the run began in frame 1 of 3 of drawn"
    ):
        writer.write_next()
    assert [*read_painting(heart.node, heart.segmentation, heart.ids).painted] == [(0, 2)]
