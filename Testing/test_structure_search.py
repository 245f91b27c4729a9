"""Where a painted structure lies on another scan: the painted slice is registered onto every slice."""

from collections.abc import Iterable

import numpy as np

from SDFSMISLib.images.volume import Geometry, Volume
from SDFSMISLib.inference.cross_scan import StructureMatch, search_structure
from SDFSMISLib.inference.network_images import Shot
from SDFSMISLib.slices import SliceStack
from SDFSMISLib.support import SupportSet
from small_scans import ball_scan, painted_on


def shot_of(scan: Volume, labels: Volume, index: int) -> Shot:
    support = SupportSet.from_labelmap(scan, painted_on(labels, index), label=1, axis=0)
    return Shot.of(support.slices[0], 1)


def query(scan: Volume) -> SliceStack:
    return SliceStack.of(scan, 0)


def searched(scan: Volume, shots: list[Shot], indices: Iterable[int]) -> tuple[StructureMatch | None, int]:
    """What a search finds, and how often it stopped on its way."""
    search, stops = search_structure(query(scan), shots, list(indices)), 0
    while True:
        try:
            next(search)
        except StopIteration as end:
            return end.value, stops
        stops += 1


def textured(scan: Volume) -> Volume:
    """The scan with a pattern that changes from slice to slice, as anatomy does."""
    places = np.stack(np.meshgrid(*(np.linspace(0, 1, side) for side in scan.voxels.shape), indexing="ij"))
    pattern = 30 * np.sin(5 * places[0] + 9 * places[1]) * np.cos(7 * places[2])
    return Volume((scan.voxels + pattern * (scan.voxels > 0)).astype(np.float32), scan.geometry)


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))


def test_the_painted_slice_is_found_again_in_a_larger_scan_of_the_same_body():
    scan, labels = ball_scan()
    scan = textured(scan)
    finer, truth = ball_scan((24, 64, 64), (0.6, 0.6, 1.0))
    found = searched(textured(finer), [shot_of(scan, labels, 6)], range(24))[0]
    assert found is not None and 9 <= found.index <= 16
    assert dice(found.probability > 127, truth.voxels[found.index] > 0) > 0.85


def test_of_several_painted_slices_the_one_that_fits_best_is_followed():
    scan, labels = ball_scan()
    scan = textured(scan)
    shots = [shot_of(scan, labels, index) for index in (4, 6)]
    alone = [searched(scan, [shot], range(12))[0] for shot in shots]
    both = searched(scan, shots, range(12))[0]
    assert both is not None and both.score == max(found.score for found in alone if found)


def test_a_slice_on_which_nothing_is_painted_is_not_looked_for():
    scan, _ = ball_scan()
    empty = Shot(np.zeros((40, 40), np.float32), np.zeros((40, 40), bool), (1.0, 1.0))
    assert searched(scan, [empty], range(12))[0] is None


def test_nothing_is_found_in_a_scan_without_any_body():
    scan, labels = ball_scan()
    geometry = Geometry((5, 40, 40), (1, 1, 2), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    blank = Volume(np.zeros((5, 40, 40), np.int16), geometry)
    assert searched(blank, [shot_of(scan, labels, 6)], range(5))[0] is None


def test_only_the_slices_that_are_named_are_searched_and_the_search_stops_after_each():
    scan, labels = ball_scan()
    found, stops = searched(scan, [shot_of(scan, labels, 6)], [3, 4])
    assert found is not None and found.index in (3, 4) and stops == 2
