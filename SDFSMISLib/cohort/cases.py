"""The manifest: a JSON file that lists scans with labels in groups, and what each label value means.

::

    {"groups": {NAME: {"region": ..., "modality": ..., "licence": ..., "source": ...,
                       "may_train_shipped_weights": true | false}},
     "cases":  [{"id": "group/name", "group": NAME, "image": PATH, "labels": PATH, "modality": ...,
                 "targets": {"liver": 1, ...}, "split": "train" | "test"}]}

Paths are relative to the manifest's folder. A target may also have a list of label values, ``"kidneys": [2, 3]``: all
of them are the one structure. Only fields that measuring needs are required: a group's fields and a case's modality may
be missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.images.volume import Volume, match_labelmap, read_labelmap
from SDFSMISLib.support import SupportSet

__all__ = ["Case", "Group", "LabelledScan", "Manifest", "load_case", "read_manifest"]

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Group:
    """Cases of one source. ``may_train_shipped_weights`` is False unless the manifest says true."""

    name: str
    region: str = ""
    modality: str = ""
    licence: str = ""
    source: str = ""
    may_train_shipped_weights: bool = False


@dataclass(frozen=True, eq=False)
class Case:
    """One scan with its labelmap.

    ``id`` is ``"group/name"``; ``targets`` maps the name of each structure to its label value (1 or more). A structure
    of several label values has the first of them there, and ``joined`` maps the others to it.

    >>> case = Case("ct/1", "ct", Path("scan.nii.gz"), Path("labels.nii.gz"), {"liver": 1}, split="test")
    >>> case.targets["liver"]
    1
    """

    id: str
    group: str
    image: Path
    labels: Path
    targets: Mapping[str, int]
    split: Split
    modality: str = ""
    joined: Mapping[int, int] = field(default_factory=dict)

    def labels_of(self, target: str) -> int | list[int]:
        """The label values of a target in its labelmap, as a manifest has them."""
        first = self.targets[target]
        others = [value for value, of in self.joined.items() if of == first]
        return [first, *others] if others else first


@dataclass(frozen=True)
class Manifest:
    """The groups and cases of one manifest, in the order of the file (see :func:`read_manifest`).

    >>> case = Case("ct/1", "ct", Path("scan.nii.gz"), Path("labels.nii.gz"), {"liver": 1}, split="test")
    >>> manifest = Manifest({"ct": Group("ct")}, (case,))
    >>> [case.id for case in manifest.select(["ct"], split="test")]
    ['ct/1']
    """

    groups: Mapping[str, Group]
    cases: tuple[Case, ...]

    def select(self, groups: Sequence[str] | None = None, split: Split | None = None) -> tuple[Case, ...]:
        """The cases of these groups and this split; None takes all.

        Raises :class:`InputError` for an unknown group, and if no case is left.
        """
        for group in groups or ():
            if group not in self.groups:
                raise InputError(f"There is no group {group!r} in the manifest; it has {', '.join(self.groups)}.")
        chosen = [
            case for case in self.cases if (groups is None or case.group in groups) and split in (None, case.split)
        ]
        if not chosen:
            wanted = f"{', '.join(groups or self.groups)} with split {split or 'train or test'}"
            raise InputError(f"The manifest has no case in {wanted}; choose other groups or the other split.")
        return tuple(chosen)

    def following(self, case: Case) -> tuple[Case, ...]:
        """The other cases of the case's group in the order of the file, beginning behind it and going round."""
        members = [other for other in self.cases if other.group == case.group]
        place = next(index for index, other in enumerate(members) if other.id == case.id)
        return tuple(members[place + 1 :] + members[:place])


