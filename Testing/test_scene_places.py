"""Where volumes, segmentations and views of the MRML scene lie: transforms, lattices, slices that a view shows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrml_scene import MrmlScene, held
from scene_examples import (
    few,
    finish,
    grown,
    other_lattice,
    random_masks,
    rigid,
)
from SDFSMISLib.errors import InputError
from SDFSMISLib.images.planes import Plane
from SDFSMISLib.images.volume import Geometry
from SDFSMISLib.scene import (
    ObliqueView,
    ResultWriter,
    ScanCache,
    SegmentTemplate,
    make_segmentation,
    matches_lattice,
    read_painting,
    rotate_to_volume_plane,
    show_slice,
    shown_slice,
)
from volume_examples import geometries, plain, seeds


@pytest.fixture(scope="module", autouse=True)
def _slicer() -> None:
    pytest.importorskip("slicer")


@pytest.fixture
def scene() -> MrmlScene:
    return MrmlScene()


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
    assert painting.geometry.displacement(geometry) <= 1e-9 and matches_lattice(node, segmentation_node)

    scan = ScanCache().get(node)
    support = painting.support(scan, [Plane(0, index) for index in painting.labels.slices(0)])
    writer = ResultWriter(node, segmentation_node, scan, support, 0, {1: SegmentTemplate("liver")})
    wanted = mask.copy()
    for index in np.flatnonzero(~mask.any(axis=(1, 2))):
        wanted[index] = rng.random(mask.shape[1:]) < 0.5
        writer.add_slice(1, int(index), grown(wanted[index]), 1.0)
    finish(writer)
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
    assert not matches_lattice(node, segmentation_node)


def test_a_segmentation_fits_the_volume_whose_voxels_it_has(scene: MrmlScene) -> None:
    one = scene.scan(plain((6, 7, 8)))
    finer = scene.volume(np.zeros((12, 14, 16), np.int16), other_lattice(plain((6, 7, 8)).geometry, "finer"))
    cropped = scene.volume(np.zeros((5, 6, 7), np.int16), other_lattice(plain((6, 7, 8)).geometry, "cropped"))
    segmentation_node = scene.segmentation(one)
    assert (
        matches_lattice(one, segmentation_node)
        and matches_lattice(cropped, segmentation_node)
        and not matches_lattice(finer, segmentation_node)
    )
    scene.editor(segmentation_node, one).segment("liver", plain((6, 7, 8)).voxels > 100)
    assert matches_lattice(one, segmentation_node) and not matches_lattice(finer, segmentation_node)
    empty = scene.node.AddNewNodeByClass("vtkMRMLSegmentationNode")
    empty.CreateDefaultDisplayNodes()
    assert matches_lattice(finer, empty)
    scene.editor(empty, one).segment("liver", plain((6, 7, 8)).voxels > 100)
    empty.GetSegmentation().SetConversionParameter("Reference image geometry", "")
    assert matches_lattice(one, empty) and not matches_lattice(finer, empty)
    finer.SetAndObserveTransformNodeID(scene.transform(rigid(np.random.default_rng(0))).GetID())
    made = make_segmentation(finer, "CT 2 segmentation")
    assert made.GetName() == "CT 2 segmentation" and made.GetTransformNodeID() == finer.GetTransformNodeID()
    assert matches_lattice(finer, made) and made.GetDisplayNode() is not None


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
        rotate_to_volume_plane(view, node)
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
        rotate_to_volume_plane(view, node)
        assert shown_slice(view, node).axis == 0 and show_slice(view, node, 0, 3) and shown_slice(view, node).index == 3


def test_a_view_beside_the_volume_is_refused_and_brought_back(scene: MrmlScene) -> None:
    node, view = scene.scan(plain()), scene.view()
    view.SetSliceOffset(500)
    with pytest.raises(InputError, match="shows no slice of the scan scan; move it into the scan"):
        shown_slice(view, node)
    rotate_to_volume_plane(view, node)
    assert shown_slice(view, node).index == 3
