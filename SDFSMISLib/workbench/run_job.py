"""The thread of a run: the support set that it is given, its job, and the messages that it posts.

Everything here works on copies of the scene and may be used in any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from SDFSMISLib.client import Client
from SDFSMISLib.errors import Cancelled
from SDFSMISLib.images.planes import Plane
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
class LoadedSupport:
    """A support set from a file, without the slices that the user has removed from the list.

    Attributes:
        name: of the file.
        removed: numbers of removed slices in ``support.slices``.
    """

    name: str
    support: SupportSet
    removed: frozenset[int] = frozenset()

    @property
    def slices(self) -> dict[int, SupportSlice]:
        """The slices that are left, by number."""
        return {number: one for number, one in enumerate(self.support.slices) if number not in self.removed}

    def structure(self, label: int) -> str:
        """The name of the structure with a label."""
        return self.support.names.get(label) or f"Structure {label}"


@dataclass(frozen=True, eq=False)
class SupportSnapshot:
    """The support set of a run, before it is cut out of the painted scan.

    Attributes:
        templates: name and colour of each structure, by label value of the run.
        painting: what is painted on the scan; None = nothing.
        axis: array axis along which results on the painted scan come.
        used: the painted slices to use, of any view, and the labels painted on each.
        complete: those of them on which every structure counts as painted, also one that is not there.
        loaded: slices from files, with the label values of the run.
    """

    templates: Mapping[int, SegmentTemplate]
    painting: Painting | None
    axis: int
    used: Mapping[Plane, Collection[int]]
    complete: frozenset[Plane]
    loaded: tuple[SupportSlice, ...]

    def painted_as_wholes(self, label: int) -> set[int]:
        """Indices of the slices along the axis of the results of which all is known of a label."""
        corrections = self.painting.corrections if self.painting is not None else {}
        return {
            plane.index
            for plane, labels in self.used.items()
            if plane.axis == self.axis
            and (label in labels or plane in self.complete)
            and (plane not in corrections or corrections[plane].known is None)
        }

    def support_set(self, scan: Scan | None) -> SupportSet:
        """The support set; it takes a third of a second for 512 × 512 × 300 voxels.

        Args:
            scan: the painted one; None if nothing is painted.

        Raises:
            InputError: if a painted segment has no paint on the slices in use.
        """
        painted: tuple[SupportSlice, ...] = ()
        if self.painting is not None and self.used and scan is not None:
            painted = self.painting.support(scan, self.used, self.complete).slices
        return SupportSet(
            (*painted, *self.loaded), {label: template.name for label, template in self.templates.items()}
        )


def join_structures(
    painted: Mapping[int, SegmentTemplate], loaded: Sequence[LoadedSupport]
) -> tuple[dict[int, SegmentTemplate], tuple[SupportSlice, ...]]:
    """The structures of painted segments and of files, by label value, and the slices from files with these values.

    A structure of a file and a painted segment are the same if their names are, apart from upper and lower case. They
    are also the same if one segment is painted and the file has a single structure without a name.
    """
    templates = dict(painted)
    slices = []
    for one in loaded:
        values = np.zeros(1 << 16, dtype=np.uint16)
        for label in one.support.labels:
            values[label] = _label_of(one, label, templates)
        slices += [replace(shown, labels=values[shown.labels]) for shown in one.slices.values()]
    return templates, tuple(slices)


def _label_of(loaded: LoadedSupport, label: int, templates: dict[int, SegmentTemplate]) -> int:
    """The label value of a structure from a file; a new one is added to ``templates``."""
    name = loaded.structure(label)
    for value, template in templates.items():
        if template.name.casefold() == name.casefold():
            return value
    if not loaded.support.names.get(label) and len(loaded.support.labels) == len(templates) == 1:
        return next(iter(templates))
    value = max(templates, default=0) + 1
    color = COLORS[(value - 1) % len(COLORS)]
    templates[value] = SegmentTemplate(name, color, "", FILE_SOURCE + name)
    return value


Post = Callable[[Any], None]
ClientSource = Callable[[Post, Cancel], Client]
"""Connects to the chosen backend, in the thread of the run; posts :class:`Status` while a backend is being started."""


@dataclass(frozen=True)
class Status:
    """What is being done, in words."""

    text: str


@dataclass(frozen=True, eq=False)
class ScanStarted:
    """The first slice of a scan is about to be posted.

    Attributes:
        number: of the scan in the run.
        axis: array axis of the results.
    """

    number: int
    support: SupportSet
    axis: int


@dataclass(frozen=True)
class UploadProgress:
    """How many slices the backend has received."""

    sent: int
    total: int


@dataclass(frozen=True, eq=False)
class SliceFinished:
    """A finished slice of the scan with this number."""

    number: int
    record: SliceResult


@dataclass(frozen=True)
class ScanFinished:
    """All slices of the scan with this number are finished."""

    number: int
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Retrying:
    """The connection was lost and is tried again.

    Attributes:
        problem: why, in words.
    """

    problem: str


@dataclass(frozen=True, eq=False)
class SegmentationJob:
    """The job of a run: segments its scans one after the other.

    Attributes:
        painted: the painted scan; None = the support set is from files.
        scans: the scans to segment, each with the indices of the wanted slices; None = all.
    """

    source: ClientSource
    support: SupportSnapshot
    painted: Scan | None
    scans: Sequence[tuple[Scan, Sequence[int] | None]]
    options: RunOptions

    def __call__(self, post: Post, cancel: Cancel) -> None:
        support = self.support.support_set(self.painted)
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
        axes = support.axes_on(scan, content)
        run = client.segment(
            SliceStack.along(scan, axes, scan.window(), content),
            support,
            self.options,
            labels=sorted(self.support.templates),
            slices=wanted,
            on_upload=lambda sent, total: post(UploadProgress(sent, total)),
            cancel=cancel,
            on_retry=lambda error: post(Retrying(str(error))),
        )
        cancel.then(run.cancel)
        try:
            post(run)  # any thread may look at its phase
            begun = False
            with run:
                for record in run:
                    if not begun:  # results of an earlier run stay until the backend has answered
                        post(ScanStarted(number, support, axes[0]))
                        begun = True
                    post(SliceFinished(number, record))
            if not begun:
                post(ScanStarted(number, support, axes[0]))
            post(ScanFinished(number, tuple(run.warnings)))
        finally:
            cancel.then(None)
