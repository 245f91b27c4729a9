"""Duration: how long something takes, as a clinician says it."""

from __future__ import annotations

__all__ = ["spoken"]


def spoken(seconds: float) -> str:
    """Seconds in words that are as exact as anyone needs."""
    if seconds < 60:
        return _("{n} s").format(n=max(1, round(seconds)))
    if seconds < 3600:
        return _("{n} min").format(n=round(seconds / 60))
    return _("{hours} h {minutes} min").format(hours=int(seconds // 3600), minutes=int(seconds % 3600 // 60))
