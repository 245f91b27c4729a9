"""Volume in files: round trips, Slicer's header, damaged and unsuitable files, places that cannot be written, DICOM."""

from __future__ import annotations

import gzip
import json
import math
import os
import struct
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from SDFSMISLib.errors import InputError
from SDFSMISLib.images.volume import Geometry, Volume, read_labelmap
from volume_examples import FailingMoves, contents, geometries, plain, quick, seeds, volumes

EXTENSIONS = (".nii.gz", ".nii", ".nrrd", ".mha", ".seg.nrrd")


@settings(deadline=None, max_examples=60)
@given(volumes(), st.sampled_from(EXTENSIONS[:4]))
def test_what_is_written_is_read_again(tmp_path_factory, volume: Volume, extension: str) -> None:
    path = volume.write(tmp_path_factory.mktemp("round") / f"deep/er/scan.v1{extension}")
    again = Volume.read(path)
    assert again.voxels.dtype == volume.voxels.dtype and np.array_equal(again.voxels, volume.voxels)
    assert again.geometry.displacement(volume.geometry) < 1e-3
    assert again.path == path and [file.name for file in path.parent.iterdir()] == [path.name]


@quick
@given(
    geometries(),
    st.dictionaries(st.integers(1, 300), st.text(st.characters(codec="utf-8", exclude_categories=("C",))), max_size=4),
    seeds,
)
def test_a_labelmap_keeps_its_labels_and_names(tmp_path_factory, geometry: Geometry, names, seed: int) -> None:
    values = np.array([0, *(names or {1: ""})])
    voxels = np.random.default_rng(seed).choice(values, geometry.shape).astype(np.uint16)
    path = Volume(voxels, geometry, segment_names=names).write(tmp_path_factory.mktemp("labels") / "l.seg.nrrd")
    again = read_labelmap(path)
    assert np.array_equal(again.voxels, voxels) and again.voxels.dtype == (
        np.uint8 if voxels.max() < 256 else np.uint16
    )
    assert again.geometry.same_grid(geometry)
    for label, name in names.items():
        assert again.segment_names[label] == (name.strip() and name or f"Segment_{label}")


def test_slicer_finds_its_header_fields(tmp_path: Path) -> None:
    volume = plain(dtype="uint8")
    volume.voxels[:] = 0
    volume.voxels[1:3, 2:4, 1:6] = 5
    path = replace(volume, segment_names={5: "left kidney", 7: "spleen"}).write(tmp_path / "a.seg.nrrd", {"model": "m"})
    header = path.read_bytes().split(b"\n\n")[0].decode()
    for line in (
        "Segment0_ID:=Segment_5",
        "Segment0_Name:=left kidney",
        "Segment0_LabelValue:=5",
        "Segment0_Layer:=0",
        "Segment0_Extent:=1 5 2 3 1 2",
        "Segment1_Extent:=0 -1 0 -1 0 -1",
        "Segment1_Name:=spleen",
        "model:=m",
        "space: left-posterior-superior",
    ):
        assert line in header.splitlines()
    assert all(0 <= float(part) <= 1 for part in header.split("Segment0_Color:=")[1].split("\n")[0].split())


@pytest.mark.parametrize("text", ["plain", "of two\nlines", "é", "long " * 9000])
@pytest.mark.parametrize("extension", EXTENSIONS)
def test_metadata_stay_with_the_file(tmp_path: Path, extension: str, text: str) -> None:
    import SimpleITK

    path = plain(dtype="uint8").write(tmp_path / f"a{extension}", {"command": text})
    beside, fields = tmp_path / "a.json", SimpleITK.ReadImage(str(path))
    if beside.exists():
        assert json.loads(beside.read_text("utf-8")) == {"command": text} and "nrrd" not in extension
    else:
        assert fields.GetMetaData("command") == text and "nii" not in extension
    assert Volume.read(path).geometry.same_grid(plain().geometry)


