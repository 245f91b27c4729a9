"""`RemoteSegmenter`: a `Segmenter` whose networks are on a backend. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Literal

from SDFSMISLib.client import BackendError, Client
from SDFSMISLib.client.capabilities import Capabilities
from SDFSMISLib.images.postprocess import Postprocessing
from SDFSMISLib.images.volume import Volume
from SDFSMISLib.inference.segmentation import Segmentation, SegmentationBuilder
from SDFSMISLib.options import Region, RunOptions, Strategy
from SDFSMISLib.slices import SliceResult, SliceStack
from SDFSMISLib.support import SupportSet


class RemoteSegmenter:
    """Segments volumes from painted slices on a backend, with the results of a `Segmenter` that has its weights.

    Only slices that the backend needs are sent, each once. A broken connection is resumed.

    Args:
        client: of the backend; not used before the first request.
        patience: seconds to retry while the backend cannot be reached.
        on_retry: called with the problem before each retry.

    Example:
        Reads the backend's capabilities on first use, so a segmenter is made without a connection:

        >>> segmenter = RemoteSegmenter(Client("http://127.0.0.1:7861"), patience=5.0)
        >>> segmenter.client.host
        '127.0.0.1:7861'
    """

    def __init__(
        self, client: Client, patience: float = 60.0, on_retry: Callable[[BackendError], None] | None = None
    ) -> None:
        self.client = client
        self.patience = patience
        self.on_retry = on_retry

    def connected(self) -> RemoteSegmenter:
        """Itself, after a first request, so that a backend that cannot be reached is noticed early.

        Raises:
            BackendError: see `capabilities`.
        """
        assert self.capabilities
        return self

    @cached_property
    def capabilities(self) -> Capabilities:
        """The backend's description of itself, requested once.

        Raises:
            BackendError: if it cannot be reached, refuses, or speaks another protocol.
        """
        return self.client.capabilities()

    @property
    def name(self) -> str:
        """Name of the model, for the provenance of results."""
        return self.capabilities.models[0].name

    @property
    def weights(self) -> str:
        """sha256 (hex) of the model's weights."""
        return self.capabilities.models[0].weights_sha256

    @property
    def device(self) -> str:
        """Device and host, to show to users."""
        return f"{self.capabilities.device_name} of {self.client.host}"

    @property
    def searches(self) -> bool:
        """See `Segmenter.searches`."""
        return self.capabilities.models[0].searches

    def seconds_per_slice(self) -> float:
        """Seconds for one slice of one label, as the backend measured it."""
        return self.capabilities.seconds_per_slice

    def segment(
        self,
        query: Volume,
        support: SupportSet,
        strategy: Strategy = "propagate",
        *,
        axis: int | None = None,
        slices: Sequence[int] | None = None,
        labels: Sequence[int] | None = None,
        region: Region = "auto",
        threshold: float = 0.5,
        batch_size: int = 8,
        postprocessing: Postprocessing | None = None,
        window: Literal["robust", "minmax"] = "robust",
        on_slice: Callable[[SliceResult], None] | None = None,
        on_upload: Callable[[int, int], None] | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> Segmentation:
        """Segment `query` from `support`, see `Segmenter.segment`.

        Args:
            batch_size: is left to the backend, which knows its memory.
            on_upload: called with the number of slices that the backend has, and the number that it needs.
            cancel: called between slices while they are sent, then at every record of the backend; returns True to
                stop the run.

        Raises:
            InputError: if the backend lacks an option, a slice is outside the scan, or the support lacks a label.
            BackendError: if the backend refuses, fails, or cannot be reached for longer than `patience`.
            Cancelled: if `cancel` returned True.
        """
        options = RunOptions(strategy, region, threshold, batch_size)
        content_hash = query.content_hash()
        axes = support.axes_on(query, content_hash) if axis is None else (axis,)
        stacks = SliceStack.along(query, axes, query.window(window), content_hash)
        run = self.client.segment(
            stacks,
            support,
            options,
            labels=labels,
            slices=slices,
            on_upload=on_upload,
            cancel=cancel,
            on_retry=self.on_retry,
            patience=self.patience,
        )
        support_slices = {label: support.for_label(label) for label in run.labels}
        builder = SegmentationBuilder(query, run.scan, support_slices, support.names)
        with run:
            for result in run:
                if result.stage == "final":
                    builder.add(result.label, result.index, result.probability, result.certainty)
                if on_slice is not None:
                    on_slice(result)
        return builder.segmentation(options.threshold, postprocessing, run.warnings)
