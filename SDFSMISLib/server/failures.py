"""Failures as the client sees them: a status, a code, and a sentence."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse


class Refused(HTTPException):
    """An answer other than the one that was hoped for.

    Args:
        status: of HTTP.
        code: for programs.
        message: a sentence for people.
        more: further fields of the answer's `error`.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        more: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.code = code
        self.more = dict(more or {})

    def answer(self) -> JSONResponse:
        error = {"code": self.code, "message": self.detail, **self.more}
        return JSONResponse({"error": error}, self.status_code, self.headers)
