"""Fixtures of the tests of the client: a small backend on loopback, and no proxy or long pause but what a test sets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from SDFSMISLib.client import connection as retries
from small_backend import SmallBackend

PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture
def no_proxy_and_no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(retries, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(retries, "LONGEST_PAUSE", 0.02)


@pytest.fixture
def backend() -> SmallBackend:
    return SmallBackend()


@pytest.fixture
def url(backend: SmallBackend) -> Iterator[str]:
    with backend.serve() as url:
        yield url
