"""Command: a program that is run to its end, line by line, and can be ended with everything that it started.

Base Python: the Python that an environment is made of, Slicer's own for one, and what makes that one special.

Environment: a Python environment of our own in a folder, with what the backend on this computer needs.
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

NOT_INHERITED = ("PYTHONHOME", "PYTHONPATH")  # they belong to the Python that runs here; another one would not start
LOOK = 0.1  # seconds between two looks at whether it was cancelled
TERMINATION = 3.0  # seconds between asking the system to end a process and making it


@dataclass(frozen=True)
class CommandResult:
    """How a program ended: its exit status, and the lines that it wrote."""

    status: int
    lines: tuple[str, ...]


def clean(variables: Mapping[str, str]) -> dict[str, str]:
    """Environment variables as another Python can take them."""
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
        command: its words.
        variables: its environment variables, all of them; PYTHONHOME and PYTHONPATH are left out.
        folder: where it runs; None = here.
        on_line: called in this thread with each line that it writes.
        cancel: asked ten times a second; True ends the program and all that it started.

    Raises:
        InputError: where it cannot be run.
        Cancelled: where ``cancel`` said so; the program has ended then.
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
        raise InputError(f"{command[0]} cannot be run ({error}); name a program that is there.") from error


def _lines(process: subprocess.Popen[str]) -> Iterator[str | None]:
    """The lines that come until the end; None whenever a while passed without one."""
    said: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(process, said), daemon=True).start()
    while True:
        try:
            line = said.get(timeout=LOOK)
        except queue.Empty:
            yield None
            continue
        if line is None:
            break
        yield line
    while process.poll() is None:  # it has closed its output and goes on
        with suppress(subprocess.TimeoutExpired):
            process.wait(LOOK)
        yield None


def _read(process: subprocess.Popen[str], said: queue.SimpleQueue[str | None]) -> None:
    assert process.stdout is not None
    with process.stdout as pipe:
        for line in pipe:
            said.put(line.rstrip("\r\n"))
    said.put(None)


def _end_tree(process: subprocess.Popen[str]) -> None:
    """End a process and all that it started."""
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
        command: path to start it by.
        version: major and minor.
        prefix: folder of its installation.
        executable: the program itself, where ``command`` only starts it.
        standard_library: folder of it.
        paths: folders that it finds modules of the standard library in.
        variables: environment variables that it starts with.
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

        Slicer's program is not where the standard library would be looked for from, and is told by PYTHONHOME where
        it is; the program of an environment has to find it by itself.

        Raises:
            OSError: where files cannot be written.
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
        """On Windows ``venv`` needs a starter, which Slicer's Python lacks; the program itself takes its place."""
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
        environments: name -> environment variables, tried in this order.
        cancel: asked while it runs.

    Raises:
        InputError: where it cannot be started, or is too old or too new.
        Cancelled: where ``cancel`` said so.
    """
    said: tuple[str, ...] = ()
    for variables in environments.values():
        done = run_command([python, "-c", QUESTION], variables, cancel=cancel)
        said = done.lines
        for line in reversed(said) if done.status == 0 else ():
            try:
                version, prefix, executable, library, paths = json.loads(line)
            except ValueError:
                continue
            places = Path(prefix), Path(executable), Path(library)
            return _accepted(BasePython(python, tuple(version), *places, tuple(paths), variables))
    last = f" ({said[-1].strip()})" if said else ""
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
    """How far an environment is.

    ``ABSENT``: nothing of ours is there. ``INCOMPLETE``: an installation was cut off, or the Python that it was made of
    has gone. ``OUTDATED``: it is of another version of the panel. ``READY``: it can be used.
    """

    ABSENT = "absent"
    INCOMPLETE = "incomplete"
    OUTDATED = "outdated"
    READY = "ready"


class Environment:
    """The environment in a folder. Making one of this class changes nothing; one thread at a time may change it.

    Attributes:
        folder, library, requirements: as given.
        environments: as given, without what belongs to the Python that runs here.
    """

    def __init__(
        self, folder: Path, panel_library: Path, requirements: Path, environments: Mapping[str, Mapping[str, str]]
    ) -> None:
        """
        Args:
            folder: where it is, or will be; outside the extension's folder, which an update replaces.
            panel_library: the folder ``SDFSMISLib`` that the panel itself was loaded from.
            requirements: file of the packages that the backend needs.
            environments: name -> environment variables that its Python may start with; the first that works is used.
                In Slicer: those that Slicer was started with, then Slicer's own.
        """
        self.folder, self.panel_library, self.requirements = Path(folder), Path(panel_library), Path(requirements)
        self.environments = {name: clean(variables) for name, variables in environments.items()}
        self._digests: tuple[str, str] | None = None

    # -- questions -----------------------------------------------------------------------------------------------------

    @property
    def state(self) -> EnvironmentState:
        """How far it is; takes milliseconds, after a tenth of a second for the first time."""
        if not self.exists:
            return EnvironmentState.ABSENT
        stamp = self._stamp()
        if stamp is None:
            return EnvironmentState.INCOMPLETE
        same = (stamp["requirements"], stamp["library"]) == self._wanted()
        return EnvironmentState.READY if same else EnvironmentState.OUTDATED

    @property
    def exists(self) -> bool:
        """Whether the folder is one of ours, whole or not."""
        return (self.folder / MARKER).is_file()

    @property
    def needs_packages(self) -> bool:
        """Whether more has to be installed than a newer copy of the library."""
        stamp = self._stamp()
        return stamp is None or stamp["requirements"] != self._wanted()[0]

    @property
    def python(self) -> Path:
        """Path of its Python."""
        return self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def site_packages(self) -> Path:
        """The folder of its packages.

        Raises:
            InputError: where the environment has none.
        """
        if os.name == "nt":
            return self.folder / "Lib" / "site-packages"
        found = sorted(self.folder.glob("lib/python3.*/site-packages"))
        if not found:
            raise InputError(f"There is no Python environment in {self.folder}; install it.")
        return found[0]

    def environment_variables(self) -> dict[str, str]:
        """The variables that its Python starts with: of those handed in, the ones that worked."""
        return dict(self.environments[self.variables_name])

    @property
    def variables_name(self) -> str:
        """The name of :meth:`environment_variables`."""
        name = (self._stamp() or {}).get("environment")
        return name if name in self.environments else next(iter(self.environments))

    def size(self) -> int:
        """Bytes of its files; looks at each of them, which takes a second."""
        total = 0
        for place, _, names in os.walk(self.folder):
            for name in names:
                with suppress(OSError):
                    total += os.lstat(os.path.join(place, name)).st_size
        return total

    # -- changes -------------------------------------------------------------------------------------------------------

    def make(self, python: str, cancel: Callable[[], bool], on_line: Callable[[str], None]) -> str:
        """Make it anew, with pip and nothing else; it stays incomplete until :meth:`finish`.

        Args:
            python: path of the Python that it is made of.
            cancel: asked while programs run.
            on_line: called with what they write.

        Returns:
            the name of the environment variables that its Python starts with.

        Raises:
            InputError: where the folder holds something else or cannot be written, or Python cannot do it.
            Cancelled: where ``cancel`` said so.
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
        """Copy the panel's library into it, in place of an older one.

        Raises:
            InputError: where the copy cannot be written.
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
        """Note that all is there.

        Args:
            name: of the environment variables that its Python starts with.

        Raises:
            InputError: where its Python does not start, or the note cannot be written.
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
        """Note that it is being changed: until :meth:`finish` it counts as incomplete.

        Raises:
            InputError: where that cannot be noted.
        """
        try:
            (self.folder / STAMP).unlink(missing_ok=True)
        except OSError as error:
            raise InputError(_not_written(self.folder, error)) from error

    def remove(self) -> str:
        """Delete it; a folder that is not ours is left alone.

        Returns:
            what was done, in a sentence.

        Raises:
            InputError: where the folder is not ours, or something in it cannot be deleted.
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
        """The name of the first environment variables with which its Python starts and has what pip needs."""
        said = ""
        for name, variables in self.environments.items():
            done = run_command([str(self.python), "-c", TRIAL], variables, cancel=cancel)
            if done.status == 0:
                return name
            said = done.lines[-1].strip() if done.lines else f"exit status {done.status}"
        raise InputError(
            f"The Python in {self.folder} does not start ({said}); name another Python 3.10, 3.11 or 3.12 of this "
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
        """A file of its standard library, which goes when the Python that it was made of is removed."""
        done = run_command([str(self.python), "-c", "import os; print(os.__file__)"], self.environments[name])
        if done.status != 0 or not done.lines:
            raise InputError(f"The Python in {self.folder} does not start any more; install it again.")
        return done.lines[-1]

    def _stamp(self) -> dict[str, Any] | None:
        """What :meth:`finish` noted; None where it did not, or what it noted is no longer true."""
        with suppress(OSError, ValueError):
            stamp = json.loads((self.folder / STAMP).read_text(encoding="utf-8"))
            known = {"requirements", "library", "environment", "standard_library"}
            if isinstance(stamp, dict) and known <= stamp.keys() and self.exists and self.python.is_file():
                return stamp if Path(str(stamp["standard_library"])).is_file() else None
        return None

    def _wanted(self) -> tuple[str, str]:
        """Digests of the requirements and of the library, as the panel has them."""
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
    """The files of the library that are copied, in a fixed order."""
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
