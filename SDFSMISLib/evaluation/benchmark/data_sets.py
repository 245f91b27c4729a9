"""The three data sets of few-shot medical image segmentation, and their five folds.

What they are and how they are cut is as in Ouyang et al. (SSL-ALPNet, ECCV 2020), Hansen et al. (ADNet, MedIA 2022) and
those who followed them. Scans are counted by their place in the order of the numbers in their names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from SDFSMISLib.errors import InputError
from SDFSMISLib.evaluation.cases import Case, Manifest

__all__ = ["DATA_SETS", "FOLDS", "DataSet", "Fold", "fold_of", "ordered_cases"]

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
            Empty where there is no Setting II.
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
    """The scans that one training does not see, and that are tested with its weights.

    Attributes:
        number: 0 to 4. cases: in the order of the data set; the last fold begins with the first scan of all.
        own: the ids of its scans without the one that it shares with the next fold: so counted, each scan counts once.
    """

    number: int
    cases: tuple[Case, ...]
    own: frozenset[str]

    @property
    def support(self) -> Case:
        """The scan whose slices are painted for all others, the third."""
        return self.cases[SUPPORT_PLACE]

    def support_for(self, case: Case) -> Case:
        """The fold's support; for that scan itself, which papers never test, the one behind it."""
        return self.cases[SUPPORT_PLACE + 1] if case.id == self.support.id else self.support


def fold_of(cases: Sequence[Case], number: int) -> Fold:
    """Fold ``number`` of the ``cases`` of a data set: a fifth of them and the first of the next fifth, in their order.

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
