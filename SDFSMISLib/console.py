"""Status lines and progress bars of the commands, on standard error; standard output is for results only."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import typer

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["duration", "one_line", "print_status", "progress", "table_console", "waiting", "warnings_as_lines"]

PACKAGE = Path(__file__).resolve().parent
FILE_WIDTH = 240  # columns of a table that is not for a terminal, which would be 80 and cut names off


class ProgressCallback(Protocol):
    """Sets a progress bar: how much is done, and, if they change, the total and the description."""

    def __call__(self, done: int, total: int | None = None, text: str | None = None) -> None: ...


def print_status(text: str) -> None:
    """One line on standard error."""
    typer.echo(one_line(text), err=True)


def one_line(text: object) -> str:
    """The text of an error or a warning without line breaks.

    >>> one_line("Cannot read\\n  the file.")
    'Cannot read the file.'
    """
    return " ".join(str(text).split())


def duration(seconds: float) -> str:
    """Seconds for a reader.

    >>> duration(0.4), duration(45), duration(170), duration(9000)
    ('0.4 s', '45 s', '3 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def table_console() -> Console:
    """For tables on standard output: as wide as the terminal, or so wide that a file has all of them."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = FILE_WIDTH
    return console


@contextmanager
def progress(description: str, total: int) -> Iterator[ProgressCallback]:
    """A progress bar with the time left, if standard error is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=total)

        def advance(done: int, total: int | None = None, text: str | None = None) -> None:
            bar.update(task, completed=done, total=total, description=text)

        yield advance


@contextmanager
def waiting(description: str) -> Iterator[None]:
    """A spinner for work of unknown length, if standard error is a terminal."""
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status(escape(description)):
        yield


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Within it warnings of this package are printed as one line each; those of other packages are dropped."""

    def show(message: Warning | str, category: type[Warning], filename: str, *_: object) -> None:
        if Path(filename).resolve().is_relative_to(PACKAGE) and issubclass(category, UserWarning):
            print_status(f"Warning: {message}")

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show  # type: ignore[assignment]
        yield
