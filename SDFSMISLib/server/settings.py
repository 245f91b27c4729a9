"""What a backend is told when it is started."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from SDFSMISLib.server.limits import Limits

__all__ = ["ServeSettings"]


@dataclass(frozen=True)
class ServeSettings:
    """The options of `sdfsmis serve`; see its help."""

    host: str = "127.0.0.1"
    port: int = 7861
    token: str | None = None
    token_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    model: str = "built-in"
    device: str = "auto"
    engine: Literal["process", "ray"] = "process"
    until_stdin_closes: bool = False
    limits: Limits = Limits()

    @property
    def is_loopback(self) -> bool:
        """Whether only this computer reaches the backend."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def scheme(self) -> str:
        return "https" if self.tls_cert is not None else "http"
