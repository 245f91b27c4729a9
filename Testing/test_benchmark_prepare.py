"""From challenge layouts to the benchmark's form: small folders of each layout, made here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from PIL import Image

from benchmark_examples import ran
from SDFSMISLib.benchmark import DATA_SETS, DataSet
from SDFSMISLib.benchmark.prepare import prepare
from SDFSMISLib.cohort.cases import load_case
from SDFSMISLib.errors import InputError
from SDFSMISLib.evaluation import read_manifest
from SDFSMISLib.images.volume import Geometry, Volume

CHAOS, SABS, CMR = (DATA_SETS[name] for name in ("chaos_t2", "sabs", "cmr"))
STRAIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
FLIPPED = (1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)  # as CHAOS's files lie after conversion


def block(shape: tuple[int, int, int], label: int, level: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """A scan of ``level`` with a block of ``high`` in the second third of each axis, and its labels."""
    voxels, labels = np.full(shape, level, dtype=np.float32), np.zeros(shape, dtype=np.int16)
    inside = tuple(slice(side // 3, 2 * side // 3) for side in shape)
    voxels[inside], labels[inside] = high, label
    return voxels, labels


def write_pair(
    scan: Path,
    labels: Path,
    arrays: tuple[np.ndarray, np.ndarray],
    spacing: tuple[float, float, float],
    direction: tuple[float, ...] = STRAIGHT,
) -> None:
    geometry = Geometry(arrays[0].shape, spacing, (5.0, -7.0, 11.0), direction)
    Volume(arrays[0].astype(np.int16), geometry).write(scan)
    Volume(arrays[1], geometry).write(labels)


def prepared(data: DataSet, source: Path, output: Path) -> list[tuple[Volume, np.ndarray]]:
    """Scan and labels of every case of the manifest that is made."""
    cases = read_manifest(prepare(data, source, output)).cases
    assert all(dict(case.targets) == dict(data.labels) and case.split == "test" for case in cases)
    loaded = [load_case(case) for case in cases]
    return [(one.scan, one.labelmap.voxels) for one in loaded]


def centre_of(mask: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Where a structure lies in the patient, mm."""
    index = np.argwhere(mask).mean(axis=0)[::-1]
    turn = np.reshape(geometry.direction, (3, 3))
    return np.array(geometry.origin) + turn @ (index * geometry.spacing)


# -- CT


@pytest.mark.parametrize(
    ("scan", "labels"),
    [
        ("RawData/Training/img/img0007.nii.gz", "RawData/Training/label/label0007.nii.gz"),
        ("averaged-training-images/DET0007_avg.nii.gz", "averaged-training-labels/DET0007_avg_seg.nii.gz"),
    ],
)
def test_ct_is_windowed_cropped_and_resampled_in_the_plane(tmp_path: Path, scan: str, labels: str) -> None:
    arrays = block((9, 128, 128), 6, -1000.0, 75.0)
    arrays[0][:, 60:, :10] = 3000.0
    write_pair(tmp_path / scan, tmp_path / labels, arrays, (0.8, 0.8, 3.0))
    ((volume, found),) = prepared(SABS, tmp_path, tmp_path / "out")
    assert volume.voxels.shape == (9, 256, 256)
    assert volume.geometry.spacing == pytest.approx((0.8 * 112 / 256, 0.8 * 112 / 256, 3.0), rel=1e-5)
    assert volume.voxels.min() == 0 and volume.voxels.max() == 255
    inside = volume.voxels[found == 6]
    assert np.median(inside) == pytest.approx((75 + 125) / 400 * 255, abs=0.5)
    original = Geometry(arrays[1].shape, (0.8, 0.8, 3.0), (5.0, -7.0, 11.0), STRAIGHT)
    np.testing.assert_allclose(
        centre_of(found > 0, volume.geometry), centre_of(arrays[1] > 0, original), atol=0.5 * 0.8
    )


def test_ct_slices_of_512_lose_32_pixels_on_each_side_and_become_256(tmp_path: Path) -> None:
    arrays = block((3, 512, 512), 1, -125.0, 275.0)
    write_pair(tmp_path / "img1.nii", tmp_path / "label1.nii", arrays, (0.7, 0.7, 2.5))
    ((volume, found),) = prepared(SABS, tmp_path, tmp_path / "out")
    assert volume.geometry.spacing == pytest.approx((0.7 * 1.75, 0.7 * 1.75, 2.5), rel=1e-5)
    assert np.count_nonzero(found) == pytest.approx(np.count_nonzero(arrays[1]) / 1.75**2, rel=0.03)


