"""The three data sets of few-shot medical image segmentation, their five folds, and what a training may use.

Data sets and folds are those of Ouyang et al. (SSL-ALPNet, ECCV 2020), Hansen et al. (ADNet, MedIA 2022) and their
successors; scans are ordered by the number in their names.

A training gets a manifest of the other folds' scans. For self-supervision its cases have one target, the body, so no
organ's label is in its files; in Setting II slices that show a tested organ are blank in the scan itself, so neither
episodes nor supervoxels nor the intensity window can use them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from SDFSMISLib.cohort.cases import Case, LabelledScan, Manifest, load_case
from SDFSMISLib.errors import InputError
from SDFSMISLib.images.files import write_text
from SDFSMISLib.images.volume import Volume

FOLDS = 5
SUPPORT_PLACE = 2  # the fold's third scan, as in RPT, GMRD, FAMNet and SD-FSMIS


@dataclass(frozen=True)
class DataSet:
    """One data set.

    Attributes:
        name: of the group in the manifest. title: what papers call it.
        scans: how many it has.
        labels: label value of every structure by name, as the prepared files have them.
        organs: the structures that are tested, in the order of the tables.
        excluded_together: the organs of each training in Setting II: a slice that shows one of them is left out.
            Empty: no Setting II.
        official_held_out: the organs whose labels the official code's training leaves out.
        supervoxel_size: least voxels of a supervoxel, as ADNet and its successors have it.
    """

    name: str
    title: str
    modality: str
    scans: int
    labels: Mapping[str, int]
    organs: tuple[str, ...]
    excluded_together: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    official_held_out: tuple[str, ...] = ()
    supervoxel_size: int = 5000


ABDOMEN = ("liver", "right kidney", "left kidney", "spleen")
ABDOMEN_GROUPS = {"upper": ("liver", "spleen"), "lower": ("right kidney", "left kidney")}
CHAOS_LABELS = {"liver": 1, "right kidney": 2, "left kidney": 3, "spleen": 4}
SABS_LABELS = {
    "spleen": 1,
    "right kidney": 2,
    "left kidney": 3,
    "gallbladder": 4,
    "esophagus": 5,
    "liver": 6,
    "stomach": 7,
    "aorta": 8,
    "inferior vena cava": 9,
    "portal and splenic veins": 10,
    "pancreas": 11,
    "right adrenal gland": 12,
    "left adrenal gland": 13,
}
CMR_LABELS = {"LV myocardium": 1, "LV blood pool": 2, "RV": 3}

DATA_SETS: Mapping[str, DataSet] = {
    one.name: one
    for one in (
        DataSet(
            "chaos_t2", "Abd-MRI", "MR T2-SPIR", 20, CHAOS_LABELS, ABDOMEN, ABDOMEN_GROUPS, ABDOMEN_GROUPS["upper"]
        ),
        DataSet("sabs", "Abd-CT", "CT", 30, SABS_LABELS, ABDOMEN, ABDOMEN_GROUPS, ABDOMEN_GROUPS["upper"]),
        DataSet("cmr", "CMR", "MR bSSFP", 35, CMR_LABELS, tuple(CMR_LABELS), supervoxel_size=1000),
    )
}
"""By the name that the command line and the manifest have for them."""


@dataclass(frozen=True)
class Fold:
    """The scans that one training does not use, and that are tested with its weights.

    Attributes:
        number: 0 to 4.
        cases: in the order of the data set; the last fold begins with the first scan of all.
        own: ids of its scans without the one that it shares with the next fold; counted so, each scan counts once.

    >>> cases = [Case(f"cmr/{n}", "cmr", Path("a.nii.gz"), Path("b.nii.gz"), {}, "test") for n in range(15)]
    >>> fold = fold_of(cases, 4)
    >>> [case.id for case in fold.cases], fold.support.id
    (['cmr/0', 'cmr/12', 'cmr/13', 'cmr/14'], 'cmr/13')
    """

    number: int
    cases: tuple[Case, ...]
    own: frozenset[str]

    @property
    def support(self) -> Case:
        """The scan whose slices are painted for all others: the third."""
        return self.cases[SUPPORT_PLACE]

    def support_for(self, case: Case) -> Case:
        """The fold's support; for that scan itself, which papers do not test, the scan after it."""
        return self.cases[SUPPORT_PLACE + 1] if case.id == self.support.id else self.support


def fold_of(cases: Sequence[Case], number: int) -> Fold:
    """Fold ``number`` of a data set: a fifth of its ``cases`` and the first of the next fifth, in their order.

    Raises :class:`InputError` for a number that is not 0 to 4.
    """
    if not 0 <= number < FOLDS:
        raise InputError(f"Fold {number} was asked for; the folds are 0 to {FOLDS - 1}, or all of them.")
    size = len(cases) // FOLDS
    own = range(number * size, (number + 1) * size)
    places = sorted({*own, (number + 1) * size % len(cases)})
    return Fold(number, tuple(cases[place] for place in places), frozenset(cases[place].id for place in own))


def ordered_cases(manifest: Manifest, data: DataSet) -> tuple[Case, ...]:
    """The data set's scans by the number in their names.

    Raises :class:`InputError` where the manifest has not the group, not all of its scans (a fifth and one more are
    needed for a fold, so any multiple of five from 15 on is taken), or scans without its organs.
    """
    if data.name not in manifest.groups:
        raise InputError(
            f"The manifest has no group {data.name!r}, only {', '.join(manifest.groups)}; make one with: sdfsmis "
            f"benchmark prepare --data {data.name} --source FOLDER --output DIR"
        )
    cases = sorted((case for case in manifest.cases if case.group == data.name), key=_number)
    if len(cases) % FOLDS or len(cases) < 3 * FOLDS:
        raise InputError(
            f"The manifest has {len(cases)} scans of {data.name}; the data set has {data.scans}, and any multiple of "
            f"{FOLDS} from {3 * FOLDS} on can be cut into folds."
        )
    for case in cases:
        if missing := [organ for organ in data.organs if organ not in case.targets]:
            raise InputError(f"The case {case.id!r} does not list {missing[0]!r} among its targets; prepare it again.")
    return tuple(cases)


def _number(case: Case) -> int:
    digits = re.findall(r"\d+", case.id.rpartition("/")[2])
    if not digits:
        raise InputError(f"The case {case.id!r} has no number in its name, which gives the order of the folds.")
    return int(digits[-1])


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
    write_text(manifest, json.dumps(content, indent=1) + "\n")
    return manifest


def _entry(case: Case, training: Training, folder: Path) -> dict[str, Any] | None:
    """The case as the manifest has it; None if training may see nothing of it."""
    about = {"id": case.id, "group": case.group, "modality": case.modality, "split": "train"}
    if training.targets == "labels":
        targets = {name: case.labels_of(name) for name in case.targets if name not in training.held_out}
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
    if training.hidden and not _has_labels(body):
        return None
    shown = image if training.hidden else case.image
    return about | {"image": _absolute(shown), "labels": _absolute(body), "targets": BODY}


def _has_labels(labelmap: Path) -> bool:
    return bool(Volume.read(labelmap).voxels.any())


def _absolute(path: Path) -> str:
    return os.path.abspath(path)
