"""What the lines of crossing planes tell of a slice: it agrees on them, is mended around them, and ends by them."""

from __future__ import annotations

import numpy as np

from SDFSMISLib import SupportSet, Volume
from SDFSMISLib.images.geometry import Geometry
from SDFSMISLib.inference.known import KnownPixels, KnownPlanes
from SDFSMISLib.slices import SliceStack

GEOMETRY = Geometry((20, 24, 24), (1.0, 1.0, 2.0), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
ROWS, COLUMNS = np.ogrid[:24, :24]
DISC = (ROWS - 12) ** 2 + (COLUMNS - 12) ** 2 <= 64
MASK = np.zeros(GEOMETRY.shape, dtype=np.uint8)
MASK[4:15] = DISC
SCAN = Volume(MASK.astype(np.float32), GEOMETRY)


def crossed_by(*columns: int) -> KnownPlanes:
    support = SupportSet.from_labelmap(SCAN, Volume(MASK, GEOMETRY), slices=[(2, column) for column in columns])
    return KnownPlanes(SliceStack.of(SCAN, axis=0), {1: support.for_label(1)})


def on(planes: KnownPlanes, index: int) -> KnownPixels:
    found = planes.on(1, index)
    assert found is not None
    return found


def seen(planes: KnownPlanes, mask: np.ndarray) -> np.ndarray:
    """A native slice as networks see it."""
    return SliceStack.of(SCAN, axis=0).plane.orientation.apply(mask)


def test_a_slice_agrees_with_the_line_and_is_mended_the_more_the_nearer_it_is() -> None:
    planes = crossed_by(12)
    nothing = np.zeros((24, 24), dtype=np.uint8)
    held = SliceStack.of(SCAN, axis=0).plane.orientation.undo(on(planes, 8).apply(seen(planes, nothing)))
    np.testing.assert_array_equal(held[:, 12], 255 * DISC[:, 12])
    assert (np.diff(held[12, 12:].astype(int)) <= 0).all() and held[12, 13] > 200
    assert not held[1].any()  # where the line shows nothing, nothing was wrong


def test_a_plane_through_the_middle_tells_where_a_structure_ends_and_one_through_its_edge_does_not() -> None:
    assert on(crossed_by(12), 8).cut(seen(crossed_by(12), DISC)) == 1
    assert on(crossed_by(5), 8).cut(seen(crossed_by(5), DISC)) < 0.5
    assert on(crossed_by(5, 12), 8).cut(seen(crossed_by(12), DISC)) == 1
