"""The MRML scene: painted slices out of it and results into it, on real nodes, without 3D Slicer's application."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from mrml_scene import MrmlScene, held, oriented_image
from volume_examples import IDENTITY, geometries, plain, random_direction, seeds, volumes

from SDFSMISLib.errors import InputError
from SDFSMISLib.inference.collecting import Collection
from SDFSMISLib.inference.postprocess import Postprocessing
from SDFSMISLib.scene import (
    EditingRules,
    ObliqueView,
    Painting,
    ResultLost,
    ResultWriter,
    Scans,
    SegmentGone,
    SegmentLook,
    find_result,
    fits,
    make_parallel,
    make_segmentation,
    read_painting,
    show_slice,
    shown_slice,
    with_corrections,
)
from SDFSMISLib.scene.frame import ijk_to_ras, volume_geometry
from SDFSMISLib.scene.piece import Piece, box_around
from SDFSMISLib.scene.slice_record import SliceRecord, slice_digests
from SDFSMISLib.stack import SliceStack
from SDFSMISLib.support import SupportSet
from SDFSMISLib.volume import Geometry, Volume, match_labelmap, read_labelmap

ROOT = Path(__file__).resolve().parent.parent
few = settings(deadline=None, max_examples=30)

Index = tuple[int, int, int]


@pytest.fixture(scope="module", autouse=True)
def _slicer() -> None:
    pytest.importorskip("slicer")


@pytest.fixture
def scene() -> MrmlScene:
    return MrmlScene()


def rigid(rng: np.random.Generator) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(random_direction(rng), (3, 3))
    matrix[:3, 3] = rng.uniform(-50, 50, 3)
    return matrix


def random_masks(rng: np.random.Generator, shape: Index, count: int, axis: int | None = None) -> list[np.ndarray]:
    """Bool masks that do not overlap and are not empty; painted on one slice along an axis if one is given."""
    labels = rng.integers(0, count + 1, shape)
    labels.flat[rng.permutation(labels.size)[:count]] = np.arange(1, count + 1)
    if axis is not None:
        along = np.moveaxis(labels, axis, 0)
        index = int(rng.integers(len(along)))
        along[index].flat[:count] = np.arange(1, count + 1)
        along[np.arange(len(along)) != index] = 0
    return [labels == label for label in range(1, count + 1)]


def grown(mask: np.ndarray) -> np.ndarray:
    return np.where(mask, np.uint8(255), np.uint8(0))


# -- scans -------------------------------------------------------------------------------------------------------------


@few
@given(volumes())
def test_a_volume_node_is_its_volume(volume: Volume) -> None:
    scan = Scans().of(MrmlScene().scan(volume, "CT"))
    assert scan.voxels.dtype == volume.voxels.dtype and np.array_equal(scan.voxels, volume.voxels)
    assert scan.geometry.same_grid(volume.geometry, 1e-9) and scan.name == "CT" and scan.notes == ()
    assert scan.window() == volume.window() and scan.window("minmax") == volume.window("minmax")
    for axis in range(3):
        assert scan.geometry.plane(axis) == volume.geometry.plane(axis)
        assert scan.geometry.slice_orientation(axis) == volume.geometry.slice_orientation(axis)


@pytest.mark.parametrize("direction", [IDENTITY, (0, -1, 0, 0, 0, 1, 1, 0, 0), (0.6, 0.8, 0, -0.8, 0.6, 0, 0, 0, -1)])
def test_a_saved_volume_is_the_same_scan(scene: MrmlScene, tmp_path: Path, direction: tuple[float, ...]) -> None:
    """The same content hash, so that a support set of the file lies on the volume in the scene, and the other way."""
    volume = plain((4, 5, 6))
    volume = replace(volume, geometry=replace(volume.geometry, spacing=(0.78125, 0.78125, 2.5), direction=direction))
    node = scene.scan(volume)
    read = Volume.read(scene.save(node, tmp_path / "scan.nrrd"))
    assert read.content_hash() == Scans().of(node).content_hash()


def test_a_scan_is_copied_once_for_as_long_as_it_does_not_change(scene: MrmlScene) -> None:
    from vtkmodules.util.numpy_support import vtk_to_numpy

    node, scans = scene.scan(plain()), Scans()
    first = scans.of(node)
    node.SetName("renamed")
    assert scans.of(node) is first and first.content_hash() is first.content_hash() and first.window() is first.window()
    voxels = vtk_to_numpy(node.GetImageData().GetPointData().GetScalars())
    voxels[0] = 77
    node.GetImageData().Modified()
    second = scans.of(node)
    assert second is not first and first.voxels[0, 0, 0] == 0 and second.voxels[0, 0, 0] == 77
    node.SetSpacing(3, 3, 3)
    third = scans.of(node)
    assert third is not second and third.geometry.spacing == (3, 3, 3)
    scans.forget()
    assert scans.of(node) is not third


def test_another_volume_under_an_old_id_is_another_scan(scene: MrmlScene) -> None:
    scans = Scans()
    first = scans.of(scene.scan(plain()))
    scene.node.Clear(False)
    node = scene.scan(replace(plain(), voxels=plain().voxels + np.int16(1)))
    assert scans.of(node) is not first and scans.of(node).voxels[0, 0, 0] == 1


def test_copying_goes_in_steps_and_begins_anew_after_a_change(
    scene: MrmlScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("SDFSMISLib.scene.scan.STEP_BYTES", plain().voxels[0].nbytes)
    node, scans = scene.scan(plain()), Scans()
    steps = scans.copying(node)
    assert [next(steps), next(steps)] == [0.25, 0.5]
    node.SetOrigin(1, 2, 3)
    assert list(steps)[-4:] == [0.25, 0.5, 0.75, 1.0]
    assert list(scans.copying(node)) == [] and np.array_equal(scans.of(node).voxels, plain().voxels)


def test_of_several_values_per_voxel_the_first_is_taken_and_said_so(scene: MrmlScene) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    scan = Scans().of(scene.volume(colours, plain().geometry, "Vector"))
    assert np.array_equal(scan.voxels, colours[..., 0]) and "3 values per voxel" in scan.notes[0]


def test_what_is_not_finite_is_replaced_as_in_a_file(scene: MrmlScene, tmp_path: Path) -> None:
    voxels = plain().voxels.astype(np.float64)
    voxels[0, 0, :4] = np.nan, np.inf, -np.inf, 1e300
    node = scene.volume(voxels, plain().geometry)
    scan = Scans().of(node)
    with pytest.warns(UserWarning, match="4 voxels of NaN or infinity"):
        read = Volume.read(scene.save(node, tmp_path / "scan.nrrd"))
    assert scan.voxels.dtype == np.float32 and np.array_equal(scan.voxels, read.voxels)
    assert "4 voxels of NaN or infinity" in scan.notes[0] and scan.content_hash() == read.content_hash()


def test_a_negative_spacing_turns_its_axis_round(scene: MrmlScene) -> None:
    node = scene.scan(plain())
    node.SetSpacing(-1.5, 2, 3)
    geometry = volume_geometry(node)
    assert geometry.spacing == (1.5, 2, 3) and geometry.direction == (-1, 0, 0, 0, 1, 0, 0, 0, 1)


def test_volumes_that_are_none_are_refused_in_words(scene: MrmlScene) -> None:
    with pytest.raises(InputError, match="The volume MR 1 holds no image"):
        Scans().of(scene.node.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "MR 1"))
    sheared = scene.scan(plain())
    sheared.SetIJKToRASDirections(1, 0.5, 0, 0, 1, 0, 0, 0, 1)
    with pytest.raises(InputError, match="not three axes at right angles"):
        Scans().of(sheared)


# -- painting ----------------------------------------------------------------------------------------------------------


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
    assert labels.geometry.same_grid(geometry, 1e-9) and painting.notes == ()
    assert painting.names == {label: f"s{count - label}" for label in range(1, count + 1)}
    for label, mask in enumerate(masks[::-1], 1):
        assert np.array_equal(labels.voxels == label, mask)
        assert np.array_equal(held(segmentation_node, ids[-label], node), mask)
        for along in range(3):
            planes = np.flatnonzero(np.moveaxis(mask, along, 0).any(axis=(1, 2))).tolist()
            assert list(painting.slices(along, label)) == planes
    union = Volume(np.sum(masks, axis=0).astype(np.uint8), geometry)
    scan = Volume(np.zeros(geometry.shape, np.int16), geometry)
    assert painting.axis == SupportSet.from_labelmap(scan, union, None).slices[0].axis


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
    support = read_painting(node, segmentation_node, ids).support(Scans().of(node), slices)

    scan = Volume.read(scene.save(node, tmp_path / "scan.nrrd"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Slicer writes a cropped labelmap, and layers
        labelmap = read_labelmap(scene.save(segmentation_node, tmp_path / "painted.seg.nrrd"))
        expected = SupportSet.from_labelmap(scan, labelmap, None, slices)
    assert support.names == expected.names == {1: "liver", 2: "spleen"}
    assert [piece.index for piece in support.slices] == (slices or [2, 4])
    assert support.digest() == expected.digest()


def test_some_segments_and_some_slices_make_the_support(scene: MrmlScene) -> None:
    node = scene.scan(plain((6, 7, 8)))
    segmentation_node = scene.segmentation(node)
    editor, mask = scene.editor(segmentation_node, node), np.zeros((6, 7, 8), dtype=bool)
    mask[2:4, 2:5, 2:5] = True
    liver, other = editor.segment("liver", mask), editor.segment("other", mask[::-1])
    empty = editor.segment("empty")
    scan = Scans().of(node)
    support = read_painting(node, segmentation_node, [liver]).support(scan, [3], axis=2)
    assert [(piece.axis, piece.index, piece.complete) for piece in support.slices] == [(2, 3, True)]
    assert support.labels == (1,) and np.array_equal(support.slices[0].mask(1), mask[:, :, 3])
    with pytest.raises(InputError, match="Nothing is painted in the segment empty; paint it"):
        read_painting(node, segmentation_node, [liver, empty]).support(scan)
    with pytest.raises(InputError, match="Nothing is painted in the segment other on slice 4, 5"):
        read_painting(node, segmentation_node, [other]).support(scan, [4, 5], axis=0)
    with pytest.raises(InputError, match="No segment was chosen"):
        read_painting(node, segmentation_node, [])
    segmentation_node.GetSegmentation().RemoveSegment(liver)
    with pytest.raises(SegmentGone, match="has no segment"):
        read_painting(node, segmentation_node, [liver])


def test_a_painting_is_a_copy_that_any_thread_may_use(scene: MrmlScene) -> None:
    node = scene.scan(plain((6, 7, 8)))
    segmentation_node = scene.segmentation(node)
    editor, mask = scene.editor(segmentation_node, node), np.zeros((6, 7, 8), dtype=bool)
    mask[2, 2:5, 2:5] = True
    segment_id = editor.segment("liver", mask)
    painting, scan, made = read_painting(node, segmentation_node, [segment_id]), Scans().of(node), []
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


def other_lattice(geometry: Geometry, kind: str) -> Geometry:
    """A grid that holds other voxels of the same place: half the size, its axes in another order, a part, or more."""
    axes = np.reshape(geometry.direction, (3, 3))
    if kind == "turned":
        (i, j, k), (slices, height, width) = geometry.spacing, geometry.shape
        direction = tuple(axes[:, [2, 0, 1]].ravel())
        return Geometry((height, width, slices), (k, i, j), geometry.origin, direction)
    if kind == "finer":
        spacing = np.array(geometry.spacing) / 2
        origin = np.array(geometry.origin) - axes @ (spacing / 2)
        return Geometry(tuple(2 * side for side in geometry.shape), tuple(spacing), tuple(origin), geometry.direction)
    first, shape = (1, tuple(side - 1 for side in geometry.shape)) if kind == "cropped" else (-1, geometry.shape)
    origin = (geometry.index_to_physical() @ [first, first, first, 1])[:3]
    return replace(geometry, shape=shape, origin=tuple(origin))


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


# -- transforms --------------------------------------------------------------------------------------------------------


@few
@given(geometries(), seeds, st.sampled_from(["both", "volume", "scaled", "segmentation", "two", "warped"]))
def test_painting_and_results_follow_transforms(geometry: Geometry, seed: int, under: str) -> None:
    """What counts is where a view shows the segment on the volume; results come to lie on the volume's voxels."""
    rng, scene = np.random.default_rng(seed), MrmlScene()
    node = scene.volume(np.zeros(geometry.shape, np.int16), geometry)
    if under == "warped":
        above, inner = scene.warp(), scene.transform(rigid(rng))
        inner.SetAndObserveTransformNodeID(above.GetID())
        node.SetAndObserveTransformNodeID(inner.GetID())
    elif under != "segmentation":
        scale = np.diag([1.1, 0.8, 1.3, 1]) if under == "scaled" else np.eye(4)  # of an oblique volume: it is sheared
        node.SetAndObserveTransformNodeID(scene.transform(scale @ rigid(rng)).GetID())
    segmentation_node = scene.node.AddNewNodeByClass("vtkMRMLSegmentationNode")
    segmentation_node.CreateDefaultDisplayNodes()
    if under == "warped":
        segmentation_node.SetAndObserveTransformNodeID(above.GetID())
    elif under in ("segmentation", "two"):
        segmentation_node.SetAndObserveTransformNodeID(scene.transform(rigid(rng)).GetID())
    elif under == "both":
        segmentation_node.SetAndObserveTransformNodeID(node.GetTransformNodeID())
    segmentation_node.SetReferenceImageGeometryParameterFromVolumeNode(node)
    (mask,) = random_masks(rng, geometry.shape, 1, axis=0)
    segment_id = scene.editor(segmentation_node, node).segment("liver", mask)
    painting = read_painting(node, segmentation_node, [segment_id])
    assert np.array_equal(painting.labelmap().voxels == 1, mask) and painting.notes == ()
    assert painting.geometry.same_grid(geometry, 1e-9) and fits(node, segmentation_node)

    scan = Scans().of(node)
    writer = ResultWriter(node, segmentation_node, scan, painting.support(scan, axis=0), 0, {1: SegmentLook("liver")})
    wanted = mask.copy()
    for index in np.flatnonzero(~mask.any(axis=(1, 2))):
        wanted[index] = rng.random(mask.shape[1:]) < 0.5
        writer.take(1, int(index), grown(wanted[index]), 1.0)
    writer.finish()
    result = writer.segment_id(1)
    assert result is not None
    assert np.array_equal(read_painting(node, segmentation_node, [result]).labelmap().voxels == 1, wanted)
    if under != "warped":  # Slicer resamples under a warp
        assert np.array_equal(held(segmentation_node, result, node), wanted)


