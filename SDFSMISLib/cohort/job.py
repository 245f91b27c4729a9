"""One scan of a run: where it is and where its results go, how it is segmented, and what came of it.

All of it can be sent to another process, so that a scan is done by the same code here, in a worker process, and on
another machine.
"""

from __future__ import annotations

import math
import os
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from SDFSMISLib.client import BackendError, Client
from SDFSMISLib.errors import Cancelled, InputError
from SDFSMISLib.images.files import written_extension
from SDFSMISLib.images.postprocess import Postprocessing
from SDFSMISLib.images.volume import Volume
from SDFSMISLib.inference.output import provenance, write_segmentation, written_files
from SDFSMISLib.options import BUILT_IN, RunOptions
from SDFSMISLib.support import SupportSet

if TYPE_CHECKING:
    from SDFSMISLib.inference.remote import RemoteSegmenter
    from SDFSMISLib.inference.segmentation import Segmentation
    from SDFSMISLib.inference.segmenter import Segmenter
    from SDFSMISLib.slices import SliceResult

__all__ = ["Backend", "LabelResult", "ScanJob", "ScanOptions", "ScanOutcome", "ScanWorker", "failed"]

PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class ScanJob:
    """A scan to segment, its labelmap, and the file that its probabilities are named after (None = they are not asked
    for)."""

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
    """What came out for one label: its volume, and the mean and the least of its slices' certainty (0 to 1; NaN where
    no slice was computed)."""

    label: int
    name: str
    volume_ml: float
    voxels: int
    certainty_mean: float
    certainty_min: float


@dataclass(frozen=True)
class ScanOutcome:
    """What came of a scan.

    Attributes:
        labels: the results; empty where it failed.
        seconds: wall-clock time of the segmentation.
        warnings: what a user should know, one sentence each.
        error: why it failed, one sentence; "" where it did not.
        details: of a defect the traceback, for a report.
    """

    labels: tuple[LabelResult, ...] = ()
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    error: str = ""
    details: str = ""


@dataclass(frozen=True)
class Backend:
    """A backend to segment on; see `Client`."""

    url: str
    token: str | None = None
    ca_file: str | None = None

    def client(self) -> Client:
        """Its client, which sends nothing yet.

        Raises:
            InputError: for what is no address, no token or no certificate.
        """
        return Client(self.url, self.token, ca_file=self.ca_file)


