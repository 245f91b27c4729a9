"""The options of a run check themselves, wherever they come from, and need no torch."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from SDFSMISLib import RunOptions
from SDFSMISLib.errors import InputError
from SDFSMISLib.server.schema import SegmentationRequest


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"strategy": "magic"}, "strategy 'magic' was given; propagate and independent are accepted"),
        ({"region": "small"}, "region 'small' was given; auto and full are accepted"),
        ({"threshold": 0.0}, "threshold 0.0 was given; a probability between 0 and 1 is accepted, 0.5 by default"),
        ({"threshold": 1.0}, "threshold 1.0"),
        ({"threshold": float("nan")}, "threshold nan"),
        ({"batch_size": 0}, "batch size 0"),
    ],
)
def test_a_value_that_is_not_accepted_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RunOptions(**given)


def test_the_backend_has_the_same_defaults() -> None:
    fields = SegmentationRequest.model_fields
    assert RunOptions() == RunOptions(*(fields[name].default for name in ("strategy", "region", "threshold")))


def test_they_are_made_without_torch() -> None:
    code = "import sys; from SDFSMISLib import RunOptions; RunOptions(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