def test_a_warp_between_volume_and_segmentation_is_refused(scene: MrmlScene) -> None:
    node = scene.scan(plain())
    segmentation_node = scene.segmentation(node)
    segment_id = scene.editor(segmentation_node, node).segment("liver", plain().voxels > 100)
    node.SetAndObserveTransformNodeID(scene.warp().GetID())
    with pytest.raises(InputError, match="not linear lies between the scan scan and the segmentation Segmentation"):
        read_painting(node, segmentation_node, [segment_id])
    with pytest.raises(InputError, match="not linear, so no view shows one of its slices"):
        shown_slice(scene.view(), node)
    assert not fits(node, segmentation_node)


def test_a_segmentation_fits_the_volume_whose_voxels_it_has(scene: MrmlScene) -> None:
    one = scene.scan(plain((6, 7, 8)))
    finer = scene.volume(np.zeros((12, 14, 16), np.int16), other_lattice(plain((6, 7, 8)).geometry, "finer"))
    cropped = scene.volume(np.zeros((5, 6, 7), np.int16), other_lattice(plain((6, 7, 8)).geometry, "cropped"))
    segmentation_node = scene.segmentation(one)
    assert fits(one, segmentation_node) and fits(cropped, segmentation_node) and not fits(finer, segmentation_node)
    scene.editor(segmentation_node, one).segment("liver", plain((6, 7, 8)).voxels > 100)
    assert fits(one, segmentation_node) and not fits(finer, segmentation_node)
    empty = scene.node.AddNewNodeByClass("vtkMRMLSegmentationNode")
    empty.CreateDefaultDisplayNodes()
    assert fits(finer, empty)
    scene.editor(empty, one).segment("liver", plain((6, 7, 8)).voxels > 100)
    empty.GetSegmentation().SetConversionParameter("Reference image geometry", "")
    assert fits(one, empty) and not fits(finer, empty)
    finer.SetAndObserveTransformNodeID(scene.transform(rigid(np.random.default_rng(0))).GetID())
    made = make_segmentation(finer, "CT 2 segmentation")
    assert made.GetName() == "CT 2 segmentation" and made.GetTransformNodeID() == finer.GetTransformNodeID()
    assert fits(finer, made) and made.GetDisplayNode() is not None


