"""The backend's log: one line an event, `name key=value …`; never anything of a scan."""

from __future__ import annotations

import json
import logging
import sys

LOGGER = logging.getLogger("sdfsmis.server")


def event(name: str, **fields: object) -> None:
    """Log an event with its fields; those that are None are left out."""
    told = " ".join(f"{key}={_value(value)}" for key, value in fields.items() if value is not None)
    LOGGER.info("%s %s", name, told)


def log_to_stderr() -> None:
    """Show the log, and uvicorn's errors, on standard error. Its warnings tell of each malformed request."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for logger, level in ((LOGGER, logging.INFO), (logging.getLogger("uvicorn.error"), logging.ERROR)):
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    return text if text and text.isprintable() and not set(text) & set(' "=') else json.dumps(text)
