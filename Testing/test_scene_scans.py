"""Volumes of the MRML scene as scans: the same voxels, copied once, in steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from mrml_scene import MrmlScene
from scene_examples import few
from SDFSMISLib.errors import InputError
from SDFSMISLib.images.volume import Volume
from SDFSMISLib.scene import ScanCache
from SDFSMISLib.scene.frame import volume_geometry
from volume_examples import IDENTITY, plain, volumes


@pytest.fixture(scope="module", autouse=True)
def _slicer() -> None:
    pytest.importorskip("slicer")


@pytest.fixture
def scene() -> MrmlScene:
    return MrmlScene()


@few
@given(volumes())
def test_a_volume_node_is_its_volume(volume: Volume) -> None:
    scan = ScanCache().get(MrmlScene().scan(volume, "CT"))
    assert scan.voxels.dtype == volume.voxels.dtype and np.array_equal(scan.voxels, volume.voxels)
    assert scan.geometry.displacement(volume.geometry) <= 1e-9 and scan.name == "CT" and scan.notes == ()
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
    assert read.content_hash() == ScanCache().get(node).content_hash()


def test_a_scan_is_copied_once_for_as_long_as_it_does_not_change(scene: MrmlScene) -> None:
    from vtkmodules.util.numpy_support import vtk_to_numpy

    node, scans = scene.scan(plain()), ScanCache()
    first = scans.get(node)
    node.SetName("renamed")
    assert (
        scans.get(node) is first and first.content_hash() is first.content_hash() and first.window() is first.window()
    )
    voxels = vtk_to_numpy(node.GetImageData().GetPointData().GetScalars())
    voxels[0] = 77
    node.GetImageData().Modified()
    second = scans.get(node)
    assert second is not first and first.voxels[0, 0, 0] == 0 and second.voxels[0, 0, 0] == 77
    node.SetSpacing(3, 3, 3)
    third = scans.get(node)
    assert third is not second and third.geometry.spacing == (3, 3, 3)
    scans.clear()
    assert scans.get(node) is not third


def test_another_volume_under_an_old_id_is_another_scan(scene: MrmlScene) -> None:
    scans = ScanCache()
    first = scans.get(scene.scan(plain()))
    scene.node.Clear(False)
    node = scene.scan(replace(plain(), voxels=plain().voxels + np.int16(1)))
    assert scans.get(node) is not first and scans.get(node).voxels[0, 0, 0] == 1


def test_copying_goes_in_steps_and_begins_anew_after_a_change(
    scene: MrmlScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("SDFSMISLib.scene.scan.STEP_BYTES", plain().voxels[0].nbytes)
    node, scans = scene.scan(plain()), ScanCache()
    steps = scans.copy_steps(node)
    assert [next(steps), next(steps)] == [0.25, 0.5]
    node.SetOrigin(1, 2, 3)
    assert list(steps)[-4:] == [0.25, 0.5, 0.75, 1.0]
    assert list(scans.copy_steps(node)) == [] and np.array_equal(scans.get(node).voxels, plain().voxels)


def test_of_several_values_per_voxel_the_first_is_taken_and_said_so(scene: MrmlScene) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    scan = ScanCache().get(scene.volume(colours, plain().geometry, "Vector"))
    assert np.array_equal(scan.voxels, colours[..., 0]) and "3 values per voxel" in scan.notes[0]


def test_what_is_not_finite_is_replaced_as_in_a_file(scene: MrmlScene, tmp_path: Path) -> None:
    voxels = plain().voxels.astype(np.float64)
    voxels[0, 0, :4] = np.nan, np.inf, -np.inf, 1e300
    node = scene.volume(voxels, plain().geometry)
    scan = ScanCache().get(node)
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
        ScanCache().get(scene.node.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "MR 1"))
    sheared = scene.scan(plain())
    sheared.SetIJKToRASDirections(1, 0.5, 0, 0, 1, 0, 0, 0, 1)
    with pytest.raises(InputError, match="not three axes at right angles"):
        ScanCache().get(sheared)


def test_what_is_not_finite_is_replaced_in_steps_too(scene: MrmlScene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The range is that of all blocks, those without any finite value included."""
    voxels = plain().voxels.astype(np.float32)
    voxels[0] = np.nan
    voxels[2, 0, :2] = np.inf, -np.inf
    node = scene.volume(voxels, plain().geometry)
    whole = ScanCache().get(node)
    monkeypatch.setattr("SDFSMISLib.scene.scan.STEP_BYTES", voxels[0].nbytes)
    scans = ScanCache()
    assert list(scans.copy_steps(node)) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]
    scan, finite = scans.get(node), voxels[np.isfinite(voxels)]
    assert np.array_equal(scan.voxels, whole.voxels) and scan.notes == whole.notes
    assert (scan.voxels[0] == finite.min()).all() and scan.voxels[2, 0, 0] == finite.max()
    with pytest.raises(InputError, match="no finite intensity"):
        ScanCache().get(scene.volume(np.full((4, 5, 6), np.nan), plain().geometry))


def test_a_scan_is_shown_for_as_long_as_voxels_and_grid_stay(scene: MrmlScene) -> None:
    node = scene.scan(plain())
    scan = ScanCache().get(node)
    node.SetName("renamed")
    assert scan.is_shown_by(node)
    node.GetImageData().GetPointData().GetScalars().Modified()
    assert not scan.is_shown_by(node) and ScanCache().get(node).is_shown_by(node)
    node.SetOrigin(1, 2, 3)
    assert not scan.is_shown_by(node)