# -- slice views -------------------------------------------------------------------------------------------------------


@few
@given(geometries(), seeds, st.booleans())
def test_a_view_shows_the_slice_that_it_was_moved_to(geometry: Geometry, seed: int, moved: bool) -> None:
    rng, scene = np.random.default_rng(seed), MrmlScene()
    node = scene.volume(np.zeros(geometry.shape, np.int16), geometry)
    if moved:
        node.SetAndObserveTransformNodeID(scene.transform(rigid(rng)).GetID())
    seen = set()
    for orientation in ("Axial", "Coronal", "Sagittal"):
        view = scene.view(orientation)
        view.SetOrientation(orientation)
        make_parallel(view, node)
        axis = shown_slice(view, node).axis
        seen.add(axis)
        for index in {0, geometry.shape[axis] // 2, geometry.shape[axis] - 1}:
            assert show_slice(view, node, axis, index)
            shown = shown_slice(view, node)
            assert (shown.axis, shown.index, shown.plane) == (axis, index, geometry.plane(axis))
            assert not show_slice(view, node, (axis + 1) % 3, 0)
            spacing = geometry.axis_spacing(axis)
            offset = view.GetSliceOffset()
            for share in (-0.45, 0.45):
                view.SetSliceOffset(offset + share * spacing)
                assert shown_slice(view, node).index == index
            view.SetSliceOffset(offset)
    assert min(geometry.shape) == 1 or len(seen) == 3


def test_an_oblique_view_is_refused_and_can_be_made_parallel(scene: MrmlScene) -> None:
    for degrees, oblique in ((5, False), (12, True), (40, True)):
        turn = np.radians(degrees)
        direction = (1, 0, 0, 0, np.cos(turn), -np.sin(turn), 0, np.sin(turn), np.cos(turn))
        node = scene.volume(np.zeros((9, 9, 9), np.int16), Geometry((9, 9, 9), (1, 1, 1), (-4, -4, -4), direction))
        view = scene.view(f"view {degrees}")
        if oblique:
            with pytest.raises(ObliqueView, match=f"turned by {degrees} degrees; turn it parallel"):
                shown_slice(view, node)
            assert not show_slice(view, node, 0, 3)
        make_parallel(view, node)
        assert shown_slice(view, node).axis == 0 and show_slice(view, node, 0, 3) and shown_slice(view, node).index == 3


def test_a_view_beside_the_volume_is_refused_and_brought_back(scene: MrmlScene) -> None:
    node, view = scene.scan(plain()), scene.view()
    view.SetSliceOffset(500)
    with pytest.raises(InputError, match="shows no slice of the scan scan; move it into the scan"):
        shown_slice(view, node)
    make_parallel(view, node)
    assert shown_slice(view, node).index == 3


# -- results -----------------------------------------------------------------------------------------------------------

SHAPE = (9, 10, 11)


class Bench:
    """A scan with the segments "liver" and "spleen", each painted on one slice along an axis, and a bystander."""

    def __init__(self, geometry: Geometry | None = None, axis: int = 0, seed: int = 0, labels: int = 2) -> None:
        rng = np.random.default_rng(seed)
        self.axis, self.scene = axis, MrmlScene()
        self.geometry = geometry or Geometry(SHAPE, (0.8, 0.9, 2.0), (-10, 20, 30), random_direction(rng))
        self.node = self.scene.volume(rng.integers(0, 1000, self.geometry.shape).astype(np.int16), self.geometry)
        self.segmentation = self.scene.segmentation(self.node)
        self.editor = self.scene.editor(self.segmentation, self.node)
        self.painted = [rng.random(self.geometry.shape) < 0.3 for _ in range(labels)]
        for number, mask in enumerate(self.painted):
            along = np.moveaxis(mask, axis, 0)
            index = (2 + 3 * number) % len(along)
            along[np.arange(len(along)) != index] = False
            along[index].flat[number] = True
            mask &= ~np.any([np.zeros_like(mask), *self.painted[:number]], axis=0)
        names, colors = ("liver", "spleen"), ((0.8, 0.2, 0.1), (0.2, 0.3, 0.9))
        self.ids = [self.editor.segment(*one) for one in zip(names, self.painted, colors, strict=False)]
        self.bystander = rng.random(self.geometry.shape) < 0.3
        self.other = self.editor.segment("other", self.bystander)
        self.scan = Scans().of(self.node)
        self.probabilities = {
            label: rng.integers(0, 256, self.geometry.shape, dtype=np.uint8) for label in range(1, labels + 1)
        }

    @property
    def segments(self) -> Any:
        return self.segmentation.GetSegmentation()

    def painting(self) -> Painting:
        return read_painting(self.node, self.segmentation, self.ids)

    def support(self) -> SupportSet:
        return self.painting().support(self.scan, axis=self.axis)

    def writer(self, **options: Any) -> ResultWriter:
        looks = {label: SegmentLook.of(self.segmentation, one) for label, one in enumerate(self.ids, 1)}
        support = options.pop("support", None) or self.support()
        options.setdefault("save_undo", self.editor.logic.SaveStateForUndo)
        return ResultWriter(self.node, self.segmentation, self.scan, support, self.axis, looks, **options)

    def slice(self, label: int, index: int) -> np.ndarray:
        return np.moveaxis(self.probabilities[label], self.axis, 0)[index]

    def run(self, writer: ResultWriter, seed: int = 0, support: SupportSet | None = None) -> None:
        """Hands out the slices in any order, those that are not painted, some written in between."""
        rng, support = np.random.default_rng(seed), support or self.support()
        records = [
            (label, index)
            for label in self.probabilities
            for index in range(self.geometry.shape[self.axis])
            if index not in {piece.index for piece in support.for_label(label)}
        ]
        for label, index in rng.permutation(records).tolist():
            writer.take(label, index, self.slice(label, index), (label * 100 + index) / 1000)
            if rng.random() < 0.2:
                writer.write_next(int(rng.integers(20)))

    def expected(
        self, threshold: float = 0.5, cleaning: Postprocessing | None = None, support: SupportSet | None = None
    ) -> np.ndarray:
        """The labelmap that the command line gives for the same run."""
        support = support or self.support()
        stack = SliceStack.of(self.scan, self.axis)
        pieces = {label: support.for_label(label) for label in self.probabilities}
        collected = Collection(self.scan, stack, pieces, support.names)
        for label in self.probabilities:
            for index in set(range(stack.count)) - {piece.index for piece in pieces[label]}:
                collected.take(label, index, self.slice(label, index), 1.0)
        return collected.segmentation(threshold, cleaning).labelmap.voxels

    def held(self, writer: ResultWriter) -> np.ndarray:
        """The labelmap of the results in the scene."""
        labels = np.zeros(self.geometry.shape, dtype=np.uint16)
        for label in self.probabilities:
            result = writer.segment_id(label)
            if result is not None:
                mask = held(self.segmentation, result, self.node)
                assert not labels[mask].any()
                labels[mask] = label
        return labels

    def held_masks(self, writer: ResultWriter) -> np.ndarray:
        """Bool (labels, slices, height, width) of the results in the scene."""
        return np.array([held(self.segmentation, writer.segment_id(label), self.node) for label in self.probabilities])

    def state(self) -> dict[str, tuple[str, np.ndarray]]:
        """All segments by ID: name and voxels."""
        return {
            one: (self.segments.GetSegment(one).GetName(), held(self.segmentation, one, self.node))
            for one in self.segments.GetSegmentIDs()
        }


def same_state(one: dict[str, tuple[str, np.ndarray]], other: dict[str, tuple[str, np.ndarray]]) -> bool:
    return one.keys() == other.keys() and all(
        one[key][0] == other[key][0] and np.array_equal(one[key][1], other[key][1]) for key in one
    )


@settings(deadline=None, max_examples=25)
@given(geometries(), st.sampled_from([0, 1, 2]), seeds, st.sampled_from([0.0, 0.5, 0.731]))
def test_results_are_those_of_the_command_line_voxel_by_voxel(
    geometry: Geometry, axis: int, seed: int, threshold: float
) -> None:
    assume(max(geometry.in_plane_spacing(axis)) <= 100 * min(geometry.in_plane_spacing(axis)))
    labels = 2 if min(geometry.slice_shape(axis)) > 2 else 1
    bench = Bench(geometry, axis, seed, labels)
    before, writer = bench.state(), bench.writer(threshold=threshold)
    bench.run(writer, seed)
    writer.finish()
    assert np.array_equal(bench.held(writer), bench.expected(threshold))
    after = bench.state()
    assert same_state(before, {one: after[one] for one in before}), "others, the painted ones too, are untouched"
    for label in bench.probabilities:
        voxels = np.count_nonzero(bench.expected(threshold) == label)
        assert writer.volume_ml(label) == pytest.approx(voxels * np.prod(geometry.spacing) / 1000)


def test_a_result_takes_over_name_colour_and_terminology(scene: MrmlScene) -> None:
    import slicer

    bench, code = Bench(), "Category~SCT^123037004^Anatomical Structure~SCT^10200004^Liver~^^~Codes~^^~^^"
    bench.segments.GetSegment(bench.ids[0]).SetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), code)
    writer = bench.writer()
    assert writer.segment_id(1) is None
    writer.take(1, 0, bench.slice(1, 0), 0.5)
    writer.finish()
    segment = bench.segments.GetSegment(writer.segment_id(1))
    assert segment.GetName() == "liver (SDFSMIS)" and segment.GetColor() == (0.8, 0.2, 0.1)
    assert SegmentLook.of(bench.segmentation, writer.segment_id(1)).terminology == code
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    assert logic.GetSegmentStatus(segment) == logic.InProgress
    assert SegmentLook.of(bench.segmentation, writer.segment_id(2)).name == "spleen (SDFSMIS)"


