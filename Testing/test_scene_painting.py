"""What is painted in segments of the MRML scene, read as it is, and the support that it makes."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrml_scene import MrmlScene, held, oriented_image
from scene_examples import (
    Bench,
    discard,
    few,
    finish,
    other_lattice,
    random_masks,
)
from SDFSMISLib.errors import InputError
from SDFSMISLib.images.planes import Plane
from SDFSMISLib.images.volume import Geometry, Volume, match_labelmap, read_labelmap
from SDFSMISLib.scene import ScanCache, SegmentNotFound, list_segments, painting_stamp, read_painting
from SDFSMISLib.scene.frame import ijk_to_ras, vtk_matrix_from_array
from SDFSMISLib.support import SupportSet
from volume_examples import geometries, plain, random_direction, seeds


@pytest.fixture(scope="module", autouse=True)
def _slicer() -> None:
    pytest.importorskip("slicer")


@pytest.fixture
def scene() -> MrmlScene:
    return MrmlScene()


@few
@given(geometries(), seeds, st.booleans(), st.sampled_from([None, 0, 1, 2]))
def test_what_is_painted_is_read_voxel_by_voxel(geometry: Geometry, seed: int, shared: bool, axis: int | None) -> None:
    rng, scene = np.random.default_rng(seed), MrmlScene()
    node = scene.volume(np.zeros(geometry.shape, np.int16), geometry)
    count = min(3, int(np.prod(geometry.shape)), *(geometry.slice_shape(axis) if axis is not None else (3,)))
    masks = random_masks(rng, geometry.shape, count, axis)
    segmentation_node = scene.segmentation(node)
    editor = scene.editor(segmentation_node, node)
    ids = [editor.segment(f"s{number}") for number in range(count)]
    for segment_id, mask in zip(ids, masks, strict=True):
        editor.paint(segment_id, mask)
        if not shared:
            segmentation_node.GetSegmentation().SeparateSegmentLabelmap(segment_id)
    painting = read_painting(node, segmentation_node, ids[::-1])
    labels = painting.labelmap()
    assert labels.geometry.displacement(geometry) <= 1e-9 and painting.notes == ()
    assert painting.names == {label: f"s{count - label}" for label in range(1, count + 1)}
    for label, mask in enumerate(masks[::-1], 1):
        assert np.array_equal(labels.voxels == label, mask)
        assert np.array_equal(held(segmentation_node, ids[-label], node), mask)
        covered = np.zeros_like(mask)
        for plane, shown in painting.painted.items():
            if label in shown:
                layer = np.moveaxis(covered, plane.axis, 0)[plane.index]
                layer |= np.moveaxis(mask, plane.axis, 0)[plane.index]
                assert np.array_equal(painting.labels_on(plane) == label, layer)
        assert np.array_equal(covered, mask), "every voxel lies on a slice that was recognised as painted"


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("slices", [None, [2, 4], [0, 2, 4]])
def test_the_support_is_that_of_the_saved_files(
    scene: MrmlScene, tmp_path: Path, separate: bool, slices: list[int] | None
) -> None:
    rng = np.random.default_rng(1)
    geometry = Geometry((6, 8, 9), (0.7, 0.7, 2.5), (4, -5, 6), random_direction(rng))
    node = scene.volume(rng.integers(-1000, 1000, geometry.shape).astype(np.int16), geometry)
    segmentation_node = scene.segmentation(node)
    editor = scene.editor(segmentation_node, node)
    ids = []
    for name, index in (("liver", 2), ("spleen", 4)):
        mask = np.zeros(geometry.shape, dtype=bool)
        mask[index, 2:6, 1:7] = rng.random((4, 6)) < 0.8
        ids.append(editor.segment(name, mask))
        if separate:
            segmentation_node.GetSegmentation().SeparateSegmentLabelmap(ids[-1])
    planes = None if slices is None else [Plane(0, index) for index in slices]
    support = read_painting(node, segmentation_node, ids).support(ScanCache().get(node), planes, planes or ())

    scan = Volume.read(scene.save(node, tmp_path / "scan.nrrd"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Slicer writes a cropped labelmap, and layers
        labelmap = read_labelmap(scene.save(segmentation_node, tmp_path / "painted.seg.nrrd"))
        expected = SupportSet.from_labelmap(scan, labelmap, None, slices)
    assert support.names == expected.names == {1: "liver", 2: "spleen"}
    assert [one.index for one in support.slices] == (slices or [2, 4])
    assert support.digest() == expected.digest()


def test_some_segments_and_some_slices_make_the_support(scene: MrmlScene) -> None:
    node = scene.scan(plain((6, 7, 8)))
    segmentation_node = scene.segmentation(node)
    editor, mask = scene.editor(segmentation_node, node), np.zeros((6, 7, 8), dtype=bool)
    mask[2:4, 2:5, 2:5] = True
    liver, other = editor.segment("liver", mask), editor.segment("other", mask[::-1])
    empty = editor.segment("empty")
    scan = ScanCache().get(node)
    support = read_painting(node, segmentation_node, [liver]).support(scan, [Plane(2, 3)])
    assert [(one.plane.axis, one.index, one.complete) for one in support.slices] == [(2, 3, False)]
    assert support.labels == (1,) and np.array_equal(support.slices[0].mask(1), mask[:, :, 3])
    with pytest.raises(InputError, match="Nothing is painted in the segment empty; paint it"):
        read_painting(node, segmentation_node, [liver, empty]).support(scan)
    with pytest.raises(InputError, match="Nothing is painted in the segment other on axial 4, coronal 6;"):
        read_painting(node, segmentation_node, [other]).support(scan, [Plane(0, 4), Plane(1, 6)])
    with pytest.raises(InputError, match="No segment was chosen"):
        read_painting(node, segmentation_node, [])
    segmentation_node.GetSegmentation().RemoveSegment(liver)
    with pytest.raises(SegmentNotFound, match="has no segment"):
        read_painting(node, segmentation_node, [liver])


def test_slices_of_any_view_are_told_apart_for_each_structure(scene: MrmlScene) -> None:
    node = scene.scan(plain((12, 14, 16)))
    segmentation_node = scene.segmentation(node)
    editor, masks = scene.editor(segmentation_node, node), np.zeros((3, 12, 14, 16), dtype=bool)
    masks[0, 5, 3:11, 2:12] = masks[0, 2:9, 3:11, 7] = True  # an axial and a sagittal slice
    masks[1, 1:4, 12, 3:9] = True  # a coronal one
    masks[2, 8:12, 1:13, 13:15] = True  # a structure painted as a whole
    ids = [editor.segment(f"s{number}", mask) for number, mask in enumerate(masks)]
    painting = read_painting(node, segmentation_node, ids)
    whole = {plane: labels for plane, labels in painting.painted.items() if labels == (3,)}
    assert {plane: one for plane, one in painting.painted.items() if plane not in whole} == {
        (0, 5): (1,),
        (1, 12): (2,),
        (2, 7): (1,),
    }
    assert len({plane.axis for plane in whole}) == 1
    assert not painting.labels_on(Plane(0, 5))[:, 7][painting.labels_on(Plane(0, 5))[:, 7] != 1].any()
    assert painting.is_only_crossed(Plane(0, 3)) and painting.is_only_crossed(Plane(2, 10))
    assert not painting.is_only_crossed(Plane(2, 14)) and not painting.is_only_crossed(Plane(0, 0))
    support = painting.support(ScanCache().get(node))
    assert [one.plane.name for one in support.slices if one.mask(1).any()] == ["axial", "sagittal"]


def test_a_painting_is_a_copy_that_any_thread_may_use(scene: MrmlScene) -> None:
    node = scene.scan(plain((6, 7, 8)))
    segmentation_node = scene.segmentation(node)
    editor, mask = scene.editor(segmentation_node, node), np.zeros((6, 7, 8), dtype=bool)
    mask[2, 2:5, 2:5] = True
    segment_id = editor.segment("liver", mask)
    painting, scan, made = read_painting(node, segmentation_node, [segment_id]), ScanCache().get(node), []
    editor.erase(segment_id, mask)
    scene.node.Clear(False)
    worker = threading.Thread(target=lambda: made.append(painting.support(scan)))
    worker.start()
    worker.join()
    assert np.array_equal(made[0].slices[0].mask(1), mask[2])


@few
@given(geometries(2), seeds, st.sampled_from(["finer", "turned", "cropped", "larger"]))
def test_another_lattice_is_resampled_as_a_file_is(geometry: Geometry, seed: int, kind: str) -> None:
    rng, scene = np.random.default_rng(seed), MrmlScene()
    node = scene.volume(np.zeros(geometry.shape, np.int16), geometry)
    other = other_lattice(geometry, kind)
    mask = rng.random(other.shape) < 0.4
    mask.flat[mask.size // 2] = True
    segmentation_node = scene.segmentation(node)
    segment_id = scene.editor(segmentation_node, node).segment("liver")
    image = oriented_image(mask, ijk_to_ras(other))
    segment = segmentation_node.GetSegmentation().GetSegment(segment_id)
    segment.AddRepresentation("Binary labelmap", image)
    segment.SetLabelValue(1)
    try:
        expected = match_labelmap(Volume(mask.astype(np.uint8), other), geometry)[0].voxels != 0
    except InputError:
        with pytest.raises(InputError, match="The segment liver does not fit the scan: "):
            read_painting(node, segmentation_node, [segment_id])
        return
    painting = read_painting(node, segmentation_node, [segment_id])
    assert np.array_equal(painting.labelmap().voxels == 1, expected)
    assert bool(painting.notes) == (kind in ("finer", "turned"))


def test_overlapping_segments_are_settled_as_in_a_file_and_said_so(scene: MrmlScene, tmp_path: Path) -> None:
    node = scene.scan(plain((6, 7, 8)))
    segmentation_node = scene.segmentation(node)
    editor, mask = scene.editor(segmentation_node, node), np.zeros((6, 7, 8), dtype=bool)
    mask[2, 2:5, 2:5] = True
    ids = [editor.segment("one", mask), editor.segment("two", np.roll(mask, 1, axis=1))]
    painting = read_painting(node, segmentation_node, ids)
    assert painting.notes == ("Segments overlap in 6 voxels; there the one on the later layer counts.",)
    with pytest.warns(UserWarning, match="later layer on top in 6 voxels"):
        labelmap = read_labelmap(scene.save(segmentation_node, tmp_path / "painted.seg.nrrd"))
    matched = match_labelmap(labelmap, painting.geometry)[0]
    for label, name in painting.names.items():
        (theirs,) = (value for value, named in matched.segment_names.items() if named == name)
        assert np.array_equal(painting.labelmap().voxels == label, matched.voxels == theirs)


def test_what_was_painted_beside_the_scan_is_refused(scene: MrmlScene) -> None:
    node, mask = scene.scan(plain((6, 7, 8))), np.ones((2, 2, 2), dtype=bool)
    segmentation_node = scene.segmentation(node)
    editor = scene.editor(segmentation_node, node)
    segment_id = editor.segment("liver")
    editor.paint(segment_id, mask, (0, 0, -1))
    with pytest.raises(InputError, match="The segment liver does not fit the scan: 4 of the mask's 8 painted voxels"):
        read_painting(node, segmentation_node, [segment_id])


def test_surfaces_are_no_painting(scene: MrmlScene) -> None:
    node, mask = scene.scan(plain((6, 7, 8))), np.zeros((6, 7, 8), dtype=bool)
    mask[2:4, 2:5, 2:5] = True
    segmentation_node = scene.segmentation(node)
    segment_id = scene.editor(segmentation_node, node).segment("liver", mask)
    segmentation_node.CreateClosedSurfaceRepresentation()
    segmentation_node.SetSourceRepresentationToClosedSurface()
    with pytest.raises(InputError, match="is made of surfaces or fractions; make the binary labelmap its source"):
        read_painting(node, segmentation_node, [segment_id])


def test_a_stamp_tells_of_all_that_changes_a_painting_and_of_nothing_else(scene: MrmlScene) -> None:
    node, mask = scene.scan(plain((6, 7, 8))), np.zeros((6, 7, 8), dtype=bool)
    mask[2, 2:5, 2:5] = True
    segmentation_node = scene.segmentation(node)
    editor = scene.editor(segmentation_node, node)
    one, other = editor.segment("one", mask), editor.segment("other")
    segmentation_node.GetSegmentation().SeparateSegmentLabelmap(other)
    transform, segment = scene.transform(np.eye(4)), segmentation_node.GetSegmentation().GetSegment(one)

    def stamp() -> object:
        return painting_stamp(node, segmentation_node, [one])

    before = stamp()
    editor.paint(other, mask)
    read_painting(node, segmentation_node, [one])
    segment.SetColor(0, 1, 0)
    node.SetName("renamed")
    assert stamp() == before and hash(stamp()) == hash(before)
    seen = {before}
    for change in (
        lambda: editor.paint(one, mask, (1, 0, 0)),
        lambda: editor.logic.Undo(),
        lambda: segment.SetName("liver"),
        lambda: node.SetSpacing(2, 2, 2),
        lambda: node.GetImageData().Modified(),
        lambda: segmentation_node.SetAndObserveTransformNodeID(transform.GetID()),
        lambda: transform.SetMatrixTransformToParent(vtk_matrix_from_array(np.diag([1, 1, 2, 1]))),
        lambda: segmentation_node.GetSegmentation().RemoveSegment(one),
    ):
        change()
        assert stamp() not in seen and stamp() == stamp()
        seen.add(stamp())
    assert stamp() != painting_stamp(node, segmentation_node, [one, other])


def test_results_are_told_from_painted_segments() -> None:
    bench = Bench()
    assert [(one.name, one.is_result) for one in list_segments(bench.segmentation)] == [
        ("liver", False),
        ("spleen", False),
        ("other", False),
    ]
    writer = bench.writer()
    bench.run(writer)
    finish(writer)
    listed = list_segments(bench.segmentation)
    assert [one.segment_id for one in listed if one.is_result] == [writer.segment_id(1), writer.segment_id(2)]
    assert listed[0] == (bench.ids[0], "liver", (0.8, 0.2, 0.1), False)
    discard(writer)
    assert not any(one.is_result for one in list_segments(bench.segmentation))
