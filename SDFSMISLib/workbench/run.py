"""Panel run: one press of Segment, from copying the scans to the last slice in the scene.

Run targets: the scans of a run, and the slices of each that are wanted.
"""

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
from SDFSMISLib.workbench.background import Background, Ended
from SDFSMISLib.workbench.run_job import (
    ClientSource,
    Doing,
    RunJob,
    ScanBegins,
    ScanEnds,
    Sent,
    SliceCame,
    SupportPlan,
    Trouble,
)
from SDFSMISLib.workbench.slice_views import visible_slice
from SDFSMISLib.workbench.support_list import SupportList
from SDFSMISLib.workbench.targets import ResultHome, wanted_slices
from SDFSMISLib.workbench.text import tr as _
from SDFSMISLib.workbench.views import Editor, QueryMode, RunRequest, RunView

LOG = logging.getLogger("SDFSMIS")
BUDGET = 0.02  # seconds of one step in which messages are taken
WRITE_EVERY = 0.15  # seconds between two blocks that are written while slices come
SURFACE_EVERY = 2.0  # seconds between two times that surfaces are made anew, at least
SURFACE_SHARE = 10  # and as many times as long as it took


@dataclass(eq=False)
class Target:
    """A scan of a run.

    Attributes:
        volume: its node.
        painted: the segmentation in which it is painted; None = it is another scan.
        wanted: its slices; None = all.
        axis, segmentation, writer: once its slices come.
        over: whether nothing is to come any more: all its slices have, or what they go into is lost.
        found: the first and the last slice on which each label is, by label.
    """

    volume: Any
    painted: Any | None
    wanted: Sequence[int] | None
    name: str = ""
    axis: int = 0
    segmentation: Any | None = None
    writer: ResultWriter | None = None
    over: bool = False
    found: dict[int, tuple[int, int]] = field(default_factory=dict)
    surface_time: float = 0.0
    surface_cost: float = 0.0
    notes: list[str] = field(default_factory=list)


def unexpected(error: BaseException) -> str:
    """What is said of a defect; the log gets all of it."""
    LOG.error("A defect", exc_info=error)
    text = _(
        "Something went wrong that should not ({kind}: {error}). The application's log says more; please report it."
    )
    return text.format(kind=type(error).__name__, error=error)


