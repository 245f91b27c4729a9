"""The benchmark's folds and protocols: who is tested with which painted slices, and how it is counted."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmark_examples import A_KIDNEY, ABDOMEN, LIVER_OR_SPLEEN, organ_scan, scans_of, write_scans
from SDFSMISLib.benchmark import DATA_SETS, FoldResult, Score, fold_of, ordered_cases, organ_means
from SDFSMISLib.benchmark.data_sets import Training, excluded_slices, trainings, write_training_set
from SDFSMISLib.benchmark.tasks import fold_task, painted_for_chunks, query_cases
from SDFSMISLib.cohort.cases import Case, LabelledScan, load_case
from SDFSMISLib.errors import InputError
from SDFSMISLib.evaluation import read_manifest
from SDFSMISLib.images.volume import Volume


def bare_cases(count: int) -> tuple[Case, ...]:
    return tuple(Case(str(place), "g", Path("i"), Path("l"), {}, "test") for place in range(count))


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, ...]:
    return scans_of(write_scans(tmp_path_factory.mktemp("scans")))


# -- folds


@pytest.mark.parametrize(("name", "count"), [("CHAOST2", 20), ("SABS", 30), ("CMR", 35)])
def test_folds_are_the_literature_s(name: str, count: int) -> None:
    """The table of the public reference, where the project's data are at hand."""
    table = Path(os.environ.get("SDFSMIS_PARITY_DIR", "")) / "episode_tables.json"
    if not table.is_file():
        pytest.skip("SDFSMIS_PARITY_DIR names no folder with episode_tables.json")
    for number, places in json.loads(table.read_text(encoding="utf-8"))["folds"][name].items():
        assert [int(case.id) for case in fold_of(bare_cases(count), int(number)).cases] == places


def test_the_last_fold_begins_with_the_first_scan_and_its_third_is_the_support() -> None:
    fold = fold_of(bare_cases(20), 4)
    assert [case.id for case in fold.cases] == ["0", "16", "17", "18", "19"]
    assert fold.support.id == "17" and fold.own == {"16", "17", "18", "19"}


def test_every_scan_is_tested_in_a_fold_of_its_own_once() -> None:
    folds = [fold_of(bare_cases(20), number) for number in range(5)]
    own = Counter(case.id for fold in folds for case in query_cases(fold, "field") if case.id in fold.own)
    assert own == Counter(str(place) for place in range(20))


def test_with_the_official_protocol_five_scans_are_never_tested_and_the_shared_ones_twice() -> None:
    folds = [fold_of(bare_cases(20), number) for number in range(5)]
    tested = Counter(case.id for fold in folds for case in query_cases(fold, "official"))
    assert {str(place) for place in range(20)} - tested.keys() == {"2", "6", "10", "14", "17"}
    assert {name for name, times in tested.items() if times == 2} == {"0", "4", "8", "12", "16"}


def test_a_fold_that_there_is_not_is_refused() -> None:
    with pytest.raises(InputError, match="Fold 5 was asked for; the folds are 0 to 4"):
        fold_of(bare_cases(20), 5)


def test_scans_are_ordered_by_the_number_in_their_names(cases: tuple[Case, ...]) -> None:
    assert [case.id.rpartition("_")[2] for case in cases] == [str(number) for number in range(1, 16)]


def test_data_that_are_no_benchmark_are_refused(tmp_path: Path) -> None:
    manifest = read_manifest(write_scans(tmp_path, scans=11))
    with pytest.raises(InputError, match="11 scans of chaos_t2; the data set has 20"):
        ordered_cases(manifest, ABDOMEN)
    with pytest.raises(InputError, match="no group 'sabs', only chaos_t2; make one with: sdfsmis benchmark prepare"):
        ordered_cases(manifest, DATA_SETS["sabs"])
    with pytest.raises(InputError, match="does not list 'LV myocardium'"):
        ordered_cases(read_manifest(write_scans(tmp_path)), replace(DATA_SETS["cmr"], name="chaos_t2"))


# -- painted slices


