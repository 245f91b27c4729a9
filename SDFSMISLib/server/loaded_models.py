"""Learned models in memory: loaded when one is asked for, and only a few at a time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from pathlib import Path

import torch

from SDFSMISLib.errors import InputError
from SDFSMISLib.inference.networks import LatentCache
from SDFSMISLib.inference.segmenter import Segmenter
from SDFSMISLib.server.failures import Refused
from SDFSMISLib.server.logs import LOGGER
from SDFSMISLib.server.models import LearnedModel

__all__ = ["LatentsOf", "LoadedModels"]


class LoadedModels:
    """Segmenters by the folder of their model. May be called from several threads; one loads at a time.

    Args:
        device: to load on.
        most: that are kept; the one unused for longest goes. A run that has one keeps it until it ends.
    """

    def __init__(self, device: torch.device, most: int) -> None:
        self._device = device
        self._most = most
        self._kept: OrderedDict[Path, Segmenter] = OrderedDict()
        self._lock = threading.Lock()

    def segmenter(self, model: LearnedModel) -> Segmenter:
        """The segmenter of a finished model.

        Raises:
            Refused: where its weights cannot be read any more, or do not fit into the device's memory.
        """
        with self._lock:
            if model.folder not in self._kept:
                while len(self._kept) >= self._most:
                    self._kept.popitem(last=False)
                self._kept[model.folder] = self._loaded(model)
            self._kept.move_to_end(model.folder)
            return self._kept[model.folder]

    def drop(self, model: LearnedModel) -> None:
        """Forget a model, if it is here."""
        with self._lock:
            self._kept.pop(model.folder, None)

    def _loaded(self, model: LearnedModel) -> Segmenter:
        name = model.lesson.name
        try:
            loaded = Segmenter.from_pretrained(model.pipeline, str(self._device))
        except InputError as error:
            LOGGER.error("learned model cannot be loaded: %s", error)
            raise Refused(500, "failed", f"The backend cannot load the model {name}; its log tells why.") from error
        loaded.name = name
        loaded.weights  # noqa: B018 (computed once, here, where it holds up nobody)
        return loaded


class LatentsOf(LatentCache):
    """The part of a cache that belongs to some weights: what others encoded is not theirs.

    Args:
        whole: the cache, which bounds all its parts together.
        weights: their digest.
    """

    def __init__(self, whole: LatentCache, weights: str) -> None:
        super().__init__(whole.most_bytes)
        self._whole = whole
        self._weights = weights

    def get(self, identity: str, view: Hashable) -> torch.Tensor | None:
        return self._whole.get(identity, (self._weights, view))

    def put(self, identity: str, view: Hashable, latent: torch.Tensor) -> None:
        self._whole.put(identity, (self._weights, view), latent)
