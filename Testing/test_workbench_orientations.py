"""The workbench with the built-in weights: the library's own voxels, however the scan lies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("slicer")
pytest.importorskip("PySide6.QtWidgets", exc_type=ImportError)
pytest.importorskip("fastapi")

from slicer_standin import install

install()

from panel_examples import PaintedScene, dice, differ  # noqa: E402
from SDFSMISLib import Segmenter, SupportSet  # noqa: E402
from SDFSMISLib.images.volume import Volume  # noqa: E402
from serving import Backend, running  # noqa: E402
from small_scans import ball_scan  # noqa: E402

LYING = {
    "axial": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
    "coronal": (1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, -1.0, 0.0),
    "sagittal": (0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
    "oblique": (0.36, 0.48, -0.8, -0.8, 0.6, 0.0, 0.48, 0.64, 0.6),
}


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    torch.set_num_threads(1)
    with running(segmenter=Segmenter.from_pretrained("built-in", "cpu")) as made:
        yield made


def noisy_ball(direction: tuple[float, ...]) -> tuple[Volume, np.ndarray]:
    scan, labelmap = ball_scan(shape=(10, 48, 44))
    noise = np.random.default_rng(0).normal(0, 5, scan.voxels.shape)
    geometry = replace(scan.geometry, direction=direction)
    return Volume((scan.voxels + noise).astype(np.int16), geometry), labelmap.voxels.astype(bool)


@pytest.mark.parametrize("direction", LYING.values(), ids=LYING)
def test_the_workbench_gives_the_library_s_own_voxels(backend: Backend, direction: tuple[float, ...]) -> None:
    scan, truth = noisy_ball(direction)
    panel = PaintedScene(backend.url, scan=scan, painted=())
    panel.truth = truth
    panel.paint(5)
    panel.run()
    assert not panel.last_run.failed, panel.last_run.text
    (result,) = panel.results().values()
    painted = np.zeros(truth.shape, dtype=np.uint8)
    painted[5] = truth[5]
    support = SupportSet.from_labelmap(scan, Volume(painted, scan.geometry))
    expected = backend.engine.segmenter.segment(scan, support).labelmap.voxels == 1
    assert differ(panel.held(result), expected) == 0
    others = np.arange(len(truth)) != 5
    assert dice(expected[others], truth[others]) > 0.7
    panel.workbench.close()
