"""What a front end shows and hands in: immutable views of the parts of the workbench, and the values of its controls.

A part (:class:`Part`) has one view, which is replaced as a whole; comparing two views by identity tells whether
anything has changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

import numpy as np

from SDFSMISLib.images.planes import Plane
from SDFSMISLib.options import BUILT_IN, Region, Strategy

__all__ = [
    "BackendChoice",
    "BackendKind",
    "BackendView",
    "Editor",
    "Part",
    "QueryMode",
    "Question",
    "ResultView",
    "ReviewView",
    "RunRequest",
    "RunView",
    "SegmentView",
    "SupportSliceView",
    "SupportView",
]

View = TypeVar("View")


class Part(Generic[View]):
    """A part of the workbench. All of it belongs on the main thread, and no call takes longer than 50 ms.

    No method raises for something that a user may do: the views tell what is wrong.

    Args:
        view: the first one.
        changed: called after each replacement of the view.

    >>> part = Part("idle", lambda: print(part.view))
    >>> part.view = "busy"
    busy
    """

    def __init__(self, view: View, changed: Callable[[], None] = lambda: None) -> None:
        self._view, self._changed = view, changed

    @property
    def view(self) -> View:
        """What is true now."""
        return self._view

    @view.setter
    def view(self, view: View) -> None:
        if view is not self._view:
            self._view = view
            self._changed()


class BackendKind(Enum):
    """Which computer segments: this one, or a server."""

    LOCAL = "local"
    SERVER = "server"


class QueryMode(Enum):
    """Which slices of the painted scan are segmented.

    ``ALL`` of them, a ``RANGE``, those ``OUTWARDS`` from the slice that a view shows, or ``NONE``: only other scans.
    """

    ALL = "all"
    RANGE = "range"
    OUTWARDS = "outwards"
    NONE = "none"


@dataclass(frozen=True)
class BackendChoice:
    """The backend that the user chose: on a server, or on this computer.

    Attributes:
        url: address of the server, such as ``http://gpu.example.org:7861``.
        token: password of the server; "" if it has none.
        certificate: PEM file with the certificate of the server; "" = only what this computer trusts.
        python: path of a Python that has SDFSMIS already; "" = the environment that the workbench installs.
        device: ``auto``, ``cpu`` or ``cuda``, on this computer.
        model: ``built-in``, or the folder of a pipeline, on this computer.
        pip_options: options for pip when packages are installed, as one text, such as ``--proxy http://proxy:8080``.
    """

    kind: BackendKind = BackendKind.LOCAL
    url: str = ""
    token: str = ""
    certificate: str = ""
    python: str = ""
    device: str = "auto"
    model: str = BUILT_IN
    pip_options: str = ""


@dataclass(frozen=True)
class Question:
    """A question to the user with two answers.

    Attributes:
        key: names the question in :meth:`.Questions.answer`.
        text: the question, in whole sentences.
        agree, decline: texts of the two buttons.
    """

    key: str
    text: str
    agree: str
    decline: str


@dataclass(frozen=True)
class BackendView:
    """The chosen backend and its state.

    Attributes:
        status: the state in one or two sentences.
        state: ``good`` (tried, and it works), ``unknown`` (not tried yet), ``busy`` or ``bad``.
        progress: of an installation, 0 to 1; None if none is running.
        can_install, can_remove: whether the environment can be installed (again), and removed.
        hosts: addresses of servers that worked, the last one first.
    """

    choice: BackendChoice
    status: str
    state: str
    progress: float | None = None
    can_install: bool = False
    can_remove: bool = False
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True)
class SegmentView:
    """A segment of the painted segmentation that is not a result.

    Attributes:
        color: red, green, blue from 0 to 1.
        slices: number of its painted slices; None if the segmentation cannot be read.
        chosen: whether the next run segments it.
    """

    segment_id: str
    name: str
    color: tuple[float, float, float]
    slices: int | None
    chosen: bool


@dataclass(frozen=True, eq=False)
class SupportSliceView:
    """One slice of the support set.

    Attributes:
        key: names the slice in :meth:`.SupportList.remove` and :meth:`.SupportList.show`.
        thumbnail: uint8 ``(rows, columns, 3)``, the painted slice; None until it is made.
        index: of the slice in its scan, from 0.
        plane: ``axial``, ``coronal`` or ``sagittal``.
        scan: name of the scan, or of the file.
        structures: names of what is painted on it; empty = the slice says that none of them is there.
        area_cm2: of everything painted on it.
        origin: ``painted``, ``chosen`` ("use this slice"), ``corrected`` (strokes in a result), ``right`` (a corrected
            slice of which all is right) or ``file``.
    """

    key: str
    thumbnail: np.ndarray | None
    index: int
    plane: str
    scan: str
    structures: tuple[str, ...]
    area_cm2: float
    origin: str


@dataclass(frozen=True)
class SupportView:
    """The support set of the next run.

    Attributes:
        segments: the segments of the painted segmentation without the results.
        entries: the slices of the support set.
        problem: why there is no support set yet, and what to do; "" if there is one.
        notes: what the user should know, one sentence each.
        every_painted: whether every painted slice is used, or only chosen ones.
        slice_count: number of slices of the scan along which results come; 0 = not known yet.
    """

    segments: tuple[SegmentView, ...] = ()
    entries: tuple[SupportSliceView, ...] = ()
    problem: str = ""
    notes: tuple[str, ...] = ()
    every_painted: bool = True
    slice_count: int = 0


@dataclass(frozen=True)
class RunRequest:
    """What the user asks a run to segment, and how.

    Attributes:
        first, last: of ``RANGE``: slices from 0, both included.
        reach: of ``OUTWARDS``: number of slices on both sides of the one shown.
        others: volume nodes of other scans to segment.
        strategy: ``propagate`` or ``independent``.
        region: ``auto`` or ``full``.
    """

    mode: QueryMode = QueryMode.ALL
    first: int = 0
    last: int = 0
    reach: int = 10
    others: tuple[Any, ...] = ()
    strategy: Strategy = "propagate"
    region: Region = "auto"


@dataclass(frozen=True)
class RunView:
    """The run, or the saving of a support set, that is running or was the last one.

    Attributes:
        running: from the start until everything is written.
        text: what is being done, or how it ended.
        fraction: done so far, 0 to 1; None = not known yet.
        seconds_left: estimated; None = not known.
        failed: whether it ended with the error in ``text``.
        notes: what the user should know about the run, one sentence each.
        can_cancel: whether it can be cancelled; saving cannot.
    """

    running: bool = False
    text: str = ""
    fraction: float | None = None
    seconds_left: float | None = None
    failed: bool = False
    notes: tuple[str, ...] = ()
    can_cancel: bool = True


@dataclass(frozen=True, eq=False)
class ResultView:
    """The result for one structure in one scan.

    Attributes:
        color: red, green, blue from 0 to 1.
        volume_ml: None while it is being computed.
        certainty: of each slice of the scan, 0 to 1; NaN for slices that were not segmented.
        painted: indices of the slices along the axis of the results that were painted before the run.
        by_hand: the slices of any view that were corrected by hand, or said to be right.
    """

    name: str
    scan: str
    color: tuple[float, float, float]
    volume_ml: float | None
    certainty: np.ndarray
    painted: tuple[int, ...]
    by_hand: tuple[Plane, ...]


@dataclass(frozen=True, eq=False)
class ReviewView:
    """The results under review; without results ``scans`` and ``results`` are empty.

    Attributes:
        scans: names of the scans that have results.
        scan: number of the reviewed one in ``scans``.
        results: of the reviewed scan, one for each structure.
        axis: array axis of its slices, along which certainty is counted.
        plane: ``axial``, ``coronal`` or ``sagittal``, of its slices.
        index: of the slice that a view shows now; None if no view shows a slice in this plane.
        suggestion: the slice where one more painted slice would help most, such as "sagittal 27"; "" = not known yet.
        shown: the slice of the view that was used last, such as "coronal 12"; "" if none shows one.
        is_right: whether all of it is known to be right.
        threshold: of the probability, 0 to below 1.
        keep_largest, smooth_mm: post-processing: largest piece only, smoothing (standard deviation in mm; 0 = off).
        working: whether a change is still being written.
        problem: why results cannot be changed any more; "" if they can.
    """

    scans: tuple[str, ...] = ()
    scan: int = 0
    results: tuple[ResultView, ...] = ()
    axis: int = 0
    plane: str = ""
    index: int | None = None
    suggestion: str = ""
    shown: str = ""
    is_right: bool = False
    threshold: float = 0.5
    keep_largest: bool = False
    smooth_mm: float = 0.0
    working: bool = False
    problem: str = ""


@dataclass(frozen=True, eq=False)
class Editor:
    """The segment editor of the front end.

    Attributes:
        node: a vtkMRMLSegmentEditorNode: its masks and its overwrite mode apply to results.
        save_undo: called before results are written, so that Undo takes them back in one step.
    """

    node: Any
    save_undo: Callable[[], Any]