@pytest.mark.parametrize("count", [3, 4, 7, 10, 34, 60])
def test_one_shot_is_the_literature_s_three_slices_one_for_each_chunk(count: int) -> None:
    holding = list(range(100, 100 + count))
    wanted = [holding[(2 * place + 1) * count // 6] for place in range(3)]
    assert painted_for_chunks(holding, 1, "field") == [(index,) for index in wanted]
    assert painted_for_chunks(holding, 1, "official") == [tuple(wanted)] * 3


def test_five_shots_are_five_slices_of_each_third_or_officially_five_for_all() -> None:
    holding = list(range(30))
    thirds = painted_for_chunks(holding, 5, "field")
    assert [len(third) for third in thirds] == [5, 5, 5]
    assert [min(third) // 10 for third in thirds] == [max(third) // 10 for third in thirds] == [0, 1, 2]
    assert painted_for_chunks(holding, 5, "official") == [(3, 9, 15, 21, 27)] * 3


def test_a_thin_organ_gives_fewer_shots_and_none_twice() -> None:
    assert painted_for_chunks([4, 5], 5, "field") == [(4,), (4, 5), (5,)]
    with pytest.raises(InputError, match="0 shots"):
        painted_for_chunks([4, 5], 0, "field")


def test_a_test_paints_the_support_and_judges_the_organ_s_slices_in_three_chunks(cases: tuple[Case, ...]) -> None:
    fold = fold_of(cases, 1)
    task = fold_task(fold, fold.cases[0], "liver", load_case, 1, "field")
    assert task is not None and task.support_case.id == fold.cases[2].id
    assert [part.judged for part in task.parts] == [(2, 3), (4, 5), (6, 7)]
    assert [[piece.index for piece in part.support.slices] for part in task.parts] == [[3], [5], [7]]
    assert task.judged == (2, 3, 4, 5, 6, 7) and task.painted == ()


def test_the_support_scan_is_tested_with_the_one_behind_it(cases: tuple[Case, ...]) -> None:
    fold = fold_of(cases, 0)
    task = fold_task(fold, fold.support, "spleen", load_case, 1, "field")
    assert task is not None and task.support_case.id == fold.cases[3].id


def test_painted_slices_take_the_window_that_is_asked_for(cases: tuple[Case, ...]) -> None:
    fold = fold_of(cases, 0)
    for window in ("robust", "minmax"):
        task = fold_task(fold, fold.cases[0], "liver", load_case, 1, "field", window)
        assert task is not None
        assert task.support.slices[0].plane.window == load_case(fold.support).scan.window(window)


def test_an_organ_that_query_or_support_lacks_makes_no_test(cases: tuple[Case, ...]) -> None:
    fold = fold_of(cases, 0)

    def load(case: Case) -> LabelledScan:
        labelled = load_case(case)
        if case.id == fold.support.id:
            labelled.labelmap.voxels[labelled.mask("spleen")] = 0
        return labelled

    assert fold_task(fold, fold.cases[0], "spleen", load, 1, "field") is None
    assert fold_task(fold, fold.support, "spleen", load, 1, "field") is None
    assert fold_task(fold, fold.cases[0], "liver", load, 1, "field") is not None


# -- how it is counted


def score(case: str, organ: str, found: int, held: int, both: int, own: bool = True, query: bool = True) -> Score:
    return Score(case, organ, "s", 3, found, held, both, own, query, 0.1)


def test_means_are_over_scans_then_folds_then_organs_and_pooled_ones_over_voxels() -> None:
    first = FoldResult(Path("a"), {}, [score("1", "liver", 10, 10, 10), score("2", "liver", 90, 90, 0)])
    second = FoldResult(Path("b"), {}, [score("3", "liver", 10, 10, 10), score("3", "spleen", 10, 30, 10)])
    assert organ_means([first, second], "own") == {"liver": 0.75, "spleen": 0.5, "mean": 0.625}
    assert organ_means([first, second], "pooled") == pytest.approx({"liver": 0.55, "spleen": 0.5, "mean": 0.525})


def test_shared_scans_and_support_scans_count_where_they_should() -> None:
    rows = [
        score("plain", "liver", 10, 10, 10),
        score("shared", "liver", 10, 10, 0, own=False),
        score("support", "liver", 10, 10, 5, query=False),
    ]
    result = FoldResult(Path("a"), {}, rows)
    assert organ_means([result], "own")["liver"] == pytest.approx(0.75)
    assert organ_means([result], "queries")["liver"] == pytest.approx(0.5)
    assert organ_means([], "own") == {}


# -- what training may see


def test_setting_two_trains_once_for_each_group_and_as_the_literature_has_it_once() -> None:
    assert [training.organs for training in trainings(ABDOMEN, 2, "any", False)] == [
        ("liver", "spleen"),
        ("right kidney", "left kidney"),
    ]
    (plain,) = trainings(ABDOMEN, 1, "any", False)
    (literature,) = trainings(ABDOMEN, 2, "all", False)
    assert plain.organs == literature.organs == ABDOMEN.organs
    assert not plain.hidden and literature.hidden == ABDOMEN.organs


def test_slices_with_one_of_the_organs_are_left_out_or_only_those_with_all() -> None:
    scan, labels = organ_scan(1)
    case = Case("1", "chaos_t2", Path("i"), Path("l"), dict(ABDOMEN.labels), "test")
    labelled = LabelledScan(case, scan, labels)
    upper, lower = trainings(ABDOMEN, 2, "any", False)
    assert set(np.flatnonzero(excluded_slices(labelled, upper))) == LIVER_OR_SPLEEN
    assert set(np.flatnonzero(excluded_slices(labelled, lower))) == A_KIDNEY
    (literature,) = trainings(ABDOMEN, 2, "all", False)
    assert set(np.flatnonzero(excluded_slices(labelled, literature))) == set()  # no slice of this scan shows all four
    assert not excluded_slices(labelled, trainings(ABDOMEN, 1, "any", False)[0]).any()


def test_training_without_labels_gets_none_and_in_setting_two_no_hidden_slice(
    cases: tuple[Case, ...], tmp_path: Path
) -> None:
    upper, _ = trainings(ABDOMEN, 2, "any", False)
    manifest = write_training_set(cases[:2], upper, tmp_path / "shared", tmp_path / "job" / "cases.json")
    for seen, case in zip(read_manifest(manifest).cases, cases, strict=False):
        assert seen.targets == {"body": 1} and seen.split == "train"
        scan, labels = Volume.read(seen.image).voxels, Volume.read(seen.labels).voxels
        original = Volume.read(case.image).voxels
        for index in range(len(scan)):
            hidden = index in LIVER_OR_SPLEEN
            assert (scan[index] == (original.min() if hidden else original[index])).all()
            assert labels[index].any() != hidden
        assert set(np.unique(labels)) == {0, 1}


def test_in_setting_one_training_sees_the_scans_themselves(cases: tuple[Case, ...], tmp_path: Path) -> None:
    (plain,) = trainings(ABDOMEN, 1, "any", False)
    manifest = write_training_set(cases[:2], plain, tmp_path / "shared", tmp_path / "cases.json")
    seen = read_manifest(manifest).cases
    assert [case.image for case in seen] == [case.image.resolve() for case in cases[:2]]
    assert all(case.targets == {"body": 1} for case in seen)


def test_a_scan_of_which_nothing_may_be_seen_is_left_out(tmp_path: Path) -> None:
    scan, labels = organ_scan(1)
    labels.voxels[:, 0, 0] = ABDOMEN.labels["liver"]
    scan.write(tmp_path / "1.nii.gz")
    labels.write(tmp_path / "1_labels.nii.gz")
    case = Case("g/1", "g", tmp_path / "1.nii.gz", tmp_path / "1_labels.nii.gz", dict(ABDOMEN.labels), "test")
    hidden = Training("liver", ("liver",), ("liver",))
    manifest = write_training_set([case], hidden, tmp_path / "shared", tmp_path / "cases.json")
    assert json.loads(manifest.read_text(encoding="utf-8"))["cases"] == []


def test_the_official_training_gets_the_labels_of_all_but_the_held_out_organs(
    cases: tuple[Case, ...], tmp_path: Path
) -> None:
    (official,) = trainings(ABDOMEN, 1, "any", True)
    (seen,) = read_manifest(write_training_set(cases[:1], official, tmp_path, tmp_path / "cases.json")).cases
    assert seen.targets == {"right kidney": 2, "left kidney": 3}
    assert official.organs == ABDOMEN.organs  # the held-out ones and the trained ones are tested alike
