"""The baseline that copies painted slices, on small cases made here; and on real ones, where they are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from SDFSMISLib.cohort.cases import load_case
from SDFSMISLib.evaluation import copy_support, evaluate, read_manifest, summarise
from SDFSMISLib.evaluation.protocols import cross_volume, same_volume
from small_cases import COLUMN, ManifestMaker, boxes


@pytest.fixture
def maker(tmp_path: Path) -> ManifestMaker:
    return ManifestMaker(tmp_path)


def test_copy_takes_the_nearest_painted_slice_of_the_query(maker: ManifestMaker) -> None:
    labels = boxes((slice(0, 12), slice(2, 6), slice(2, 12)), shape=(12, 16, 16))
    labels[6:, 2:6, 7:] = 0  # 40 pixels at first, then 20
    maker.add("a/1", labels, {"target": 1})
    task = same_volume(read_manifest(maker.write()).cases[0], "target", (), load_case, 3)
    assert task is not None and task.painted == (2, 6, 10)
    mask = copy_support(task)
    assert mask.sum(axis=(1, 2)).tolist() == [40] * 5 + [20] * 7  # slice 4 is as near to 2 as to 6: the first


def test_copy_from_another_scan_goes_by_anatomy_and_millimetres(maker: ManifestMaker) -> None:
    flipped = (-1, 0, 0, 0, 1, 0, 0, 0, 1)
    target = boxes((slice(2, 8), slice(4, 8), slice(2, 6)))
    maker.add("a/1", target, {"target": 1})
    maker.add("a/2", np.ascontiguousarray(target[:, :, ::-1]), {"target": 1}, direction=flipped)
    finer = np.repeat(np.repeat(target, 2, axis=1), 2, axis=2)
    maker.add("a/3", finer, {"target": 1}, spacing=(0.5, 0.5, 5.0))
    for query, support in ((0, 1), (1, 0), (0, 2), (2, 0)):
        cases = read_manifest(maker.folder / "cases.json" if query or support > 1 else maker.write()).cases
        task = cross_volume(cases[query], "target", (cases[support],), load_case, 1)
        assert task is not None
        np.testing.assert_array_equal(copy_support(task)[4], task.reference[4])


def test_copy_by_majority_of_several_slices_of_another_scan(maker: ManifestMaker) -> None:
    labels = boxes((slice(0, 6), slice(0, 8), slice(0, 8)))
    labels[:2, 4:8] = 0  # painted are slices 1 (half of it), 3 and 5
    maker.add("a/1", boxes(COLUMN), {"target": 1})
    maker.add("a/2", labels, {"target": 1})
    cases = read_manifest(maker.write()).cases
    task = cross_volume(cases[0], "target", (cases[1],), load_case, 3)
    assert task is not None
    expected = np.zeros((16, 16), dtype=bool)
    expected[:8, :8] = True
    assert (copy_support(task) == expected).all()


def test_copy_on_the_benchmark_s_first_eight_scans_is_as_published_with_the_data() -> None:
    folder = os.environ.get("SDFSMIS_DATA_DIR")
    if not folder or not (Path(folder) / "cases.json").exists():
        pytest.skip("SDFSMIS_DATA_DIR names no folder with cases.json and the real volumes")
    manifest = read_manifest(Path(folder) / "cases.json")
    first = manifest.select(["chaos_t2"])[:8]
    rows = evaluate(manifest, "same-volume", {"copy": copy_support}, first, metrics=("dice",))
    (summary,) = summarise(rows)
    expected = {"liver": 0.440, "right kidney": 0.367, "left kidney": 0.371, "spleen": 0.318}
    for target, value in expected.items():
        assert summary.targets["chaos_t2", target].values["dice"] == pytest.approx(value, abs=6e-4)
    assert summary.overall.values["dice"] == pytest.approx(0.374, abs=6e-4)
