"""A folder that one process at a time works in, however the one before ended."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import IO

__all__ = ["locked"]

IN_USE = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES}
if sys.platform == "win32":
    IN_USE.add(errno.EDEADLK)


def locked(folder: Path) -> IO[bytes]:
    """An open file, with which the folder is this process's until the file is closed, or the process ends.

    Raises:
        BlockingIOError: where another process has it. OSError: where files cannot be written or locked there.
    """
    file = (folder / "lock").open("ab")
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno not in IN_USE:
            raise
        raise BlockingIOError(f"{folder} is in use") from error
    return file
