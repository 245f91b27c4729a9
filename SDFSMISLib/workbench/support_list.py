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
from SDFSMISLib.support import SupportSet, SupportSlice
from SDFSMISLib.workbench.background import Background, JobEnded
from SDFSMISLib.workbench.questions import Questions
from SDFSMISLib.workbench.run_job import LoadedSupport, SupportSnapshot, join_structures
from SDFSMISLib.workbench.slice_views import show_in_views
from SDFSMISLib.workbench.support_reading import PaintedSlice, PaintedStructures, PaintingReader
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
        self._axis: int | None = None
        self._chosen: set[int] = set()
        self._excluded: dict[int, int] = {}
        self._loaded: dict[int, LoadedSupport] = {}
        self._loads = 0
        self._reader = PaintingReader()
        self._stamp: Any = None
        self._thumbnails: dict[str, tuple[Any, np.ndarray]] = {}
        self._message = ""

    # -- what the user chooses -----------------------------------------------------------------------------------------

    def select(self, scan: Any | None, segmentation: Any | None) -> None:
        """Choose the volume node and the segmentation node that are painted; slices from files stay in the list."""
        if scan is not self.scan or segmentation is not self.segmentation:
            if segmentation is not self.segmentation:
                self._chosen_segments = None
            self.scan, self.segmentation = scan, segmentation
            self._axis, self._chosen, self._excluded, self._message = None, set(), {}, ""
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
        if painting is not None and self._used() and shown.axis != self._read.axis:
            text = _("The view shows a {shown} slice, and the examples are {painted}; choose another view.")
            raise InputError(text.format(shown=shown.plane, painted=painting.geometry.plane(self._read.axis)))
        self._axis = shown.axis
        self._chosen.add(shown.index)
        self._excluded.pop(shown.index, None)

    def _turn(self, slice_node: Any, scan: Any) -> None:
        if scan is self.scan and scan is not None:
            try:
                rotate_to_volume_plane(slice_node, scan)
            except InputError as error:
                self._report(str(error))
            self.use_slice(slice_node)

    def remove(self, keys: Collection[str]) -> None:
        """Remove slices by their keys. Paint stays in the scene; a stroke on a removed slice brings the slice back."""
        corrected = set() if self._read.painting is None else set(self._read.painting.corrected)
        self._message = ""
        for key in keys:
            where, first, *rest = key.split(":")
            if where == HERE and int(first) in corrected:
                self._message = _(
                    "Slice {index} was corrected by hand in a result, so it stays; undo the correction to take it out."
                ).format(index=first)
            elif where == HERE:
                self._chosen.discard(int(first))
                self._excluded[int(first)] = self._digest(int(first))
            else:
                one = self._loaded[int(first)]
                self._loaded[int(first)] = replace(one, removed=one.removed | {int(rest[0])})
        self._loaded = {number: one for number, one in self._loaded.items() if one.slices}
        if not self._chosen:
            self._axis = None
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
        where, first, *_rest = key.split(":")
        if where == HERE and self.scan is not None:
            try:
                show_in_views(self.scan, self._read.axis, int(first))
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
            self._reader.begin(self.scan, self.segmentation, ids, loaded, self._axis, self.reads_corrections)
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
        if painting is not None:
            names = {label: name for label, name in painting.names.items() if self._read.painted(label) & set(used)}
            painting = replace(painting, names=names)
        complete = frozenset({*self._chosen, *(painting.corrected if painting is not None else ())})
        return SupportSnapshot(templates, painting if used else None, self._read.axis, used, complete, pieces)

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
        chosen = self._chosen_segments, self._every, self._axis, frozenset(self._chosen), tuple(self._excluded.items())
        return self.scan, self.segmentation, segments, painted, names, chosen, [*self._loaded.values()], self._message

    def _painted(self) -> list[Any]:
        """The segments that are no results."""
        if self.segmentation is None:
            return []
        return [one for one in list_segments(self.segmentation) if not one.is_result]

    def _takes_part(self, segment_id: str) -> bool:
        return self._chosen_segments is None or segment_id in self._chosen_segments

    def _used(self) -> tuple[int, ...]:
        """The slices of the scan that are used."""
        painting = self._read.painting
        if painting is None:
            return ()
        self._excluded = {k: digest for k, digest in self._excluded.items() if digest == self._digest(k)}
        used = self._read.slices.keys() - self._excluded.keys() if self._every else set[int]()
        return tuple(sorted(used | self._chosen | set(painting.corrected)))

    def _digest(self, index: int) -> int:
        one = self._read.slices.get(index)
        return one.digest if one is not None else 0

    def _labels_on(self, index: int) -> np.ndarray:
        """Label values (rows, columns) that are painted on a slice of the scan."""
        painting, axis = self._read.painting, self._read.axis
        assert painting is not None
        start, stop = [0, 0, 0], list(painting.geometry.shape)
        start[axis], stop[axis] = index, index + 1
        cut = painting.labels.crop_or_pad((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
        return np.moveaxis(cut, axis, 0)[0]

    # -- the view ------------------------------------------------------------------------------------------------------

    def _make_view(self) -> SupportView:
        read, used = self._read, self._used()
        templates, pieces = join_structures(read.templates, [*self._loaded.values()])
        entries = [self._entry_here(index) for index in used]
        for number, one in self._loaded.items():
            entries += [self._entry_of_file(number, one, slot) for slot in one.slices]
        painting = read.painting
        notes = (*(painting.notes if painting is not None else ()), *([self._message] if self._message else []))
        problem = self._problem(templates, used, pieces)
        return SupportView(self._segments(), tuple(entries), problem, notes, self._every, self._slice_count())

    def _slice_count(self) -> int:
        """Slices of the scan in the direction that was painted; 0 while nothing is."""
        painting = self._read.painting
        return painting.geometry.shape[self._read.axis] if painting is not None else 0

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
        self, templates: Mapping[int, SegmentTemplate], used: Sequence[int], pieces: Sequence[SupportSlice]
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

    def _shown(self, used: Sequence[int], pieces: Sequence[SupportSlice]) -> set[int]:
        """The labels that something shows; the others take no part."""
        painting = self._read.painting
        labels = painting.names if painting is not None else ()
        shown = {label for label in labels if self._read.painted(label) & set(used)}
        return shown | {label for piece in pieces for label in label_values(piece.labels)}

    def _entry_here(self, index: int) -> SupportSliceView:
        read = self._read
        painting, axis = read.painting, read.axis
        assert painting is not None and self.scan is not None
        key, content = f"{HERE}:{index}", read.slices.get(index, NOTHING)
        origin = "corrected" if index in painting.corrected else "chosen" if index in self._chosen else "painted"
        made = self._thumbnails.get(key)
        picture = made[1] if made is not None and made[0] == self._content(index) else None
        names = tuple(painting.names[label] for label in content.labels if label in painting.names)
        area = content.pixels * math.prod(painting.geometry.in_plane_spacing(axis)) / 100
        return SupportSliceView(
            key, picture, index, painting.geometry.plane(axis), self.scan.GetName(), names, area, origin
        )

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

    def _content(self, index: int) -> Any:
        """What a thumbnail of a slice of the scan depends on."""
        assert self.scan is not None
        image = self.scan.GetImageData()
        return self._digest(index), self._read.axis, image.GetMTime() if image is not None else 0

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
        where, first, *rest = key.split(":")
        if where == HERE:
            content, picture = self._content(int(first)), self._picture_here(int(first))
        else:
            content, picture = None, self._picture_of_file(self._loaded[int(first)], int(rest[0]))
        self._thumbnails[key] = content, picture
        return picture

    def _picture_here(self, index: int) -> np.ndarray:
        painting, axis = self._read.painting, self._read.axis
        assert painting is not None
        voxels = array_from_volume(self.scan)
        image = np.moveaxis(voxels, axis, 0)[index]
        geometry = painting.geometry
        colors = {label: template.color or NO_COLOR for label, template in self._read.templates.items()}
        return thumbnail(
            image,
            self._labels_on(index),
            colors,
            geometry.in_plane_spacing(axis),
            geometry.slice_orientation(axis),
            geometry.plane(axis),
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
