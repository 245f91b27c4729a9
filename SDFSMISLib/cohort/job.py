"""One scan of a cohort: its files, the settings it shares with the others, the worker that segments it, its result.

All but the worker can be sent to another process, so that the same code segments a scan in this process, in a worker
process, and on another machine.
"""

from __future__ import annotations

import math
import os
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from SDFSMISLib.client import BackendError, Client
from SDFSMISLib.errors import Cancelled, InputError
from SDFSMISLib.examples import Library
from SDFSMISLib.images.files import written_extension
from SDFSMISLib.images.postprocess import Postprocessing
from SDFSMISLib.images.volume import Volume
from SDFSMISLib.inference.output import provenance, write_segmentation, written_files
from SDFSMISLib.options import BUILT_IN, RunOptions
from SDFSMISLib.support import SupportSet

if TYPE_CHECKING:
    from SDFSMISLib.inference.atlas import AtlasStep, Prior
    from SDFSMISLib.inference.remote import RemoteSegmenter
    from SDFSMISLib.inference.segmentation import Segmentation
    from SDFSMISLib.inference.segmenter import Segmenter
    from SDFSMISLib.slices import SliceResult

__all__ = [
    "WORKER_IMPORTS",
    "Backend",
    "CohortSettings",
    "LabelResult",
    "ScanJob",
    "ScanResult",
    "ScanWorker",
    "start_worker",
]

PACKAGE = Path(__file__).resolve().parent.parent
WORKER_IMPORTS = ("SDFSMISLib.cohort.job", "SDFSMISLib.inference.segmenter")  # of a worker without a backend


@dataclass(frozen=True)
class ScanJob:
    """A scan to segment, and where its results go.

    Attributes:
        query: file of the scan, or its DICOM folder.
        labelmap: file of its labelmap.
        probabilities: file that the probabilities of its labels are named after; None = none are written.

    >>> job = ScanJob(Path("ct.nii"), Path("out/ct_seg.nii.gz"), Path("out/ct_probability.nii.gz"))
    >>> job.volumes.name, job.probability_files([1])[1].name, job.probability_files([1, 2])[2].name
    ('ct_seg_volumes.csv', 'ct_probability.nii.gz', 'ct_probability_label2.nii.gz')
    """

    query: Path
    labelmap: Path
    probabilities: Path | None = None

    @property
    def volumes(self) -> Path:
        """The table of volumes that comes beside the labelmap."""
        return next(file for file in written_files(self.labelmap) if file.suffix == ".csv")

    def probability_files(self, labels: Sequence[int]) -> dict[int, Path]:
        """The file of each label; a single label has the file that was named, several have their number in it."""
        if self.probabilities is None:
            return {}
        if len(labels) == 1:
            return {labels[0]: self.probabilities}
        extension = written_extension(self.probabilities)
        stem = self.probabilities.name[: -len(extension)]
        return {label: self.probabilities.with_name(f"{stem}_label{label}{extension}") for label in labels}

    def absolute(self) -> ScanJob:
        """The same for a process that works in another folder."""
        soft = None if self.probabilities is None else Path(os.path.abspath(self.probabilities))
        return ScanJob(Path(os.path.abspath(self.query)), Path(os.path.abspath(self.labelmap)), soft)


@dataclass(frozen=True)
class LabelResult:
    """Volume of one label, and mean and minimum of the certainty of its slices (0 to 1; NaN if none was computed)."""

    label: int
    name: str
    volume_ml: float
    voxels: int
    certainty_mean: float
    certainty_min: float


