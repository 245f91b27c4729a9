"""What the backend accepts at most, so that no request can take all of a machine."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20
MOST_ITEM_BYTES = 8  # of a pixel of any type


@dataclass(frozen=True)
class Limits:
    """Attributes:
    slice_pixels: of one slice.
    slices: of one scan.
    shots: painted slices of one request.
    labels: of one request.
    masked_pixels: pixels of all painted slices of one request together, and of their masks, label by label.
    body_bytes: of one request that is no slice.
    store_bytes: of all slices that are kept, as they are in memory; those unused for longest go first.
    store_seconds: a slice that was not used for so long goes.
    held_bytes: of the slices of all runs that take turns, which stay whatever becomes of the store; a run that would
        exceed them is told to come again.
    latent_bytes: of the encoded slices that are kept for the next run.
    queue: runs that take turns; another one is told to come again.
    backlog_bytes: results of a run that wait for its client; a run with more waits, and does not hold the device.
    stall_seconds: a client that takes nothing for so long has gone.
    """

    slice_pixels: int = 4096 * 4096
    slices: int = 4096
    shots: int = 64
    labels: int = 64
    masked_pixels: int = 1 << 27
    body_bytes: int = 48 * MIB
    store_bytes: int = 2048 * MIB
    store_seconds: float = 3600.0
    held_bytes: int = 4096 * MIB
    latent_bytes: int = 256 * MIB
    queue: int = 32
    backlog_bytes: int = 64 * MIB
    stall_seconds: float = 120.0

    @property
    def slice_bytes(self) -> int:
        """Of the largest slice that is accepted, of any type, packed or not."""
        return MOST_ITEM_BYTES * self.slice_pixels
