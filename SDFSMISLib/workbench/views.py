"""What the panel shows and what it asks of its logic: all that the widget knows of it, so that a test can hand in
another one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from SDFSMISLib.options import BUILT_IN, Region, Strategy

__all__ = [
    "BackendChoice",
    "BackendKind",
    "BackendView",
    "Editor",
    "PanelLogic",
    "QueryMode",
    "Question",
    "ResultView",
    "ReviewView",
    "RunRequest",
    "RunView",
    "SegmentView",
    "SupportEntry",
    "SupportView",
]


class BackendKind(Enum):
    """Where slices are segmented."""

    LOCAL = "local"
    SERVER = "server"


class QueryMode(Enum):
    """Which slices of the painted scan are wanted; NONE = only those of other scans."""

    ALL = "all"
    RANGE = "range"
    OUTWARDS = "outwards"
    NONE = "none"


@dataclass(frozen=True)
class BackendChoice:
    """What the user chose.

    Attributes:
        url: of the server. token: that it asks for; "" = none.
        certificate: PEM file of the server's certificate, to trust; "" = what this computer trusts.
        python: a Python with SDFSMIS to use on this computer; "" = the environment of our own.
        device: ``auto``, ``cpu``, ``cuda``; on this computer.
        model: ``built-in``, or the folder of a pipeline; on this computer.
        pip_options: for the installation, as words (a hospital's own mirror, for example).
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
    """Something that the user is asked in the panel, not in a dialog.

    Attributes:
        key: to answer it with.
        text: what is asked, in whole sentences.
        agree, decline: what the two buttons say.
    """

    key: str
    text: str
    agree: str
    decline: str


@dataclass(frozen=True)
class BackendView:
    """Attributes:
    status: one or two sentences that are true now.
    state: ``good`` (tried, and it works), ``unknown`` (not tried yet), ``busy``, ``bad``.
    progress: of an installation, 0 to 1; None where none goes on.
    can_install, can_remove: whether the environment of our own can be made (anew), and removed.
    hosts: addresses of servers that were used, the last one first.
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
    """A segment that can be painted, and so searched for.

    Attributes:
        color: red, green, blue from 0 to 1.
        slices: how many of its slices are painted; None where the segmentation cannot be read.
        chosen: whether it takes part in the next run.
    """

    segment_id: str
    name: str
    color: tuple[float, float, float]
    slices: int | None
    chosen: bool


@dataclass(frozen=True, eq=False)
class SupportEntry:
    """One slice of the support.

    Attributes:
        key: to remove it with, or go to it.
        thumbnail: uint8 (rows, columns, 3), the painted slice; None until it is made.
        index: which slice of its scan, from 0.
        plane: axial, coronal or sagittal.
        scan: name of the scan, or of the file that it comes from.
        structures: names of what is painted on it; empty = it says that nothing is there.
        area_cm2: of all that is painted.
        origin: ``painted``, ``chosen`` ("use this slice"), ``corrected`` (in a result) or ``file``.
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
    """Attributes:
    segments: those of the segmentation that are no results.
    problem: why there is no support yet, and what to do; "" where there is one.
    notes: what the user should know, one sentence each.
    every_painted: whether each painted slice is used, or only chosen ones.
    slice_count: slices of the painted scan in the direction that is painted; 0 = not known yet.
    """

    segments: tuple[SegmentView, ...] = ()
    entries: tuple[SupportEntry, ...] = ()
    problem: str = ""
    notes: tuple[str, ...] = ()
    every_painted: bool = True
    slice_count: int = 0


@dataclass(frozen=True)
class RunRequest:
    """What is wanted of a run.

    Attributes:
        first, last: slices of the range, from 0, both included; for RANGE.
        reach: slices on both sides of the one shown; for OUTWARDS.
        others: volume nodes of other scans.
        strategy: ``propagate`` or ``independent``. region: ``auto`` or ``full``.
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
    """Attributes:
    running: from the moment in which it was started to the moment in which all is written.
    text: what goes on, or how the last run ended.
    fraction: 0 to 1; None = not known yet.
    seconds_left: None = not known.
    failed: whether the last run ended with an error, which ``text`` tells.
    notes: what the user should know of the run, one sentence each.
    can_cancel: whether what is running can be cancelled; a support set that is being saved cannot.
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
    """One structure in one scan.

    Attributes:
        certainty: 0 to 1 for each slice of the scan; NaN where none was computed.
        painted, by_hand: slices that were painted before the run, and changed by hand since.
        volume_ml: None while it is counted.
    """

    name: str
    scan: str
    color: tuple[float, float, float]
    volume_ml: float | None
    certainty: np.ndarray
    painted: tuple[int, ...]
    by_hand: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class ReviewView:
    """What can be reviewed; without results there is nothing.

    Attributes:
        scans: names of the scans that have results. scan: number of the one that is reviewed.
        results: of that scan.
        plane: in which its slices lie.
        index: the slice that a view shows now; None where no view lies in the slices.
        working: whether a change is still being written.
        problem: why results cannot be changed any more; "" where they can.
    """

    scans: tuple[str, ...] = ()
    scan: int = 0
    results: tuple[ResultView, ...] = ()
    plane: str = ""
    index: int | None = None
    threshold: float = 0.5
    keep_largest: bool = False
    smooth_mm: float = 0.0
    working: bool = False
    problem: str = ""


@dataclass(frozen=True, eq=False)
class Editor:
    """What the logic asks of the segment editor.

    Attributes:
        node: the vtkMRMLSegmentEditorNode, for its masks and its overwrite mode.
        save_undo: makes what is changed next one undo step.
    """

    node: Any
    save_undo: Callable[[], Any]


class PanelLogic(Protocol):
    """What the widget asks for. All of it belongs on the main thread, and nothing takes more than 50 ms.

    No method raises for what a user may do; what is wrong is told by the views.
    """

    @property
    def backend(self) -> BackendView: ...
    @property
    def support(self) -> SupportView: ...
    @property
    def run(self) -> RunView: ...
    @property
    def review(self) -> ReviewView: ...
    @property
    def question(self) -> Question | None: ...

    def observe(self, on_change: Callable[[], None] | None) -> None:
        """Calls it after each change of a view; None = nobody any more."""

    def step(self) -> bool:
        """Does a piece of what is to be done; True where more is to be done at once. A timer calls it."""

    def answer(self, key: str, agreed: bool) -> None:
        """The answer to the question with this key; one to another question counts for nothing."""

    # -- backend
    def choose_backend(self, choice: BackendChoice) -> None: ...
    def test_backend(self) -> None:
        """Tries whether it works; starts the one on this computer, asks where something must be installed."""

    def install(self) -> None:
        """Asks whether the environment may be installed."""

    def cancel_installation(self) -> None: ...
    def remove_installation(self) -> None:
        """Asks whether the environment may be removed."""

    # -- support
    def select(self, scan: Any | None, segmentation: Any | None) -> None:
        """The volume node and the segmentation node that are painted."""

    def choose_segments(self, segment_ids: Sequence[str]) -> None:
        """The segments that take part in the next run."""

    def use_every_painted(self, every: bool) -> None: ...
    def use_slice(self, slice_node: Any) -> None:
        """Makes the slice that a view shows one of the support, painted or not."""

    def remove_support(self, keys: Sequence[str]) -> None: ...
    def show_support(self, key: str) -> None:
        """Makes the views show a slice of the support."""

    def save_support(self, path: Path) -> None: ...
    def load_support(self, path: Path) -> None: ...

    # -- run
    def why_not(self, request: RunRequest) -> str:
        """Why a run cannot be started, and what to do; "" where it can."""

    def start(self, request: RunRequest, editor: Editor) -> None: ...
    def cancel(self) -> None: ...

    # -- review
    def review_scan(self, number: int) -> None: ...
    def set_threshold(self, threshold: float) -> None: ...
    def set_cleaning(self, keep_largest: bool, smooth_mm: float) -> None: ...
    def go_to_least_certain(self) -> None: ...
    def go_to_slice(self, index: int) -> None: ...
    def accept(self) -> None: ...
    def discard(self) -> None: ...

    # -- life
    def close_scene(self) -> None:
        """The scene is about to be closed: a run ends, and all that belongs to the scene is let go of."""

    def close(self) -> None:
        """The panel ends: nothing goes on, and no process stays."""