@dataclass(frozen=True)
class ScanResult:
    """What became of a scan.

    Attributes:
        labels: one for each label; empty if the scan failed.
        seconds: wall-clock time of the segmentation.
        agreement: with a library, how well its examples agree with all of them on this scan: the mean Dice
            coefficient, 0 to 1 (see `SDFSMISLib.inference.atlas.Agreement`); NaN for fewer than two.
        warnings: what a user should know, one sentence each.
        error: why the scan failed, one sentence; "" if it did not.
        details: traceback of an unexpected error, for a report.
    """

    labels: tuple[LabelResult, ...] = ()
    seconds: float = 0.0
    agreement: float = math.nan
    warnings: tuple[str, ...] = ()
    error: str = ""
    details: str = ""

    @classmethod
    def of(cls, segmentation: Segmentation, prior: Prior | None = None) -> ScanResult:
        """The figures of a segmentation, and of the prior that it was made with."""
        volumes, names = segmentation.volumes_ml(), segmentation.labelmap.segment_names
        labels = []
        for label, voxels in segmentation.voxel_counts().items():
            certainty = segmentation.certainty[label]
            known = certainty[~np.isnan(certainty)]
            mean, least = (float(known.mean()), float(known.min())) if known.size else (math.nan, math.nan)
            labels.append(LabelResult(label, names.get(label, ""), volumes[label], voxels, mean, least))
        agreed = [] if prior is None else [one.dice for one in prior.agreement if not math.isnan(one.dice)]
        agreement = float(np.mean(agreed)) if agreed else math.nan
        return cls(tuple(labels), segmentation.seconds, agreement, tuple(segmentation.warnings))

    @classmethod
    def failed(cls, error: Exception) -> ScanResult:
        """The result of a scan that an exception stopped: a sentence, and for an unexpected error its traceback.

        >>> ScanResult.failed(InputError("There is no such scan.")).error
        'There is no such scan.'
        """
        text = " ".join(str(error).split())
        if isinstance(error, (InputError, BackendError)):
            return cls(error=text)
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return cls(error=f"The memory does not suffice ({text}); use fewer jobs, or another device.")
        return cls(error=f"{type(error).__name__}: {text}", details="".join(traceback.format_exception(error)))


@dataclass(frozen=True)
class Backend:
    """Address and access of a backend, for the `Client` of each worker."""

    url: str
    token: str | None = None
    ca_file: str | None = None

    def client(self) -> Client:
        """Its client, which has sent nothing yet.

        Raises:
            InputError: for an invalid address, token or certificate.
        """
        return Client(self.url, self.token, ca_file=self.ca_file)


@dataclass(frozen=True)
class CohortSettings:
    """How all scans of a cohort are segmented.

    Attributes:
        model, device: see `Segmenter.from_pretrained`; not used with a backend.
        backend: segment there instead of in this program.
        command: the command line, for the provenance of the results.
    """

    options: RunOptions = RunOptions()
    postprocessing: Postprocessing = Postprocessing()
    model: str = BUILT_IN
    device: str = "auto"
    backend: Backend | None = None
    command: str = ""

    @property
    def provenance(self) -> dict[str, object]:
        """What a result depends on beside model and inputs."""
        return {
            **self.options.settings,
            "smooth": f"{self.postprocessing.smooth_mm:g} mm",
            "keep-largest": self.postprocessing.keep_largest,
            "fill-holes": "on" if self.postprocessing.fill_holes else "off",
        }

    def absolute(self) -> CohortSettings:
        """The same for a process that works in another folder."""
        backend = self.backend
        if backend is not None and backend.ca_file is not None:
            backend = replace(backend, ca_file=os.path.abspath(backend.ca_file))
        model = os.path.abspath(self.model) if os.path.isdir(self.model) else self.model
        return replace(self, model=model, backend=backend)


