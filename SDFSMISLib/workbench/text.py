"""Texts of the workbench: translated by what a front end hands in; durations in words."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["format_duration", "set_translator", "tr"]

_translate: Callable[[str], str] = str


def set_translator(translate: Callable[[str], str]) -> None:
    """Hand in the front end's translation, in 3D Slicer ``slicer.i18n.tr``; without one, texts stay English.

    Args:
        translate: from an English text, with its ``{placeholders}``, to the user's language.
    """
    global _translate
    _translate = translate


def tr(text: str) -> str:
    """An English text in the user's language."""
    return _translate(text)


_ = tr


def format_duration(seconds: float) -> str:
    """A duration in words, rounded.

    >>> format_duration(130), format_duration(11_100)
    ('2 min', '3 h 5 min')
    """
    if seconds < 60:
        return _("{n} s").format(n=max(1, round(seconds)))
    if seconds < 3600:
        return _("{n} min").format(n=round(seconds / 60))
    return _("{hours} h {minutes} min").format(hours=int(seconds // 3600), minutes=int(seconds % 3600 // 60))
