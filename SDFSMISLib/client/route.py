"""The way to a backend: its address, the proxy before it, which certificates are trusted, what requests carry."""

from __future__ import annotations

import base64
import ipaddress
import re
import ssl
import urllib.parse
import urllib.request
from contextlib import suppress
from dataclasses import dataclass

from SDFSMISLib import __version__
from SDFSMISLib.client.backend_error import BackendNotFound
from SDFSMISLib.errors import InputError

__all__ = ["Address", "Proxy", "Route", "tls_context"]

DEFAULT_PORT = 7861


@dataclass(frozen=True)
class Address:
    """Where a backend is. ``path`` is empty, or what stands before every route (``"/sdfsmis"``)."""

    scheme: str
    host: str
    port: int
    path: str = ""

    @classmethod
    def of(cls, url: str) -> Address:
        """The address that was typed: ``http`` is taken where no scheme stands, and then also the usual port.

        A backend that listens on 0.0.0.0 says so; one connects to 127.0.0.1.

        Raises:
            InputError: for what is no address of HTTP.
        """
        text = url.strip()
        try:
            parts = urllib.parse.urlsplit(text if "://" in text else f"http://{text}")
            host, port = parts.hostname or "", parts.port
        except ValueError:
            raise _no_address(url) from None
        if parts.scheme not in ("http", "https") or not re.fullmatch(r"[^\s/\\%@\x00-\x20]+", host) or port == 0:
            raise _no_address(url)
        if "@" in parts.netloc or parts.query or parts.fragment or re.search(r"[^!-~]", parts.path):
            raise _no_address(url)
        if port is None:
            port = {"http": 80, "https": 443}[parts.scheme] if "://" in text else DEFAULT_PORT
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return cls(parts.scheme, host, port, parts.path.rstrip("/"))

    @property
    def name(self) -> str:
        """``"host:port"``, for people and for the lines of HTTP."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.name}{self.path}"

    @property
    def is_local(self) -> bool:
        """Whether it is on this computer; no name is looked up for that."""
        with suppress(ValueError):
            return ipaddress.ip_address(self.host).is_loopback
        return self.host == "localhost"


def _no_address(url: str) -> InputError:
    return InputError(
        f"The address {url!r:.80} was given; a backend's address looks like localhost:{DEFAULT_PORT} or "
        "https://computer:443."
    )


def tls_context(ca_file: str | None) -> ssl.SSLContext:
    """What certificates are trusted: those of ``ca_file``, or those of this computer.

    Raises:
        InputError: where the file is not there or holds no certificate.
    """
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # ssl.SSLError is one
        raise InputError(f"{ca_file} cannot be read as certificates ({error}); give a PEM file.") from None


@dataclass(frozen=True)
class Proxy:
    """A proxy of HTTP, and the headers that it asks for."""

    host: str
    port: int
    headers: dict[str, str]

    @classmethod
    def of(cls, text: str, target: str) -> Proxy:
        """The proxy that an environment variable names on the way to the computer ``target``."""
        try:
            parts = urllib.parse.urlsplit(text if "://" in text else f"http://{text}")
            host, port = parts.hostname or "", parts.port or 80
        except ValueError:
            host = ""
        if not host or parts.scheme != "http":
            raise BackendNotFound(
                f"The proxy {text.rpartition('@')[2]!r:.80} of the environment cannot be used. Name an http proxy "
                f"there, or add {target} to NO_PROXY."
            )
        if parts.username is None:
            return cls(host, port, {})
        pair = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        return cls(host, port, {"Proxy-Authorization": "Basic " + base64.b64encode(pair.encode()).decode("ascii")})


@dataclass(frozen=True)
class Route:
    """How to connect to a backend: where it is, what is sent with every request, whom to trust, how long to wait."""

    address: Address
    token: str | None
    context: ssl.SSLContext | None
    timeout: float

    def proxy(self) -> Proxy | None:
        """The environment's proxy for this address; never one for this computer.

        Raises:
            BackendNotFound: where it is of a kind that is not understood.
        """
        address = self.address
        if address.is_local or urllib.request.proxy_bypass(address.name):
            return None
        proxies = urllib.request.getproxies()
        text = proxies.get(address.scheme) or proxies.get("all")
        return Proxy.of(text, address.host) if text else None

    def headers(self) -> dict[str, str]:
        headers = {"Accept": "*/*", "User-Agent": f"sdfsmis/{__version__}"}
        return headers | ({"Authorization": f"Bearer {self.token}"} if self.token else {})
