"""Scans that wait on disk to be learned from: each only for whom it belongs to, none for longer than it is of use."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from SDFSMISLib.server.failures import Refused
from SDFSMISLib.server.owners import owner_folder
from SDFSMISLib.volume import Volume

__all__ = ["ScanStore"]

EXTENSION = ".nrrd"
OURS = re.compile(rf"\.?[0-9a-f]{{64}}(\.[0-9a-f]{{8}})?{re.escape(EXTENSION)}")  # those being written too
RETRY_SECONDS = 60  # after which to ask again whether there is room


class ScanStore:
    """Scans by owner and content hash. All may be called from several threads.

    The time of a file is when it was last used. What a store of before has left is deleted.

    Args:
        folder: of them alone.
        most_bytes: of all files; one beyond them is refused.
        most_seconds: that a scan stays without being used.
    """

    def __init__(self, folder: Path, most_bytes: int, most_seconds: float) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        self._most_seconds = most_seconds
        self._held: frozenset[Path] = frozenset()
        self._lock = threading.RLock()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.clear()

    def path(self, owner: str, content: str) -> Path:
        """Where a scan is, or would be."""
        return owner_folder(self._folder, owner) / f"{content}{EXTENSION}"

    def put(self, owner: str, content: str, scan: Volume) -> bool:
        """Keep a scan; False where it is there already.

        Raises:
            InputError: where it cannot be written.
            Refused: where there is no room for it beside the others, which all may still be asked for.
        """
        path = self.path(owner, content)
        if self._used(path):
            return False
        scan.write(path)
        try:
            self._check_room(path.parent)
        except Refused:
            _remove(path)
            raise
        return True

    def missing(self, owner: str, contents: Iterable[str]) -> list[str]:
        """Those that are not here, each once, in their order. The others are kept a while longer."""
        return [content for content in dict.fromkeys(contents) if not self._used(self.path(owner, content))]

    def hold(self, owner: str, contents: Iterable[str]) -> None:
        """Keep these, and no others that were held before, until they are released or deleted."""
        with self._lock:
            self._held = frozenset(self.path(owner, content) for content in contents)

    def release(self) -> None:
        """What was held goes once it has not been used for too long, from now on."""
        with self._lock:
            held, self._held = self._held, frozenset()
        for path in held:
            self._used(path)

    def delete(self, owner: str, contents: Iterable[str]) -> None:
        """Forget scans that are here; those that are held, at the latest once they are released and expire."""
        with self._lock:
            for content in contents:
                if (path := self.path(owner, content)) not in self._held:
                    _remove(path)

    def expire(self) -> None:
        """Forget what has not been used for too long."""
        oldest = time.time() - self._most_seconds
        with self._lock:
            for path, _, used in self._files():
                if used < oldest and path not in self._held:
                    _remove(path)

    def clear(self) -> None:
        """Forget all. What others have put into the folder stays."""
        with self._lock:
            for path, _, _ in self._files():
                _remove(path)

    def _used(self, path: Path) -> bool:
        """Whether a scan is there; then it has been used now."""
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def _check_room(self, own: Path) -> None:
        """Raises `Refused` where files are too many, those of the owner's folder `own` or all together."""
        files = self._files()
        if sum(size for _, size, _ in files) > self._most_bytes:
            self.expire()
            files = self._files()
        mine = sum(size for path, size, _ in files if path.parent == own)
        if mine > self._most_bytes:
            raise Refused(
                413,
                "too_large",
                f"Your scans would take {mine} bytes here, as files; {self._most_bytes} are kept. Send fewer, or "
                "forget some first.",
            )
        if sum(size for _, size, _ in files) > self._most_bytes:
            text = "Scans of others wait here to be learned from, and leave too little room; ask again later."
            raise Refused(503, "scans_full", text, headers={"Retry-After": str(RETRY_SECONDS)})

    def _files(self) -> list[tuple[Path, int, float]]:
        """All files of ours, those being written too: path, bytes, and when it was last used."""
        found = []
        for path in self._folder.glob("*/*"):
            with suppress(FileNotFoundError):
                if OURS.fullmatch(path.name) and path.is_file():
                    about = path.stat()
                    found.append((path, about.st_size, about.st_mtime))
        return found


def _remove(path: Path) -> None:
    with suppress(OSError):  # gone already; or, on Windows, open: it goes with the next ones
        path.unlink()
