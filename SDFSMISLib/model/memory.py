"""Memory of a process that runs networks: kept for the next layer, looked through less often. Needs no torch: a program
can begin with it."""

from __future__ import annotations

import atexit
import ctypes
import gc
import platform

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


COLLECTION = (50_000, 5, 5)  # thresholds of the garbage collector's three generations; (700, 10, 10) by default


def collect_rarely() -> None:
    """Let Python's garbage collector work less often, and not at the end of the process.

    torch, diffusers and transformers make half a million objects that stay. Looking through them again and again took
    one second of ten while they are imported, and freeing each at the end two more. It concerns the whole process, like
    `keep_freed_memory`.
    """
    gc.set_threshold(*COLLECTION)
    atexit.register(gc.freeze)