class ScanWorker:
    """Segments scan after scan by one support set; the model is loaded once.

    Args:
        support: painted slices; may have none if there is a library.
        labels: label values to segment.
        library: finished scans that show where structures lie; not with a backend.

    Raises:
        InputError: if the model or the device is missing.
        BackendError: if the backend is unreachable, or refuses.
    """

    def __init__(
        self, settings: CohortSettings, support: SupportSet, labels: Sequence[int], library: Library | None = None
    ) -> None:
        self.settings, self.support, self.labels, self.library = settings, support, labels, library
        self.segmenter: Segmenter | RemoteSegmenter
        if settings.backend is not None:
            from SDFSMISLib.inference.remote import RemoteSegmenter

            self.segmenter = RemoteSegmenter(settings.backend.client(), on_retry=_warn_of_retry).connected()
        else:
            from SDFSMISLib.inference.segmenter import Segmenter

            self.segmenter = Segmenter.from_pretrained(settings.model, settings.device)

    def __call__(self, job: ScanJob, cancel: Callable[[], bool]) -> ScanResult:
        """Read a scan, segment it and write its results; errors and warnings become part of what is returned.

        Raises:
            Cancelled: if `cancel` returned True; nothing is written then.
        """
        caught: list[str] = []
        try:
            with _recorded(caught):
                result = self.segment(job, Volume.read(job.query), cancel=cancel)
        except Cancelled:
            raise
        except Exception as error:
            result = ScanResult.failed(error)
        return replace(result, warnings=(*caught, *result.warnings))

    def segment(
        self,
        job: ScanJob,
        query: Volume,
        *,
        on_slice: Callable[[SliceResult], None] | None = None,
        on_step: Callable[[AtlasStep], None] | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> ScanResult:
        """Segment `query`, the scan of `job`, and write its results, all of them or none.

        Args:
            on_slice: called after each finished slice.
            on_step: called with the progress of registering finished scans.
            cancel: returns True to stop.

        Raises:
            InputError: see `Segmenter.segment` and `write_segmentation`.
            Cancelled: if `cancel` returned True.
        """
        settings = self.settings
        began = time.monotonic()
        prior, labels = None, list(self.labels)
        if self.library is not None:
            prior, labels = self._prior(self.library, query, on_step, cancel)
        registering = time.monotonic() - began
        by_examples: dict[str, Any] = {} if prior is None else {"prior": prior}  # a backend's segmenter takes none
        segmentation = self.segmenter.segment(
            query,
            self.support,
            **asdict(settings.options),
            **by_examples,
            labels=labels,
            postprocessing=settings.postprocessing,
            on_slice=on_slice,
            cancel=cancel,
        )
        segmentation.seconds += registering
        metadata = provenance(
            segmentation,
            self.support,
            examples=[] if prior is None else [one.digest for one in prior.agreement],
            model=self.segmenter.name,
            weights=self.segmenter.weights,
            settings=settings.provenance,
            command=settings.command,
        )
        files = {label: path for label, path in job.probability_files(self.labels).items() if label in labels}
        write_segmentation(segmentation, job.labelmap, metadata, files)
        return ScanResult.of(segmentation, prior)

    def _prior(
        self,
        library: Library,
        query: Volume,
        on_step: Callable[[AtlasStep], None] | None,
        cancel: Callable[[], bool] | None,
    ) -> tuple[Prior | None, list[int]]:
        """Where labels of a library lie in a scan, and the labels that can be segmented.

        Warns of labels that are neither painted nor in an example of another scan.

        Raises:
            InputError: if that holds for all of them.
        """
        from SDFSMISLib.inference.atlas import prior_of

        own = query.content_hash()
        names, examples = library.unified(None, self.support.names)
        shown = {label for one in examples if one.scan != own for label in one.label_values}
        known = [label for label in self.labels if label in shown]
        labels = [label for label in self.labels if label in shown or label in self.support.labels]
        missing = [label for label in self.labels if label not in labels]
        if not labels:
            raise InputError("The library has examples of this scan only; add one of another scan, or paint a slice.")
        for label in missing:
            warnings.warn(
                f"Label {label} ({names[label]}) is in an example of this scan only, and left out; add one of another "
                "scan, or paint a slice.",
                stacklevel=2,
            )
        return (prior_of(query, examples, known, on_step=on_step, cancel=cancel) if known else None), labels


def start_worker(
    settings: CohortSettings,
    support: SupportSet,
    labels: Sequence[int],
    place: int,
    of: int,
    library: Library | None = None,
) -> ScanWorker:
    """A worker in a process of its own, number `place` of the `of` on this machine: it gets its share of the
    processors, and one of several GPUs.

    Raises:
        InputError: see `ScanWorker`.
    """
    warnings.simplefilter("ignore")  # those of a scan are in its result
    if settings.backend is None:
        from SDFSMISLib.model.memory import collect_rarely, keep_freed_memory

        keep_freed_memory()
        collect_rarely()
        import cv2
        import torch

        threads = max(1, _processors() // of)
        torch.set_num_threads(min(threads, torch.get_num_threads()))
        cv2.setNumThreads(min(threads, cv2.getNumThreads()))
        if library is not None:
            from SimpleITK import ProcessObject

            ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
        gpus = torch.cuda.device_count()
        if of > 1 and gpus > 1 and settings.device in ("auto", "cuda"):
            settings = replace(settings, device=f"cuda:{place % gpus}")
    return ScanWorker(settings, support, labels, library)


def _warn_of_retry(error: BackendError) -> None:
    warnings.warn(f"{str(error).partition('. ')[0].rstrip('.')}; it is tried again.", stacklevel=2)


@contextmanager
def _recorded(texts: list[str]) -> Iterator[None]:
    """Within it the texts of this package's warnings are appended to `texts`."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            yield
        finally:
            own = (one for one in caught if issubclass(one.category, UserWarning))
            texts += [str(one.message) for one in own if Path(one.filename).resolve().is_relative_to(PACKAGE)]


def _processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
