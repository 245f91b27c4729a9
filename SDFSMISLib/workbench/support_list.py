"""The support set of the next run, as a front end lists it: painted slices, slices from files, thumbnails, saving."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.images.geometry import SliceOrientation
from SDFSMISLib.images.intensity import IntensityWindow
from SDFSMISLib.images.labelmap import label_values
from SDFSMISLib.images.planes import Plane
from SDFSMISLib.scene import (
    ObliqueView,
    Scan,
    ScanCache,
    SegmentTemplate,
    array_from_volume,
    list_segments,
    painting_stamp,
    rotate_to_volume_plane,
    shown_slice,
)
from SDFSMISLib.support import SupportSet, SupportSlice, axes_in_order
from SDFSMISLib.workbench.background import Background, JobEnded
from SDFSMISLib.workbench.questions import Questions
from SDFSMISLib.workbench.run_job import LoadedSupport, SupportSnapshot, join_structures
from SDFSMISLib.workbench.slice_views import show_plane
from SDFSMISLib.workbench.support_reading import PaintedSlice, PaintedStructures, PaintingReader, painted_slice
from SDFSMISLib.workbench.text import tr as _
from SDFSMISLib.workbench.views import Part, Question, RunView, SegmentView, SupportSliceView, SupportView

SIDE = 64  # pixels, of the longer side
TINT = 0.5  # share of the colour where something is painted


def thumbnail(
    image: np.ndarray,
    labels: np.ndarray,
    colors: dict[int, tuple[float, float, float]],
    spacing: tuple[float, float],
    orientation: SliceOrientation,
    plane: str,
    window: IntensityWindow | None = None,
) -> np.ndarray:
    """A small picture of a slice, with paint over it, as slice views show it.

    Args:
        image: ``(rows, columns)``, in the order of the scan's array.
        labels: label values of the same shape; 0 = not painted.
        colors: red, green, blue from 0 to 1, by label.
        spacing: ``(row, column)`` in mm, in the order of the scan's array.
        orientation: of the slice.
        plane: ``axial``, ``coronal`` or ``sagittal``.
        window: grey values shown as black and white; None = the 1st and the 99th percentile of the slice.

    Returns:
        uint8 ``(rows, columns, 3)`` with square pixels; the longer side has ``SIDE`` of them.
    """
    image, labels = orientation.apply(image), orientation.apply(labels)
    rows, columns = _sampled(image.shape, orientation.apply_spacing(spacing))
    image, labels = image[np.ix_(rows, columns)].astype(np.float32), labels[np.ix_(rows, columns)]
    if window is not None:
        low, high = window.low, window.high
    else:
        low, high = np.percentile(image, (1, 99))
    grey = np.clip((image - low) / max(float(high) - float(low), 1e-6), 0, 1)
    picture = np.repeat(grey[..., None], 3, axis=2)
    for label, color in colors.items():
        painted = labels == label
        picture[painted] = (1 - TINT) * picture[painted] + TINT * np.asarray(color)
    upright = picture if plane == "axial" else picture[::-1]  # canonical rows go upwards there, a picture's downwards
    return np.rint(upright * 255).astype(np.uint8)


def _sampled(shape: tuple[int, ...], spacing: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns to take, so that pixels are square and the longer side has ``SIDE`` of them."""
    height, width = shape[0] * spacing[0], shape[1] * spacing[1]
    pixel = max(height, width) / SIDE
    rows, columns = (max(1, round(length / pixel)) for length in (height, width))
    return (
        ((np.arange(rows) + 0.5) * shape[0] / rows).astype(int),
        ((np.arange(columns) + 0.5) * shape[1] / columns).astype(int),
    )


