"""Grow from seeds and registration, on scans made here on which it is known what they should find."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from SDFSMISLib.cohort.cases import Case, LabelledScan, load_case
from SDFSMISLib.errors import InputError
from SDFSMISLib.evaluation import BASELINES, Task, read_manifest
from SDFSMISLib.evaluation.baselines import _seeds, fill_between_slices, grow_from_seeds, register_outwards
from SDFSMISLib.evaluation.metrics import dice
from SDFSMISLib.evaluation.protocols import cross_volume, same_volume
from SDFSMISLib.images.volume import Geometry, Volume
from small_cases import ManifestMaker, boxes

IDENTITY = (1, 0, 0, 0, 1, 0, 0, 0, 1)
FLIPPED = (-1, 0, 0, 0, -1, 0, 0, 0, 1)  # columns toward the right, rows toward the front


def tilted_tube(
    slices: tuple[int, int] = (2, 10), shift: float = 1.0, spacing: float = 1.0, flipped: bool = False
) -> LabelledScan:
    """A bright disc of 8 mm radius in a body, that moves to the left by ``shift`` mm from slice to slice of 2 mm."""
    places = (np.arange(round(48 / spacing)) + 0.5) * spacing
    rows, columns = np.meshgrid(places, places, indexing="ij")
    disc = np.stack([np.hypot(rows - 22, columns - 18 - shift * index) < 8 for index in range(12)])
    disc[: slices[0]] = disc[slices[1] :] = False
    body = 60 + 30 * np.sin(rows / 5) * np.cos(columns / 7)
    voxels = np.where(disc, 200, body).astype(np.int16)
    direction = FLIPPED if flipped else IDENTITY
    if flipped:
        voxels, disc = voxels[:, ::-1, ::-1], disc[:, ::-1, ::-1]
    geometry = Geometry(voxels.shape, (spacing, spacing, 2.0), (0.0, 0.0, 0.0), direction)
    scan, labels = (Volume(np.ascontiguousarray(array), geometry) for array in (voxels, disc.astype(np.uint8)))
    case = Case("tubes/one", "tubes", Path(), Path(), {"tube": 1}, "test")
    return LabelledScan(case, scan, labels)


def on_itself(labelled: LabelledScan, shots: int = 1) -> Task:
    task = same_volume(labelled.case, "tube", (), lambda case: labelled, shots)
    assert task is not None
    return task


def on_another(query: LabelledScan, support: LabelledScan, shots: int = 1) -> Task:
    other = replace(support.case, id="tubes/other")
    loaded = {query.case.id: query, other.id: replace(support, case=other)}
    task = cross_volume(query.case, "tube", (other,), lambda case: loaded[case.id], shots)
    assert task is not None
    return task


def judged_dice(task: Task, mask: np.ndarray | None) -> float:
    assert mask is not None and mask.dtype == bool and mask.shape == task.reference.shape
    return dice(mask[list(task.judged)], task.reference[list(task.judged)])


def test_growcut_fills_what_stands_out() -> None:
    task = on_itself(tilted_tube())
    assert judged_dice(task, grow_from_seeds(task)) > 0.95
    assert judged_dice(task, BASELINES["copy"](task)) < 0.7


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_growcut_takes_seeds_from_the_painted_slices_only(axis: int, tmp_path: Path) -> None:
    column = np.moveaxis(boxes((slice(2, 8), slice(4, 8), slice(4, 8))), 0, axis)
    spacing = [1.0, 1.0, 1.0]
    spacing[2 - axis] = 5.0
    maker = ManifestMaker(tmp_path)
    maker.add("a/1", np.ascontiguousarray(column), {"column": 1}, spacing=tuple(spacing))  # type: ignore[arg-type]
    task = same_volume(read_manifest(maker.write()).cases[0], "column", (), load_case, 3)
    assert task is not None and task.axis == axis
    seeds = np.moveaxis(_seeds(task), axis, 0)
    assert np.flatnonzero(seeds.any(axis=(1, 2))).tolist() == list(task.painted) == [3, 5, 7]
    assert (seeds == 1).sum() == 3 * 16
    assert (seeds[3, 2:10, 2:10] != 2).sum() == (seeds[3] != 2).sum() > 16  # a margin of 2 pixels is open


def test_growcut_takes_seeds_of_several_directions() -> None:
    labelled = tilted_tube()
    task = same_volume(labelled.case, "tube", (), lambda case: labelled, 1, directions=3)
    assert task is not None
    seeds = _seeds(task)
    for axis, index in task.planes:
        plane, truth = (np.moveaxis(array, axis, 0)[index] for array in (seeds, task.reference))
        assert np.array_equal(plane == 1, truth) and (plane == 2).any() and (plane == 0).any()
    found = grow_from_seeds(task)
    assert found is not None and dice(found[np.ix_(*task.counted())], task.reference[np.ix_(*task.counted())]) > 0.95


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_fill_between_is_exact_for_a_slanted_block_and_empty_beyond(axis: int) -> None:
    labelled = tilted_tube()
    turned = [np.ascontiguousarray(np.moveaxis(one.voxels, 0, axis)) for one in (labelled.scan, labelled.labelmap)]
    spacing = [1.0, 1.0, 1.0]
    spacing[2 - axis] = 2.0
    geometry = Geometry(turned[0].shape, (spacing[0], spacing[1], spacing[2]), (0.0, 0.0, 0.0), IDENTITY)
    scan, labels = (Volume(voxels, geometry) for voxels in turned)
    task = on_itself(LabelledScan(labelled.case, scan, labels), shots=3)
    assert (task.axis, task.painted) == (axis, (3, 6, 8))
    found = fill_between_slices(task)
    assert found is not None
    along, truth = (np.moveaxis(mask, axis, 0) for mask in (found, task.reference))
    assert np.flatnonzero(along.any(axis=(1, 2))).tolist() == list(range(3, 9))
    assert np.array_equal(along[[3, 6, 8]], truth[[3, 6, 8]]) and dice(along[3:9], truth[3:9]) > 0.97
    assert fill_between_slices(on_itself(labelled)) is None  # one slice has nothing to fill


def test_growcut_does_not_apply_to_another_scan() -> None:
    assert grow_from_seeds(on_another(tilted_tube(), tilted_tube())) is None


def test_growcut_without_slicer_core_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "slicer_core"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "slicer_core", None)
    with pytest.raises(InputError, match=r'pip install "sdfsmis\[evaluate\]"'):
        grow_from_seeds(on_itself(tilted_tube()))


@pytest.mark.parametrize("flipped", [False, True])
def test_registration_follows_a_structure_from_slice_to_slice(flipped: bool) -> None:
    labelled = tilted_tube(slices=(0, 12), flipped=flipped)
    task = on_itself(labelled)
    assert judged_dice(task, register_outwards(task)) > 0.9
    assert judged_dice(task, BASELINES["copy"](task)) < 0.75


def test_registration_goes_from_the_nearest_painted_slice() -> None:
    labelled = tilted_tube(slices=(0, 12), shift=2.0)
    one, three = (on_itself(labelled, shots) for shots in (1, 3))
    assert three.painted == (2, 6, 10)
    assert judged_dice(three, register_outwards(three)) > judged_dice(one, register_outwards(one)) + 0.2


@pytest.mark.parametrize(("spacing", "flipped"), [(1.0, False), (0.5, False), (1.0, True)])
def test_registration_onto_another_scan_goes_by_anatomy_and_millimetres(spacing: float, flipped: bool) -> None:
    query, support = tilted_tube((0, 12), 0.0), tilted_tube((0, 12), 0.0, spacing, flipped)
    task = on_another(query, support)
    assert judged_dice(task, register_outwards(task)) > 0.95
    moved = on_another(tilted_tube((0, 12), 0.5), support)
    registered, copied = (judged_dice(moved, BASELINES[name](moved)) for name in ("registration", "copy"))
    assert registered > copied + 0.05


def test_registration_of_several_slices_of_another_scan_goes_by_majority() -> None:
    task = on_another(tilted_tube((0, 12), 0.0), tilted_tube((0, 12), 0.3), shots=3)
    assert judged_dice(task, register_outwards(task)) > 0.9


def test_registration_without_contrast_leaves_the_mask_where_it_is() -> None:
    labelled = tilted_tube()
    task = on_itself(labelled)
    lone = replace(task, query=Volume(np.full_like(labelled.scan.voxels, 7), labelled.scan.geometry))
    mask = register_outwards(lone)
    assert (mask.sum(axis=(1, 2))[list(task.judged)] == task.reference[task.painted[0]].sum()).all()