@pytest.mark.parametrize("name", ["a.png", "a", "a.mhd", ".nrrd", "a.nii.bz2"])
def test_an_unknown_extension_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="ends with"):
        plain().write(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, extension: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / f"folder{extension}").mkdir()
    for path in (tmp_path / f"file/a{extension}", tmp_path / f"folder{extension}"):
        with pytest.raises(InputError, match="Cannot write"):
            plain(dtype="uint8").write(path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", f"folder{extension}"]


@pytest.mark.skipif(os.name != "posix", reason="limits the size of files as POSIX has it")
@pytest.mark.parametrize("extension", EXTENSIONS)
def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a{extension}"
    path.write_text("before")
    script = """if True:
        import resource, signal, sys
        import numpy as np
        from SDFSMISLib.errors import InputError
        from SDFSMISLib.images.volume import Geometry, Volume
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
        voxels = np.random.default_rng(0).integers(0, 255, (9, 50, 50), dtype=np.uint8)
        geometry = Geometry(voxels.shape, (1, 1, 1), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
        try:
            Volume(voxels, geometry).write(sys.argv[1])
        except InputError as error:
            sys.exit(2 if "Cannot write" in str(error) else 3)
    """
    run = subprocess.run(
        [sys.executable, "-c", script, str(path)], cwd=Path(__file__).parent.parent, capture_output=True
    )
    assert run.returncode == 2, run.stderr.decode()
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.95])
def test_a_file_cut_short_is_refused(tmp_path: Path, extension: str, share: float) -> None:
    voxels = np.random.default_rng(0).integers(0, 255, (9, 30, 30), dtype=np.uint8)
    path = Volume(voxels, plain(voxels.shape).geometry).write(tmp_path / f"a{extension}")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(InputError, match=r"a\."):
        Volume.read(path)


def test_a_missing_file_and_a_text_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "note.nii").write_text("This is not an image at all. " * 50)
    for name in ("none.nii.gz", "note.nii", "."):
        with pytest.raises(InputError):
            Volume.read(tmp_path / name)


@pytest.mark.parametrize("extension", [".nii.gz", ".nrrd", ".mha"])
def test_images_that_are_not_one_volume_are_refused(tmp_path: Path, extension: str) -> None:
    import SimpleITK

    image = SimpleITK.GetImageFromArray(plain().voxels)
    others = {
        "2 dimensions": image[:, :, 0],
        "4 dimensions": SimpleITK.JoinSeries([image, image]),
        "3 values": SimpleITK.Compose([image] * 3),
    }
    for told, other in others.items():
        SimpleITK.WriteImage(other, str(tmp_path / f"a{extension}"))
        with pytest.raises(InputError, match=told):
            Volume.read(tmp_path / f"a{extension}")


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, 1e-9, 1e9])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_nifti_spacing_that_cannot_be_right_is_refused(tmp_path: Path, bad: float, compressed: bool) -> None:

    raw = bytearray(plain().write(tmp_path / "a.nii").read_bytes())
    struct.pack_into("<f", raw, 76 + 4 * 3, bad)
    path = tmp_path / ("b.nii.gz" if compressed else "b.nii")
    path.write_bytes(gzip.compress(raw) if compressed else raw)
    with pytest.raises(InputError, match="spacing"):
        Volume.read(path)


def test_a_nifti_header_that_contradicts_itself_or_is_silent_is_told(tmp_path: Path) -> None:
    raw = bytearray(plain().write(tmp_path / "a.nii").read_bytes())
    struct.pack_into("<2h", raw, 252, 0, 1)  # sform alone
    struct.pack_into("<3f", raw, 80, 1, 1, 1)
    (tmp_path / "a.nii").write_bytes(raw)
    with pytest.raises(InputError, match="sform"):
        Volume.read(tmp_path / "a.nii")
    struct.pack_into("<2h", raw, 252, 0, 0)
    (tmp_path / "a.nii").write_bytes(raw)
    with pytest.warns(UserWarning, match="how it lies"):
        Volume.read(tmp_path / "a.nii")


def test_nan_and_infinities_are_replaced_and_counted(tmp_path: Path) -> None:
    volume = plain(dtype="float32")
    volume.voxels[0, 0, :4] = [np.nan, np.inf, -np.inf, 500]
    with pytest.warns(UserWarning, match="3 voxels of NaN or infinity"):
        again = Volume.read(volume.write(tmp_path / "a.nrrd"))
    assert again.voxels[0, 0].tolist() == [4, 500, 4, 500, 4, 5]
    volume.voxels[:] = np.nan
    with pytest.raises(InputError, match="no finite"):
        Volume.read(volume.write(tmp_path / "b.nrrd"))


