"""`sdfsmis examples`: a library by command line, of one scan, of a cohort, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cli_examples import Run, seen
from SDFSMISLib.examples import Library
from SDFSMISLib.images.volume import Volume
from small_scans import ball_scan

pytest_plugins = ["cli_fixtures"]
PRIVACY = "contain the grey values of the scans"


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path / "library")


@pytest.fixture
def refused(run: Run, tmp_path: Path) -> Callable[..., str]:
    """Runs `sdfsmis examples` with words that must be refused with one sentence, and change nothing; the sentence."""

    def sentence(*words: object) -> str:
        before = seen(tmp_path)
        ran = run("examples", *words)
        assert ran.code == 2 and ran.out == "" and seen(tmp_path) == before, ran
        (line,) = ran.err.splitlines()
        assert line.startswith("Error: ")
        return line

    return sentence


def test_one_scan_is_added_listed_and_removed(run: Run, files: Path, library: Library) -> None:
    ran = run("examples", "add", library.folder, files / "scan.nii.gz", files / "full.seg.nrrd")
    written = library.folder / "scan.safetensors"
    assert ran.code == 0 and ran.err == "" and PRIVACY in ran.out
    size = f"{written.stat().st_size / 1000:.0f} kB"
    assert ran.out.splitlines()[0] == f"Wrote {written} ({size}): ball"
    (one,) = library.examples()
    assert np.array_equal(one.labels, ball_scan()[1].voxels)
    ran = run("examples", "list", library.folder)
    assert ran.code == 0
    (row,) = [line for line in ran.out.splitlines() if "scan" in line]
    assert [cell.strip() for cell in row.split("│")[1:-1]] == [
        "scan",
        "ball",
        "40 × 40 × 12",
        "1.00 × 1.00 × 2.00",
        size,
    ]
    assert f"1 example, {size}" in ran.out and ran.out.endswith("  1 ball, in 1\n")
    ran = run("examples", "remove", library.folder, "scan")
    assert (ran.code, ran.out) == (0, f"Removed scan from {library.folder}\n") and not written.exists()


def test_labels_are_chosen_and_named(run: Run, files: Path, library: Library) -> None:
    scan, labelmap = ball_scan()
    labelmap.voxels[3], labelmap.voxels[4] = 2 * labelmap.voxels[3], 3 * labelmap.voxels[4]
    Volume(labelmap.voxels, scan.geometry).write(files / "labels.nii.gz")
    words = ("examples", "add", library.folder, files / "scan.nii.gz", files / "labels.nii.gz", "--name", "pat 1")
    ran = run(*words, "--label", "1=liver", "3")
    assert ran.code == 0 and ran.out.startswith(f"Wrote {library.folder / 'pat 1.safetensors'} (")
    assert ran.out.splitlines()[0].endswith(": liver, label 3")
    assert run(*words, "--label", "2=spleen").code == 0
    (one,) = library.examples()
    assert one.names == {1: "liver", 2: "spleen", 3: ""} and np.array_equal(one.labels, labelmap.voxels)
    assert "without a name, in 1" in run("examples", "list", library.folder).out


def test_a_cohort_is_added_with_the_labelmaps_that_segment_has_written(
    run: Run, tmp_path: Path, library: Library
) -> None:
    """Under each of the names that a labelmap may have; of two scans of the same name, by their folders."""
    scans, results = tmp_path / "scans", tmp_path / "results"
    for number, (name, result) in enumerate({"a": "a.nii.gz", "b": "b_seg.nii.gz", "c": "c_seg.seg.nrrd"}.items()):
        scan, labelmap = ball_scan((6, 20, 20 + number))
        scan.write(scans / f"{name}.nii.gz")
        labelmap.write(results / result, {"sdfsmis_version": "0"})
    ball_scan((5, 20, 20))[0].write(scans / "d.nii.gz")
    (results / "b_seg_volumes.csv").write_text("label,name,volume_ml,voxels\n1,liver,3,4\n")
    (results / "a_volumes.csv").write_text("some,thing\n1,2\n")
    ran = run("examples", "add", library.folder, "--scans", scans, "--labelmaps", results)
    assert ran.code == 0 and [line.split(": ")[-1] for line in ran.out.splitlines()[:3]] == ["label 1", "liver", "ball"]
    assert ran.err == f"Left out {scans / 'd.nii.gz'}: it has no labelmap in {results}.\n"
    assert library.names() == ("a", "b", "c") and PRIVACY in ran.out
    assert [one.image.shape[2] for one in library.examples()] == [20, 21, 22]


def test_scans_of_one_name_are_told_apart_by_their_folders(run: Run, tmp_path: Path, library: Library) -> None:
    for number in (1, 2):
        scan, labelmap = ball_scan((6, 20, 20 + number))
        scan.write(tmp_path / "scans" / f"pat{number}" / "ct.nii.gz")
        labelmap.write(tmp_path / "results" / f"pat{number}" / "ct_seg.nii.gz")
    (tmp_path / "list.txt").write_text("scans/pat1/ct.nii.gz\nscans/pat2/ct.nii.gz\n")
    words = ("--scans", tmp_path / "list.txt", "--labelmaps", tmp_path / "results")
    assert run("examples", "add", library.folder, *words).code == 0
    assert library.names() == ("pat1_ct", "pat2_ct")
    assert [one.image.shape[2] for one in library.examples()] == [21, 22]


def test_scans_and_labelmaps_may_lie_in_one_folder(run: Run, tmp_path: Path, library: Library) -> None:
    for number, name in enumerate("ab"):
        scan, labelmap = ball_scan((6, 20, 20 + number))
        scan.write(tmp_path / "all" / f"{name}.nii.gz")
        labelmap.write(tmp_path / "all" / f"{name}_seg.nii.gz")
    ran = run("examples", "add", library.folder, "--scans", tmp_path / "all", "--labelmaps", tmp_path / "all")
    assert (ran.code, ran.err) == (0, "") and library.names() == ("a", "b")


def test_a_scan_that_fails_does_not_stop_the_others(run: Run, tmp_path: Path, library: Library) -> None:
    for name in "abc":
        for place, volume in zip(("scans", "labels"), ball_scan((6, 20, 20 + ord(name) % 7)), strict=True):
            volume.write(tmp_path / place / f"{name}.nii.gz")
    (tmp_path / "labels" / "b.nii.gz").write_bytes(b"damaged")
    ran = run("examples", "add", library.folder, "--scans", tmp_path / "scans", "--labelmaps", tmp_path / "labels")
    assert ran.code == 1 and library.names() == ("a", "c") and PRIVACY in ran.out
    (line,) = ran.err.splitlines()
    assert line.startswith(f"Failed: {tmp_path / 'scans' / 'b.nii.gz'}: Cannot read")


def test_a_scan_of_a_cohort_may_lack_a_structure_but_not_all(run: Run, tmp_path: Path, library: Library) -> None:
    for name, label in (("a", 1), ("b", 2), ("c", 3)):
        scan, labelmap = ball_scan((6, 20, 20 + label))
        scan.write(tmp_path / "scans" / f"{name}.nii.gz")
        Volume(label * labelmap.voxels, scan.geometry).write(tmp_path / "labels" / f"{name}.nii.gz")
    words = ("--scans", tmp_path / "scans", "--labelmaps", tmp_path / "labels", "--label", "1=liver", "2=spleen")
    ran = run("examples", "add", library.folder, *words)
    assert ran.code == 1 and "c.nii.gz: The mask has no label 1, 2; it has 3" in ran.err
    assert [one.names for one in library.examples()] == [{1: "liver"}, {2: "spleen"}]


def test_words_that_do_not_fit(refused: Callable[..., str], files: Path) -> None:
    place, scan, full = files / "library", files / "scan.nii.gz", files / "full.seg.nrrd"
    assert "Give a scan and its labelmap" in refused("add", place)
    assert "Give a scan and its labelmap" in refused("add", place, scan)
    assert "Give both --scans and --labelmaps" in refused("add", place, "--scans", files)
    assert "Give both --scans and --labelmaps" in refused("add", place, "--labelmaps", files)
    both = ("--scans", files, "--labelmaps", files)
    assert "leave them out" in refused("add", place, scan, full, *both)
    assert "leave them out" in refused("add", place, *both, "--name", "a")
    for label in ("0", "-1", "liver", "1.5", "=liver"):
        assert f"--label {label} was given" in refused("add", place, scan, full, f"--label={label}")
    assert "Missing argument 'NAME'" in refused("remove", place)


def test_the_program_alone_shows_its_commands(run: Run) -> None:
    ran = run("examples")
    assert ran.code == 2 and "Usage: sdfsmis examples" in ran.out
    assert ran.err == "Error: A command is missing; see sdfsmis examples --help.\n"


def test_scans_and_libraries_that_cannot_be_read(refused: Callable[..., str], files: Path) -> None:
    place, scan, full = files / "library", files / "scan.nii.gz", files / "full.seg.nrrd"
    assert "There is no file or folder" in refused("add", place, files / "none.nii.gz", full)
    assert "There is no file or folder" in refused("add", place, scan, files / "none.nii.gz")
    assert "no label 4; it has 1" in refused("add", place, scan, full, "--label", 4)
    ramp = Volume(np.arange(8 * 24 * 24, dtype=np.int16).reshape(8, 24, 24), ball_scan((8, 24, 24))[0].geometry)
    ramp.write(files / "ramp.nii.gz")
    assert "4607 different values, as a scan has" in refused("add", place, files / "ramp.nii.gz", files / "ramp.nii.gz")
    assert "Cannot write" in refused("add", scan, scan, full)
    assert "There is no library" in refused("list", place)
    assert "There is no library" in refused("remove", place, "scan")
    assert "has no example; add one" in refused("list", files)
    nothing = ("--scans", files, "--labelmaps")
    assert "is no folder" in refused("add", place, *nothing, scan)
    (files / "empty").mkdir()
    assert "has no example" in refused("list", files / "empty")


def test_a_cohort_without_labelmaps_or_with_two_of_one_scan(run: Run, tmp_path: Path, library: Library) -> None:
    scan, labelmap = ball_scan((6, 20, 20))
    scan.write(tmp_path / "scans" / "a.nii.gz")
    (tmp_path / "labels").mkdir()
    words = ("examples", "add", library.folder, "--scans", tmp_path / "scans", "--labelmaps", tmp_path / "labels")
    ran = run(*words)
    assert ran.code == 2 and "Left out" in ran.err and "No scan of" in ran.err.splitlines()[-1]
    for name in ("a.nii.gz", "a_seg.nrrd"):
        labelmap.write(tmp_path / "labels" / name)
    ran = run(*words)
    assert ran.code == 2 and "could both be the labelmap" in ran.err and not library.folder.exists()


def test_a_damaged_example_is_named(run: Run, files: Path, library: Library) -> None:
    words = (library.folder, files / "scan.nii.gz", files / "full.seg.nrrd")
    assert run("examples", "add", *words).code == 0
    shutil.copy(files / "full.seg.nrrd", library.folder / "bad.safetensors")
    for command in (("list", library.folder), ("add", *words)):
        ran = run("examples", *command)
        assert ran.code == 2 and ran.out == "" and "bad.safetensors is damaged" in ran.err and "Trace" not in ran.err
