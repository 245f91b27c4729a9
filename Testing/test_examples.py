"""Examples: the same of a scan however it is stored, what its grid keeps, their files; and libraries of them."""

from __future__ import annotations

import json
import math
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from SDFSMISLib import examples
from SDFSMISLib.errors import InputError
from SDFSMISLib.examples import Example, Library, Structure
from SDFSMISLib.images import coarse_grid
from SDFSMISLib.images.coarse_grid import IDENTITY
from SDFSMISLib.images.volume import Geometry, Volume
from SDFSMISLib.support import SupportSet, read_tensors, write_tensors
from small_scans import ball_scan
from volume_examples import FailingMoves, contents, quick, random_direction, seeds, stored_otherwise, volumes


def example(name: str = "ball", **labels: int) -> Example:
    """Of the small scan with a ball, label 1; other values and names as ``liver=3``."""
    scan, labelmap = ball_scan((8, 24, 24))
    if labels:
        voxels = np.zeros_like(labelmap.voxels, np.uint16)
        for number, value in enumerate(labels.values()):
            voxels[2 + number][labelmap.voxels[2 + number] > 0] = value
        labelmap = Volume(voxels, labelmap.geometry, segment_names={value: one for one, value in labels.items()})
    return Example.of(scan, labelmap, name)


def of_another_scan(name: str = "ball", **labels: int) -> Example:
    return replace(example(name, **labels), scan=f"scan of {name} {labels}")


