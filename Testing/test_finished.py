"""Tasks with finished scans as examples, on small patients made here: two organs in a body, elsewhere in each."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from SDFSMISLib.cohort.cases import Manifest, load_case
from SDFSMISLib.errors import InputError
from SDFSMISLib.evaluation import BASELINES, SegmenterMethod, Task, evaluate, read_manifest, read_results, write_report
from SDFSMISLib.evaluation.finished import FinishedScans
from SDFSMISLib.evaluation.metrics import dice
from SDFSMISLib.evaluation.results import row_key
from SDFSMISLib.images.planes import Plane
from SDFSMISLib.images.volume import Volume
from small_cases import ManifestMaker, boxes, write_two_groups

BODY = (slice(0, 10), slice(2, 22), slice(2, 22))


def patient(shift: int) -> np.ndarray:
    """Label 1 the body, 2 and 3 the organs."""
    left = (slice(2, 8), slice(6 + shift, 12 + shift), slice(4, 10))
    return boxes(BODY, left, (slice(3, 8), slice(8, 14), slice(13, 19)), shape=(10, 24, 24))


@pytest.fixture
def patients(tmp_path: Path) -> Manifest:
    maker = ManifestMaker(tmp_path)
    targets = {"left": 2, "right": 3}
    maker.add("p/1", patient(0), targets, split="train")
    maker.add("p/2", patient(2), {"left": 3, "right": 2}, split="train")  # the other way round, and so is its labelmap:
    grid = Volume.read(tmp_path / "p_2_image.nii.gz").geometry
    labels = Volume(np.array([0, 1, 3, 2], dtype=np.uint8)[patient(2)], grid)
    labels.write(tmp_path / "p_2_labels.nii.gz")
    maker.add("p/3", patient(1), targets)
    return read_manifest(maker.write())


def ids(cases: tuple[Any, ...]) -> list[str]:
    return [case.id for case in cases]


def test_the_next_cases_that_show_the_target_are_examples(tmp_path: Path) -> None:
    """Of group a, a/1 is for training, and a/2 lists a cone that it does not show."""
    manifest = read_manifest(write_two_groups(tmp_path))
    first, _, third, alone = manifest.cases
    one, two = FinishedScans(manifest, 1), FinishedScans(manifest, 2)
    assert (ids(one.members(first, "column")), ids(one.members(first, "cone"))) == (["a/2"], ["a/3"])
    assert ids(two.members(third, "column")) == ["a/1", "a/2"]  # round to the first
    assert two.members(first, "cone") == () and one.members(alone, "column") == ()  # not enough of them
    assert ids(FinishedScans(manifest, 1, "train").members(third, "cone")) == ["a/1"]
    assert FinishedScans(manifest, 1, "train").members(first, "column") == ()
    assert two.task(first, "cone", "cross-volume", 0) is None


def test_in_cross_volume_every_slice_is_judged_and_nothing_is_painted(patients: Manifest) -> None:
    scans = FinishedScans(patients, 2)
    case = patients.cases[1]
    task = scans.task(case, "left", "cross-volume", 0)
    assert task is not None and ids(task.examples) == ["p/3", "p/1"]
    assert (task.planes, task.judged, task.axis) == ((), tuple(range(10)), 0)
    assert (task.label, task.support.labels, task.support.names) == (3, (3,), {3: "left"})  # the case's own value
    for painted, member in zip(task.support.slices, task.examples, strict=True):
        labelled = load_case(member)
        assert np.array_equal(painted.image, labelled.scan.voxels[painted.index])
        assert np.array_equal(painted.mask(3), labelled.mask("left")[painted.index])
    mispaired = scans.task(case, "left", "cross-volume", 0, mispaired=True)
    assert mispaired is not None and (mispaired.shown, mispaired.label) == ("right", 2)
    assert np.array_equal(mispaired.reference, task.reference)


def test_targets_of_a_case_share_the_registrations_that_bring_them_over(patients: Manifest) -> None:
    scans = FinishedScans(patients, 2, load=lambda case: loaded[case.id])
    loaded = {case.id: load_case(case) for case in patients.cases}
    case = patients.cases[1]
    left, right, painted = (
        scans.task(case, target, protocol, 1)
        for target, protocol in (("left", "cross-volume"), ("right", "cross-volume"), ("left", "same-volume"))
    )
    assert left is not None and right is not None and painted is not None
    assert left.prior is not None and left.prior is right.prior is painted.prior
    assert painted.planes == (Plane(0, 2),) and painted.support_case is case and ids(painted.examples) == ["p/3", "p/1"]
    assert left.prior.value is left.prior.value and set(left.prior.value.probabilities) == {2, 3}
    for task in (left, right):
        found = BASELINES["atlas"](task)
        assert found is not None and dice(found, task.reference) > 0.8
    assert BASELINES["copy"](left) is not None and BASELINES["growcut"](left) is None
    assert BASELINES["atlas"](replace(left, prior=None)) is None


def test_a_segmenter_gets_the_prior_and_what_was_painted(patients: Manifest) -> None:
    asked: list[dict[str, Any]] = []

    class Segmenter:
        def segment(self, query: Volume, support: object, **options: Any) -> Any:
            asked.append({"query": query, "support": support, **options})

    scans = FinishedScans(patients, 1)
    case = patients.cases[0]
    unpainted, painted = (scans.task(case, "right", protocol, 1) for protocol in ("cross-volume", "same-volume"))
    assert unpainted is not None and unpainted.prior is not None and painted is not None
    prior = unpainted.prior.value
    method = SegmenterMethod(Segmenter(), strategy="propagate")  # type: ignore[arg-type]
    given = {"labels": [3], "prior": prior, "strategy": "propagate"}
    for task, slices in ((unpainted, ()), (painted, painted.support.slices)):
        method.segmentation(task)
        assert asked[-1].pop("support").slices == slices  # those of the finished scans come with the prior
        assert asked[-1] == {"query": task.query, **given}
    method.without_prior().segmentation(unpainted)
    by_slices = {"axis": 0, "slices": tuple(range(10)), "strategy": "propagate"}
    assert asked[-1] == {"query": unpainted.query, "support": unpainted.support, **by_slices}


def test_a_run_keeps_its_rows_apart_and_goes_on(patients: Manifest, tmp_path: Path) -> None:
    shares: list[float] = []

    def watched(task: Task) -> np.ndarray | None:
        assert task.prior is not None
        shares.append(task.prior.seconds)
        return BASELINES["copy"](task)

    output = tmp_path / "out"
    cases = patients.cases[2:]

    def measure(protocol: str = "cross-volume", **options: Any) -> list[Any]:
        return evaluate(patients, protocol, methods, cases, output=output, metrics=("dice",), **options)

    methods: dict[str, Callable[[Task], np.ndarray | None]] = {"atlas": BASELINES["atlas"], "watched": watched}
    rows = measure(finished=2)
    assert [(row.target, row.method, row.shots, row.support_case) for row in rows] == [
        (target, method, 0, "p/1 p/2") for target in ("left", "right") for method in ("atlas", "watched")
    ]
    assert all(row.seconds >= shares[0] > 0 for row in rows if row.method == "atlas") and len(set(shares)) == 1
    assert rows[0].setting.title == "cross-volume, 2 finished scans" and rows[0].scores["dice"] > 0.8
    methods = {name: lambda task: pytest.fail("this was measured before") for name in methods}
    assert [row.key for row in measure(finished=2)] == [row.key for row in rows]
    methods = {"copy": BASELINES["copy"]}
    others = [
        *measure(),
        *measure(finished=1),
        *measure(finished=1, examples_from="train"),
        *measure("same-volume", finished=1),
    ]
    assert [row.setting.title for row in others[::2]] == [
        "cross-volume, 1 painted slice",
        "cross-volume, 1 finished scan",
        "cross-volume, 1 finished scan (train)",
        "same-volume, 1 painted slice, 1 finished scan",
    ]
    kept = read_results(output / "results.csv")
    assert [row.key for row in kept] == [row.key for row in (*rows, *others)] and len({row.key for row in kept}) == 12
    write_report(output, patients)
    report = (output / "report.html").read_text(encoding="utf-8")
    assert all(title in report for title in {row.setting.title for row in kept})
    assert report.count("the next ones that show the target") == 4


def test_results_without_these_columns_are_read_and_stay_under_their_keys(patients: Manifest, tmp_path: Path) -> None:
    methods = {"copy": BASELINES["copy"]}
    output = tmp_path / "out"
    row = evaluate(patients, "cross-volume", methods, patients.cases[:1], output=output, metrics=("dice",))[0]
    path = output / "results.csv"
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    columns = [name for name in lines[0] if name not in ("finished", "examples_from")]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(lines)
    old = read_results(path)[0]
    assert (old.key, old.finished, old.examples_from) == (row.key, 0, "")
    assert row_key(old.setting, "a", "t", "m") == ("cross-volume", 1, "a", "t", "m", False)
    crossed = replace(old, protocol="same-volume", directions=2).setting
    assert row_key(crossed, "a", "t", "m") == ("same-volume", 1, "a", "t", "m", False, 2, "")


def test_finished_scans_go_with_two_protocols_only(patients: Manifest) -> None:
    for protocol, options, sentence in (
        ("field", {"finished": 1}, "1 finished scans were asked for; the protocol field takes none"),
        ("cross-volume", {"finished": 3, "shots": 2}, "2 shots and 3 finished scans .* leave one of the two out"),
        ("same-volume", {"finished": -1}, "-1 finished scans were asked for; 0 or more"),
    ):
        with pytest.raises(InputError, match=sentence):
            evaluate(patients, protocol, {"copy": BASELINES["copy"]}, **options)
