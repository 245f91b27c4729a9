"""Results in the MRML scene are known again by scan and structure, and never taken for those of another one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mrml_scene import MrmlScene, held
from scene_examples import (
    SHAPE,
    Bench,
    accept,
    finish,
)
from SDFSMISLib.images.planes import Plane
from SDFSMISLib.images.volume import Volume
from SDFSMISLib.scene import EditingRules, ResultWriter, ScanCache, SegmentTemplate, find_results, list_segments
from SDFSMISLib.scene.scan import scan_key
from SDFSMISLib.support import SupportSet


@pytest.fixture(scope="module", autouse=True)
def _slicer() -> None:
    pytest.importorskip("slicer")


def writer_of(bench: Bench, template: SegmentTemplate) -> ResultWriter:
    """A writer of a structure of which nothing is painted on the scan; one slice has come."""
    writer = ResultWriter(bench.node, bench.segmentation, bench.scan, SupportSet(()), 0, {1: template})
    writer.add_slice(1, 0, bench.slice(1, 0), 0.5)
    return writer


def other_voxels(bench: Bench, scene: MrmlScene) -> Any:
    """A volume node on the same grid."""
    return scene.volume(np.roll(bench.scan.voxels, 3, axis=2), bench.geometry, name="T2")


def test_two_scans_on_one_grid_have_results_of_their_own() -> None:
    import slicer

    bench = Bench()
    bench.editor.erase(bench.other, bench.bystander)
    first = bench.finished()
    results, before, other = bench.found(), bench.state(), other_voxels(bench, bench.scene)
    assert results == {label: first.segment_id(label) for label in (1, 2)} and bench.found(node=other) == {}
    bench.node, bench.scan = other, ScanCache().get(other)
    bench.probabilities = {label: 255 - one for label, one in bench.probabilities.items()}
    bench.editor.node.SetOverwriteMode(slicer.vtkMRMLSegmentEditorNode.OverwriteAllSegments)
    bench.editor.node.SetMaskMode(slicer.vtkMRMLSegmentationNode.EditAllowedOutsideAllSegments)
    rules = EditingRules.of(bench.editor.node, bench.node)
    second = bench.finished(into=results, rules=rules)
    assert np.array_equal(bench.held(second), bench.expected())
    accept(second)
    after = bench.state()
    assert all(np.array_equal(after[one][1], mask) for one, (_, mask) in before.items()), "nothing is taken from others"
    assert bench.found() == {label: second.segment_id(label) for label in (1, 2)} != results
    names = [one.name for one in list_segments(bench.segmentation) if one.is_result]
    assert names == ["liver (SDFSMIS)", "spleen (SDFSMIS)", "liver (SDFSMIS, T2)", "spleen (SDFSMIS, T2)"]


def test_results_are_found_after_scan_and_segmentation_were_renamed_saved_and_loaded_elsewhere(tmp_path: Path) -> None:
    bench = Bench()
    bench.finished()
    results = bench.found()
    bench.node.SetName("Study 7")
    bench.segmentation.SetName("drawn by A")
    for segment_id in bench.ids:
        bench.segments.GetSegment(segment_id).SetName("lobe")
    assert bench.found() == results
    volume, drawn = tmp_path / "ct.nrrd", tmp_path / "drawn.seg.nrrd"
    bench.scene.save(bench.node, volume)
    bench.scene.save(bench.segmentation, drawn)
    scene = MrmlScene()
    other = other_voxels(bench, scene)  # nodes get other IDs by it
    node = scene.scan(Volume.read(volume), "loaded")
    segmentation = scene.load_segmentation(drawn)
    templates = {label: SegmentTemplate.of(segmentation, one) for label, one in enumerate(bench.ids, 1)}
    assert node.GetID() != bench.node.GetID() and templates.keys() == results.keys()
    assert find_results(node, segmentation, templates) == results
    assert find_results(other, segmentation, templates) == {}


def test_segments_of_one_id_in_two_segmentations_are_two_structures() -> None:
    bench = Bench(labels=1)
    templates = []
    for name in ("liver", "kidney"):
        drawn = bench.scene.segmentation(bench.node, name)
        drawn.GetSegmentation().AddEmptySegment("Segment_1", "Segment_1")
        templates.append(SegmentTemplate.of(drawn, "Segment_1"))
        assert SegmentTemplate.of(drawn, "Segment_1") == templates[-1] and templates[-1].is_in(drawn)
        assert not templates[-1].is_in(bench.segmentation)
    assert templates[0].source == templates[1].source and templates[0].key != templates[1].key
    found = []
    for template in templates:
        writer = writer_of(bench, template)
        finish(writer)
        found.append(find_results(bench.node, bench.segmentation, {1: template}))
        assert found[-1] == {1: writer.segment_id(1)}
    assert found[0] != found[1] and find_results(bench.node, bench.segmentation, {1: templates[0]}) == found[0]


def test_a_segment_that_got_the_id_of_a_deleted_one_does_not_get_its_result() -> None:
    bench = Bench(labels=1)
    bench.finished()
    assert bench.found() != {}
    bench.segments.RemoveSegment(bench.ids[0])
    bench.segments.AddEmptySegment(bench.ids[0], "kidney")
    assert bench.found() == {}


def test_undoing_strokes_and_a_run_keeps_what_a_segment_is_known_by() -> None:
    bench = Bench(labels=1)
    (template,) = bench.templates.values()
    bench.editor.paint(bench.ids[0], np.ones((1, 2, 2), dtype=bool), (4, 0, 0))
    bench.finished()
    results = bench.found()
    bench.editor.logic.Undo()
    assert bench.found() == {} and bench.templates == {1: template}
    bench.editor.logic.Redo()
    assert bench.found() == results
    bench.editor.logic.Undo()
    bench.editor.logic.Undo()
    assert bench.templates == {1: template}


def test_a_structure_of_a_file_is_known_by_its_name() -> None:
    one, other = (
        SegmentTemplate("liver", None, "", source) for source in ("support set: liver", "support set: 肝 | left")
    )
    assert one.key != other.key and one.key == replace(one, color=(1, 0, 0)).key
    bench = Bench(labels=1)
    assert not one.is_in(bench.segmentation)
    writer = writer_of(bench, other)
    finish(writer)
    assert find_results(bench.node, bench.segmentation, {1: one, 5: other}) == {5: writer.segment_id(1)}


def test_a_large_painting_is_recorded_and_known_after_saving_and_loading(tmp_path: Path) -> None:
    bench = Bench(labels=1)
    noise = np.random.default_rng(0).random(SHAPE) < 0.5  # as many characters as there can be
    bench.editor.paint(bench.ids[0], noise)
    support = bench.painting().support(bench.scan, [Plane(0, 2)])
    result = bench.finished(support=support).segment_id(1)
    bench.editor.erase(result, np.ones((1, 4, 4), dtype=bool), (2, 0, 0))
    loaded = bench.scene.load_segmentation(bench.scene.save(bench.segmentation, tmp_path / "drawn.seg.nrrd"))
    assert np.array_equal(held(loaded, bench.ids[0], bench.node), noise | bench.painted[0])
    assert bench.found(loaded) == {1: result}
    bench.segmentation = loaded
    assert bench.corrected({1: result}).corrections.keys() == {(0, 2)}


def test_a_scan_is_known_by_its_voxels_whatever_its_name_place_and_type() -> None:
    scene, rng = MrmlScene(), np.random.default_rng(0)
    bench = Bench()
    voxels = rng.integers(0, 2000, (60, 70, 80)).astype(np.int16)
    geometry = replace(bench.geometry, shape=voxels.shape)
    key = scan_key(scene.volume(voxels, geometry))
    same = [scene.volume(voxels.astype(dtype), geometry, name=str(dtype)) for dtype in (np.int32, np.float64)]
    same.append(scene.volume(voxels, replace(geometry, origin=(1.0, 2.0, 3.0))))
    same.append(scene.volume(np.stack([voxels, voxels + 1, voxels], axis=3), geometry, "Vector"))
    assert {scan_key(node) for node in same} == {key} and ScanCache().get(same[0]).key == key
    changed = voxels.copy()
    changed[30, 30:34, 30:34] += 1
    others = [changed, voxels[::-1], np.roll(voxels, 1, axis=2), voxels.reshape(80, 70, 60)[:, :, :-1]]
    keys = {scan_key(scene.volume(one, replace(geometry, shape=one.shape))) for one in others}
    assert len(keys) == len(others) and key not in keys
