"""The Python environment on this computer in which the backend runs: made of Slicer's Python, in a folder of its own.

Also :func:`run_command`, which runs a program to its end, line by line, and can end it with all that it started.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from SDFSMISLib.errors import Cancelled, InputError
from SDFSMISLib.images.files import atomic_output

if sys.platform == "win32":
    NO_WINDOW = subprocess.CREATE_NO_WINDOW
else:
    NO_WINDOW = 0

NOT_INHERITED = ("PYTHONHOME", "PYTHONPATH")  # of the Python that runs this; another one would not start with them
POLL_SECONDS = 0.1  # seconds between two calls of cancel()
TERMINATION = 3.0  # seconds between asking a process to end and killing it


@dataclass(frozen=True)
class CommandResult:
    """Exit status of a program, and the lines that it wrote to both outputs."""

    status: int
    lines: tuple[str, ...]


def clean(variables: Mapping[str, str]) -> dict[str, str]:
    """Environment variables without those that keep another Python from starting.

    >>> clean({"PATH": "/usr/bin", "PYTHONHOME": "/opt/slicer"})
    {'PATH': '/usr/bin'}
    """
    return {name: value for name, value in variables.items() if name.upper() not in NOT_INHERITED}


def run_command(
    command: Sequence[str],
    variables: Mapping[str, str],
    *,
    folder: Path | None = None,
    on_line: Callable[[str], None] | None = None,
    cancel: Callable[[], bool] | None = None,
) -> CommandResult:
    """Run a program until it ends.

    Args:
        command: the program and its arguments.
        variables: all its environment variables; PYTHONHOME and PYTHONPATH are left out.
        folder: its working directory; None = that of this process.
        on_line: called in this thread with each line that it writes.
        cancel: called ten times a second; True ends the program and all that it started.

    Raises:
        InputError: if it cannot be run.
        Cancelled: if ``cancel`` returned True; the program has ended then.

    >>> run_command([sys.executable, "-c", "print(6 * 7)"], os.environ)
    CommandResult(status=0, lines=('42',))
    """
    process = _started(command, variables, folder)
    lines: list[str] = []
    try:
        for line in _lines(process):
            if cancel is not None and cancel():
                raise Cancelled("It was cancelled.")
            if line is not None:
                lines.append(line)
                if on_line is not None:
                    on_line(line)
        return CommandResult(process.wait(), tuple(lines))
    finally:
        if process.poll() is None:
            _end_tree(process)


def _started(command: Sequence[str], variables: Mapping[str, str], folder: Path | None) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(
            list(command),
            env=clean(variables) | {"PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            creationflags=NO_WINDOW,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise InputError(f"{command[0]} cannot be run ({error}); name a program that exists.") from error


def _lines(process: subprocess.Popen[str]) -> Iterator[str | None]:
    """The lines until the end; None whenever ``POLL_SECONDS`` passed without a line."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(process, lines), daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=POLL_SECONDS)
        except queue.Empty:
            yield None
            continue
        if line is None:
            break
        yield line
    while process.poll() is None:  # it has closed its output and still runs
        with suppress(subprocess.TimeoutExpired):
            process.wait(POLL_SECONDS)
        yield None


def _read(process: subprocess.Popen[str], lines: queue.SimpleQueue[str | None]) -> None:
    assert process.stdout is not None
    with process.stdout as pipe:
        for line in pipe:
            lines.put(line.rstrip("\r\n"))
    lines.put(None)


def _end_tree(process: subprocess.Popen[str]) -> None:
    """End a process and all processes that it started."""
    if sys.platform == "win32":
        words = ["taskkill", "/T", "/F", "/PID", str(process.pid)]
        subprocess.run(words, capture_output=True, creationflags=NO_WINDOW, check=False)
    else:
        for kind in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, kind)  # it leads a group of its own
            with suppress(subprocess.TimeoutExpired):
                process.wait(TERMINATION)
    process.kill()
    process.wait()


