"""Examples for tests of the client: a scan with painted slices, and what a run on it must give."""

from __future__ import annotations

import time

import numpy as np

from SDFSMISLib.client.remote_run import RemoteRun
from SDFSMISLib.images.volume import Geometry, Volume
from SDFSMISLib.slices import SliceResult, SliceStack
from SDFSMISLib.support import SupportSet
from SDFSMISLib.wire import content_address
from small_backend import answer

SHAPE = (7, 9, 8)


GRID = Geometry(SHAPE, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))


def a_scan(seed: int = 0, dtype: str = "int16") -> Volume:
    return Volume(np.random.default_rng(seed).integers(0, 256, SHAPE).astype(dtype), GRID)


def painted(scan: Volume, *places: tuple[int, int]) -> SupportSet:
    """Support with a label at each (slice, label)."""
    labels = np.zeros(SHAPE, np.uint8)
    for index, label in places:
        labels[index, 2 * label : 2 * label + 2, 2:5] = label
    return SupportSet.from_labelmap(scan, Volume(labels, GRID), label=None, axis=0)


SCAN = a_scan()


STACKS = SliceStack.along(SCAN, [0])


SUPPORT = painted(SCAN, (2, 1))


TWO_LABELS = painted(SCAN, (2, 1), (2, 2), (4, 2))


OTHER_SCAN = painted(a_scan(1), (3, 1))


ADDRESSES = [content_address(plane) for plane in SCAN.voxels]


def collected(run: RemoteRun) -> dict[tuple[int, int], SliceResult]:
    """All slices of a run, each of which came once and is right."""
    found: dict[tuple[int, int], SliceResult] = {}
    with run:
        for record in run:
            assert (record.label, record.index) not in found
            assert np.array_equal(record.probability, answer(run.scan.read(record.index), record.label))
            found[record.label, record.index] = record
    return found


def places(*labels: int, without: set[tuple[int, int]]) -> set[tuple[int, int]]:
    return {(label, index) for label in labels for index in range(SHAPE[0])} - without


def wait_for(happened) -> bool:
    until = time.monotonic() + 10
    while not happened() and time.monotonic() < until:
        time.sleep(0.005)
    return happened()