class SaveJob:
    """Saves a support set. It proceeds by :meth:`step` on the main thread; a thread writes the file.

    Attributes:
        view: what a front end shows; ``running`` until the file is written, or has failed.
    """

    def __init__(self, support: SupportSnapshot, painted: Any | None, scans: ScanCache, path: Path) -> None:
        """
        Args:
            painted: volume node of the painted scan; None = the support set is from files.
            scans: cache of copied scans.
        """
        self.view = RunView(True, _("Saving the examples…"), can_cancel=False)
        self._support, self._scans, self._path, self._painted = support, scans, path, painted
        self._copying: Iterator[float] = scans.copy_steps(painted) if painted is not None else iter(())
        self._background: Background | None = None

    @property
    def is_writing(self) -> bool:
        """Whether the file is being written, which does not need the scene any more."""
        return self._background is not None

    def step(self) -> bool:
        """Do the next piece, some 20 ms; True if more can be done at once."""
        if self._background is None:
            return self._copy()
        for message in self._background.messages():
            if isinstance(message, JobEnded):
                self._end(message.error)
        return False

    def _copy(self) -> bool:
        try:
            if next(self._copying, None) is not None:
                return True
            scan = self._scans.get(self._painted) if self._painted is not None else None
        except InputError as error:
            self._end(error)
            return False
        self._background = Background("SDFSMIS saving", lambda post, cancel: self._write(scan))
        return False

    def _write(self, scan: Scan | None) -> None:
        self._support.support_set(scan).save(self._path)

    def _end(self, error: BaseException | None) -> None:
        if error is None:
            self.view = RunView(text=_("The examples were saved as {name}.").format(name=self._path.name))
        else:
            text = _("The examples were not saved: {error}").format(error=error)
            self.view = RunView(text=text, failed=True)


PARALLEL = "parallel"  # key of the question whether to turn a view
HERE, FILE = "here", "file"
NO_COLOR = (1.0, 0.8, 0.2)
NOTHING = PaintedSlice(0, (), 0)
BUDGET = 0.015  # seconds of thumbnails in one step
READING_WAIT = 5.0  # seconds that a run waits for the painting to be read; 0.1 s is usual


