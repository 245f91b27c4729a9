"""The client of a backend, and a backend on this computer; numpy and the standard library only, as in 3D Slicer."""

from __future__ import annotations

from SDFSMISLib.client.backend_process import BackendProcess, start_backend
from SDFSMISLib.client.capabilities import Capabilities
from SDFSMISLib.client.client import Client
from SDFSMISLib.client.errors import BackendError
from SDFSMISLib.client.remote_run import RemoteRun

__all__ = [
    "BackendError",
    "BackendProcess",
    "Capabilities",
    "Client",
    "RemoteRun",
    "start_backend",
]
