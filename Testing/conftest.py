"""What every test runs under: few threads, rare garbage collection, no network, the same examples and loggers."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator

import pytest

# Before anything imports numpy, torch or ITK, which read these once.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("ITK_GLOBAL_DEFAULT_THREADER", "Pool")  # TBB's, slicer-core's own, crash at the process's end
os.environ.setdefault("MPLBACKEND", "Agg")

from hypothesis import HealthCheck, settings  # noqa: E402

from SDFSMISLib.model.memory import collect_rarely  # noqa: E402

collect_rarely()  # as the commands do

settings.register_profile(
    "project", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("project")

LONGEST_FIRST = (
    "test_benchmark_run.py",
    "test_volume_run.py",
    "test_ray.py",  # not first: its many processes import what the first ones have compiled
    "test_benchmark_parts.py",
    "test_training_stages.py",
    "test_bench.py",
    "test_cli_commands.py",
    "test_self_test.py",
    "test_convert.py",
    "test_serving.py",
    "test_cohort.py",
    "test_panel_backend.py",
)
"""Files that take a process a quarter of a minute or more: at the end one would keep the other processes waiting."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


def pytest_collection_finish() -> None:
    gc.freeze()  # what was imported stays: no collection need look through it


@pytest.fixture(autouse=True)
def backend_logs_as_before() -> Iterator[None]:
    """`serve` in a test's own process logs to that test's standard error, which is closed afterwards."""
    loggers = [logging.getLogger(name) for name in ("sdfsmis.server", "uvicorn.error")]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)
