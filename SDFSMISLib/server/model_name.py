"""What a learned model may be called: a name that people can read in any script, on any system."""

from __future__ import annotations

import unicodedata
from typing import Annotated

from pydantic import AfterValidator, Field

__all__ = ["ModelName"]

MOST_NAME = 40  # characters of a model's name
BETWEEN = " -_."  # that a model's name may have inside, beside letters and digits of any script


def _model_name(text: str) -> str:
    """The name in the one form in which its letters are compared. Raises `ValueError` for what is none."""
    name = unicodedata.normalize("NFC", text)
    kinds = [unicodedata.category(letter) for letter in name]
    whole = all(kind[0] in "LM" or kind == "Nd" or letter in BETWEEN for letter, kind in zip(name, kinds, strict=True))
    if not whole or len(name) > MOST_NAME or name[0] in BETWEEN or name[-1] in BETWEEN or kinds[0][0] == "M":
        raise ValueError(
            f"a name has 1 to {MOST_NAME} letters and digits, and inside it blanks, hyphens, underscores and dots"
        )
    return name


ModelName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MOST_NAME,
        description="letters of any script and digits; inside it also blanks, `-`, `_` and `.`",
    ),
    AfterValidator(_model_name),
]