def same(one: Example, other: Example) -> bool:
    arrays = np.array_equal(one.image, other.image) and np.array_equal(one.labels, other.labels)
    fields = ("geometry", "window", "names", "scan")
    return arrays and all(getattr(one, field) == getattr(other, field) for field in fields)


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Lets examples have so many voxels at most."""
    return lambda most: monkeypatch.setattr(coarse_grid, "MOST_VOXELS", most)


# -- of a scan ------------------------------------------------------------------------------------------------------


def test_a_small_scan_is_kept_voxel_by_voxel() -> None:
    scan, labelmap = ball_scan((8, 24, 24))
    one = Example.of(scan, labelmap)
    assert np.array_equal(one.labels, labelmap.voxels) and one.labels.dtype == np.uint8
    assert one.names == {1: "ball"} and one.label_values == (1,) and one.name == "scan"
    assert one.geometry == scan.geometry and one.scan == scan.content_hash() and one.window == scan.window()
    levels = np.linspace(one.window.low, one.window.high, 256)[one.image]
    inside = np.clip(scan.voxels, one.window.low, one.window.high)
    assert np.abs(levels - inside).max() <= (one.window.high - one.window.low) / 255 / 2 + 1e-9


@quick
@given(volumes(), seeds, st.permutations(range(3)), st.tuples(*[st.booleans()] * 3), st.sampled_from([30, 10**6]))
def test_a_scan_stored_otherwise_gives_the_same_example(volume, seed, order, flips, most) -> None:
    rng = np.random.default_rng(seed)
    labels = Volume(rng.choice([0, 1, 2, 300], volume.voxels.shape).astype(np.uint16), volume.geometry)
    labels.voxels[0, 0, 0] = 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coarse_grid, "MOST_VOXELS", most)
        mine = Example.of(volume, labels)
        other = Example.of(stored_otherwise(volume, tuple(order), flips), stored_otherwise(labels, tuple(order), flips))
    assert mine.geometry.direction == IDENTITY and mine.image.size <= most
    assert mine.geometry.displacement(other.geometry) < 1e-6 and mine.window == other.window
    straight = np.count_nonzero(np.reshape(volume.geometry.direction, (3, 3))) == 3
    if straight:
        assert np.array_equal(mine.image, other.image) and np.array_equal(mine.labels, other.labels)
    else:  # rounding of positions
        assert np.abs(mine.image.astype(int) - other.image).max() <= 1
        assert np.mean(mine.labels != other.labels) <= 0.02


def test_the_left_of_a_mirrored_file_stays_left() -> None:
    scan, labelmap = ball_scan((8, 24, 24))
    labelmap.voxels[:, :, 12:] *= 2
    there = tuple(np.argwhere(labelmap.voxels == 2)[0])
    flipped = [stored_otherwise(one, (0, 1, 2), (False, False, True)) for one in (scan, labelmap)]
    assert flipped[0].geometry.direction != IDENTITY
    assert Example.of(*flipped).labels[there] == 2


def test_label_values_above_255_are_kept_and_others_left_out() -> None:
    one = example(liver=300, spleen=2)
    assert one.labels.dtype == np.uint16 and one.names == {2: "spleen", 300: "liver"}
    scan, labelmap = ball_scan((8, 24, 24))
    labelmap.voxels[3] *= 7
    chosen = Example.of(scan, labelmap, labels=[1])
    assert chosen.label_values == (1,) and not chosen.labels[3].any()
    with pytest.raises(InputError, match="no label 5; it has 1, 7"):
        Example.of(scan, labelmap, labels=[5])
    with pytest.raises(InputError, match="labelmap is empty"):
        Example.of(scan, Volume(np.zeros_like(labelmap.voxels), labelmap.geometry))


def test_a_labelmap_of_another_scan_is_refused() -> None:
    scan, labelmap = ball_scan((8, 24, 24))
    away = replace(labelmap.geometry, origin=(900.0, 0.0, 0.0))
    with pytest.raises(InputError, match="outside the scan"):
        Example.of(scan, Volume(labelmap.voxels, away))


def test_thick_slices_are_not_made_finer(coarse: Callable[[int], None]) -> None:
    coarse(2000)
    scan, labelmap = ball_scan((6, 60, 60), spacing=(1.0, 1.0, 9.0))
    one = Example.of(scan, labelmap)
    assert one.image.shape[0] == 6 and one.geometry.spacing[2] == 9
    assert 1500 < one.image.size <= 2000 and one.geometry.spacing[0] == one.geometry.spacing[1] > 3
    extent = [side * step for side, step in zip(one.image.shape, reversed(one.geometry.spacing), strict=True)]
    assert extent == pytest.approx([54, 60, 60])
    half, own_half = np.multiply(one.geometry.spacing, 0.5), np.multiply(scan.geometry.spacing, 0.5)
    assert one.geometry.origin - half == pytest.approx(scan.geometry.origin - own_half), "it fills the same box"


def test_grey_values_on_a_coarser_grid_are_means(coarse: Callable[[int], None]) -> None:
    """A pattern finer than the new voxels becomes grey, and no stripes."""
    coarse(1000)
    voxels = np.indices((20, 20, 20)).sum(axis=0) % 2 * 100.0
    voxels[0, 0] = np.linspace(-1000, 1000, 20)
    grid = Geometry((20, 20, 20), (1, 1, 1), (0, 0, 0), IDENTITY)
    one = Example.of(Volume(voxels, grid), Volume((voxels > 50).astype(np.uint8), grid))
    levels = np.linspace(one.window.low, one.window.high, 256)[one.image[1:]]
    assert one.image.shape == (10, 10, 10) and np.abs(levels - 50).max() <= 1


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("side", [24, 36, 41])
@pytest.mark.parametrize("place", [15, 16])
def test_a_thin_cord_neither_grows_nor_disappears(
    coarse: Callable[[int], None], axis: int, side: int, place: int
) -> None:
    """Two voxels wide, beside a larger structure, on voxels of 1.5 to 2.5 times the side; along all of its length."""
    coarse(math.prod((side, side, side)))
    labels = np.zeros((60, 60, 60), np.uint8)
    labels[:, 10:15, :] = 2
    cord = [slice(place, place + 2)] * 3
    cord[axis] = slice(None)
    labels[tuple(cord)] = 1
    grid = Geometry((60, 60, 60), (1, 1, 1), (0, 0, 0), IDENTITY)
    one = Example.of(Volume(labels.astype(np.float32), grid), Volume(labels, grid))
    volume = math.prod(one.geometry.spacing)
    assert one.image.shape == (side, side, side)
    for label in (1, 2):
        assert np.count_nonzero(one.labels == label) * volume == pytest.approx(np.sum(labels == label), abs=volume)
    along = np.flatnonzero((one.labels == 1).any(axis=tuple(other for other in range(3) if other != axis)))
    assert np.diff([-1, *along, side]).max() <= 3


def test_a_header_rounded_by_another_program_means_no_oblique_scan() -> None:
    scan, labelmap = ball_scan((8, 24, 24))
    c, s = math.cos(0.003), math.sin(0.003)  # less than a tenth of a voxel at the far end
    tilted = replace(scan.geometry, direction=(c, -s, 0, s, c, 0, 0, 0, 1))
    one = Example.of(Volume(scan.voxels, tilted), Volume(labelmap.voxels, tilted))
    assert one.geometry == scan.geometry and np.array_equal(one.labels, labelmap.voxels)


def test_an_oblique_scan_lies_in_the_box_along_the_patient_s_axes() -> None:
    scan, labelmap = ball_scan((12, 30, 30), spacing=(1.0, 1.0, 2.0))
    direction = random_direction(np.random.default_rng(4))
    tilted = replace(scan.geometry, direction=direction)
    one = Example.of(Volume(scan.voxels, tilted), Volume(labelmap.voxels, tilted))
    grid = one.geometry
    half = np.multiply(grid.spacing, 0.5)
    low, high = grid.origin - half, grid.corners().max(axis=0) + half
    assert (tilted.corners() >= low).all() and (tilted.corners() <= high).all()
    assert grid.direction == IDENTITY and min(grid.spacing) >= 1 and max(grid.spacing) <= 2
    assert one.image[0, 0, 0] == 0, "outside of the scan"
    volumes_mm = [
        np.count_nonzero(v) * math.prod(g.spacing) for v, g in ((one.labels, grid), (labelmap.voxels, tilted))
    ]
    assert volumes_mm[0] == pytest.approx(volumes_mm[1], rel=0.01)

    def centre(voxels: np.ndarray, geometry: Geometry) -> np.ndarray:
        index = np.argwhere(voxels)[:, ::-1].mean(axis=0)
        return (geometry.index_to_physical() @ [*index, 1])[:3]

    assert centre(one.labels, grid) == pytest.approx(centre(labelmap.voxels, tilted), abs=0.3)
    assert one.image[one.labels == 1].mean() > 200 > 150 > one.image[one.labels == 0].mean()


# -- its file -------------------------------------------------------------------------------------------------------


@quick
@given(volumes(), seeds)
def test_a_saved_example_is_the_same_when_it_is_loaded(
    tmp_path_factory: pytest.TempPathFactory, volume: Volume, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, 65535], volume.voxels.shape).astype(np.uint16)
    labels[0, 0, 0] = 1
    one = Example.of(volume, Volume(labels, volume.geometry, segment_names={1: "Lünge | links"}), "a scan")
    loaded = Example.load(one.save(tmp_path_factory.mktemp("example") / "a scan.safetensors"))
    assert same(one, loaded) and loaded.name == "a scan" and loaded.digest() == one.digest()
    assert loaded.image.flags.writeable and loaded.labels.dtype == one.labels.dtype


def test_the_digest_is_of_what_is_stored_and_not_of_the_name() -> None:
    one = example()
    others = [
        replace(one, image=one.image ^ 1),
        replace(one, labels=one.labels * 2),
        replace(one, labels=one.labels.astype(np.uint16)),
        replace(one, names={1: "other"}),
        replace(one, scan="other"),
        replace(one, geometry=replace(one.geometry, origin=(0.0, 0.0, 0.0))),
        replace(one, window=replace(one.window, high=one.window.high + 1)),
    ]
    assert len({one.digest(), *(other.digest() for other in others)}) == 8
    assert replace(one, name="other").digest() == one.digest()


def changed(path: Path, **content: object) -> None:
    """Writes other values into a saved example's table of contents."""
    tensors, metadata = read_tensors(path)
    fields = json.loads(metadata["content"]) | content
    path.write_bytes(write_tensors(tensors, metadata | {"content": json.dumps(fields)}))


