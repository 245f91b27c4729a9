"""Run job: what goes on in the worker thread of a run. It touches copies only, and posts what has come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from SDFSMISLib.client import Client, SliceRecord
from SDFSMISLib.errors import Cancelled
from SDFSMISLib.scene import Scan
from SDFSMISLib.slices import SliceStack
from SDFSMISLib.support import SupportSet
from SDFSMISPanel.background import Cancel
from SDFSMISPanel.support_plan import SupportPlan

__all__ = ["ClientSource", "Doing", "RunJob", "RunOptions", "ScanBegins", "ScanEnds", "Sent", "SliceCame", "Trouble"]

Post = Callable[[Any], None]
ClientSource = Callable[[Post, Cancel], Client]
"""Gives a client of the backend that was chosen, in the worker thread; starting one takes a while, and is posted as
:class:`Doing`."""


@dataclass(frozen=True)
class RunOptions:
    """Options of ``Client.segment`` that all scans of a run share."""

    strategy: str
    region: str
    threshold: float


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
    record: SliceRecord


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
            labels=sorted(self.plan.looks),
            slices=wanted,
            strategy=self.options.strategy,
            region=self.options.region,
            threshold=self.options.threshold,
            on_upload=lambda there, total: post(Sent(there, total)),
            cancel=cancel,
            on_trouble=lambda error: post(Trouble(str(error))),
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