class SupportList(Part[SupportView]):
    """The support set of the next run: painted slices of the scene, and slices from files.

    Attributes:
        scan, segmentation: the nodes that are painted; None = none is chosen.
        reads_corrections: whether corrections in results are read; not while a run writes results.
    """

    def __init__(
        self, questions: Questions, report: Callable[[str], None], changed: Callable[[], None] = lambda: None
    ) -> None:
        """
        Args:
            report: called with an error that the user should see.
        """
        super().__init__(SupportView(), changed)
        self._questions, self._report = questions, report
        self.scan: Any | None = None
        self.segmentation: Any | None = None
        self.reads_corrections = True
        self._chosen_segments: tuple[str, ...] | None = None
        self._every = True
        self._chosen: set[Plane] = set()
        self._excluded: dict[Plane, int] = {}
        self._unrecognised: dict[Plane, tuple[PaintedStructures, PaintedSlice]] = {}
        self._loaded: dict[int, LoadedSupport] = {}
        self._loads = 0
        self._reader = PaintingReader()
        self._stamp: Any = None
        self._thumbnails: dict[str, tuple[Any, np.ndarray]] = {}

    # -- what the user chooses -----------------------------------------------------------------------------------------

    def select(self, scan: Any | None, segmentation: Any | None) -> None:
        """Choose the volume node and the segmentation node that are painted; slices from files stay in the list."""
        if scan is not self.scan or segmentation is not self.segmentation:
            if segmentation is not self.segmentation:
                self._chosen_segments = None
            self.scan, self.segmentation = scan, segmentation
            self._chosen, self._excluded = set(), {}
            self._thumbnails.clear()
        self.refresh()

    def choose_segments(self, segment_ids: Sequence[str]) -> None:
        """Choose the segments that the next run segments; before the first call these are all segments."""
        self._chosen_segments = tuple(segment_ids)
        self.refresh()

    def use_every_painted(self, every: bool) -> None:
        """Choose whether every painted slice is used, or only chosen ones."""
        self._every = every
        self.refresh()

    def use_slice(self, slice_node: Any) -> None:
        """Add the slice that a view shows, painted or not; if the view lies across the slices, ask to turn it."""
        try:
            self._use_slice(slice_node)
        except ObliqueView as error:
            scan = self.scan
            question = Question(PARALLEL, str(error), _("Turn the view"), _("Leave it"))
            self._questions.ask(question, lambda agreed: self._turn(slice_node, scan) if agreed else None)
        except InputError as error:
            self._report(str(error))
        self.refresh()

    def _use_slice(self, slice_node: Any) -> None:
        if self.scan is None:
            raise InputError(_("No scan is chosen; choose the one that is painted."))
        shown, painting = shown_slice(slice_node, self.scan), self._read.painting
        plane = Plane(shown.axis, shown.index)
        if painting is not None and painting.is_only_crossed(plane):
            text = _(
                "Slices that you painted in other views cross {slice}, so something is on it; paint it there first."
            )
            raise InputError(text.format(slice=painting.describe(plane)))
        self._chosen.add(plane)
        self._excluded.pop(plane, None)

    def _turn(self, slice_node: Any, scan: Any) -> None:
        if scan is self.scan and scan is not None:
            try:
                rotate_to_volume_plane(slice_node, scan)
            except InputError as error:
                self._report(str(error))
            self.use_slice(slice_node)

    def remove(self, keys: Collection[str]) -> None:
        """Remove slices by their keys, corrected ones too: no examples for the next run. Paint stays in the scene; a
        stroke on a removed slice brings the slice back."""
        for key in keys:
            where, first, second = key.split(":")
            plane = Plane(int(first), int(second))
            if where == FILE:
                one = self._loaded[int(first)]
                self._loaded[int(first)] = replace(one, removed=one.removed | {int(second)})
            else:
                self._chosen.discard(plane)
                self._excluded[plane] = self._digest(plane)
        self._loaded = {number: one for number, one in self._loaded.items() if one.slices}
        self.refresh()

    def load(self, path: Path) -> None:
        """Add the slices of a saved support set."""
        self._loads += 1
        try:
            self._loaded[self._loads] = LoadedSupport(path.name, SupportSet.load(path))
        except (InputError, OSError) as error:
            self._report(str(error))
        self.refresh()

    def show(self, key: str) -> None:
        """Show a slice of the painted scan in the views; one from a file cannot be shown."""
        where, first, second = key.split(":")
        if where == HERE and self.scan is not None:
            try:
                show_plane(self.scan, Plane(int(first), int(second)))
            except InputError as error:
                self._report(str(error))

    def forget_scene(self) -> None:
        """Let go of the scene; slices from files stay in the list."""
        self._questions.withdraw(PARALLEL)
        self.select(None, None)

    # -- for a run ----------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Bring the view up to date with the scene; a large painting, and thumbnails, follow with later calls."""
        stamp = self._stamp_now()
        if stamp != self._stamp:
            self._stamp = stamp
            ids = [one.segment_id for one in self._painted() if self._takes_part(one.segment_id)]
            loaded = [*self._loaded.values()]
            self._reader.begin(self.scan, self.segmentation, ids, loaded, self.reads_corrections)
        elif not self._reader.take():
            self._make_thumbnails()
            return
        self.view = self._make_view()

    def snapshot(self) -> SupportSnapshot:
        """The support set as it is now.

        Raises:
            InputError: the view's problem, if there is no support set.
        """
        self.refresh()
        if self._reader.take(READING_WAIT):
            self.view = self._make_view()
        return self.last_snapshot()

    def last_snapshot(self) -> SupportSnapshot:
        """As :meth:`snapshot`, of what was read last; it waits for nothing."""
        if self.view.problem:
            raise InputError(self.view.problem)
        templates, pieces = join_structures(self._read.templates, [*self._loaded.values()])
        painting, used = self._read.painting, self._used()
        shown = self._shown(used, pieces)
        templates = {label: template for label, template in templates.items() if label in shown}
        shown_on = {plane: self._content(plane).labels for plane in used}
        if painting is not None:
            here = {label for labels in shown_on.values() for label in labels}
            painting = replace(
                painting,
                names={k: name for k, name in painting.names.items() if k in here},
                corrections={plane: one for plane, one in painting.corrections.items() if plane in shown_on},
            )
        complete = frozenset({*self._chosen, *(painting.corrections if painting is not None else ())})
        return SupportSnapshot(templates, painting if used else None, self._axis(used), shown_on, complete, pieces)

    @property
    def _read(self) -> PaintedStructures:
        return self._reader.reading

    # -- within --------------------------------------------------------------------------------------------------------

    def _stamp_now(self) -> Any:
        segments: tuple[str, ...] = ()
        if self.segmentation is not None:
            counted = list_segments(self.segmentation)
            segments = tuple(one.segment_id for one in counted if self.reads_corrections or not one.is_result)
        painted = painting_stamp(self.scan, self.segmentation, segments) if segments and self.scan is not None else None
        names = [(one.name, one.color) for one in self._painted()]
        chosen = self._chosen_segments, self._every, frozenset(self._chosen), tuple(self._excluded.items())
        return self.scan, self.segmentation, segments, painted, names, chosen, [*self._loaded.values()]

    def _painted(self) -> list[Any]:
        """The segments that are no results."""
        if self.segmentation is None:
            return []
        return [one for one in list_segments(self.segmentation) if not one.is_result]

    def _takes_part(self, segment_id: str) -> bool:
        return self._chosen_segments is None or segment_id in self._chosen_segments

    def _used(self) -> tuple[Plane, ...]:
        """The slices of the scan that are used."""
        painting = self._read.painting
        if painting is None:
            return ()
        there = self._read.slices  # without corrections during a run
        self._excluded = {
            plane: digest
            for plane, digest in self._excluded.items()
            if plane not in there or digest == there[plane].digest
        }
        used = self._read.slices.keys() if self._every else painting.corrections.keys()
        return tuple(sorted((used - self._excluded.keys()) | self._chosen))

    def _axis(self, used: Sequence[Plane]) -> int:
        """The array axis along which results on the scan come."""
        painting, loaded = (
            self._read.painting,
            [piece for one in self._loaded.values() for piece in one.slices.values()],
        )
        if painting is None or self.scan is None:
            return 0
        corrections, whole = painting.corrections, [plane for plane in used if self._content(plane).labels]
        whole = [plane for plane in whole if plane not in corrections or corrections[plane].known is None]
        if whole:
            return axes_in_order(whole, painting.geometry)[0]
        names = [piece.plane.name for piece in loaded if piece.known is None]
        return next((axis for axis in range(3) if painting.geometry.plane(axis) in names[:1]), painting.axis)

    def _content(self, plane: Plane) -> PaintedSlice:
        """What is painted on a slice of the scan, recognised as painted or not."""
        painting, found = self._read.painting, self._read.slices.get(plane)
        if found is not None or painting is None:
            return found or NOTHING
        reading, content = self._unrecognised.get(plane, (None, NOTHING))
        if reading is not self._read:
            content = painted_slice(painting, plane)
            self._unrecognised[plane] = self._read, content
        return content

    def _digest(self, plane: Plane) -> int:
        return self._read.slices.get(plane, NOTHING).digest

    # -- the view ------------------------------------------------------------------------------------------------------

    def _make_view(self) -> SupportView:
        read, used = self._read, self._used()
        templates, pieces = join_structures(read.templates, [*self._loaded.values()])
        entries = [self._entry_here(plane) for plane in used]
        for number, one in self._loaded.items():
            entries += [self._entry_of_file(number, one, slot) for slot in one.slices]
        painting = read.painting
        notes = tuple(painting.notes) if painting is not None else ()
        problem = self._problem(templates, used, pieces)
        return SupportView(self._segments(), tuple(entries), problem, notes, self._every, self._slice_count())

    def _slice_count(self) -> int:
        """Slices of the scan along which results come; 0 while nothing is painted."""
        painting = self._read.painting
        return painting.geometry.shape[self._axis(self._used())] if painting is not None else 0

    def _segments(self) -> tuple[SegmentView, ...]:
        counts = {template.source: label for label, template in self._read.templates.items()}
        painting = self._read.painting
        views = []
        for one in self._painted():
            taken, count = self._takes_part(one.segment_id), None
            if painting is not None and one.segment_id in counts:
                count = len(self._read.painted(counts[one.segment_id]))
            elif taken and not self._read.problem:
                count = 0
            views.append(SegmentView(one.segment_id, one.name, one.color, count, taken))
        return tuple(views)

    def _problem(
        self, templates: Mapping[int, SegmentTemplate], used: Sequence[Plane], pieces: Sequence[SupportSlice]
    ) -> str:
        """Why there is no support, and what to do."""
        read = self._read
        if read.problem:
            return read.problem
        if self._shown(used, pieces):
            return ""
        if read.unpainted or templates:
            names = [*read.unpainted, *(template.name for template in templates.values())]
            return _("Nothing is painted in {names}; paint the structure on one slice.").format(names=", ".join(names))
        if self.scan is None:
            return _("Choose the scan, then paint the structure on one of its slices.")
        return _("Paint the structure on one slice: add a segment, choose Paint, and paint it in a slice view.")

    def _shown(self, used: Sequence[Plane], pieces: Sequence[SupportSlice]) -> set[int]:
        """The labels that something shows; the others take no part."""
        shown = {label for plane in used for label in self._content(plane).labels}
        return shown | {label for piece in pieces for label in label_values(piece.labels)}

    def _entry_here(self, plane: Plane) -> SupportSliceView:
        painting, content = self._read.painting, self._content(plane)
        assert painting is not None and self.scan is not None
        key = f"{HERE}:{plane.axis}:{plane.index}"
        origin = "chosen" if plane in self._chosen else "painted"
        if plane in painting.corrections:
            origin = "right" if painting.corrections[plane].known is None else "corrected"
        made = self._thumbnails.get(key)
        picture = made[1] if made is not None and made[0] == self._thumbnail_state(plane) else None
        names = tuple(painting.names[label] for label in content.labels if label in painting.names)
        area = content.pixels * math.prod(painting.geometry.in_plane_spacing(plane.axis)) / 100
        view = painting.geometry.plane(plane.axis)
        return SupportSliceView(key, picture, plane.index, view, self.scan.GetName(), names, area, origin)

    def _entry_of_file(self, number: int, one: LoadedSupport, slot: int) -> SupportSliceView:
        piece, key = one.slices[slot], f"{FILE}:{number}:{slot}"
        labels = label_values(piece.labels)
        made = self._thumbnails.get(key)
        area = int(np.count_nonzero(piece.labels)) * math.prod(piece.plane.spacing) / 100
        return SupportSliceView(
            key,
            made[1] if made is not None else None,
            piece.index,
            piece.plane.name,
            one.name,
            tuple(one.structure(label) for label in labels),
            area,
            "file",
        )

    # -- thumbnails ----------------------------------------------------------------------------------------------------

    def _thumbnail_state(self, plane: Plane) -> Any:
        """What a thumbnail of a slice of the scan depends on."""
        assert self.scan is not None
        image = self.scan.GetImageData()
        return self._digest(plane), image.GetMTime() if image is not None else 0

    def _make_thumbnails(self) -> None:
        """Make missing thumbnails, for a few milliseconds."""
        until, entries = time.perf_counter() + BUDGET, list(self.view.entries)
        missing = [number for number, entry in enumerate(entries) if entry.thumbnail is None]
        if not missing:
            return
        for number in missing:
            if time.perf_counter() > until:
                break
            entries[number] = replace(entries[number], thumbnail=self._thumbnail(entries[number].key))
        self.view = replace(self.view, entries=tuple(entries))

    def _thumbnail(self, key: str) -> np.ndarray:
        where, first, second = key.split(":")
        if where == HERE:
            plane = Plane(int(first), int(second))
            state, picture = self._thumbnail_state(plane), self._picture_here(plane)
        else:
            state, picture = None, self._picture_of_file(self._loaded[int(first)], int(second))
        self._thumbnails[key] = state, picture
        return picture

    def _picture_here(self, plane: Plane) -> np.ndarray:
        painting = self._read.painting
        assert painting is not None
        image = np.moveaxis(array_from_volume(self.scan), plane.axis, 0)[plane.index]
        geometry = painting.geometry
        colors = {label: template.color or NO_COLOR for label, template in self._read.templates.items()}
        return thumbnail(
            image,
            painting.labels_on(plane),
            colors,
            geometry.in_plane_spacing(plane.axis),
            geometry.slice_orientation(plane.axis),
            geometry.plane(plane.axis),
        )

    def _picture_of_file(self, one: LoadedSupport, slot: int) -> np.ndarray:
        piece = one.slices[slot]
        templates, _pieces = join_structures(self._read.templates, [*self._loaded.values()])
        by_name = {template.name.casefold(): template.color for template in templates.values()}
        colors = {
            label: by_name.get(one.structure(label).casefold()) or NO_COLOR for label in label_values(piece.labels)
        }
        plane = piece.plane
        return thumbnail(piece.image, piece.labels, colors, plane.spacing, plane.orientation, plane.name, plane.window)
