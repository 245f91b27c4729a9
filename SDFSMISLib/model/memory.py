"""Memory of networks: where weights lie in it, and freed memory kept for the next layer."""

from __future__ import annotations

import ctypes
import platform
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__all__ = ["align", "keep_freed_memory"]

ALIGNMENT = 64  # bytes; torch's own memory begins at multiples of it

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # of malloc.h
KEPT = 1 << 30  # bytes at the end of the heap, at most


def keep_freed_memory() -> bool:
    """Let the C library reuse large blocks instead of returning each to the system; True where it can (glibc).

    By default every layer's output is new memory, which the kernel clears page by page: 15 to 20 % of the time of
    Stable Diffusion's autoencoder on a CPU. It concerns the whole process, so it is for a program to decide, not a
    library: up to 1 GiB that is free stays with the process, and free blocks between blocks in use do too. All threads
    share one heap: one of their own, such as a backend's device thread would get, returns its memory all the same.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, KEPT), (M_ARENA_MAX, 1))
    return all(library.mallopt(what, value) for what, value in settings)


def align(network: nn.Module) -> None:
    """Let weights and buffers begin where torch's own memory would, copying those that do not.

    Weights that are read from a file lie where they lie in the file, and some processors compute by other instructions
    then: the same weights gave answers that differ in their last bits, by whether they were loaded or made.
    """
    for tensor in chain(network.parameters(), network.buffers()):
        if not tensor.is_meta and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()
