"""Volume: geometry, orientation, intensities and labelmaps over shapes, types, spacings and oblique directions."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from SDFSMISLib.errors import InputError
from SDFSMISLib.images.volume import Geometry, IntensityWindow, SliceOrientation, Volume, match_labelmap
from volume_examples import IDENTITY, canonical, geometries, plain, quick, seeds, stored_otherwise, volumes

# -- geometry and orientation ------------------------------------------------------------------------------------------


@quick
@given(st.booleans(), st.booleans(), st.booleans())
def test_undo_takes_apply_back_without_copying(transpose: bool, rows: bool, columns: bool) -> None:
    orientation, array = SliceOrientation(transpose, rows, columns), np.arange(12).reshape(3, 4)
    turned = orientation.apply(array)
    assert np.array_equal(orientation.undo(turned), array)
    assert np.shares_memory(turned, array) and np.shares_memory(orientation.undo(turned), array)
    assert orientation.apply_spacing((1.0, 2.0)) == ((2.0, 1.0) if transpose else (1.0, 2.0))
    assert turned.shape == ((4, 3) if transpose else (3, 4))


@quick
@given(volumes(), st.permutations(range(3)), st.tuples(*[st.booleans()] * 3))
def test_a_flipped_or_permuted_file_gives_the_same_canonical_slices(volume, order, flips) -> None:
    other = stored_otherwise(volume, tuple(order), flips)
    for axis in range(3):
        theirs = order.index(axis)
        assert other.slice_count(theirs) == volume.slice_count(axis)
        for index in range(volume.slice_count(axis)):
            there = volume.slice_count(axis) - 1 - index if flips[theirs] else index
            assert np.array_equal(canonical(volume, axis, index), canonical(other, theirs, there))
        spacings = [
            grid.slice_orientation(a).apply_spacing(grid.in_plane_spacing(a))
            for grid, a in ((volume.geometry, axis), (other.geometry, theirs))
        ]
        assert spacings[0] == spacings[1]
    assert other.window() == volume.window()


def test_an_exact_turn_by_45_degrees_does_not_depend_on_the_file() -> None:
    for turned_about in range(3):
        axes = np.eye(3)
        first, second = (axis for axis in range(3) if axis != turned_about)
        axes[np.ix_([first, second], [first, second])] = np.array([[1, -1], [1, 1]]) / math.sqrt(2)
        volume = replace(plain(), geometry=replace(plain().geometry, direction=tuple(axes.ravel())))
        for order, flips in itertools.product(
            itertools.permutations(range(3)), itertools.product((False, True), repeat=3)
        ):
            other = stored_otherwise(volume, order, flips)
            index = volume.slice_count(0) - 1 if flips[order.index(0)] else 0
            assert np.array_equal(canonical(volume, 0, 0), canonical(other, order.index(0), index))


@quick
@given(geometries(smallest=2))
def test_canonical_rows_and_columns_run_toward_superior_posterior_left(geometry: Geometry) -> None:
    """Measured with positions, not with the code's own idea of directions."""
    matrix = geometry.index_to_physical()
    indices = np.stack(np.meshgrid(*map(np.arange, geometry.shape), indexing="ij"), axis=-1)[..., ::-1]
    positions = indices @ matrix[:3, :3].T + matrix[:3, 3]
    seen = set()
    for axis in range(3):
        orientation = geometry.slice_orientation(axis)
        plane = [orientation.apply(positions[..., part][(slice(None),) * axis + (0,)]) for part in range(3)]
        down = np.array([part[1, 0] - part[0, 0] for part in plane])
        right = np.array([part[0, 1] - part[0, 0] for part in plane])
        row, column = (int(np.abs(step).argmax()) for step in (down, right))
        if np.sort(np.abs(down) / np.linalg.norm(down))[-1] > 0.9 and np.abs(right).max() / np.linalg.norm(right) > 0.9:
            assert row > column  # S (2) before P (1) before L (0)
            assert down[row] > 0 and right[column] > 0
            seen.add((row, column))
    assert len(seen) in (0, 1, 3)


def test_an_axial_slice_of_a_plain_lps_file_is_shown_as_it_is() -> None:
    assert plain().geometry.slice_orientation(0) == SliceOrientation(False, False, False)
    assert [plain().geometry.plane(axis) for axis in range(3)] == ["axial", "coronal", "sagittal"]


def test_axes_count_in_the_order_of_the_array() -> None:
    geometry = Geometry((10, 20, 30), (1.0, 2.0, 3.0), (0, 0, 0), IDENTITY)
    assert [geometry.axis_spacing(axis) for axis in range(3)] == [3, 2, 1]
    assert [geometry.in_plane_spacing(axis) for axis in range(3)] == [(2, 1), (3, 1), (3, 2)]
    assert [geometry.slice_shape(axis) for axis in range(3)] == [(20, 30), (10, 30), (10, 20)]
    volume = Volume(np.zeros((10, 20, 30), np.uint8), geometry)
    for axis in range(3):
        assert volume.slice(axis, 3).shape == geometry.slice_shape(axis)
        assert np.shares_memory(volume.slice(axis, 3), volume.voxels)