def test_a_run_is_one_step_of_undo() -> None:
    bench = Bench()
    before, writer = bench.state(), bench.writer()
    bench.run(writer)
    writer.finish()
    after = bench.state()
    assert len(after) == len(before) + 2
    bench.editor.logic.Undo()
    assert same_state(bench.state(), before)
    with pytest.raises(ResultLost, match="deleted or undone; begin the run again"):
        writer.write_all()
    bench.editor.logic.Redo()
    assert same_state(bench.state(), after)


def test_nothing_is_written_before_something_is_to_be_written() -> None:
    bench, saved = Bench(), []
    before = bench.state()
    writer = bench.writer(save_undo=lambda: saved.append(1))
    writer.take(1, 0, bench.slice(1, 0), 0.5)
    assert writer.pending == 3 and same_state(bench.state(), before) and saved == []
    writer.discard()
    assert same_state(bench.state(), before) and saved == []
    writer = bench.writer(save_undo=lambda: saved.append(1))
    while writer.write_next():
        pass
    assert saved == [1] and np.array_equal(bench.held(writer) == 1, bench.painted[0])


def test_slices_near_the_one_that_is_looked_at_come_first() -> None:
    bench = Bench(Geometry((40, 3, 4), (1, 1, 1), (0, 0, 0), IDENTITY), labels=1)
    writer = bench.writer()
    writer.write_all()
    for index in (*range(3, 12), 20, *range(25, 40)):
        writer.take(1, index, np.full((3, 4), 200, np.uint8), 0.5)
    seen = []
    while writer.write_next(near=30):
        found = set(np.flatnonzero(bench.held(writer).any(axis=(1, 2))).tolist())
        seen.append(sorted(found.difference(*seen)))
    assert seen[0][1:] == list(range(26, 34)) and seen[1] == list(range(34, 40)) and seen[2] == [25]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_another_threshold_and_cleaning_act_on_the_kept_probabilities(axis: int) -> None:
    bench = Bench(axis=axis)
    writer = bench.writer()
    bench.run(writer)
    writer.finish()
    for threshold in (0.2, 0.9, 0.5):
        writer.set_threshold(threshold)
        writer.write_all()
        assert np.array_equal(bench.held(writer), bench.expected(threshold)) and writer.threshold == threshold
    for cleaning in (Postprocessing(keep_largest="volume"), Postprocessing(1.2, True, "slice"), Postprocessing(3.0)):
        writer.set_cleaning(cleaning.labelmap, 3 * cleaning.smooth_mm)
        writer.write_all()
        assert np.array_equal(bench.held(writer), bench.expected(0.5, cleaning)), cleaning
    writer.set_cleaning(None)
    writer.write_all()
    assert np.array_equal(bench.held(writer), bench.expected())
    with pytest.raises(InputError, match="The threshold 1.5 was given; a probability from 0"):
        writer.set_threshold(1.5)


