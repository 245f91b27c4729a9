"""Peak memory and time of a large scan: `python Testing/Benchmarks/large_scan.py [--slices 600] [--side 512]`.

The scan is noise with a bright rod through all slices; one slice of it is painted. Every slice is segmented with the
built-in weights by both strategies. The peak is that of this process, torch and all libraries included.
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np
import psutil

from SDFSMISLib import Segmenter, SupportSet, Volume
from SDFSMISLib.images.postprocess import Postprocessing
from SDFSMISLib.images.volume import Geometry


def peak_gib() -> float:
    """High-water mark of this process's resident memory, GiB."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 2**30
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def large_scan(slices: int, side: int) -> tuple[Volume, Volume]:
    """Scan (int16) and a labelmap with the middle slice painted."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:side, :side]
    rod = (rows - side / 2) ** 2 + (columns - side / 2) ** 2 < (side / 12) ** 2
    plane = np.where(rod, 300, 0)
    voxels = np.stack([(plane + rng.normal(0, 40, plane.shape)).astype(np.int16) for _ in range(slices)])
    geometry = Geometry(voxels.shape, (0.7, 0.7, 1.0), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    painted = np.zeros(voxels.shape, dtype=np.uint8)
    painted[slices // 2] = rod
    return Volume(voxels, geometry), Volume(painted, geometry)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, default=600)
    parser.add_argument("--side", type=int, default=512)
    options = parser.parse_args()
    scan, painted = large_scan(options.slices, options.side)
    support = SupportSet.from_labelmap(scan, painted)
    del painted
    segmenter = Segmenter.from_pretrained()
    print(f"{options.slices} slices of {options.side} x {options.side}; before the run: peak {peak_gib():.2f} GiB")
    for strategy in ("propagate", "independent"):
        began = time.monotonic()
        found = segmenter.segment(scan, support, strategy, postprocessing=Postprocessing(keep_largest="volume"))
        filled = int((found.labelmap.voxels > 0).any(axis=(1, 2)).sum())
        print(f"{strategy}: {time.monotonic() - began:.0f} s, peak {peak_gib():.2f} GiB, {filled} slices hold the rod")


if __name__ == "__main__":
    main()
