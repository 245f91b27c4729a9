"""What `sdfsmis segment` does: check the options, read the painted slices, segment the scans, report and write."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import typer

from SDFSMISLib.cohort.job import WORKER_IMPORTS, Backend, CohortSettings, ScanJob, ScanResult, ScanWorker, start_worker
from SDFSMISLib.cohort.pool import Finished, run_cohort
from SDFSMISLib.cohort.result_files import check_outputs, is_folder, plan_results, same_file
from SDFSMISLib.cohort.scan_list import find_scans, is_cohort
from SDFSMISLib.cohort.table import CohortTable
from SDFSMISLib.console import duration, print_status, progress, waiting
from SDFSMISLib.errors import Cancelled, InputError
from SDFSMISLib.examples import Library
from SDFSMISLib.images.labelmap import label_values
from SDFSMISLib.images.volume import Volume, read_labelmap
from SDFSMISLib.options import BUILT_IN
from SDFSMISLib.support import SupportSet

__all__ = ["SupportFiles", "backend_of", "passes_over_slices", "run_segment"]

TABLE = "cohort.csv"


@dataclass(frozen=True)
class SupportFiles:
    """What shows the structures: a scan and its mask or a saved support set, a library of finished scans, or both.

    Attributes:
        support_sets: a support set, a library, or one of each.
        labels: label values to segment; empty = all.
        slices: slices of the mask, as ``K`` along `axis` or as ``AXIS:K``; empty = all painted ones.

    Raises:
        InputError: for options that contradict each other.
    """

    scan: Path | None
    mask: Path | None
    support_sets: tuple[Path, ...] = ()
    labels: tuple[int, ...] = ()
    slices: tuple[str, ...] = ()
    axis: Literal["auto", "0", "1", "2"] = "auto"

    def __post_init__(self) -> None:
        files = [path for path in self.support_sets if not path.is_dir()]
        folders = [path for path in self.support_sets if path.is_dir()]
        for paths, kind in ((files, "support sets"), (folders, "libraries")):
            if len(paths) > 1:
                raise InputError(f"{len(paths)} {kind} were given ({paths[0]}, {paths[1]}); give one of them.")
        if files:
            if self.scan is not None or self.mask is not None:
                raise InputError(
                    "Both a support set and --support with --mask were given; give one of the two. A library can be "
                    "given with either."
                )
            if self.slices or self.axis != "auto":
                raise InputError(
                    "--slice and --axis choose slices of --mask; a support set holds its own, so leave them out."
                )
        elif (self.scan is None) != (self.mask is None) or not (folders or self.scan is not None):
            missing = [name for name, path in (("--support", self.scan), ("--mask", self.mask)) if path is None]
            raise InputError(
                f"{' and '.join(missing)} is missing; give --support SCAN with --mask LABELMAP, or --support-set FILE "
                "or LIBRARY."
            )
        elif self.mask is None and (self.slices or self.axis != "auto"):
            raise InputError("--slice and --axis choose slices of --mask; a library holds whole scans: leave them out.")

    @property
    def support_set(self) -> Path | None:
        """The file of painted slices."""
        return next((path for path in self.support_sets if not path.is_dir()), None)

    @property
    def library(self) -> Library | None:
        """The finished scans."""
        return next((Library(path) for path in self.support_sets if path.is_dir()), None)

    @property
    def paths(self) -> list[Path]:
        """The files and folders that were given."""
        return [path for path in (self.scan, self.mask, *self.support_sets) if path is not None]

    def read(self) -> tuple[SupportSet, Volume | None]:
        """The painted slices, none if there is only a library, and the scan that they were painted on if it had to be
        read.

        Raises:
            InputError: for a file that cannot be read, or a label that neither is painted nor in the library.
        """
        library = self.library
        if library is not None and self.support_set is None and self.mask is None:
            library.unified(self.labels or None)
            return SupportSet(()), None
        if self.support_set is not None:
            support = SupportSet.load(self.support_set)
            shown = {**support.names, **(library.unified(None, support.names)[0] if library is not None else {})}
            for label in self.labels:
                if label not in shown:
                    support.for_label(label)
            return support, None
        assert self.scan is not None and self.mask is not None
        scan = Volume.read(self.scan)
        labelmap = read_labelmap(self.mask)
        in_library = set(library.unified(None, labelmap.segment_names)[0]) if library is not None else set()
        painted = set(label_values(labelmap.voxels))
        support = SupportSet.from_labelmap(
            scan,
            labelmap,
            label=[label for label in self.labels if label in painted or label not in in_library] or None,
            slices=[_named_slice(text) for word in self.slices for text in word.strip(",").split(",")] or None,
            axis="auto" if self.axis == "auto" else int(self.axis),
        )
        left_out = [] if self.labels else sorted(set(label_values(labelmap.voxels)) - set(support.labels))
        if left_out:
            names = ", ".join(_label(label, labelmap.segment_names.get(label, "")) for label in left_out)
            print_status(f"Warning: nothing of {names} is painted on the chosen slices; it is left out.")
        return support, scan


def _named_slice(text: str) -> int | tuple[int, int]:
    """The slice that a word such as ``40`` or ``2:40`` names: an index, or (axis, index)."""
    axis, colon, index = text.rpartition(":")
    try:
        return (int(axis), int(index)) if colon else int(index)
    except ValueError:
        raise InputError(
            f"--slice {text} was given; a slice is named as 40, or with its axis as 2:40, several as 2:40,2:45."
        ) from None


def backend_of(
    server: str | None, token: str | None, certificate: Path | None, model: str, device: str
) -> Backend | None:
    """The backend that the options name; None = none.

    Raises:
        InputError: for options that contradict each other, or no valid address, token or certificate.
    """
    if server is None:
        if token is not None or certificate is not None:
            raise InputError("--token and --server-certificate belong to a server; name it with --server.")
        return None
    if model != BUILT_IN or device != "auto":
        raise InputError("--model and --device are those of the server; leave them out, or leave --server out.")
    backend = Backend(server, token, None if certificate is None else str(certificate))
    backend.client()
    return backend


def run_segment(
    painted: SupportFiles,
    settings: CohortSettings,
    queries: Sequence[Path],
    output: str,
    probabilities: str | None = None,
    *,
    save_support_set: Path | None = None,
    dry_run: bool = False,
    skip_existing: bool = False,
    workers: int | None = None,
    engine: Literal["process", "ray"] = "process",
) -> bool:
    """Segment scans by painted slices. All that can be checked is checked before the long work.

    Args:
        queries: scans, folders and lists of them; empty = the scan that was painted on.
        output, probabilities: a file, or a folder; a slash at the end means a folder.
        workers: scans at a time; None = 1, with ray as many as the cluster has room for.

    Returns:
        whether every scan has its result. In a cohort (several scans, or a folder or a list of them) a scan that fails
        is reported, and the others go on.

    Raises:
        InputError: for bad input; nothing is half-written then.
    """
    if painted.scan is None and not queries:
        raise InputError("A support set or a library holds no scan to segment; name one with --query.")
    library = painted.library
    if save_support_set is not None and painted.mask is None and painted.support_set is None:
        raise InputError("--save-support-set saves painted slices, and a library has none; leave it out.")
    if library is not None and settings.backend is not None:
        raise InputError(
            "A library is used on this computer only, so that finished scans stay here; leave --server out."
        )
    _check_workers(workers, engine, settings.device)
    for path in painted.paths:
        if not path.exists():
            raise InputError(f"There is no file or folder {path}.")
    jobs, cohort = _plan(queries or [path for path in [painted.scan] if path], painted.mask, output, probabilities)
    table = CohortTable(Path(output) / TABLE, jobs) if cohort and is_folder(output) and not dry_run else None
    if skip_existing:
        jobs = _not_done(jobs, table)
    if not jobs:
        return True
    support, scan = painted.read()
    names = library.unified(None, support.names)[0] if library is not None else {}
    labels = painted.labels or tuple(sorted({*support.labels, *names}))
    others = [path for path in (save_support_set, table.path if table else None) if path is not None]
    check_outputs(jobs, labels, [*painted.paths, *queries], others)
    if support.slices:
        print_status(_described(support, [label for label in labels if label in support.labels]))
    if library is not None:
        shown = [label for label in labels if label in names]
        if not shown:
            raise InputError(f"The library {library.folder} has none of the labels; leave it out, or name others.")
        print_status(
            f"Library: {len(library.names())} finished scans in {library.folder}; "
            f"{', '.join(_label(label, names[label]) for label in shown)}."
        )
        for label in shown:
            if label in support.labels and names[label] and not support.names.get(label):
                print_status(
                    f"Warning: label {label} of the mask has no name, and is taken for {names[label]} of the library; "
                    "if it is not, give it another value or a name."
                )
    early: dict[Path, Volume] = {}
    if scan is not None and same_file(jobs[0].query, painted.scan):
        early[jobs[0].query] = scan
    elif not cohort:
        early[jobs[0].query] = Volume.read(jobs[0].query)  # a bad scan is known before the model is loaded
    del scan
    count = min(workers or 1, len(jobs))
    finished: Iterator[Finished[ScanResult]]
    if dry_run or (engine == "process" and count == 1):
        with waiting(f"Asking {settings.backend.url}" if settings.backend else f"Loading the model {settings.model}"):
            worker = ScanWorker(settings, support, labels, library)
            seconds = worker.segmenter.seconds_per_slice()
        finished = _one_by_one(worker, seconds, jobs, early, cohort, dry_run)
    else:
        early.clear()  # the workers read for themselves
        folder = None if library is None else Library(library.folder.absolute())
        make_work = partial(start_worker, settings.absolute(), support, labels, library=folder)
        finished = _by_workers(jobs, make_work, count if engine == "process" else workers, engine, settings)
    if save_support_set is not None and not dry_run:
        support.save(save_support_set)
        typer.echo(f"Wrote the support set {save_support_set}")
    failures = _report(jobs, finished, labels, table, dry_run)
    _report_failures(failures, len(jobs))
    return not failures


def _check_workers(workers: int | None, engine: str, device: str) -> None:
    if workers is not None and workers < 1:
        raise InputError(f"--jobs {workers} was given; 1 or more scans at a time are accepted.")
    if engine == "ray":
        from SDFSMISLib.cohort import ray_pool  # noqa: F401  (raises an InputError if Ray is not installed)

        if device not in ("auto", "cpu", "cuda"):
            raise InputError(f"Ray gives each worker its GPU; use auto, cuda or cpu in place of {device}.")


def _plan(
    named: Sequence[Path], mask: Path | None, output: str, probabilities: str | None
) -> tuple[list[ScanJob], bool]:
    """All scans with the files of their results, and whether they are a cohort."""
    scans = find_scans(named, leave_out=mask)
    many = [path for path in named if is_cohort(path, scans)]
    for folder in many:
        if same_file(folder, Path(output)):
            raise InputError(
                f"The results would go among the scans in {folder}, and be taken for scans next time; name another "
                "folder as --output."
            )
    return plan_results(scans, output, probabilities), bool(many) or len(scans) > 1


def _not_done(jobs: list[ScanJob], table: CohortTable | None) -> list[ScanJob]:
    """The jobs that have no result yet; a labelmap appears last and whole, so an existing one is finished."""
    done = [job for job in jobs if job.labelmap.exists()]
    if done:
        print_status(f"{len(done)} of {len(jobs)} results exist and are skipped.")
    if done and table is not None:
        for job in done:
            table.keep(job)
        table.write()
    return [job for job in jobs if job not in done]


def _one_by_one(
    worker: ScanWorker, seconds: float, jobs: list[ScanJob], early: dict[Path, Volume], cohort: bool, dry_run: bool
) -> Generator[Finished[ScanResult], None, None]:
    """Segments the scans in this process, with a progress bar over the slices of each.

    Args:
        seconds: that a slice of a label takes.
        early: scans that were read already; they are taken out, since two at once would take twice the memory.
        cohort: whether an exception becomes the result of its scan.
    """
    for number, job in enumerate(jobs):
        try:
            result = _segment(worker, seconds, job, early, dry_run)
        except Cancelled:
            raise
        except Exception as error:
            if not cohort:
                raise
            result = ScanResult.failed(error)
        yield number, result


def _segment(worker: ScanWorker, seconds: float, job: ScanJob, early: dict[Path, Volume], dry_run: bool) -> ScanResult:
    query = early.pop(job.query, None) or Volume.read(job.query)
    slices = _announce(worker, seconds, job, query)
    if dry_run:
        typer.echo(f"{job.query} -> {job.labelmap}")
        return ScanResult()
    with progress(job.query.name, slices) as advance:
        return worker.segment(
            job,
            query,
            on_slice=lambda one: advance(one.finished, one.total, job.query.name),
            on_step=lambda step: advance(step.done, step.total, f"{job.query.name}: {step.message}"),
        )


def _announce(worker: ScanWorker, seconds: float, job: ScanJob, query: Volume) -> int:
    """Prints how many slices there are and how long they take; returns their number, of all labels."""
    support, count = worker.support, len(worker.labels)
    if worker.library is not None:
        print_status(f"{job.query.name}: {count} label{'s' * (count > 1)}, after finished scans are registered.")
        return 1
    scan_hash = query.content_hash()
    axes = support.axes_on(query, scan_hash)
    own = [painted for painted in support.slices if painted.plane.scan == scan_hash]
    slices = {
        axis: query.slice_count(axis) - len({one.index for one in own if one.plane.axis == axis}) for axis in axes
    }
    passes = sum(
        passes_over_slices(
            worker.settings.options.strategy,
            any(painted.mask(label).any() for painted in own),
            worker.segmenter.searches,
        )
        for label in worker.labels
    )
    along = " and ".join(
        f"{number} {query.geometry.plane(axis)} slices of axis {axis}" for axis, number in slices.items()
    )
    print_status(
        f"{job.query.name}: {along}, {count} label{'s' * (count > 1)}: about "
        f"{duration(passes * sum(slices.values()) * seconds)} on {worker.segmenter.device}."
    )
    return sum(slices.values()) * count


def passes_over_slices(strategy: str, painted: bool, searches: bool) -> int:
    """How often the networks see each slice of a label: twice if they first search for it.

    Args:
        painted: whether slices of the scan itself show the label.
        searches: whether the networks do the searching; if not, registration does.
    """
    return 2 if strategy == "propagate" and not painted and searches else 1


def _by_workers(
    jobs: list[ScanJob],
    make_work: Callable[[int, int], ScanWorker],
    workers: int | None,
    engine: Literal["process", "ray"],
    settings: CohortSettings,
) -> Generator[Finished[ScanResult], None, None]:
    """Segments the scans in worker processes or on Ray, with a progress bar over the scans."""
    where = "on Ray" if engine == "ray" else f"by {workers} processes"
    print_status(f"{len(jobs)} scan{'s' * (len(jobs) > 1)} {where}.")
    absolute, began = [job.absolute() for job in jobs], time.monotonic()
    if engine == "ray":
        from SDFSMISLib.cohort.ray_pool import run_on_ray

        finishing = run_on_ray(absolute, make_work, workers, gpus=settings.device != "cpu")
    else:
        imports = WORKER_IMPORTS if settings.backend is None else ()
        finishing = run_cohort(absolute, make_work, workers or 1, imports)
    with closing(finishing) as run:
        for done in range(len(jobs)):
            left = (time.monotonic() - began) * (len(jobs) - done) / done if done else None
            text = "scans" if left is None else f"scans, about {duration(left)} left"
            with progress(text, len(jobs)) as advance:  # one bar for each scan: nothing is printed beside a bar
                advance(done)
                finished = next(run)
            yield finished


def _report(
    jobs: list[ScanJob],
    run: Generator[Finished[ScanResult], None, None],
    labels: Sequence[int],
    table: CohortTable | None,
    dry_run: bool,
) -> list[tuple[ScanJob, ScanResult]]:
    """Prints each finished scan, and keeps it in the table; returns those that failed."""
    failures = []
    problem = ""
    with closing(run):
        for number, result in run:
            job = jobs[number]
            if isinstance(result, InputError):
                result = ScanResult.failed(result)
            for warning in result.warnings:
                print_status(f"Warning: {warning}")
            if result.error:
                failures.append((job, result))
                print_status(f"Failed: {job.query}: {result.error}")
            elif not dry_run:
                _print(job, result, labels)
            if table is not None:
                table.add(job, result)
                problem = _written(table, problem)
    if problem:
        raise InputError(problem)
    return failures


def _written(table: CohortTable, problem: str) -> str:
    """Writes the table; returns why not, or "". The run goes on: the disk may have room next time."""
    try:
        table.write()
        return ""
    except InputError as error:
        if not problem:
            print_status(f"Warning: {error}")
        return str(error)


def _print(job: ScanJob, result: ScanResult, labels: Sequence[int]) -> None:
    volumes = ", ".join(
        f"{_label(label.label, label.name)} {label.volume_ml:{'.0f' if label.volume_ml >= 100 else '.3g'}} ml"
        for label in result.labels
    )
    typer.echo(f"{job.query} -> {job.labelmap} ({volumes}; {duration(result.seconds)}; {job.volumes.name})")
    for label, path in job.probability_files(labels).items():
        typer.echo(f"  probabilities of label {label}: {path}")


def _report_failures(failures: list[tuple[ScanJob, ScanResult]], count: int) -> None:
    """The list at the end; tracebacks go into a file, for a report."""
    if not failures:
        return
    print_status(f"{len(failures)} of {count} scans failed:")
    for job, result in failures:
        typer.echo(f"  {job.query}: {result.error}", err=True)
    details = [f"{job.query}\n{result.details}" for job, result in failures if result.details]
    if details:
        with tempfile.NamedTemporaryFile("w", prefix="sdfsmis-", suffix=".log", delete=False, encoding="utf-8") as log:
            log.write("\n".join(details))
        print_status(f"Details in {log.name}.")


def _described(support: SupportSet, labels: Sequence[int]) -> str:
    """One line: which slices are the support, of which labels."""
    places: dict[tuple[int, str], list[int]] = {}
    for painted in support.slices:
        places.setdefault((painted.plane.axis, painted.plane.name), []).append(painted.index)
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