def two_balls() -> Bench:
    """One structure in two pieces, the smaller one around the painted slice 2, the other from slice 6."""
    bench = Bench(Geometry((12, 20, 20), (1, 1.5, 2), (0, 0, 0), IDENTITY), labels=1)
    bench.editor.erase(bench.ids[0], bench.painted[0])
    bench.editor.paint(bench.ids[0], np.ones((1, 4, 4), dtype=bool), (2, 4, 4))
    bench.probabilities[1][:] = 0
    bench.probabilities[1][1:4, 4:8, 4:8] = 200
    bench.probabilities[1][6:11, 10:16, 10:16] = 220
    return bench


@pytest.mark.parametrize("cleaning", [Postprocessing(keep_largest="volume"), Postprocessing(smooth_mm=2.5)])
def test_cleaning_wanted_during_the_run_is_done_at_its_end(cleaning: Postprocessing) -> None:
    bench = two_balls()
    writer = bench.writer(threshold=0.3)
    writer.set_cleaning(cleaning.labelmap, 3 * cleaning.smooth_mm)
    bench.run(writer)
    while writer.write_next():
        pass
    assert np.array_equal(bench.held(writer), bench.expected(0.3)), "slices appear as they come"
    writer.finish()
    assert np.array_equal(bench.held(writer), bench.expected(0.3, cleaning))
    assert not np.array_equal(bench.held(writer), bench.expected(0.3))


def test_cleaning_sees_what_was_changed_by_hand() -> None:
    bench = two_balls()
    writer = bench.writer()
    bench.run(writer)
    writer.finish()
    whole = bench.held(writer) == 1
    for index in (4, 5):
        bridge = np.zeros((1, 20, 20), dtype=bool)
        bridge[0, 5:18, 2:13] = True  # beyond all that is probable
        whole[index] = bridge[0]
        bench.editor.paint(writer.segment_id(1), bridge, (index, 0, 0))
    seen = []

    def labelmap_of(probabilities: Any, *given: Any) -> np.ndarray:
        seen.append(int(np.count_nonzero(probabilities[1] == 255)))
        return Postprocessing(keep_largest="volume").labelmap(probabilities, *given)

    writer.set_cleaning(labelmap_of)
    writer.write_all()
    assert np.array_equal(bench.held(writer) == 1, whole), "the bridge that was painted makes one piece of the two"
    assert seen == [4 * 4 + 2 * 13 * 11], "all of it, and the painted slice"


def test_only_slices_that_change_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    import SDFSMISLib.scene.result_segment as module

    bench = Bench(labels=1)
    bench.probabilities[1] = np.where(bench.probabilities[1] > 127, np.uint8(255), np.uint8(0))
    bench.probabilities[1][7, 0, 0] = 150
    writer = bench.writer()
    bench.run(writer)
    writer.finish()
    image = bench.segments.GetSegment(writer.segment_id(1)).GetRepresentation("Binary labelmap")
    stamp = image.GetMTime()
    writer.set_threshold(0.55)
    writer.write_all()
    assert image.GetMTime() == stamp
    replaced: list[set[int]] = []
    original = module.ResultSegment._replace
    monkeypatch.setattr(module.ResultSegment, "_replace", lambda one, k, w: (replaced.append(k), original(one, k, w)))
    writer.set_threshold(0.6)
    writer.write_all()
    assert replaced == [{7}] and np.array_equal(bench.held(writer), bench.expected(0.6))


def test_certainty_is_kept_slice_by_slice() -> None:
    bench = Bench()
    writer = bench.writer()
    assert writer.least_certain() is None
    bench.run(writer)
    writer.finish()
    assert np.isnan(writer.certainty(1)[2]) and writer.certainty(1)[3] == pytest.approx(0.103)
    assert writer.least_certain() == 0
    bench.editor.paint(writer.segment_id(2), np.ones((1, *SHAPE[1:]), dtype=bool))
    assert writer.by_hand == (0,) and writer.least_certain() == 1


# -- corrections -------------------------------------------------------------------------------------------------------


def one_slice(axis: int, index: int, mask: np.ndarray) -> tuple[np.ndarray, Index]:
    """A mask (rows, columns) of a slice, and where it starts in the grid."""
    start = [0, 0, 0]
    start[axis] = index
    return np.expand_dims(mask, axis), (start[0], start[1], start[2])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_what_a_user_changes_in_a_result_is_known_and_stays(axis: int) -> None:
    bench = Bench(axis=axis, seed=1)
    writer = bench.writer()
    bench.run(writer)
    writer.finish()
    assert writer.by_hand == ()
    count, mask = bench.geometry.shape[axis], np.zeros(bench.geometry.slice_shape(axis), dtype=bool)
    mask[1:4, 2:6] = True
    bench.editor.paint(writer.segment_id(1), *one_slice(axis, 1, mask))
    bench.editor.erase(writer.segment_id(1), *one_slice(axis, count - 1, np.ones_like(mask)))
    assert writer.by_hand == (1, count - 1)
    corrected = np.moveaxis(bench.held_masks(writer), axis + 1, 1)[:, [1, -1]].copy()
    for threshold in (0.1, 0.9):
        writer.set_threshold(threshold)
        writer.write_all()
        labels = np.moveaxis(bench.held_masks(writer), axis + 1, 1)
        expected = np.moveaxis(bench.expected(threshold), axis, 0)
        assert np.array_equal(labels[:, [1, -1]], corrected)
        untouched = [index for index in range(count) if index not in (1, count - 1)]
        for label in (1, 2):
            assert np.array_equal(labels[label - 1][untouched], expected[untouched] == label)
    bench.editor.logic.Undo()
    assert writer.by_hand == (1,), "undo took back the erasing, but not the painting"


def test_a_slice_painted_while_the_run_goes_on_is_not_overwritten() -> None:
    bench = Bench(labels=1)
    writer = bench.writer()
    writer.take(1, 0, bench.slice(1, 0), 0.5)
    writer.write_all()
    mask = np.zeros((1, *SHAPE[1:]), dtype=bool)
    mask[0, 3:5, 3:5] = True
    bench.editor.paint(writer.segment_id(1), mask, (6, 0, 0))
    bench.run(writer)
    writer.finish()
    expected = bench.expected() == 1
    expected[6] = mask[0]
    assert writer.by_hand == (6,) and np.array_equal(bench.held(writer) == 1, expected)


def test_slices_that_an_undo_took_away_in_the_middle_of_a_run_are_written_again() -> None:
    bench = Bench(labels=1)
    writer = bench.writer()
    for index in (0, 1):
        writer.take(1, index, bench.slice(1, index), 0.5)
    writer.write_all()
    bench.editor.paint(bench.other, np.ones((1, 1, 1), dtype=bool))  # saves the state for undo
    bench.run(writer)
    writer.write_all()
    bench.editor.logic.Undo()
    assert not np.array_equal(bench.held(writer), bench.expected())
    writer.finish()
    assert writer.by_hand == () and np.array_equal(bench.held(writer), bench.expected())