OLDEST, NEWEST = (3, 10), (3, 12)
QUESTION = """
import json, os, sys
library = os.path.dirname(os.__file__)
inside = [p for p in sys.path if os.path.isdir(p) and p.startswith(sys.base_prefix) and "site-packages" not in p]
executable = getattr(sys, "_base_executable", None) or sys.executable
print(json.dumps([sys.version_info[:2], sys.base_prefix, executable, library, inside]))
"""


@dataclass(frozen=True)
class BasePython:
    """A Python, as it describes itself.

    Attributes:
        command: path that starts it.
        version: major and minor.
        prefix: folder of its installation.
        executable: the program itself, which ``command`` may only start.
        standard_library: folder of its standard library.
        paths: folders in which it finds modules of the standard library.
        variables: environment variables with which it starts.
    """

    command: str
    version: tuple[int, int]
    prefix: Path
    executable: Path
    standard_library: Path
    paths: tuple[str, ...]
    variables: Mapping[str, str]

    def complete(self, folder: Path, site_packages: Path) -> None:
        """Make an environment in ``folder`` find the standard library.

        Slicer's Python finds its standard library by PYTHONHOME; the Python of an environment must find it without.

        Raises:
            OSError: if files cannot be written.
        """
        configuration = folder / "pyvenv.cfg"
        lines = configuration.read_text(encoding="utf-8").splitlines()
        home = Path(next(line for line in lines if line.startswith("home")).partition("=")[2].strip())
        inside = self.standard_library.relative_to(self.prefix)
        above = (place / inside for place in (home, *home.parents))
        found = next((place for place in above if (place / "os.py").is_file()), None)
        if found is None or not found.samefile(self.standard_library):  # none, or that of another Python
            home = self.prefix if os.name == "nt" else self.prefix / "bin"
            lines = [f"home = {home}" if line.startswith("home") else line for line in lines]
            configuration.write_text("\n".join(lines) + "\n", encoding="utf-8")
        extra = list(self.paths)  # those that are known already are not taken twice
        if os.name == "nt":
            extra.append(f"import os; os.add_dll_directory({str(self.executable.parent)!r})")
            self._copy_program(folder / "Scripts")
        site_packages.mkdir(parents=True, exist_ok=True)
        (site_packages / "sdfsmis_standard_library.pth").write_text("\n".join(extra) + "\n", encoding="utf-8")

    def _copy_program(self, scripts: Path) -> None:
        """On Windows ``venv`` needs a starter, which Slicer's Python lacks; copy the program itself in its place."""
        if (scripts / "python.exe").exists():
            return
        scripts.mkdir(parents=True, exist_ok=True)
        shutil.copy2(self.executable, scripts / "python.exe")
        for pattern in ("python3*.dll", "vcruntime*.dll"):
            for library in self.executable.parent.glob(pattern):
                shutil.copy2(library, scripts / library.name)


def ask_python(python: str, environments: Mapping[str, Mapping[str, str]], cancel: Callable[[], bool]) -> BasePython:
    """Start a Python and let it describe itself.

    Args:
        python: its path.
        environments: environment variables by name, tried in this order.
        cancel: called while it runs; True stops it.

    Raises:
        InputError: if it cannot be started, or is too old or too new.
        Cancelled: if ``cancel`` returned True.
    """
    output: tuple[str, ...] = ()
    for variables in environments.values():
        done = run_command([python, "-c", QUESTION], variables, cancel=cancel)
        output = done.lines
        for line in reversed(output) if done.status == 0 else ():
            try:
                version, prefix, executable, library, paths = json.loads(line)
            except ValueError:
                continue
            places = Path(prefix), Path(executable), Path(library)
            return _accepted(BasePython(python, tuple(version), *places, tuple(paths), variables))
    last = f" ({output[-1].strip()})" if output else ""
    raise InputError(f"{python} is no Python that starts{last}; name the program of a Python 3.10, 3.11 or 3.12.")


