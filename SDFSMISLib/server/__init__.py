"""The backend: HTTP around inference, for 3D Slicer and for other programs."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from SDFSMISLib.errors import InputError

if TYPE_CHECKING:
    from SDFSMISLib.server.app import make_app
    from SDFSMISLib.server.serving import ServeSettings, run_server

_HOME = {"ServeSettings": "serving", "make_app": "app", "run_server": "serving"}
_NEEDED = ("fastapi", "fastapi_offline", "prometheus_client", "uvicorn")

__all__ = ["ServeSettings", "make_app", "run_server"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    lacking = [module for module in _NEEDED if find_spec(module) is None]
    if lacking:
        raise InputError(f'The backend needs {lacking[0]}, which is not installed: pip install "sdfsmis[serve]".')
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