@pytest.mark.parametrize(
    ("spacing", "axis"),
    [((1, 1, 1), 0), ((1.25, 1.25, 7.7), 0), ((1, 5, 1), 1), ((7, 1, 1), 2), ((0.5, 0.5001, 0.5), 0), ((1, 2, 3.5), 2)],
)
def test_the_default_axis_has_the_most_alike_spacings(spacing, axis) -> None:
    assert Geometry((4, 4, 4), spacing, (0, 0, 0), IDENTITY).default_axis() == axis


@quick
@given(geometries())
def test_same_grid_tolerates_rounding_and_nothing_more(geometry: Geometry) -> None:
    nudged = replace(geometry, origin=tuple(value + 1e-5 * min(geometry.spacing) for value in geometry.origin))
    assert geometry.same_grid(geometry) and geometry.same_grid(nudged)
    assert not geometry.same_grid(
        replace(geometry, origin=(geometry.origin[0] + geometry.spacing[0], *geometry.origin[1:]))
    )
    assert not geometry.same_grid(replace(geometry, spacing=tuple(1.1 * value for value in geometry.spacing)))
    assert not geometry.same_grid(replace(geometry, shape=(geometry.shape[0] + 1, *geometry.shape[1:])))
    assert "\n" not in geometry.describe()


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, 1e-6, 1e4])
def test_a_spacing_that_cannot_be_right_is_refused(bad: float) -> None:
    with pytest.raises(InputError, match="spacing"):
        Geometry((2, 2, 2), (1.0, bad, 1.0), (0, 0, 0), IDENTITY)


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": (0, 2, 2)},
        {"origin": (math.nan, 0, 0)},
        {"direction": (1, 1, 0, 0, 1, 0, 0, 0, 1)},
        {"direction": (0,) * 9},
    ],
)
def test_an_impossible_grid_is_refused(changes) -> None:
    with pytest.raises(InputError):
        replace(plain().geometry, **changes)


@pytest.mark.parametrize(
    ("axis", "index", "told"), [(0, 4, "0 to 3"), (1, -1, "0 to 4"), (2, 6, "0 to 5"), (3, 0, "0, 1 and 2")]
)
def test_a_slice_outside_names_the_range(axis: int, index: int, told: str) -> None:
    with pytest.raises(InputError, match=told):
        plain().slice(axis, index)


# -- intensities -------------------------------------------------------------------------------------------------------


@quick
@given(volumes(), st.sampled_from(("robust", "minmax")))
def test_a_window_lies_within_the_scan_and_normalizes_to_minus_one_to_one(volume: Volume, method) -> None:
    window = volume.window(method)
    assert volume.voxels.min() <= window.low <= window.high <= volume.voxels.max()
    shown = window.normalize(volume.voxels)
    assert shown.dtype == np.float32 and shown.shape == volume.voxels.shape
    assert shown.min() >= -1 and shown.max() <= 1
    order = np.argsort(volume.voxels, axis=None)
    assert (np.diff(shown.ravel()[order]) >= 0).all()


