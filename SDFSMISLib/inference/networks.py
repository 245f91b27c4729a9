"""The networks as a run uses them: passes that fit the device's memory, and latents that are not encoded twice."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch

from SDFSMISLib.model.pipeline import SDFSMISPipeline

Row = TypeVar("Row")
Answer = TypeVar("Answer")


class LatentCache:
    """Latents of query images that were encoded before, by what was encoded; for runs that come again with a
    correction.

    At most `most_bytes` are kept; what was not used for longest goes first. May be shared by threads.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.hits = 0
        self.misses = 0
        self._kept: OrderedDict[tuple[str, Hashable], torch.Tensor] = OrderedDict()  # (slice, how it was seen)
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        return self._bytes

    def get(self, identity: str, view: Hashable) -> torch.Tensor | None:
        """The latent (c, h, w) of a slice seen in a way, or None."""
        with self._lock:
            latent = self._kept.get((identity, view))
            if latent is None:
                self.misses += 1
            else:
                self.hits += 1
                self._kept.move_to_end((identity, view))
            return latent

    def put(self, identity: str, view: Hashable, latent: torch.Tensor) -> None:
        with self._lock:
            if (identity, view) not in self._kept:
                self._kept[identity, view] = latent
                self._bytes += latent.nbytes
            while self._bytes > self.most_bytes:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes

    def forget(self, identity: str) -> None:
        """Drop all that was computed of a slice."""
        with self._lock:
            for key in [key for key in self._kept if key[0] == identity]:
                self._bytes -= self._kept.pop(key).nbytes


class Networks:
    """A pipeline for one run.

    Args:
        batch_size: queries per pass.
        latents: kept beyond the run; None = nothing is kept.
    """

    def __init__(self, pipeline: SDFSMISPipeline, batch_size: int, latents: LatentCache | None = None) -> None:
        self.pipeline = pipeline
        self.batch_size = batch_size
        self.latents = latents
        self._most = batch_size  # rows that have fitted into memory

    @property
    def side(self) -> int:
        """Side of the networks' grid, pixels."""
        return self.pipeline.config.resolution

    def in_parts(self, rows: Sequence[Row], work: Callable[[Sequence[Row]], Sequence[Answer]]) -> list[Answer]:
        """`work` on all rows at once; where the device's memory does not suffice, on half as many at a time, for the
        rest of the run too.

        Raises:
            RuntimeError: where it does not suffice for one row, as the device says it.
        """
        answers: list[Answer] = []
        while len(answers) < len(rows):
            part = rows[len(answers) : len(answers) + self._most]
            try:
                answers += work(part)
            except RuntimeError as error:
                if len(part) == 1 or not is_out_of_memory(error):
                    raise
                self._most = len(part) // 2
            else:
                continue
            if torch.cuda.is_available():  # outside the handler, whose traceback holds what is to be freed
                torch.cuda.empty_cache()
        return answers

    def encoded(self, images: torch.Tensor, names: Sequence[tuple[str, Hashable] | None]) -> torch.Tensor:
        """Latents (N, c, h, w) of query images (N, 3, H, W) in [-1, 1].

        Args:
            names: for each image which slice it shows, and how; None = it has no name, and is not kept.
        """
        if self.latents is None or None in names:
            return self.pipeline.encode_images(images)
        named = [name for name in names if name is not None]
        known = [self.latents.get(*name) for name in named]
        missing = [number for number, latent in enumerate(known) if latent is None]
        if missing:
            for number, latent in zip(missing, self.pipeline.encode_images(images[missing]), strict=True):
                known[number] = latent
                self.latents.put(*named[number], latent.clone())  # not a view that keeps the whole batch
        return torch.stack([latent for latent in known if latent is not None])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device's memory does not suffice: CUDA's own class, or the texts of CPU and MPS."""
    text = str(error)
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    )
