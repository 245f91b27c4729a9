"""Where results may be written in the MRML scene and what they overwrite, as the segment editor has it set."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mrml_scene import held, oriented_image
from scene_examples import (
    SHAPE,
    Bench,
    accept,
    finish,
    other_lattice,
    same_state,
    write_all,
)
from SDFSMISLib.errors import InputError
from SDFSMISLib.scene import EditingRules, ResultUnavailable
from SDFSMISLib.scene.frame import ijk_to_ras


@pytest.fixture(scope="module", autouse=True)
def _slicer() -> None:
    pytest.importorskip("slicer")


MODES = ("Everywhere", "InsideAllSegments", "InsideVisibleSegments", "OutsideAllSegments", "OutsideVisibleSegments")


@pytest.mark.parametrize("mode", [*MODES, "InsideSingleSegment"])
@pytest.mark.parametrize("intensities", [None, (200, 700)])
def test_the_editable_area_is_that_of_the_segment_editor(mode: str, intensities: tuple[int, int] | None) -> None:
    import slicer

    bench = Bench(labels=1, seed=6)
    hidden = bench.editor.segment("hidden", np.random.default_rng(7).random(SHAPE) < 0.2)
    bench.segmentation.GetDisplayNode().SetSegmentVisibility(hidden, False)
    editor = bench.editor.node
    editor.SetMaskMode(getattr(slicer.vtkMRMLSegmentationNode, f"EditAllowed{mode}"))
    editor.SetMaskSegmentID(bench.other)
    if intensities is not None:
        editor.SourceVolumeIntensityMaskOn()
        editor.SetSourceVolumeIntensityMaskRange(*intensities)
    rules = EditingRules.of(editor, bench.node)

    stroke = bench.expected() == 1
    stroke[2] = False
    theirs = bench.editor.segment("painted in the editor")
    bench.editor.paint(theirs, stroke)  # Slicer's own way, with a mask of the whole volume
    allowed = held(bench.segmentation, theirs, bench.node)
    bench.segments.RemoveSegment(theirs)
    writer = bench.writer(rules=rules)
    bench.run(writer)
    finish(writer)
    expected = allowed | bench.painted[0]
    drawn = bench.held(writer) == 1
    assert (mode == "Everywhere" and intensities is None) == np.array_equal(allowed, stroke)
    assert np.array_equal(drawn[2], bench.painted[0][2]), "what was painted is not asked"
    assert np.array_equal(drawn, expected)
    for threshold in (0.4, 0.9, 0.5):
        writer.set_threshold(threshold)
        write_all(writer)
        drawn = bench.held(writer) == 1
        probable = bench.expected(threshold) == 1
        assert np.array_equal(drawn & stroke, probable & expected & stroke), threshold
    assert np.array_equal(drawn, expected)


@pytest.mark.parametrize("mode", ["None", "VisibleSegments", "AllSegments"])
@pytest.mark.parametrize("shared", [False, True])
def test_other_segments_give_way_on_acceptance_as_in_the_segment_editor(mode: str, shared: bool) -> None:
    import slicer

    bench = Bench(seed=8)
    hidden = bench.editor.segment("hidden", np.random.default_rng(7).random(SHAPE) < 0.2)
    bench.segmentation.GetDisplayNode().SetSegmentVisibility(hidden, False)
    if shared:
        bench.segments.CollapseBinaryLabelmaps(False)
    bench.editor.node.SetOverwriteMode(getattr(slicer.vtkMRMLSegmentEditorNode, f"Overwrite{mode}"))
    before, writer = bench.state(), bench.writer(rules=EditingRules.of(bench.editor.node, bench.node))
    bench.run(writer)
    finish(writer)
    after = bench.state()
    assert same_state(before, {one: after[one] for one in before})
    accept(writer)
    results = bench.held(writer)
    assert np.array_equal(results, bench.expected())
    for segment_id, (_, mask) in before.items():
        gives_way = {"None": (), "VisibleSegments": (bench.other,), "AllSegments": (bench.other, hidden)}[mode]
        expected = mask & (results == 0) if segment_id in gives_way else mask
        assert np.array_equal(held(bench.segmentation, segment_id, bench.node), expected)
    bench.editor.logic.Undo()
    assert same_state(bench.state(), before)
    with pytest.raises(ResultUnavailable, match="accepted or discarded"):
        write_all(writer)


def test_a_segment_that_reaches_beyond_the_scan_is_no_obstacle() -> None:
    import slicer

    bench = Bench(labels=1)
    grid = bench.geometry
    origin = tuple((grid.index_to_physical() @ [-3, -3, -3, 1])[:3])
    wide, finer = replace(grid, shape=(15, 16, 17), origin=origin), other_lattice(grid, "finer")
    for name, geometry in (("body", wide), ("skin", finer)):
        mask = np.ones(geometry.shape, dtype=bool)
        mask[:, :, : mask.shape[2] // 2] = False
        segment = bench.segments.GetSegment(bench.editor.segment(name))
        segment.AddRepresentation("Binary labelmap", oriented_image(mask, ijk_to_ras(geometry)))
        segment.SetLabelValue(1)
    bench.editor.node.SetOverwriteMode(slicer.vtkMRMLSegmentEditorNode.OverwriteAllSegments)
    bench.editor.node.SetMaskMode(slicer.vtkMRMLSegmentationNode.EditAllowedInsideAllSegments)
    writer = bench.writer(rules=EditingRules.of(bench.editor.node, bench.node))
    bench.run(writer)
    finish(writer)
    inside = bench.bystander.copy()
    inside[:, :, 5:] = True  # the skin from column 5.5 - 0.5 of 11, the body from 8 - 3
    assert np.array_equal(
        bench.held(writer) == 1, (bench.expected() == 1) & (inside | bench.painted[0].any((1, 2))[:, None, None])
    )
    accept(writer)
    state = {name: mask for name, mask in bench.state().values()}
    assert not (state["liver (SDFSMIS)"] & (state["body"] | state["other"])).any()


def test_an_intensity_range_of_another_volume_is_refused() -> None:
    bench = Bench()
    bench.editor.node.SourceVolumeIntensityMaskOn()
    with pytest.raises(InputError, match="is that of another volume than the scan CT 2; choose this one"):
        EditingRules.of(bench.editor.node, bench.scene.volume(np.zeros(SHAPE, np.int16), bench.geometry, name="CT 2"))
