"""Finished scans show where structures lie in another one: registration, fusion, and what networks make of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cli_examples import Run
from SDFSMISLib import InputError, Segmenter, SupportSet, Volume, read_labelmap
from SDFSMISLib.errors import Cancelled
from SDFSMISLib.examples import Example, Library
from SDFSMISLib.images.geometry import Geometry
from SDFSMISLib.inference import atlas
from SDFSMISLib.inference.atlas import AtlasStep, prior_of
from SDFSMISLib.model.built_in import Size, new_built_in
from SDFSMISLib.slices import SliceResult
from volume_examples import stored_otherwise

pytest_plugins = ["cli_fixtures"]

GRID = Geometry((12, 40, 40), (2.0, 2.0, 4.0), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
LIVER, KIDNEY = 3, 7


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def patient(column: float = 20.0, row: float = 20.0, size: float = 1.0, seed: int = 0) -> tuple[Volume, Volume]:
    """A body with two organs, wherever and as large as is asked for: its scan, and its labelmap."""
    z, y, x = np.indices(GRID.shape).astype(np.float32)

    def ball(k: float, j: float, i: float, radius: float) -> np.ndarray:
        apart = (2 * (z - k)) ** 2 + (y - row - size * j) ** 2 + (x - column - size * i) ** 2
        return apart < (size * radius) ** 2

    body = (y - row) ** 2 + 1.3 * (x - column) ** 2 < (size * 15) ** 2
    labels = LIVER * ball(6, -3, -4, 6).astype(np.uint8) + KIDNEY * ball(6, 5, 6, 4).astype(np.uint8)
    grey = 100.0 * body + 60 * (labels == LIVER) - 50 * (labels == KIDNEY)
    noise = np.random.default_rng(seed).normal(0, 2, GRID.shape)
    scan = Volume((grey + noise).astype(np.float32), GRID)
    return scan, Volume(labels, GRID, segment_names={LIVER: "liver", KIDNEY: "kidney"})


def finished(name: str, *, labels: Sequence[int] | None = None, **body: float) -> Example:
    return Example.of(*patient(**body), name, labels)


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * np.count_nonzero(one & other) / max(np.count_nonzero(one) + np.count_nonzero(other), 1)


def test_structures_of_a_moved_and_larger_patient_are_found() -> None:
    query, truth = patient(column=22, row=18, size=1.15, seed=1)
    prior = prior_of(query, [finished("one"), finished("two", column=18, seed=2)], [LIVER, KIDNEY])
    for label in (LIVER, KIDNEY):
        assert dice(prior.probabilities[label] > 127, truth.voxels == label) > 0.85
    assert {one.name for one in prior.agreement} == {"one", "two"}
    assert all(0.5 < one.dice <= 1 for one in prior.agreement)


@pytest.mark.parametrize(("order", "flips"), [((2, 1, 0), (False, True, False)), ((1, 0, 2), (True, False, True))])
def test_however_the_scan_is_stored_the_same_place_is_found(
    order: tuple[int, int, int], flips: tuple[bool, bool, bool]
) -> None:
    query, _ = patient(column=22, seed=1)
    examples = [finished("one")]
    plain = prior_of(query, examples, [LIVER]).probabilities[LIVER]
    turned = stored_otherwise(query, order, flips)
    found = Volume(prior_of(turned, examples, [LIVER]).probabilities[LIVER], turned.geometry)
    np.testing.assert_array_equal(found.voxels, stored_otherwise(Volume(plain, GRID), order, flips).voxels)


def test_the_scan_itself_is_no_example_of_itself() -> None:
    query, _ = patient()
    own = finished("own")
    with pytest.raises(InputError, match="No finished scan but this one shows label 3"):
        prior_of(query, [own], [LIVER])
    assert [one.name for one in prior_of(query, [own, finished("other", seed=1)], [LIVER]).agreement] == ["other"]


def test_a_label_that_no_example_has_is_named() -> None:
    with pytest.raises(InputError, match="shows label 9;"):
        prior_of(patient()[0], [finished("one", seed=1)], [LIVER, 9])


def test_each_label_comes_from_the_examples_that_have_it() -> None:
    query, truth = patient(column=21, seed=1)
    examples = [finished("livers", labels=[LIVER], seed=2), finished("kidneys", labels=[KIDNEY], seed=3)]
    prior = prior_of(query, examples, [LIVER, KIDNEY])
    for label in (LIVER, KIDNEY):
        assert dice(prior.probabilities[label] > 127, truth.voxels == label) > 0.85
    assert prior.support.names == {LIVER: "liver", KIDNEY: "kidney"}
    assert all({one.plane.name for one in prior.support.for_label(label)} == {"axial", "coronal", "sagittal"}
               for label in (LIVER, KIDNEY))  # fmt: skip


def test_the_most_alike_examples_are_registered() -> None:
    query, _ = patient(seed=1)
    scan, labelmap = patient(seed=2)
    noise = Volume(np.random.default_rng(0).normal(0, 50, GRID.shape).astype(np.float32), GRID)
    examples = [Example.of(noise, labelmap, "noise"), Example.of(scan, labelmap, "patient")]
    assert [one.name for one in prior_of(query, examples, [LIVER], most=1).agreement] == ["patient"]


def test_a_label_that_only_an_unlike_example_has_is_found_all_the_same() -> None:
    query, truth = patient(seed=1)
    unlike = finished("unlike", labels=[KIDNEY], column=26, size=0.8, seed=3)
    prior = prior_of(query, [finished("alike", labels=[LIVER], seed=2), unlike], [LIVER, KIDNEY], most=1)
    assert {one.name for one in prior.agreement} == {"alike", "unlike"}
    assert dice(prior.probabilities[KIDNEY] > 127, truth.voxels == KIDNEY) > 0.5
    assert all(np.isnan(one.dice) for one in prior.agreement)  # no two of them have the same structure


def test_slices_that_are_shown_to_networks_have_the_grey_values_of_their_scan() -> None:
    query, _ = patient(seed=1)
    scan, _ = patient(seed=2)
    one = prior_of(query, [finished("one", seed=2)], [LIVER]).support.slices[0]
    assert one.plane.window == scan.window()
    assert np.abs(one.image[one.mask(LIVER)].mean() - 160) < 5


def test_a_wrong_example_is_outvoted() -> None:
    query, truth = patient(seed=1)
    scan, labelmap = patient(seed=2)
    wrong = Example.of(scan, replace(labelmap, voxels=np.roll(labelmap.voxels, 6, axis=2)), "wrong")
    good = [finished("a", seed=3, column=19), finished("b", seed=4, row=21)]
    prior = prior_of(query, [wrong, *good], [LIVER])
    assert dice(prior.probabilities[LIVER] > 127, truth.voxels == LIVER) > 0.85
    assert prior.agreement[-1].name == "wrong" or min(prior.agreement, key=lambda one: one.dice).name == "wrong"


@pytest.mark.parametrize("shape", [(1, 40, 40), (3, 30, 30), (12, 2, 40)])
def test_thin_scans_are_no_trouble(shape: tuple[int, int, int]) -> None:
    grid = replace(GRID, shape=shape)
    scans = [Volume(np.random.default_rng(seed).normal(0, 9, shape).astype(np.float32), grid) for seed in range(2)]
    labelmap = Volume(np.ones(shape, dtype=np.uint8), grid)
    prior = prior_of(scans[0], [Example.of(scans[1], labelmap, "other")], [1])
    assert prior.probabilities[1].shape == shape


def test_a_scan_of_one_value_and_one_elsewhere_are_no_trouble() -> None:
    flat = Volume(np.zeros(GRID.shape, dtype=np.int16), GRID)
    far = replace(patient(seed=5)[0], geometry=replace(GRID, origin=(5000.0, 0.0, 0.0)))
    for query in (flat, far):
        assert prior_of(query, [finished("one")], [LIVER]).probabilities[LIVER].shape == GRID.shape


def test_progress_is_told_and_the_search_can_be_cancelled() -> None:
    query, _ = patient(seed=1)
    examples = [finished("a", seed=2), finished("b", seed=3)]
    steps: list[AtlasStep] = []
    prior_of(query, examples, [LIVER], on_step=steps.append)
    assert [step.message for step in steps if step.total] == ["Example 1 of 2", "Example 2 of 2", "Example 2 of 2"]
    told: list[AtlasStep] = []
    with pytest.raises(Cancelled):
        prior_of(query, examples, [LIVER], on_step=told.append, cancel=lambda: told[-1].total is not None)
    assert told == steps[: len(told)] and told[-1] == AtlasStep(0, 2)


def test_weights_of_examples_that_are_wrong_together_are_shared() -> None:
    twins, other = 1.0, 1.0
    joint = np.array([[[twins, twins, 0], [twins, twins, 0], [0, 0, other]]], dtype=np.float32)
    (weights,) = atlas._weights(joint)
    assert weights.sum() == pytest.approx(1) and weights[0] == pytest.approx(weights[1])
    assert weights[2] == pytest.approx(0.5, abs=0.02)


# -- with networks ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> Segmenter:
    """Networks with random weights: what they find means nothing, how they run does."""
    return Segmenter(new_built_in(size=Size(resolution=32, channels=(8, 16))).to("cpu"), "random")


def test_slices_come_along_all_axes_and_then_fused(small: Segmenter) -> None:
    query, _ = patient(seed=1)
    prior = prior_of(query, [finished("one", seed=2)], [LIVER])
    slices: list[SliceResult] = []
    segmentation = small.segment(query, SupportSet(()), prior=prior, on_slice=slices.append)
    assert {one.axis for one in slices if one.stage == "preview"} == {0, 1, 2}
    assert sorted(one.index for one in slices if one.stage == "final") == list(range(12))
    assert list(segmentation.probabilities) == [LIVER] and segmentation.labelmap.segment_names == {LIVER: "liver"}


def test_painted_slices_of_the_scan_come_out_as_painted_and_others_by_examples(small: Segmenter) -> None:
    query, truth = patient(seed=1)
    prior = prior_of(query, [finished("one", seed=2)], [LIVER, KIDNEY])
    painted = SupportSet.from_labelmap(query, truth, LIVER, slices=[6], axis=0)
    segmentation = small.segment(query, painted, prior=prior)
    np.testing.assert_array_equal(segmentation.labelmap.voxels[6] == LIVER, truth.voxels[6] == LIVER)
    assert segmentation.painted == (6,) and set(segmentation.probabilities) == {LIVER, KIDNEY}
    alone = small.segment(query, SupportSet(()), prior=prior, labels=[KIDNEY])
    np.testing.assert_array_equal(segmentation.probabilities[KIDNEY], alone.probabilities[KIDNEY])
    assert not segmentation.warnings


def test_networks_without_a_neighbour_input_look_where_the_structure_is_expected() -> None:
    pipeline = new_built_in(size=Size(resolution=32, channels=(8, 16), neighbour=False))
    query, _ = patient(seed=1)
    prior = prior_of(query, [finished("one", seed=2)], [LIVER])
    segmentation = Segmenter(pipeline.to("cpu"), "random").segment(query, SupportSet(()), prior=prior)
    assert segmentation.probabilities[LIVER].shape == GRID.shape


# -- command line -----------------------------------------------------------------------------------------------------


@pytest.fixture
def clinic(tmp_path: Path) -> Path:
    """A folder with a library of two patients, and the scan and labelmap of a third."""
    library = Library(tmp_path / "livers")
    library.add(finished("patient 0", column=18))
    scan, labelmap = patient(column=22, seed=1)
    other_values = Volume(labelmap.voxels + 10 * (labelmap.voxels > 0), GRID, segment_names={13: "liver", 17: "kidney"})
    library.add(Example.of(scan, other_values, "patient 1"))
    scan, truth = patient(seed=5)
    scan.write(tmp_path / "next.nii.gz")
    truth.write(tmp_path / "truth.seg.nrrd")
    return tmp_path


@pytest.mark.usefixtures("bright_built_in")
def test_finished_patients_segment_the_next_one(run: Run, clinic: Path) -> None:
    result = clinic / "out.seg.nrrd"
    ran = run("segment", "--support-set", clinic / "livers", "--query", clinic / "next.nii.gz", "--output", result)
    assert ran.code == 0, ran.err
    assert "Library: 2 finished scans" in ran.err and "label 3 (liver), label 7 (kidney)" in ran.err
    found, truth = read_labelmap(result), read_labelmap(clinic / "truth.seg.nrrd")
    assert found.segment_names == {LIVER: "liver", KIDNEY: "kidney"}
    assert dice(found.voxels == LIVER, truth.voxels == LIVER) > 0.8
    text = result.read_bytes()[:4000].decode("latin-1")
    digests = [example.digest()[:16] for example in Library(clinic / "livers").examples()]
    assert "sdfsmis_examples" in text and all(digest in text for digest in digests)


@pytest.mark.usefixtures("bright_built_in")
def test_a_painted_slice_and_a_library_go_together(run: Run, clinic: Path) -> None:
    words = ["segment", "--support", clinic / "next.nii.gz", "--mask", clinic / "truth.seg.nrrd", "--slice", "6"]
    result = clinic / "out.nii.gz"
    ran = run(*words, "--label", LIVER, "--support-set", clinic / "livers", "--output", result)
    assert ran.code == 0, ran.err
    truth = read_labelmap(clinic / "truth.seg.nrrd").voxels == LIVER
    np.testing.assert_array_equal(read_labelmap(result).voxels[6] == LIVER, truth[6])


@pytest.mark.usefixtures("bright_built_in")
def test_a_structure_that_only_the_scan_itself_has_finished_is_left_out(run: Run, clinic: Path) -> None:
    scan = Volume.read(clinic / "next.nii.gz")
    rib = Volume(
        (read_labelmap(clinic / "truth.seg.nrrd").voxels > 0).astype(np.uint8), scan.geometry, None, {1: "rib"}
    )
    Library(clinic / "livers").add(Example.of(scan, rib, "own"))
    result = clinic / "out.nii.gz"
    ran = run("segment", "--support-set", clinic / "livers", "--query", clinic / "next.nii.gz", "--output", result)
    assert ran.code == 0 and "(rib) is in an example of this scan only" in ran.err
    assert set(np.unique(read_labelmap(result).voxels)) <= {0, LIVER, KIDNEY}


def test_a_damaged_example_can_be_removed(run: Run, clinic: Path) -> None:
    (clinic / "livers" / "patient 0.safetensors").write_bytes(b"nothing")
    assert run("examples", "list", clinic / "livers").code == 2
    assert run("examples", "remove", clinic / "livers", "patient 0").code == 0
    assert Library(clinic / "livers").names() == ("patient 1",)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--support-set", "{livers}", "{livers}"], "2 libraries were given"),
        (["--support-set", "{livers}", "--label", "9"], "has no label 9; it has 3"),
        (["--support-set", "{livers}", "--slice", "3"], "a library holds whole scans"),
        (["--support-set", "{livers}", "--server", "http://127.0.0.1:1"], "finished scans stay here"),
        (["--support-set", "{empty}"], "has no example"),
        (["--support-set", "{livers}", "--save-support-set", "{empty}/s.safetensors"], "a library has none"),
    ],
)
def test_bad_use_of_a_library_is_told_in_one_line(run: Run, clinic: Path, words: list[str], message: str) -> None:
    (clinic / "empty").mkdir()
    filled = [word.format(livers=clinic / "livers", empty=clinic / "empty") for word in words]
    ran = run("segment", *filled, "--query", clinic / "next.nii.gz", "--output", clinic / "out.nii.gz")
    assert ran.code == 2 and message in ran.err and "Traceback" not in ran.err
    assert not (clinic / "out.nii.gz").exists()


def test_a_library_alone_needs_a_scan(run: Run, clinic: Path) -> None:
    ran = run("segment", "--support-set", clinic / "livers", "--output", clinic / "out.nii.gz")
    assert ran.code == 2 and "holds no scan to segment" in ran.err
