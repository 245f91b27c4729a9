"""Backend sentences: what is said of a backend that works, and of what went wrong with one."""

from __future__ import annotations

import logging

from slicer.i18n import tr as _

from SDFSMISLib.client import BackendError, Capabilities
from SDFSMISLib.errors import InputError

__all__ = ["described", "sentence"]

LOG = logging.getLogger("SDFSMIS")


def described(capabilities: Capabilities) -> str:
    """A backend in a sentence."""
    text = _("It works: SDFSMIS {version}, {model} on {device}, about {seconds} s a slice.").format(
        version=capabilities.version,
        model=capabilities.models[0].name,
        device=capabilities.device_name,
        seconds=f"{capabilities.seconds_per_slice:.2g}",
    )
    if capabilities.running:
        text += " " + _("Runs that take turns there now: {count}.").format(count=capabilities.running)
    return text


def sentence(error: BaseException) -> str:
    """An error in words; one that nobody expected is logged."""
    if isinstance(error, (BackendError, InputError, OSError)):
        return str(error)
    LOG.error("The backend failed", exc_info=error)
    return _("It failed ({kind}: {error}); the application's log says more.").format(
        kind=type(error).__name__, error=error
    )
