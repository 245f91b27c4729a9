"""SDFSMIS: one painted slice of a medical scan becomes a labelled volume.

Importing this package is fast and does not import torch: each public name is loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from SDFSMISLib.client import Client, start_backend
    from SDFSMISLib.errors import InputError
    from SDFSMISLib.examples import Example, Library
    from SDFSMISLib.images.volume import Volume, read_labelmap
    from SDFSMISLib.inference import RemoteSegmenter, Segmentation, Segmenter
    from SDFSMISLib.options import RunOptions
    from SDFSMISLib.support import SupportSet, SupportSlice

__version__ = "0.1.0"

__all__ = [
    "Client",
    "Example",
    "InputError",
    "Library",
    "RemoteSegmenter",
    "RunOptions",
    "Segmentation",
    "Segmenter",
    "SupportSet",
    "SupportSlice",
    "Volume",
    "__version__",
    "read_labelmap",
    "start_backend",
]

_HOME = {
    "Client": "SDFSMISLib.client",
    "Example": "SDFSMISLib.examples",
    "InputError": "SDFSMISLib.errors",
    "Library": "SDFSMISLib.examples",
    "RemoteSegmenter": "SDFSMISLib.inference",
    "RunOptions": "SDFSMISLib.options",
    "Segmentation": "SDFSMISLib.inference",
    "Segmenter": "SDFSMISLib.inference",
    "SupportSet": "SDFSMISLib.support",
    "SupportSlice": "SDFSMISLib.support",
    "Volume": "SDFSMISLib.images.volume",
    "read_labelmap": "SDFSMISLib.images.volume",
    "start_backend": "SDFSMISLib.client",
}
"""Public name -> the room it comes from."""


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value  # the next look-up finds it without coming here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
