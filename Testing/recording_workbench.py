"""A workbench that does nothing but record the calls of its parts, and shows the views that a test puts into it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from SDFSMISLib.images.planes import Plane
from SDFSMISLib.workbench.backend_choice import ChosenBackend
from SDFSMISLib.workbench.questions import Questions
from SDFSMISLib.workbench.review import Review
from SDFSMISLib.workbench.support_list import SupportList
from SDFSMISLib.workbench.views import (
    BackendChoice,
    BackendView,
    Part,
    ResultView,
    ReviewView,
    RunRequest,
    RunView,
    SegmentView,
    SupportSliceView,
    SupportView,
)
from SDFSMISLib.workbench.workbench import RunControl

SCAN = "CTA abdomen"
LIVER, SPLEEN = (0.87, 0.4, 0.2), (0.6, 0.4, 0.65)


class RecordingPart(Part[Any]):
    """Records each call of a method that the real part has, with arguments that it accepts.

    Args:
        name: of the part in the workbench.
        real: class of the real part.
        calls: where calls are recorded.
    """

    def __init__(self, name: str, real: type, view: Any, workbench: RecordingWorkbench) -> None:
        super().__init__(view, workbench.on_change)
        self._name, self._real, self._workbench = name, real, workbench

    def __getattr__(self, method: str) -> Callable[..., None]:
        signature = inspect.signature(getattr(self._real, method))

        def call(*arguments: Any) -> None:
            signature.bind(self, *arguments)
            self._workbench.calls.append((f"{self._name}.{method}", *arguments))
            if method in SETTING:
                self.view = replace(self.view, **dict(zip(SETTING[method], arguments, strict=True)))

        return call


SETTING = {"choose": ("choice",), "set_threshold": ("threshold",), "set_cleaning": ("keep_largest", "smooth_mm")}
"""Methods that change a view at once, and the attributes of the view that they set."""


class RecordingRun(RecordingPart):
    """Gives a reason why a run cannot be started: that of the workbench."""

    def why_not(self, request: RunRequest) -> str:
        return self._workbench.reason


class RecordingWorkbench:
    """Stands in for :class:`SDFSMISLib.workbench.Workbench`.

    Attributes:
        calls: names of the called methods and their arguments, in order; without ``step`` and ``why_not``.
        reason: what ``run.why_not`` gives.
        steps: how often ``step`` still gives True.
        stepped: how often it was called.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.reason, self.steps, self.stepped = "", 0, 0
        self.changed: Callable[[], None] | None = None
        backend = BackendView(BackendChoice(), "Not tried yet.", "unknown", can_install=True)
        self.backend = RecordingPart("backend", ChosenBackend, backend, self)
        self.support = RecordingPart("support", SupportList, SupportView(), self)
        self.run = RecordingRun("run", RunControl, RunView(), self)
        self.review = RecordingPart("review", Review, ReviewView(), self)
        self.questions = RecordingPart("questions", Questions, None, self)

    def on_change(self) -> None:
        if self.changed is not None:
            self.changed()

    def show(self, **views: Any) -> None:
        """Put views in place, by the names of their parts."""
        for name, view in views.items():
            getattr(self, name).view = view

    def calls_of(self, name: str) -> list[tuple[Any, ...]]:
        """Arguments of each call of a method."""
        return [call[1:] for call in self.calls if call[0] == name]

    def step(self) -> bool:
        self.stepped += 1
        self.steps = max(0, self.steps - 1)
        return self.steps > 0

    def close_scene(self) -> None:
        self.calls.append(("close_scene",))

    def close(self) -> None:
        self.calls.append(("close",))


def a_support() -> SupportView:
    """Two structures, one of them painted, and three slices of support."""
    return SupportView(
        segments=(
            SegmentView("Segment_1", "liver", LIVER, 1, True),
            SegmentView("Segment_2", "spleen", SPLEEN, 0, False),
        ),
        entries=(
            SupportSliceView("painted-143", _thumbnail(LIVER), 143, "axial", SCAN, ("liver",), 171.4, "painted"),
            SupportSliceView("corrected-90", _thumbnail(LIVER), 90, "sagittal", SCAN, ("liver",), 84.0, "corrected"),
            SupportSliceView("file-12", None, 12, "axial", "abdomen.safetensors", (), 0.0, "file"),
        ),
        slice_count=300,
    )


def a_review() -> ReviewView:
    """One structure with its certainty, and another one that was not found everywhere."""
    place = np.arange(300.0)
    liver = 0.95 - 0.35 * np.exp(-(((place - 90) / 12) ** 2)) - 0.5 * np.exp(-(((place - 230) / 20) ** 2))
    spleen = np.where((place > 120) & (place < 210), 0.8 - 0.2 * np.cos(place / 9), np.nan)
    return ReviewView(
        scans=(SCAN,),
        results=(
            ResultView("liver", SCAN, LIVER, 1432.6, liver, (143,), (Plane(0, 90),)),
            ResultView("spleen", SCAN, SPLEEN, None, spleen, (143,), ()),
        ),
        plane="axial",
        index=230,
        suggestion="sagittal 211",
        shown="coronal 87",
    )


def _thumbnail(color: tuple[float, float, float]) -> np.ndarray:
    row, column = np.mgrid[-1:1:64j, -1:1:64j]
    body = np.hypot(row / 0.75, column / 0.95) < 1
    picture = np.where(body, 0.45 + 0.1 * np.sin(9 * column), 0.02)[..., None].repeat(3, axis=2)
    painted = np.hypot((row + 0.1) / 0.4, (column + 0.4) / 0.35) < 1
    picture[painted] = 0.5 * picture[painted] + 0.5 * np.array(color)
    return np.rint(255 * picture).astype(np.uint8)


def request_of(shown: Any) -> Any:
    shown.ui.runButton.click()
    return shown.workbench.calls_of("run.start")[-1][0]


def corrected(*slices: int, sagittal: tuple[int, ...] = ()) -> Any:
    """The review after these slices of it, axial ones and others, were changed by hand."""
    by_hand = (*(Plane(0, index) for index in slices), *(Plane(2, index) for index in sagittal))
    return replace(a_review(), results=tuple(replace(one, by_hand=by_hand) for one in a_review().results))
