"""Names of learned models as requests have them; the rule is the client's, so that both sides say the same."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from SDFSMISLib.client.model_name import MOST_NAME, model_name
from SDFSMISLib.errors import InputError

__all__ = ["ModelName"]


def _checked(text: str) -> str:
    """The name as it is compared. Raises `ValueError` for what is none."""
    try:
        return model_name(text)
    except InputError as error:
        raise ValueError(str(error).removesuffix(".")) from error


ModelName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MOST_NAME,
        description="letters of any script and digits; inside it also blanks, `-`, `_` and `.`",
    ),
    AfterValidator(_checked),
]
