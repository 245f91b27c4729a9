"""What a fold's training may see: scans of the other folds, and of them no label and no slice that it must not know.

A training is handed a manifest. For self-supervision its cases name one target, the body, so that no organ's label is
in its files at all; in Setting II slices that show a tested organ are blank in the scan itself, so that neither an
episode nor a supervoxel nor the intensity window knows them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from SDFSMISLib.evaluation.benchmark.data_sets import DataSet
from SDFSMISLib.evaluation.cases import Case
from SDFSMISLib.evaluation.protocols import LabelledScan, load_case
from SDFSMISLib.images.files import atomic_output
from SDFSMISLib.images.volume import Volume

__all__ = ["Exclusion", "Targets", "Training", "excluded_slices", "trainings", "write_training_set"]

Exclusion = Literal["any", "all"]
Targets = Literal["supervoxels", "labels"]
BODY = {"body": 1}


@dataclass(frozen=True)
class Training:
    """One training of a fold.

    Attributes:
        name: of its folder. organs: those that are tested with its weights.
        hidden: organs whose slices it must not see; ``exclusion`` says which: `any`, slices that show one of them, or
            `all`, only those that show all of them at once.
        targets: what episodes ask for: supervoxels, or, as in the official code, labels of all structures but the
            ``held_out`` ones.
    """

    name: str
    organs: tuple[str, ...]
    hidden: tuple[str, ...] = ()
    exclusion: Exclusion = "any"
    targets: Targets = "supervoxels"
    held_out: tuple[str, ...] = ()


def trainings(data: DataSet, setting: int, exclusion: Exclusion, official: bool) -> tuple[Training, ...]:
    """The trainings that one fold needs.

    Setting I takes one, and so does Setting II as much of the literature has it (``exclusion`` `all`). Done right it
    takes one for each group of organs that are left out together.
    """
    if official:
        return (Training("official", data.organs, targets="labels", held_out=data.official_held_out),)
    if setting == 1:
        return (Training("all", data.organs),)
    if exclusion == "all":
        return (Training("all", data.organs, data.organs, "all"),)
    return tuple(Training(name, organs, organs) for name, organs in data.excluded_together.items())


def excluded_slices(labelled: LabelledScan, training: Training) -> np.ndarray:
    """Bool for each slice along the scan's axis: whether the training must not see it."""
    others = tuple(axis for axis in range(3) if axis != labelled.axis)
    shown = [labelled.mask(organ).any(axis=others) for organ in training.hidden]
    if not shown:
        return np.zeros(labelled.scan.slice_count(labelled.axis), dtype=bool)
    return np.any(shown, axis=0) if training.exclusion == "any" else np.all(shown, axis=0)


def write_training_set(
    cases: Sequence[Case],
    training: Training,
    folder: Path,
    manifest: Path,
    progress: Callable[[int, int, str], None] | None = None,
) -> Path:
    """Writes the ``manifest`` of a training on ``cases``, and into ``folder``, which trainings share, what files it
    needs beside the scans. Scans that it may see nothing of are left out. Returns the manifest's path.

    Raises :class:`InputError` for bad files and where a file cannot be written.
    """
    entries = []
    for number, case in enumerate(cases):
        if progress:
            progress(number, len(cases), f"{case.id}: what training may see")
        entry = _entry(case, training, folder)
        if entry is not None:
            entries.append(entry)
    content = {"groups": {case.group: {} for case in cases}, "cases": entries}
    with atomic_output(manifest, manifest.suffix) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return manifest


def _entry(case: Case, training: Training, folder: Path) -> dict[str, Any] | None:
    """The case as the manifest has it; None where nothing is left of it."""
    about = {"id": case.id, "group": case.group, "modality": case.modality, "split": "train"}
    if training.targets == "labels":
        targets = {name: value for name, value in case.targets.items() if name not in training.held_out}
        return about | {"image": _absolute(case.image), "labels": _absolute(case.labels), "targets": targets}
    name = case.id.replace("/", "_")
    seen = f"{name}_without_{training.exclusion}_{training.name}" if training.hidden else name
    image, body = folder / f"{seen}.nii.gz", folder / f"{seen}_body.nii.gz"
    if not body.exists():
        labelled = load_case(case)
        hidden = excluded_slices(labelled, training)
        scan = labelled.scan
        low = scan.voxels.min()
        voxels = scan.voxels.copy()
        np.moveaxis(voxels, labelled.axis, 0)[hidden] = low
        if training.hidden:
            Volume(voxels, scan.geometry).write(image)
        Volume((voxels > low).astype(np.uint8), scan.geometry).write(body)  # last: it says that both are there
    if training.hidden and not _holds_something(body):
        return None
    shown = image if training.hidden else case.image
    return about | {"image": _absolute(shown), "labels": _absolute(body), "targets": BODY}


def _holds_something(labelmap: Path) -> bool:
    return bool(Volume.read(labelmap).voxels.any())


def _absolute(path: Path) -> str:
    return os.path.abspath(path)
