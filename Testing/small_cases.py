"""Small cases with labels, and their manifest, for tests of the measuring room."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from SDFSMISLib.images.volume import Geometry, Volume

COLUMN = (slice(2, 8), slice(4, 8), slice(4, 8))  # 6 slices of 16 pixels
CONE = (slice(3, 6), slice(10, 15), slice(9, 14))  # 3 slices of 25 pixels
THICK = (1.0, 1.0, 5.0)  # mm (x, y, z): slices along axis 0


def boxes(*sides: tuple[slice, slice, slice], shape: tuple[int, int, int] = (10, 16, 16)) -> np.ndarray:
    """A uint8 labelmap in which box i is label i + 1."""
    labels = np.zeros(shape, dtype=np.uint8)
    for number, box in enumerate(sides):
        labels[box] = number + 1
    return labels


class ManifestMaker:
    """Writes scans, labelmaps and the manifest of a few cases into a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.content: dict[str, Any] = {"groups": {}, "cases": []}

    def add(
        self,
        name: str,
        labels: np.ndarray,
        targets: dict[str, int],
        split: str = "test",
        spacing: tuple[float, float, float] = THICK,
        direction: tuple[float, ...] = (1, 0, 0, 0, 1, 0, 0, 0, 1),
    ) -> None:
        group = name.partition("/")[0]
        self.content["groups"].setdefault(group, {"modality": "CT", "may_train_shipped_weights": True, "n": 1})
        geometry = Geometry(labels.shape, spacing, (0.0, 0.0, 0.0), direction)
        scan = np.random.default_rng(len(self.content["cases"])).normal(100 * labels, 10).astype(np.int16)
        files = {key: f"{name.replace('/', '_')}_{key}.nii.gz" for key in ("image", "labels")}
        Volume(scan, geometry).write(self.folder / files["image"])
        Volume(labels, geometry).write(self.folder / files["labels"])
        self.content["cases"].append({"id": name, "group": group, **files, "targets": targets, "split": split})

    def write(self) -> Path:
        path = self.folder / "cases.json"
        path.write_text(json.dumps(self.content), encoding="utf-8")
        return path


def write_two_groups(folder: Path) -> Path:
    """The manifest of three cases of group a, the first of them for training, and one of group b."""
    maker = ManifestMaker(folder)
    maker.add("a/1", boxes(COLUMN, CONE), {"column": 1, "cone": 2}, split="train")
    maker.add("a/2", boxes(COLUMN), {"column": 1, "cone": 2})  # names a target that it does not hold
    maker.add("a/3", boxes(CONE, COLUMN), {"column": 2, "cone": 1})  # other label values for the same targets
    maker.add("b/1", boxes(COLUMN), {"column": 1})
    return maker.write()
