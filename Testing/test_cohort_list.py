"""The scans of a cohort: what files, folders and lists name, and what their results are called."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from SDFSMISLib.cohort.scan_list import find_scans, is_cohort, result_names
from SDFSMISLib.errors import InputError

DICOM = bytes(128) + b"DICM" + bytes(16)


def touched(folder: Path, *names: str, content: bytes = b"x") -> list[Path]:
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return paths


# -- folders -----------------------------------------------------------------------------------------------------------


def test_a_file_is_a_scan_and_each_comes_once(tmp_path: Path) -> None:
    one, other = touched(tmp_path, "a.nii.gz", "b.nrrd")
    (tmp_path / "c").mkdir()
    assert find_scans([other, one, tmp_path / "c" / ".." / "b.nrrd"]) == [other, one]


def test_a_folder_names_its_volumes_in_order(tmp_path: Path) -> None:
    scans = touched(tmp_path, "a.nii.gz", "b.mha", "c.NRRD")
    touched(tmp_path, "notes.md", "picture.png", "painted.seg.nrrd", "._a.nii.gz", ".DS_Store", "deeper/d.nii.gz")
    assert find_scans([tmp_path]) == scans and is_cohort(tmp_path, scans)


def test_the_mask_among_the_scans_is_none(tmp_path: Path) -> None:
    scan, mask = touched(tmp_path, "scan.nii.gz", "mask.nii.gz")
    assert find_scans([tmp_path], leave_out=mask) == [scan]
    assert find_scans([tmp_path], leave_out=tmp_path / "none.nii.gz") == [mask, scan]


def test_a_folder_with_dicom_files_is_one_scan(tmp_path: Path) -> None:
    touched(tmp_path, "1.dcm", "2", content=DICOM)
    touched(tmp_path, "notes.nii.gz")
    assert find_scans([tmp_path]) == [tmp_path] and not is_cohort(tmp_path, [tmp_path])


def test_a_folder_of_series_has_a_scan_in_each(tmp_path: Path) -> None:
    touched(tmp_path, "DICOMDIR", "b/1", "a/IM0", "c/.hidden", content=DICOM)
    touched(tmp_path, "c/notes.txt")
    assert find_scans([tmp_path]) == [tmp_path / "a", tmp_path / "b"]


def test_a_folder_of_unknown_files_is_left_to_the_reader(tmp_path: Path) -> None:
    """DICOM files of old have no mark."""
    touched(tmp_path, "IM0", "IM1")
    assert find_scans([tmp_path]) == [tmp_path]


def test_a_folder_without_scans_is_refused(tmp_path: Path) -> None:
    touched(tmp_path, "deeper/still/a.nii.gz")
    with pytest.raises(InputError, match="holds no scan; name one that .* deeper down, make a list"):
        find_scans([tmp_path])
    with pytest.raises(InputError, match="There is no file or folder"):
        find_scans([tmp_path / "none"])


# -- lists -------------------------------------------------------------------------------------------------------------


def test_a_text_list_has_a_path_on_each_line(tmp_path: Path) -> None:
    scans = touched(tmp_path, "scans/a.nii.gz", "scans/b #2.nii.gz", "c.nii.gz")
    lines = ["# all of them", "", "  ../scans/a.nii.gz", "../scans/b #2.nii.gz  ", str(scans[2]), "../scans/a.nii.gz"]
    (path,) = touched(tmp_path, "lists/all.txt", content=("\ufeff" + "\r\n".join(lines)).encode())
    found = find_scans([path])
    assert [scan.resolve() for scan in found] == [scan.resolve() for scan in scans]
    assert is_cohort(path, found)


def test_a_list_names_folders_too(tmp_path: Path) -> None:
    scans = touched(tmp_path, "scans/a.nii.gz", "scans/b.nii.gz")
    touched(tmp_path, "series/1.dcm", content=DICOM)
    (path,) = touched(tmp_path, "all.txt", content=b"scans\nseries\n")
    assert find_scans([path]) == [*scans, tmp_path / "series"]


@pytest.mark.parametrize(
    "text",
    [
        "case,Scan,age\n1,a.nii.gz,50\n2,b c.nii.gz,\n",
        "case;scan\n1;a.nii.gz\n\n2;b c.nii.gz\n",
        'a.nii.gz,1\n"b c.nii.gz",2\n',
        "path\na.nii.gz\nb c.nii.gz\n",
        "scan,label\na.nii.gz,1\na.nii.gz,2\nb c.nii.gz,1\nb c.nii.gz,2\n,3\n",
    ],
)
def test_a_table_has_a_column_of_scans(tmp_path: Path, text: str) -> None:
    scans = touched(tmp_path, "a.nii.gz", "b c.nii.gz")
    (path,) = touched(tmp_path, "all.csv", content=text.encode())
    assert find_scans([path]) == scans


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"scan.nii.gz\n\nnone.nii.gz\n", "a scan is not there, on line 3: .*none.nii.gz; correct the list"),
        ("a.csv", b"scan\nnone.nii.gz\nnor this\nscan.nii.gz", "2 of its 3 scans are not there, the first on line 2"),
        ("a.csv", b"none.nii.gz\nscan.nii.gz", "a scan is not there, on line 1"),
        ("a.txt", b"# nothing\n\n", "names no scan"),
        ("a.csv", b"", "names no scan"),
        ("a.csv", b"scan,age\n,3\n", "names no scan"),
        ("a.txt", b"\xff\xfe\x00a", "a text file in UTF-8 is needed"),
        ("a.txt", b"x" * 100_000, "is not there"),
        ("a.txt", b"a\0b", "is not there"),
    ],
)
def test_bad_lists_are_refused(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    touched(tmp_path, "scan.nii.gz")
    (path,) = touched(tmp_path, name, content=content)
    with pytest.raises(InputError, match=words):
        find_scans([path])


@given(st.binary(max_size=200), st.sampled_from([".txt", ".csv"]))
def test_any_content_of_a_list_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, extension: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"any{extension}"
    path.write_bytes(content)
    try:
        find_scans([path])
    except InputError as error:
        assert str(path.parent) in str(error)


FILE_NAMES = st.text("abc #;,'\"é", min_size=1, max_size=6).map(lambda text: f"x{text}x.nii")


@given(st.lists(FILE_NAMES, min_size=1, max_size=4, unique=True))
def test_names_of_any_kind_go_through_a_table(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    folder = tmp_path_factory.mktemp("table")
    scans = touched(folder, *names)
    with (folder / "all.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["number", "scan"], *enumerate(names)])
    assert find_scans([folder / "all.csv"]) == scans


# -- names of results --------------------------------------------------------------------------------------------------


def test_results_are_named_after_the_scans(tmp_path: Path) -> None:
    scans = touched(tmp_path, "x/a.nii.gz", "y/b.v2.nrrd", "c.seg.nrrd")
    (tmp_path / "d.series").mkdir()
    assert result_names([*scans, tmp_path / "d.series"]) == ["a", "b.v2", "c", "d.series"]


def test_scans_of_the_same_name_keep_their_folders(tmp_path: Path) -> None:
    scans = touched(tmp_path, "all/p1/ct.nii.gz", "all/p2/deep/ct.nii.gz", "all/p3/mr.nii.gz")
    assert result_names(scans) == ["p1/ct", "p2/deep/ct", "p3/mr"]
    assert result_names(touched(tmp_path, "ct.nii.gz", "p/ct.nii.gz")) == ["ct", "p/ct"]


def test_two_files_that_differ_in_their_extension_are_refused(tmp_path: Path) -> None:
    scans = touched(tmp_path, "p1/ct.nii.gz", "p2/ct.nii", "p2/ct.mha")
    with pytest.raises(InputError, match=r"p2.ct.nii and .*p2.ct.mha would have results of the same name; rename one"):
        result_names(scans)
