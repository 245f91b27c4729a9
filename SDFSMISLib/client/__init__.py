"""The client of a backend, and the starter of one's own; numpy and the standard library only, so that 3D Slicer can
carry it."""

from __future__ import annotations

from SDFSMISLib.client.backend_process import BackendProcess, start_backend
from SDFSMISLib.client.capabilities import Capabilities
from SDFSMISLib.client.client import Client
from SDFSMISLib.client.errors import BackendError
from SDFSMISLib.client.remote_run import RemoteRun, RunState, SliceRecord

__all__ = [
    "BackendError",
    "BackendProcess",
    "Capabilities",
    "Client",
    "RemoteRun",
    "RunState",
    "SliceRecord",
    "start_backend",
]
