"""What was painted on another scan comes along by registration, and the networks are handed it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from SDFSMISLib import Segmenter, SupportSet, Volume
from SDFSMISLib.inference.network_images import Shot
from SDFSMISLib.inference.registration import PaintedBody, body, brought_onto
from SDFSMISLib.options import RunOptions
from SDFSMISLib.slices import SliceStack
from small_scans import ball_scan, painted_on
from test_finding import dice, shot_of, textured


def brought(scan: Volume, shots: list[Shot], indices: list[int]) -> tuple[dict[int, np.ndarray], int]:
    """What comes onto slices of a scan, and how often it stopped on its way."""
    steps, stops = brought_onto(SliceStack.of(scan, 0), shots, indices), 0
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value, stops
        stops += 1


@pytest.fixture(scope="module")
def two_scans() -> tuple[Volume, Volume, Volume, Volume]:
    """A scan and its labels, and the same body on another grid."""
    scan, labels = ball_scan()
    finer, truth = ball_scan((24, 64, 64), (0.6, 0.6, 1.0))
    return textured(scan), labels, textured(finer), truth


def test_a_painted_mask_lies_on_the_structure_of_another_scan(two_scans) -> None:
    scan, labels, finer, truth = two_scans
    found, stops = brought(finer, [shot_of(scan, labels, 6)], [11, 12, 13])
    assert sorted(found) == [11, 12, 13] and stops > len(found)
    for index, one in found.items():
        assert dice(one > 0.5, truth.voxels[index] > 0) > 0.85


def test_a_slice_that_says_that_nothing_is_there_brings_nothing(two_scans) -> None:
    scan, labels, finer, _ = two_scans
    shot = shot_of(scan, labels, 6)
    empty = Shot(shot.image, np.zeros_like(shot.mask), shot.spacing)
    assert brought(finer, [empty], [12]) == ({}, 0)
    with_it, alone = (brought(finer, shots, [12])[0][12] for shots in ([empty, shot], [shot]))
    np.testing.assert_array_equal(with_it, alone)


def test_of_several_painted_slices_those_that_fit_count_more(two_scans) -> None:
    scan, labels, _, _ = two_scans
    fits, other = shot_of(scan, labels, 6), shot_of(scan, labels, 3)
    alone = [brought(scan, [shot], [6])[0][6] for shot in (fits, other)]
    both = brought(scan, [other, fits], [6])[0][6]
    assert abs(both - alone[0]).mean() < abs(both - alone[1]).mean()


def test_neighbouring_slices_come_to_an_agreement(two_scans) -> None:
    scan, labels, finer, _ = two_scans
    shot = shot_of(scan, labels, 6)
    alone = brought(finer, [shot], [12])[0][12]
    together = brought(finer, [shot], [10, 11, 12, 13])[0][12]
    apart = brought(finer, [shot], [2, 12, 20])[0][12]
    assert not np.array_equal(together, alone)
    np.testing.assert_array_equal(apart, alone)


def test_a_structure_that_is_lost_scores_least(two_scans) -> None:
    scan, labels, _, _ = two_scans
    shot = shot_of(scan, labels, 6)
    painted = replace(PaintedBody.of(shot), mask=torch.zeros(128, 128))
    assert painted.onto(body(shot.image, shot.spacing).to_grid(shot.image, 128, -1.0))[0] == -1


@pytest.mark.parametrize("shape", [(40, 12), (1, 1)])
def test_slices_without_any_body_are_taken_as_they_are(two_scans, shape: tuple[int, int]) -> None:
    scan, labels, _, _ = two_scans
    empty = Volume(np.zeros((2, *shape), dtype=np.float32), replace(scan.geometry, shape=(2, *shape)))
    found, _ = brought(empty, [shot_of(scan, labels, 6)], [0, 1])
    assert all(np.isfinite(one).all() for one in found.values())


def test_the_next_scan_is_segmented_slice_by_slice_with_what_was_brought(two_scans) -> None:
    scan, labels, finer, truth = two_scans
    support = SupportSet.from_labelmap(scan, painted_on(labels, 6), label=1, axis=0)
    segmenter = Segmenter.from_pretrained("built-in", "cpu")
    found = segmenter.segment(finer, support, RunOptions("independent"), slices=[11, 12, 13]).labelmap.voxels == 1
    assert not np.delete(found, [11, 12, 13], axis=0).any()
    assert dice(found[11:14], truth.voxels[11:14] > 0) > 0.85


def test_in_whole_slices_nothing_is_brought(two_scans, monkeypatch: pytest.MonkeyPatch) -> None:
    scan, labels, finer, _ = two_scans
    support = SupportSet.from_labelmap(scan, painted_on(labels, 6), label=1, axis=0)
    monkeypatch.setattr("SDFSMISLib.inference.run.run_transfer", lambda *_: pytest.fail("was brought"))
    segmenter = Segmenter.from_pretrained("built-in", "cpu")
    segmenter.segment(finer, support, RunOptions("independent", "full"), slices=[12])