def test_double_precision_is_read_as_single(tmp_path: Path) -> None:
    assert Volume.read(plain(dtype="float64").write(tmp_path / "a.nii.gz")).voxels.dtype == np.float32
    assert Volume.read(plain(dtype="bool").write(tmp_path / "b.nii.gz")).voxels.dtype == np.uint8


def write_dicom(folder: Path, volume: Volume, series: str, skip: int | None = None) -> None:
    import SimpleITK

    folder.mkdir(exist_ok=True)
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for index in range(volume.slice_count(0)):
        image = SimpleITK.GetImageFromArray(volume.voxels[index : index + 1])
        image.SetSpacing(volume.geometry.spacing)
        position = (volume.geometry.index_to_physical() @ [0, 0, index, 1])[:3]
        tags = {
            "0008|0060": "CT",
            "0020|000d": "1.2.826.1",
            "0020|000e": f"1.2.826.1.{series}",
            "0008|0018": f"1.2.826.1.{series}.{index + 1}",
            "0020|0013": str(index),
            "0020|0032": "\\".join(f"{value:.6f}" for value in position),
            "0020|0037": "1\\0\\0\\0\\1\\0",
        }
        for key, value in tags.items():
            image.SetMetaData(key, value)
        if index != skip:
            writer.SetFileName(str(folder / f"{series}_{9 - index}.dcm"))
            writer.Execute(image)


def test_a_folder_with_one_dicom_series_is_a_volume(tmp_path: Path) -> None:
    volume = plain((5, 6, 7))
    write_dicom(tmp_path / "scan", volume, "1")
    again = Volume.read(tmp_path / "scan")
    assert np.array_equal(again.voxels, volume.voxels) and again.geometry.same_grid(volume.geometry)
    write_dicom(tmp_path / "scan", volume, "2")
    with pytest.raises(InputError, match="2 DICOM series"):
        Volume.read(tmp_path / "scan")
    write_dicom(tmp_path / "gap", volume, "3", skip=2)
    with pytest.warns(UserWarning, match="not lie evenly"):
        Volume.read(tmp_path / "gap")


def test_the_content_hash_knows_voxels_and_place(tmp_path: Path) -> None:
    volume = plain()
    assert Volume.read(volume.write(tmp_path / "a.nii.gz")).content_hash() == volume.content_hash()
    moved = replace(volume, geometry=replace(volume.geometry, origin=(0, 0, 0)))
    changed = replace(volume, voxels=np.flip(volume.voxels))
    assert len({volume.content_hash(), moved.content_hash(), changed.content_hash()}) == 3


# -- labelmaps ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("voxels", [np.float32([0.5]), np.int16([-1]), np.int32([70000]), np.float32([np.nan])])
def test_a_file_that_is_no_labelmap_is_refused(tmp_path: Path, voxels: np.ndarray) -> None:
    filled = np.zeros((2, 3, 4), voxels.dtype)
    filled[1, 1, 1] = voxels[0]
    path = Volume(filled, plain(filled.shape).geometry).write(tmp_path / "a.nrrd")
    with pytest.raises(InputError, match="not a labelmap"):
        read_labelmap(path)


def test_whole_numbers_stored_as_floats_are_a_labelmap(tmp_path: Path) -> None:
    labels = read_labelmap(plain(dtype="float32").write(tmp_path / "a.nii.gz"))
    assert labels.voxels.dtype == np.uint8 and np.array_equal(labels.voxels, plain().voxels)


