"""Where a painted structure lies in a scan without painted slices: the painted slice is registered onto every slice.

The slice that then looks most like the painted one around the structure, and needed the least bending for it, is where
propagation starts, with the mask that came along as a first guess. What this finds was measured, beside other scores:
Resources/MODEL_CARD.md.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np

from SDFSMISLib.inference.brought import SIDE, PaintedBody, body
from SDFSMISLib.inference.independent import on_slice_grid
from SDFSMISLib.inference.shots import Shot
from SDFSMISLib.slices import SliceStack

LEAST_SCORE = 0.0  # a worse match is none


@dataclass(frozen=True, eq=False)
class Found:
    """A slice that shows the structure: its `index`, the `score` of the match (1 is perfect), and the `probability`,
    uint8 canonical (rows, columns), 255 meaning 1."""

    index: int
    score: float
    probability: np.ndarray


def find_structure(
    scan: SliceStack, shots: Sequence[Shot], indices: Sequence[int]
) -> Generator[None, None, Found | None]:
    """The best match of painted slices among slices `indices` of a scan; stops after each slice, to be asked on.

    Args:
        shots: painted slices of other scans; those on which nothing is painted are not looked for.

    Returns:
        None where no slice looks like a painted one.
    """
    painted = [PaintedBody.of(shot) for shot in shots if shot.mask.any()]
    best: Found | None = None
    for index in indices:
        image = scan.image(index)
        region = body(image, scan.spacing)
        seen = region.to_grid(image, SIDE, -1.0)
        for one in painted:
            score, mask = one.onto(seen)
            if score > (best.score if best else LEAST_SCORE):
                best = Found(index, score, on_slice_grid(region, mask, scan.shape))
        yield
    return best
