"""The networks of a run: passes that fit into the device's memory, and a cache of encoded slices."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch

from SDFSMISLib.model.pipeline import SDFSMISPipeline

Row = TypeVar("Row")
Output = TypeVar("Output")


class LatentCache:
    """Latents and predictions of query slices, for later runs on the same slices, such as a run after a correction.

    Threads can share a cache. When it is full, the latents that were not used for longest go first.

    Args:
        max_bytes: size of all latents together.

    Attributes:
        hits, misses: numbers of `get` calls that found a latent, and that did not.
        bytes: size of the latents that it holds.

    Example:
        >>> cache = LatentCache(max_bytes=1024)
        >>> cache.put("slice 7", "whole", torch.zeros(4, 8, 8))
        >>> cache.get("slice 7", "cropped") is None, tuple(cache.get("slice 7", "whole").shape), cache.bytes
        (True, (4, 8, 8), 1024)
        >>> cache.forget("slice 7")
        >>> cache.bytes
        0
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.hits = 0
        self.misses = 0
        self.bytes = 0
        self._latents: OrderedDict[tuple[str, Hashable], torch.Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, identity: str, view: Hashable) -> torch.Tensor | None:
        """The latent (c, h, w) of a slice, by its identity and how it was seen (region, contrast, ...); or None."""
        with self._lock:
            latent = self._latents.get((identity, view))
            if latent is None:
                self.misses += 1
            else:
                self.hits += 1
                self._latents.move_to_end((identity, view))
            return latent

    def prediction(self, identity: str, inputs: Hashable) -> torch.Tensor | None:
        """What was predicted on a slice from the same inputs; or None. It is `put` as latents are, and not counted."""
        with self._lock:
            if (identity, inputs) in self._latents:
                self._latents.move_to_end((identity, inputs))
            return self._latents.get((identity, inputs))

    def put(self, identity: str, view: Hashable, latent: torch.Tensor) -> None:
        """Keep a latent (c, h, w), or a prediction."""
        with self._lock:
            if (identity, view) not in self._latents:
                self._latents[identity, view] = latent
                self.bytes += latent.nbytes
            while self.bytes > self.max_bytes:
                self.bytes -= self._latents.popitem(last=False)[1].nbytes

    def forget(self, identity: str) -> None:
        """Drop all latents of a slice, or of all slices whose identity begins so."""
        with self._lock:
            for key in [key for key in self._latents if key[0].startswith(identity)]:
                self.bytes -= self._latents.pop(key).nbytes


class Networks:
    """A pipeline with the batch size and the latent cache of one run.

    Args:
        pipeline: on its device.
        batch_size: query slices per pass; halved for the rest of the run when the device runs out of memory.
        latents: cache that outlives the run; None = nothing is kept.

    Example:
        >>> from SDFSMISLib.model.built_in import Size, new_built_in
        >>> networks = Networks(new_built_in(size=Size(resolution=32, channels=(8, 16))), batch_size=2)
        >>> networks.side
        32
        >>> tuple(networks.encoded(torch.zeros(3, 3, 32, 32), [None] * 3).shape)
        (3, 16, 8, 8)
    """

    def __init__(self, pipeline: SDFSMISPipeline, batch_size: int, latents: LatentCache | None = None) -> None:
        self.pipeline = pipeline
        self.batch_size = batch_size
        self.latents = latents
        self._fitting_rows = batch_size

    @property
    def side(self) -> int:
        """Side of the networks' grid, pixels."""
        return self.pipeline.config.resolution

    def in_parts(
        self, rows: Sequence[Row], work: Callable[[Sequence[Row]], Sequence[Output]], batch_rows: int = 1
    ) -> list[Output]:
        """`work` on all rows at once; if the device runs out of memory, on half as many at a time, for the rest of the
        run too.

        Args:
            batch_rows: number of rows of the whole batch, of which `rows` are left to compute. The CPU's libraries
                compute a single row by another routine than several, with other rounding; a single row that is left of
                several is therefore computed twice, and comes out bit by bit as in the whole batch.

        Raises:
            RuntimeError: the device's own, if its memory does not suffice for one row.
        """
        padded = list(rows) * 2 if len(rows) == 1 < batch_rows else rows
        outputs: list[Output] = []
        while len(outputs) < len(padded):
            part = padded[len(outputs) : len(outputs) + self._fitting_rows]
            try:
                outputs += work(part)
            except RuntimeError as error:
                if len(part) == 1 or not is_out_of_memory(error):
                    raise
                self._fitting_rows = len(part) // 2
            else:
                continue
            if torch.cuda.is_available():  # outside the handler, whose traceback holds the memory to free
                torch.cuda.empty_cache()
        return outputs[: len(rows)]

    def encoded(self, images: torch.Tensor, names: Sequence[tuple[str, Hashable] | None]) -> torch.Tensor:
        """Latents (N, c, h, w) of query images (N, 3, H, W) in [-1, 1].

        Args:
            names: key of each image in the cache (identity, view); None = the image is not cached.
        """
        if self.latents is None or None in names:
            return self.pipeline.encode_images(images)
        keys = [name for name in names if name is not None]
        cached = [self.latents.get(*key) for key in keys]
        missing = [number for number, latent in enumerate(cached) if latent is None]
        if missing:
            for number, latent in zip(missing, self.pipeline.encode_images(images[missing]), strict=True):
                cached[number] = latent
                self.latents.put(*keys[number], latent.clone())  # a view would keep the whole batch in memory
        return torch.stack([latent for latent in cached if latent is not None])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device ran out of memory: CUDA's own class, or the messages of CPU and MPS."""
    text = str(error)
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    )