@pytest.mark.parametrize(
    "content",
    [
        {"shape": [8, 24, 25]},
        {"shape": [8, 24, 23]},
        {"shape": [8, 24]},
        {"shape": [10**6, 10**6, 10**6]},
        {"shape": [0, 24, 24]},
        {"shape": "many"},
        {"spacing": [1, 1, 0]},
        {"origin": [0, 0, float("nan")]},
        {"window": [5, 4]},
        {"window": [5]},
        {"labels": "float32"},
        {"labels": "uint16"},
        {"names": {}},
        {"names": {"1": "ball", "2": "ghost"}},
        {"names": ["ball"]},
        {"differences": 3},
        {"differences": None},
    ],
    ids=str,
)
def test_a_file_whose_content_does_not_fit_is_refused(tmp_path: Path, content: dict[str, object]) -> None:
    path = example().save(tmp_path / "ball.safetensors")
    changed(path, **content)
    with pytest.raises(InputError, match=r"ball\.safetensors is damaged .*; remove it"):
        Example.load(path)


def test_a_decompression_bomb_is_not_decompressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = example().save(tmp_path / "ball.safetensors")
    tensors, metadata = read_tensors(path)
    bomb = np.frombuffer(zlib.compress(bytes(10**7), 9), np.uint8)
    path.write_bytes(write_tensors(tensors | {"labels": bomb}, metadata))
    tracemalloc.start()
    with pytest.raises(InputError, match=f"does not have the {8 * 24 * 24} bytes"):
        Example.load(path)
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()
    changed(path, shape=[1, 10, 10**6])
    monkeypatch.setattr(examples, "LARGEST_STORED", 10**7 - 1)
    with pytest.raises(InputError, match="it declares 10000000 voxels"):
        Example.load(path)


