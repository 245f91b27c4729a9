"""The process in which weights learn, on so few examples that a test can wait for it."""

from __future__ import annotations

import pytest

from SDFSMISLib.server import learning_child
from SDFSMISLib.training import adaptation, adaptation_measure, adaptation_propagation, adaptation_recipe

__all__ = ["make_small"]


def make_small(patch: pytest.MonkeyPatch) -> None:
    """Few synthetic volumes and held-out episodes, and time for all scans."""
    patch.setitem(adaptation_recipe.OURS, "synthetic_count", 1)
    patch.setitem(adaptation_recipe.OURS, "batch", 1)
    patch.setattr(adaptation_measure, "SIZE", 2)
    patch.setattr(adaptation_measure, "BATCHES", {"propagate": 1, "cross": 1})
    patch.setattr(adaptation_propagation, "TASKS", 2)
    patch.setattr(adaptation, "PREPARING", 100.0)


if __name__ == "__main__":
    make_small(pytest.MonkeyPatch())
    learning_child.main()
