"""What `sdfsmis segment` does: checks what was asked for, reads it, segments, and writes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import typer

from SDFSMISLib.cohort.job import Backend, ScanJob, ScanOptions, ScanOutcome, ScanWorker, failed
from SDFSMISLib.cohort.pool import Finished, run_cohort
from SDFSMISLib.cohort.result_files import check_outputs, is_folder, plan_results, same_file
from SDFSMISLib.cohort.scan_list import find_scans, is_cohort
from SDFSMISLib.cohort.table import CohortTable
from SDFSMISLib.console import duration, progress, say, waiting
from SDFSMISLib.errors import Cancelled, InputError
from SDFSMISLib.images.labelmap import label_values
from SDFSMISLib.images.postprocess import Postprocessing
from SDFSMISLib.images.volume import Volume, read_labelmap
from SDFSMISLib.options import BUILT_IN, RunOptions
from SDFSMISLib.support import SupportSet

__all__ = ["SegmentRequest", "passes_over_slices", "run_segment"]

TABLE = "cohort.csv"


@dataclass(frozen=True)
class SegmentRequest:
    """The options of `sdfsmis segment`; see its help. ``output`` is a text, since a slash at its end means a folder."""

    output: str
    support: Path | None = None
    mask: Path | None = None
    support_set: Path | None = None
    save_support_set: Path | None = None
    labels: tuple[int, ...] = ()
    slices: tuple[int, ...] = ()
    axis: Literal["auto", "0", "1", "2"] = "auto"
    queries: tuple[Path, ...] = ()
    strategy: Literal["propagate", "independent"] = "propagate"
    threshold: float = 0.5
    probabilities: str | None = None
    region: Literal["auto", "full"] = "auto"
    model: str = BUILT_IN
    device: str = "auto"
    server: str | None = None
    token: str | None = None
    server_certificate: Path | None = None
    keep_largest: Literal["off", "slice", "volume"] = "off"
    smooth_mm: float = 0.0
    fill_holes: bool = False
    dry_run: bool = False
    skip_existing: bool = False
    jobs: int | None = None
    engine: Literal["process", "ray"] = "process"

    def options(self, support: SupportSet, clean_up: Postprocessing, command: str) -> ScanOptions:
        """What all scans of the run have in common."""
        return ScanOptions(
            support=support,
            labels=self.labels or support.labels,
            options=self.run_options,
            postprocessing=clean_up,
            model=self.model,
            device=self.device,
            command=command,
            backend=self.backend,
        )

    @property
    def run_options(self) -> RunOptions:
        return RunOptions(self.strategy, self.region, self.threshold)

    @property
    def backend(self) -> Backend | None:
        """Where to segment, if not here."""
        if self.server is None:
            return None
        certificate = None if self.server_certificate is None else str(self.server_certificate)
        return Backend(self.server, self.token, certificate)


def run_segment(request: SegmentRequest, command: str) -> bool:
    """Does what the request asks for; ``command``, the command line, goes into the provenance.

    All that can be checked is checked before the long work. In a cohort (several scans, or a folder or a list of them)
    a scan that fails is said and passed over. Returns whether every scan has its result. Raises :class:`InputError`
    for bad input, with nothing half-written.
    """
    _check_options(request)
    clean_up = Postprocessing(request.smooth_mm, request.fill_holes, request.keep_largest)
    for path in _inputs(request):
        if not path.exists():
            raise InputError(f"There is no file or folder {path}.")
    every, cohort = _jobs(request)
    table = None
    if cohort and is_folder(request.output) and not request.dry_run:
        table = CohortTable(Path(request.output) / TABLE, every)
    jobs = _not_done(every, table) if request.skip_existing else every
    if not jobs:
        return True
    support, scan = _support(request)
    options = request.options(support, clean_up, command)
    others = [path for path in (request.save_support_set, table.path if table else None) if path is not None]
    check_outputs(jobs, options.labels, [*_inputs(request), *request.queries], others)
    say(_described(support, options.labels))
    early: dict[Path, Volume] = {}
    if scan is not None and same_file(jobs[0].query, request.support):
        early[jobs[0].query] = scan
    elif not cohort:
        early[jobs[0].query] = Volume.read(jobs[0].query)  # a bad scan is known before the model is loaded
    del scan
    failures = _report(request, jobs, _finished(request, options, jobs, early, cohort), options.labels, table)
    _tell_failures(failures, len(jobs))
    return not failures


def _finished(
    request: SegmentRequest, options: ScanOptions, jobs: list[ScanJob], early: dict[Path, Volume], cohort: bool
) -> Generator[Finished[ScanOutcome], None, None]:
    """The scans as they are finished: one after the other in this process, or by several workers."""
    workers = min(request.jobs or 1, len(jobs))
    if request.dry_run or (request.engine == "process" and workers == 1):
        yield from run_cohort(jobs, lambda place, of: _Here(request, options, early, cohort))
        return
    early.clear()  # the workers read for themselves
    _save_support(request, options.support)
    where = "on Ray" if request.engine == "ray" else f"by {workers} processes"
    say(f"{len(jobs)} scan{'s' * (len(jobs) > 1)} {where}.")
    absolute, began = [job.absolute() for job in jobs], time.monotonic()
    make = options.absolute().worker
    if request.engine == "ray":
        from SDFSMISLib.cohort.ray_pool import run_on_ray

        finishing = run_on_ray(absolute, make, request.jobs, gpus=request.device != "cpu")
    else:
        finishing = run_cohort(absolute, make, request.jobs)
    with closing(finishing) as run:
        for done in range(len(jobs)):
            left = (time.monotonic() - began) * (len(jobs) - done) / done if done else None
            text = "scans" if left is None else f"scans, about {duration(left)} left"
            with progress(text, len(jobs)) as advance:  # one bar for each scan: nothing is printed beside a bar
                advance(done)
                finished = next(run)
            yield finished


class _Here:
    """Segments scans in this process: says what is to be expected of each, and shows a bar over its slices."""

    def __init__(self, request: SegmentRequest, options: ScanOptions, early: dict[Path, Volume], cohort: bool) -> None:
        """
        Args:
            early: scans that were read already; they are taken out, since two at once would take twice the memory.
            cohort: whether a scan that fails is an outcome, and no exception.
        """
        self.request = request
        self.early = early
        self.cohort = cohort
        with waiting(f"Asking {request.server}" if request.server else f"Loading the model {request.model}"):
            self.worker = ScanWorker(options)
            self.seconds = self.worker.segmenter.seconds_per_slice()
        if not request.dry_run:
            _save_support(request, options.support)

    def __call__(self, job: ScanJob, cancel: Callable[[], bool]) -> ScanOutcome:
        try:
            return self._outcome(job)
        except Cancelled:
            raise
        except Exception as error:
            if not self.cohort:
                raise
            return failed(error)

    def _outcome(self, job: ScanJob) -> ScanOutcome:
        query = self.early.pop(job.query, None) or Volume.read(job.query)
        slices = self._expect(job, query)
        if self.request.dry_run:
            typer.echo(f"{job.query} -> {job.labelmap}")
            return ScanOutcome()
        with progress(job.query.name, slices) as advance:
            return self.worker.segment(job, query, on_slice=lambda result: advance(result.finished, result.total))

    def _expect(self, job: ScanJob, query: Volume) -> int:
        """Says how much there is to do; the number of slices, of all labels."""
        options, segmenter = self.worker.options, self.worker.segmenter
        support, count = options.support, len(options.labels)
        scan_hash = query.content_hash()
        axis = support.axis_on(query, scan_hash)
        here = [piece for piece in support.slices if (piece.plane.scan, piece.plane.axis) == (scan_hash, axis)]
        slices = query.slice_count(axis) - len({piece.index for piece in here})
        shown = {label: any(piece.mask(label).any() for piece in here) for label in options.labels}
        passes = sum(
            passes_over_slices(options.options.strategy, painted, segmenter.searches) for painted in shown.values()
        )
        say(
            f"{job.query.name}: {slices} {query.geometry.plane(axis)} slices of axis {axis}, {count} "
            f"label{'s' * (count > 1)}: about {duration(passes * slices * self.seconds)} on {segmenter.device}."
        )
        return slices * count


def passes_over_slices(strategy: str, painted: bool, searches: bool) -> int:
    """How often the networks see each slice of a label: twice where they first search for it.

    Args:
        painted: whether slices of the scan itself show the label.
        searches: whether the networks do the searching; if not, registration does.
    """
    return 2 if strategy == "propagate" and not painted and searches else 1


def _report(
    request: SegmentRequest,
    jobs: list[ScanJob],
    run: Generator[Finished[ScanOutcome], None, None],
    labels: Sequence[int],
    table: CohortTable | None,
) -> list[tuple[ScanJob, ScanOutcome]]:
    """Tells of each finished scan, and keeps it in the table; those that failed."""
    failures = []
    trouble = ""
    with closing(run):
        for finished in run:
            job, outcome = jobs[finished.number], finished.result or ScanOutcome(error=finished.error)
            for warning in outcome.warnings:
                say(f"Warning: {warning}")
            if outcome.error:
                failures.append((job, outcome))
                say(f"Failed: {job.query}: {outcome.error}")
            elif not request.dry_run:
                _tell(job, outcome, labels)
            if table is not None:
                table.add(job, outcome)
                trouble = _written(table, trouble)
    if trouble:
        raise InputError(trouble)
    return failures


def _written(table: CohortTable, trouble: str) -> str:
    """Writes the table; why not, "" where it is written. The run goes on: the place may be free next time."""
    try:
        table.write()
        return ""
    except InputError as error:
        if not trouble:
            say(f"Warning: {error}")
        return str(error)


def _tell(job: ScanJob, outcome: ScanOutcome, labels: Sequence[int]) -> None:
    volumes = ", ".join(
        f"{_label(result.label, result.name)} {result.volume_ml:{'.0f' if result.volume_ml >= 100 else '.3g'}} ml"
        for result in outcome.labels
    )
    typer.echo(f"{job.query} -> {job.labelmap} ({volumes}; {duration(outcome.seconds)}; {job.volumes.name})")
    for label, path in job.probability_files(labels).items():
        typer.echo(f"  probabilities of label {label}: {path}")


def _tell_failures(failures: list[tuple[ScanJob, ScanOutcome]], count: int) -> None:
    """The list at the end; the tracebacks of defects go into a file, for a report."""
    if not failures:
        return
    say(f"{len(failures)} of {count} scans failed:")
    for job, outcome in failures:
        typer.echo(f"  {job.query}: {outcome.error}", err=True)
    details = [f"{job.query}\n{outcome.details}" for job, outcome in failures if outcome.details]
    if details:
        with tempfile.NamedTemporaryFile("w", prefix="sdfsmis-", suffix=".log", delete=False, encoding="utf-8") as log:
            log.write("\n".join(details))
        say(f"Details in {log.name}.")


def _check_options(request: SegmentRequest) -> None:
    """Refuses options that contradict each other, before any file is opened."""
    if request.support_set is not None and (request.support is not None or request.mask is not None):
        raise InputError("Both --support-set and --support with --mask were given; give one of the two.")
    if request.support_set is None and (request.support is None or request.mask is None):
        missing = [f"--{name}" for name in ("support", "mask") if getattr(request, name) is None]
        raise InputError(
            f"{' and '.join(missing)} is missing; give --support SCAN with --mask LABELMAP, or --support-set FILE."
        )
    if request.support_set is not None and (request.slices or request.axis != "auto"):
        raise InputError("--slice and --axis choose slices of --mask; a support set holds its own, so leave them out.")
    if request.support_set is not None and not request.queries:
        raise InputError("A support set holds painted slices, no scan to segment; name one with --query.")
    request.run_options  # noqa: B018  (says which option is not accepted)
    if request.server is not None and (request.model != BUILT_IN or request.device != "auto"):
        raise InputError("--model and --device are those of the server; leave them out, or leave --server out.")
    if request.backend is not None:
        request.backend.client()  # says what is wrong with the address, the token or the certificate
    if request.server is None and (request.token is not None or request.server_certificate is not None):
        raise InputError("--token and --server-certificate belong to a server; name it with --server.")
    if request.jobs is not None and request.jobs < 1:
        raise InputError(f"--jobs {request.jobs} was given; 1 or more scans at a time are accepted.")
    if request.engine == "ray":
        from SDFSMISLib.cohort import ray_pool  # noqa: F401  (says so where Ray is not installed)

        if request.device not in ("auto", "cpu", "cuda"):
            raise InputError(f"Ray gives each worker its GPU; use auto, cuda or cpu in place of {request.device}.")


def _jobs(request: SegmentRequest) -> tuple[list[ScanJob], bool]:
    """All scans with the places of their results, and whether they are a cohort."""
    named = request.queries or ((request.support,) if request.support is not None else ())
    scans = find_scans(named, leave_out=request.mask)
    many = [path for path in named if is_cohort(path, scans)]
    for folder in many:
        if same_file(folder, Path(request.output)):
            raise InputError(
                f"The results would go among the scans in {folder}, and be taken for scans next time; name another "
                "folder as --output."
            )
    return plan_results(scans, request.output, request.probabilities), bool(many) or len(scans) > 1


def _not_done(jobs: list[ScanJob], table: CohortTable | None) -> list[ScanJob]:
    """The jobs that have no result yet; a labelmap appears last and whole, so one that is there is finished."""
    done = [job for job in jobs if job.labelmap.exists()]
    if done:
        say(f"{len(done)} of {len(jobs)} results exist and are skipped.")
    if done and table is not None:
        for job in done:
            table.keep(job)
        table.write()
    return [job for job in jobs if job not in done]


def _save_support(request: SegmentRequest, support: SupportSet) -> None:
    if request.save_support_set is not None:
        support.save(request.save_support_set)
        typer.echo(f"Wrote the support set {request.save_support_set}")


def _inputs(request: SegmentRequest) -> list[Path]:
    given = (request.support, request.mask, request.support_set)
    return [path for path in given if path is not None]


def _support(request: SegmentRequest) -> tuple[SupportSet, Volume | None]:
    """The painted slices, and the scan that they were painted on where it was read."""
    if request.support_set is not None:
        support = SupportSet.load(request.support_set)
        for label in request.labels:
            support.for_label(label)
        return support, None
    assert request.support is not None and request.mask is not None
    scan = Volume.read(request.support)
    labelmap = read_labelmap(request.mask)
    support = SupportSet.from_labelmap(
        scan,
        labelmap,
        label=request.labels or None,
        slices=request.slices or None,
        axis="auto" if request.axis == "auto" else int(request.axis),
    )
    left_out = [] if request.labels else sorted(set(label_values(labelmap.voxels)) - set(support.labels))
    if left_out:
        names = ", ".join(_label(label, labelmap.segment_names.get(label, "")) for label in left_out)
        say(f"Warning: nothing of {names} is painted on the chosen slices; it is left out.")
    return support, scan


def _described(support: SupportSet, labels: Sequence[int]) -> str:
    """One line: which slices are the support, of which labels."""
    places: dict[tuple[int, str], list[int]] = {}
    for piece in support.slices:
        places.setdefault((piece.plane.axis, piece.plane.name), []).append(piece.index)
    where = "; ".join(
        f"{'slice' if len(indices) == 1 else 'slices'} {_listed(sorted(indices))} of axis {axis} ({plane})"
        for (axis, plane), indices in places.items()
    )
    return f"Support: {where}; {', '.join(_label(label, support.names.get(label, '')) for label in labels)}."


def _label(label: int, name: str) -> str:
    return f"label {label} ({name})" if name else f"label {label}"


def _listed(numbers: Sequence[int], longest: int = 8) -> str:
    if len(numbers) <= longest:
        return ", ".join(map(str, numbers))
    return f"{', '.join(map(str, numbers[: longest - 1]))} … {numbers[-1]} ({len(numbers)} in all)"
