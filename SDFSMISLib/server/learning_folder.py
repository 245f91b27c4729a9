"""The folder that learning keeps its things in: nobody else's, so that what is old in it may be deleted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO

from SDFSMISLib.atomic import atomic_output
from SDFSMISLib.errors import InputError
from SDFSMISLib.server.folder_lock import locked

__all__ = ["marked", "opened"]

MARKER = "sdfsmis-adaptations.json"
ABOUT = {"about": "Scans that wait and models that were learned, of sdfsmis serve --adaptations; files here may go."}


def opened(folder: Path) -> IO[bytes]:
    """An open file, with which the folder is this process's until the file is closed; made where it is missing.

    Raises:
        InputError: where it holds things of somebody else, cannot be used, or another backend has it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (folder / MARKER).is_file():
            if any(folder.iterdir()):
                raise InputError(
                    f"The folder {folder} holds other things already, and what is learned needs one of its own; name "
                    "a new or an empty folder."
                )
            marked(folder)
        return locked(folder)
    except BlockingIOError as error:
        raise InputError(f"Another backend keeps its learned weights in {folder}; name another folder.") from error
    except OSError as error:
        raise InputError(f"Learned weights cannot be kept in {folder} ({error}); name another folder.") from error


def marked(folder: Path) -> Path:
    """The folder, told to be one for learning. Raises `InputError` where it cannot be written to."""
    with atomic_output(folder / MARKER, ".json") as part:
        part.write_text(json.dumps(ABOUT) + "\n", encoding="utf-8")
    return folder