@quick
@given(st.sampled_from(("float16", "float32", "float64")), st.sampled_from([0.0, 1.0, 1e-30, 1e30]), seeds)
def test_nan_and_infinities_never_reach_the_window(dtype: str, scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    with np.errstate(over="ignore"):
        voxels = (rng.normal(size=(3, 8, 8)) * scale).astype(dtype)
    voxels.flat[rng.integers(0, voxels.size, 20)] = rng.choice([np.nan, np.inf, -np.inf], 20)
    volume = Volume(voxels, Geometry(voxels.shape, (1, 1, 1), (0, 0, 0), IDENTITY))
    if not np.isfinite(voxels).any():
        with pytest.raises(InputError, match="finite"):
            volume.window()
        return
    for method in ("robust", "minmax"):
        shown = volume.window(method).normalize(voxels)
        assert np.isfinite(shown).all() and np.abs(shown).max() <= 1


@pytest.mark.parametrize("value", [0, -1000, 7, 3e38, -3e38, 1e-40])
def test_a_constant_scan_becomes_minus_one(value: float) -> None:
    voxels = np.full((2, 3, 4), value, np.float32)
    window = Volume(voxels, Geometry(voxels.shape, (1, 1, 1), (0, 0, 0), IDENTITY)).window()
    assert window.low == window.high == float(np.float32(value))
    assert (window.normalize(voxels) == -1).all()


def test_extreme_windows_do_not_overflow() -> None:
    edge = float(np.finfo(np.float32).max)
    assert np.allclose(IntensityWindow(-edge, edge).normalize(np.float32([-edge, 0, edge])), [-1, 0, 1])
    assert np.allclose(IntensityWindow(1e9, 1e9 + 10).normalize(np.int64([10**9, 10**9 + 5, 10**9 + 10])), [-1, 0, 1])
    assert np.allclose(IntensityWindow(0, 1e-40).normalize(np.float64([-1, 0, 5e-41, 1])), [-1, -1, 0, 1])
    assert np.array_equal(IntensityWindow(-1, 3).normalize(np.array([np.nan, np.inf, -np.inf])), [-1, 1, -1])
    for low, high in ((1, 0), (math.nan, 1), (0, math.inf)):
        with pytest.raises(InputError, match="window"):
            IntensityWindow(low, high)


def test_padding_air_and_outliers_do_not_move_the_robust_window() -> None:
    rng = np.random.default_rng(0)
    tissue = rng.normal(40, 20, (20, 64, 64))
    shown = [Volume(tissue.astype(np.int16), plain(tissue.shape).geometry).window()]
    air = tissue.copy()
    air[:, :30] = rng.normal(-1000, 15, air[:, :30].shape)
    air[:, :6] = -3024
    air[0, -1, :40] = 20000
    shown.append(Volume(air.astype(np.int16), plain(tissue.shape).geometry).window())
    assert abs(shown[0].low - shown[1].low) < 4 and abs(shown[0].high - shown[1].high) < 4
    assert Volume(air, plain(tissue.shape).geometry).window("minmax") == IntensityWindow(-3024, 20000)


@pytest.mark.parametrize("padding", [0, -500, 4000])
def test_padding_of_any_value_is_left_out(padding: int) -> None:
    tissue = np.random.default_rng(0).normal(300, 50, (20, 64, 64)).astype(np.int16)
    padded = tissue.copy()
    padded[:, :20] = padding
    windows = [Volume(voxels, plain(tissue.shape).geometry).window() for voxels in (tissue, padded)]
    assert abs(windows[0].low - windows[1].low) < 4 and abs(windows[0].high - windows[1].high) < 4


def test_a_scan_of_two_values_keeps_both() -> None:
    voxels = np.zeros((4, 10, 10), np.uint8)
    voxels[2, 4:6] = 1
    assert Volume(voxels, plain(voxels.shape).geometry).window() == IntensityWindow(0, 1)


def test_a_large_scan_is_sampled_without_stripes() -> None:
    columns = np.arange(512, dtype=np.int16)
    voxels = np.tile(np.where(columns % 2, 1000 + columns, columns), (3, 2048, 1))  # each column has one value
    window = Volume(voxels, plain(voxels.shape).geometry).window()
    assert window.low < 8 and window.high > 1500
    assert window == Volume(voxels, plain(voxels.shape).geometry).window()


def test_an_unknown_window_method_is_refused() -> None:
    with pytest.raises(InputError, match="robust"):
        plain().window("best")  # type: ignore[arg-type]


# -- labelmaps on another grid -----------------------------------------------------------------------------------------


@quick
@given(geometries(smallest=4), seeds, st.tuples(*[st.integers(0, 2)] * 6))
def test_a_cropped_labelmap_comes_back_onto_the_scan(geometry: Geometry, seed: int, margins) -> None:
    rng = np.random.default_rng(seed)
    box = tuple(
        slice(low, max(low + 1, side - high))
        for side, low, high in zip(geometry.shape, margins[:3], margins[3:], strict=True)
    )
    whole = np.zeros(geometry.shape, np.uint8)
    whole[box] = rng.integers(0, 4, whole[box].shape)
    origin = (geometry.index_to_physical() @ [box[2].start, box[1].start, box[0].start, 1])[:3]
    cropped = Volume(
        whole[box], replace(geometry, shape=whole[box].shape, origin=tuple(origin)), segment_names={1: "a"}
    )
    if not cropped.voxels.any():
        cropped.voxels.flat[0] = 1
    matched, message = match_labelmap(cropped, geometry)
    assert np.array_equal(matched.voxels, whole) and matched.geometry == geometry and matched.segment_names == {1: "a"}
    assert message is None if cropped.geometry.shape == geometry.shape else "nearest neighbour" in message
    assert "outside" not in (message or "") and "\n" not in (message or "")


@quick
@given(volumes(("uint8",)), st.permutations(range(3)), st.tuples(*[st.booleans()] * 3))
def test_a_labelmap_stored_otherwise_comes_back_onto_the_scan(volume: Volume, order, flips) -> None:
    matched, _ = match_labelmap(stored_otherwise(volume, tuple(order), flips), volume.geometry)
    assert np.array_equal(matched.voxels, volume.voxels)


def test_a_labelmap_of_the_same_grid_is_handed_back() -> None:
    labels = plain(dtype="uint8")
    assert match_labelmap(labels, plain().geometry) == (labels, None)
    rounded = replace(labels, geometry=replace(labels.geometry, origin=(-20.01, 10.0, 5.0)))
    matched, message = match_labelmap(rounded, labels.geometry)
    assert message is None and matched.geometry == labels.geometry and matched.voxels is labels.voxels


def test_a_finer_labelmap_is_sampled_at_the_voxels_of_the_scan() -> None:
    scan = Geometry((4, 8, 8), (2.0, 2.0, 4.0), (0, 0, 0), IDENTITY)
    fine = Volume(np.zeros((16, 16, 16), np.uint8), Geometry((16, 16, 16), (1.0, 1.0, 1.0), (0, 0, 0.0), IDENTITY))
    fine.voxels[4:9, 2:6, 2:6] = 3
    matched, message = match_labelmap(fine, scan)
    assert np.argwhere(matched.voxels).min(axis=0).tolist() == [1, 1, 1]
    assert np.argwhere(matched.voxels).max(axis=0).tolist() == [2, 2, 2] and message


def test_a_labelmap_that_reaches_out_of_the_scan_by_a_hair_says_how_much() -> None:
    grid = Geometry((40, 5, 6), (1.5, 2.0, 3.0), (-20.0, 10.0, 5.0), plain().geometry.direction)
    painted = np.ones(grid.shape, np.uint8)
    painted[39, 1:] = 0
    labels = Volume(painted, replace(grid, origin=(-20.0, 10.0, 8.0)))
    matched, message = match_labelmap(labels, grid)
    assert matched.voxels.sum() == 1170 and "6 of its 1176 painted voxels lie outside" in message


def test_a_labelmap_painted_beside_the_scan_is_refused() -> None:
    labels = Volume(np.ones((4, 5, 6), np.uint8), replace(plain().geometry, origin=(-20.0, 10.0, 8.0)))
    with pytest.raises(InputError, match="30 of the mask's 120 painted voxels lie outside"):
        match_labelmap(labels, plain().geometry)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"origin": (500.0, 0.0, 0.0)}, "The mask lies outside the scan"),
        ({"origin": (-30.5, 10.0, 5.0)}, "The mask lies outside the scan"),
        ({"origin": (-14.0, 12.0, 8.0), "spacing": (1.5, 2.0, 3.1)}, "lie outside the scan"),
        ({"origin": (-20.0, 10.0, 9.5), "spacing": (1.5, 2.0, 0.1)}, "between the scan's voxels"),
        ({"origin": (0.0, 0.0, 0.0), "spacing": (1.0, 1.0, 1.0)}, "lost its position"),
    ],
)
def test_a_labelmap_of_another_frame_is_refused_with_both_geometries(changes, told: str) -> None:
    labels = plain(dtype="uint8")
    labels.voxels[:] = 0
    labels.voxels[3, 4, 5] = 1
    with pytest.raises(InputError, match=told) as error:
        match_labelmap(replace(labels, geometry=replace(labels.geometry, **changes)), plain().geometry)
    assert "mask: 6 × 5 × 4 voxels" in str(error.value) and "scan: 6 × 5 × 4 voxels" in str(error.value)
    assert "\n" not in str(error.value)