def test_overlapping_segments_are_merged_with_a_warning(tmp_path: Path) -> None:
    import SimpleITK

    layers = np.zeros((2, 4, 5, 6), np.uint8)
    layers[0, 1:3], layers[1, 2:4] = 1, 1
    image = SimpleITK.Compose([SimpleITK.GetImageFromArray(layer) for layer in layers])
    for number, name in enumerate(("liver", "spleen")):
        for key, value in {"ID": f"s{number}", "Name": name, "LabelValue": "1", "Layer": str(number)}.items():
            image.SetMetaData(f"Segment{number}_{key}", value)
    SimpleITK.WriteImage(image, str(tmp_path / "a.seg.nrrd"))
    with pytest.warns(UserWarning, match="on top in 30 voxels; spleen has label 2 now"):
        labels = read_labelmap(tmp_path / "a.seg.nrrd")
    assert labels.segment_names == {1: "liver", 2: "spleen"}
    assert labels.voxels[:, 0, 0].tolist() == [0, 1, 2, 2]


def test_reading_warns_of_nothing_without_a_reason(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for extension in EXTENSIONS:
            read_labelmap(plain(dtype="uint8").write(tmp_path / f"a{extension}"))


# -- what costs time is done once --------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", ["u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8", "i8"])
@pytest.mark.parametrize("scale", [(0.0, 0.0), (1.0, 0.0), (2.0, 0.0), (0.5, -3.0)])
def test_voxels_of_a_compressed_file_are_those_that_simpleitk_reads(
    tmp_path: Path, order: str, kind: str, scale: tuple[float, float]
) -> None:
    import SimpleITK

    codes = {"u1": 2, "i2": 4, "i4": 8, "f4": 16, "f8": 64, "i1": 256, "u2": 512, "u4": 768, "i8": 1024}
    voxels = np.random.default_rng(0).integers(0, 100, (5, 4, 3)).astype(order + kind)
    header = bytearray(352)
    struct.pack_into(f"{order}i", header, 0, 348)
    struct.pack_into(f"{order}8h", header, 40, 3, 3, 4, 5, 1, 1, 1, 1)
    struct.pack_into(f"{order}2h", header, 70, codes[kind], 8 * voxels.itemsize)
    struct.pack_into(f"{order}8f", header, 76, 1, 0.5, 0.75, 2, 1, 1, 1, 1)
    struct.pack_into(f"{order}3f", header, 108, 352, *scale)
    struct.pack_into(f"{order}2h", header, 252, 1, 0)
    header[344:348] = b"n+1\0"
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(gzip.compress(bytes(header) + voxels.tobytes()))
    theirs = SimpleITK.ReadImage(str(path))
    expected = SimpleITK.GetArrayFromImage(theirs)
    volume = Volume.read(path)
    assert volume.voxels.dtype == (np.float32 if expected.dtype == np.float64 else expected.dtype)
    np.testing.assert_array_equal(volume.voxels, expected)
    assert volume.geometry.spacing == theirs.GetSpacing() and volume.geometry.origin == theirs.GetOrigin()
    volume.voxels[0] = 0


def test_a_compressed_file_is_decompressed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import SimpleITK

    path = plain(dtype="int16").write(tmp_path / "scan.nii.gz")
    opened: list[Path] = []
    monkeypatch.setattr(gzip, "open", lambda path, *rest: opened.append(path) or gzip.GzipFile(path, *rest))
    monkeypatch.setattr(SimpleITK.ImageFileReader, "Execute", lambda reader: opened.append("again"))
    assert Volume.read(path).voxels.any() and opened == [path]


@pytest.mark.parametrize("step", range(8))
@pytest.mark.parametrize("existing", [False, True])
def test_a_file_and_the_json_beside_it_change_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, existing: bool
) -> None:
    path = tmp_path / "new" / "scan.nii.gz"
    if existing:
        plain(dtype="int16").write(path, {"model": "old"})
    before, failing = contents(tmp_path), FailingMoves(step)
    monkeypatch.setattr(os, "replace", failing)
    try:
        plain(dtype="uint8").write(path, {"model": "new"})
    except InputError as error:
        assert failing.failed and "scan.nii.gz" in str(error)
        assert contents(tmp_path) == before
    else:
        assert not failing.failed and json.loads((path.parent / "scan.json").read_text()) == {"model": "new"}
        assert step >= (4 if existing else 2) and sorted(one.name for one in path.parent.iterdir()) == [
            "scan.json",
            "scan.nii.gz",
        ]
