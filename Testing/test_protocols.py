"""Protocols: which slices are painted, and what is judged, on small cases made here."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from SDFSMISLib.cohort.cases import load_case
from SDFSMISLib.errors import InputError
from SDFSMISLib.evaluation import Task, read_manifest
from SDFSMISLib.evaluation.protocols import check_protocol, cross_volume, field, painted_slices, same_volume
from SDFSMISLib.images.planes import Plane
from small_cases import COLUMN, ManifestMaker, boxes, write_two_groups


@pytest.fixture
def maker(tmp_path: Path) -> ManifestMaker:
    return ManifestMaker(tmp_path)


@pytest.fixture
def two_groups(tmp_path: Path) -> Path:
    return write_two_groups(tmp_path)


@pytest.mark.parametrize(
    ("areas", "shots", "expected"),
    [
        ([0, 1, 3, 3, 2], 1, (2,)),  # of equal areas the first
        ([0, 1, 1, 1, 1, 1, 1, 0], 3, (2, 4, 6)),  # C = 6: places 1, 3, 5 of the slices 1 to 6
        ([1, 0, 1, 1, 0, 1, 1], 3, (0, 3, 6)),  # C = 5: places 0, 2, 4 of the slices that hold the target
        ([1] * 10, 3, (1, 5, 8)),
        ([0, 1, 1], 5, (1, 2)),  # no more than there are
    ],
)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_which_slices_are_painted(areas: list[int], shots: int, expected: tuple[int, ...], axis: int) -> None:
    planes = np.zeros((len(areas), 3, 4), dtype=bool)
    for plane, area in zip(planes, areas, strict=True):
        plane.ravel()[:area] = True
    assert painted_slices(np.moveaxis(planes, 0, axis), axis, shots) == expected


def test_painted_slices_are_the_literature_s() -> None:
    """The table of the public reference, where the project's data are at hand."""
    folder = os.environ.get("SDFSMIS_PARITY_DIR")
    table = Path(folder or "") / "episode_tables.json"
    if not folder or not table.exists():
        pytest.skip("SDFSMIS_PARITY_DIR names no folder with episode_tables.json")
    for shots, by_count in json.loads(table.read_text())["support_index"].items():
        for count, expected in by_count.items():
            if int(shots) > 1:
                mask = np.ones((int(count), 1, 1), dtype=bool)
                assert painted_slices(mask, 0, int(shots)) == tuple(sorted(set(expected)))


def test_chunks_are_the_literature_s(maker: ManifestMaker) -> None:
    folder = os.environ.get("SDFSMIS_PARITY_DIR")
    table = Path(folder or "") / "episode_tables.json"
    if not folder or not table.exists():
        pytest.skip("SDFSMIS_PARITY_DIR names no folder with episode_tables.json")
    tables = json.loads(table.read_text())
    for count in (3, 4, 5, 7, 8, 10):
        for name in ("a/1", "a/2"):
            maker.add(
                f"{name}{count}", boxes((slice(1, 1 + count), slice(0, 8), slice(0, 8)), shape=(12, 16, 16)), {"t": 1}
            )
        case, other = read_manifest(maker.write()).cases[-2:]
        task = field(case, "t", (other,), load_case, 1)
        assert task is not None
        bounds = tables["chunk_bounds"][str(count)]
        assert [len(part.judged) for part in task.parts] == np.diff(bounds).tolist()
        painted = [part.support.slices[0].index - 1 for part in task.parts]
        assert painted == tables["support_index"]["3"][str(count)]


def test_same_volume_makes_the_task_of_the_protocol(two_groups: Path) -> None:
    case = read_manifest(two_groups).cases[0]
    task = same_volume(case, "cone", (), load_case, 1)
    assert task is not None
    assert (task.axis, task.label, task.painted) == (0, 2, (3,))
    assert task.judged == (0, 1, 2, 4, 5, 6, 7, 8, 9)  # slices without the target count
    assert task.support.labels == (2,) and task.support.names == {2: "cone"}  # the other target is not given away
    assert np.argwhere(task.reference).min(axis=0).tolist() == [3, 10, 9]
    assert same_volume(case, "column", (), load_case, 3).painted == (3, 5, 7)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("box", "makes_one"),
    [
        ((slice(2, 5), slice(0, 4), slice(0, 4)), False),  # 48 voxels on 3 slices
        ((slice(2, 5), slice(0, 17), slice(0, 1)), True),  # 51 voxels on 3 slices
        ((slice(2, 4), slice(0, 8), slice(0, 8)), False),  # 128 voxels on 2 slices
    ],
)
def test_targets_that_are_too_small_make_no_task(
    maker: ManifestMaker, box: tuple[slice, slice, slice], makes_one: bool
) -> None:
    maker.add("a/1", boxes(box, shape=(8, 20, 20)), {"target": 1})
    maker.add("a/2", boxes(COLUMN), {"target": 1})
    case, other = read_manifest(maker.write()).cases
    assert (same_volume(case, "target", (other,), load_case, 1) is not None) is makes_one
    assert (cross_volume(case, "target", (other,), load_case, 1) is not None) is makes_one
    assert same_volume(case, "unlisted", (), load_case, 1) is None


