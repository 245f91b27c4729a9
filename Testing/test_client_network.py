"""The client through proxies and over TLS."""

from __future__ import annotations

import ssl
import threading
from pathlib import Path

import numpy as np
import pytest

from certificates import self_signed
from client_examples import GRID, SCAN, SHAPE, STACKS, SUPPORT, collected, painted, wait_for
from SDFSMISLib.client import Client
from SDFSMISLib.client.errors import (
    BackendError,
    BackendNotRunning,
    BackendUnreachable,
    CertificateNotTrusted,
    NotABackend,
)
from SDFSMISLib.errors import Cancelled, InputError
from SDFSMISLib.images.volume import Volume
from SDFSMISLib.slices import SliceStack
from small_backend import Fault, Proxy, SmallBackend, closed_port

pytest_plugins = ["client_fixtures"]
pytestmark = pytest.mark.usefixtures("no_proxy_and_no_long_pauses")


def test_another_computer_is_asked_through_the_proxy_of_the_environment(backend, monkeypatch) -> None:
    """Slices are compressed then, and go over four connections at once."""
    backend.first_puts = threading.Barrier(4, timeout=10)
    scan = Volume(np.broadcast_to(np.arange(7, dtype=np.int16)[:, None, None], SHAPE).copy(), GRID)
    with backend.serve() as url:
        proxy = Proxy(int(url.rpartition(":")[2]))
        with proxy.serve() as port:
            monkeypatch.setenv("http_proxy", f"http://me:p%40ss@localhost:{port}")
            client = Client("backend.example:7861")
            assert not client.is_local
            assert len(collected(client.segment(SliceStack.along(scan, [0]), painted(scan, (2, 1))))) == 6
    assert proxy.heads[0].startswith("GET http://backend.example:7861/capabilities HTTP/1.1\r\n")
    assert all("Proxy-Authorization: Basic bWU6cEBzcw==" in head for head in proxy.heads)
    assert all("Host: backend.example:7861" in head for head in proxy.heads)
    assert len(proxy.heads) == 1 + 4
    assert max(backend.sizes) < SCAN.voxels[0].nbytes


def test_tls_goes_through_the_proxy_as_a_tunnel(backend, monkeypatch, certificate: Path) -> None:
    with backend.serve(server_context(certificate)) as url:
        proxy = Proxy(int(url.rpartition(":")[2]))
        with proxy.serve() as port:
            monkeypatch.setenv("HTTPS_PROXY", f"localhost:{port}")
            found = Client("https://backend.example:7861", ca_file=str(certificate)).capabilities()
    assert found.version == "9.9"
    assert proxy.heads[0].startswith("CONNECT backend.example:7861 HTTP/1.")


@pytest.mark.parametrize("variable", ["http_proxy", "all_proxy"])
def test_this_computer_is_never_asked_through_a_proxy(url: str, monkeypatch, variable: str) -> None:
    monkeypatch.setenv(variable, f"http://localhost:{closed_port()}")
    assert Client(url).capabilities().version == "9.9"
    assert Client(url.replace("127.0.0.1", "localhost")).capabilities().version == "9.9"


def test_names_without_a_proxy_are_asked_directly(monkeypatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://localhost:{closed_port()}")
    with pytest.raises(BackendNotRunning, match="localhost:[0-9]+, which the environment names, refuses"):
        Client("nowhere.invalid:7861").capabilities()
    monkeypatch.setenv("no_proxy", "nowhere.invalid")
    with pytest.raises(BackendUnreachable, match="no computer named nowhere.invalid"):
        Client("nowhere.invalid:7861").capabilities()


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n", "asks for a name and password"),
        (b"HTTP/1.1 502 Bad\r\nContent-Length: 0\r\n\r\n", "the backend behind it is not"),
    ],
)
def test_a_proxy_that_refuses_is_told_from_the_backend(monkeypatch, reply: bytes, words: str) -> None:
    with Proxy(closed_port(), refuse=reply).serve() as port:
        monkeypatch.setenv("http_proxy", f"localhost:{port}")
        with pytest.raises(BackendError, match=words):
            Client("backend.example:7861").capabilities()
        monkeypatch.setenv("https_proxy", f"localhost:{port}")
        with pytest.raises(BackendUnreachable, match="through the proxy localhost"):
            Client("https://backend.example:7861").capabilities()


@pytest.mark.parametrize("proxy", ["socks5://localhost:1080", "http://", "http://host:port"])
def test_a_proxy_of_another_kind_is_refused_in_a_sentence(monkeypatch, proxy: str) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(BackendUnreachable, match="add backend.example to NO_PROXY"):
        Client("backend.example:7861").capabilities()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate that signs itself, with its key behind it in one file."""
    return self_signed(tmp_path_factory.mktemp("tls"))


def server_context(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def test_a_certificate_is_trusted_by_choice_only(backend: SmallBackend, certificate: Path) -> None:
    with backend.serve(server_context(certificate)) as url:
        with pytest.raises(CertificateNotTrusted, match="is not trusted .*give it as the server's certificate"):
            Client(url).capabilities()
        with pytest.raises(CertificateNotTrusted, match="is not trusted .*mismatch"):  # made for another name
            Client(url.replace("127.0.0.1", "localhost"), ca_file=str(certificate)).capabilities()
        assert backend.requests == []
        assert len(collected(Client(url, ca_file=str(certificate)).segment(STACKS, SUPPORT))) == 6


def test_a_run_over_tls_is_resumed_and_cancelled(backend: SmallBackend, certificate: Path) -> None:
    with backend.serve(server_context(certificate)) as url:
        client = Client(url, ca_file=str(certificate))
        backend.faults.extend([Fault(after=6), Fault(after=5, silent=True)])
        run, results = client.segment(STACKS, SUPPORT), []
        watcher = threading.Thread(target=lambda: wait_for(lambda: len(results) == 3) and run.cancel())
        watcher.start()
        with run, pytest.raises(Cancelled):
            results.extend(run)
        watcher.join()
        assert len(results) == 3 and backend.left.wait(10)


def test_http_where_tls_is_spoken_and_the_other_way_round_is_said(backend, certificate: Path) -> None:
    with backend.serve() as url, pytest.raises(NotABackend, match="does not speak TLS. Write http://"):
        Client(url.replace("http:", "https:")).capabilities()
    with backend.serve(server_context(certificate)) as url, pytest.raises(BackendError):
        Client(url.replace("https:", "http:")).capabilities()


def test_a_certificate_file_that_is_none_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    other.write_text("no certificate")
    for path in (other, tmp_path / "absent.pem"):
        with pytest.raises(InputError, match="give a PEM file"):
            Client("https://localhost", ca_file=str(path))
