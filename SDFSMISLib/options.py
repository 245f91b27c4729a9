"""The options of a run, and the name of the built-in weights: one definition for the command line, Python, the client,
the server and 3D Slicer. Needs neither numpy nor torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from SDFSMISLib.errors import InputError

__all__ = ["BUILT_IN", "REGIONS", "STRATEGIES", "THRESHOLD_RANGE", "Region", "RunOptions", "Strategy"]

BUILT_IN = "built-in"
"""The name of the weights that come with this package; in place of a pipeline folder or a model hub's id."""

Strategy = Literal["propagate", "independent"]
Region = Literal["auto", "full"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
REGIONS: tuple[Region, ...] = get_args(Region)
THRESHOLD_RANGE = (0.0, 1.0)  # both ends are excluded


@dataclass(frozen=True)
class RunOptions:
    """How a scan is segmented by painted slices.

    Args:
        strategy: ``propagate`` goes outwards from the painted slices, and each finished slice supports the next.
            ``independent`` segments each slice alone by the painted ones, as in the SD-FSMIS paper.
        region: ``auto`` shows the networks a square around the structure, ``full`` whole slices, as in the paper.
        threshold: probability above which a voxel belongs to the structure, within `THRESHOLD_RANGE`.
        batch_size: slices that the networks get at a time; bounds the memory. A backend uses its own.

    Raises:
        InputError: for a value that is not accepted.

    >>> RunOptions("independent", threshold=0.4)
    RunOptions(strategy='independent', region='auto', threshold=0.4, batch_size=8)
    >>> RunOptions("both")
    Traceback (most recent call last):
    SDFSMISLib.errors.InputError: The strategy 'both' was given; propagate and independent are accepted.
    """

    strategy: Strategy = "propagate"
    region: Region = "auto"
    threshold: float = 0.5
    batch_size: int = 8

    @property
    def settings(self) -> dict[str, Any]:
        """Strategy, region and threshold by name: what a result depends on, and what a backend gets."""
        return {"strategy": self.strategy, "region": self.region, "threshold": self.threshold}

    def __post_init__(self) -> None:
        for name, given, accepted in (("strategy", self.strategy, STRATEGIES), ("region", self.region, REGIONS)):
            if given not in accepted:
                raise InputError(f"The {name} {given!r} was given; {' and '.join(accepted)} are accepted.")
        low, high = THRESHOLD_RANGE
        if not low < self.threshold < high:
            raise InputError(
                f"The threshold {self.threshold} was given; a probability between {low:g} and {high:g} is accepted, "
                f"{RunOptions.threshold:g} by default."
            )
        if self.batch_size < 1:
            raise InputError(f"The batch size {self.batch_size} was given; 1 or more slices are accepted.")
