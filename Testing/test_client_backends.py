"""The client asks for a backend: addresses as people type them, and what can be wrong with what answers."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import asdict

import pytest

from client_examples import STACKS, SUPPORT
from SDFSMISLib.client import Client
from SDFSMISLib.client.connection import Address
from SDFSMISLib.client.errors import (
    BackendNotRunning,
    BackendUnreachable,
    ConnectionLost,
    NotABackend,
    TokenRefused,
    VersionMismatch,
)
from SDFSMISLib.errors import InputError
from small_backend import SmallBackend, closed_port, listening

pytest_plugins = ["client_fixtures"]
pytestmark = pytest.mark.usefixtures("no_proxy_and_no_long_pauses")


@pytest.mark.parametrize(
    ("typed", "used", "is_local"),
    [
        ("localhost:7861", "http://localhost:7861", True),
        (" localhost ", "http://localhost:7861", True),
        ("0.0.0.0:7861", "http://127.0.0.1:7861", True),
        ("http://[::]:7861/", "http://[::1]:7861", True),
        ("127.0.0.1:80", "http://127.0.0.1:80", True),
        ("127.4.5.6:80", "http://127.4.5.6:80", True),
        ("HTTP://Workstation", "http://workstation:80", False),
        ("workstation", "http://workstation:7861", False),
        ("https://hospital.example/sdfsmis/", "https://hospital.example:443/sdfsmis", False),
        ("192.168.1.4:9000", "http://192.168.1.4:9000", False),
        ("localhost.example:1", "http://localhost.example:1", False),
    ],
)
def test_an_address_is_taken_as_people_type_it(typed: str, used: str, is_local: bool) -> None:
    client = Client(typed)
    assert client.url == used and client.is_local is is_local


@pytest.mark.parametrize(
    "typed",
    [
        *("", "  ", "http://", "ftp://host:1", "file:///etc/passwd", "host:port", "host:99999", "host:0", "[::1"),
        *("ho st", "http://ho%st", "http://me:secret@host", "http://host?x=1", "http://host/#a", "http://host/ä"),
        *("http://host/a b", "host\r\nX: 1", "http://host/\r\nX: 1"),
    ],
)
def test_what_is_no_address_is_refused_in_a_sentence(typed: str) -> None:
    with pytest.raises(InputError, match="a backend's address looks like"):
        Client(typed)


def test_a_name_of_another_alphabet_is_no_traceback() -> None:
    address = Address.of("http://klinik-münchen.invalid:7861")
    assert not address.is_local
    with pytest.raises(BackendUnreachable, match="no computer named"):
        Client("http://klinik-münchen.invalid:7861").capabilities()


@pytest.mark.parametrize("token", ["two\nlines", "schlüssel", "a\0b"])
def test_a_token_that_no_header_can_carry_is_refused(token: str) -> None:
    with pytest.raises(InputError, match="copy it again"):
        Client("localhost", token)


def test_making_a_client_and_a_run_sends_nothing() -> None:
    reached = threading.Event()
    with listening(lambda connection: reached.set()) as port:
        client = Client(f"localhost:{port}", "token")
        with client.segment(STACKS, SUPPORT):
            pass
        assert not reached.wait(0.1)


def test_capabilities_say_what_the_backend_is(url: str, backend: SmallBackend) -> None:
    found = Client(url).capabilities()
    assert (found.version, found.device_name, found.device_kind, found.running) == ("9.9", "a processor", "cpu", 0)
    assert (found.models[0].name, found.models[0].weights_sha256, found.models[0].resolution) == ("small", "w1", 64)
    assert found.seconds_per_slice == 0.5 and found.strategies == ("propagate", "independent")
    assert asdict(found.limits) == backend.limits


def test_a_backend_that_is_not_started_is_refused() -> None:
    port = closed_port()
    with pytest.raises(BackendNotRunning, match=f"No backend runs at 127.0.0.1:{port}. Start it"):
        Client(f"127.0.0.1:{port}").capabilities()


def test_a_computer_that_is_not_there_is_not_found() -> None:
    with pytest.raises(BackendUnreachable, match="no computer named nowhere.invalid"):
        Client("nowhere.invalid:7861").capabilities()


HTML = b"<html>Welcome</html>"


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "is no SDFSMIS backend"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "need https://"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n" + HTML, "is no SDFSMIS backend"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 20\r\n\r\n" + HTML, "is no SDFSMIS backend"),
        (b"HTTP/1.1 401 No\r\nWWW-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n", "is no SDFSMIS backend"),
        (b"HTTP/1.1 301 Moved\r\nLocation: https://host/\r\nContent-Length: 0\r\n\r\n", "sends on to 'https://host/'"),
        (b"HTTP/1.1 200 OK\r\nX-SDFSMIS-Protocol: 2\r\nContent-Length: 2\r\n\r\n{}", "does not say what a backend"),
        (b"HTTP/1.1 200 OK\r\nX-SDFSMIS-Protocol: 2\r\nContent-Length: 2\r\n\r\n[}", "is no SDFSMIS backend"),
        (b"HTTP/1.1 200 OK\r\nX-SDFSMIS-Protocol: 2\r\nContent-Length: 0\r\n\r\n", "does not say what a backend"),
        (b"HTTP/1.1 200 OK\r\nX-SDFSMIS-Protocol: 2\r\n\r\n" + b"[" * 100_000, "is no SDFSMIS backend"),
        (b"HTTP/1.1 200 OK\r\n" + b"X-Long: " + b"x" * 70_000 + b"\r\n\r\n", "is no SDFSMIS backend"),
    ],
)
def test_something_else_that_answers_is_no_backend(reply: bytes, words: str) -> None:
    def respond(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(reply)

    with listening(respond) as port, pytest.raises(NotABackend, match=words):
        Client(f"localhost:{port}").capabilities()


@pytest.mark.parametrize(
    "reply", [b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nX-SDFSMIS-Protocol: 2\r\nContent-Length: 50\r\n\r\n{"]
)
def test_an_answer_that_is_cut_is_a_lost_connection(reply: bytes) -> None:
    def respond(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(reply)

    with listening(respond) as port, pytest.raises((ConnectionLost, NotABackend)):
        Client(f"localhost:{port}").capabilities()


def test_a_backend_that_says_nothing_is_waited_for_no_longer_than_was_said() -> None:
    with listening(lambda connection: connection.recv(1 << 20) and time.sleep(5)) as port:
        with pytest.raises(ConnectionLost, match="does not answer any more"):
            Client(f"localhost:{port}", timeout=0.1).capabilities()


@pytest.mark.parametrize(("status", "words"), [(502, "the backend behind it is not"), (504, "Start it")])
def test_a_gateway_without_its_backend_is_told_from_a_backend(status: int, words: str) -> None:
    def respond(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(b"HTTP/1.1 %d Bad\r\nContent-Length: 20\r\n\r\n" % status + HTML)

    with listening(respond) as port, pytest.raises(BackendNotRunning, match=words):
        Client(f"localhost:{port}").capabilities()


def test_a_token_is_asked_for_and_a_wrong_one_is_not_accepted(url: str, backend: SmallBackend) -> None:
    backend.token = "right"
    with pytest.raises(TokenRefused, match="asks for a token"):
        Client(url).capabilities()
    with pytest.raises(TokenRefused, match="does not accept the token"):
        Client(url, "wrong").capabilities()
    assert Client(url, " right\n").capabilities().version == "9.9"


@pytest.mark.parametrize(("protocol", "side"), [(1, "Update the backend"), (3, "Update this program")])
def test_another_protocol_says_which_side_is_too_old(url: str, backend: SmallBackend, protocol: int, side: str) -> None:
    backend.protocol = protocol
    with pytest.raises(VersionMismatch, match=side):
        Client(url).capabilities()