def _accepted(base: BasePython) -> BasePython:
    if not OLDEST <= base.version <= NEWEST:
        version, what = ".".join(map(str, base.version)), "old" if base.version < OLDEST else "new"
        raise InputError(f"{base.command} is Python {version}, which is too {what}; name a Python 3.10, 3.11 or 3.12.")
    return base


MARKER = "made-by-sdfsmis.txt"
STAMP = "sdfsmis-installed.json"
LIBRARY = "SDFSMISLib"
COPIED = {".py", ".json", ".safetensors", ".yaml"}
TRIAL = "import ssl, ctypes, sqlite3, zlib"
WHAT_IT_IS = (
    "This folder is the Python environment of SDFSMIS, made by its panel in 3D Slicer.\n"
    "The panel removes it with all that is in it; keep nothing of your own here.\n"
)


class EnvironmentState(str, Enum):
    """How complete an environment is.

    ``ABSENT``: there is none. ``INCOMPLETE``: an installation was interrupted, or the Python that it was made of was
    removed. ``OUTDATED``: another version of the library installed it. ``READY``: it can be used.
    """

    ABSENT = "absent"
    INCOMPLETE = "incomplete"
    OUTDATED = "outdated"
    READY = "ready"


class Environment:
    """The environment in a folder. The constructor changes nothing; one thread at a time may change the environment.

    Attributes:
        folder, panel_library, requirements: as given.
        environments: as given, without PYTHONHOME and PYTHONPATH.
    """

    def __init__(
        self, folder: Path, panel_library: Path, requirements: Path, environments: Mapping[str, Mapping[str, str]]
    ) -> None:
        """
        Args:
            folder: of the environment; outside the extension's folder, which an update replaces.
            panel_library: the folder ``SDFSMISLib`` from which the front end was loaded.
            requirements: file of the packages that the backend needs.
            environments: environment variables by name with which its Python may start; the first that work are used.
                In Slicer: those that Slicer was started with, then Slicer's own.
        """
        self.folder, self.panel_library, self.requirements = Path(folder), Path(panel_library), Path(requirements)
        self.environments = {name: clean(variables) for name, variables in environments.items()}
        self._digests: tuple[str, str] | None = None

    # -- state ---------------------------------------------------------------------------------------------------------

    @property
    def state(self) -> EnvironmentState:
        """How complete it is; takes 0.1 s the first time, then milliseconds."""
        if not self.exists:
            return EnvironmentState.ABSENT
        stamp = self._stamp()
        if stamp is None:
            return EnvironmentState.INCOMPLETE
        same = (stamp["requirements"], stamp["library"]) == self._wanted()
        return EnvironmentState.READY if same else EnvironmentState.OUTDATED

    @property
    def exists(self) -> bool:
        """Whether there is an environment of ours in the folder, complete or not."""
        return (self.folder / MARKER).is_file()

    @property
    def needs_packages(self) -> bool:
        """Whether packages must be installed, not only a newer copy of the library."""
        stamp = self._stamp()
        return stamp is None or stamp["requirements"] != self._wanted()[0]

    @property
    def python(self) -> Path:
        """Path of its Python program."""
        return self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def site_packages(self) -> Path:
        """The folder of its packages.

        Raises:
            InputError: if there is no environment.
        """
        if os.name == "nt":
            return self.folder / "Lib" / "site-packages"
        found = sorted(self.folder.glob("lib/python3.*/site-packages"))
        if not found:
            raise InputError(f"There is no Python environment in {self.folder}; install it.")
        return found[0]

    def environment_variables(self) -> dict[str, str]:
        """The environment variables with which its Python starts: those of the given ones that worked."""
        return dict(self.environments[self.variables_name])

    @property
    def variables_name(self) -> str:
        """The name of :meth:`environment_variables` in ``environments``."""
        name = (self._stamp() or {}).get("environment")
        return name if name in self.environments else next(iter(self.environments))

    def size(self) -> int:
        """Bytes of its files, which takes a second to count."""
        total = 0
        for place, _, names in os.walk(self.folder):
            for name in names:
                with suppress(OSError):
                    total += os.lstat(os.path.join(place, name)).st_size
        return total

    # -- changes -------------------------------------------------------------------------------------------------------

    def make(self, python: str, cancel: Callable[[], bool], on_line: Callable[[str], None]) -> str:
        """Make the environment again, with pip and nothing else; it stays incomplete until :meth:`finish`.

        Args:
            python: path of the Python that it is made of.
            cancel: called while programs run; True stops them.
            on_line: called with each line that they write.

        Returns:
            the name of the environment variables with which its Python starts.

        Raises:
            InputError: if the folder has other contents or cannot be written, or Python cannot make an environment.
            Cancelled: if ``cancel`` returned True.
        """
        base = ask_python(python, self.environments, cancel)
        if self.exists:
            self.remove()
        try:
            if self.folder.exists() and any(self.folder.iterdir()):
                raise InputError(f"{self.folder} holds something that SDFSMIS has not made; name another folder.")
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / MARKER).write_text(WHAT_IT_IS, encoding="utf-8")
            self._make_frame(base, cancel, on_line)
        except OSError as error:
            raise InputError(_not_written(self.folder, error)) from error
        name = self._starting_variables(cancel)
        self._add_pip(base, name, cancel, on_line)
        return name

    def copy_library(self) -> None:
        """Copy the library of the front end into the environment, in place of an older copy.

        Raises:
            InputError: if the copy cannot be written.
        """
        place = self.site_packages / LIBRARY
        new, old = place.with_name(f"{LIBRARY}.new"), place.with_name(f"{LIBRARY}.old")
        try:
            for rest in (new, old):
                if rest.exists():
                    shutil.rmtree(rest)
            for path in _library_files(self.panel_library):
                target = new / path.relative_to(self.panel_library)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
            if place.exists():
                os.replace(place, old)
            os.replace(new, place)
            shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            raise InputError(_not_written(place, error)) from error

    def finish(self, name: str) -> None:
        """Record that the environment is complete.

        Args:
            name: of the environment variables with which its Python starts.

        Raises:
            InputError: if its Python does not start, or the record cannot be written.
        """
        requirements, library = self._wanted()
        stamp = {
            "requirements": requirements,
            "library": library,
            "environment": name,
            "standard_library": self._standard_library(name),
        }
        with atomic_output(self.folder / STAMP, ".json") as path:
            path.write_text(json.dumps(stamp), encoding="utf-8")

    def unfinish(self) -> None:
        """Record that the environment is being changed: until :meth:`finish` it is incomplete.

        Raises:
            InputError: if the record cannot be removed.
        """
        try:
            (self.folder / STAMP).unlink(missing_ok=True)
        except OSError as error:
            raise InputError(_not_written(self.folder, error)) from error

    def remove(self) -> str:
        """Delete the environment; a folder that SDFSMIS has not made is never deleted.

        Returns:
            what was done, in a sentence.

        Raises:
            InputError: if SDFSMIS has not made the folder, or something in it cannot be deleted.
        """
        if not self.folder.exists():
            return f"There is nothing to remove in {self.folder}."
        if not self.exists:
            raise InputError(f"{self.folder} was not made by SDFSMIS and is left as it is; delete it yourself.")
        size = self.size()
        self.unfinish()
        try:
            for path in self.folder.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path.name != MARKER:
                    path.unlink()
            (self.folder / MARKER).unlink()  # the last: what is left until then can be removed again
            self.folder.rmdir()
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(
                f"{error.filename or self.folder} cannot be removed ({reason}); end the programs that use it, and "
                "remove it again."
            ) from error
        return f"Removed {self.folder} ({size / 1e9:.1f} GB)."

    # -- within --------------------------------------------------------------------------------------------------------

    def _make_frame(self, base: BasePython, cancel: Callable[[], bool], on_line: Callable[[str], None]) -> None:
        """The environment without pip."""
        words = [base.command, "-m", "venv", "--without-pip", str(self.folder)]
        done = run_command(words, base.variables, cancel=cancel, on_line=on_line)
        if done.status != 0 or not (self.folder / "pyvenv.cfg").is_file():
            raise InputError(_no_venv(base, done.lines))
        inside = "Lib" if os.name == "nt" else f"lib/python{base.version[0]}.{base.version[1]}"
        base.complete(self.folder, self.folder / inside / "site-packages")

    def _starting_variables(self, cancel: Callable[[], bool]) -> str:
        """The name of the first environment variables with which its Python starts and finds what pip needs."""
        problem = ""
        for name, variables in self.environments.items():
            done = run_command([str(self.python), "-c", TRIAL], variables, cancel=cancel)
            if done.status == 0:
                return name
            problem = done.lines[-1].strip() if done.lines else f"exit status {done.status}"
        raise InputError(
            f"The Python in {self.folder} does not start ({problem}); name another Python 3.10, 3.11 or 3.12 of this "
            "computer to make the environment of."
        )

    def _add_pip(self, base: BasePython, name: str, cancel: Callable[[], bool], on_line: Callable[[str], None]) -> None:
        python = str(self.python)
        own = [python, "-m", "ensurepip", "--default-pip"], self.environments[name]
        # For a Python that came without a pip to give away:
        of_base = [base.command, "-m", "pip", "--python", python, "install", "pip"], base.variables
        lines: tuple[str, ...] = ()
        for words, variables in (own, of_base):
            done = run_command(words, variables, cancel=cancel, on_line=on_line)
            if done.status == 0:
                return
            lines = lines or done.lines
        raise InputError(_no_venv(base, lines))

    def _standard_library(self, name: str) -> str:
        """A file of the standard library; it disappears when the Python that the environment was made of is removed."""
        done = run_command([str(self.python), "-c", "import os; print(os.__file__)"], self.environments[name])
        if done.status != 0 or not done.lines:
            raise InputError(f"The Python in {self.folder} does not start any more; install it again.")
        return done.lines[-1]

    def _stamp(self) -> dict[str, Any] | None:
        """The record of :meth:`finish`; None without one, or if the Python that it was made of is gone."""
        with suppress(OSError, ValueError):
            stamp = json.loads((self.folder / STAMP).read_text(encoding="utf-8"))
            known = {"requirements", "library", "environment", "standard_library"}
            if isinstance(stamp, dict) and known <= stamp.keys() and self.exists and self.python.is_file():
                return stamp if Path(str(stamp["standard_library"])).is_file() else None
        return None

    def _wanted(self) -> tuple[str, str]:
        """Digests of the requirements and of the library of this version."""
        if self._digests is None:
            requirements = hashlib.sha256()
            for line in self.requirements.read_text(encoding="utf-8").splitlines():
                if line.strip() and not line.startswith("#"):
                    requirements.update(line.strip().encode() + b"\n")
            library = hashlib.sha256()
            for path in _library_files(self.panel_library):
                library.update(path.relative_to(self.panel_library).as_posix().encode() + b"\0")
                library.update(hashlib.sha256(path.read_bytes()).digest())
            self._digests = requirements.hexdigest(), library.hexdigest()
        return self._digests


def _library_files(library: Path) -> Iterator[Path]:
    """The files of the library to copy, in a fixed order."""
    for path in sorted(library.rglob("*")):
        if path.suffix in COPIED and "__pycache__" not in path.parts and path.is_file():
            yield path


def _not_written(place: Path, error: OSError) -> str:
    reason = error.strerror or str(error)
    return f"{place} cannot be written ({reason}); free some space, or name a folder that you may write to."


def _no_venv(base: BasePython, lines: tuple[str, ...]) -> str:
    last = f" ({lines[-1].strip()})" if lines else ""
    return (
        f"{base.command} cannot make a Python environment{last}; name another Python 3.10, 3.11 or 3.12 that has the "
        "modules venv and pip."
    )
