"""A logic of the panel that does nothing but write down what it is asked for, and shows what a test puts into it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from SDFSMISLib.workbench.views import (
    BackendChoice,
    BackendView,
    Editor,
    Question,
    ResultView,
    ReviewView,
    RunRequest,
    RunView,
    SegmentView,
    SupportEntry,
    SupportView,
)

LIVER, SPLEEN = (0.87, 0.4, 0.2), (0.6, 0.4, 0.65)


class RecordingLogic:
    """Keeps :class:`SDFSMISLib.workbench.views.PanelLogic`.

    Attributes:
        calls: names of the methods that were called and their arguments, in order; without ``step`` and ``why_not``.
        reason: what ``why_not`` says.
        steps: how often ``step`` is to say that more is to be done at once.
        stepped: how often it was called.
    """

    def __init__(self) -> None:
        self.backend = BackendView(BackendChoice(), "Not tried yet.", "unknown", can_install=True)
        self.support, self.run, self.review = SupportView(), RunView(), ReviewView()
        self.question: Question | None = None
        self.calls: list[tuple[Any, ...]] = []
        self.reason, self.steps, self.stepped = "", 0, 0
        self.on_change: Callable[[], None] | None = None

    def observe(self, on_change: Callable[[], None] | None) -> None:
        self.on_change = on_change

    def show(self, **views: Any) -> None:
        """Puts views in place, and tells whoever observes."""
        for name, view in views.items():
            setattr(self, name, view)
        if self.on_change is not None:
            self.on_change()

    def asked(self, name: str) -> list[tuple[Any, ...]]:
        """Arguments of each call of a method."""
        return [call[1:] for call in self.calls if call[0] == name]

    def step(self) -> bool:
        self.stepped += 1
        self.steps = max(0, self.steps - 1)
        return self.steps > 0

    def why_not(self, request: RunRequest) -> str:
        self.requested = request
        return self.reason

    def choose_backend(self, choice: BackendChoice) -> None:
        self.calls.append(("choose_backend", choice))
        self.show(backend=replace(self.backend, choice=choice))

    def select(self, scan: Any | None, segmentation: Any | None) -> None:
        self.calls.append(("select", scan, segmentation))

    def answer(self, key: str, agreed: bool) -> None:
        self.calls.append(("answer", key, agreed))

    def test_backend(self) -> None:
        self.calls.append(("test_backend",))

    def install(self) -> None:
        self.calls.append(("install",))

    def cancel_installation(self) -> None:
        self.calls.append(("cancel_installation",))

    def remove_installation(self) -> None:
        self.calls.append(("remove_installation",))

    def choose_segments(self, segment_ids: Sequence[str]) -> None:
        self.calls.append(("choose_segments", list(segment_ids)))

    def use_every_painted(self, every: bool) -> None:
        self.calls.append(("use_every_painted", every))

    def use_slice(self, slice_node: Any) -> None:
        self.calls.append(("use_slice", slice_node))

    def remove_support(self, keys: Sequence[str]) -> None:
        self.calls.append(("remove_support", list(keys)))

    def show_support(self, key: str) -> None:
        self.calls.append(("show_support", key))

    def save_support(self, path: Path) -> None:
        self.calls.append(("save_support", path))

    def load_support(self, path: Path) -> None:
        self.calls.append(("load_support", path))

    def start(self, request: RunRequest, editor: Editor) -> None:
        self.calls.append(("start", request, editor))

    def cancel(self) -> None:
        self.calls.append(("cancel",))

    def review_scan(self, number: int) -> None:
        self.calls.append(("review_scan", number))

    def set_threshold(self, threshold: float) -> None:
        self.calls.append(("set_threshold", threshold))
        self.show(review=replace(self.review, threshold=threshold))

    def set_cleaning(self, keep_largest: bool, smooth_mm: float) -> None:
        self.calls.append(("set_cleaning", keep_largest, smooth_mm))
        self.show(review=replace(self.review, keep_largest=keep_largest, smooth_mm=smooth_mm))

    def go_to_least_certain(self) -> None:
        self.calls.append(("go_to_least_certain",))

    def go_to_slice(self, index: int) -> None:
        self.calls.append(("go_to_slice", index))

    def accept(self) -> None:
        self.calls.append(("accept",))

    def discard(self) -> None:
        self.calls.append(("discard",))

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
            SupportEntry("painted-143", _thumbnail(LIVER), 143, "axial", "CTA abdomen", ("liver",), 171.4, "painted"),
            SupportEntry("corrected-90", _thumbnail(LIVER), 90, "axial", "CTA abdomen", ("liver",), 84.0, "corrected"),
            SupportEntry("file-12", None, 12, "axial", "abdomen.safetensors", (), 0.0, "file"),
        ),
        slice_count=300,
    )


def a_review() -> ReviewView:
    """One structure with its certainty, and another one that was not found everywhere."""
    place = np.arange(300.0)
    liver = 0.95 - 0.35 * np.exp(-(((place - 90) / 12) ** 2)) - 0.5 * np.exp(-(((place - 230) / 20) ** 2))
    spleen = np.where((place > 120) & (place < 210), 0.8 - 0.2 * np.cos(place / 9), np.nan)
    return ReviewView(
        scans=("CTA abdomen",),
        results=(
            ResultView("liver", "CTA abdomen", LIVER, 1432.6, liver, (143,), (90,)),
            ResultView("spleen", "CTA abdomen", SPLEEN, None, spleen, (143,), ()),
        ),
        plane="axial",
        index=230,
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
    return shown.logic.asked("start")[-1][0]


def corrected(*slices: int) -> Any:
    """The review after these slices of it were changed by hand."""
    return replace(a_review(), results=tuple(replace(one, by_hand=slices) for one in a_review().results))
