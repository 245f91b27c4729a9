"""The backend keeps to its own description, whatever is sent to it (schemathesis)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import given, settings
from schemathesis.checks import CHECKS
from schemathesis.generation import GenerationMode

from serving import Backend, running

ROUTES = [
    ("GET", "/healthz"),
    ("GET", "/capabilities"),
    ("GET", "/metrics"),
    ("POST", "/slices/missing"),
    ("PUT", "/slices"),
    ("PUT", "/slices/{address}"),
    ("HEAD", "/slices/{address}"),
    ("DELETE", "/slices/{address}"),
    ("POST", "/segmentations"),
]


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    with running() as made:
        yield made


@pytest.fixture(scope="module")
def described(backend: Backend) -> Any:
    rejections = ["400", "404", "405", "409", "413", "422", "426"]  # the last: another protocol
    checks = {"checks": {"negative_data_rejection": {"expected-statuses": rejections}}}
    config = schemathesis.Config.from_dict(checks)
    return schemathesis.openapi.from_url(f"{backend.url}/openapi.json", config=config)


def test_all_routes_are_looked_at(described: Any) -> None:
    operations = [result.ok() for result in described.get_all_operations()]
    assert sorted((one.method.upper(), one.path) for one in operations) == sorted(ROUTES)


# What takes neither a body nor a parameter cannot be asked wrongly.
CASES = [(*route, GenerationMode.POSITIVE) for route in ROUTES]
CASES += [(*route, GenerationMode.NEGATIVE) for route in ROUTES if route[0] != "GET"]


@pytest.mark.parametrize(("method", "path", "mode"), CASES)
def test_every_answer_is_one_that_is_described(described: Any, method: str, path: str, mode: GenerationMode) -> None:
    operation = described[path][method]
    # A request of the right form may still name slices that were not sent, or make no sense together.
    excluded = [CHECKS.get_one("positive_data_acceptance")]

    @settings(max_examples=15)
    @given(operation.as_strategy(generation_mode=mode))
    def answered(case: schemathesis.Case) -> None:
        case.call_and_validate(excluded_checks=excluded, timeout=20)

    answered()
