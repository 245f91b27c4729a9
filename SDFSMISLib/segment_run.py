"""What `sdfsmis segment` does: checks what was asked for, reads it, segments, and writes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from SDFSMISLib.console import duration, progress, say, waiting
from SDFSMISLib.errors import InputError
from SDFSMISLib.imagefile import written_extension
from SDFSMISLib.labelmap import label_values
from SDFSMISLib.support import SupportSet
from SDFSMISLib.volume import Volume, read_labelmap

if TYPE_CHECKING:
    from SDFSMISLib.inference import Segmentation, Segmenter

__all__ = ["SegmentRequest", "run_segment"]

FOLDER_EXTENSION = ".nii.gz"  # of results that go into a folder
PROVENANCE_MARK = b'"sdfsmis_version"'  # in each JSON file that comes beside a result
SCAN_EXTENSIONS = (".nii.gz", ".seg.nrrd")  # of two parts, so that Path.stem would leave one


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
    model: str = "built-in"
    device: str = "auto"
    keep_largest: Literal["off", "slice", "volume"] = "off"
    smooth_mm: float = 0.0
    fill_holes: bool = False
    skip_existing: bool = False
    dry_run: bool = False

    @property
    def settings(self) -> dict[str, object]:
        """What a result depends on beside its inputs, for its provenance."""
        return {
            "strategy": self.strategy,
            "region": self.region,
            "threshold": self.threshold,
            "smooth": f"{self.smooth_mm:g} mm",
            "keep-largest": self.keep_largest,
            "fill-holes": "on" if self.fill_holes else "off",
        }


@dataclass(frozen=True)
class _Job:
    """A scan to segment, its result, and the file that its probabilities are named after."""

    query: Path
    labelmap: Path
    probabilities: Path | None

    def probability_files(self, labels: Sequence[int]) -> dict[int, Path]:
        """The file of each label; a single label has the file that was named, several have their number in it."""
        if self.probabilities is None:
            return {}
        if len(labels) == 1:
            return {labels[0]: self.probabilities}
        extension = written_extension(self.probabilities)
        stem = self.probabilities.name[: -len(extension)]
        return {label: self.probabilities.with_name(f"{stem}_label{label}{extension}") for label in labels}


def run_segment(request: SegmentRequest, command: str) -> None:
    """Does what the request asks for; ``command``, the command line, goes into the provenance.

    All that can be checked is checked before the long work. Of several scans one that cannot be read is said and passed
    over, and the run fails at its end. Raises :class:`InputError` for bad input, with nothing half-written.
    """
    from SDFSMISLib.inference.postprocess import Postprocessing

    _check_options(request)
    Postprocessing(request.smooth_mm, request.fill_holes, request.keep_largest)
    jobs = _jobs(request)
    for path in [*_inputs(request), *(job.query for job in jobs)]:
        if not path.exists():
            raise InputError(f"There is no file or folder {path}.")
    if request.skip_existing:
        jobs = _not_done(jobs)
        if not jobs:
            return
    support, scan = _support(request)
    labels = request.labels or support.labels
    _check_outputs(request, jobs, labels)
    say(_described(support, labels))
    first = scan if scan is not None and _same_file(jobs[0].query, request.support) else None
    if first is None and len(jobs) == 1:
        first = Volume.read(jobs[0].query)  # a bad scan is known before the model is loaded
    del scan
    with waiting(f"Loading the model {request.model}"):
        from .inference import Segmenter

        segmenter = Segmenter.from_pretrained(request.model, request.device)
        seconds = segmenter.seconds_per_slice()
    if request.save_support_set is not None and not request.dry_run:
        support.save(request.save_support_set)
        typer.echo(f"Wrote the support set {request.save_support_set}")
    failed: list[str] = []
    for number, job in enumerate(jobs):
        try:
            query = first if number == 0 and first is not None else Volume.read(job.query)
        except InputError as error:
            if len(jobs) == 1:
                raise
            say(f"Error: {error}")
            failed.append(job.query.name)
            continue
        _run_job(request, segmenter, support, job, query, labels, seconds, command)
        first = None
        del query  # two scans at once would take twice the memory
    if failed:
        raise InputError(
            f"{len(failed)} of {len(jobs)} scans could not be read and have no result: {', '.join(failed)}."
        )


def _run_job(
    request: SegmentRequest,
    segmenter: Segmenter,
    support: SupportSet,
    job: _Job,
    query: Volume,
    labels: Sequence[int],
    seconds: float,
    command: str,
) -> None:
    from SDFSMISLib.inference.output import provenance, write_segmentation
    from SDFSMISLib.inference.postprocess import Postprocessing
    from SDFSMISLib.inference.segmenter import slice_axis
    from SDFSMISLib.model.digest import weights_digest

    scan_hash = query.content_hash()
    axis = slice_axis(query, support, scan_hash)
    painted = {piece.index for piece in support.slices if piece.scan == scan_hash and piece.axis == axis}
    slices = query.slice_count(axis) - len(painted)
    passes = 2 if request.strategy == "propagate" and not painted else 1  # one to find the structure
    say(
        f"{job.query.name}: {slices} {query.geometry.plane(axis)} slices of axis {axis}, {len(labels)} "
        f"label{'s' * (len(labels) > 1)}: about {duration(passes * slices * len(labels) * seconds)} on "
        f"{segmenter.pipeline.device}."
    )
    if request.dry_run:
        typer.echo(f"{job.query} -> {job.labelmap}")
        return
    with progress(job.query.name, slices * len(labels)) as advance:
        segmentation = segmenter.segment(
            query,
            support,
            request.strategy,
            axis=axis,
            labels=labels,
            region=request.region,
            threshold=request.threshold,
            postprocessing=Postprocessing(request.smooth_mm, request.fill_holes, request.keep_largest),
            on_slice=lambda result: advance(result.finished, result.total),
        )
    for warning in segmentation.warnings:
        say(f"Warning: {warning}")
    weights = weights_digest(segmenter.pipeline)
    metadata = provenance(
        segmentation, support, model=segmenter.name, weights=weights, settings=request.settings, command=command
    )
    files = job.probability_files(labels)
    volumes = write_segmentation(segmentation, job.labelmap, metadata, files)
    typer.echo(
        f"{job.query} -> {job.labelmap} ({_volumes(segmentation)}; {duration(segmentation.seconds)}; {volumes.name})"
    )
    for label, path in files.items():
        typer.echo(f"  probabilities of label {label}: {path}")


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
    if not 0 < request.threshold < 1:
        raise InputError(
            f"The threshold {request.threshold:g} was given; a probability between 0 and 1 is accepted, 0.5 by default."
        )


def _jobs(request: SegmentRequest) -> list[_Job]:
    """Where each scan's result goes."""
    queries = request.queries or ((request.support,) if request.support is not None else ())
    into_folder = _is_folder(request.output)
    if len(queries) > 1 and not into_folder:
        raise InputError(f"{len(queries)} scans cannot go into one file {request.output}; name a folder as --output.")
    into_probability_folder = request.probabilities is not None and _is_folder(request.probabilities)
    if len(queries) > 1 and request.probabilities is not None and not into_probability_folder:
        raise InputError(
            f"The probabilities of {len(queries)} scans cannot go into one file {request.probabilities}; name a folder."
        )
    jobs = []
    for query in queries:
        name = _scan_name(query)
        labelmap = Path(request.output)
        if into_folder:
            labelmap /= f"{name}_seg{FOLDER_EXTENSION}"
        probabilities = Path(request.probabilities) if request.probabilities is not None else None
        if probabilities is not None and into_probability_folder:
            probabilities /= f"{name}_probability{FOLDER_EXTENSION}"
        for path in (labelmap, *([probabilities] if probabilities else ())):
            written_extension(path)
        jobs.append(_Job(query, labelmap, probabilities))
    return jobs