@dataclass(frozen=True, eq=False)
class ScanOptions:
    """How all scans of a run are segmented; see `Segmenter.segment` and, for `model` and `device`,
    `Segmenter.from_pretrained`. `command`, the command line, goes into the provenance. With a `backend` that one's
    model and device are used."""

    support: SupportSet
    labels: tuple[int, ...]
    options: RunOptions = RunOptions()
    postprocessing: Postprocessing = Postprocessing()
    model: str = BUILT_IN
    device: str = "auto"
    command: str = ""
    backend: Backend | None = None

    @property
    def settings(self) -> dict[str, object]:
        """What a result depends on beside its inputs, for its provenance."""
        clean = self.postprocessing
        return {
            "strategy": self.options.strategy,
            "region": self.options.region,
            "threshold": self.options.threshold,
            "smooth": f"{clean.smooth_mm:g} mm",
            "keep-largest": clean.keep_largest,
            "fill-holes": "on" if clean.fill_holes else "off",
        }

    def absolute(self) -> ScanOptions:
        """The same for a process that works in another folder."""
        backend = self.backend
        if backend is not None and backend.ca_file is not None:
            backend = replace(backend, ca_file=os.path.abspath(backend.ca_file))
        model = os.path.abspath(self.model) if os.path.isdir(self.model) else self.model
        return replace(self, model=model, backend=backend)

    def segmenter(self) -> Segmenter | RemoteSegmenter:
        """What segments the scans of this run.

        Raises:
            InputError: where the model or the device is not there.
            BackendError: where the backend is not there, or refuses.
        """
        if self.backend is not None:
            from SDFSMISLib.inference.remote import RemoteSegmenter

            there = self.backend
            return RemoteSegmenter(there.client(), on_retry=_tell_trouble).checked()
        from SDFSMISLib.inference.segmenter import Segmenter

        return Segmenter.from_pretrained(self.model, self.device)

    def worker(self, place: int, of: int) -> ScanWorker:
        """A worker in a process of its own, number `place` of the `of` on this machine: it has its share of the
        processors, and where there are several GPUs one of them.

        Raises:
            InputError: as `segmenter`.
        """
        warnings.simplefilter("ignore")  # what a scan's own are, its outcome tells
        if self.backend is not None:
            return ScanWorker(self)
        import cv2
        import torch

        from SDFSMISLib.model.cpu import keep_freed_memory

        keep_freed_memory()
        threads = max(1, _processors() // of)
        torch.set_num_threads(min(threads, torch.get_num_threads()))
        cv2.setNumThreads(min(threads, cv2.getNumThreads()))
        device, gpus = self.device, torch.cuda.device_count()
        if of > 1 and gpus > 1 and device in ("auto", "cuda"):
            device = f"cuda:{place % gpus}"
        return ScanWorker(replace(self, device=device))


class ScanWorker:
    """Segments scan after scan; the model is loaded once."""

    def __init__(self, options: ScanOptions) -> None:
        """
        Raises:
            InputError: where the model or the device is not there.
            BackendError: where the backend is not there, or refuses.
        """
        self.options = options
        self.segmenter = options.segmenter()

    def __call__(self, job: ScanJob, cancel: Callable[[], bool]) -> ScanOutcome:
        """Read a scan, segment it and write its results; whatever fails is in the outcome, and so are the warnings.

        Raises:
            Cancelled: where `cancel` said so; nothing is written then.
        """
        told: list[str] = []
        try:
            with _recorded(told):
                outcome = self.segment(job, Volume.read(job.query), cancel=cancel)
        except Cancelled:
            raise
        except Exception as error:
            outcome = failed(error)
        return replace(outcome, warnings=(*told, *outcome.warnings))

    def segment(
        self,
        job: ScanJob,
        query: Volume,
        *,
        on_slice: Callable[[SliceResult], None] | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> ScanOutcome:
        """Segment `query`, the scan of `job`, and write its results, all of them or none.

        Raises:
            InputError: see `Segmenter.segment` and `write_segmentation`.
            Cancelled: where `cancel` said so.
        """
        asked = self.options
        segmentation = self.segmenter.segment(
            query,
            asked.support,
            asked.options,
            labels=asked.labels,
            postprocessing=asked.postprocessing,
            on_slice=on_slice,
            cancel=cancel,
        )
        metadata = provenance(
            segmentation,
            asked.support,
            model=self.segmenter.name,
            weights=self.segmenter.weights,
            settings=asked.settings,
            command=asked.command,
        )
        write_segmentation(segmentation, job.labelmap, metadata, job.probability_files(asked.labels))
        return ScanOutcome(_results(segmentation), segmentation.seconds, tuple(segmentation.warnings))


def _tell_trouble(error: BackendError) -> None:
    warnings.warn(f"{str(error).partition('. ')[0].rstrip('.')}; it is tried again.", stacklevel=2)


def failed(error: Exception) -> ScanOutcome:
    """The outcome of a scan that an exception stopped: bad input and too little memory in one sentence, a defect with
    its traceback."""
    text = " ".join(str(error).split())
    if isinstance(error, (InputError, BackendError)):
        return ScanOutcome(error=text)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return ScanOutcome(error=f"The memory does not suffice ({text}); use fewer jobs, or another device.")
    return ScanOutcome(error=f"{type(error).__name__}: {text}", details="".join(traceback.format_exception(error)))


def _results(segmentation: Segmentation) -> tuple[LabelResult, ...]:
    volumes, names = segmentation.volumes_ml(), segmentation.labelmap.segment_names
    results = []
    for label, voxels in segmentation.voxel_counts().items():
        certainty = segmentation.certainty[label]
        known = certainty[~np.isnan(certainty)]
        mean, least = (float(known.mean()), float(known.min())) if known.size else (math.nan, math.nan)
        results.append(LabelResult(label, names.get(label, ""), volumes[label], voxels, mean, least))
    return tuple(results)


@contextmanager
def _recorded(told: list[str]) -> Iterator[None]:
    """Within it warnings of this package are appended to `told`, as sentences."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            yield
        finally:
            ours = (one for one in caught if issubclass(one.category, UserWarning))
            told += [str(one.message) for one in ours if Path(one.filename).resolve().is_relative_to(PACKAGE)]


def _processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