def test_corrections_are_support_of_the_next_run_and_come_out_as_they_are() -> None:
    bench = Bench(seed=4)
    first = bench.writer()
    bench.run(first)
    first.finish()
    first.accept()
    results = {label: find_result(bench.node, bench.segmentation, one, 0) for label, one in enumerate(bench.ids, 1)}
    assert results == {label: first.segment_id(label) for label in (1, 2)}
    stroke = np.zeros((1, *SHAPE[1:]), dtype=bool)
    stroke[0, 2:5, 2:5] = True
    bench.editor.erase(results[1], np.ones((1, *SHAPE[1:]), dtype=bool), (7, 0, 0))  # the liver is not there
    bench.editor.erase(results[2], stroke, (8, 0, 0))
    bench.editor.paint(results[1], stroke, (8, 0, 0))
    bench.editor.erase(results[2], stroke, (5, 0, 0))  # on the spleen's painted slice
    bench.editor.paint(results[1], stroke & ~np.roll(stroke, 2, axis=2), (5, 0, 0))
    shown = bench.held_masks(first)

    painting = with_corrections(bench.painting(), bench.node, bench.segmentation, results)
    support = painting.support(bench.scan)
    assert painting.corrected == (5, 7, 8) and painting.axis == 0
    assert [(piece.index, piece.complete) for piece in support.slices] == [(2, False), (5, True), (7, True), (8, True)]
    for piece in support.slices[1:]:
        for label in (1, 2):
            assert np.array_equal(piece.mask(label), shown[label - 1][piece.index])
    named = painting.support(bench.scan, [2, 5]).slices
    assert [(piece.index, piece.complete) for piece in named] == [(2, True), (5, True), (7, True), (8, True)]

    bench.probabilities = {label: 255 - one for label, one in bench.probabilities.items()}
    second = bench.writer(support=support, into=results)
    bench.run(second, support=support)
    second.finish()
    assert {label: second.segment_id(label) for label in (1, 2)} == results and second.by_hand == (5, 7, 8)
    assert np.array_equal(bench.held(second), bench.expected(support=support))
    again = with_corrections(bench.painting(), bench.node, bench.segmentation, results)
    assert again.corrected == (5, 7, 8), "they stay corrections for the run after that"


def test_what_is_painted_in_the_painted_segment_after_a_run_counts_before_the_result() -> None:
    bench = Bench(labels=1, seed=5)
    first = bench.writer()
    bench.run(first)
    first.finish()
    result, stroke = first.segment_id(1), np.zeros((1, *SHAPE[1:]), dtype=bool)
    stroke[0, 1:3, 1:4] = True
    for index in (2, 6):  # the slice that was painted, and another one; as in overwriting, the result loses the stroke
        bench.editor.paint(bench.ids[0], stroke, (index, 0, 0))
        bench.editor.erase(result, stroke, (index, 0, 0))
    bench.editor.paint(result, stroke, (4, 0, 0))
    painting = with_corrections(bench.painting(), bench.node, bench.segmentation, {1: result})
    support = painting.support(bench.scan)
    assert painting.corrected == (4,) and [piece.index for piece in support.slices] == [2, 4, 6]
    second = bench.writer(support=support, into={1: result})
    bench.run(second, support=support)
    second.finish()
    assert np.array_equal(bench.held(second), bench.expected(support=support))
    assert second.by_hand == (4,)


def test_a_correction_counts_before_what_was_painted_on_its_slice_and_not_used() -> None:
    bench = Bench(labels=1, seed=5)
    stroke = np.zeros((1, *SHAPE[1:]), dtype=bool)
    stroke[0, 1:3, 1:4] = True
    bench.editor.paint(bench.ids[0], stroke, (6, 0, 0))
    support = bench.painting().support(bench.scan, [2])
    first = bench.writer(support=support)
    bench.run(first, support=support)
    first.finish()
    bench.editor.erase(first.segment_id(1), stroke, (6, 0, 0))
    painting = with_corrections(bench.painting(), bench.node, bench.segmentation, {1: first.segment_id(1)})
    assert painting.corrected == (6,)
    assert np.array_equal(painting.support(bench.scan).slices[1].mask(1), bench.held_masks(first)[0, 6])


def test_corrections_are_known_after_saving_and_loading(tmp_path: Path) -> None:
    bench = Bench(labels=1)
    writer = bench.writer()
    bench.run(writer)
    writer.finish()
    bench.editor.paint(writer.segment_id(1), np.ones((1, 2, 2), dtype=bool), (8, 0, 0))
    assert writer.by_hand == (8,)
    loaded = bench.scene.load_segmentation(bench.scene.save(bench.segmentation, tmp_path / "saved.seg.nrrd"))
    found = find_result(bench.node, loaded, bench.ids[0], 0)
    assert found == writer.segment_id(1) and find_result(bench.node, loaded, bench.ids[0], 1) is None
    painting = with_corrections(read_painting(bench.node, loaded, bench.ids), bench.node, loaded, {1: found})
    assert painting.corrected == (8,)


def test_without_results_there_are_no_corrections() -> None:
    bench = Bench()
    painting = bench.painting()
    assert with_corrections(painting, bench.node, bench.segmentation, {}) is painting
    assert with_corrections(painting, bench.node, bench.segmentation, {1: "gone", 2: bench.other}) is painting
    writer = bench.writer()
    bench.run(writer)
    writer.finish()
    assert with_corrections(painting, bench.node, bench.segmentation, {1: writer.segment_id(1)}) is painting
    assert find_result(bench.node, bench.segmentation, bench.other, 0) is None


@pytest.mark.parametrize("tag", ["", "3 1=00000000", "0 1:00000000", "0 1=xyz", "0  1=0123abcd 12=00000000"])
def test_a_record_that_is_none_counts_for_nothing(tag: str) -> None:
    bench = Bench()
    bench.segments.GetSegment(bench.other).SetTag("SDFSMIS.Slices", tag)
    record = SliceRecord.on(bench.segments.GetSegment(bench.other))
    assert (record is None) == ("0123abcd" not in tag)


# -- what may be edited ------------------------------------------------------------------------------------------------

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
    writer.finish()
    expected = allowed | bench.painted[0]
    drawn = bench.held(writer) == 1
    assert (mode == "Everywhere" and intensities is None) == np.array_equal(allowed, stroke)
    assert np.array_equal(drawn[2], bench.painted[0][2]), "what was painted is not asked"
    assert np.array_equal(drawn, expected)
    for threshold in (0.4, 0.9, 0.5):
        writer.set_threshold(threshold)
        writer.write_all()
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
    writer.finish()
    after = bench.state()
    assert same_state(before, {one: after[one] for one in before})
    writer.accept()
    results = bench.held(writer)
    assert np.array_equal(results, bench.expected())
    for segment_id, (_, mask) in before.items():
        gives_way = {"None": (), "VisibleSegments": (bench.other,), "AllSegments": (bench.other, hidden)}[mode]
        expected = mask & (results == 0) if segment_id in gives_way else mask
        assert np.array_equal(held(bench.segmentation, segment_id, bench.node), expected)
    bench.editor.logic.Undo()
    assert same_state(bench.state(), before)
    with pytest.raises(ResultLost, match="accepted or discarded"):
        writer.write_all()


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
    writer.finish()
    inside = bench.bystander.copy()
    inside[:, :, 5:] = True  # the skin from column 5.5 - 0.5 of 11, the body from 8 - 3
    assert np.array_equal(
        bench.held(writer) == 1, (bench.expected() == 1) & (inside | bench.painted[0].any((1, 2))[:, None, None])
    )
    writer.accept()
    state = {name: mask for name, mask in bench.state().values()}
    assert not (state["liver (SDFSMIS)"] & (state["body"] | state["other"])).any()


