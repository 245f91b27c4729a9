"""Files that appear whole or not at all: written beside their place, then renamed."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from SDFSMISLib.errors import InputError

__all__ = ["atomic_output"]


@contextmanager
def atomic_output(path: Path, extension: str) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its place when the block ends well, and is removed when it does not.

    ``extension`` (``".nii.gz"``) is kept by the temporary file, since writers choose their format by it. The folder is
    made where it is missing. Raises :class:`InputError` when the folder cannot be made, the file cannot be written or
    renamed, or the disk is full.
    """
    temporary = path.with_name(f".{path.name.removesuffix(extension)}.{uuid.uuid4().hex[:8]}{extension}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"Cannot write {path}: {reason}; name a file in a folder that can be written to.") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
