"""Run: one press of Segment, from copying the scans to the last slice in the scene; the scans that it segments."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from SDFSMISLib.client import BackendError, RemoteRun
from SDFSMISLib.errors import Cancelled, InputError
from SDFSMISLib.options import RunOptions
from SDFSMISLib.scene import EditingRules, ResultWriter, Scan, ScanCache
from SDFSMISLib.workbench.background import Background, JobEnded
from SDFSMISLib.workbench.run_job import (
    ClientSource,
    Retrying,
    ScanFinished,
    ScanStarted,
    SegmentationJob,
    SliceFinished,
    Status,
    SupportSnapshot,
    UploadProgress,
)
from SDFSMISLib.workbench.slice_views import visible_slice
from SDFSMISLib.workbench.support_list import SupportList
from SDFSMISLib.workbench.targets import ResultDestination, wanted_slices
from SDFSMISLib.workbench.text import tr as _
from SDFSMISLib.workbench.views import Editor, QueryMode, RunRequest, RunView

LOG = logging.getLogger("SDFSMIS")
BUDGET = 0.02  # seconds of one step in which messages are taken
WRITE_EVERY = 0.15  # seconds between two blocks that are written while slices come
SURFACE_EVERY = 2.0  # seconds between two times that surfaces are made anew, at least
SURFACE_SHARE = 10  # and as many times as long as it took


@dataclass(eq=False)
class TargetScan:
    """A scan to segment in a run.

    Attributes:
        volume: its node.
        painted: the segmentation in which it is painted; None for another scan.
        wanted: indices of its slices; None = all.
        name: of the scan, for texts.
        axis, view, segmentation, writer: set when its first slice is received: array axis of the slices and their view,
            such as axial; node of the results.
        is_done: whether nothing more is received: all slices are, or the results cannot be written any more.
        found: the slices along the axis on which each label was found, by label.
        surface_time, surface_cost: when surfaces were made last, and the seconds that it took.
        notes: what the user should know, one sentence each.
    """

    volume: Any
    painted: Any | None
    wanted: Sequence[int] | None
    name: str = ""
    axis: int = 0
    view: str = ""
    segmentation: Any | None = None
    writer: ResultWriter | None = None
    is_done: bool = False
    found: dict[int, set[int]] = field(default_factory=dict)
    surface_time: float = 0.0
    surface_cost: float = 0.0
    notes: list[str] = field(default_factory=list)


def defect_message(error: BaseException) -> str:
    """The text that the user sees for an exception that nobody expected; it is logged with its traceback."""
    LOG.error("A defect", exc_info=error)
    text = _(
        "Something went wrong that should not ({kind}: {error}). The application's log says more; please report it."
    )
    return text.format(kind=type(error).__name__, error=error)


class Run:
    """One press of Segment. It proceeds by :meth:`step` on the main thread; a thread talks to the backend.

    Attributes:
        support: the support set that the backend is given.
        targets: the scans to segment; those with a writer have results.
        editor: of the front end.
        view: what a front end shows.
        error: the exception that ended the thread; None if none did.
        remote: the run on the backend; None before it was reached.
    """

    def __init__(
        self,
        support: SupportSnapshot,
        painted: Any | None,
        targets: Sequence[TargetScan],
        options: RunOptions,
        editor: Editor,
        source: ClientSource,
        scans: ScanCache,
    ) -> None:
        """
        Args:
            painted: volume node of the painted scan; None = the support set is from files.
            source: of the backend's client.
            scans: cache of copied scans.
        """
        self.support, self.targets, self.editor = support, list(targets), editor
        self.error: BaseException | None = None
        self.remote: RemoteRun | None = None
        self.view = RunView(True, _("Reading the scan…"))
        self._painted, self._options, self._source, self._scans = painted, options, source, scans
        self._copying = self._copy()
        self._background: Background | None = None
        self._status, self._retrying = "", ""
        self._finished, self._total, self._done_scans = 0, 0, 0
        self._first_slice = self._last_write = 0.0
        self._ended: JobEnded | None = None
        self._cancelled = False
        self._lost = ""
        self._copies: list[Scan] = []
        self._painted_copy: Scan | None = None
        self._notes: list[str] = []

    def note(self, text: str) -> None:
        """Add a sentence to the notes of the run."""
        self._notes.append(text)

    def cancel(self) -> None:
        """Ask the run to stop; slices that are finished stay."""
        self._cancelled = True
        if self._background is not None:
            self._background.cancel.set()

    def abandon(self) -> None:
        """End the run at once, without touching the scene."""
        self.cancel()
        self._end("", False)

    @property
    def has_results(self) -> bool:
        """Whether a slice was received that can be written into the scene."""
        return any(target.writer is not None for target in self.targets)

    def step(self) -> bool:
        """Do the next piece, some 20 ms; True if more can be done at once."""
        if not self.view.running:
            return False
        try:
            return self._step()
        except InputError as error:  # a scan that cannot be read
            self.cancel()
            self._end(str(error), True)
        except Exception as error:  # it must not come again with every beat of the timer
            self.cancel()
            self._end(defect_message(error), True)
        return False

    # -- steps ---------------------------------------------------------------------------------------------------------

    def _step(self) -> bool:
        if self._background is None:
            return self._begin()
        came = self._take_messages()
        wrote = self._write_some()
        if self._ended is not None and not self._pending():
            self._finish()
            return False
        self._show()
        return came or wrote

    def _begin(self) -> bool:
        """Copy the next piece of a scan; start the thread once all are copied."""
        if self._cancelled:
            self._end(_("Cancelled before anything was sent."), False)
            return False
        share = next(self._copying, None)
        if share is not None:
            self.view = RunView(True, _("Reading the scan…"))
            return True
        scans = [(self._copies[number], target.wanted) for number, target in enumerate(self.targets)]
        painted = self._painted_copy
        job = SegmentationJob(self._source, self.support, painted, scans, self._options)
        self._status = _("Connecting…")
        self._background = Background("SDFSMIS run", job)
        return False

    def _copy(self) -> Iterator[float]:
        """Copy the scans. Another scan that cannot be read is left out; the painted one is required."""
        if self._painted is not None:
            yield from self._scans.copy_steps(self._painted)
            self._painted_copy = self._scans.get(self._painted)
        for target in [*self.targets]:
            try:
                yield from self._scans.copy_steps(target.volume)
                self._copies.append(self._scans.get(target.volume))
            except InputError as error:
                if target.volume is self._painted or len(self.targets) == 1:
                    raise
                self.targets.remove(target)
                self._notes.append(_("{name} is left out: {error}").format(name=target.name, error=error))

    def _take_messages(self) -> bool:
        """Take messages of the thread, for some milliseconds; True if more may be waiting."""
        assert self._background is not None
        until = time.perf_counter() + BUDGET
        for message in self._background.messages():
            self._take(message)
            if time.perf_counter() > until:
                return True
        return False

    def _take(self, message: Any) -> None:
        if isinstance(message, Status):
            self._status = message.text
        elif isinstance(message, UploadProgress):
            self._status = _("Sending slices: {sent} of {total}").format(sent=message.sent, total=message.total)
        elif isinstance(message, Retrying):
            self._retrying = message.problem
        elif isinstance(message, RemoteRun):
            self.remote = message
        elif isinstance(message, ScanStarted):
            self._scan_started(message)
        elif isinstance(message, SliceFinished):
            self._slice_finished(message)
        elif isinstance(message, ScanFinished):
            target = self.targets[message.number]
            target.is_done = True
            several = len(self.targets) > 1
            target.notes += [f"{target.name}: {text}" if several else text for text in message.warnings]
            if target.writer is not None:
                target.notes += [self._found_on(target, several)]
            self._done_scans, self._finished, self._total = message.number + 1, 0, 0
        elif isinstance(message, JobEnded):
            self._ended, self.error = message, message.error

    def _scan_started(self, message: ScanStarted) -> None:
        target = self.targets[message.number]
        scan = self._copies[message.number]
        target.axis, target.view = message.axis, scan.geometry.plane(message.axis)
        target.notes += scan.notes
        try:
            if target.volume.GetScene() is None:
                raise InputError(_("The scan {name} was deleted; it is left out.").format(name=target.name))
            destination = ResultDestination.of(target.volume, target.painted, self.support.templates)
            segmentation = destination.node_for(target.volume)
            if target.painted is not None and segmentation is not target.painted:
                target.notes.append(
                    _("The segmentation does not lie on the scan's voxels; results are in {name}.").format(
                        name=segmentation.GetName()
                    )
                )
            if scan.sequence_frame is not None:
                target.notes.append(_("Segmented: {frame}.").format(frame=scan.sequence_frame.text))
            target.writer = self._writer(target, segmentation, destination, message, scan)
            target.segmentation = segmentation
        except InputError as error:
            self._lose(target, str(error))

    def _writer(
        self, target: TargetScan, segmentation: Any, destination: ResultDestination, message: ScanStarted, scan: Scan
    ) -> ResultWriter:
        edited = segmentation is target.painted
        return ResultWriter(
            target.volume,
            segmentation,
            scan,
            message.support,
            message.axis,
            self.support.templates,
            into=destination.results,
            rules=EditingRules.of(self.editor.node, target.volume) if edited else None,
            save_undo=self.editor.save_undo if edited else None,
            threshold=self._options.threshold,
        )

    def _slice_finished(self, message: SliceFinished) -> None:
        record, target = message.record, self.targets[message.number]
        if self._finished == 0 and self._done_scans == 0:
            self._first_slice = time.monotonic()
        self._finished, self._total, self._retrying = record.finished, record.total, ""
        if target.writer is not None and record.axis == target.axis:  # others come again, fused with these
            target.writer.add_slice(record.label, record.index, record.probability, record.certainty)
            found = target.found.setdefault(record.label, set())
            if record.probability.max() > 255 * self._options.threshold:
                found.add(record.index)
            else:
                found.discard(record.index)

    # -- writing -------------------------------------------------------------------------------------------------------

    def _pending(self) -> bool:
        return any(target.writer is not None and target.writer.pending for target in self.targets)

    def _write_some(self) -> bool:
        """Write a block if it is time; True if more can be written at once."""
        now = time.monotonic()
        if self._ended is None and now - self._last_write < WRITE_EVERY:
            return False
        for target in self.targets:
            if target.writer is not None and target.writer.pending:
                self._write(target)
                self._last_write = time.monotonic()
                return self._ended is not None
        return False

    def _write(self, target: TargetScan) -> None:
        writer = target.writer
        assert writer is not None
        try:
            writer.write_next(visible_slice(target.volume, target.axis) or 0)
            now = time.monotonic()
            if now - target.surface_time > max(SURFACE_EVERY, SURFACE_SHARE * target.surface_cost):
                writer.update_surface()
                target.surface_time, target.surface_cost = time.monotonic(), time.monotonic() - now
        except InputError as error:
            self._lose(target, str(error))

    def _lose(self, target: TargetScan, why: str) -> None:
        """The results of a scan cannot be written any more."""
        LOG.info("Results on %s cannot be written: %s", target.name, why)
        target.writer, target.is_done = None, True
        self._lost = why
        if all(other.is_done for other in self.targets):  # what the backend computes now has no place
            self.cancel()

    def _finish(self) -> None:
        for target in self.targets:
            if target.writer is not None:
                try:
                    target.writer.update_surface()
                    if target.writer.scan_changed:
                        target.notes.append(_("The scan has changed since; the results are of what was shown then."))
                except InputError as error:
                    self._lose(target, str(error))
        assert self._ended is not None
        text, failed = self._outcome(self._ended.error)
        self._end(text, failed)

    def _found_on(self, target: TargetScan, several: bool) -> str:
        """A sentence that tells on which slices each structure was found."""
        places = []
        for label, template in self.support.templates.items():
            indices = [
                *target.found.get(label, ()),
                *(target.writer.painted_slices(label) if target.writer is not None else ()),
            ]
            where = _("{name} on {view} slices {first} to {last}") if indices else _("{name} nowhere")
            ends = {"first": min(indices), "last": max(indices), "view": target.view} if indices else {}
            places.append(where.format(name=template.name, **ends))
        text = _("Found in {scan}: {places}.") if several else _("Found: {places}.")
        return text.format(scan=target.name, places="; ".join(places))

    # -- words ---------------------------------------------------------------------------------------------------------

    def _outcome(self, error: BaseException | None) -> tuple[str, bool]:
        if self._lost:
            return self._lost, True
        if error is None:
            return _("Finished. Look at the slices, correct where needed, then accept."), False
        if isinstance(error, Cancelled):
            return _("Cancelled. Slices that were finished can be accepted or discarded."), False
        if isinstance(error, (BackendError, InputError)):
            return str(error), True
        return defect_message(error), True

    def _end(self, text: str, failed: bool) -> None:
        notes = dict.fromkeys([*self._notes, *(note for target in self.targets for note in target.notes)])
        self.view = RunView(False, text, None, None, failed, tuple(notes))
        LOG.info("Run ended: %s", text)

    def _show(self) -> None:
        fraction = seconds = None
        if self._total:
            share = self._finished / self._total
            fraction = (self._done_scans + share) / len(self.targets)
            spent = time.monotonic() - self._first_slice
            if 0 < fraction < 1 and self._finished > 1 and not self._retrying:
                seconds = spent * (1 - fraction) / fraction
        self.view = RunView(True, self._text(), fraction, seconds, notes=tuple(self._notes))

    def _text(self) -> str:
        if self._ended is not None:
            return _("Writing the results…")
        if self._retrying:
            return _("Trying again: {problem} Finished slices are kept.").format(problem=self._retrying)
        remote = self.remote
        if remote is not None and remote.phase == "waiting" and remote.ahead:
            return _("Waiting for other runs ({count})…").format(count=remote.ahead)
        if not self._finished:
            return self._status or _("Segmenting…")
        if len(self.support.templates) == 1:
            text = _("Slice {finished} of {total}").format(finished=self._finished, total=self._total)
        else:
            text = _("{percent} % of the slices").format(percent=100 * self._finished // max(1, self._total))
        if len(self.targets) > 1:
            text = _("Scan {number} of {count}: {text}").format(
                number=self._done_scans + 1, count=len(self.targets), text=text
            )
        return text


def run_targets(request: RunRequest, support: SupportList, snapshot: SupportSnapshot) -> list[TargetScan]:
    """The scans of a run.

    Raises:
        InputError: if there is nothing to segment.
    """
    targets, scan = [], support.scan
    if request.mode is not QueryMode.NONE and scan is not None:
        targets.append(_painted_target(request, snapshot, scan, support.segmentation))
    others = [node for node in request.others if node is not None and node is not scan]
    targets += [TargetScan(node, None, None, node.GetName()) for node in others]
    if not targets:
        raise InputError(_("No scan to segment is chosen; choose slices of this scan, or another scan."))
    return targets


def _painted_target(request: RunRequest, snapshot: SupportSnapshot, scan: Any, painted: Any | None) -> TargetScan:
    """The painted scan, with its wanted slices."""
    if snapshot.painting is None:  # the file tells the direction of the slices
        if request.mode is not QueryMode.ALL:
            raise InputError(_("Nothing is painted on this scan; choose all of its slices."))
        return TargetScan(scan, painted, None, scan.GetName())
    wanted, problem = wanted_slices(
        request, snapshot.painting.geometry.shape[snapshot.axis], visible_slice(scan, snapshot.axis)
    )
    if problem:
        raise InputError(problem)
    if all(set(wanted) <= snapshot.painted_as_wholes(label) for label in snapshot.templates):
        raise InputError(
            _("All wanted slices are painted already. Uncheck “Use every painted slice” to use chosen ones only.")
        )
    return TargetScan(scan, painted, wanted, scan.GetName())