def test_an_intensity_range_of_another_volume_is_refused() -> None:
    bench = Bench()
    bench.editor.node.SourceVolumeIntensityMaskOn()
    with pytest.raises(InputError, match="is that of another volume than the scan CT 2; choose this one"):
        EditingRules.of(bench.editor.node, bench.scene.volume(np.zeros(SHAPE, np.int16), bench.geometry, name="CT 2"))


# -- the end, expected or not ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("finished", [False, True])
def test_discarding_leaves_everything_as_it_was(finished: bool) -> None:
    bench = Bench()
    before, writer = bench.state(), bench.writer()
    bench.run(writer)
    (writer.finish if finished else writer.write_next)()
    writer.discard()
    assert same_state(bench.state(), before)
    with pytest.raises(ResultLost, match="accepted or discarded"):
        writer.write_next()


def test_discarding_a_run_that_went_on_in_earlier_results_gives_these_back() -> None:
    bench = Bench()
    first = bench.writer()
    bench.run(first)
    first.finish()
    bench.editor.paint(first.segment_id(1), np.ones((1, 2, 2), dtype=bool), (8, 0, 0))
    before = bench.state()
    bench.probabilities = {label: 255 - one for label, one in bench.probabilities.items()}
    second = bench.writer(into={label: first.segment_id(label) for label in (1, 2)})
    bench.run(second)
    second.finish()
    assert not same_state(bench.state(), before)
    second.discard()
    assert same_state(bench.state(), before) and first.by_hand == (8,)


def test_a_result_of_another_run_may_share_its_labelmap() -> None:
    bench = Bench()
    first = bench.writer()
    bench.run(first)
    first.finish()
    bench.segments.CollapseBinaryLabelmaps(False)
    before = bench.state()
    into = {label: first.segment_id(label) for label in (1, 2)}
    assert bench.segments.GetNumberOfLayers() < 5
    bench.probabilities = {label: 255 - one for label, one in bench.probabilities.items()}
    second = bench.writer(into=into)
    bench.run(second)
    second.finish()
    assert np.array_equal(bench.held(second), bench.expected())
    after = bench.state()
    others = before.keys() - set(into.values())
    assert same_state({one: before[one] for one in others}, {one: after[one] for one in others})


TURN = rigid(np.random.default_rng(0))


def put_under(node: Any, transform_node: Any) -> None:
    node.SetAndObserveTransformNodeID(transform_node.GetID())


def ways_to_lose() -> dict[str, tuple[Callable[[Bench, ResultWriter], Any], str]]:
    return {
        "segmentation deleted": (lambda b, w: b.scene.node.RemoveNode(b.segmentation), "segmentation was deleted"),
        "volume deleted": (lambda b, w: b.scene.node.RemoveNode(b.node), "scan was deleted"),
        "scene closed": (lambda b, w: b.scene.node.Clear(False), "scene closed"),
        "results deleted": (
            lambda b, w: [b.segments.RemoveSegment(w.segment_id(label)) for label in (1, 2)],
            "results were deleted or undone",
        ),
        "run undone": (lambda b, w: b.editor.logic.Undo(), "results were deleted or undone"),
        "volume moved": (lambda b, w: b.node.SetOrigin(1, 2, 3), "changed, or moved"),
        "volume emptied": (lambda b, w: b.node.SetAndObserveImageData(None), "changed, or moved"),
        "volume transformed": (lambda b, w: put_under(b.node, b.scene.transform(TURN)), "changed, or moved"),
        "volume warped": (lambda b, w: put_under(b.node, b.scene.warp()), "changed, or moved"),
    }


@pytest.mark.parametrize("way", list(ways_to_lose()))
def test_what_is_lost_in_the_middle_of_a_run_is_said_in_a_sentence(way: str) -> None:
    lose, message = ways_to_lose()[way]
    bench = Bench()
    support, writer = bench.support(), bench.writer()
    for index in (0, 1):
        writer.take(1, index, bench.slice(1, index), 0.5)
        writer.write_all()
    lose(bench, writer)
    writer.take(1, 3, bench.slice(1, 3), 0.5)
    for act in (writer.write_next, writer.write_all, writer.finish, writer.update_surface, writer.accept):
        with pytest.raises(ResultLost, match=message):
            act()
    writer.discard()
    if way not in ("segmentation deleted", "scene closed"):
        assert set(bench.segments.GetSegmentIDs()) == {*bench.ids, bench.other}, "what was left of it can be discarded"
    assert support.labels == (1, 2) and writer.certainty(1)[3] == 0.5


def test_a_scene_that_is_gone_with_all_its_nodes_is_a_lost_result() -> None:
    bench = Bench()
    writer = bench.writer()
    writer.take(1, 0, bench.slice(1, 0), 0.5)
    writer.write_all()
    bench.scene.node.Clear(True)
    del bench.scene, bench.editor, bench.segmentation, bench.node
    with pytest.raises(ResultLost):
        writer.write_all()


def test_one_result_that_is_deleted_is_left_out_and_the_other_goes_on() -> None:
    bench = Bench()
    writer = bench.writer()
    writer.write_all()
    bench.segments.RemoveSegment(writer.segment_id(1))
    bench.run(writer)
    writer.finish()
    assert writer.segment_id(1) is None and writer.volume_ml(1) == 0 and writer.pending == 0
    assert np.array_equal(bench.held(writer) == 2, bench.expected() == 2)
    writer.accept()


def test_renamed_and_deleted_sources_do_not_matter() -> None:
    bench = Bench()
    expected, writer = bench.expected(), bench.writer()
    writer.write_all()
    bench.segments.GetSegment(writer.segment_id(1)).SetName("right lobe")
    support = bench.support()
    for segment_id in bench.ids:
        bench.segments.RemoveSegment(segment_id)
    bench.run(writer, support=support)
    writer.finish()
    writer.accept()
    assert bench.segments.GetSegment(writer.segment_id(1)).GetName() == "right lobe"
    assert np.array_equal(bench.held(writer), expected)


def test_what_cannot_be_written_into_is_refused_at_once() -> None:
    bench = Bench()
    with pytest.raises(SegmentGone):
        bench.writer(into={1: "nothing"})
    with pytest.raises(InputError, match="threshold 1"):
        bench.writer(threshold=1)
    writer = bench.writer()
    with pytest.raises(ValueError, match="is a slice"):
        writer.take(1, 0, np.zeros((3, 3), np.uint8), 0.5)
    with pytest.raises(ValueError, match="is a slice"):
        writer.take(1, 0, np.zeros(SHAPE[1:], bool), 0.5)


# -- surfaces, other scans ---------------------------------------------------------------------------------------------


