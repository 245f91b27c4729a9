"""The two exceptions of this library that are not defects: invalid input, and cancellation."""

from __future__ import annotations

__all__ = ["Cancelled", "InputError"]


class InputError(ValueError):
    """Invalid input or environment, which the user can correct; the text says how, and is shown as it is."""


class Cancelled(RuntimeError):
    """The caller's ``cancel()`` returned True, so the run stopped without a result."""
