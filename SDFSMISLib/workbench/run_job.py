"""Support plan: which painted slices make the support of a run. It holds copies: any thread may use it.

Run job: what goes on in the worker thread of a run. It touches copies only, and posts what has come.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from SDFSMISLib.client import Client
from SDFSMISLib.errors import Cancelled
from SDFSMISLib.options import RunOptions
from SDFSMISLib.scene import Painting, Scan, SegmentTemplate
from SDFSMISLib.slices import SliceResult, SliceStack
from SDFSMISLib.support import SupportSet, SupportSlice
from SDFSMISLib.workbench.background import Cancel

COLORS = (  # red, green, blue, of structures that no segment of the scene shows
    (0.90, 0.45, 0.30),
    (0.30, 0.60, 0.90),
    (0.45, 0.75, 0.35),
    (0.90, 0.75, 0.25),
    (0.65, 0.45, 0.85),
    (0.30, 0.75, 0.75),
)
FILE_SOURCE = "support set: "  # before the name of a structure that no segment of the scene shows


@dataclass(frozen=True, eq=False)
class LoadedSet:
    """A support set that was read from a file; slices that were removed from it are left out."""

    name: str
    support: SupportSet
    removed: frozenset[int] = frozenset()

    @property
    def pieces(self) -> dict[int, SupportSlice]:
        """The slices that are left, by number."""
        return {number: piece for number, piece in enumerate(self.support.slices) if number not in self.removed}

    def structure(self, label: int) -> str:
        """The name of a label."""
        return self.support.names.get(label) or f"Structure {label}"


@dataclass(frozen=True, eq=False)
class SupportPlan:
    """What a run is shown.

    Attributes:
        looks: of each structure, by label value of the run.
        painting: what is painted on the scan; None = nothing is.
        axis: array axis along which it is sliced. used: the slices of it to take.
        complete: those of them that say of each structure whether it is there.
        loaded: slices from files, with the label values of the run.
    """

    looks: Mapping[int, SegmentTemplate]
    painting: Painting | None
    axis: int
    used: tuple[int, ...]
    complete: frozenset[int]
    loaded: tuple[SupportSlice, ...]

    def support(self, scan: Scan | None) -> SupportSet:
        """The support set; it takes a third of a second for 512 × 512 × 300 voxels.

        Args:
            scan: that is painted; it is not looked at where nothing is painted.

        Raises:
            InputError: where one of the painted segments has nothing on the slices that are used.
        """
        pieces: tuple[SupportSlice, ...] = ()
        if self.painting is not None and self.used and scan is not None:
            made = self.painting.support(scan, self.used, self.axis)
            pieces = tuple(replace(piece, complete=piece.index in self.complete) for piece in made.slices)
        return SupportSet((*pieces, *self.loaded), {label: look.name for label, look in self.looks.items()})


def join_structures(
    painted: Mapping[int, SegmentTemplate], loaded: Sequence[LoadedSet]
) -> tuple[dict[int, SegmentTemplate], tuple[SupportSlice, ...]]:
    """The structures of painted segments and of loaded sets, by label value, and the loaded slices with these values.

    A structure of a set is that of a segment where the names are the same, upper and lower case aside; where a single
    segment is painted and a set shows a single structure without a name, they are the same, too.
    """
    looks = dict(painted)
    pieces = []
    for one in loaded:
        values = np.zeros(1 << 16, dtype=np.uint16)
        for label in one.support.labels:
            values[label] = _label_of(one, label, looks)
        pieces += [replace(piece, labels=values[piece.labels]) for piece in one.pieces.values()]
    return looks, tuple(pieces)


def _label_of(loaded: LoadedSet, label: int, looks: dict[int, SegmentTemplate]) -> int:
    """The label value of a structure of a set; a new one is added to the looks."""
    name = loaded.structure(label)
    for value, look in looks.items():
        if look.name.casefold() == name.casefold():
            return value
    if not loaded.support.names.get(label) and len(loaded.support.labels) == len(looks) == 1:
        return next(iter(looks))
    value = max(looks, default=0) + 1
    color = COLORS[(value - 1) % len(COLORS)]
    looks[value] = SegmentTemplate(name, color, "", FILE_SOURCE + name)
    return value


Post = Callable[[Any], None]
ClientSource = Callable[[Post, Cancel], Client]
"""Gives a client of the backend that was chosen, in the worker thread; starting one takes a while, and is posted as
:class:`Doing`."""


@dataclass(frozen=True)
class Doing:
    """What goes on, in words."""

    text: str


@dataclass(frozen=True, eq=False)
class ScanBegins:
    """The slices of a scan will come.

    Attributes:
        number: of the scan in the run.
        axis: along which slices come.
    """

    number: int
    support: SupportSet
    axis: int


@dataclass(frozen=True)
class Sent:
    """How many slices are on the backend, of how many."""

    there: int
    total: int


@dataclass(frozen=True, eq=False)
class SliceCame:
    """A finished slice of a scan."""

    number: int
    record: SliceResult


@dataclass(frozen=True)
class ScanEnds:
    """All slices of a scan have come."""

    number: int
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Trouble:
    """What is wrong while it is tried again."""

    text: str


@dataclass(frozen=True, eq=False)
class RunJob:
    """The job of a run: for each scan all slices, one after the other.

    Attributes:
        painted: the scan that is painted; None = the support is from files.
        scans: those to segment, each with the slices that are wanted; None = all.
    """

    source: ClientSource
    plan: SupportPlan
    painted: Scan | None
    scans: Sequence[tuple[Scan, Sequence[int] | None]]
    options: RunOptions

    def __call__(self, post: Post, cancel: Cancel) -> None:
        support = self.plan.support(self.painted)
        client = self.source(post, cancel)
        for number, (scan, wanted) in enumerate(self.scans):
            if cancel():
                raise Cancelled("The run was cancelled.")
            self._segment(client, support, number, scan, wanted, post, cancel)

    def _segment(
        self,
        client: Client,
        support: SupportSet,
        number: int,
        scan: Scan,
        wanted: Sequence[int] | None,
        post: Post,
        cancel: Cancel,
    ) -> None:
        content = scan.content_hash()
        axis = support.axis_on(scan, content)
        run = client.segment(
            SliceStack.of(scan, axis, scan.window(), content),
            support,
            self.options,
            labels=sorted(self.plan.looks),
            slices=wanted,
            on_upload=lambda there, total: post(Sent(there, total)),
            cancel=cancel,
            on_retry=lambda error: post(Trouble(str(error))),
        )
        cancel.then(run.cancel)
        try:
            post(run)  # any thread may look at its phase
            begun = False
            with run:
                for record in run:
                    if (
                        not begun
                    ):  # not before the backend has given something: results of an earlier run stay until then
                        post(ScanBegins(number, support, axis))
                        begun = True
                    post(SliceCame(number, record))
            if not begun:
                post(ScanBegins(number, support, axis))
            post(ScanEnds(number, tuple(run.warnings)))
        finally:
            cancel.then(None)
