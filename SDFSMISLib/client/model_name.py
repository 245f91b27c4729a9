"""What a learned model may be called: a name that people can read in any script, on any system."""

from __future__ import annotations

import unicodedata

from SDFSMISLib.errors import InputError

__all__ = ["MOST_NAME", "model_name", "plain_name"]

MOST_NAME = 40  # characters
BETWEEN = " -_."  # that a name may have inside, beside letters and digits of any script


def plain_name(text: str) -> str:
    """A name in the one form in which names are compared: letters composed, single blanks between words."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def model_name(text: str) -> str:
    """The plain form of a name. Raises `InputError` for what no model may be called."""
    name = plain_name(text)
    kinds = [unicodedata.category(letter) for letter in name]
    whole = all(kind[0] in "LM" or kind == "Nd" or letter in BETWEEN for letter, kind in zip(name, kinds, strict=True))
    if not 0 < len(name) <= MOST_NAME or not whole or name[0] in BETWEEN or name[-1] in BETWEEN or kinds[0][0] == "M":
        raise InputError(
            f"The name {text!r:.60} was given; a model's name has 1 to {MOST_NAME} letters and digits, and inside it "
            "blanks, hyphens, underscores and dots."
        )
    return name
