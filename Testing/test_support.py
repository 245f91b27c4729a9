"""Support: painted slices out of labelmaps, several labels and negatives, one file to keep them, what is refused."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from SDFSMISLib.errors import InputError
from SDFSMISLib.images.volume import Geometry, Volume
from SDFSMISLib.support import SupportSet, SupportSlice
from volume_examples import IDENTITY, plain, quick, seeds, stored_otherwise, volumes

SHAPE = (20, 30, 40)


def scan() -> Volume:
    voxels = np.random.default_rng(0).normal(100, 30, SHAPE).astype(np.int16)
    return Volume(voxels, Geometry(SHAPE, (1.0, 1.0, 1.0), (5.0, 6.0, 7.0), IDENTITY))


def mask(*boxes: tuple[int, tuple[slice, ...]], names: dict[int, str] | None = None) -> Volume:
    """A labelmap of ``scan()``, painted box by box."""
    voxels = np.zeros(SHAPE, np.uint8)
    for label, box in boxes:
        voxels[box] = label
    return Volume(voxels, scan().geometry, segment_names=names or {})


def box(*spans: int | tuple[int, int]) -> tuple[slice, ...]:
    return tuple(slice(span, span + 1) if isinstance(span, int) else slice(*span) for span in spans)


def same(one: SupportSlice, other: SupportSlice) -> bool:
    arrays = np.array_equal(one.image, other.image, equal_nan=True) and np.array_equal(one.labels, other.labels)
    return arrays and one.digest() == other.digest()


# -- from a labelmap ---------------------------------------------------------------------------------------------------


def test_one_painted_slice_carries_all_that_it_needs() -> None:
    painted = mask((1, box(7, (5, 15), (10, 30))), names={1: "liver", 2: "spleen"})
    support = SupportSet.from_labelmap(scan(), painted)
    (piece,) = support.slices
    assert (piece.plane.axis, piece.index, piece.plane.spacing, piece.plane.thickness) == (0, 7, (1.0, 1.0), 1.0)
    assert piece.image.dtype == np.float32 and np.array_equal(piece.image, scan().voxels[7])
    assert piece.labels.dtype == np.uint16 and np.array_equal(piece.mask(1), painted.voxels[7] == 1)
    assert piece.plane.window == scan().window() and piece.plane.scan == scan().content_hash()
    assert piece.plane.orientation == scan().geometry.slice_orientation(0)
    assert support.labels == (1,) and support.names == {1: "liver"} and not piece.complete
    assert np.array_equal(piece.canonical_image(), piece.plane.window.normalize(scan().voxels[7]))


@quick
@given(volumes(), st.integers(0, 2), seeds, st.permutations(range(3)), st.tuples(*[st.booleans()] * 3))
def test_a_scan_stored_otherwise_gives_the_same_canonical_support(volume, axis, seed, order, flips) -> None:
    rng = np.random.default_rng(seed)
    index = int(rng.integers(volume.slice_count(axis)))
    labels = Volume(np.zeros(volume.geometry.shape, np.uint8), volume.geometry)
    plane = labels.slice(axis, index)
    plane[:] = rng.integers(0, 3, plane.shape)
    plane[0, 0] = 1
    theirs = order.index(axis)
    there = volume.slice_count(axis) - 1 - index if flips[theirs] else index
    mine = SupportSet.from_labelmap(volume, labels, label=None, slices=[index], axis=axis)
    other = SupportSet.from_labelmap(
        stored_otherwise(volume, tuple(order), flips),
        stored_otherwise(labels, tuple(order), flips),
        label=None,
        slices=[there],
        axis=theirs,
    )
    assert mine.labels == other.labels and mine.slices[0].plane.name == other.slices[0].plane.name
    one, two = mine.slices[0], other.slices[0]
    assert np.array_equal(one.canonical_image(), two.canonical_image())
    assert np.abs(one.canonical_image()).max() <= 1
    assert one.plane.canonical_spacing == two.plane.canonical_spacing
    for label in mine.labels:
        assert np.array_equal(one.canonical_mask(label), two.canonical_mask(label))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_auto_finds_the_axis_on_which_single_slices_are_painted(axis: int) -> None:
    def across(*spans: int | tuple[int, int]) -> list[tuple[int, tuple[slice, ...]]]:
        inside = [(4, 17), (4, 17), (4, 17)]
        return [(1, box(*inside[:axis], span, *inside[axis + 1 :])) for span in spans]

    for spans, indices in (((6,), [6]), ((3, 9, 15), [3, 9, 15]), (((8, 11),), [8, 9, 10])):
        support = SupportSet.from_labelmap(scan(), mask(*across(*spans)))
        assert [(piece.plane.axis, piece.index) for piece in support.slices] == [(axis, index) for index in indices]
    small = box(*[5 if other == axis else (8, 11) for other in range(3)])
    assert SupportSet.from_labelmap(scan(), mask((1, small))).slices[0].plane.axis == axis
    whole = SupportSet.from_labelmap(scan(), mask(*across((4, 17))))
    assert {piece.plane.axis for piece in whole.slices} == {scan().geometry.default_axis()} and len(whole.slices) == 13


def test_two_organs_painted_as_wholes_are_no_single_slices() -> None:
    kidneys = mask((1, box((5, 15), (10, 18), (4, 12))), (1, box((5, 15), (10, 18), (28, 36))))
    assert {piece.plane.axis for piece in SupportSet.from_labelmap(scan(), kidneys).slices} == {0}


def test_labels_are_chosen_and_the_others_left_out() -> None:
    painted = mask(
        (1, box(7, (5, 9), (5, 9))), (4, box(7, (20, 25), (5, 9))), (2, box(12, (5, 9), (5, 9))), names={2: "two"}
    )
    every = SupportSet.from_labelmap(scan(), painted, label=None)
    assert every.labels == (1, 2, 4) and every.names == {1: "", 2: "two", 4: ""}
    assert [piece.index for piece in every.slices] == [7, 12]
    assert [piece.index for piece in every.for_label(2)] == [12]
    some = SupportSet.from_labelmap(scan(), painted, label=[4, 2])
    assert some.labels == (2, 4) and not some.slices[0].mask(1).any()
    assert SupportSet.from_labelmap(scan(), painted, label=2).labels == (2,)
    with pytest.raises(InputError, match="label 1; it has 2"):
        SupportSet.from_labelmap(scan(), painted, label=2).for_label(1)


def test_a_named_slice_without_the_label_is_a_negative() -> None:
    painted = mask((1, box(7, (5, 9), (5, 9))), (2, box(12, (5, 9), (5, 9))))
    named = SupportSet.from_labelmap(scan(), painted, label=None, slices=[12, 7, 3, 3])
    assert [piece.index for piece in named.slices] == [3, 7, 12]
    assert [piece.index for piece in named.for_label(1)] == [3, 7, 12]
    assert not named.slices[0].labels.any()


def test_a_cropped_labelmap_is_brought_onto_the_scan_and_said_so() -> None:
    painted = mask((3, box(7, (5, 15), (10, 30))))
    cropped = Volume(
        painted.voxels[5:10, 5:15, 10:30], replace(scan().geometry, shape=(5, 10, 20), origin=(15, 11, 12))
    )
    with pytest.warns(UserWarning, match="nearest neighbour"):
        support = SupportSet.from_labelmap(scan(), cropped, label=3)
    assert same(support.slices[0], SupportSet.from_labelmap(scan(), painted, label=3).slices[0])


@pytest.mark.parametrize("dtype", ["bool", "int32", "int64", "uint64", "float32"])
def test_any_whole_numbers_are_labels(dtype: str) -> None:
    painted = mask((1, box(7, (5, 15), (10, 30))))
    support = SupportSet.from_labelmap(scan(), replace(painted, voxels=painted.voxels.astype(dtype)))
    assert same(support.slices[0], SupportSet.from_labelmap(scan(), painted).slices[0])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"label": 9}, "no label 9; it has 1, 2"),
        ({"label": []}, "none was named"),
        ({"slices": [7, 20]}, "Slice 20 was named; axis 0 .* 0 to 19"),
        ({"slices": [-1]}, "Slice -1"),
        ({"slices": []}, "none was named"),
        ({"slices": [3]}, "Label 1 is not painted on slice 3 of axis 0; painted slices: slice 7 to 8, 15 of axis 0"),
        ({"slices": [12], "label": [1, 2]}, "Label 1 is not painted on slice 12"),
        ({"slices": [3], "label": None}, "Label 1, 2 is not painted"),
        ({"axis": 3}, "axis 3"),
        ({"slices": [(0, 7), (2, 9)], "axis": 0}, "Slice 2:9 was named, and axis 0; name one axis only"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(arguments, told: str) -> None:
    painted = mask((1, box((7, 9), (5, 29), (5, 39))), (1, box(15, (5, 29), (5, 39))), (2, box(12, (5, 29), (5, 39))))
    with pytest.raises(InputError, match=told):
        SupportSet.from_labelmap(scan(), painted, **arguments)


def test_an_empty_a_fractional_or_a_foreign_mask_is_refused() -> None:
    with pytest.raises(InputError, match="empty"):
        SupportSet.from_labelmap(scan(), mask())
    with pytest.raises(InputError, match="not a labelmap"):
        SupportSet.from_labelmap(scan(), replace(mask(), voxels=np.full(SHAPE, 0.5, np.float32)))
    with pytest.raises(InputError, match="outside the scan"):
        SupportSet.from_labelmap(scan(), replace(mask(), geometry=replace(scan().geometry, origin=(900, 0, 0))))


# -- what stands for one -----------------------------------------------------------------------------------------------


def test_a_digest_changes_with_what_is_painted() -> None:
    supports = [SupportSet.from_labelmap(scan(), mask((1, box(7, (5, end), (5, 9))))) for end in (9, 9, 10)]
    digests = [support.digest()[0] for support in supports]
    assert digests[0] == digests[1] != digests[2] and all(len(digest) == 16 for digest in digests)


# -- in a file ---------------------------------------------------------------------------------------------------------


@quick
@given(volumes(), seeds, st.text(st.characters(codec="utf-8")), st.booleans())
def test_a_saved_support_set_is_loaded_as_it_was(tmp_path_factory, volume: Volume, seed: int, name, named) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.choice(np.uint16([0, 1, 300]), volume.geometry.shape)
    labels.flat[0] = 300
    painted = Volume(labels, volume.geometry, segment_names={300: name})
    support = SupportSet.from_labelmap(volume, painted, label=None, axis=0, slices=[0] if named else None)
    path = support.save(tmp_path_factory.mktemp("support") / "deep/support.safetensors")
    again = SupportSet.load(path)
    assert again.names == support.names and again.labels == support.labels
    assert all(same(one, other) for one, other in zip(again.slices, support.slices, strict=True))
    for one, other in zip(again.slices, support.slices, strict=True):
        assert vars(one).keys() == vars(other).keys()
        assert (one.index, one.plane, one.complete) == (other.index, other.plane, other.complete)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def saved(tmp_path: Path) -> Path:
    return SupportSet.from_labelmap(scan(), mask((1, box(7, (5, 9), (5, 9))))).save(tmp_path / "a.safetensors")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.99])
def test_a_damaged_file_is_refused(tmp_path: Path, share: float) -> None:
    path = saved(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match="damaged"):
        SupportSet.load(path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": "weights"}, "not a support set"),
        ({"version": "3"}, "version 3, and this program reads versions 1 and 2"),
        ({"content": "{"}, "damaged"),
        ({"content": "[]"}, "damaged"),
        ({"content": json.dumps({"names": {}, "slices": [{}]})}, "damaged"),
        ({"content": json.dumps({"names": {}, "slices": [{"axis": 5}]})}, "damaged"),
        ({"content": json.dumps({"names": {"one": ""}, "slices": []})}, "damaged"),
    ],
)
def test_a_foreign_or_newer_file_is_refused(tmp_path: Path, change: dict[str, str], told: str) -> None:
    path = saved(tmp_path)
    with safe_open(path, framework="numpy") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()
    save_file(tensors, path, metadata | change)
    with pytest.raises(InputError, match=told):
        SupportSet.load(path)


@pytest.mark.parametrize("number", ["thickness", "index", "spacing", "window", "scan"])
def test_a_field_that_makes_no_sense_is_refused(tmp_path: Path, number: str) -> None:
    path = saved(tmp_path)
    with safe_open(path, framework="numpy") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()
    content = json.loads(metadata["content"])
    bad = {"thickness": -1, "index": -1, "spacing": [0, 1], "window": {"low": 2, "high": 1}}
    if number in bad:
        content["slices"][0][number] = bad[number]
    else:
        del content["slices"][0][number]
    save_file(tensors, path, metadata | {"content": json.dumps(content)})
    with pytest.raises(InputError):
        SupportSet.load(path)


def test_weights_a_text_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "w.safetensors")
    (tmp_path / "t.safetensors").write_text("{}")
    for name, told in (("w", "not a support set"), ("t", "damaged"), ("none", "There is no")):
        with pytest.raises(InputError, match=told):
            SupportSet.load(tmp_path / f"{name}.safetensors")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path)
    with pytest.raises(InputError, match="Cannot write"):
        SupportSet.load(path).save(path / "below.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(InputError, match="Cannot write"):
        SupportSet.load(path).save(tmp_path / "folder.safetensors")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.safetensors", "folder.safetensors"]


def test_a_matching_labelmap_is_taken_without_a_word() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SupportSet.from_labelmap(plain(), plain(dtype="uint8"), label=5)