# -- MR


def test_mr_nifti_is_clipped_resampled_and_centred(tmp_path: Path) -> None:
    arrays = block((20, 150, 160), 4, 10.0, 200.0)
    arrays[0][0, 0, 0] = 30000.0  # one bright voxel of many
    write_pair(tmp_path / "image_3.nii.gz", tmp_path / "label_3.nii.gz", arrays, (2.0, 2.0, 5.5), FLIPPED)
    ((volume, found),) = prepared(CHAOS, tmp_path, tmp_path / "out")
    assert volume.voxels.shape == (round(20 * 5.5 / 7.7), 256, 256)
    assert volume.geometry.spacing == pytest.approx((1.25, 1.25, 7.7), rel=1e-5)
    assert volume.voxels.max() == pytest.approx(200, abs=1)
    original = Geometry(arrays[1].shape, (2.0, 2.0, 5.5), (5.0, -7.0, 11.0), FLIPPED)
    assert set(np.unique(found)) == {0, 4}
    apart = np.abs(centre_of(found > 0, volume.geometry) - centre_of(arrays[1] > 0, original))
    assert (apart <= np.array(volume.geometry.spacing) / 2).all()  # a structure of few slices is cut to whole ones


def test_a_small_mr_slice_is_filled_up_with_its_darkest_value(tmp_path: Path) -> None:
    write_pair(
        tmp_path / "image_3.nii.gz", tmp_path / "label_3.nii.gz", block((6, 50, 60), 1, 30, 90), (1.25, 1.25, 7.7)
    )
    ((volume, found),) = prepared(CHAOS, tmp_path, tmp_path / "out")
    assert volume.voxels.shape == (6, 256, 256) and volume.voxels[0, 0, 0] == 30
    assert np.count_nonzero(found) == np.count_nonzero(block((6, 50, 60), 1, 30, 90)[1])


def test_cardiac_labels_become_ours(tmp_path: Path) -> None:
    arrays = block((5, 40, 40), 200, 0.0, 300.0)
    arrays[1][:, :5], arrays[1][:, 35:] = 500, 600
    write_pair(
        tmp_path / "c0t2/patient2_C0.nii.gz", tmp_path / "c0gt/patient2_C0_manual.nii.gz", arrays, (1.25, 1.25, 7.99)
    )
    ((volume, found),) = prepared(CMR, tmp_path, tmp_path / "out")
    assert volume.geometry.spacing == pytest.approx((1.25, 1.25, 7.99), rel=1e-5)
    assert {label: int(np.count_nonzero(found == label)) for label in (1, 2, 3)} == {
        label: int(np.count_nonzero(arrays[1] == value)) for label, value in ((1, 200), (2, 500), (3, 600))
    }


def write_dicom(folder: Path, positions: list[float], greys: list[int], side: int = 24) -> None:
    """CHAOS's layout: slices whose names are not in the order of their positions, each of a series of its own, with a
    picture of the labels; the slice at position p has the value 100 + p."""
    for kind in ("DICOM_anon", "Ground"):
        (folder / kind).mkdir(parents=True)
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for number, (position, grey) in enumerate(zip(positions, greys, strict=True)):
        image = SimpleITK.GetImageFromArray(np.full((1, side, side), 100 + round(position), dtype=np.int16))
        image.SetSpacing((1.5, 1.5, 9.0))
        image.SetOrigin((0.0, 0.0, position))
        name = f"IMG-0004-{number:05d}"
        for key, value in {
            "0008|0060": "MR",
            "0020|000e": f"1.2.3.{number}",
            "0020|0032": f"0\\0\\{position}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0018|0050": "9",
        }.items():
            image.SetMetaData(key, value)
        writer.SetFileName(str(folder / "DICOM_anon" / f"{name}.dcm"))
        writer.Execute(image)
        picture = np.zeros((side, side), dtype=np.uint8)
        picture[8:16, 4:12] = grey
        Image.fromarray(picture).save(folder / "Ground" / f"{name}.png")


