"""`RemoteSegmenter`: a `Segmenter` whose networks are on a backend. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Literal

from SDFSMISLib.client import BackendError, Client
from SDFSMISLib.client.capabilities import Capabilities
from SDFSMISLib.images.postprocess import Postprocessing
from SDFSMISLib.images.volume import Volume
from SDFSMISLib.inference.segmentation import Segmentation, SegmentationBuilder
from SDFSMISLib.options import RunOptions
from SDFSMISLib.slices import SliceResult, SliceStack
from SDFSMISLib.support import SupportSet


class RemoteSegmenter:
    """Segments volumes by painted slices, on a backend; the results are those of a `Segmenter` with its weights.

    Only slices that the backend needs are sent, each once. A connection that breaks is taken up again.
    """

    def __init__(
        self, client: Client, patience: float = 60.0, on_retry: Callable[[BackendError], None] | None = None
    ) -> None:
        """
        Args:
            client: of the backend; nothing is asked of it here.
            patience: seconds to go on trying where the backend is not there.
            on_retry: called with the problem before each pause after which it is tried again.
        """
        self.client = client
        self.patience = patience
        self.on_retry = on_retry

    def checked(self) -> RemoteSegmenter:
        """Itself, after asking the backend what it is; so that one that is not there is known early.

        Raises:
            BackendError: as `capabilities`.
        """
        assert self.capabilities
        return self

    @cached_property
    def capabilities(self) -> Capabilities:
        """What the backend says of itself; asked once.

        Raises:
            BackendError: where there is none, it refuses, or it is of another protocol.
        """
        return self.client.capabilities()

    @property
    def name(self) -> str:
        """The model's, for a result's provenance."""
        return self.capabilities.models[0].name

    @property
    def weights(self) -> str:
        """The digest of the model's weights."""
        return self.capabilities.models[0].weights_sha256

    @property
    def device(self) -> str:
        """Where it is computed, for people."""
        return f"{self.capabilities.device_name} of {self.client.host}"

    @property
    def searches(self) -> bool:
        """As `Segmenter.searches`."""
        return self.capabilities.models[0].searches

    def seconds_per_slice(self) -> float:
        """What one slice of one label costs there, as the backend has measured it."""
        return self.capabilities.seconds_per_slice

    def segment(
        self,
        query: Volume,
        support: SupportSet,
        options: RunOptions = RunOptions(),
        *,
        axis: int | None = None,
        slices: Sequence[int] | None = None,
        labels: Sequence[int] | None = None,
        postprocessing: Postprocessing | None = None,
        window: Literal["robust", "minmax"] = "robust",
        on_slice: Callable[[SliceResult], None] | None = None,
        on_upload: Callable[[int, int], None] | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> Segmentation:
        """Segment `query` by `support`, as `Segmenter.segment` does.

        Args:
            on_upload: called with the number of slices that are on the backend, and the number of all.
            cancel: asked between slices while they are sent, then at every sign of life of the backend.

        Raises:
            InputError: where the backend lacks an option, a slice is outside the scan, or the support lacks a label.
            BackendError: where the backend is not there, refuses, fails, or is lost for longer than `patience`.
            Cancelled: where `cancel` said so.
        """
        content_hash = query.content_hash()
        run_axis = support.axis_on(query, content_hash) if axis is None else axis
        scan = SliceStack.of(query, run_axis, query.window(window), content_hash)
        support_slices = {label: support.for_label(label) for label in (support.labels if labels is None else labels)}
        builder = SegmentationBuilder(query, scan, support_slices, support.names)
        run = self.client.segment(
            scan,
            support,
            options,
            labels=tuple(support_slices),
            slices=slices,
            on_upload=on_upload,
            cancel=cancel,
            on_retry=self.on_retry,
            patience=self.patience,
        )
        with run:
            for result in run:
                builder.add(result.label, result.index, result.probability, result.certainty)
                if on_slice is not None:
                    on_slice(result)
        return builder.segmentation(options.threshold, postprocessing, run.warnings)
