"""The two exceptions that a caller of this library may want to tell apart from a defect."""

from __future__ import annotations

__all__ = ["Cancelled", "InputError"]


class InputError(ValueError):
    """Bad input or a bad environment that the user can mend; the text is one sentence made to be shown as it is."""


class Cancelled(RuntimeError):
    """The caller's ``cancel()`` answered yes, so the run stopped without a result."""