def _is_folder(output: str) -> bool:
    """Whether an output means a folder: one that is there, a slash at the end, or a name without an extension."""
    return output.endswith(("/", os.sep)) or Path(output).is_dir() or not Path(output).suffix


def _not_done(jobs: list[_Job]) -> list[_Job]:
    """The jobs that have no result yet; a labelmap appears last and whole, so one that is there is finished."""
    missing = [job for job in jobs if not job.labelmap.exists()]
    if len(missing) < len(jobs):
        say(f"{len(jobs) - len(missing)} of {len(jobs)} results exist and are skipped.")
    return missing


def _inputs(request: SegmentRequest) -> list[Path]:
    given = (request.support, request.mask, request.support_set)
    return [path for path in given if path is not None]


def _check_outputs(request: SegmentRequest, jobs: list[_Job], labels: Sequence[int]) -> None:
    """Refuses results that cannot be written, would replace what is read, or would replace each other."""
    from SDFSMISLib.inference.output import check_writable, written_files

    inputs = [*_inputs(request), *(job.query for job in jobs)]
    outputs = [request.save_support_set] if request.save_support_set is not None else []
    for job in jobs:
        outputs += written_files(job.labelmap, list(job.probability_files(labels).values()))
    seen: set[Path] = set()
    for output in outputs:
        for path in inputs:
            if _same_file(output, path):
                raise InputError(f"{output} would replace an input of this run; give the result another name.")
        if (place := output.resolve()) in seen:
            raise InputError(f"Two results of this run would both be written to {output}; give them different names.")
        seen.add(place)
    for output in outputs:
        check_writable(output)
        if output.suffix == ".json" and output.exists() and PROVENANCE_MARK not in output.read_bytes():
            raise InputError(f"{output} exists and is of another program; give the result another name.")


def _same_file(one: Path, other: Path | None) -> bool:
    if other is None:
        return False
    if one.exists() and other.exists():
        return one.samefile(other)
    return one.resolve() == other.resolve()


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


def _scan_name(path: Path) -> str:
    """The name of a scan's file or folder without its extension."""
    name = path.resolve().name
    for extension in SCAN_EXTENSIONS:
        if name.lower().endswith(extension):
            return name[: -len(extension)]
    return name if path.is_dir() else Path(name).stem


def _described(support: SupportSet, labels: Sequence[int]) -> str:
    """One line: which slices are the support, of which labels."""
    places: dict[tuple[int, str], list[int]] = {}
    for piece in support.slices:
        places.setdefault((piece.axis, piece.plane), []).append(piece.index)
    where = "; ".join(
        f"{'slice' if len(indices) == 1 else 'slices'} {_listed(sorted(indices))} of axis {axis} ({plane})"
        for (axis, plane), indices in places.items()
    )
    return f"Support: {where}; {', '.join(_label(label, support.names.get(label, '')) for label in labels)}."


def _volumes(segmentation: Segmentation) -> str:
    names = segmentation.labelmap.segment_names
    return ", ".join(
        f"{_label(label, names.get(label, ''))} {volume:{'.0f' if volume >= 100 else '.3g'}} ml"
        for label, volume in segmentation.volumes_ml().items()
    )


def _label(label: int, name: str) -> str:
    return f"label {label} ({name})" if name else f"label {label}"


def _listed(numbers: Sequence[int], longest: int = 8) -> str:
    if len(numbers) <= longest:
        return ", ".join(map(str, numbers))
    return f"{', '.join(map(str, numbers[: longest - 1]))} … {numbers[-1]} ({len(numbers)} in all)"