# -- the whole ---------------------------------------------------------------------------------------------------------


def test_voxels_must_fit_their_geometry() -> None:
    for voxels in (np.zeros((5, 4, 6)), np.zeros((4, 5)), np.zeros((4, 5, 6), complex)):
        with pytest.raises(InputError):
            Volume(voxels, plain().geometry)


def test_no_module_of_this_floor_needs_simpleitk_or_torch_before_a_file_is_touched() -> None:
    script = (
        "import sys, SDFSMISLib.support; assert not {'torch', 'SimpleITK', 'safetensors', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parent.parent, check=True)


def test_window_and_content_hash_are_never_those_of_other_voxels() -> None:
    volume = plain(dtype="int16")
    volume.voxels[0] = 3
    known = volume.content_hash(), volume.window()
    with pytest.raises(ValueError, match="read-only"):
        volume.voxels[0] = 100
    changed = volume.voxels.copy()
    changed[0] = 100
    volume.voxels = changed
    assert volume.content_hash() == Volume(changed.copy(), volume.geometry).content_hash() != known[0]
    assert volume.window() == Volume(changed.copy(), volume.geometry).window() != known[1]
    volume.voxels.flags.writeable = True
    volume.voxels[0] = 3
    assert (volume.content_hash(), volume.window()) == known
    volume.geometry = replace(volume.geometry, spacing=(5, 5, 5))
    assert volume.content_hash() != known[0]
