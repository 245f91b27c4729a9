"""What the scene is built on: boxes of voxels, digests of slices, and packages that it leaves alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from hypothesis import given

from scene_examples import few
from SDFSMISLib.scene.frame import VoxelBox, enclosing_extent
from SDFSMISLib.scene.segment_tags import slice_digests
from volume_examples import seeds

ROOT = Path(__file__).resolve().parent.parent


def test_a_digest_stands_for_voxels_and_place_not_for_the_box() -> None:
    voxels = np.zeros((6, 7, 8), dtype=bool)
    voxels[2:4, 3:5, 2:5] = True
    grid = VoxelBox((0, 0, 0), voxels)
    for axis in range(3):
        digests = slice_digests(grid, axis)
        assert digests == slice_digests(grid.trimmed(), axis)
        assert set(digests) == set(np.flatnonzero(np.moveaxis(voxels, axis, 0).any(axis=(1, 2))).tolist())
        for other in {0, 1, 2} - {axis}:
            moved = slice_digests(VoxelBox((0, 0, 0), np.roll(voxels, 1, axis=other)), axis)
            assert not set(moved.values()) & set(digests.values())


@few
@given(seeds)
def test_voxel_boxes_are_parts_of_a_grid(seed: int) -> None:
    rng = np.random.default_rng(seed)
    grid = rng.random((6, 7, 8)) < 0.1
    voxel_box = VoxelBox((0, 0, 0), grid).trimmed()
    assert np.array_equal(voxel_box.crop_or_pad((0, 0, 0), (6, 7, 8)), grid)
    start, stop = np.sort(rng.integers(-3, 11, (2, 3)), axis=0).tolist()
    padded = np.pad(grid, 11)
    box = tuple(slice(a + 11, b + 11) for a, b in zip(start, stop, strict=True))
    assert np.array_equal(voxel_box.crop_or_pad(tuple(start), tuple(stop)), padded[box])
    for axis in range(3):
        assert set(voxel_box.slices(axis)) == set(np.flatnonzero(np.moveaxis(grid, axis, 0).any(axis=(1, 2))).tolist())
    other, chosen = rng.random((6, 7, 8)) < 0.1, rng.permutation(6)[:2].tolist()
    for axis in range(3):
        mixed = np.moveaxis(grid.copy(), axis, 0)
        mixed[chosen] = np.moveaxis(other, axis, 0)[chosen]
        merged = voxel_box.replace_slices(axis, chosen, VoxelBox((0, 0, 0), other).trimmed())
        assert np.array_equal(merged.crop_or_pad((0, 0, 0), (6, 7, 8)), np.moveaxis(mixed, 0, axis))
    assert enclosing_extent(voxel_box, VoxelBox.empty()) == (voxel_box.start, voxel_box.stop)
    assert enclosing_extent() == ((0, 0, 0), (0, 0, 0)) and not VoxelBox.empty().trimmed().voxels.size


def test_importing_needs_neither_slicer_nor_vtk_nor_torch() -> None:
    blocked = ["slicer", "vtk", "vtkmodules", "torch", "diffusers", "transformers", "qt", "ctk", "SimpleITK", "scipy"]
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked})); import SDFSMISLib.scene"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_slicer_itself_leaves_the_other_packages_alone() -> None:
    """slicer-core brings a package of its own, and nothing that others use is loaded or changed by it."""
    code = "import sys; before = set(sys.modules); import slicer; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert done.returncode == 0 and not loaded & {"torch", "SimpleITK", "cv2", "scipy", "diffusers", "transformers"}