def read_manifest(path: str | PathLike[str], label_maps: bool = False) -> Manifest:
    """Reads a manifest and checks it whole, so that a long run does not stop at its last case.

    ``label_maps``: of label volumes without images. A case may then lack ``image``, in whose place its labels are read,
    and ``split``, which is ``train`` then.

    Raises :class:`InputError`, naming the case and the field, for a missing file, text that is not JSON, a missing or
    wrong field, a group that is not listed, an id that is there twice, and image or label files that do not exist.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"Cannot read the manifest {path}: {error.strerror or error}.") from error
    except ValueError as error:
        raise InputError(f"The manifest {path} is not JSON: {error}.") from error
    content = _typed(content, dict, f"The manifest {path}")
    groups = {
        name: _group(name, _typed(fields, dict, f"Group {name!r} of {path}"))
        for name, fields in _field(content, "groups", dict, f"The manifest {path}").items()
    }
    entries = _field(content, "cases", list, f"The manifest {path}")
    cases = tuple(_case(entry, place, path, groups, label_maps) for place, entry in enumerate(entries))
    if not cases:
        raise InputError(f"The manifest {path} lists no cases.")
    seen: set[str] = set()
    for case in cases:
        if case.id in seen:
            raise InputError(f"The manifest {path} has two cases with the id {case.id!r}; each needs one of its own.")
        seen.add(case.id)
    return Manifest(groups, cases)


@dataclass(frozen=True, eq=False)
class LabelledScan:
    """A case in memory: its scan, and its labelmap on the scan's grid, each structure with one label value."""

    case: Case
    scan: Volume
    labelmap: Volume

    @property
    def axis(self) -> int:
        """The slice axis."""
        return self.scan.geometry.default_axis()

    def mask(self, target: str) -> np.ndarray:
        """The target: bool ``(slices, height, width)``; empty if the case does not list it."""
        if target not in self.case.targets:
            return np.zeros(self.labelmap.voxels.shape, dtype=bool)
        return self.labelmap.voxels == self.case.targets[target]

    def next_target(self, target: str) -> str | None:
        """The next target after this one, in a circle, that the scan holds; None if there is no other."""
        names = list(self.case.targets)
        place = names.index(target)
        return next((name for name in names[place + 1 :] + names[:place] if self.mask(name).any()), None)

    def support(self, target: str, slices: Sequence[int | tuple[int, int]]) -> SupportSet:
        """These slices, numbers along the slice axis or (axis, number), with the target painted on them."""
        label = self.case.targets[target]
        named = replace(self.labelmap, segment_names={label: target})
        planes = [(self.axis, one) if isinstance(one, (int, np.integer)) else one for one in slices]
        return SupportSet.from_labelmap(self.scan, named, label=label, slices=planes)


def load_case(case: Case) -> LabelledScan:
    """Reads scan and labelmap; raises :class:`InputError` for a bad file, and for labels that lie elsewhere than the
    scan.
    """
    scan = Volume.read(case.image)
    labelmap, _ = match_labelmap(read_labelmap(case.labels), scan.geometry)
    for value, first in case.joined.items():
        labelmap.voxels = np.where(labelmap.voxels == value, np.uint16(first), labelmap.voxels)
    return LabelledScan(case, scan, labelmap)


def _group(name: str, fields: dict[str, Any]) -> Group:
    texts = {key: str(fields.get(key, "")) for key in ("region", "modality", "licence", "source")}
    return Group(name, **texts, may_train_shipped_weights=fields.get("may_train_shipped_weights") is True)


def _case(entry: object, place: int, path: Path, groups: Mapping[str, Group], label_map: bool) -> Case:
    where = f"Case {place} of {path}"
    fields = _typed(entry, dict, where)
    if label_map:
        fields = {"image": fields.get("labels"), "split": "train"} | fields
    name = _field(fields, "id", str, where)
    where = f"Case {name!r} of {path}"
    group = _field(fields, "group", str, where)
    if group not in groups:
        raise InputError(f"{where} is of the group {group!r}, which is not listed; the groups are {', '.join(groups)}.")
    split = _field(fields, "split", str, where)
    if split not in ("train", "test"):
        raise InputError(f'{where} has the split {split!r}; "train" and "test" are accepted.')
    targets, joined = _targets(_field(fields, "targets", dict, where), where)
    files = {key: path.parent / _field(fields, key, str, where) for key in ("image", "labels")}
    for key, file in files.items():
        if not file.exists():
            raise InputError(
                f"{where} names {key} that do not exist: {file}; give a path relative to the manifest's folder."
            )
    modality = str(fields.get("modality") or groups[group].modality)
    return Case(name, group, files["image"], files["labels"], targets, split, modality, joined)


def _targets(given: Mapping[str, Any], where: str) -> tuple[dict[str, int], dict[int, int]]:
    """See :class:`Case`: its ``targets`` and ``joined``."""
    labels = {target: value if isinstance(value, list) else [value] for target, value in given.items()}
    for target, values in labels.items():
        if not values or any(isinstance(one, bool) or not isinstance(one, int) or one < 1 for one in values):
            raise InputError(
                f"{where} gives {target!r} the label {given[target]!r}; a whole number from 1, or a list of them, is "
                "accepted."
            )
    joined = {other: first for first, *others in labels.values() for other in others}
    used = [value for values in labels.values() for value in values]
    for value in used:
        if (value in joined or value in joined.values()) and used.count(value) > 1:
            raise InputError(f"{where} gives the label {value} twice; a label of a list belongs to that target alone.")
    return {target: values[0] for target, values in labels.items()}, joined


def _field(fields: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    if key not in fields:
        raise InputError(f"{where} has no field {key!r}.")
    return _typed(fields[key], kind, f"{where}, field {key!r},")


def _typed(value: object, kind: type, where: str) -> Any:
    if not isinstance(value, kind):
        raise InputError(f"{where} must be a JSON {_KINDS[kind]}; {value!r:.60} was given.")
    return value


_KINDS: Mapping[type, str] = {dict: "object", list: "list", str: "string"}