def test_surfaces_that_are_shown_are_made_once_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    bench.segmentation.CreateClosedSurfaceRepresentation()
    surfaces = {one: bench.segments.GetSegment(one).GetRepresentation("Closed surface") for one in bench.ids}
    stamps = {one: surface.GetMTime() for one, surface in surfaces.items()}
    writer = bench.writer()
    bench.run(writer)
    writer.write_all()
    result = bench.segments.GetSegment(writer.segment_id(1))
    assert result.GetRepresentation("Closed surface") is None
    writer.finish()
    assert result.GetRepresentation("Closed surface").GetNumberOfPoints() > 0
    for one, surface in surfaces.items():
        assert bench.segments.GetSegment(one).GetRepresentation("Closed surface") is surface
        assert surface.GetMTime() == stamps[one], "those of other segments are not made anew"
    writer.set_threshold(0.999)
    writer.write_all()
    writer.update_surface()
    assert result.GetRepresentation("Closed surface") is not None


def test_no_surface_is_made_where_none_is_shown() -> None:
    bench = Bench()
    writer = bench.writer()
    bench.run(writer)
    writer.finish()
    assert not bench.segments.ContainsRepresentation("Closed surface")


def test_another_scan_gets_a_segmentation_of_its_own_under_its_transform() -> None:
    bench = Bench(seed=9)
    geometry = Geometry((5, 6, 7), (1, 2, 3), (50, 60, 70), random_direction(np.random.default_rng(2)))
    other = bench.scene.volume(np.zeros(geometry.shape, np.int16), geometry, name="MR")
    other.SetAndObserveTransformNodeID(bench.scene.transform(rigid(np.random.default_rng(3))).GetID())
    target = make_segmentation(other, "MR segmentation")
    looks = {1: SegmentLook.of(bench.segmentation, bench.ids[0]), 2: SegmentLook("from a file")}
    writer = ResultWriter(other, target, Scans().of(other), bench.support(), 1, looks)
    probability = np.random.default_rng(4).integers(0, 256, geometry.shape, dtype=np.uint8)
    for index in range(6):
        writer.take(2, index, probability[:, index], 0.5)
    writer.finish()
    segments = target.GetSegmentation()
    assert segments.GetSegment(writer.segment_id(1)).GetName() == "liver (SDFSMIS)"
    assert segments.GetSegment(writer.segment_id(2)).GetName() == "from a file (SDFSMIS)"
    assert segments.GetSegment(writer.segment_id(2)).GetColor() != (0.5, 0.5, 0.5)
    assert np.array_equal(held(target, writer.segment_id(2), other), probability > 127)
    assert not held(target, writer.segment_id(1), other).any()
    assert segments.GetNumberOfLayers() == 2, "each result is alone in its labelmap"


# -- size, and what it is built on -------------------------------------------------------------------------------------


def test_a_scan_of_512_x_512_x_300() -> None:
    """Exact at that size too; the times of the main thread are printed with -s."""
    times: dict[str, list[float]] = {}

    def timed(name: str, act: Callable[..., Any], *given: Any) -> Any:
        begun = time.perf_counter()
        try:
            return act(*given)
        finally:
            times.setdefault(name, []).append(time.perf_counter() - begun)

    geometry, scene, scans = Geometry((300, 512, 512), (0.7, 0.7, 2), (0, 0, 0), IDENTITY), MrmlScene(), Scans()
    voxels = np.zeros(geometry.shape, np.int16)
    voxels[:, ::7, ::5] = 100
    node = scene.volume(voxels, geometry)
    steps = scans.copying(node)
    while timed("copy, one step", next, steps, None) is not None:
        pass
    scan, segmentation_node = scans.of(node), scene.segmentation(node)
    k, j, i = np.ogrid[:300, :512, :512]
    distance = ((k - 150) / 90) ** 2 + ((j - 256) / 100) ** 2 + ((i - 256) / 100) ** 2
    probability = np.clip(255 * (1.6 - distance) / 1.2, 0, 255).astype(np.uint8)
    mask = distance[150:151] < 1
    editor = scene.editor(segmentation_node, node)
    segment_id = editor.segment("liver")
    editor.paint(segment_id, mask, (150, 0, 0))
    painting = timed("read painting", read_painting, node, segmentation_node, [segment_id])
    assert painting.axis == 0 and painting.slices(0) == (150,)
    writer = ResultWriter(node, segmentation_node, scan, painting.support(scan), 0, {1: SegmentLook("liver")})
    for index in sorted(set(range(300)) - {150}, key=lambda index: abs(index - 150)):
        timed("take a slice", writer.take, 1, index, probability[index], 0.5)
    while timed("write a block", writer.write_next, 150):
        pass
    timed("finish", writer.finish)
    for threshold in (0.4, 0.6, 0.5):
        writer.set_threshold(threshold)
        timed("another threshold", writer.write_all)
    expected = probability > 127
    expected[150] = mask
    labels = read_painting(node, segmentation_node, [writer.segment_id(1)]).labelmap().voxels
    assert np.array_equal(labels == 1, expected)
    editor.paint(writer.segment_id(1), mask, (20, 0, 0))
    assert timed("by hand", lambda: writer.by_hand) == (20,)
    for name, seconds in times.items():
        print(f"{name:20s} {1000 * max(seconds):6.1f} ms at most, {len(seconds)} times")


def test_a_digest_stands_for_voxels_and_place_not_for_the_piece() -> None:
    voxels = np.zeros((6, 7, 8), dtype=bool)
    voxels[2:4, 3:5, 2:5] = True
    grid = Piece((0, 0, 0), voxels)
    for axis in range(3):
        digests = slice_digests(grid, axis)
        assert digests == slice_digests(grid.trimmed(), axis)
        assert set(digests) == set(np.flatnonzero(np.moveaxis(voxels, axis, 0).any(axis=(1, 2))).tolist())
        for other in {0, 1, 2} - {axis}:
            moved = slice_digests(Piece((0, 0, 0), np.roll(voxels, 1, axis=other)), axis)
            assert not set(moved.values()) & set(digests.values())


@few
@given(seeds)
def test_pieces_are_parts_of_a_grid(seed: int) -> None:
    rng = np.random.default_rng(seed)
    grid = rng.random((6, 7, 8)) < 0.1
    piece = Piece((0, 0, 0), grid).trimmed()
    assert np.array_equal(piece.cut((0, 0, 0), (6, 7, 8)), grid)
    start, stop = np.sort(rng.integers(-3, 11, (2, 3)), axis=0).tolist()
    padded = np.pad(grid, 11)
    box = tuple(slice(a + 11, b + 11) for a, b in zip(start, stop, strict=True))
    assert np.array_equal(piece.cut(tuple(start), tuple(stop)), padded[box])
    for axis in range(3):
        assert set(piece.slices(axis)) == set(np.flatnonzero(np.moveaxis(grid, axis, 0).any(axis=(1, 2))).tolist())
    assert box_around(piece, Piece.nothing()) == (piece.start, piece.stop)
    assert box_around() == ((0, 0, 0), (0, 0, 0)) and not Piece.nothing().trimmed().voxels.size


def test_importing_needs_neither_slicer_nor_vtk_nor_torch() -> None:
    blocked = ["slicer", "vtk", "vtkmodules", "torch", "diffusers", "transformers", "qt", "ctk", "SimpleITK", "scipy"]
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked})); import SDFSMISLib.scene"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_slicer_itself_leaves_the_other_packages_alone() -> None:
    """slicer-core brings a package of its own, and nothing that others use is loaded or changed by it."""
    code = "import sys; before = set(sys.modules); import slicer; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    brought = {name.partition(".")[0] for name in done.stdout.split()}
    assert done.returncode == 0 and not brought & {"torch", "SimpleITK", "cv2", "scipy", "diffusers", "transformers"}