def test_compressed_data_without_their_end_are_refused(tmp_path: Path) -> None:
    """All voxels are there, and the check sum is not."""
    path = example().save(tmp_path / "ball.safetensors")
    tensors, metadata = read_tensors(path)
    path.write_bytes(write_tensors(tensors | {"image": tensors["image"][:-4]}, metadata))
    with pytest.raises(InputError, match="is damaged"):
        Example.load(path)


def test_missing_foreign_newer_and_damaged_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no example"):
        Example.load(tmp_path / "none.safetensors")
    path = example().save(tmp_path / "ball.safetensors")
    whole = path.read_bytes()
    tensors, metadata = read_tensors(path)
    for text, data in (
        ("is not an example", write_tensors(tensors, metadata | {"format": "sdfsmis-support-set"})),
        ("is not an example", write_tensors(tensors, {})),
        ("version 2, and this program reads version 1", write_tensors(tensors, metadata | {"version": "2"})),
        ("is damaged", write_tensors({"image": tensors["image"]}, metadata)),
        ("is damaged", write_tensors(tensors | {"labels": tensors["image"]}, metadata)),
        ("is damaged", write_tensors(tensors | {"image": np.arange(99)}, metadata)),
        ("is damaged", write_tensors(tensors, {key: metadata[key] for key in ("format", "version")})),
        ("is damaged", whole[:-1]),
        ("is damaged", whole[:100]),
        ("is damaged", b""),
        ("is damaged", b"not at all"),
    ):
        path.write_bytes(data)
        with pytest.raises(InputError, match=text):
            Example.load(path)


# -- libraries ------------------------------------------------------------------------------------------------------


def test_a_library_gives_back_what_was_added(tmp_path: Path) -> None:
    library = Library(tmp_path / "new" / "library")
    two, one = of_another_scan("two", liver=1), of_another_scan("one", liver=1)
    assert library.add(two) == library.folder / "two.safetensors"
    library.add(one)
    assert library.names() == ("one", "two")
    first, second = library.examples()
    assert same(first, one) and same(second, two)
    library.remove("one")
    assert library.names() == ("two",)
    with pytest.raises(InputError, match="no example 'one'; it has two"):
        library.remove("one")


def test_another_scan_of_the_same_name_gets_a_number(tmp_path: Path) -> None:
    library = Library(tmp_path)
    for number in range(3):
        library.add(replace(example("Ball" if number else "ball"), scan=str(number)))
    assert library.names() == ("Ball_2", "Ball_3", "ball")
    assert [one.scan for one in library.examples()] == ["1", "2", "0"]


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a/b\\c", "a_b_c"),
        ("..", "scan"),
        (".hidden", "hidden"),
        ("con", "_con"),
        ("CT: 5?", "CT_ 5_"),
        ("x" * 300, "x" * 100),
        ("Lebér", "Lebér"),
        ("", "scan"),
        ("a.b.safetensors", "a.b.safetensors"),
    ],
)
def test_any_name_becomes_one_that_every_system_takes(tmp_path: Path, name: str, stem: str) -> None:
    library = Library(tmp_path)
    assert library.add(replace(example(), name=name)).name == f"{stem}.safetensors"
    assert library.names() == (stem,) and next(iter(library.examples())).name == stem
    library.remove(stem)
    assert not list(tmp_path.iterdir())


def test_the_same_scan_again_joins_its_structures(tmp_path: Path) -> None:
    library = Library(tmp_path)
    first = library.add(example("first", liver=1, spleen=2, other=9))
    scan, labelmap = ball_scan((8, 24, 24))
    voxels = np.zeros_like(labelmap.voxels)
    voxels[2, :12], voxels[5] = labelmap.voxels[2, :12], 7 * labelmap.voxels[5]  # half of what was liver; and elsewhere
    names = {1: "kidney", 7: " Spleen"}
    more = Example.of(scan, Volume(voxels, labelmap.geometry, segment_names=names), "another name")
    assert library.add(more) == first and library.names() == ("first",)
    (joined,) = library.examples()
    expected = np.zeros_like(joined.labels)
    expected[2], expected[4], expected[5] = labelmap.voxels[2], 9 * labelmap.voxels[4], 2 * labelmap.voxels[5]
    expected[2, :12] *= 3
    assert joined.names == {1: "liver", 2: "spleen", 3: "kidney", 9: "other"}
    assert np.array_equal(joined.labels, expected), "kidney lies on liver, and spleen only where it is now"
    library.add(more)
    assert same(joined, next(library.examples()))


