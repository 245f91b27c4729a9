"""SD-FSMIS (arXiv 2604.03134): SQI, VTCT and the diffusers pipeline; loading, conversion and the built-in size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from SDFSMISLib.model.pipeline import SDFSMISOutput, SDFSMISPipeline
    from SDFSMISLib.model.translator import VisualToTextualTranslator
    from SDFSMISLib.model.unet import SupportBank, SupportQueryUNet

_HOME = {
    "SDFSMISOutput": "pipeline",
    "SDFSMISPipeline": "pipeline",
    "SupportBank": "unet",
    "SupportQueryUNet": "unet",
    "VisualToTextualTranslator": "translator",
}

__all__ = ["SDFSMISOutput", "SDFSMISPipeline", "SupportBank", "SupportQueryUNet", "VisualToTextualTranslator"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
