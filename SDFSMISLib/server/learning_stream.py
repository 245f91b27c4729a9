"""What an adaptation tells on its way to its client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from SDFSMISLib import __version__
from SDFSMISLib.protocol import PROTOCOL, RECORDS_TYPE, write_record
from SDFSMISLib.server.adaptations import Pupil, end_record
from SDFSMISLib.server.models import LearnedModel
from SDFSMISLib.server.stream import ALIVE_SECONDS

__all__ = ["LearningResponse", "LearningStream"]

PAUSE_SECONDS = 0.5  # between two records of progress; of those that come meanwhile the last one counts


class LearningStream:
    """The records of an adaptation from now on, or of a finished model.

    To be made in the event loop's thread.

    Args:
        learned: what learns, or the model that was learned before.
        start: weights that it begins with: `model` (a name), `weights_sha256`, `device`.
    """

    def __init__(self, learned: Pupil | LearnedModel, start: dict[str, Any]) -> None:
        self._pupil = learned if isinstance(learned, Pupil) else None
        self._model = learned.model if isinstance(learned, Pupil) else learned
        self._start = start
        self._began = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._news: dict[str, Any] = {}
        self._has_news = asyncio.Event()
        if self._pupil is None:
            self._take(end_record(self._model))
        else:
            self._pupil.listen(self._hear)

    async def lines(self) -> AsyncIterator[bytes]:
        """The records, each a line of bytes."""
        lesson = self._model.lesson
        about = {"protocol": PROTOCOL, "version": __version__, **self._start}
        asked = {"name": lesson.name, "scans": len(lesson.scans), "minutes": lesson.minutes}
        yield write_record({"type": "start", **about, **asked})
        while True:
            try:
                await asyncio.wait_for(self._has_news.wait(), ALIVE_SECONDS)
            except asyncio.TimeoutError:
                yield write_record({"type": "alive"})
                continue
            self._has_news.clear()
            news = self._news
            if news["type"] == "progress":
                yield write_record({**news, "seconds": time.monotonic() - self._began})
                await asyncio.sleep(PAUSE_SECONDS)
            else:
                yield write_record(news)
                return

    def leave(self) -> None:
        """The records are not taken any more; learning ends, if nobody else listens."""
        if self._pupil is not None:
            self._pupil.leave(self._hear)

    def _hear(self, record: dict[str, Any]) -> None:
        """In any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._take, record)

    def _take(self, record: dict[str, Any]) -> None:
        self._news = record
        self._has_news.set()


class LearningResponse(StreamingResponse):
    """The answer that streams an adaptation. Whatever ends it cancels the adaptation, even before it has begun."""

    def __init__(self, stream: LearningStream) -> None:
        super().__init__(stream.lines(), media_type=RECORDS_TYPE, headers={"Cache-Control": "no-store"})
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._stream.leave()