def test_the_axis_is_that_of_the_most_alike_spacings(maker: ManifestMaker) -> None:
    maker.add("a/1", boxes(COLUMN), {"target": 1}, spacing=(4.0, 1.0, 1.1))
    maker.add("a/2", boxes(COLUMN), {"target": 1}, spacing=(1.0, 1.0, 1.0))
    sagittal, tie = read_manifest(maker.write()).cases
    assert same_volume(sagittal, "target", (), load_case, 1).axis == 2  # type: ignore[union-attr]
    assert same_volume(tie, "target", (), load_case, 1).axis == 0  # type: ignore[union-attr]


def test_cross_volume_takes_the_next_case_that_has_the_target(two_groups: Path) -> None:
    manifest = read_manifest(two_groups)
    tasks: dict[tuple[str, str], Task | None] = {
        (case.id, target): cross_volume(case, target, manifest.following(case), load_case, 1)
        for case in manifest.cases
        for target in case.targets
    }
    supports = {key: task.support_case.id if task else None for key, task in tasks.items()}
    assert supports == {
        ("a/1", "column"): "a/2",
        ("a/1", "cone"): "a/3",  # a/2 lists it, but holds none
        ("a/2", "column"): "a/3",
        ("a/2", "cone"): None,
        ("a/3", "column"): "a/1",  # round to the first, a training case
        ("a/3", "cone"): "a/1",
        ("b/1", "column"): None,  # alone in its group
    }
    task = tasks["a/1", "cone"]
    assert task is not None
    assert task.painted == () and task.judged == tuple(range(10))
    assert task.label == 1 and task.support.labels == (1,)  # the value in the support's labelmap
    assert task.reference.sum() == 75


def test_field_cuts_the_target_s_slices_into_chunks_with_a_support_each(two_groups: Path) -> None:
    manifest = read_manifest(two_groups)
    case = manifest.cases[2]  # column on slices 2 to 7
    task = field(case, "column", manifest.following(case), load_case, 1)
    assert task is not None and task.judged == (2, 3, 4, 5, 6, 7) and task.painted == ()
    assert [part.judged for part in task.parts] == [(2, 3), (4, 5), (6, 7)]
    assert [[piece.index for piece in part.support.slices] for part in task.parts] == [[3], [5], [7]]
    assert {part.support_case.id for part in task.parts} == {"a/1"} and {part.label for part in task.parts} == {1}
    with pytest.raises(InputError, match="3 shots were asked for; the protocol field takes 1"):
        field(case, "column", manifest.following(case), load_case, 3)


def test_a_slice_is_painted_along_each_of_several_axes(two_groups: Path) -> None:
    case = read_manifest(two_groups).cases[0]
    task = same_volume(case, "cone", (), load_case, 1, directions=3)
    assert task is not None and task.planes == (Plane(0, 3), Plane(1, 10), Plane(2, 9))  # of equal areas the first
    assert task.painted == (3,) and task.judged == (0, 1, 2, *range(4, 10)) and not task.has_one_direction
    assert [painted.complete for painted in task.support.slices] == [True] * 3
    counted = np.zeros(task.reference.shape, dtype=bool)
    counted[np.ix_(*task.counted())] = True
    assert counted.sum() == 9 * 15 * 15 and not (counted[3].any() or counted[:, 10].any() or counted[:, :, 9].any())
    whole = task.as_painted(np.zeros_like(counted))
    assert np.array_equal(whole, task.reference & ~counted) and whole.sum() == 75 - 2 * 4 * 4
    for protocol, shots, directions, sentence in (
        ("same-volume", 3, 2, "3 shots and 2 directions were asked for; .* leave one of the two out"),
        ("cross-volume", 1, 2, "the protocol cross-volume takes 1, same-volume up to 3"),
        ("same-volume", 1, 4, "4 directions were asked for; 1 to 3 are accepted"),
    ):
        with pytest.raises(InputError, match=sentence):
            check_protocol(protocol, shots, directions)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_slice_axis_comes_first_and_then_the_lowest(maker: ManifestMaker, axis: int) -> None:
    spacing = [1.0, 1.0, 1.0]
    spacing[2 - axis] = 5.0
    maker.add("a/1", boxes(COLUMN), {"column": 1}, spacing=(spacing[0], spacing[1], spacing[2]))
    (case,) = read_manifest(maker.write()).cases
    task = same_volume(case, "column", (), load_case, 1, directions=2)
    assert task is not None and {plane.axis for plane in task.planes} == {axis, 1 if axis == 0 else 0}


def test_a_mispaired_task_shows_the_next_structure_of_the_scan(two_groups: Path) -> None:
    manifest = read_manifest(two_groups)
    first, second, third, alone = manifest.cases
    task = same_volume(first, "column", (), load_case, 1, mispaired=True)
    assert task is not None
    assert (task.target, task.shown, task.label, task.painted) == ("column", "cone", 2, (3,))
    assert task.reference.sum() == 96 and 3 not in task.judged  # judged by the column all the same
    task = cross_volume(third, "cone", manifest.following(third), load_case, 1, mispaired=True)
    assert task is not None and (task.shown, task.support_case.id) == ("column", "a/1")
    task = field(third, "cone", manifest.following(third), load_case, 1, mispaired=True)
    assert task is not None and [part.shown for part in task.parts] == ["column"] * 3
    assert same_volume(second, "column", (), load_case, 1, mispaired=True) is None  # its cone is not there
    assert same_volume(alone, "column", (), load_case, 1, mispaired=True) is None
