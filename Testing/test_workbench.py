"""The workbench: from a painted slice to segments in the scene, on real nodes and with a real backend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("slicer")
pytest.importorskip("PySide6.QtWidgets", exc_type=ImportError)
pytest.importorskip("fastapi")

from slicer_standin import install

install()

from panel_examples import PaintedScene, dice, differ, only  # noqa: E402
from SDFSMISLib.workbench.views import QueryMode, RunRequest  # noqa: E402
from serving import Backend  # noqa: E402
from small_scans import ball_scan  # noqa: E402

pytest_plugins = ["workbench_fixtures"]


def test_a_ball_painted_on_one_slice_is_found_on_all(panel: PaintedScene) -> None:
    panel.run()
    assert not panel.last_run.failed, panel.last_run.text
    result = only(panel.results())
    assert differ(panel.held(result), panel.answer()) == 0
    assert (
        differ(panel.held(panel.segment)[6], panel.truth[6]) == 0
        and panel.held(panel.segment).sum() == panel.truth[6].sum()
    )


def test_the_result_takes_over_name_and_colour(panel: PaintedScene) -> None:
    panel.segmentation.GetSegmentation().GetSegment(panel.segment).SetColor(0.2, 0.4, 0.6)
    panel.run()
    result = panel.segmentation.GetSegmentation().GetSegment(only(panel.results()))
    assert result.GetName() == "ball (SDFSMIS)" and result.GetColor() == (0.2, 0.4, 0.6)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_may_be_painted_in_any_direction(backend: Backend, axis: int) -> None:
    painted = (6, 16, 22)[axis]
    panel = PaintedScene(backend.url, axis=axis, painted=(painted,))
    panel.run()
    assert differ(panel.held(only(panel.results())), panel.answer()) == 0
    panel.workbench.close()


def test_undo_takes_the_whole_run_back(panel: PaintedScene) -> None:
    before = panel.held(panel.segment)
    panel.run()
    panel.undo()
    assert not panel.results() and differ(panel.held(panel.segment), before) == 0


def test_only_a_range_is_segmented(panel: PaintedScene) -> None:
    panel.run(RunRequest(QueryMode.RANGE, 7, 8))
    found = panel.held(only(panel.results())).any(axis=(1, 2))
    assert np.flatnonzero(found).tolist() == [6, 7, 8]


def test_outwards_counts_from_the_slice_that_is_shown(panel: PaintedScene) -> None:
    panel.workbench.step()
    panel.workbench.support.show(panel.entries[0].key)
    panel.run(RunRequest(QueryMode.OUTWARDS, reach=1))
    found = panel.held(only(panel.results())).any(axis=(1, 2))
    assert np.flatnonzero(found).tolist() == [5, 6, 7]


def test_another_scan_gets_a_segmentation_of_its_own(panel: PaintedScene) -> None:
    other, labelmap = ball_scan(shape=(10, 44, 36))
    volume = panel.scene.scan(other, "MR")
    panel.run(RunRequest(others=(volume,)))
    nodes = panel.scene.node.GetNodesByClass("vtkMRMLSegmentationNode")
    names = {nodes.GetItemAsObject(k).GetName(): nodes.GetItemAsObject(k) for k in range(nodes.GetNumberOfItems())}
    found = names["MR (SDFSMIS)"]
    result = only(panel.results(found))
    assert dice(panel.held(result, found, volume), labelmap.voxels.astype(bool)) > 0.95
    assert panel.workbench.review.view.scans == ("CT", "MR")
    panel.run(RunRequest(QueryMode.NONE, others=(volume,)))
    assert list(panel.results(found).values()) == [result], "a second run goes on in the same segment"


def test_several_segments_are_found_in_one_run(panel: PaintedScene) -> None:
    second = panel.editor.segment("half")
    upper = np.zeros_like(panel.truth)
    upper[6, :10] = panel.truth[6, :10]
    panel.editor.erase(panel.segment, upper)
    panel.editor.paint(second, upper)
    panel.run()
    assert not panel.last_run.failed, panel.last_run.text
    assert set(panel.results()) == {"ball (SDFSMIS)", "half (SDFSMIS)"}
    found = [panel.held(one) for one in panel.results().values()]
    assert not (found[0] & found[1]).any() and dice(found[0] | found[1], panel.truth) > 0.95


def test_a_segment_that_is_not_painted_takes_no_part(panel: PaintedScene) -> None:
    panel.editor.segment("spleen")
    panel.workbench.step()
    assert panel.workbench.run.why_not(RunRequest()) == ""
    assert [(one.name, one.slices) for one in panel.workbench.support.view.segments] == [("ball", 1), ("spleen", 0)]
    panel.run()
    assert list(panel.results()) == ["ball (SDFSMIS)"]


def test_where_each_structure_was_found_is_told(panel: PaintedScene) -> None:
    panel.run()
    found = np.flatnonzero(panel.answer().any(axis=(1, 2)))
    assert f"Found: ball on axial slices {found[0]} to {found[-1]}." in panel.last_run.notes


def test_what_is_wrong_during_a_run_is_told_beside_it(panel: PaintedScene, tmp_path: Path) -> None:
    (tmp_path / "letter.safetensors").write_text("Dear colleague")
    panel.start()
    panel.workbench.support.load(tmp_path / "letter.safetensors")
    panel.drive(lambda: not panel.last_run.running)
    assert not panel.last_run.failed and any("letter.safetensors" in note for note in panel.last_run.notes)