def test_chaos_s_own_layout_is_read_by_position_with_each_slice_s_own_picture(tmp_path: Path) -> None:
    write_dicom(tmp_path / "Train_Sets/MR/5/T2SPIR", [18.0, 0.0, 27.0, 9.0], [0, 63, 252, 126])
    ((volume, found),) = prepared(CHAOS, tmp_path, tmp_path / "out")
    assert volume.geometry.spacing == pytest.approx((1.25, 1.25, 7.7), rel=1e-5)
    levels = [float(plane.max()) for plane in volume.voxels]
    assert levels == sorted(levels)  # from the lowest position upwards
    shown = [sorted(set(np.unique(plane)) - {0}) for plane in found]
    assert shown[0] == [1] and shown[-1] == [4]  # liver lowest, spleen highest; the right kidney between
    assert 2 in set(np.unique(found))


# -- what is in that form already, and what is none


def test_scans_in_the_benchmark_s_form_are_named_where_they_are(tmp_path: Path) -> None:
    arrays = block((5, 256, 256), 2, 0.0, 300.0)
    write_pair(
        tmp_path / "in/images/chaos_04.nii.gz", tmp_path / "in/labels/chaos_04.nii.gz", arrays, (1.25, 1.25, 7.7)
    )
    manifest = prepare(CHAOS, tmp_path / "in", tmp_path / "out")
    (case,) = json.loads(manifest.read_text(encoding="utf-8"))["cases"]
    assert case["id"] == "chaos_t2/chaos_04" and Path(case["image"]) == tmp_path / "in/images/chaos_04.nii.gz"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["cases.json"]


def test_what_was_prepared_is_accepted_as_it_is_and_not_made_again(tmp_path: Path) -> None:
    write_pair(
        tmp_path / "in/img1.nii.gz", tmp_path / "in/label1.nii.gz", block((3, 64, 64), 6, -125, 275), (1.0, 1.0, 3.0)
    )
    prepare(SABS, tmp_path / "in", tmp_path / "out")
    first = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.nii.gz")}
    prepare(SABS, tmp_path / "in", tmp_path / "out")
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.nii.gz")} == first
    again = prepare(SABS, tmp_path / "out", tmp_path / "elsewhere")
    (case,) = read_manifest(again).cases
    assert case.image == tmp_path / "out" / "sabs_01.nii.gz"


def test_the_command_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pair(
        tmp_path / "in/img1.nii.gz", tmp_path / "in/label1.nii.gz", block((3, 64, 64), 6, -125, 275), (1.0, 1.0, 3.0)
    )
    ran("prepare", "--data", "sabs", "--source", tmp_path / "in", "--output", tmp_path / "out")
    assert capsys.readouterr().out == f"Wrote {tmp_path / 'out' / 'cases.json'}\n"


def test_what_cannot_be_prepared_is_refused_in_a_sentence(tmp_path: Path) -> None:
    def refused(says: str, data: DataSet = SABS) -> None:
        with pytest.raises(InputError, match=says) as caught:
            prepare(data, tmp_path / "in", tmp_path / "out")
        assert "\n" not in str(caught.value)

    refused("no folder .*in; name the one that holds")
    (tmp_path / "in").mkdir()
    refused("no scans of sabs in a known layout; expected is img<number>")
    arrays = block((3, 32, 32), 99, 0, 100)
    write_pair(tmp_path / "in/img1.nii.gz", tmp_path / "in/label1.nii.gz", arrays, (1.0, 1.0, 3.0))
    refused("label 99; sabs has the labels 1 to 13")
    write_pair(tmp_path / "in/more/img1.nii.gz", tmp_path / "in/label2.nii.gz", arrays, (1.0, 1.0, 3.0))
    refused("have the same number")
    (tmp_path / "in/more/img1.nii.gz").unlink()
    refused("label2.nii.gz has no scan beside it")
    (tmp_path / "in/label2.nii.gz").unlink()
    write_dicom(tmp_path / "in/MR/5/T2SPIR", [0.0, 9.0], [63, 30])
    refused("label value 30; accepted are 55 to 70", CHAOS)
    next((tmp_path / "in/MR/5/T2SPIR/Ground").iterdir()).unlink()
    refused("has no picture for IMG-0004", CHAOS)
    for path in (tmp_path / "in/MR/5/T2SPIR/Ground").iterdir():
        path.unlink()
    (tmp_path / "in/MR/5/T2SPIR/Ground").rmdir()
    refused("lacks DICOM_anon or Ground", CHAOS)
