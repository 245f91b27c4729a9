"""How long the panel holds up 3D Slicer: each beat of its timer while a structure of a large scan is segmented.

    python Testing/Benchmarks/panel_steps.py

The workbench on a real MRML scene (512 x 512 x 300, int16; a structure 200 voxels across), the backend in a process
of its own with the built-in weights. It prints a Markdown table. ``main_thread.py`` has the single steps of the scene.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent / "SDFSMIS"), str(HERE.parent.parent)]

import numpy as np  # noqa: E402

from slicer_standin import install  # noqa: E402

install()

from panel_examples import PaintedScene  # noqa: E402
from SDFSMISLib.client import start_backend  # noqa: E402
from SDFSMISLib.images.volume import Geometry, Volume  # noqa: E402
from SDFSMISLib.workbench.views import BackendChoice, BackendKind  # noqa: E402

SHAPE = (300, 512, 512)
PAINTED, CORRECTED = 150, 100  # slices
ACROSS = 200  # voxels
BEAT = 0.02  # seconds between two beats where nothing waits


def large_scan() -> tuple[Volume, np.ndarray]:
    """The scan, and where the structure is."""
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    organ = (z - 150) ** 2 + (y - 250) ** 2 + (x - 230) ** 2 < (ACROSS / 2) ** 2
    body = np.broadcast_to((y - 256) ** 2 + (x - 256) ** 2 < 230**2, SHAPE)
    noise = np.random.default_rng(0).integers(0, 20, SHAPE, dtype=np.int16)
    voxels = (100 * body.astype(np.int16)) + 100 * organ.astype(np.int16) + noise
    identity = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    return Volume(voxels, Geometry(SHAPE, (0.8, 0.8, 1.0), (0.0, 0.0, 0.0), identity)), organ


class Watch:
    """Seconds of each call, by what went on."""

    def __init__(self, panel: PaintedScene) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self._panel = panel

    def call(self, what: str, call: Callable[[], object]) -> object:
        start = time.perf_counter()
        answer = call()
        self.seconds[what].append(time.perf_counter() - start)
        return answer

    def beats(self, what: str, until: Callable[[], bool], least: int = 0) -> None:
        beats = 0
        while beats < least or not until():
            beats += 1
            if not self.call(what, self._panel.workbench.step):
                time.sleep(BEAT)

    def table(self) -> str:
        lines = ["| what goes on | beats | median ms | longest ms |", "| --- | ---: | ---: | ---: |"]
        for what, seconds in self.seconds.items():
            longest, median = 1e3 * max(seconds), 1e3 * float(np.median(seconds))
            lines.append(f"| {what} | {len(seconds)} | {median:.1f} | {longest:.1f} |")
        return "\n".join(lines)


def main() -> None:
    scan, organ = large_scan()
    with start_backend() as backend:
        panel = PaintedScene(backend.url, scan=scan, painted=())
        panel.workbench.backend.choose(BackendChoice(BackendKind.SERVER, backend.url, backend.token))
        watch, workbench = Watch(panel), panel.workbench
        panel.editor.paint(panel.segment, organ[PAINTED : PAINTED + 1], (PAINTED, 0, 0))
        gc.collect()
        watch.beats("a slice was painted", lambda: bool(workbench.support.view.entries), 10)
        watch.call("Segment is pressed", panel.start)
        watch.beats("a run", lambda: not workbench.run.view.running)
        watch.beats("review, nothing is done", lambda: True, 50)
        for threshold in (0.8, 0.4):
            workbench.review.set_threshold(threshold)
            watch.beats("another threshold", lambda: not workbench.review.view.working)
        workbench.review.set_cleaning(True, 2.0)
        watch.beats("largest piece, smoothing", lambda: not workbench.review.view.working)
        (result,) = panel.results().values()
        stroke = np.ones((1, 30, 30), dtype=bool)
        watch.call("(Slicer's own: a stroke)", lambda: panel.editor.paint(result, stroke, (CORRECTED, 0, 0)))
        watch.beats("a result was corrected", lambda: len(workbench.support.view.entries) == 2, 20)
        watch.call("Segment is pressed", panel.start)
        watch.beats("a second run", lambda: not workbench.run.view.running)
        workbench.review.accept()
        watch.beats("accept", lambda: not workbench.review.view.results)
        workbench.close()
    print(watch.table())


if __name__ == "__main__":
    main()
