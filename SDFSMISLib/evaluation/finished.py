"""Finished scans: tasks whose methods also get whole segmentations of other cases of the group, as users have them.

The examples of a task are the next N other cases of its group that show the target. They are registered onto the case
once for all of its targets (see :mod:`SDFSMISLib.inference.atlas`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np

from SDFSMISLib.cohort.cases import Case, LabelledScan, Manifest, Split, load_case
from SDFSMISLib.evaluation.protocols import Task, large_enough, painted_slices, same_volume
from SDFSMISLib.examples import Example
from SDFSMISLib.images.volume import Volume
from SDFSMISLib.support import SupportSet, SupportSlice

if TYPE_CHECKING:
    from SDFSMISLib.inference.atlas import Prior

__all__ = ["FinishedScans", "SharedPrior"]


class SharedPrior:
    """Where all targets of a case lie by finished scans, made when it is first needed.

    Args:
        query: the scan.
        examples: the finished scans, all of which are registered; their label values are those of the case.
        labels: of the targets.
    """

    def __init__(self, query: Volume, examples: Sequence[Example], labels: Collection[int]) -> None:
        self._query, self._examples, self._labels = query, examples, labels

    @property
    def value(self) -> Prior:
        return self._made[0]

    @property
    def seconds(self) -> float:
        """A target's share of the time that it took."""
        return self._made[1] / len(self._labels)

    @cached_property
    def _made(self) -> tuple[Prior, float]:
        from SDFSMISLib.inference.atlas import prior_of

        began = time.perf_counter()
        prior = prior_of(self._query, self._examples, self._labels, most=len(self._examples))
        return prior, time.perf_counter() - began


class FinishedScans:
    """Makes the tasks of cases that get other cases of their group as finished scans.

    Args:
        manifest: where the other cases are.
        count: how many a task gets, 1 or more.
        split: that they are of; None = any.
        load: how the case itself is read.
    """

    def __init__(
        self,
        manifest: Manifest,
        count: int,
        split: Split | None = None,
        load: Callable[[Case], LabelledScan] = load_case,
    ) -> None:
        self._manifest, self._count, self._split, self._load = manifest, count, split, load
        self._scan = lru_cache(maxsize=2 * count)(_FinishedScan.of)  # that many are in memory, a few MB each
        self._prior = lru_cache(maxsize=1)(self._new_prior)
        self._known: dict[Case, tuple[frozenset[str], str]] = {}

    def task(
        self, case: Case, target: str, protocol: str, shots: int, directions: int = 1, mispaired: bool = False
    ) -> Task | None:
        """The task of a target; None if it is too small, or fewer cases than were asked for show it.

        In ``same-volume`` so many slices of the case are painted too. In ``cross-volume`` none is; every slice is
        judged, and the support is the target's largest slice in each finished scan, for methods that take slices.
        A mispaired task shows the next structure of the case, on painted slices and in finished scans.
        """
        labelled = self._load(case)
        shown = labelled.next_target(target) if mispaired else target
        members = () if shown is None else self.members(case, shown)
        if shown is None or not members:
            return None
        if protocol == "same-volume":
            task = same_volume(case, target, (), self._load, shots, mispaired, directions)
        else:
            task = self._unpainted_task(labelled, target, shown, members)
        return None if task is None else replace(task, examples=members, prior=self._prior(case))

    def members(self, case: Case, target: str) -> tuple[Case, ...]:
        """The next other cases that show a target, as many as were asked for; none if there are not so many.

        A case of the same scan is left out.
        """
        own = self._load(case).scan.content_hash()
        found: list[Case] = []
        for other in self._manifest.following(case):
            if self._split in (None, other.split) and target in other.targets:
                targets, scan = self._about(other)
                if target in targets and scan != own:
                    found.append(other)
                    if len(found) == self._count:
                        return tuple(found)
        return ()

    def _about(self, case: Case) -> tuple[frozenset[str], str]:
        """The targets that an example of the case shows, and the content hash of its scan."""
        if case not in self._known:
            scan = self._scan(case)
            self._known[case] = (frozenset(scan.slices), scan.example.scan) if scan else (frozenset(), "")
        return self._known[case]

    def _finished(self, case: Case) -> _FinishedScan:
        scan = self._scan(case)
        assert scan is not None  # `members` has only cases that show something
        return scan

    def _unpainted_task(self, labelled: LabelledScan, target: str, shown: str, members: Sequence[Case]) -> Task | None:
        reference, label = labelled.mask(target), labelled.case.targets[shown]
        if not large_enough(reference, labelled.axis):
            return None
        slices = tuple(_relabelled(self._finished(member).slices[shown], label) for member in members)
        return Task(
            case=labelled.case,
            target=target,
            query=labelled.scan,
            axis=labelled.axis,
            support=SupportSet(slices, {label: shown}),
            label=label,
            shown=shown,
            reference=reference,
            planes=(),
            judged=tuple(range(labelled.scan.slice_count(labelled.axis))),
            support_case=members[0],
        )

    def _new_prior(self, case: Case) -> SharedPrior:
        """Of all targets that enough other cases show; of each example only those for which it was chosen."""
        values: dict[Case, dict[int, int]] = {}
        for target, label in case.targets.items():
            for member in self.members(case, target):
                values.setdefault(member, {})[member.targets[target]] = label
        names = {label: target for target, label in case.targets.items()}
        examples = [self._finished(member).example.renumbered(table, names) for member, table in values.items()]
        return SharedPrior(
            self._load(case).scan, examples, {label for table in values.values() for label in table.values()}
        )


@dataclass(frozen=True, eq=False)
class _FinishedScan:
    """A case as an example, and the largest slice of each of its targets along its slice axis."""

    example: Example
    slices: Mapping[str, SupportSlice]

    @classmethod
    def of(cls, case: Case) -> _FinishedScan | None:
        """None if it shows no target."""
        labelled = load_case(case)
        masks = {target: labelled.mask(target) for target in case.targets}
        labels = sorted({case.targets[target] for target, mask in masks.items() if mask.any()})
        if not labels:
            return None
        named = replace(labelled.labelmap, segment_names={label: name for name, label in case.targets.items()})
        example = Example.of(labelled.scan, named, case.id, labels)
        slices = {
            target: labelled.support(target, painted_slices(masks[target], labelled.axis, 1)).slices[0]
            for target, label in case.targets.items()
            if label in example.label_values
        }
        return cls(example, slices)


def _relabelled(painted: SupportSlice, label: int) -> SupportSlice:
    """A slice on which one structure is painted, with another label value."""
    return replace(painted, labels=np.where(painted.labels > 0, np.uint16(label), np.uint16(0)))
