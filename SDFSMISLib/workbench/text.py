"""Texts of the workbench: their translation, which a front end hands in, and durations as a person says them."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["set_translator", "spoken", "tr"]

_translate: Callable[[str], str] = str


def set_translator(translate: Callable[[str], str]) -> None:
    """Hand in the front end's translation, in 3D Slicer ``slicer.i18n.tr``; without one, texts stay English.

    Args:
        translate: from an English text, with its ``{placeholders}``, to the user's language.
    """
    global _translate
    _translate = translate


def tr(text: str) -> str:
    """A text in the user's language."""
    return _translate(text)


_ = tr


def spoken(seconds: float) -> str:
    """Seconds in words that are as exact as anyone needs."""
    if seconds < 60:
        return _("{n} s").format(n=max(1, round(seconds)))
    if seconds < 3600:
        return _("{n} min").format(n=round(seconds / 60))
    return _("{hours} h {minutes} min").format(hours=int(seconds // 3600), minutes=int(seconds % 3600 // 60))
