"""Painted masks of another scan are warped onto a scan by registration, and the networks get them as input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from SDFSMISLib import Segmenter, SupportSet, Volume
from SDFSMISLib.inference.network_images import Shot
from SDFSMISLib.inference.registration import PaintedBody, bending, body_region, warped_masks
from SDFSMISLib.slices import SliceStack
from small_scans import ball_scan, painted_on
from test_structure_search import dice, shot_of, textured


def warped_onto(scan: Volume, shots: list[Shot], indices: list[int]) -> tuple[dict[int, np.ndarray], int]:
    """The warped masks by slice, and how often the generator stopped on the way."""
    steps, stops = warped_masks(SliceStack.of(scan, 0), shots, indices), 0
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
    found, stops = warped_onto(finer, [shot_of(scan, labels, 6)], [11, 12, 13])
    assert sorted(found) == [11, 12, 13] and stops > len(found)
    for index, one in found.items():
        assert dice(one > 0.5, truth.voxels[index] > 0) > 0.85


def test_a_slice_that_is_marked_as_empty_gives_no_mask(two_scans) -> None:
    scan, labels, finer, _ = two_scans
    shot = shot_of(scan, labels, 6)
    empty = Shot(shot.image, np.zeros_like(shot.mask), shot.spacing)
    assert warped_onto(finer, [empty], [12]) == ({}, 0)
    with_it, alone = (warped_onto(finer, shots, [12])[0][12] for shots in ([empty, shot], [shot]))
    np.testing.assert_array_equal(with_it, alone)


def test_of_several_painted_slices_those_that_fit_count_more(two_scans) -> None:
    scan, labels, _, _ = two_scans
    fits, other = shot_of(scan, labels, 6), shot_of(scan, labels, 3)
    alone = [warped_onto(scan, [shot], [6])[0][6] for shot in (fits, other)]
    both = warped_onto(scan, [other, fits], [6])[0][6]
    assert abs(both - alone[0]).mean() < abs(both - alone[1]).mean()


def test_neighbouring_slices_come_to_an_agreement(two_scans) -> None:
    scan, labels, finer, _ = two_scans
    shot = shot_of(scan, labels, 6)
    alone = warped_onto(finer, [shot], [12])[0][12]
    together = warped_onto(finer, [shot], [10, 11, 12, 13])[0][12]
    apart = warped_onto(finer, [shot], [2, 12, 20])[0][12]
    assert not np.array_equal(together, alone)
    np.testing.assert_array_equal(apart, alone)


def test_a_structure_that_is_lost_scores_least(two_scans) -> None:
    scan, labels, _, _ = two_scans
    shot = shot_of(scan, labels, 6)
    painted = replace(PaintedBody.of(shot), mask=torch.zeros(128, 128))
    assert painted.register_to(body_region(shot.image, shot.spacing).to_grid(shot.image, 128, -1.0))[0] == -1


@pytest.mark.parametrize("shape", [(40, 12), (1, 1)])
def test_slices_without_any_body_are_taken_as_they_are(two_scans, shape: tuple[int, int]) -> None:
    scan, labels, _, _ = two_scans
    empty = Volume(np.zeros((2, *shape), dtype=np.float32), replace(scan.geometry, shape=(2, *shape)))
    found, _ = warped_onto(empty, [shot_of(scan, labels, 6)], [0, 1])
    assert all(np.isfinite(one).all() for one in found.values())


def test_the_next_scan_is_segmented_slice_by_slice_with_the_warped_masks(two_scans) -> None:
    scan, labels, finer, truth = two_scans
    support = SupportSet.from_labelmap(scan, painted_on(labels, 6), label=1, axis=0)
    segmenter = Segmenter.from_pretrained("built-in", "cpu")
    found = segmenter.segment(finer, support, "independent", slices=[11, 12, 13]).labelmap.voxels == 1
    assert not np.delete(found, [11, 12, 13], axis=0).any()
    assert dice(found[11:14], truth.voxels[11:14] > 0) > 0.85


def test_in_whole_slices_no_mask_is_warped(two_scans, monkeypatch: pytest.MonkeyPatch) -> None:
    scan, labels, finer, _ = two_scans
    support = SupportSet.from_labelmap(scan, painted_on(labels, 6), label=1, axis=0)
    monkeypatch.setattr("SDFSMISLib.inference.run.run_cross_scan", lambda *_: pytest.fail("a mask was warped"))
    segmenter = Segmenter.from_pretrained("built-in", "cpu")
    segmenter.segment(finer, support, "independent", region="full", slices=[12])


def test_a_displacement_bends_as_much_on_a_turned_slice() -> None:
    places = torch.linspace(0, 6, 48)
    moves = torch.stack([torch.sin(places)[:, None].expand(48, 48), torch.zeros(48, 48)], dim=-1)
    near = torch.zeros(48, 48)
    near[8:30, 12:40] = 1
    bent, turned = bending(moves, near), bending(moves.transpose(0, 1).flip(-1), near.T)
    assert bent == pytest.approx(turned) and bent > 0