class PanelRun:
    """It goes on by :meth:`step`, on the main thread; the backend is talked to in a thread of its own.

    Attributes:
        plan: of the support.
        view: what the panel shows.
        targets: those whose writer is there have results.
        over: whether nothing more comes. error: that the worker thread ended with.
    """

    def __init__(
        self,
        plan: SupportPlan,
        painted: Any | None,
        targets: Sequence[Target],
        options: RunOptions,
        editor: Editor,
        source: ClientSource,
        scans: ScanCache,
    ) -> None:
        """
        Args:
            painted: volume node of the scan that is painted; None = the support is from files.
            source: of the backend's client.
            scans: where copies are kept.
        """
        self.targets, self.over = list(targets), False
        self.error: BaseException | None = None
        self.view = RunView(True, _("Reading the scan…"))
        self.plan, self._painted, self._options, self._editor = plan, painted, options, editor
        self._source, self._scans = source, scans
        self._copying = self._copy()
        self._background: Background | None = None
        self._remote: RemoteRun | None = None
        self._doing, self._trouble = "", ""
        self._finished, self._total, self._done_scans = 0, 0, 0
        self._first_slice = self._last_write = 0.0
        self._ended: Ended | None = None
        self._cancelled = False
        self._lost = ""
        self._copies: list[Scan] = []
        self._painted_copy: Scan | None = None
        self._notes: list[str] = []

    def note(self, text: str) -> None:
        """Something that the user should know, to be shown with the run."""
        self._notes.append(text)

    def cancel(self) -> None:
        """Asks it to end; what has come stays."""
        self._cancelled = True
        if self._background is not None:
            self._background.cancel.set()

    def abandon(self) -> None:
        """Ends it at once, without touching the scene: that is closed, or the panel is."""
        self.cancel()
        self._end("", False)

    @property
    def remote(self) -> RemoteRun | None:
        """What was reached of the backend; None where nothing was."""
        return self._remote

    @property
    def has_results(self) -> bool:
        """Whether a slice has come that can be written."""
        return any(target.writer is not None for target in self.targets)

    def step(self) -> bool:
        """Does the next piece, of some 20 ms; whether there is more to do at once."""
        if self.over:
            return False
        try:
            return self._step()
        except InputError as error:  # a scan that cannot be read
            self.cancel()
            self._end(str(error), True)
        except Exception as error:  # it must not come again with every beat of the timer
            self.cancel()
            self._end(unexpected(error), True)
        return False

    # -- the pieces ----------------------------------------------------------------------------------------------------

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
        """Copies the next piece of a scan; begins to segment when all are there."""
        if self._cancelled:
            self._end(_("Cancelled before anything was sent."), False)
            return False
        share = next(self._copying, None)
        if share is not None:
            self.view = RunView(True, _("Reading the scan…"))
            return True
        scans = [(self._copies[number], target.wanted) for number, target in enumerate(self.targets)]
        painted = self._painted_copy
        job = RunJob(self._source, self.plan, painted, scans, self._options)
        self._doing = _("Connecting to the backend…")
        self._background = Background("SDFSMIS run", job)
        return False

    def _copy(self) -> Iterator[float]:
        """Copies the scans; another scan that cannot be read is left out, the painted one is needed."""
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
        """Takes what the worker has posted, for some milliseconds; whether more may be waiting."""
        assert self._background is not None
        until = time.perf_counter() + BUDGET
        for message in self._background.messages():
            self._take(message)
            if time.perf_counter() > until:
                return True
        return False

    def _take(self, message: Any) -> None:
        if isinstance(message, Doing):
            self._doing = message.text
        elif isinstance(message, Sent):
            self._doing = _("Sending slices: {there} of {total}").format(there=message.there, total=message.total)
        elif isinstance(message, Trouble):
            self._trouble = message.text
        elif isinstance(message, RemoteRun):
            self._remote = message
        elif isinstance(message, ScanBegins):
            self._scan_begins(message)
        elif isinstance(message, SliceCame):
            self._slice_came(message)
        elif isinstance(message, ScanEnds):
            target = self.targets[message.number]
            target.over = True
            several = len(self.targets) > 1
            target.notes += [f"{target.name}: {text}" if several else text for text in message.warnings]
            if target.writer is not None:
                target.notes += [self._found_on(target, several)]
            self._done_scans, self._finished, self._total = message.number + 1, 0, 0
        elif isinstance(message, Ended):
            self._ended, self.error = message, message.error

    def _scan_begins(self, message: ScanBegins) -> None:
        target = self.targets[message.number]
        target.axis = message.axis
        scan = self._copies[message.number]
        target.notes += scan.notes
        try:
            if target.volume.GetScene() is None:
                raise InputError(_("The scan {name} was deleted; it is left out.").format(name=target.name))
            home = ResultHome.of(target.volume, target.painted, self.plan.looks, message.axis)
            segmentation = home.made(target.volume)
            if target.painted is not None and segmentation is not target.painted:
                target.notes.append(
                    _("The segmentation does not lie on the scan's voxels; results are in {name}.").format(
                        name=segmentation.GetName()
                    )
                )
            if scan.sequence_frame is not None:
                target.notes.append(_("Segmented: {frame}.").format(frame=scan.sequence_frame.text))
            target.writer = self._writer(target, segmentation, home, message, scan)
            target.segmentation = segmentation
        except InputError as error:
            self._lose(target, str(error))

    def _writer(
        self, target: Target, segmentation: Any, home: ResultHome, message: ScanBegins, scan: Scan
    ) -> ResultWriter:
        edited = segmentation is target.painted
        return ResultWriter(
            target.volume,
            segmentation,
            scan,
            message.support,
            message.axis,
            self.plan.looks,
            into=home.results,
            rules=EditingRules.of(self._editor.node, target.volume) if edited else None,
            save_undo=self._editor.save_undo if edited else None,
            threshold=self._options.threshold,
        )

    def _slice_came(self, message: SliceCame) -> None:
        record, target = message.record, self.targets[message.number]
        if self._finished == 0 and self._done_scans == 0:
            self._first_slice = time.monotonic()
        self._finished, self._total, self._trouble = record.finished, record.total, ""
        if target.writer is not None:
            target.writer.add_slice(record.label, record.index, record.probability, record.certainty)
            if record.probability.max() > 255 * self._options.threshold:
                first, last = target.found.get(record.label, (record.index, record.index))
                target.found[record.label] = min(first, record.index), max(last, record.index)

    # -- writing -------------------------------------------------------------------------------------------------------

    def _pending(self) -> bool:
        return any(target.writer is not None and target.writer.pending for target in self.targets)

    def _write_some(self) -> bool:
        """Writes a block, if it is time; whether there is more to write at once."""
        now = time.monotonic()
        if self._ended is None and now - self._last_write < WRITE_EVERY:
            return False
        for target in self.targets:
            if target.writer is not None and target.writer.pending:
                self._write(target)
                self._last_write = time.monotonic()
                return self._ended is not None
        return False

    def _write(self, target: Target) -> None:
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

    def _lose(self, target: Target, why: str) -> None:
        """What a scan's results go into is not there any more."""
        LOG.info("Results on %s cannot be written: %s", target.name, why)
        target.writer, target.over = None, True
        self._lost = why
        if all(other.over for other in self.targets):  # what the backend computes now has no place
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

    def _found_on(self, target: Target, several: bool) -> str:
        """Where each structure was found, in a sentence."""
        places = []
        for label, look in self.plan.looks.items():
            indices = [
                *target.found.get(label, ()),
                *(target.writer.painted_slices(label) if target.writer is not None else ()),
            ]
            where = _("{name} on slices {first} to {last}") if indices else _("{name} nowhere")
            ends = {"first": min(indices), "last": max(indices)} if indices else {}
            places.append(where.format(name=look.name, **ends))
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
        return unexpected(error), True

    def _end(self, text: str, failed: bool) -> None:
        self.over = True
        notes = dict.fromkeys([*self._notes, *(note for target in self.targets for note in target.notes)])
        self.view = RunView(False, text, None, None, failed, tuple(notes))
        LOG.info("Run ended: %s", text)

    def _show(self) -> None:
        fraction = seconds = None
        if self._total:
            share = self._finished / self._total
            fraction = (self._done_scans + share) / len(self.targets)
            spent = time.monotonic() - self._first_slice
            if 0 < fraction < 1 and self._finished > 1 and not self._trouble:
                seconds = spent * (1 - fraction) / fraction
        self.view = RunView(True, self._text(), fraction, seconds, notes=tuple(self._notes))

    def _text(self) -> str:
        if self._ended is not None:
            return _("Writing the results…")
        if self._trouble:
            return _("Trying again: {trouble} Finished slices are kept.").format(trouble=self._trouble)
        run = self._remote
        if run is not None and run.phase == "waiting" and run.ahead:
            return _("Waiting for other runs on the backend ({count})…").format(count=run.ahead)
        if not self._finished:
            return self._doing or _("Segmenting…")
        if len(self.plan.looks) == 1:
            text = _("Slice {finished} of {total}").format(finished=self._finished, total=self._total)
        else:
            text = _("{percent} % of the slices").format(percent=100 * self._finished // max(1, self._total))
        if len(self.targets) > 1:
            text = _("Scan {number} of {count}: {text}").format(
                number=self._done_scans + 1, count=len(self.targets), text=text
            )
        return text


def run_targets(request: RunRequest, support: SupportList, plan: SupportPlan) -> list[Target]:
    """The scans of a run; raises :class:`InputError` where there is nothing to do."""
    targets, scan = [], support.scan
    if request.mode is not QueryMode.NONE and scan is not None:
        targets.append(_own(request, plan, scan, support.segmentation))
    others = [node for node in request.others if node is not None and node is not scan]
    targets += [Target(node, None, None, node.GetName()) for node in others]
    if not targets:
        raise InputError(_("No scan to segment is chosen; choose slices of this scan, or another scan."))
    return targets


def _own(request: RunRequest, plan: SupportPlan, scan: Any, painted: Any | None) -> Target:
    """The scan that is painted."""
    if plan.painting is None:  # in which direction it is sliced follows from the file
        if request.mode is not QueryMode.ALL:
            raise InputError(_("Nothing is painted on this scan; choose all of its slices."))
        return Target(scan, painted, None, scan.GetName())
    wanted, problem = wanted_slices(request, plan.painting.geometry.shape[plan.axis], visible_slice(scan, plan.axis))
    if problem:
        raise InputError(problem)
    done = [set(plan.used) & set(plan.painting.slices(plan.axis, label)) for label in plan.looks]
    if all(set(wanted) <= slices for slices in done):
        raise InputError(
            _("All wanted slices are painted already. Uncheck “Use every painted slice” to use chosen ones only.")
        )
    return Target(scan, painted, wanted, scan.GetName())