def test_the_same_scan_again_on_another_grid_keeps_earlier_structures(
    tmp_path: Path, coarse: Callable[[int], None]
) -> None:
    library = Library(tmp_path)
    library.add(example())
    coarse(600)
    library.add(example(kidney=3))
    (joined,) = library.examples()
    assert joined.image.size <= 600 and joined.names == {1: "ball", 3: "kidney"}


def test_structures_are_matched_by_name_then_by_value(tmp_path: Path) -> None:
    library = Library(tmp_path)
    for name, labels in (("a", {"Liver": 1, "": 4}), ("b", {"liver ": 6, "spleen": 1}), ("c", {"": 6}), ("d", {"": 4})):
        library.add(of_another_scan(name, **labels))
    assert library.structures() == (Structure(1, "Liver", 3), Structure(2, "spleen", 1), Structure(4, "", 2))
    names, unified = library.unified()
    assert names == {1: "Liver", 2: "spleen", 4: ""}
    a, b, c, d = unified
    assert [set(one.label_values) for one in (a, b, c, d)] == [{1, 4}, {1, 2}, {1}, {4}]
    (_, own, *_) = library.examples()
    assert np.array_equal(b.labels == 1, own.labels == 6) and np.array_equal(b.labels == 2, own.labels == 1)
    assert b.names == {1: "Liver", 2: "spleen"} and same(b, replace(own, labels=b.labels, names=names))
    names, unified = library.unified([2, 4])
    assert names == {2: "spleen", 4: ""} and [one.name for one in unified] == ["a", "b", "d"]
    with pytest.raises(InputError, match="no label 3; it has 1, 2, 4"):
        library.unified([2, 3])


def test_a_label_without_a_name_is_not_a_structure_that_its_example_has_by_name(tmp_path: Path) -> None:
    library = Library(tmp_path)
    library.add(of_another_scan("a", liver=1))
    library.add(of_another_scan("b", **{"liver": 2, "": 1}))
    assert library.structures() == (Structure(1, "liver", 2), Structure(2, "", 1))


def test_examples_are_read_one_at_a_time(tmp_path: Path) -> None:
    library = Library(tmp_path)
    for name in ("a", "b"):
        library.add(of_another_scan(name))
    reading = iter(library.unified()[1])
    assert next(reading).name == "a"
    library.remove("b")
    with pytest.raises(InputError, match="There is no example"):
        next(reading)


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    library = Library(tmp_path)
    support = SupportSet.from_labelmap(*ball_scan((8, 24, 24)))
    support.save(tmp_path / "ball.safetensors")
    (tmp_path / "notes.txt").write_text("a")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(InputError, match="has no example; add one with sdfsmis examples add"):
        library.names()
    assert library.add(example("ball")).name == "ball_2.safetensors" and library.names() == ("ball_2",)
    assert len(list(tmp_path.iterdir())) == 4
    with pytest.raises(InputError, match="no example 'ball'"):
        library.remove("ball")


def test_what_is_no_library_is_refused(tmp_path: Path) -> None:
    for ask in (Library.names, Library.structures, Library.unified, Library.examples, Library.entries):
        with pytest.raises(InputError, match="There is no library .*none; a library is a folder"):
            ask(Library(tmp_path / "none"))
        with pytest.raises(InputError, match="has no example"):
            ask(Library(tmp_path))
    (tmp_path / "file").write_text("a")
    with pytest.raises(InputError, match="Cannot write"):
        Library(tmp_path / "file").add(example())
    (tmp_path / "bad.safetensors").write_bytes(b"bad")
    for ask in (Library.names, lambda library: library.add(example())):
        with pytest.raises(InputError, match=r"bad\.safetensors is damaged .*; remove it"):
            ask(Library(tmp_path))


def test_nothing_changes_if_the_last_step_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library(tmp_path)
    library.add(example("first", liver=1))
    before = contents(tmp_path)
    for new in (of_another_scan("second"), example("first", spleen=1)):
        move = FailingMoves(0)
        monkeypatch.setattr("os.replace", move)
        with pytest.raises(InputError, match="Cannot write"):
            library.add(new)
        monkeypatch.undo()
        assert move.failed and contents(tmp_path) == before
