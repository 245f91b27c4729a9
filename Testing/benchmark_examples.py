"""A small benchmark: fifteen scans with four organs, and the command line of `sdfsmis benchmark`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer

from SDFSMISLib.benchmark import DATA_SETS, DataSet, ordered_cases
from SDFSMISLib.cli.benchmark import benchmark
from SDFSMISLib.cohort.cases import Case
from SDFSMISLib.evaluation import read_manifest
from SDFSMISLib.images.volume import Geometry, Volume
from SDFSMISLib.model.built_in import Size, new_built_in

SHAPE = (14, 32, 32)
SCANS = 15
ABDOMEN = DATA_SETS["chaos_t2"]
# Slices, rows, columns of each organ: liver and spleen lie above the kidneys, and the right kidney alone at the end.
PLACES = {
    "liver": (slice(2, 8), slice(8, 16), slice(6, 14)),
    "spleen": (slice(3, 6), slice(8, 14), slice(20, 26)),
    "right kidney": (slice(6, 12), slice(18, 24), slice(8, 13)),
    "left kidney": (slice(5, 10), slice(18, 24), slice(20, 25)),
}
LIVER_OR_SPLEEN, A_KIDNEY = set(range(2, 8)), set(range(5, 12))


def organ_scan(number: int, data: DataSet = ABDOMEN) -> tuple[Volume, Volume]:
    """A body of 100 with organs of 200 and more, some noise, and its labelmap; organs shift with the number."""
    rng = np.random.default_rng(number)
    labels = np.zeros(SHAPE, dtype=np.uint8)
    for name in data.organs:
        slices, rows, columns = PLACES[name]
        shift = number % 3 - 1
        labels[slices, rows.start + shift : rows.stop + shift, columns] = data.labels[name]
    voxels = np.zeros(SHAPE)
    voxels[:, 3:29, 3:29] = 100 + rng.normal(0, 5, (SHAPE[0], 26, 26))
    voxels[labels > 0] += 100 + 10 * labels[labels > 0]
    geometry = Geometry(SHAPE, (1.25, 1.25, 7.7), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    return Volume(voxels.astype(np.int16), geometry), Volume(labels, geometry)


def write_scans(folder: Path, data: DataSet = ABDOMEN, scans: int = SCANS) -> Path:
    """The manifest of so many scans, numbered 1, 2, ..., whose order in the file is not that of their numbers."""
    cases = []
    for number in range(scans, 0, -1):
        name = f"{data.name}_{number}"
        image, labels = organ_scan(number, data)
        image.write(folder / f"{name}.nii.gz")
        labels.write(folder / f"{name}_labels.nii.gz")
        files = {"image": f"{name}.nii.gz", "labels": f"{name}_labels.nii.gz"}
        cases.append(
            {"id": f"{data.name}/{name}", "group": data.name, **files, "targets": dict(data.labels), "split": "test"}
        )
    path = folder / f"{data.name}.json"
    path.write_text(json.dumps({"groups": {data.name: {}}, "cases": cases}), encoding="utf-8")
    return path


def scans_of(manifest: Path, data: DataSet = ABDOMEN) -> tuple[Case, ...]:
    """The scans of a manifest in the benchmark's order."""
    return ordered_cases(read_manifest(manifest), data)


def write_weights(folder: Path, seed: int = 0) -> Path:
    """A pipeline folder of tiny random networks of our own kind."""
    new_built_in(seed, Size(resolution=32, channels=(16, 16))).save_pretrained(folder)
    return folder


def write_config(folder: Path, **changes: object) -> Path:
    """A training of a few steps on supervoxels."""
    settings = {
        "network": {"resolution": 32, "channels": [16, 16]},
        "mix": {"independent": 1.0},
        "synthetic_count": 0,
        "window": "minmax",
        "average": 0.0,
        "half": False,
        "steps": 4,
        "batch": 1,
        "warmup": 0,
        "save_every": 2,
        "workers": 0,
    }
    path = folder / "tiny.json"
    path.write_text(json.dumps(settings | changes), encoding="utf-8")
    return path


def few_organs(patch: pytest.MonkeyPatch, *organs: str) -> None:
    """Benchmarks of the abdomen test these alone: for tests of how runs go, not of what they find."""
    groups = {group: tuple(set(held) & set(organs)) for group, held in ABDOMEN.excluded_together.items()}
    for name in ("chaos_t2", "sabs"):
        patch.setitem(DATA_SETS, name, replace(DATA_SETS[name], organs=organs, excluded_together=groups))


def spleen_alone(patch: pytest.MonkeyPatch) -> None:
    """They test one organ, on few slices."""
    few_organs(patch, "spleen")


def ran(*words: object) -> None:
    """`sdfsmis benchmark` with these words; errors come out as they are."""
    command = typer.main.get_command(benchmark)
    command.main(args=[str(word) for word in words], prog_name="sdfsmis benchmark", standalone_mode=False)


def dice_of(folder: Path) -> dict[tuple[int, str, str], tuple[str, int, int, int]]:
    """All that the results of a run say but how long it took: (fold, case, organ) -> (support, found, held, both)."""
    found = {}
    for path in sorted((folder / "results").glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        for row in content["scores"]:
            key = (content["about"]["fold"], row["case"], row["organ"])
            found[key] = (row["support"], row["found"], row["held"], row["both"])
    return found
