"""From a support set and a query volume to a labelmap: tracks, registration, runs, segmenters, result files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from SDFSMISLib.inference.remote import RemoteSegmenter
    from SDFSMISLib.inference.segmentation import Segmentation
    from SDFSMISLib.inference.segmenter import Segmenter

_HOME = {
    "RemoteSegmenter": "remote",
    "Segmentation": "segmentation",
    "Segmenter": "segmenter",
}

__all__ = ["RemoteSegmenter", "Segmentation", "Segmenter"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
