"""Files that appear whole or not at all: written beside their place, then renamed."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from SDFSMISLib.errors import InputError

__all__ = ["atomic_output", "atomic_outputs"]

PREVIOUS = "previous"  # within the temporary folder: the files that are replaced, until all have been


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


@contextmanager
def atomic_outputs(paths: Sequence[Path]) -> Iterator[dict[Path, Path]]:
    """Temporary files for `paths`, which take their places together when the block ends well; else all is as before.

    Temporary files have the names of theirs, in a new folder beside them; one that the block does not write leaves its
    place as it is. The last one disappears first and comes last, so that who sees it sees all. Folders are made where
    they are missing.

    >>> with atomic_outputs([table, labelmap]) as temporary:
    ...     temporary[table].write_text("label,volume_ml")
    ...     temporary[labelmap].write_bytes(content)

    Raises:
        InputError: where a folder cannot be made, a file cannot be written or moved to its place, or the disk is full.
    """
    folders: dict[Path, Path] = {}
    with ExitStack() as undo:
        try:
            for folder in dict.fromkeys(path.parent for path in paths):
                _make_folder(folder, undo)
                folders[folder] = Path(tempfile.mkdtemp(prefix=".sdfsmis-", dir=folder))
                undo.callback(_remove, folders[folder])
                (folders[folder] / PREVIOUS).mkdir()
            yield {path: folders[path.parent] / path.name for path in paths}
            written = [path for path in paths if (folders[path.parent] / path.name).exists()]
            for path in reversed(written):
                if path.is_symlink() or path.is_file():
                    _move(path, folders[path.parent] / PREVIOUS / path.name, undo)
            for path in written:
                _move(folders[path.parent] / path.name, path, undo)
        except InputError as error:
            text = str(error)
            for folder, temporary in folders.items():
                text = text.replace(f"{temporary}{os.sep}", f"{folder}{os.sep}")
            raise InputError(text) from error
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(
                f"Cannot write {paths[-1]}: {reason}; name a file in a folder that can be written to."
            ) from error
        undo.pop_all()
    for temporary in folders.values():
        shutil.rmtree(temporary, ignore_errors=True)


def _make_folder(folder: Path, undo: ExitStack) -> None:
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    for one in reversed(missing):
        one.mkdir(exist_ok=True)
        undo.callback(_remove_empty, one)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))


def _move(source: Path, target: Path, undo: ExitStack) -> None:
    os.replace(source, target)
    undo.callback(os.replace, target, source)


def _remove(temporary: Path) -> None:
    """Removes a temporary folder, unless a file that it was to replace could not be moved back."""
    if not any((temporary / PREVIOUS).glob("*")):
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
